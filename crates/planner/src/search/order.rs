//! What each step must wait for. The steps come in an order in which they are valid one by one; here only as much of
//! it is kept as is needed for every order that `after` allows to be valid too, with several steps under way at once.

use super::Act;
use crate::problem::{HostIx, Kind, Problem, State, Sums, VmIx};

/// By step: the earlier steps that must have succeeded.
///
/// A host that could hold all it ever gets without letting anything go makes nobody wait. On any other, an
/// arrival waits for every departure before it: at any moment the host then holds at most what it holds in
/// the listed order when its last arrival so far comes.
pub(super) fn after(problem: &Problem<'_>, acts: &[Act]) -> Vec<Vec<usize>> {
    let state = State::new(problem);
    let tight: Vec<bool> = (0..problem.hosts.len()).map(|host| needs_departures(problem, &state, acts, host)).collect();
    let mut waits = Vec::with_capacity(acts.len());
    for (n, act) in acts.iter().enumerate() {
        let waits_for = |m: &usize| match (acts[*m], *act) {
            (Act::Migrate { vm: other, from: left, .. }, Act::Migrate { vm, to, .. }) => {
                other == vm || (left == to && tight[to]) || parts(problem, other, left, vm, to)
            }
            (Act::PowerOn { host }, Act::Migrate { to, .. }) => host == to,
            (Act::Migrate { from, .. }, Act::PowerOff { host }) => from == host,
            (Act::PowerOn { .. }, Act::PowerOn { .. } | Act::PowerOff { .. })
            | (Act::Migrate { .. }, Act::PowerOn { .. })
            | (Act::PowerOff { .. }, _) => false,
        };
        waits.push((0..n).filter(waits_for).collect());
    }
    waits
}

/// Whether what leaves the host makes the room for what comes.
fn needs_departures(problem: &Problem<'_>, state: &State, acts: &[Act], host: HostIx) -> bool {
    let mut sums: Sums = state.sums[host];
    let mut comes = false;
    for act in acts {
        if let Act::Migrate { vm, to, .. } = *act
            && to == host
        {
            sums = sums.with(&problem.vms[vm].wants);
            comes = true;
        }
    }
    let row = &problem.hosts[host];
    comes
        && (sums.memory > row.memory
            || sums.disk > row.disk
            || sums.reserved > row.cpu
            || sums.link > row.link
            || problem.load(&sums) > row.cpu)
}

/// Whether a rule makes the vm wait until the other has left.
fn parts(problem: &Problem<'_>, other: VmIx, left: HostIx, vm: VmIx, to: HostIx) -> bool {
    let placement = &problem.placement;
    placement.counted(vm).iter().any(|rule| {
        let scope = placement.rules[*rule].scope;
        placement.rules[*rule].kind == Kind::Apart
            && placement.counted(other).contains(rule)
            && placement.domain(scope, left) == placement.domain(scope, to)
    })
}
