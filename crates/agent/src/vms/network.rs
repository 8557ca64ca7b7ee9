//! What a vm's task asks of the host's network, at the moments that count.
//!
//! ```text
//!  source                                               destination
//!  before the guest stops   relay: frames go to both    (they wait in its tap)
//!  commit                   fence: nothing leaves
//!                                                       runs: arrived, and announced
//!  unwound, taken back      neither, and announced
//!  released                 stragglers are sent after it
//! ```
//!
//! The relay is what a switch-over waits for: without it the migration unwinds. Everything else is said in the log when
//! it fails, and the vm goes its way: it has the right to run, whatever its network does.

use super::task::{VmTask, failed};
use crate::error_chain::chain;
use crate::net::{Coming, Net, NetError};
use drover_model::VmId;
use drover_model::command::{CommandRefusal, MigrationTarget, VmRun};
use drover_qemu::Nic;
use drover_qemu::migration::Gate;
use std::net::IpAddr;

#[derive(Debug, thiserror::Error)]
#[error(
    "network {0} is not on this host: map it to a bridge under [networks] in the agent's configuration, or, if it is an \
     overlay, see why the host has not taken it (`drover network show`)"
)]
struct NoNetwork(String);

/// Opens the way to the destination before the guest stops.
pub(super) struct Relay {
    net: Net,
    vm: VmId,
    /// `None`: there is nothing to open.
    to: Option<IpAddr>,
}

impl Gate for Relay {
    async fn open(&mut self) -> Result<(), String> {
        match self.to {
            Some(to) => self.net.open_relay(&self.vm, to).await.map_err(|error| chain(&error)),
            None => Ok(()),
        }
    }

    async fn close(&mut self) {
        if self.to.is_some() {
            note(&self.vm, "close the relay", self.net.close_relay(&self.vm).await);
        }
    }
}

impl VmTask {
    /// Whether this host has the vm's network.
    pub(super) async fn check_network(&self, run: &VmRun) -> Result<(), CommandRefusal> {
        match &run.nic {
            Some(nic) if !self.host().net.carries(&nic.network).await => {
                Err(failed(&NoNetwork(nic.network.to_string())))
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) async fn prepare_nic(&self, run: &VmRun, coming: Coming) -> Result<Option<Nic>, CommandRefusal> {
        let Some(nic) = &run.nic else { return Ok(None) };
        let tap = self.host().net.attach(&self.vm, &nic.mac, &nic.network, coming).await;
        Ok(Some(Nic { mac: nic.mac.clone(), tap: tap.map_err(|error| failed(&error))? }))
    }

    pub(super) async fn detach_nic(&self) -> Result<(), NetError> {
        self.host().net.detach(&self.vm).await
    }

    /// Where frames to this vm are relayed to; `None` for one on a provider network, or on none.
    pub(super) async fn relay_address(&self) -> Option<IpAddr> {
        let (record, _) = self.known.as_ref()?;
        let network = &record.run.nic.as_ref()?.network;
        if self.host().config.networks.contains_key(network) {
            return None;
        }
        self.host().overlay_address()
    }

    pub(super) fn relay(&self, target: &MigrationTarget) -> Relay {
        let to = target.relay.filter(|_| self.has_nic());
        Relay { net: self.host().net.clone(), vm: self.vm.clone(), to }
    }

    /// Nothing that the old copy might still send leaves this host.
    pub(super) async fn fence(&self) {
        if self.has_nic() {
            note(&self.vm, "fence", self.host().net.fence(&self.vm).await);
        }
    }

    /// The vm is this host's as before the migration.
    pub(super) async fn reopen_network(&self) {
        if self.has_nic() {
            note(&self.vm, "unfence", self.host().net.unfence(&self.vm).await);
            note(&self.vm, "close the relay", self.host().net.close_relay(&self.vm).await);
        }
    }

    /// Switches of a provider network learn anew where the vm is.
    pub(super) async fn announce(&self) {
        if self.has_nic() {
            note(&self.vm, "announce", self.host().net.announce(&self.vm).await);
        }
    }

    pub(super) async fn arrived_on_network(&self) {
        if self.has_nic() {
            note(&self.vm, "take over", self.host().net.arrived(&self.vm).await);
            self.announce().await;
        }
    }

    /// Before the QEMU of a vm that was handed over ends.
    pub(super) async fn leave_network(&self) {
        if self.has_nic() {
            note(&self.vm, "redirect stragglers", self.host().net.release(&self.vm).await);
        }
    }

    fn has_nic(&self) -> bool {
        self.known.as_ref().is_some_and(|(record, _)| record.run.nic.is_some())
    }
}

fn note(vm: &VmId, what: &str, done: Result<(), NetError>) {
    if let Err(error) = done {
        tracing::warn!(%vm, what, error = chain(&error), "the vm's network is not as it should be");
    }
}
