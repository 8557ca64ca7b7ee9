//! A vm whose moves fail is left alone by the planner for a while, twice as long after each.

use drover_model::migration::{MigrationPhase, MigrationRecord};
use drover_model::{Millis, TimeMs, VmId};
use std::collections::BTreeMap;

/// After the first failure; doubled with each further one, up to [`COOLING_MAX`].
const COOLING: Millis = Millis::secs(20);
const COOLING_MAX: Millis = Millis::secs(20 * 60);
/// Failures are forgotten once nothing failed for this long.
const FORGET_AFTER: Millis = Millis::secs(3600);

#[derive(Debug, Default)]
pub struct Cooling {
    vms: BTreeMap<VmId, Cooled>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cooled {
    /// In a row.
    pub failures: u32,
    pub until: TimeMs,
    pub why: String,
}

impl Cooling {
    /// A migration is over.
    pub fn ended(&mut self, at: TimeMs, record: &MigrationRecord) {
        match &record.phase {
            MigrationPhase::Failed { why } | MigrationPhase::TakenBack { why } => self.failed(at, &record.vm, why),
            MigrationPhase::Done | MigrationPhase::Restarted { .. } => drop(self.vms.remove(&record.vm)),
            // Somebody's request says nothing of the vm.
            MigrationPhase::Cancelled { .. }
            | MigrationPhase::Queued
            | MigrationPhase::Reserved
            | MigrationPhase::PreCopy
            | MigrationPhase::Committed => {}
        }
    }

    /// A move failed, or could not even be begun.
    pub fn failed(&mut self, at: TimeMs, vm: &VmId, why: &str) {
        let before = self.vms.get(vm).map_or(0, |cooled| cooled.failures);
        let failures = before.saturating_add(1);
        let span = Millis(COOLING.0.saturating_mul(1 << before.min(30))).min(COOLING_MAX);
        self.vms.insert(vm.clone(), Cooled { failures, until: at.plus(span), why: why.to_owned() });
    }

    /// While the planner leaves it alone.
    pub fn of(&self, vm: &VmId, now: TimeMs) -> Option<&Cooled> {
        self.vms.get(vm).filter(|cooled| now < cooled.until)
    }

    pub fn forget_old(&mut self, now: TimeMs) {
        self.vms.retain(|_, cooled| now < cooled.until.plus(FORGET_AFTER));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_in_a_row_doubles_the_time_within_bounds_and_a_success_ends_it() {
        let (vm, mut cooling) = ("vm-a".parse().unwrap(), Cooling::default());
        let mut now = TimeMs(1_000);
        let mut spans = Vec::new();
        for _ in 0..8 {
            cooling.failed(now, &vm, "the link broke");
            let cooled = cooling.of(&vm, now).unwrap();
            spans.push(cooled.until.since(now).as_secs());
            now = cooled.until;
            assert_eq!(cooling.of(&vm, now), None, "it is over at its end");
        }
        assert_eq!(spans, [20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1200.0, 1200.0]);
        cooling.forget_old(now.plus(FORGET_AFTER));
        cooling.failed(now, &vm, "again");
        assert_eq!(cooling.of(&vm, now).unwrap().failures, 1, "old failures are forgotten");
    }
}
