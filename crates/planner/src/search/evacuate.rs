//! Evacuation of drained hosts. Not a question of money: somebody wants the host empty.

use super::{Act, Draft, Reason, Seek};
use crate::cost;
use crate::problem::{HostIx, VmIx};
use crate::rules::{self, Room};
use std::cmp::Reverse;

/// How far it may go to find a vm a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pressure {
    /// Nobody becomes hot.
    Usual,
    /// When no host can be woken either: an empty host takes a vm that keeps it busy alone.
    LastResort,
}

/// Hosts whose objections to one vm are noted.
const NOTED_MAX: usize = 32;

/// Moves every vm of every drained host that has a place to go; largest first.
pub(crate) fn evacuate(draft: &mut Draft<'_, '_>, pressure: Pressure) {
    for host in 0..draft.problem.hosts.len() {
        if !draft.problem.drains(&draft.state, host) {
            continue;
        }
        let mut vms = draft.state.on[host].clone();
        vms.sort_by_key(|vm| (Reverse(draft.problem.vms[*vm].wants.memory), *vm));
        for vm in vms {
            if draft.state.at[vm] == Some(host) && !draft.has_moved(vm) && draft.may_move() {
                evacuate_vm(draft, vm, host, pressure);
            }
        }
    }
}

fn evacuate_vm(draft: &mut Draft<'_, '_>, vm: VmIx, from: HostIx, pressure: Pressure) {
    let problem = draft.problem;
    if let Some(barrier) = rules::not_movable(problem, vm) {
        if let Some(to) = (0..problem.hosts.len()).find(|to| *to != from) {
            draft.reject_for(Act::Migrate { vm, from, to }, barrier);
        }
        return;
    }
    let last_resort = pressure == Pressure::LastResort;
    let found = place(draft, vm, last_resort, |_| true);
    note_barriers(draft, vm, from, found, Room::pressed(problem, last_resort));
    if let Some(to) = found {
        draft.migrate(vm, to, Reason::Drained { from, to });
    } else if !problem.placement.inseparable(vm).is_empty() {
        together(draft, vm, from, Room::pressed(problem, false), |to| Reason::Drained { from, to });
    }
}

/// The best host for a vm that must leave its own: first without filling anybody beyond what the policy likes; if that
/// fails, as long as nobody becomes hot.
pub(crate) fn place(
    draft: &mut Draft<'_, '_>,
    vm: VmIx,
    last_resort: bool,
    wanted: impl Fn(HostIx) -> bool,
) -> Option<HostIx> {
    let problem = draft.problem;
    [Room::filled(problem), Room::pressed(problem, last_resort)].into_iter().find_map(|room| {
        let open = draft.targets(vm, room, Seek::Emptiest);
        open.into_iter().filter(|to| wanted(*to)).min_by_key(|to| {
            let row = &problem.vms[vm];
            let back = row.returns(*to).is_some();
            let gain = cost::gain_of_move(problem, &draft.state, vm, *to);
            (back, Reverse(gain), problem.fullness(*to, &draft.state.sums[*to].with(&row.wants)), *to)
        })
    })
}

pub(crate) fn note_barriers(draft: &mut Draft<'_, '_>, vm: VmIx, from: HostIx, found: Option<HostIx>, room: Room) {
    for to in (0..draft.problem.hosts.len()).filter(|to| *to != from && Some(*to) != found).take(NOTED_MAX) {
        if !draft.notes_rejected() {
            return;
        }
        if let Some(barrier) = rules::forbids(draft.problem, &draft.state, vm, to, room) {
            draft.reject_for(Act::Migrate { vm, from, to }, barrier);
        }
    }
}

/// Moves all vms that must be on one host with this one to another host; false, with nothing changed, if none has room.
pub(crate) fn together(
    draft: &mut Draft<'_, '_>,
    vm: VmIx,
    from: HostIx,
    room: Room,
    reason: impl Fn(HostIx) -> Reason,
) -> bool {
    let problem = draft.problem;
    let on_it = |vm: &&VmIx| draft.state.at[**vm] == Some(from);
    let vms: Vec<VmIx> = problem.placement.inseparable(vm).iter().filter(on_it).copied().collect();
    if vms.is_empty() || vms.iter().any(|vm| rules::not_movable(problem, *vm).is_some()) {
        return false;
    }
    let mark = draft.len();
    let mut hosts: Vec<HostIx> = (0..problem.hosts.len()).filter(|to| *to != from && draft.state.open[*to]).collect();
    hosts.sort_by_key(|to| (problem.fullness(*to, &draft.state.sums[*to]), *to));
    draft.spend(hosts.len());
    for to in hosts {
        let all = vms.iter().all(|vm| {
            let fits = draft.may_move() && rules::fits_joining(problem, &draft.state, *vm, to, room);
            if fits {
                draft.migrate(*vm, to, reason(to));
            }
            fits
        });
        if all {
            return true;
        }
        draft.roll_back(mark);
    }
    false
}
