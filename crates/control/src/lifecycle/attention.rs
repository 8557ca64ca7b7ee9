//! Which vms have to be looked at: those of which something is new, and those that are not yet as they should be. What rests
//! costs nothing.

use crate::interface::Object;
use crate::live::Seen;
use crate::tables::Change;
use crate::{Control, kinds::Entity};
use drover_model::intent::{Host, RunIntent, Vm};
use drover_model::inventory::VmState;
use drover_model::policy::Policy;
use drover_model::{HostId, Millis, TimeMs, VmId};
use std::collections::{BTreeMap, BTreeSet};

/// Vms that one round tries to place.
const PLACED_AT_ONCE_MAX: usize = 16;
/// Between two tries to place a vm: doubled from the first to the last, unless room may have come free.
const TRY_FIRST: Millis = Millis(1_000);
const TRY_LAST: Millis = Millis(30_000);
/// A round of placement looks at every vm of the cluster: two rounds are this far apart for each of them.
const ROUND_APART_PER_THOUSAND_VMS: Millis = Millis(10);

#[derive(Debug, Clone, Default)]
pub struct Attention {
    unsettled: BTreeSet<VmId>,
    /// Hosts that may hold something of a vm that they have no right to, or that the store does not know.
    strays: BTreeSet<(HostId, VmId)>,
    /// Vms without a host, by when they are tried next.
    waiting: BTreeSet<(TimeMs, VmId)>,
    tries: BTreeMap<VmId, Try>,
    placed_at: Option<TimeMs>,
    /// Room may have come free since the last round.
    room: bool,
}

#[derive(Debug, Clone, Copy)]
struct Try {
    next: TimeMs,
    wait: Millis,
}

impl Attention {
    /// When the server starts: those that no host's word is needed for.
    pub fn begin<'a>(vms: impl Iterator<Item = &'a Vm>) -> Self {
        let needs = |vm: &&Vm| vm.host.is_none() || vm.deleting || !vm.remains_on.is_empty() || vm.migration.is_some();
        Self { unsettled: vms.filter(needs).map(|vm| vm.id.clone()).collect(), ..Self::default() }
    }

    pub fn look_at(&mut self, vm: &VmId) {
        self.unsettled.insert(vm.clone());
    }

    /// The step changed this object.
    pub fn changed(&mut self, change: Change<'_>) {
        let of = |object: Option<&'_ Object>| object.and_then(Vm::unwrap).map(|vm| (vm.id.clone(), vm.host.clone()));
        let (before, after) = (of(change.before), of(change.after));
        if let Some((vm, host)) = &before {
            let moved = after.as_ref().is_none_or(|(_, now_on)| now_on != host);
            self.room |= moved;
            self.strays.extend(host.iter().filter(|_| moved).map(|host| (host.clone(), vm.clone())));
        }
        match (before, after) {
            (_, Some((vm, _))) => self.look_at(&vm),
            (Some((vm, _)), None) => {
                self.unsettled.remove(&vm);
                self.waits_no_more(&vm);
            }
            (None, None) => {
                let frees = |object: &Object| Host::unwrap(object).is_some() || Policy::unwrap(object).is_some();
                self.room |= change.after.or(change.before).is_some_and(frees);
            }
        }
    }

    fn waits_no_more(&mut self, vm: &VmId) {
        if let Some(tried) = self.tries.remove(vm) {
            self.waiting.remove(&(tried.next, vm.clone()));
        }
    }

    /// It found no room at this moment.
    pub fn waits(&mut self, now: TimeMs, vm: &VmId) {
        let wait = self.tries.get(vm).map_or(TRY_FIRST, |tried| Millis(tried.wait.0 * 2).min(TRY_LAST));
        self.waits_no_more(vm);
        let next = now.plus(wait);
        self.tries.insert(vm.clone(), Try { next, wait });
        self.waiting.insert((next, vm.clone()));
    }

    /// The vms to be looked at now, but for those that wait for room.
    pub fn take_due(&mut self) -> Vec<VmId> {
        self.unsettled.iter().filter(|vm| !self.tries.contains_key(*vm)).cloned().collect()
    }

    /// The vms to be placed now, of a cluster of so many.
    pub fn take_to_place(&mut self, now: TimeMs, new: Vec<VmId>, vms: usize) -> Vec<VmId> {
        let apart = Millis(vms as u64 * ROUND_APART_PER_THOUSAND_VMS.0 / 1_000);
        if self.placed_at.is_some_and(|at| now.since(at) < apart) {
            return Vec::new();
        }
        if std::mem::take(&mut self.room) {
            // Soon, but not each time that something changes: once a second is enough.
            let soon: Vec<VmId> = self.waiting.iter().map(|(_, vm)| vm.clone()).take(PLACED_AT_ONCE_MAX).collect();
            for vm in soon {
                let Some(tried) = self.tries.get(&vm).copied() else { continue };
                let next = tried.next.min(now.plus(TRY_FIRST));
                self.waits_no_more(&vm);
                self.tries.insert(vm.clone(), Try { next, wait: TRY_FIRST });
                self.waiting.insert((next, vm));
            }
        }
        let due = self.waiting.iter().take_while(|(at, _)| *at <= now).map(|(_, vm)| vm.clone());
        let round: Vec<VmId> = new.into_iter().chain(due).take(PLACED_AT_ONCE_MAX).collect();
        if !round.is_empty() {
            self.placed_at = Some(now);
        }
        round
    }

    pub fn add_stray(&mut self, host: HostId, vm: VmId) {
        self.strays.insert((host, vm));
    }

    pub fn strays(&self) -> Vec<(HostId, VmId)> {
        self.strays.iter().cloned().collect()
    }

    pub fn is_no_stray(&mut self, host: &HostId, vm: &VmId) {
        self.strays.remove(&(host.clone(), vm.clone()));
    }

    pub fn settled(&mut self, vm: &VmId) {
        self.unsettled.remove(vm);
        self.waits_no_more(vm);
    }
}

impl Control {
    /// Whether the vm is as its owner wants it, or nothing can be done before its host says something.
    pub(super) fn rests(&self, vm: &Vm) -> bool {
        let Some(host) = &vm.host else {
            return vm.run == RunIntent::Stopped && !vm.deleting && vm.remains_on.is_empty();
        };
        if vm.deleting || !vm.remains_on.is_empty() || vm.migration.is_some() || self.live.is_unsure(host, &vm.id) {
            return false;
        }
        if self.is_lost(host) {
            return vm.run == RunIntent::Stopped;
        }
        if vm.gave_up.is_some() && !matches!(self.live.sees(host, &vm.id), Seen::Unknown) {
            return true;
        }
        match (vm.run, self.live.sees(host, &vm.id)) {
            (_, Seen::Unknown) => true,
            (RunIntent::Running, Seen::There(seen)) => {
                seen.state == VmState::Running && seen.generation == vm.generation
            }
            (RunIntent::Running, Seen::Absent) => false,
            (RunIntent::Stopped, Seen::There(seen)) => !seen.state.runs_guest(),
            (RunIntent::Stopped, Seen::Absent) => true,
        }
    }

    /// The vms that a host's state is of importance to.
    pub(crate) fn look_at_vms_of(&mut self, host: &HostId) {
        let vms: Vec<VmId> = self.vms_on(host).map(|vm| vm.id.clone()).collect();
        for vm in vms {
            self.lifecycle.attention.look_at(&vm);
        }
        self.lifecycle.attention.room = true;
    }

    /// Whether this host holds something of a vm that it has no right to.
    pub(super) fn is_stray(&self, host: &HostId, vm: &VmId) -> bool {
        let refers = self.tables.vms.get(vm).is_some_and(|row| row.host.as_ref() == Some(host));
        !refers && matches!(self.live.sees(host, vm), Seen::There(_)) && Host::table(&self.tables).contains_key(host)
    }
}
