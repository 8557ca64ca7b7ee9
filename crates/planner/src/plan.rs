//! The decision: which tactics are tried in which order, and what the plan says of itself.

use crate::detect::{hot_hosts, relievable};
use crate::predict::Predictor;
use crate::problem::{Problem, State};
use crate::search::consolidate::consolidate;
use crate::search::evacuate::{Pressure, evacuate};
use crate::search::improve::improve;
use crate::search::relieve::{self, still_hot};
use crate::search::repair::{broken, repair};
use crate::search::wake::{self, relieve_hot, wake};
use crate::search::{Draft, Finished, spare};
use crate::{bound, cost};
use drover_model::plan::{Action, Findings, Heat, HostPrediction, Plan, Prediction, Scenario, Step};
use drover_model::world::{HostState, Movable, World};
use drover_model::{MicroMoney, Ratio};
use std::collections::{BTreeMap, BTreeSet};

/// Changes that are taken back one at a time for want of spare room; of more, half at once.
const SPARE_CHECKS_MAX: usize = 64;
/// Names in one list of a sentence.
const NAMED_MAX: usize = 8;
/// Rounds of all tactics but saving; each needs to have added a step for another to follow, since one host's relief
/// can be another's room.
const ROUNDS_MAX: usize = 8;

/// How much work may go into one plan. The same effort gives the same plan, on any machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Pairs of vm and host that may be judged. What presses comes first; what pays gets what is left.
    pub evaluations: u64,
}

impl Default for Effort {
    /// Enough for small clusters to end by themselves, and for large ones to be put right within a second.
    fn default() -> Self {
        Self { evaluations: 40_000_000 }
    }
}

/// Makes the best plan for what was found, with moves priced as `predictor` expects them to go. Empty steps where
/// nothing is worth doing; `why` always says why.
pub fn plan(world: &World, findings: &Findings, predictor: &Predictor) -> Plan {
    plan_within(world, findings, predictor, &Effort::default())
}

/// The same with so much effort: a plan at any, a better one with more.
pub fn plan_within(world: &World, findings: &Findings, predictor: &Predictor, effort: &Effort) -> Plan {
    let problem = Problem::with(world, predictor);
    let before = State::new(&problem);
    let heat = problem.heat(findings);
    let hot = relievable(&problem, &before, &hot_hosts(&problem, &before, &heat));
    let mut draft = Draft::new(&problem, State::new(&problem), hot, effort.evaluations);
    let under_way = under_way(&problem);
    if under_way.is_none() {
        decide(&mut draft, findings, &heat);
    }
    let hot = draft.hot.clone();
    let Finished { steps, rejected, moving_cost, timing, state } = draft.finish(&before);
    let why = under_way.unwrap_or_else(|| why(&problem, &hot, (&before, &state), &steps, findings));
    let predicted = prediction(&problem, (&before, &state), &steps, moving_cost);
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
    let lost_before = spare::homeless(draft.problem, &draft.state);
    let keeping = |draft: &mut Draft<'_, '_>, tactic: &dyn Fn(&mut Draft<'_, '_>)| {
        let mark = draft.len();
        tactic(draft);
        keep_spare(draft, mark, &lost_before);
    };
    for _ in 0..ROUNDS_MAX {
        let mark = draft.len();
        keeping(draft, &repair);
        keeping(draft, &|draft| evacuate(draft, Pressure::Usual));
        keeping(draft, &relieve_hot);
        keeping(draft, &wake);
        keeping(draft, &|draft| evacuate(draft, Pressure::LastResort));
        keeping(draft, &|draft| {
            wake::spread(draft);
            for host in draft.hot.clone() {
                if still_hot(draft.problem, &draft.state, host) {
                    relieve::ease(draft, host);
                }
            }
        });
        if draft.len() == mark || draft.tired() {
            break;
        }
    }
    let calm = match findings.scenario {
        Scenario::Balanced | Scenario::Underused => true,
        Scenario::Hotspot | Scenario::Saturated | Scenario::Mixed | Scenario::Degraded => false,
    };
    if draft.is_empty() && calm {
        consolidate(draft, heat, usize::MAX);
    }
    keeping(draft, &improve);
}

/// Takes back what was done since `mark`, the last first, until no host that could be lost before can't be lost any more.
fn keep_spare(draft: &mut Draft<'_, '_>, mark: usize, before: &[(usize, usize)]) {
    let mut kept = draft.len() - mark;
    while kept > 0 && spare::worse(draft.problem, &draft.state, before).is_some() {
        kept = if kept > SPARE_CHECKS_MAX { kept / 2 } else { kept - 1 };
        draft.roll_back(mark + kept);
    }
}

/// One sentence: what for, or why nothing is done.
fn why(
    problem: &Problem<'_>,
    hot: &[usize],
    (before, after): (&State, &State),
    steps: &[Step],
    findings: &Findings,
) -> String {
    let name = |h: &usize| problem.hosts[*h].id.to_string();
    let list = |hosts: Vec<usize>| few(hosts.iter().map(name));
    let (left, relieved): (Vec<usize>, Vec<usize>) = hot.iter().copied().partition(|h| still_hot(problem, after, *h));
    let all = || 0..problem.hosts.len();
    let woken: Vec<usize> = all().filter(|h| after.up[*h] && !before.up[*h]).collect();
    let emptied: Vec<usize> = all().filter(|h| before.up[*h] && !after.up[*h]).collect();
    let drained: Vec<usize> = all().filter(|h| problem.drains(before, *h)).collect();
    let (stuck, evacuated): (Vec<usize>, Vec<usize>) = drained.into_iter().partition(|h| problem.drains(after, *h));
    let (broken, unmended) = (broken(problem, before), broken(problem, after));
    let mut parts = Vec::new();
    if !woken.is_empty() {
        parts.push(format!("wake {}", list(woken)));
    }
    if broken.len() > unmended.len() {
        let mended: Vec<_> = broken.iter().filter(|broken| !unmended.contains(broken)).collect();
        parts.push(format!("put right: {}", few(mended.iter().map(|broken| broken.text(problem, before)))));
    }
    if !relieved.is_empty() && !steps.is_empty() {
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
    if !unmended.is_empty() {
        let what = few(unmended.iter().map(|broken| broken.text(problem, after)));
        parts.push(format!("{what}, and no host that would mend it has room; add capacity, or change the rule"));
    }
    if parts.is_empty() && !steps.is_empty() {
        let saved = steps.iter().map(|step| step.gain).sum::<MicroMoney>();
        parts.push(format!("move {} vms to where they cost less: it gains {saved}", steps.len()));
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

/// The first names, and how many more there are.
pub(crate) fn few(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    let shown = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMED_MAX) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

fn prediction(
    problem: &Problem<'_>,
    (before, after): (&State, &State),
    steps: &[Step],
    moving_cost: MicroMoney,
) -> Prediction {
    let (rate_before, rate_after) = (cost::rate(problem, before), cost::rate(problem, after));
    let saved = (rate_before - rate_after).over(problem.policy().money.horizon);
    let mut touched = BTreeSet::new();
    for step in steps {
        match &step.action {
            Action::Migrate { from, to, .. } => touched.extend([from, to]),
            Action::PowerOn { host } | Action::PowerOff { host } => {
                touched.insert(host);
            }
        }
    }
    let share = |part: u64, whole: u64| if whole == 0 { Ratio(0.0) } else { Ratio(part as f64 / whole as f64) };
    let cpu = |state: &State, h: usize| share(state.sums[h].expected(), problem.hosts[h].cpu);
    let memory = |state: &State, h: usize| share(state.sums[h].memory, problem.hosts[h].memory);
    let touched = (0..problem.hosts.len()).filter(|h| touched.contains(problem.hosts[*h].id));
    let hosts: BTreeMap<_, _> = touched
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
    let rate_bound = Some(bound::rate_bound(problem, before));
    Prediction { rate_before, rate_after, moving_cost, gain: saved - moving_cost, rate_bound, hosts }
}
