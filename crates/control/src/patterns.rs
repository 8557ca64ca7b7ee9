//! What each vm's demand is at each time of day, learned from its load and kept over restarts.
//!
//! The learning is [`planner::pattern`]'s. What was learned is written beside the objects of the store, outside the change
//! log: nobody decides it, and half an hour of it can be lost.
//!
//! A slot of the day is over for all vms at the same moment. Their writes are spread over the next slot, each vm at
//! its own offset, and go along with whatever is committed anyway; only what has waited for [`WAIT_MAX`] gets a
//! transaction of its own.

use crate::interface::{Effect, PatternWrites, StoredPattern};
use crate::tables::Tables;
use drover_model::load::DailyPattern;
use drover_model::{CpuMillis, Millis, TimeMs, VmId};
use drover_planner::pattern::Learner;
use std::collections::{BTreeMap, BTreeSet};

/// Written in one transaction; what is left over follows in the next.
const WRITTEN_AT_ONCE_MAX: usize = 64;
/// How long what is due waits for a commit that takes it along.
const WAIT_MAX: Millis = Millis::secs(10);

#[derive(Debug, Default)]
pub struct Patterns {
    vms: BTreeMap<VmId, Known>,
    /// To be written, from this time on.
    due: BTreeSet<(TimeMs, VmId)>,
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
    /// When it is due to be written, if it has changed since.
    due: Option<TimeMs>,
}

/// A vm's own moment within a slot: FNV-1a (Fowler, Noll, Vo) of its id, so that the same vm has the same everywhere.
fn offset(vm: &VmId) -> Millis {
    let hash = vm
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    // The low bits of FNV-1a are poor: the high ones are folded onto them.
    Millis((hash ^ (hash >> 32)) % DailyPattern::SLOT.0)
}

impl Patterns {
    /// From what a predecessor kept. What can't be read is learned anew.
    pub fn load(kept: Vec<StoredPattern>, tables: &Tables) -> Self {
        let mut patterns = Self::default();
        for StoredPattern { vm, json } in kept {
            match serde_json::from_str::<Learner>(&json) {
                Ok(learner) if tables.vms.contains_key(&vm) => {
                    let pattern = learner.pattern();
                    patterns.vms.insert(vm, Known { learner, pattern, slot: None, due: None });
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
            // Not yet written of an earlier slot: its turn stays, and takes this one along.
            if known.due.is_none() {
                let at = TimeMs(slot * DailyPattern::SLOT.0).plus(offset(vm));
                // A vm that was not heard of for part of the slot is due at once, and not in the past.
                let at = at.max(now);
                known.due = Some(at);
                self.due.insert((at, vm.clone()));
            }
        }
    }

    pub fn of(&self, vm: &VmId) -> DailyPattern {
        self.vms.get(vm).map(|known| known.pattern.clone()).unwrap_or_default()
    }

    pub fn forget(&mut self, vm: &VmId) {
        if let Some(known) = self.vms.remove(vm) {
            if let Some(at) = known.due {
                self.due.remove(&(at, vm.clone()));
            }
            self.gone.insert(vm.clone());
        }
    }

    /// What a commit of this moment should take along.
    pub fn due(&mut self, now: TimeMs) -> PatternWrites {
        let mut kept = Vec::new();
        while kept.len() < WRITTEN_AT_ONCE_MAX
            && let Some((at, _)) = self.due.first()
            && *at <= now
            && let Some((_, vm)) = self.due.pop_first()
        {
            let Some(known) = self.vms.get_mut(&vm) else { continue };
            known.due = None;
            kept.extend(serde_json::to_string(&known.learner).ok().map(|json| StoredPattern { vm, json }));
        }
        PatternWrites { kept, forgotten: std::mem::take(&mut self.gone) }
    }

    /// What needs a transaction of its own now: nothing was committed for a while, or much is due.
    pub fn overdue(&mut self, now: TimeMs) -> Option<Effect> {
        let waited = self.due.first().is_some_and(|(at, _)| now.since(*at) >= WAIT_MAX);
        let full = self.due.iter().nth(WRITTEN_AT_ONCE_MAX - 1).is_some_and(|(at, _)| *at <= now);
        (waited || full || !self.gone.is_empty()).then(|| Effect::StorePatterns(self.due(now)))
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
            if let Some(Effect::StorePatterns(written)) = patterns.overdue(TimeMs(minute * MINUTE_MS)) {
                writes += written.kept.len();
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

        patterns.due.insert((TimeMs(0), vm.id.clone()));
        let mut kept = patterns.due(TimeMs(1)).kept;
        let mut tables = Tables::default();
        tables.put(vm.clone());
        let stranger: VmId = "vm-aaaaaaaaaaaa".parse().unwrap();
        kept.push(StoredPattern { vm: stranger.clone(), json: kept[0].json.clone() });
        let mut again = Patterns::load(kept, &tables);
        assert_eq!(again.of(&vm.id), learned);
        // What is kept of vms that are gone goes.
        let expected = PatternWrites { kept: Vec::new(), forgotten: [stranger].into() };
        assert_eq!(again.overdue(TimeMs(0)), Some(Effect::StorePatterns(expected)));
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
    #[test]
    fn the_writes_of_many_vms_are_spread_over_the_quarter_of_an_hour() {
        const VMS: u64 = 3_000;
        let name = |n: u64| -> VmId {
            let letters: String = (0..12).map(|at| (b'a' + (n / 26_u64.pow(at % 6) % 26) as u8) as char).collect();
            format!("vm-{letters}").parse().unwrap()
        };
        let vms: BTreeSet<VmId> = (0..VMS).map(name).collect();
        let mut patterns = Patterns::default();
        let slot = DailyPattern::SLOT.0;
        for at in [slot - 1, slot] {
            vms.iter().for_each(|vm| patterns.take(TimeMs(at), vm, CpuMillis(100)));
        }
        // A tick a second, in which nothing else is committed.
        let (mut rows, mut writes, mut by_minute) = (0, 0, [0; 16]);
        for second in 0..16 * 60 {
            if let Some(Effect::StorePatterns(written)) = patterns.overdue(TimeMs(slot + second * 1_000)) {
                assert!(written.kept.len() <= WRITTEN_AT_ONCE_MAX);
                rows += written.kept.len() as u64;
                writes += 1;
                by_minute[second as usize / 60] += written.kept.len();
            }
        }
        assert_eq!(rows, VMS);
        assert!(writes <= 92, "{writes} transactions in a quarter of an hour");
        assert!(by_minute[..15].iter().all(|rows| (100..=300).contains(rows)), "{by_minute:?}");
    }

    #[test]
    fn what_is_due_goes_along_with_a_commit() {
        let (vm, mut patterns) = (vm(), Patterns::default());
        let slot = DailyPattern::SLOT.0;
        patterns.take(TimeMs(slot - 1), &vm.id, CpuMillis(100));
        patterns.take(TimeMs(slot), &vm.id, CpuMillis(100));
        let at = TimeMs(slot).plus(offset(&vm.id));
        assert_eq!(patterns.due(TimeMs(at.0 - 1)), PatternWrites::default());
        assert_eq!(patterns.overdue(at), None, "it waits for a commit first");
        assert_eq!(patterns.due(at).kept.len(), 1);
        assert_eq!(patterns.overdue(at.plus(WAIT_MAX)), None, "it was written");
    }
}
