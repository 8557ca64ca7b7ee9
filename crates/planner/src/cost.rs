//! Everything in money (design section 12), so that a power bill, a slow vm and a move can be compared.
//!
//! Cost rate of a host: power x price of energy + contention x price of slowness. Power has an idle step and is
//! linear above it. Contention is in cores that are asked for and not had: nothing up to `fill_to`, from there a
//! parabola that reaches slope 1 at full use, beyond it every core asked for is one missing. It is convex, so that
//! relieving the fuller host gains more, and taken at the policy's quantile, so that a plan must win in bad moments
//! too.

use crate::predict::{Allowed, Features};
use crate::problem::{HostIx, Problem, State, Sums, VmIx};
use drover_model::{Bytes, CpuMillis, MicroMoney, MicroMoneyPerHour, Millis};

/// Share of its processor time that a vm loses while its memory is copied.
const COPY_SLOWDOWN: f64 = 0.1;

/// What moving one vm takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MoveCost {
    pub duration: Millis,
    pub cost: MicroMoney,
}

/// As the predictor sees it, the way the move would be made. Its time is the expected one; it is paid for at the upper
/// end of each interval, since a plan must win in bad moments, too.
pub(crate) fn of_move(problem: &Problem<'_>, vm: VmIx, to: HostIx) -> MoveCost {
    // Moves between hosts that no move has told anything about cost the same.
    let pair = problem.vms[vm].host.map(|from| (from, to)).filter(|pair| problem.known_pairs.contains(pair));
    let known = problem.move_costs.borrow().get(&(vm, pair)).copied();
    known.unwrap_or_else(|| {
        let cost = predicted(problem, vm, to);
        problem.move_costs.borrow_mut().insert((vm, pair), cost);
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
        COPY_SLOWDOWN * CpuMillis(row.demand.mean).cores() * prediction.total.high.as_secs() / 3600.0;
    let price = &policy.money;
    let cost = sent_gib * price.transfer_price.0 as f64
        + prediction.downtime.high.as_secs() * price.downtime_price.0 as f64
        + slowed_core_hours * price.slowness_price.0 as f64;
    MoveCost { duration: prediction.total.expected, cost: MicroMoney((cost.ceil() as i64).max(1)) }
}

/// Of a powered host that carries `sums`.
pub(crate) fn host_rate(problem: &Problem<'_>, host: HostIx, sums: &Sums) -> MicroMoneyPerHour {
    let price = &problem.policy().money;
    let capacity = problem.hosts[host].cpu as f64;
    if capacity == 0.0 {
        return MicroMoneyPerHour((price.host_idle_watts / 1000.0 * price.energy_price.0 as f64).round() as i64);
    }
    let used = ((sums.measured.mean + sums.assumed) as f64 / capacity).min(1.0);
    let watts = price.host_idle_watts + (price.host_busy_watts - price.host_idle_watts) * used;
    let memory = sums.resident as f64 / problem.hosts[host].memory.max(1) as f64;
    let waiting = contention(problem, problem.load(sums) as f64 / capacity) + contention(problem, memory);
    let missing_cores = waiting * capacity / 1000.0;
    let rate = watts / 1000.0 * price.energy_price.0 as f64 + missing_cores * price.slowness_price.0 as f64;
    MicroMoneyPerHour(rate.round() as i64)
}

/// Share of a resource that is asked for and not had, when `used` of it is asked for.
fn contention(problem: &Problem<'_>, used: f64) -> f64 {
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
    (0..problem.hosts.len()).filter(|h| state.up[*h]).map(|h| host_rate(problem, h, &state.sums[h])).sum()
}

/// What the vm's move to `to` gains over the horizon, its cost subtracted.
pub(crate) fn gain_of_move(problem: &Problem<'_>, state: &State, vm: VmIx, to: HostIx) -> MicroMoney {
    let row = &problem.vms[vm];
    let mut saved = host_rate(problem, to, &state.sums[to]) - host_rate(problem, to, &state.sums[to].with(row));
    if let Some(from) = state.at[vm] {
        saved += host_rate(problem, from, &state.sums[from]);
        saved = saved - host_rate(problem, from, &state.sums[from].without(row));
    }
    saved.over(problem.policy().money.horizon) - of_move(problem, vm, to).cost
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
