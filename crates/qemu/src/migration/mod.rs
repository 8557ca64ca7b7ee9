//! Both ends of a live migration, as QEMU runs it.
//!
//! ```text
//!  source                                             destination
//!  PreCopy ──stands still──▶ AtSwitchOver             Incoming ──▶ RanAt
//!     │                        │      │                   │
//!     │ cancel, limit, failure │      │ commit            └─▶ IncomingFailed
//!     ▼                        ▼      ▼
//!  OutgoingFailed ◀────────────┘   SwitchingOver ──▶ HandedOver ──take_back──▶ runs here again
//!     ▲                               │
//!     └── QEMU could not send it all ─┘
//! ```
//!
//! - Pre-copy only, with `pause-before-switchover`: QEMU stops the guest and waits for [`AtSwitchOver::commit`].
//! - The driver owns the switch-over: QEMU is told to allow 1 ms of downtime, until a full pass is
//!   done and what is left fits into `downtime_max`; then it is told `downtime_max`.
//! - Before the commit everything unwinds and the guest runs at the source. After it nothing is cancelled.
//!   Either QEMU sent everything ([`HandedOver`], the guest stands still) or it failed to and resumed the guest; why
//!   then the destination can't have run it, see [`crate::command_line`]. That proof needs the return path
//!   and multifd off: they are switched off here, whatever was set before.
//! - A driver that is dropped changes nothing in QEMU. [`adopt`] and [`Incoming::adopt`] go on from what QEMU says.
//! - Times of events are QEMU's own, by the clock of its host, to the microsecond.
//!
//! Protocol: QEMU's `qapi/migration.json`.

mod adopt;
mod incoming;
mod outgoing;
mod timeline;
mod wire;

pub use adopt::{Adopted, adopt};
pub use incoming::{AdoptedIncoming, Incoming, IncomingFailed, ListenPorts, PrepareError, RanAt};
pub use outgoing::{AtSwitchOver, Decision, HandedOver, PreCopy, SwitchingOver};

use crate::machine::{Machine, RunStatus};
use crate::qmp::QmpError;
use serde_json::json;
use std::time::{Duration, SystemTime};

/// How often QEMU is asked, besides its events.
const POLL: Duration = Duration::from_millis(100);
/// How often progress is told.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for the first byte to flow; the destination may be unreachable.
pub const CONNECT_MAX: Duration = Duration::from_secs(20);
/// Longest wait until the guest runs again after a cancel.
pub const UNWIND_MAX: Duration = Duration::from_secs(15);
/// Longest wait between the commit and the last byte.
pub const SWITCH_OVER_MAX: Duration = Duration::from_secs(60);
/// Downtime allowed while the driver does not want to switch over; the least QEMU can be told but 0.
const DOWNTIME_LIMIT_CLOSED_MS: u64 = 1;
/// `dirty-sync-count` counts the beginning of each pass: at 2 the first is done.
const PASSES_STARTED_MIN: u64 = 2;
/// Stands for no limit, in bytes per second; QEMU's own default would be 128 MiB/s.
const BANDWIDTH_UNLIMITED: u64 = 1 << 40;

/// Limits of one outgoing migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long the guest may stand still for the last pages, by QEMU's estimate. At least 1 ms.
    pub downtime_max: Duration,
    /// Pre-copy gives up after this long.
    pub total_max: Duration,
    /// Bytes per second.
    pub bandwidth_max: Option<u64>,
    /// How long the guest may stand still waiting for the commit.
    pub commit_wait_max: Duration,
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
}

/// What the source measured, once everything was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// From the start until everything was sent.
    pub total: Duration,
    /// `None` when the event was missed: the driver was away.
    pub stopped_at: Option<SystemTime>,
    pub completed_at: Option<SystemTime>,
    /// Of the downtime: waiting for the commit.
    pub commit_wait: Duration,
    /// Of the downtime: from the commit until everything was sent. Holds the wait, too, if the driver was away at the commit.
    pub copy: Duration,
    pub transferred: u64,
    /// Memory that the guest has.
    pub memory: u64,
    pub rounds: u64,
}

/// Why a migration ended without success.
#[derive(Debug, thiserror::Error)]
pub enum FailureCause {
    #[error(
        "the guest dirties {dirty_rate} bytes/s, the migration carries {throughput} bytes/s, and after {after_s} s it \
         does not converge: move it when it is quieter, or raise downtime_max, total_max or bandwidth_max"
    )]
    NotConverging { dirty_rate: u64, throughput: u64, after_s: u64 },
    #[error(
        "no memory flowed within {} s: check that this host reaches the destination's migration address",
        CONNECT_MAX.as_secs()
    )]
    NoConnection,
    #[error("cancelled by {by}")]
    Cancelled { by: String },
    #[error("the commit did not come within {waited_ms} ms: check that the server is reachable, then migrate again")]
    NoCommit { waited_ms: u128 },
    /// QEMU's words, where it gave any (7.2 gives none for a broken stream).
    #[error("QEMU could not send the guest ({desc}): look at the destination's QEMU and the network between")]
    Stream { desc: String },
    #[error(
        "the last state was not sent within {} s of the commit: end the source's QEMU once the destination is seen running",
        SWITCH_OVER_MAX.as_secs()
    )]
    SwitchOverStuck,
    #[error("QEMU is in the migration state {status}, which this driver never asks for: someone else drives this QEMU")]
    Foreign { status: String },
    #[error(transparent)]
    Monitor(#[from] QmpError),
}

/// What the guest does at the source after a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceGuest {
    RunsHere,
    /// The process is there; the guest is not executed.
    StandsStill(RunStatus),
    /// QEMU closed its monitor: its process has ended or is ending.
    Gone,
    /// QEMU did not answer.
    Unknown,
}

/// A migration that did not hand over.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct OutgoingFailed {
    pub cause: FailureCause,
    /// Verified, not assumed.
    pub guest: SourceGuest,
}

/// A migration could not be begun; the guest runs as before.
#[derive(Debug, thiserror::Error)]
#[error("cannot begin the migration")]
pub struct StartError(#[from] pub QmpError);

/// Taking a guest back did not work.
#[derive(Debug, thiserror::Error)]
pub enum TakeBackError {
    #[error("the guest can't be taken back while QEMU is {0}: only one that was handed over can")]
    WrongStatus(RunStatus),
    #[error(transparent)]
    Monitor(#[from] QmpError),
}

/// Sets what both ends must agree on. What is not named keeps QEMU's default, off.
async fn set_capabilities(machine: &Machine) -> Result<(), QmpError> {
    let capabilities = [
        ("events", true),
        ("pause-before-switchover", true),
        ("return-path", false),
        ("multifd", false),
        ("postcopy-ram", false),
        ("xbzrle", false),
        ("auto-converge", false),
    ];
    let capabilities: Vec<_> =
        capabilities.iter().map(|(capability, state)| json!({ "capability": capability, "state": state })).collect();
    machine.qmp().execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).await.map(drop)
}
