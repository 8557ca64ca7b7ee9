//! A virtual qemu process: what its guest does, and the stream of memory between two of them. It outlives the
//! agent, and dies with its host.
//!
//! ```text
//!  launch ─▶ Starting ─▶ Running ─▶ PoweringDown ─▶ (gone)
//!                         │   ▲ ▲
//!                         ▼   │ └──────────── StreamBroken, cancelled, taken back
//!                        Sending: PreCopy ─▶ AtSwitchOver ─▶ SwitchingOver ─▶ Sent
//!  launch ─▶ Receiving ─▶ Received ─▶ Running            and by post-copy: see [`crate::postcopy`]
//! ```

use crate::fleet::COPY_STEP_MS;
use drover_model::migration::{Method, Pace, Strategy};
use drover_model::policy::MigrationPolicy;
use drover_model::{Bytes, HostId, MigrationId, Millis, TimeMs};

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
    Sending(Box<Sending>),
    /// All of it left; it stands still.
    Sent,
    /// `from`: host and process of the other end, once it has connected.
    Receiving {
        migration: MigrationId,
        from: Option<(HostId, u32)>,
    },
    /// Everything is here; it runs in a moment.
    Received,
    /// Runs, with part of its memory at the source.
    Completing(Completing),
}

#[derive(Debug)]
pub struct Completing {
    pub migration: MigrationId,
    /// Host and process of the other end.
    pub from: (HostId, u32),
    /// Since when it knows that the connection is gone.
    pub stalled_at: Option<TimeMs>,
    /// It waits to be connected anew.
    pub listens: bool,
}

#[derive(Debug)]
pub struct Sending {
    pub migration: MigrationId,
    pub to: HostId,
    pub to_pid: u32,
    pub phase: Phase,
    /// The network lost the connection, and neither end may know.
    pub severed: bool,
    /// Until then the network between the two hosts carries nothing.
    pub away_until: TimeMs,
    pub remaining: Bytes,
    pub transferred: Bytes,
    pub rounds: u64,
    pub dirty_rate: Bytes,
    pub post_copied: Bytes,
    /// What the network carries for it, per second.
    pub link: Bytes,
    pub strategy: Strategy,
    pub pace: Pace,
    pub limits: MigrationPolicy,
    pub began_at: TimeMs,
    /// Somebody holds it since then; and held it for so long before.
    pub held_since: Option<TimeMs>,
    pub held: Millis,
    pub paused_at: TimeMs,
    pub committed_at: TimeMs,
}

/// What a paused one sends all the same.
const PAUSED_RATE: Bytes = Bytes(4_096);
/// Passes over memory before pre-copy is given up.
const HOPELESS_AFTER: u64 = 4;

impl Sending {
    /// Bytes per second that it sends now.
    pub fn rate(&self) -> Bytes {
        match self.pace {
            Pace { paused: true, .. } => PAUSED_RATE,
            Pace { max: Bytes::ZERO, .. } => self.link,
            Pace { max, .. } => max.min(self.link),
        }
    }

    pub fn set_pace(&mut self, now: TimeMs, pace: Pace) {
        if let Some(since) = self.held_since.take() {
            self.held += now.since(since);
        }
        self.held_since = pace.paused.then_some(now);
        self.pace = pace;
    }

    /// What is left of the time it may take; the time that somebody held it does not count.
    pub fn time_left(&self, now: TimeMs) -> Millis {
        let held = self.held + self.held_since.map_or(Millis::ZERO, |since| now.since(since));
        (self.limits.total_max + held).saturating_sub(now.since(self.began_at))
    }

    /// Whether pre-copy has gone on for long enough to see that the guest writes faster than it is sent.
    pub fn is_hopeless(&self, size: Bytes) -> bool {
        self.strategy.method == Method::PreCopy
            && !self.pace.paused
            && self.transferred.0 >= size.0 * HOPELESS_AFTER
            && self.dirty_rate >= self.rate()
    }

    pub fn per_step(&self) -> Bytes {
        self.rate().scale(COPY_STEP_MS as f64 / 1000.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    PreCopy,
    AtSwitchOver,
    SwitchingOver,
    /// The guest runs at the destination.
    PostCopy,
    PostCopyPaused,
    /// Past the commit the stream broke, and qemu left the guest paused.
    StandsStill,
}

impl Qemu {
    pub fn executes(&self) -> bool {
        match &self.guest {
            Guest::Starting | Guest::Running | Guest::PoweringDown | Guest::Completing(_) => true,
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
            | Guest::Completing(_)
            | Guest::Received => None,
        }
    }
}
