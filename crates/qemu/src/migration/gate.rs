//! What must be open before a guest may stand still ("make before break").

/// The network's side of a switch-over, done by whoever owns the network.
pub trait Gate {
    /// Frames to the guest reach both hosts when this completes. Awaited before QEMU stops the guest, at most
    /// [`super::GATE_MAX`]; memory flows meanwhile. May be called when it is open already. The error is for people.
    fn open(&mut self) -> impl Future<Output = Result<(), String>> + Send;

    /// Undoes it: the switch-over that was expected does not come soon. Not called when the migration
    /// fails; whoever drives it then closes.
    fn close(&mut self) -> impl Future<Output = ()> + Send;
}

/// Nothing to open.
#[derive(Debug, Clone, Copy)]
pub struct NoGate;

impl Gate for NoGate {
    async fn open(&mut self) -> Result<(), String> {
        Ok(())
    }

    async fn close(&mut self) {}
}
