//! A virtual qemu process: what its guest does, and the stream of memory between two of them. It outlives the
//! agent, and dies with its host.
//!
//! ```text
//!  launch ─▶ Starting ─▶ Running ─▶ PoweringDown ─▶ (gone)
//!                         │   ▲ ▲
//!                         ▼   │ └──────────── StreamBroken, cancelled, taken back
//!                        Sending: PreCopy ─▶ AtSwitchOver ─▶ SwitchingOver ─▶ Sent
//!  launch ─▶ Receiving ─▶ Received ─▶ Running
//! ```

use drover_model::policy::MigrationPolicy;
use drover_model::{Bytes, HostId, MigrationId, TimeMs};

/// Which of a vm's memories this is: an incarnation begins at each boot, an epoch each time it begins to execute somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub incarnation: u64,
    pub epoch: u64,
}

#[derive(Debug)]
pub struct Qemu {
    pub pid: u32,
    pub guest: Guest,
    /// `None`: nothing arrived yet.
    pub memory: Option<Memory>,
    pub size: Bytes,
}

#[derive(Debug)]
pub enum Guest {
    Starting,
    Running,
    PoweringDown,
    Sending(Sending),
    /// All of it left; it stands still.
    Sent,
    /// `from`: host and process of the other end, once it has connected.
    Receiving {
        migration: MigrationId,
        from: Option<(HostId, u32)>,
    },
    /// Everything is here; it runs in a moment.
    Received,
}

#[derive(Debug)]
pub struct Sending {
    pub migration: MigrationId,
    pub to: HostId,
    pub to_pid: u32,
    pub phase: Phase,
    /// The network lost the connection, and neither end may know.
    pub severed: bool,
    pub remaining: Bytes,
    pub transferred: Bytes,
    pub rounds: u64,
    pub dirty_rate: Bytes,
    pub limits: MigrationPolicy,
    pub began_at: TimeMs,
    pub paused_at: TimeMs,
    pub committed_at: TimeMs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    PreCopy,
    AtSwitchOver,
    SwitchingOver,
    /// Past the commit the stream broke, and qemu left the guest paused.
    StandsStill,
}

impl Qemu {
    pub fn executes(&self) -> bool {
        match &self.guest {
            Guest::Starting | Guest::Running | Guest::PoweringDown => true,
            Guest::Sending(sending) => sending.phase == Phase::PreCopy,
            Guest::Sent | Guest::Receiving { .. } | Guest::Received => false,
        }
    }

    pub fn sending(&mut self) -> Option<&mut Sending> {
        match &mut self.guest {
            Guest::Sending(sending) => Some(sending),
            Guest::Starting
            | Guest::Running
            | Guest::PoweringDown
            | Guest::Sent
            | Guest::Receiving { .. }
            | Guest::Received => None,
        }
    }
}
