//! The decision: which tactics are tried in which order, and what the plan says of itself.

use crate::cost;
use crate::detect::{hot_hosts, relievable};
use crate::predict::Predictor;
use crate::problem::{Problem, State};
use crate::search::consolidate::consolidate;
use crate::search::evacuate::{Pressure, evacuate};
use crate::search::relieve::{self, still_hot};
use crate::search::wake::{self, relieve_hot, wake};
use crate::search::{Act, Draft};
use drover_model::plan::{Findings, Heat, HostPrediction, Plan, Prediction, Scenario, Timing};
use drover_model::world::{HostState, Movable, World};
use drover_model::{MicroMoney, Ratio};
use std::collections::{BTreeMap, BTreeSet};

/// Rounds of all tactics but saving; each needs to have added a step for another to follow, since one host's relief
/// can be another's room.
const ROUNDS_MAX: usize = 8;

/// Makes the best plan for what was found, with moves priced as `predictor` expects them to go. Empty steps where
/// nothing is worth doing; `why` always says why.
pub fn plan(world: &World, findings: &Findings, predictor: &Predictor) -> Plan {
    let problem = Problem::with(world, predictor);
    let before = State::new(&problem);
    let heat = problem.heat(findings);
    let mut draft = Draft::new(&problem, relievable(&problem, &hot_hosts(&problem, &heat)));
    let why = match under_way(&problem) {
        Some(what) => what,
        None => {
            decide(&mut draft, findings, &heat);
            why(&draft, findings)
        }
    };
    let predicted = prediction(&draft, &before);
    let (steps, rejected) = draft.finish();
    let timing = Timing::default();
    Plan {
        parent: world.revision,
        made_at: world.now,
        scenario: findings.scenario,
        why,
        steps,
        predicted,
        rejected,
        timing,
    }
}

/// A plan is for a cluster at rest: what moves already would be decided upon twice.
fn under_way(problem: &Problem<'_>) -> Option<String> {
    let moving = problem.vms.iter().find(|vm| matches!(vm.view.movable, Movable::Moving { .. }));
    if let Some(vm) = moving {
        return Some(format!("{} is being moved; the next plan waits for that", vm.id));
    }
    problem.hosts.iter().find_map(|host| match host.view.state {
        HostState::Waking => Some(format!("{} is waking; the next plan waits for it", host.id)),
        HostState::FallingAsleep => Some(format!("{} is falling asleep; the next plan waits for that", host.id)),
        HostState::Unknown | HostState::Up | HostState::Suspect | HostState::Down | HostState::Asleep => None,
    })
}

fn decide(draft: &mut Draft<'_, '_>, findings: &Findings, heat: &[Heat]) {
    for _ in 0..ROUNDS_MAX {
        let mark = draft.len();
        evacuate(draft, Pressure::Usual);
        relieve_hot(draft);
        wake(draft);
        evacuate(draft, Pressure::LastResort);
        wake::spread(draft);
        for host in draft.hot.clone() {
            if still_hot(draft.problem, &draft.state, host) {
                relieve::ease(draft, host);
            }
        }
        if draft.len() == mark {
            break;
        }
    }
    let calm = match findings.scenario {
        Scenario::Balanced | Scenario::Underused => true,
        Scenario::Hotspot | Scenario::Saturated | Scenario::Mixed | Scenario::Degraded => false,
    };
    if draft.len() == 0 && calm {
        consolidate(draft, heat);
    }
}

/// One sentence: what for, or why nothing is done.
fn why(draft: &Draft<'_, '_>, findings: &Findings) -> String {
    let problem = draft.problem;
    let name = |h: &usize| problem.hosts[*h].id.to_string();
    let list = |hosts: Vec<usize>| hosts.iter().map(name).collect::<Vec<_>>().join(", ");
    let (left, relieved): (Vec<usize>, Vec<usize>) =
        draft.hot.iter().copied().partition(|h| still_hot(problem, &draft.state, *h));
    let all = || 0..problem.hosts.len();
    let (woken, emptied): (Vec<usize>, Vec<usize>) = (
        draft.acts().filter_map(|act| if let Act::PowerOn { host } = act { Some(host) } else { None }).collect(),
        draft.acts().filter_map(|act| if let Act::PowerOff { host } = act { Some(host) } else { None }).collect(),
    );
    let before = State::new(problem);
    let drained: Vec<usize> = all().filter(|h| problem.drains(&before, *h)).collect();
    let (stuck, evacuated): (Vec<usize>, Vec<usize>) =
        drained.into_iter().partition(|h| problem.drains(&draft.state, *h));
    let mut parts = Vec::new();
    if !woken.is_empty() {
        parts.push(format!("wake {}", list(woken)));
    }
    if !relieved.is_empty() && draft.len() > 0 {
        parts.push(format!("relieve {}", list(relieved)));
    }
    if !evacuated.is_empty() {
        parts.push(format!("evacuate {}", list(evacuated)));
    }
    if !emptied.is_empty() {
        parts.push(format!("switch {} off to save power", list(emptied)));
    }
    if !left.is_empty() {
        parts.push(format!(
            "{} can't be relieved: no host has room and none can be woken for it; add capacity, or stop or shrink vms",
            list(left)
        ));
    }
    if !stuck.is_empty() {
        parts.push(format!(
            "{} can't be emptied: some of its vms can't move or find no room elsewhere; add capacity, or stop them",
            list(stuck)
        ));
    }
    if parts.is_empty() && findings.scenario == Scenario::Saturated {
        parts.push(format!("{}; add capacity", findings.why));
    }
    if parts.is_empty() {
        let degraded = findings.scenario == Scenario::Degraded;
        parts.push(if degraded {
            format!("{}; there is nothing to evacuate, and no power is saved meanwhile", findings.why)
        } else {
            format!("nothing to do: {}", findings.why)
        });
    }
    parts.join("; ")
}

fn prediction(draft: &Draft<'_, '_>, before: &State) -> Prediction {
    let (problem, after) = (draft.problem, &draft.state);
    let (rate_before, rate_after) = (cost::rate(problem, before), cost::rate(problem, after));
    let moving_cost: MicroMoney = draft.cost();
    let saved = (rate_before - rate_after).over(problem.policy().money.horizon);
    let mut touched = BTreeSet::new();
    for act in draft.acts() {
        match act {
            Act::Migrate { from, to, .. } => touched.extend([from, to]),
            Act::PowerOn { host } | Act::PowerOff { host } => {
                touched.insert(host);
            }
        }
    }
    let share = |part: u64, whole: u64| if whole == 0 { Ratio(0.0) } else { Ratio(part as f64 / whole as f64) };
    let cpu =
        |state: &State, h: usize| share(state.sums[h].measured.mean + state.sums[h].assumed, problem.hosts[h].cpu);
    let memory = |state: &State, h: usize| share(state.sums[h].memory, problem.hosts[h].memory);
    let hosts: BTreeMap<_, _> = touched
        .into_iter()
        .map(|h| {
            let prediction = HostPrediction {
                cpu_before: cpu(before, h),
                cpu_after: cpu(after, h),
                memory_before: memory(before, h),
                memory_after: memory(after, h),
            };
            (problem.hosts[h].id.clone(), prediction)
        })
        .collect();
    Prediction { rate_before, rate_after, moving_cost, gain: saved - moving_cost, rate_bound: None, hosts }
}
