//! One live migration: where it stands, and the report it leaves.

use crate::{Bytes, Generation, HostId, MigrationId, Millis, PlanId, TimeMs, VmId};
use serde::{Deserialize, Serialize};

/// A migration in the store.
///
/// ```text
///  Reserved ──▶ PreCopy ──▶ Committed ──▶ Done
///     │            │            │
///     └────────────┴──▶ Failed  └──▶ TakenBack (the destination was lost before it ran; the source runs on)
///                       Cancelled
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
    pub started_at: TimeMs,
    pub phase: MigrationPhase,
    /// Who asked to stop it before its commit; it unwinds, and is never committed.
    #[serde(default)]
    pub cancelled_by: Option<String>,
    pub finished_at: Option<TimeMs>,
    pub report: Option<MigrationReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub enum MigrationPhase {
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
}

impl MigrationPhase {
    pub fn is_over(&self) -> bool {
        match self {
            Self::Reserved | Self::PreCopy | Self::Committed => false,
            Self::Done | Self::Failed { .. } | Self::Cancelled { .. } | Self::TakenBack { .. } => true,
        }
    }

    pub fn word(&self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::PreCopy => "pre-copy",
            Self::Committed => "committed",
            Self::Done => "done",
            Self::Failed { .. } => "failed",
            Self::Cancelled { .. } => "cancelled",
            Self::TakenBack { .. } => "taken-back",
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
}

/// Predicted and measured, one per migration. Reports will train the predictor.
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
    pub rounds: u64,
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
