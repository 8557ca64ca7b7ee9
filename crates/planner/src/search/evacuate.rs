//! Evacuation of drained hosts. Not a question of money: somebody wants the host empty.

use super::{Act, Draft};
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

/// Moves every vm of every drained host that has a place to go; largest first.
pub(crate) fn evacuate(draft: &mut Draft<'_, '_>, pressure: Pressure) {
    for host in 0..draft.problem.hosts.len() {
        if !draft.problem.drains(&draft.state, host) {
            continue;
        }
        let mut vms = draft.state.on[host].clone();
        vms.sort_by_key(|vm| (Reverse(draft.problem.vms[*vm].memory), *vm));
        for vm in vms {
            if draft.state.at[vm] == Some(host) && !draft.has_moved(vm) {
                evacuate_vm(draft, vm, host, pressure);
            }
        }
    }
}

fn evacuate_vm(draft: &mut Draft<'_, '_>, vm: VmIx, from: HostIx, pressure: Pressure) {
    let problem = draft.problem;
    let others = || (0..problem.hosts.len()).filter(|to| *to != from);
    if let Some(barrier) = rules::not_movable(problem, vm) {
        if let Some(to) = others().next() {
            draft.reject_for(Act::Migrate { vm, from, to }, barrier);
        }
        return;
    }
    let pressed = Room::pressed(problem, pressure == Pressure::LastResort);
    // First without filling anybody beyond what the policy likes; if that fails, as long as nobody becomes hot.
    let mut found = None;
    for room in [Room::filled(problem), pressed] {
        found = others().filter(|to| rules::forbids(problem, &draft.state, vm, *to, room).is_none()).min_by_key(|to| {
            let row = &problem.vms[vm];
            let back = row.cooldown.is_some_and(|(_, came_from)| came_from == Some(*to));
            let gain = cost::gain_of_move(problem, &draft.state, vm, *to);
            let load = problem.load(&draft.state.sums[*to].with(row));
            (back, Reverse(gain), load * 1000 / problem.hosts[*to].cpu.max(1), *to)
        });
        if found.is_some() {
            break;
        }
    }
    for to in others().filter(|to| Some(*to) != found) {
        if let Some(barrier) = rules::forbids(problem, &draft.state, vm, to, pressed) {
            draft.reject_for(Act::Migrate { vm, from, to }, barrier);
        }
    }
    if let Some(to) = found {
        let (from, to_id) = (problem.hosts[from].id, problem.hosts[to].id);
        draft.migrate(vm, to, format!("{from} is drained for maintenance and {to_id} has room"));
    }
}
