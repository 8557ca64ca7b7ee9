//! What each vm's demand is at each time of day, learned from its load and kept over restarts.
//!
//! The learning is [`planner::pattern`]'s. What was learned is written beside the objects of the store, outside the change
//! log: nobody decides it, and a quarter of an hour of it can be lost.

use crate::interface::{Effect, StoredPattern};
use crate::tables::Tables;
use drover_model::load::DailyPattern;
use drover_model::{CpuMillis, TimeMs, VmId};
use drover_planner::pattern::Learner;
use std::collections::{BTreeMap, BTreeSet};

/// Written in one go; what is left over follows at the next turn.
const WRITTEN_AT_ONCE_MAX: usize = 250;

#[derive(Debug, Default)]
pub struct Patterns {
    vms: BTreeMap<VmId, Known>,
    /// To be written.
    due: BTreeSet<VmId>,
    /// To be forgotten by the store.
    gone: BTreeSet<VmId>,
}

#[derive(Debug, Default)]
struct Known {
    learner: Learner,
    /// As of the start of `slot`.
    pattern: DailyPattern,
    /// Since 1970.
    slot: Option<u64>,
}

impl Patterns {
    /// From what a predecessor kept. What can't be read is learned anew.
    pub fn load(kept: Vec<StoredPattern>, tables: &Tables) -> Self {
        let mut patterns = Self::default();
        for StoredPattern { vm, json } in kept {
            match serde_json::from_str::<Learner>(&json) {
                Ok(learner) if tables.vms.contains_key(&vm) => {
                    let pattern = learner.pattern();
                    patterns.vms.insert(vm, Known { learner, pattern, slot: None });
                }
                _ => drop(patterns.gone.insert(vm)),
            }
        }
        patterns
    }

    pub fn take(&mut self, now: TimeMs, vm: &VmId, demand: CpuMillis) {
        let known = match self.vms.get_mut(vm) {
            Some(known) => known,
            None => self.vms.entry(vm.clone()).or_default(),
        };
        known.learner.take(now, demand);
        let slot = now.0 / DailyPattern::SLOT.0;
        // A slot is learned from when it is over.
        if known.slot.replace(slot).is_some_and(|before| before != slot) {
            known.pattern = known.learner.pattern();
            self.due.insert(vm.clone());
        }
    }

    pub fn of(&self, vm: &VmId) -> DailyPattern {
        self.vms.get(vm).map(|known| known.pattern.clone()).unwrap_or_default()
    }

    pub fn forget(&mut self, vm: &VmId) {
        if self.vms.remove(vm).is_some() {
            self.due.remove(vm);
            self.gone.insert(vm.clone());
        }
    }

    /// What the store should take in now, if anything.
    pub fn keep(&mut self) -> Option<Effect> {
        if self.due.is_empty() && self.gone.is_empty() {
            return None;
        }
        let mut kept = Vec::new();
        while kept.len() < WRITTEN_AT_ONCE_MAX
            && let Some(vm) = self.due.pop_first()
        {
            let json = self.vms.get(&vm).and_then(|known| serde_json::to_string(&known.learner).ok());
            kept.extend(json.map(|json| StoredPattern { vm, json }));
        }
        Some(Effect::StorePatterns { kept, forgotten: std::mem::take(&mut self.gone) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_model::intent::Vm;

    const MINUTE_MS: u64 = 60_000;

    fn vm() -> Vm {
        serde_json::from_value(serde_json::json!({
            "id": "vm-abcdefghijkl", "created_at": 5, "run": "running", "host": "h1", "generation": 3,
            "migration": null, "deleting": false,
            "spec": {
                "name": "web-1", "tenant": "acme", "image": "tiny", "vcpus": 1, "memory": 96 << 20, "nic": null,
                "anti_affinity": null, "pinned_to": [], "guest_args": {},
            },
        }))
        .unwrap()
    }

    /// Busy by day, idle by night.
    fn watch(patterns: &mut Patterns, vm: &VmId, minutes: std::ops::Range<u64>) -> usize {
        let mut writes = 0;
        for minute in minutes {
            let busy = (540..1_020).contains(&(minute % 1_440));
            patterns.take(TimeMs(minute * MINUTE_MS), vm, CpuMillis(if busy { 800 } else { 100 }));
            if let Some(Effect::StorePatterns { kept, .. }) = patterns.keep() {
                writes += kept.len();
            }
        }
        writes
    }

    #[test]
    fn what_was_learned_is_written_every_quarter_of_an_hour_and_read_back() {
        let (vm, mut patterns) = (vm(), Patterns::default());
        assert_eq!(watch(&mut patterns, &vm.id, 0..1_440), 95);
        watch(&mut patterns, &vm.id, 1_440..4 * 1_440);
        let learned = patterns.of(&vm.id);
        assert!(learned.days >= 3, "{learned:?}");
        let noon = learned.at(TimeMs(12 * 60 * MINUTE_MS)).unwrap();
        assert!(noon.mean > 700, "{noon:?}");

        patterns.due.insert(vm.id.clone());
        let Some(Effect::StorePatterns { mut kept, .. }) = patterns.keep() else { panic!("nothing is kept") };
        let mut tables = Tables::default();
        tables.put(vm.clone());
        let stranger: VmId = "vm-aaaaaaaaaaaa".parse().unwrap();
        kept.push(StoredPattern { vm: stranger.clone(), json: kept[0].json.clone() });
        let mut again = Patterns::load(kept, &tables);
        assert_eq!(again.of(&vm.id), learned);
        // What is kept of vms that are gone goes.
        let expected = Effect::StorePatterns { kept: Vec::new(), forgotten: [stranger].into() };
        assert_eq!(again.keep(), Some(expected));
        again.forget(&vm.id);
        assert_eq!(again.of(&vm.id), DailyPattern::default());
    }

    #[test]
    fn what_cannot_be_read_is_learned_anew() {
        let vm = vm();
        let mut tables = Tables::default();
        tables.put(vm.clone());
        let kept = vec![StoredPattern { vm: vm.id.clone(), json: "{}".to_owned() }];
        let patterns = Patterns::load(kept, &tables);
        assert_eq!(patterns.of(&vm.id), DailyPattern::default());
    }
}
