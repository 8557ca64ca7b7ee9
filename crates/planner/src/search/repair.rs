//! Repair of what is not as rules want it: a vm where it may not be, a rule among vms that is broken, a host that has
//! promised more than it has. Like a drained host it presses, whatever it costs.

use super::evacuate::{note_barriers, place};
use super::{Draft, Reason};
use crate::problem::{HostIx, Kind, Problem, RuleIx, State, VmIx};
use crate::rules::{self, Room};
use drover_model::world::HostState;
use std::cmp::Reverse;

/// Something that must not be so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It may not be on its host.
    Misplaced {
        vm: VmIx,
    },
    Rule {
        rule: RuleIx,
    },
    /// Memory, disk or processor were given twice.
    Overcommitted {
        host: HostIx,
    },
}

/// What is broken as things stand, where something can be moved at all.
pub(crate) fn broken(problem: &Problem<'_>, state: &State) -> Vec<Broken> {
    let mut broken = Vec::new();
    for (vm, row) in problem.vms.iter().enumerate() {
        let Some(host) = state.at[vm].filter(|host| problem.hosts[*host].view.state == HostState::Up) else { continue };
        let pins = &row.view.pinned_to;
        let elsewhere = !pins.is_empty() && !pins.contains(problem.hosts[host].id);
        if elsewhere || problem.placement.forbidding(vm, host).is_some() {
            broken.push(Broken::Misplaced { vm });
        }
    }
    let rules = (0..problem.placement.rules.len()).filter(|rule| is_broken(problem, state, *rule));
    broken.extend(rules.map(|rule| Broken::Rule { rule }));
    let hosts = (0..problem.hosts.len()).filter(|host| overcommitted(problem, state, *host));
    broken.extend(hosts.map(|host| Broken::Overcommitted { host }));
    broken
}

pub(crate) fn is_broken(problem: &Problem<'_>, state: &State, rule: RuleIx) -> bool {
    let spread = state.spread(rule);
    match problem.placement.rules[rule].kind {
        Kind::Apart => spread.iter().any(|(_, count)| *count > 1),
        Kind::Together => spread.len() > 1,
        Kind::HostsMax(most) => spread.len() > most as usize,
        Kind::Only | Kind::Never => false,
    }
}

fn overcommitted(problem: &Problem<'_>, state: &State, host: HostIx) -> bool {
    let (row, sums) = (&problem.hosts[host], &state.sums[host]);
    let promised = sums.memory > row.memory || sums.disk > row.disk || sums.reserved > row.cpu;
    row.view.state == HostState::Up && row.view.capacity.is_some() && promised
}

impl Broken {
    /// Completes "... is broken" in a finding.
    pub fn text(self, problem: &Problem<'_>, state: &State) -> String {
        match self {
            Self::Misplaced { vm } => {
                let host = state.at[vm].map_or_else(String::new, |host| format!(" {}", problem.hosts[host].id));
                format!("{} may not be on{host}", problem.vms[vm].id)
            }
            Self::Rule { rule } => match problem.placement.rules[rule].id {
                Some(id) => format!("rule {id} is broken"),
                None => {
                    let members = &problem.placement.rules[rule].members;
                    format!("the anti-affinity group of {} is broken", problem.vms[members[0]].id)
                }
            },
            Self::Overcommitted { host } => format!("{} has promised more than it has", problem.hosts[host].id),
        }
    }

    fn mended(self, problem: &Problem<'_>, state: &State) -> bool {
        match self {
            Self::Misplaced { vm } => state.at[vm].is_none_or(|host| problem.placement.allows(vm, host)),
            Self::Rule { rule } => !is_broken(problem, state, rule),
            Self::Overcommitted { host } => !overcommitted(problem, state, host),
        }
    }
}

/// Mends what can be mended.
pub(crate) fn repair(draft: &mut Draft<'_, '_>) {
    for broken in broken(draft.problem, &draft.state) {
        if broken.mended(draft.problem, &draft.state) {
            continue;
        }
        match broken {
            Broken::Misplaced { vm } => {
                leave(draft, vm, |to| Reason::Pinned { to }, |_| true);
            }
            Broken::Rule { rule } => mend(draft, rule),
            Broken::Overcommitted { host } => unload(draft, host),
        }
    }
}

fn mend(draft: &mut Draft<'_, '_>, rule: RuleIx) {
    let problem = draft.problem;
    let row = &problem.placement.rules[rule];
    let domain = |host: HostIx| problem.placement.domain(row.scope, host);
    let reason = |to: HostIx| Reason::Broken { rule, to };
    // Small ones are moved first: they cost least.
    let mut members = row.members.clone();
    members.sort_by_key(|vm| (problem.vms[*vm].wants.resident, *vm));
    match row.kind {
        Kind::Apart => {
            for vm in members {
                let crowded = |host: HostIx| draft.state.counted(rule, domain(host)) > 1;
                if draft.state.at[vm].is_some_and(crowded) {
                    leave(draft, vm, reason, |_| true);
                }
            }
        }
        Kind::Together | Kind::HostsMax(_) => {
            // Into where most of them are, and the next best if that has no room for all.
            let mut goals = draft.state.spread(rule).to_vec();
            goals.sort_by_key(|(at, count)| (Reverse(*count), *at));
            let most = if let Kind::HostsMax(most) = row.kind { most as usize } else { 1 };
            let choices: Vec<Vec<usize>> = match row.kind {
                Kind::HostsMax(_) => vec![goals.iter().take(most.max(1)).map(|(at, _)| *at).collect()],
                _ => goals.iter().map(|(at, _)| vec![*at]).collect(),
            };
            let mark = draft.len();
            for goal in choices {
                for vm in &members {
                    if draft.state.at[*vm].is_some_and(|host| !goal.contains(&domain(host))) {
                        leave(draft, *vm, reason, |to| goal.contains(&domain(to)));
                    }
                }
                if !is_broken(problem, &draft.state, rule) {
                    return;
                }
                draft.roll_back(mark);
            }
        }
        Kind::Only | Kind::Never => {}
    }
}

fn unload(draft: &mut Draft<'_, '_>, host: HostIx) {
    let mut vms = draft.state.on[host].clone();
    vms.sort_by_key(|vm| (draft.problem.vms[*vm].wants.resident, *vm));
    for vm in vms {
        if overcommitted(draft.problem, &draft.state, host) {
            leave(draft, vm, |to| Reason::Overcommitted { from: host, to }, |_| true);
        }
    }
}

/// Moves the vm to the best host that is wanted; false if it can't move or none has room.
fn leave(
    draft: &mut Draft<'_, '_>,
    vm: VmIx,
    reason: impl Fn(HostIx) -> Reason,
    wanted: impl Fn(HostIx) -> bool,
) -> bool {
    let problem = draft.problem;
    let Some(from) = draft.state.at[vm] else { return false };
    let row = &problem.hosts[from];
    let dark = !row.load_known && !row.view.maintenance;
    if row.view.state != HostState::Up || dark || rules::not_movable(problem, vm).is_some() || !draft.may_move() {
        return false;
    }
    let found = place(draft, vm, true, wanted);
    note_barriers(draft, vm, from, found, Room::pressed(problem, true));
    if let Some(to) = found {
        draft.migrate(vm, to, reason(to));
    }
    found.is_some()
}
