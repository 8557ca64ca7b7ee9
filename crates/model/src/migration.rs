//! One live migration: where it stands, and the report it leaves.

use crate::{Bytes, Generation, HostId, MigrationId, Millis, PlanId, TimeMs, VmId};
use serde::{Deserialize, Serialize};

/// A migration in the store.
///
/// ```text
///  Queued ──▶ Reserved ──▶ PreCopy ──▶ Committed ──▶ Done
///     │          │            │            │
///     └──────────┴────────────┴──▶ Failed  ├──▶ TakenBack (the destination was lost before it ran; the source runs on)
///                                  Cancelled└──▶ Restarted (its memory was lost, with a host or in post-copy; it was started anew)
/// ```
/// Before `Committed` everything unwinds; after it nothing does: the right to run is the destination's
/// until another generation is committed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationRecord {
    pub id: MigrationId,
    pub vm: VmId,
    pub from: HostId,
    pub to: HostId,
    /// The vm's generation at the source; the destination gets the next one.
    pub generation: Generation,
    pub plan: Option<PlanId>,
    /// Completes "because ...".
    pub reason: String,
    /// When it was asked for; once its turn has come, when that was.
    pub started_at: TimeMs,
    pub phase: MigrationPhase,
    pub strategy: Strategy,
    pub prediction: Option<Prediction>,
    #[serde(default)]
    pub priority: Priority,
    /// Somebody holds it: it sends next to nothing until it is let go on.
    #[serde(default)]
    pub paused: bool,
    /// Who asked to stop it before its commit; it unwinds, and is never committed.
    #[serde(default)]
    pub cancelled_by: Option<String>,
    pub finished_at: Option<TimeMs>,
    pub report: Option<MigrationReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub enum MigrationPhase {
    /// Waits for its turn. Room at the destination is spoken for.
    Queued,
    /// Room is reserved; the destination prepares.
    Reserved,
    /// Memory is being copied; the guest runs at the source.
    PreCopy,
    /// The destination has the right to run.
    Committed,
    Done,
    /// Nothing moved; the vm runs at the source.
    Failed {
        why: String,
    },
    Cancelled {
        by: String,
    },
    /// The destination never ran; the right was given back to the source at a newer generation.
    TakenBack {
        why: String,
    },
    /// The vm's memory was lost past the commit: it was started anew, once, at a newer generation.
    Restarted {
        why: String,
    },
}

/// How a vm is moved. Both ends get the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strategy {
    pub method: Method,
    /// Connections that memory is sent over, 1 to 16. More than one only with [`Method::PreCopy`].
    pub channels: u8,
    /// Only with more than one channel.
    pub compress: bool,
    /// How far the guest may be slowed down so that pre-copy ends, in percent of its processor time; 0: not at all.
    pub throttle_max: u8,
    /// Mutually authenticated TLS on the channels.
    pub tls: bool,
    pub pace: Pace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Rounds while the guest runs, then a short stop for the rest.
    PreCopy,
    /// One round, or more while that helps, then the guest runs at the destination and fetches what is missing. Always ends.
    PostCopy,
    /// The guest stands still from the first byte to the last. On request only.
    StopAndCopy,
}

impl Priority {
    pub fn word(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

impl Strategy {
    /// The plainest: one connection, no limits of its own.
    pub const PRE_COPY: Self = Self {
        method: Method::PreCopy,
        channels: 1,
        compress: false,
        throttle_max: 0,
        tls: true,
        pace: Pace { min: Bytes::ZERO, max: Bytes::ZERO, paused: false },
    };
}

impl Method {
    pub fn word(self) -> &'static str {
        match self {
            Self::PreCopy => "pre-copy",
            Self::PostCopy => "post-copy",
            Self::StopAndCopy => "stop-and-copy",
        }
    }
}

/// How fast a migration may send, in bytes per second; 0 is no limit. The first round begins at `min`, each further one
/// goes at the rate the guest dirtied memory in the one before plus a constant, and `max` bounds all (Clark et al.,
/// "Live Migration of Virtual Machines", NSDI 2005, section 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pace {
    pub min: Bytes,
    pub max: Bytes,
    /// Sends next to nothing until told otherwise.
    pub paused: bool,
}

/// Which of several migrations gets bandwidth and its turn first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    /// Relief of a hot host, evacuation.
    High,
}

/// What a move was expected to take, before it began. Bounds hold with a probability of 0.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Prediction {
    pub total: Interval<Millis>,
    pub downtime: Interval<Millis>,
    pub transferred: Interval<Bytes>,
    #[serde(default)]
    pub basis: Basis,
}

/// What a prediction rests on: all that was known before the move. Kept with it, so that what it missed by can be
/// learned from at any later time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Basis {
    /// Memory worth sending.
    pub in_use: Bytes,
    /// `None`: nobody had measured it.
    pub writing: Option<Writing>,
    /// What the move would get of the links, per second.
    pub bandwidth: Bytes,
    /// How long the guest was allowed to stand still.
    pub downtime_max: Millis,
}

/// What a guest dirties in a while: its hot set, which it writes again and again, and a slow rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Writing {
    /// Written in full within `hot_span`.
    pub hot: Bytes,
    pub hot_span: Millis,
    /// Bytes per second beyond the hot set, which are not written twice for a long while.
    pub rate: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Interval<T> {
    pub low: T,
    pub expected: T,
    pub high: T,
}

impl MigrationPhase {
    pub fn is_over(&self) -> bool {
        match self {
            Self::Queued | Self::Reserved | Self::PreCopy | Self::Committed => false,
            Self::Done
            | Self::Failed { .. }
            | Self::Cancelled { .. }
            | Self::TakenBack { .. }
            | Self::Restarted { .. } => true,
        }
    }

    pub fn word(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Reserved => "reserved",
            Self::PreCopy => "pre-copy",
            Self::Committed => "committed",
            Self::Done => "done",
            Self::Failed { .. } => "failed",
            Self::Cancelled { .. } => "cancelled",
            Self::TakenBack { .. } => "taken-back",
            Self::Restarted { .. } => "restarted",
        }
    }
}

/// Sent by the source about twice a second. Not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MigrationProgress {
    pub transferred: Bytes,
    pub remaining: Bytes,
    pub total: Bytes,
    /// Passes over memory so far.
    pub rounds: u64,
    /// Bytes the guest dirties per second, as the hypervisor sees it.
    pub dirty_rate: Bytes,
    /// Bytes per second on the wire.
    pub throughput: Bytes,
    /// Of the guest's processor time, in percent.
    #[serde(default)]
    pub throttled: u8,
}

/// Predicted and measured, one per migration. Reports train the predictor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MigrationReport {
    pub predicted_total: Millis,
    /// From the start at the source until the guest was seen running at the destination.
    pub total: Millis,
    /// From the guest's stop at the source until it runs at the destination, as the two hypervisors' events say.
    pub downtime: Millis,
    pub downtime_phases: DowntimePhases,
    pub transferred: Bytes,
    /// Memory that the guest has.
    pub memory: Bytes,
    /// Memory that was worth sending: the first round without pages that are all zero.
    #[serde(default)]
    pub in_use: Bytes,
    pub rounds: u64,
    /// Bytes per second on the wire, over the rounds.
    #[serde(default)]
    pub throughput: Bytes,
    /// What the guest dirtied, per second, while the first rounds ran.
    #[serde(default)]
    pub dirty_rate: Bytes,
    /// What was dirtied in the last round and had to be sent again: the writable working set over its duration.
    #[serde(default)]
    pub writable_working_set: Bytes,
    /// How much of it was sent after the switch-over.
    #[serde(default)]
    pub post_copied: Bytes,
    /// Greatest throttling of the guest, in percent.
    #[serde(default)]
    pub throttled: u8,
}

/// Where the downtime went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DowntimePhases {
    /// Guest paused, waiting for the new generation to be committed.
    pub commit: Millis,
    /// Last pages and device state on their way, until the source saw completion.
    pub copy: Millis,
    /// The rest: until the destination's guest runs.
    pub resume: Millis,
}
