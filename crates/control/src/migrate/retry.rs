//! Pre-copy that would not end: the same move once more by post-copy, which does.

use super::asking::ask;
use super::{MigrationRequest, close};
use crate::Control;
use crate::lifecycle::vm_event;
use drover_model::TimeMs;
use drover_model::event::Severity;
use drover_model::migration::{Method, MigrationPhase, MigrationRecord};

/// The first try is closed, and a new migration takes its place in the queue and in the plan. There is one second try: it
/// is a post-copy.
pub fn once_more(control: &mut Control, now: TimeMs, record: &MigrationRecord, why: &str) {
    let first = |what: String| MigrationPhase::Failed { why: format!("{why}; {what}") };
    if record.strategy.method == Method::PostCopy {
        return close(control, now, record, first("and this was post-copy".to_owned()), None);
    }
    if !control.allows_post_copy(&record.from, &record.to) {
        let remedy = "allow post-copy on hosts that can do it (`drover policy set migration_post_copy=true`), a longer \
                      downtime (migration_downtime_max_ms) or more bandwidth";
        return close(control, now, record, first(remedy.to_owned()), None);
    }
    close(control, now, record, first("it is tried once more, by post-copy".to_owned()), None);
    let request = MigrationRequest {
        vm: record.vm.clone(),
        to: record.to.clone(),
        plan: record.plan,
        reason: format!("{}, and pre-copy (migration {}) would not end", record.reason, record.id),
        priority: record.priority,
        method: Some(Method::PostCopy),
    };
    if let Err(refusal) = ask(control, now, request)
        && let Some(vm) = control.vm(&record.vm).cloned()
    {
        let text = format!("{} could not be moved by post-copy either: {refusal}", vm.spec.name);
        vm_event(control, now, &vm, Severity::Warning, "migration-failed", text);
    }
}

/// The migration that does what this one was for: itself, or the second try.
pub fn continued<'a>(control: &'a Control, record: &'a MigrationRecord) -> &'a MigrationRecord {
    let takes_over = |m: &&MigrationRecord| {
        m.id > record.id && m.vm == record.vm && m.plan == record.plan && m.strategy.method == Method::PostCopy
    };
    match &record.phase {
        MigrationPhase::Failed { .. } if record.plan.is_some() => {
            control.migrations().rev().find(takes_over).unwrap_or(record)
        }
        _ => record,
    }
}
