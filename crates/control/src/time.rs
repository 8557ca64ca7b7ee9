//! The two clocks, and how long the loops wait for what. See `docs/decisions/0010-elapsed-time-is-monotonic.md`.
//!
//! Every decision goes by the *cluster clock*: it starts at the wall clock's time, or at the newest time the store holds if
//! that is later, and from then on runs with the monotonic clock. The *wall clock* is for people and for what the outside
//! world dates: events, `created_at`, `joined_at`, and the expiry of tokens. A step of it changes no decision.

use drover_model::{Millis, TimeMs};

/// One moment by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// By the cluster clock. Never goes back.
    pub at: TimeMs,
    /// By the wall clock.
    pub wall: TimeMs,
}

/// Where the two clocks agree.
impl From<TimeMs> for Now {
    fn from(at: TimeMs) -> Self {
        Self { at, wall: at }
    }
}

/// How far the wall clock is ahead of the cluster clock, in ms; negative if it is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WallOffset(i64);

impl WallOffset {
    pub fn of(now: Now) -> Self {
        Self(now.wall.0 as i64 - now.at.0 as i64)
    }

    /// A time on the cluster clock, as people read it.
    pub fn to_wall(self, at: TimeMs) -> TimeMs {
        TimeMs(at.0.saturating_add_signed(self.0))
    }
}

/// How long the loops wait before they conclude something. Keys of the server's configuration, `[waits]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// No host is suspected after a shorter silence.
    pub suspect_after: Millis,
    /// No host is called down after a shorter silence.
    pub down_after: Millis,
    /// After the server's start, how long a host may take to send its first message.
    pub first_message_within: Millis,
    /// The loops stop when more than this share of the hosts is silent at once, in percent: the fault is then probably the
    /// server's own.
    pub brake_above_percent: u32,
    /// A tick later than this means that the server itself stood still: what was not heard meanwhile is no silence of hosts.
    pub tick_late_after: Millis,
    /// A vm whose QEMU ends unasked is started again at most so often within `restarts_within`, and then not again until
    /// somebody asks for it.
    pub restarts_max: u32,
    pub restarts_within: Millis,
    /// A host that has refused to start a vm so often in a row is avoided by that vm for `avoid_host_for`.
    pub start_failures_max: u32,
    pub avoid_host_for: Millis,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            suspect_after: Millis(3_500),
            down_after: Millis(12_000),
            first_message_within: Millis(20_000),
            brake_above_percent: 50,
            tick_late_after: Millis(1_000),
            restarts_max: 3,
            restarts_within: Millis::secs(600),
            start_failures_max: 3,
            avoid_host_for: Millis::secs(600),
        }
    }
}
