//! The order in which changes can be made, one by one: what fits now goes first; where everybody waits for everybody, one
//! goes by way of a third host. What can't be ordered is dropped.

use super::{Act, order};
use crate::problem::{HostIx, Problem, State, VmIx};
use crate::rules::{self, Room};

/// Steps in order, what each waits for, and the acts that found no place in it.
pub(super) struct Ordered {
    pub acts: Vec<Act>,
    pub after: Vec<Vec<usize>>,
    pub dropped: Vec<Act>,
}

pub(super) fn order(problem: &Problem<'_>, mut pending: Vec<Act>) -> Ordered {
    let mut state = State::new(problem);
    let before: Vec<u64> = state.sums.iter().map(|sums| problem.load(sums)).collect();
    let mut acts = Vec::with_capacity(pending.len());
    let mut passed: Vec<VmIx> = Vec::new();
    loop {
        let count = pending.len();
        pending.retain(|act| {
            let ready = match *act {
                Act::Migrate { vm, to, .. } => passes(problem, &state, vm, to, before[to]),
                Act::PowerOn { .. } => true,
                Act::PowerOff { host } => state.on[host].is_empty(),
            };
            if ready {
                let from = |vm: VmIx, from| state.at[vm].unwrap_or(from);
                acts.push(match *act {
                    Act::Migrate { vm, from: first, to } => Act::Migrate { vm, from: from(vm, first), to },
                    other => other,
                });
                make(problem, &mut state, *act);
            }
            !ready
        });
        if pending.is_empty() {
            break;
        }
        if pending.len() < count {
            continue;
        }
        let Some(pass) = third(problem, &state, &pending, &passed, &before) else { break };
        if let Act::Migrate { vm, .. } = pass {
            passed.push(vm);
        }
        acts.push(pass);
        make(problem, &mut state, pass);
    }
    // Who stopped over for a move that was dropped would be left there: none of it is done then.
    if pending.iter().any(|act| matches!(act, Act::Migrate { vm, .. } if passed.contains(vm))) {
        return Ordered { acts: Vec::new(), after: Vec::new(), dropped: [acts, pending].concat() };
    }
    Ordered { after: order::after(problem, &acts), acts, dropped: pending }
}

fn make(problem: &Problem<'_>, state: &mut State, act: Act) {
    match act {
        Act::Migrate { vm, to, .. } => state.shift(problem, vm, to),
        Act::PowerOn { host } => state.switch(problem, host, true),
        Act::PowerOff { host } => state.switch(problem, host, false),
    }
}

/// Whether the vm can go there as things stand: within what the host has, or than what it is asked for anyway.
fn passes(problem: &Problem<'_>, state: &State, vm: VmIx, to: HostIx, before: u64) -> bool {
    let load = problem.load(&state.sums[to].with(&problem.vms[vm].wants));
    state.up[to]
        && rules::not_beside(problem, state, vm, to, None).is_none()
        && (state.on[to].is_empty() || load <= problem.hosts[to].cpu.max(before))
}

fn third(problem: &Problem<'_>, state: &State, pending: &[Act], passed: &[VmIx], before: &[u64]) -> Option<Act> {
    let waiting = pending.iter().filter_map(|act| match *act {
        Act::Migrate { vm, .. } if !passed.contains(&vm) => state.at[vm].map(|from| (vm, from)),
        _ => None,
    });
    let ways = waiting.flat_map(|(vm, from)| {
        let open = move |to: &HostIx| *to != from && rules::fits(problem, state, vm, *to, Room::PASSING);
        (0..problem.hosts.len()).filter(open).map(move |to| (vm, from, to))
    });
    let best = ways.min_by_key(|(vm, _, to)| {
        let row = &problem.vms[*vm];
        (row.wants.resident, problem.fullness(*to, &state.sums[*to].with(&row.wants)), *vm, before[*to], *to)
    });
    best.map(|(vm, from, to)| Act::Migrate { vm, from, to })
}
