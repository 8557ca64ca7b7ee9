//! Both ends of a live migration, as QEMU runs it.
//!
//! ```text
//!  source                                                        destination
//!  PreCopy ──stands still──▶ AtSwitchOver                        Incoming ──▶ RanAt
//!     │                        │      │                           │   └────▶ Completing ──▶ complete
//!     │ cancel, limit, failure │      │ commit                    │             │    ▲
//!     ▼                        ▼      ▼                           ▼             ▼    │ listen
//!  OutgoingFailed ◀────────────┘   SwitchingOver ──▶ HandedOver   IncomingFailed  StalledIncoming
//!     ▲                               │    │            ▲
//!     └── QEMU could not send it all ─┘    └─▶ PostCopy ┘
//!                                              │     ▲
//!                                              ▼     │ recover
//!                                             Stalled
//! ```
//!
//! - With `pause-before-switchover` QEMU stops the guest and waits for [`AtSwitchOver::commit`], whatever the [`Method`].
//! - The driver owns the switch-over: QEMU is told to allow no downtime until the [`Gate`] is open and the rounds say
//!   that it is time.
//! - Before the commit everything unwinds and the guest runs at the source. After it nothing is cancelled.
//!   Either QEMU sent everything ([`HandedOver`], the guest stands still) or it failed to and resumed the guest; why
//!   then the destination can't have run it, see [`crate::command_line`]. That proof needs the return path off: it is
//!   switched off here, whatever was set before.
//! - Post-copy opens the return path, so there the proof is another one: the source never runs the guest again past
//!   the commit, whatever fails, and pre-copy is never let come to its own end. See `docs/decisions/0007`.
//! - A driver that is dropped changes nothing in QEMU. [`adopt`] and [`Incoming::adopt`] go on from what QEMU says.
//! - Times of events are QEMU's own, by the clock of its host, to the microsecond.
//!
//! Protocol: QEMU's `qapi/migration.json`.

mod adopt;
mod completing;
mod failure;
mod gate;
mod incoming;
mod post_copy;
mod pre_copy;
mod rounds;
mod source;
mod strategy;
mod switch_over;
mod timeline;
mod tls;
mod wire;

pub use adopt::{Adopted, adopt};
pub use completing::{Completing, CompletingBroken, ListenFailed, StalledIncoming};
pub use failure::{FailureCause, OutgoingFailed, RecoverError, RecoverFailed, SourceGuest, StartError, TakeBackError};
pub use gate::{Gate, NoGate};
pub use incoming::{AdoptedIncoming, Arrived, Incoming, IncomingFailed, ListenPorts, PrepareError, RanAt};
pub use post_copy::{PostCopy, PostCopyBroken, Stalled};
pub use pre_copy::PreCopy;
pub use strategy::{Adjust, Method, Pace, Strategy, Tls};
pub use switch_over::{AtSwitchOver, Decision, HandedOver, Switched, SwitchingOver};

use std::time::{Duration, SystemTime};

/// How often QEMU is asked, besides its events.
const POLL: Duration = Duration::from_millis(100);
/// How often progress is told.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for the first byte to flow; the destination may be unreachable.
pub const CONNECT_MAX: Duration = Duration::from_secs(20);
/// Longest wait for the network to be opened to both hosts.
pub const GATE_MAX: Duration = Duration::from_secs(5);
/// Longest wait until the guest runs again after a cancel.
pub const UNWIND_MAX: Duration = Duration::from_secs(15);
/// Longest wait between the commit and the last byte, or the begin of post-copy.
pub const SWITCH_OVER_MAX: Duration = Duration::from_secs(60);
/// A post-copy through which nothing flows for this long is stalled.
pub const POST_COPY_SILENCE_MAX: Duration = Duration::from_secs(5);
/// Longest wait for the two ends of a stalled post-copy to find each other again.
pub const RECOVER_MAX: Duration = Duration::from_secs(20);

/// Limits of one outgoing migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long the guest may stand still for the last pages, by QEMU's estimate. At least 1 ms. Not with stop-and-copy.
    pub downtime_max: Duration,
    /// The copying before the switch-over gives up after this long.
    pub total_max: Duration,
    /// How long the guest may stand still waiting for the commit.
    pub commit_wait_max: Duration,
    /// Bytes of the guest's memory that are resident, if known: what is not empty and has to be sent. It tells when the first
    /// round comes to its end, since empty memory passes in a moment.
    pub resident: Option<u64>,
}

/// Where an outgoing migration is. Bytes, and bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    pub transferred: u64,
    pub remaining: u64,
    pub total: u64,
    /// Passes over memory that were begun.
    pub rounds: u64,
    pub dirty_rate: u64,
    pub throughput: u64,
    /// Of the guest's processor time, in percent.
    pub throttled: u8,
    /// Of what was transferred: after the switch-over.
    pub post_copied: u64,
}

/// What the source measured, once everything was sent. Of a migration that was adopted, only what came after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// From the start until everything was sent.
    pub total: Duration,
    /// `None` when the event was missed: the driver was away.
    pub stopped_at: Option<SystemTime>,
    pub completed_at: Option<SystemTime>,
    /// Of the downtime: waiting for the commit.
    pub commit_wait: Duration,
    /// Of the downtime: from the commit until everything was sent, or post-copy began. Holds the wait, too, if the driver
    /// was away at the commit.
    pub copy: Duration,
    pub transferred: u64,
    /// Memory that the guest has.
    pub memory: u64,
    pub rounds: u64,
    /// Memory that was worth sending: pages of the first round that were not all zero. After a post-copy, of all that was sent.
    pub in_use: u64,
    /// Bytes per second on the wire, over the rounds.
    pub throughput: u64,
    /// Bytes per second that the guest dirtied while the first rounds ran; 0 if none came to its end.
    pub dirty_rate: u64,
    /// What the last round left to be sent again.
    pub writable_working_set: u64,
    /// Bytes sent after the switch-over of a post-copy.
    pub post_copied: u64,
    /// Greatest throttling of the guest, in percent.
    pub throttled: u8,
}
