//! The independent checker: holds a plan against every hard rule, in every state that its `after` lists allow.
//!
//! It shares nothing with the planner, not even the forecast: by load it goes by what was measured (the median of a
//! vm's last samples), which the planner's pessimistic figures never undercut. A move counts at both ends from its
//! start until its end, so a host's worst state is the one in which as many arrivals as possible have started and as
//! few departures as possible are done (`peak`). What is broken before the plan may stay so; no step may make it worse.
//!
//! One function per constraint, in a module per kind of them; [`CONSTRAINTS`] lists them all. Each looks only at what
//! the plan touches, so that a check costs about as much as reading the world once. The one loss of `k` hosts is the
//! exception: it concerns every host (`spare`).

mod capacity;
mod flow;
mod measured;
mod moves;
mod peak;
mod placement;
mod power;
mod reach;
mod replay;
mod rules;
mod spare;
mod timing;

use drover_model::plan::Plan;
use drover_model::world::World;
use replay::Replay;
use std::fmt;

/// A plan with more steps is not looked at: which step waits for which takes the square of it in memory.
const STEPS_MAX: usize = 20_000;

/// A hard rule that a plan breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Index of the step in the plan; `None` where the plan as a whole is wrong.
    pub step: Option<usize>,
    pub problem: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "step {step}: {}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

/// Everything that is wrong with the plan in this world; empty if it may be carried out.
pub fn check(world: &World, plan: &Plan) -> Vec<Violation> {
    let mut violations = Vec::new();
    if plan.steps.len() > STEPS_MAX {
        let problem = format!("{} steps are too many; a plan has {STEPS_MAX} at most", plan.steps.len());
        violations.push(Violation { step: None, problem });
        return violations;
    }
    let replay = Replay::new(world, plan, &mut violations);
    for constraint in CONSTRAINTS {
        constraint(&replay, &mut violations);
    }
    violations
}

type Constraint = fn(&Replay<'_>, &mut Vec<Violation>);

const CONSTRAINTS: [Constraint; 32] = [
    placement::destinations_take_vms,
    placement::sources_are_up,
    placement::vms_are_movable,
    placement::pins_are_kept,
    placement::networks_are_attached,
    placement::hosts_can_take_over,
    placement::load_is_known,
    capacity::memory_suffices,
    capacity::disks_suffice,
    capacity::promises_can_be_kept,
    capacity::processors_are_not_overrun,
    capacity::links_are_not_overrun,
    rules::anti_affinity_holds,
    rules::vms_are_only_where_they_may,
    rules::vms_stay_apart,
    rules::vms_stay_together,
    rules::hosts_of_a_set_are_not_too_many,
    moves::cooldowns_are_kept,
    moves::nobody_returns_too_early,
    moves::vms_do_not_move_too_often,
    moves::hosts_do_not_change_too_often,
    moves::a_plan_does_not_move_too_much,
    moves::prediction_adds_up,
    power::switched_on_hosts_slept,
    power::switched_off_hosts_are_empty_and_spare,
    power::hosts_up_min_is_kept,
    power::pools_have_what_they_are_promised,
    spare::hosts_can_be_lost,
    timing::starts_follow_ends,
    timing::durations_are_possible,
    timing::links_and_hosts_are_within_limits,
    timing::makespan_adds_up,
];

fn found(violations: &mut Vec<Violation>, step: usize, problem: String) {
    violations.push(Violation { step: Some(step), problem });
}
