//! Live migrations.

use super::schema;
use drover_model::intent::Vm;
use drover_model::migration::{MigrationPhase, MigrationProgress, MigrationRecord, MigrationReport};
use drover_model::{Generation, HostId, MigrationId, PlanId, Revision, TenantId, VmId, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MigrationView {
    #[schema(value_type = u64)]
    pub id: MigrationId,
    #[schema(value_type = u64)]
    pub revision: Revision,
    #[schema(value_type = String)]
    pub vm: VmId,
    /// `null` once the vm is gone.
    #[schema(value_type = Option<String>)]
    pub vm_name: Option<VmName>,
    #[schema(value_type = Option<String>)]
    pub tenant: Option<TenantId>,
    #[schema(value_type = String)]
    pub from: HostId,
    #[schema(value_type = String)]
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
    /// Why it failed, who cancelled it.
    pub why: Option<String>,
    pub started_at_ms: u64,
    pub finished_at_ms: Option<u64>,
    /// While memory is being copied.
    pub progress: Option<ProgressView>,
    /// Once it is done.
    pub report: Option<ReportView>,
}

impl MigrationView {
    pub fn new(
        record: &MigrationRecord,
        revision: Revision,
        vm: Option<&Vm>,
        progress: Option<&MigrationProgress>,
    ) -> Self {
        let why = match &record.phase {
            MigrationPhase::Reserved | MigrationPhase::PreCopy | MigrationPhase::Committed | MigrationPhase::Done => {
                None
            }
            MigrationPhase::Failed { why } | MigrationPhase::TakenBack { why } => Some(why.clone()),
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
            started_at_ms: record.started_at.0,
            finished_at_ms: record.finished_at.map(|at| at.0),
            progress: progress.map(ProgressView::from),
            report: record.report.as_ref().map(ReportView::from),
        }
    }
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
        }
    }
}
