//! Live migrations.

use super::schema;
use crate::intent::Vm;
use crate::kind::{Access, Audience, Exposed, Fixed, Kind, Owner};
use crate::migration::{
    Interval, Method, MigrationPhase, MigrationProgress, MigrationRecord, MigrationReport, Prediction, Priority,
    Strategy,
};
use crate::{Bytes, Generation, HostId, MigrationId, Millis, PlanId, Revision, TenantName, TimeMs, VmId, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MigrationView {
    #[schema(value_type = u64)]
    pub id: MigrationId,
    #[schema(value_type = u64)]
    pub revision: Revision,
    pub vm: VmId,
    /// `null` once the vm is gone.
    pub vm_name: Option<VmName>,
    pub tenant: Option<TenantName>,
    pub from: HostId,
    pub to: HostId,
    /// The vm's generation at the source; the destination gets the next one.
    #[schema(value_type = u64)]
    pub generation: Generation,
    /// The plan it is a step of; `null` for one that was asked for.
    #[schema(value_type = Option<u64>)]
    pub plan: Option<PlanId>,
    /// Completes "because ...".
    pub reason: String,
    #[schema(schema_with = schema::migration_phase)]
    pub phase: String,
    /// Whether `phase` is a last one.
    pub over: bool,
    /// What goes on at this moment: `queued`, `held`, `reserve`, `pre-copy`, `switch-over`, `post-copy`, `stalled` (a
    /// post-copy that lost its connection), `release`, `unwinding`; once it is over, the phase.
    pub stage: String,
    /// Why it failed, who cancelled it.
    pub why: Option<String>,
    pub strategy: StrategyView,
    /// What it was expected to take.
    pub prediction: Option<MigrationPrediction>,
    #[schema(schema_with = schema::priority)]
    pub priority: Priority,
    /// Somebody holds it: `drover migration resume` lets it go on.
    pub held: bool,
    /// When it is expected to begin and to be done; `null` while that can't be said.
    pub start_eta_at_ms: Option<u64>,
    pub finish_eta_at_ms: Option<u64>,
    /// Why it has not begun; completes "because ...".
    pub waits_for: Option<String>,
    /// How often a post-copy that had lost its connection was connected anew.
    pub recoveries: u32,
    pub started_at_ms: u64,
    pub finished_at_ms: Option<u64>,
    /// While memory is being copied.
    pub progress: Option<ProgressView>,
    /// Once it is done.
    pub report: Option<ReportView>,
}

/// What is known of a migration at this moment besides its record.
#[derive(Debug, Clone, Copy)]
pub struct MigrationNow<'a> {
    pub stage: &'static str,
    pub progress: Option<&'a MigrationProgress>,
    pub start_eta: Option<TimeMs>,
    pub finish_eta: Option<TimeMs>,
    pub waits_for: Option<&'a str>,
    pub recoveries: u32,
}

impl Kind for MigrationRecord {
    const NAME: &'static str = "migration";
    type Key = MigrationId;

    fn key(&self) -> MigrationId {
        self.id
    }

    /// Its vm's owner may see it, too: `control` looks that up.
    fn owner(&self) -> Owner<'_> {
        Owner::Cluster
    }
}

impl Exposed for MigrationRecord {
    const TITLE: &'static str = "migration";
    const PLURAL: &'static str = "migrations";
    const TAG: &'static str = "migrations";
    const ACCESS: Access = Access { read: Audience::Owner, write: Audience::Operators };
    /// They come about when vms move.
    type Create = Fixed;
    type View = MigrationView;
    type Settings = Fixed;
    const NEWEST_FIRST: bool = true;
    const CREATABLE: bool = false;
    const PATCHABLE: bool = false;
    const REMOVABLE: bool = false;
    const STATES: &'static [&'static str] = schema::MIGRATION_PHASES;
}

impl MigrationView {
    pub fn new(record: &MigrationRecord, revision: Revision, vm: Option<&Vm>, now: &MigrationNow<'_>) -> Self {
        let why = match &record.phase {
            MigrationPhase::Queued
            | MigrationPhase::Reserved
            | MigrationPhase::PreCopy
            | MigrationPhase::Committed
            | MigrationPhase::Done => None,
            MigrationPhase::Failed { why } | MigrationPhase::TakenBack { why } | MigrationPhase::Restarted { why } => {
                Some(why.clone())
            }
            MigrationPhase::Cancelled { by } => Some(format!("cancelled by {by}")),
        };
        Self {
            id: record.id,
            revision,
            vm: record.vm.clone(),
            vm_name: vm.map(|vm| vm.spec.name.clone()),
            tenant: vm.map(|vm| vm.spec.tenant.clone()),
            from: record.from.clone(),
            to: record.to.clone(),
            generation: record.generation,
            plan: record.plan,
            reason: record.reason.clone(),
            phase: record.phase.word().to_owned(),
            over: record.phase.is_over(),
            why,
            stage: now.stage.to_owned(),
            strategy: StrategyView::from(&record.strategy),
            prediction: record.prediction.as_ref().map(MigrationPrediction::from),
            priority: record.priority,
            held: record.paused,
            start_eta_at_ms: now.start_eta.map(|at| at.0),
            finish_eta_at_ms: now.finish_eta.map(|at| at.0),
            waits_for: now.waits_for.map(str::to_owned),
            recoveries: now.recoveries,
            started_at_ms: record.started_at.0,
            finished_at_ms: record.finished_at.map(|at| at.0),
            progress: now.progress.map(ProgressView::from),
            report: record.report.as_ref().map(ReportView::from),
        }
    }
}

/// How a vm is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StrategyView {
    #[schema(schema_with = schema::method)]
    pub method: Method,
    /// Connections that memory is sent over.
    pub channels: u8,
    pub compress: bool,
    /// How far the guest may be slowed down.
    pub throttle_max_percent: u8,
    /// Whether the channel is encrypted and both ends prove who they are.
    pub tls: bool,
    /// The first round goes at this rate, or at most it; 0 is no limit.
    pub pace_min_bytes_s: u64,
    pub pace_max_bytes_s: u64,
}

impl From<&Strategy> for StrategyView {
    fn from(strategy: &Strategy) -> Self {
        let Strategy { method, channels, compress, throttle_max, tls, pace } = *strategy;
        Self {
            method,
            channels,
            compress,
            throttle_max_percent: throttle_max,
            tls,
            pace_min_bytes_s: pace.min.0,
            pace_max_bytes_s: pace.max.0,
        }
    }
}

/// Expected before the move began; `low` to `high` holds four times out of five.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationPrediction {
    pub total_ms: IntervalView,
    pub downtime_ms: IntervalView,
    pub transferred_bytes: IntervalView,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IntervalView {
    pub low: u64,
    pub expected: u64,
    pub high: u64,
}

impl IntervalView {
    fn of<T: Copy>(interval: Interval<T>, plain: impl Fn(T) -> u64) -> Self {
        Self { low: plain(interval.low), expected: plain(interval.expected), high: plain(interval.high) }
    }
}

impl From<&Prediction> for MigrationPrediction {
    fn from(prediction: &Prediction) -> Self {
        let millis = |Millis(ms)| ms;
        Self {
            total_ms: IntervalView::of(prediction.total, millis),
            downtime_ms: IntervalView::of(prediction.downtime, millis),
            transferred_bytes: IntervalView::of(prediction.transferred, |Bytes(count)| count),
        }
    }
}

/// What a move would be. Nothing was changed for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationForecast {
    pub vm: VmId,
    pub vm_name: VmName,
    pub from: HostId,
    pub to: HostId,
    pub strategy: StrategyView,
    /// Why this strategy; completes "because ...".
    pub because: String,
    pub prediction: MigrationPrediction,
    /// Each would make the request be refused as things stand now; empty: it would be taken.
    pub forbidden: Vec<String>,
    /// Why it would not begin at once; completes "because ...".
    pub waits_for: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ForecastQuery {
    /// Where a name is not unique.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Left out: where the planner would move it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// `pre-copy`, `post-copy` or `stop-and-copy`; left out: what is expected to do best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(schema_with = schema::method)]
    pub method: Option<Method>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPriority {
    #[schema(schema_with = schema::priority)]
    pub priority: Priority,
}

/// About twice a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgressView {
    pub transferred_bytes: u64,
    pub remaining_bytes: u64,
    pub total_bytes: u64,
    /// Passes over memory so far.
    pub rounds: u64,
    /// What the guest writes, as the hypervisor sees it.
    pub dirty_bytes_s: u64,
    pub throughput_bytes_s: u64,
    /// How far the guest is slowed down.
    pub throttled_percent: u8,
}

impl From<&MigrationProgress> for ProgressView {
    fn from(progress: &MigrationProgress) -> Self {
        Self {
            transferred_bytes: progress.transferred.0,
            remaining_bytes: progress.remaining.0,
            total_bytes: progress.total.0,
            rounds: progress.rounds,
            dirty_bytes_s: progress.dirty_rate.0,
            throughput_bytes_s: progress.throughput.0,
            throttled_percent: progress.throttled,
        }
    }
}

/// Predicted and measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReportView {
    pub predicted_total_ms: u64,
    pub total_ms: u64,
    /// From the guest's stop at the source until it runs at the destination.
    pub downtime_ms: u64,
    /// The downtime's parts: waiting for the commit, sending the last pages, starting at the destination.
    pub downtime_commit_ms: u64,
    pub downtime_copy_ms: u64,
    pub downtime_resume_ms: u64,
    pub transferred_bytes: u64,
    pub memory_bytes: u64,
    pub rounds: u64,
    /// Memory that was worth sending: the first round without pages that are all zero.
    pub in_use_bytes: u64,
    pub throughput_bytes_s: u64,
    /// What the guest dirtied while the first rounds ran.
    pub dirty_bytes_s: u64,
    /// What was dirtied in the last round.
    pub writable_working_set_bytes: u64,
    /// Sent after the guest had begun to run at the destination.
    pub post_copied_bytes: u64,
    pub throttled_percent: u8,
}

impl From<&MigrationReport> for ReportView {
    fn from(report: &MigrationReport) -> Self {
        Self {
            predicted_total_ms: report.predicted_total.0,
            total_ms: report.total.0,
            downtime_ms: report.downtime.0,
            downtime_commit_ms: report.downtime_phases.commit.0,
            downtime_copy_ms: report.downtime_phases.copy.0,
            downtime_resume_ms: report.downtime_phases.resume.0,
            transferred_bytes: report.transferred.0,
            memory_bytes: report.memory.0,
            rounds: report.rounds,
            in_use_bytes: report.in_use.0,
            throughput_bytes_s: report.throughput.0,
            dirty_bytes_s: report.dirty_rate.0,
            writable_working_set_bytes: report.writable_working_set.0,
            post_copied_bytes: report.post_copied.0,
            throttled_percent: report.throttled,
        }
    }
}
