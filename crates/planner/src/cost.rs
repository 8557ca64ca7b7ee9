//! Everything in money (design section 12), so that a power bill, a slow vm and a move can be compared.
//!
//! Cost rate of a host: power x price of energy + contention x price of slowness. Power follows the host's own curve, or
//! has an idle step and is linear above it. Contention is in cores that are asked for and not had, for processor, memory
//! and link alike: nothing up to `fill_to`, from there a parabola that reaches slope 1 at full use, beyond it every
//! core asked for is one missing. It is convex, so that relieving the fuller host gains more. Each rate is worked out at
//! the expected demand and at the policy's quantile: what nobody presses for must pay at both.

use crate::predict::{Allowed, Features};
use crate::problem::{HostIx, Problem, State, Sums, VmIx};
use crate::schedule::Work;
use drover_model::{Bytes, CpuMillis, MicroMoney, MicroMoneyPerHour, Millis};
use std::ops::{Add, Sub};

/// Share of its processor time that a vm loses while its memory is copied.
const COPY_SLOWDOWN: f64 = 0.1;

/// A rate, in micro-units per hour, at the expected demand and at the pessimistic one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rates {
    pub median: i64,
    pub pessimistic: i64,
}

impl Add for Rates {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { median: self.median + other.median, pessimistic: self.pessimistic + other.pessimistic }
    }
}

impl Sub for Rates {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { median: self.median - other.median, pessimistic: self.pessimistic - other.pessimistic }
    }
}

impl Rates {
    /// Over the policy's horizon, at the pessimistic demand.
    pub fn over(self, problem: &Problem<'_>) -> MicroMoney {
        MicroMoneyPerHour(self.pessimistic).over(problem.policy().money.horizon)
    }

    /// Over the horizon, the worse of the two.
    pub fn surely(self, problem: &Problem<'_>) -> MicroMoney {
        MicroMoneyPerHour(self.pessimistic.min(self.median)).over(problem.policy().money.horizon)
    }
}

/// Whether a voluntary step that saves so much pays at both demands: several times its cost, as eager as the policy is,
/// and at least `gain_min` in all.
pub(crate) fn pays(problem: &Problem<'_>, saved: Rates, cost: MicroMoney) -> bool {
    let Some(payback) = problem.policy().eagerness.payback() else { return false };
    let surely = saved.surely(problem);
    surely.0 as f64 >= payback * cost.0 as f64 && surely - cost >= problem.policy().gain_min
}

/// What moving one vm takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MoveCost {
    pub duration: Millis,
    pub cost: MicroMoney,
    /// What there is to send, for the schedule.
    pub work: Work,
}

/// As the predictor sees it, the way the move would be made. Its time is the expected one; it is paid for at the upper
/// end of each interval, since a plan must win in bad moments, too.
pub(crate) fn of_move(problem: &Problem<'_>, vm: VmIx, to: HostIx) -> MoveCost {
    let known = |from: HostIx| problem.known_pairs.get(&from).is_some_and(|known| known.contains(&to));
    if !problem.known_pairs.is_empty() && problem.vms[vm].host.is_some_and(known) {
        let cost = problem.known_costs.borrow().get(&(vm, to)).copied();
        return cost.unwrap_or_else(|| {
            let cost = predicted(problem, vm, to);
            problem.known_costs.borrow_mut().insert((vm, to), cost);
            cost
        });
    }
    // Moves between hosts that no move has told anything about cost the same.
    problem.move_costs[vm].get().unwrap_or_else(|| {
        let cost = predicted(problem, vm, to);
        problem.move_costs[vm].set(Some(cost));
        cost
    })
}

fn predicted(problem: &Problem<'_>, vm: VmIx, to: HostIx) -> MoveCost {
    let (row, policy) = (&problem.vms[vm], problem.policy());
    let to = problem.hosts[to].id;
    let from = row.host.map_or(to, |from| problem.hosts[from].id);
    let features = Features::of_view(problem.world, row.id, row.view, from, to);
    let prediction = problem.predictor.choose(&features, &Allowed::by(&policy.migration)).prediction;
    let sent_gib = prediction.transferred.high.0 as f64 / Bytes::GIB.0 as f64;
    let slowed_core_hours =
        COPY_SLOWDOWN * CpuMillis(row.wants.expected()).cores() * prediction.total.high.as_secs() / 3600.0;
    let price = &policy.money;
    let cost = sent_gib * price.transfer_price.0 as f64
        + prediction.downtime.high.as_secs() * price.downtime_price.0 as f64
        + slowed_core_hours * price.slowness_price.0 as f64;
    MoveCost {
        duration: prediction.total.expected,
        cost: MicroMoney((cost.ceil() as i64).max(1)),
        work: Work::of(&features, &prediction),
    }
}

/// Of a powered host that carries `sums`.
pub(crate) fn host_rate(problem: &Problem<'_>, host: HostIx, sums: &Sums) -> Rates {
    let price = &problem.policy().money;
    let row = &problem.hosts[host];
    let energy = |watts: f64| watts / 1000.0 * price.energy_price.0 as f64;
    let capacity = row.cpu as f64;
    if capacity == 0.0 {
        let idle = energy(row.power.watts(0.0)).round() as i64;
        return Rates { median: idle, pessimistic: idle };
    }
    let expected = sums.expected() as f64 / capacity;
    let watts = energy(row.power.watts(expected));
    let memory = contention(problem, sums.resident as f64 / row.memory.max(1) as f64);
    let link = if sums.link == 0 { 0.0 } else { contention(problem, sums.link as f64 / row.link.max(1) as f64) };
    let cores = capacity / 1000.0 * price.slowness_price.0 as f64;
    let rate = |used: f64| (watts + (contention(problem, used) + memory + link) * cores).round() as i64;
    Rates { median: rate(expected), pessimistic: rate(problem.load(sums) as f64 / capacity) }
}

/// Share of a resource that is asked for and not had, when `used` of it is asked for.
pub(crate) fn contention(problem: &Problem<'_>, used: f64) -> f64 {
    let free_up_to = problem.policy().fill_to.0;
    let slack = 1.0 - free_up_to;
    if used <= free_up_to {
        0.0
    } else if used <= 1.0 {
        (used - free_up_to).powi(2) / (2.0 * slack)
    } else {
        slack / 2.0 + (used - 1.0)
    }
}

/// Of all hosts.
pub(crate) fn rate(problem: &Problem<'_>, state: &State) -> MicroMoneyPerHour {
    let up = (0..problem.hosts.len()).filter(|h| state.up[*h]);
    MicroMoneyPerHour(up.map(|h| state.rates[h].pessimistic).sum())
}

/// What the rates fall by when the vm goes to `to`. Constant time: only two hosts change.
pub(crate) fn saved_by(problem: &Problem<'_>, state: &State, vm: VmIx, to: HostIx) -> Rates {
    let wants = &problem.vms[vm].wants;
    let saved = state.rates[to] - host_rate(problem, to, &state.sums[to].with(wants));
    match state.at[vm] {
        Some(from) => saved + state.rates[from] - host_rate(problem, from, &state.sums[from].without(wants)),
        None => saved,
    }
}

/// What the vm's move to `to` gains over the horizon, its cost subtracted.
pub(crate) fn gain_of_move(problem: &Problem<'_>, state: &State, vm: VmIx, to: HostIx) -> MicroMoney {
    saved_by(problem, state, vm, to).over(problem) - of_move(problem, vm, to).cost
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_model::Revision;
    use drover_model::TimeMs;
    use drover_model::policy::Policy;
    use drover_model::world::World;

    #[test]
    fn contention_is_convex_and_begins_at_fill_to() {
        let world = World::empty(TimeMs(0), Revision(0), Policy::default());
        let problem = Problem::new(&world);
        let at = |percent: u32| contention(&problem, f64::from(percent) / 100.0);
        assert_eq!(at(75), 0.0);
        assert!((at(100) - 0.125).abs() < 1e-12);
        assert!((at(130) - 0.425).abs() < 1e-12);
        for used in 1..200 {
            assert!(at(used + 1) - at(used) >= at(used) - at(used - 1) - 1e-12, "at {used} %");
        }
    }
}
