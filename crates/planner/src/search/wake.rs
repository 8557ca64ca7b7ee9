//! Waking of sleeping hosts: for a hot host that nobody awake can relieve, for a drained host whose vms have nowhere to
//! go, for a pool that is about to be too full, for spare room, and for the policy's minimum.

use super::evacuate::{Pressure, evacuate};
use super::reason::asked_of_pool;
use super::relieve::{self, exceeds, still_hot};
use super::{Act, Asked, Draft, Reason, spare};
use crate::problem::{HostIx, Problem, State, VmIx};
use crate::rules;
use drover_model::world::HostState;
use drover_model::{CpuMillis, MicroMoneyPerHour, Millis, Ratio};

/// Hosts woken by one plan: this many, and one more for each so many hosts.
const WAKES_MAX: usize = 4;
const HOSTS_PER_WAKE: usize = 32;
/// Sleeping hosts tried for one purpose, one after the other.
const TRIES_MAX: usize = 16;

/// What a host is woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    HostsUpMin,
    Relief,
    Evacuation,
    Pool,
    Spare,
}

/// Most urgent first.
const PURPOSES: [Purpose; 5] =
    [Purpose::HostsUpMin, Purpose::Relief, Purpose::Evacuation, Purpose::Pool, Purpose::Spare];

/// Wakes as many hosts as are needed, and moves onto them what they are needed for.
pub(crate) fn wake(draft: &mut Draft<'_, '_>) {
    if candidates(draft.problem, &draft.state).is_empty() {
        return;
    }
    let most = WAKES_MAX + draft.problem.hosts.len() / HOSTS_PER_WAKE;
    for purpose in PURPOSES {
        while missing(draft, purpose) > 0 && draft.woken().len() < most && wake_for(draft, purpose) {}
    }
}

/// Wakes the cheapest host that helps.
fn wake_for(draft: &mut Draft<'_, '_>, purpose: Purpose) -> bool {
    let before = missing(draft, purpose);
    candidates(draft.problem, &draft.state).into_iter().take(TRIES_MAX).any(|host| {
        let mark = draft.len();
        let reason = reason(draft, purpose);
        draft.power_on(host, reason);
        evacuate(draft, Pressure::Usual);
        relieve_hot(draft);
        let helps = missing(draft, purpose) < before;
        if !helps {
            draft.roll_back(mark);
        }
        helps
    })
}

/// After a wake: hosts that are fuller than the policy fills them give some of it to the woken ones.
pub(crate) fn spread(draft: &mut Draft<'_, '_>) {
    if !draft.acts_since(0).any(|act| matches!(act, Act::PowerOn { .. })) {
        return;
    }
    let fill_to = draft.problem.policy().fill_to;
    for host in 0..draft.problem.hosts.len() {
        let row = &draft.problem.hosts[host];
        let full = row.view.takes_vms() && row.load_known && exceeds(draft.problem, &draft.state, host, fill_to);
        if full {
            relieve::relieve(draft, host, fill_to);
        }
    }
}

/// Brings every hot host down, by one-way moves alone if possible, by exchange otherwise.
pub(crate) fn relieve_hot(draft: &mut Draft<'_, '_>) {
    let policy = draft.problem.policy();
    for host in draft.hot.clone() {
        // Better just not hot than not at all.
        for target in [policy.fill_to, policy.hot_above] {
            if !still_hot(draft.problem, &draft.state, host)
                || relieve::relieve(draft, host, target)
                || super::exchange::relieve(draft, host, target)
            {
                break;
            }
        }
    }
}

/// Sleeping hosts that drover may wake, cheapest first: the wear of a cycle, what it draws idle over the horizon, and
/// what a core-hour of waiting is worth for as long as it boots; by the capacity that this buys.
pub(crate) fn candidates(problem: &Problem<'_>, state: &State) -> Vec<HostIx> {
    let wakes = |ix: &HostIx| {
        let view = problem.hosts[*ix].view;
        let sleeps = view.state == HostState::Asleep && !state.up[*ix];
        sleeps && view.power_managed && !view.maintenance && view.capacity.is_some()
    };
    let price = &problem.policy().money;
    let cost_per_core = |ix: HostIx| {
        let row = &problem.hosts[ix];
        let cores = (row.cpu as f64 / 1000.0).max(0.001);
        let idle = row.power.watts(0.0) / 1000.0 * price.energy_price.0 as f64;
        let idle = MicroMoneyPerHour(idle as i64).over(price.horizon).0;
        let waiting = price.slowness_price.0 as f64 * row.view.boot_time.as_secs() / 3600.0;
        ((row.cycle_price.0 + idle) as f64 / cores + waiting) as i64
    };
    let mut hosts: Vec<HostIx> = (0..problem.hosts.len()).filter(wakes).collect();
    hosts.sort_by_cached_key(|ix| (cost_per_core(*ix), problem.hosts[*ix].view.boot_time, *ix));
    hosts
}

/// How far ahead the pool's demand must be known: a host that is woken now is there, and has settled, by then.
pub(crate) fn lead(problem: &Problem<'_>, sleeping: &[HostIx]) -> Millis {
    let policy = problem.policy();
    let boot = sleeping.iter().map(|host| problem.hosts[*host].view.boot_time).min();
    boot.map_or(policy.forecast_ahead, |boot| policy.forecast_ahead.max(Millis(boot.0 + policy.settle.0)))
}

/// The pool's forecast demand by the time a host that is woken now would be there, and the capacity that is up or coming.
pub(crate) fn pool_ahead(problem: &Problem<'_>, state: &State) -> (u64, u64) {
    let sleeping = candidates(problem, state);
    let (demand, capacity) = state.pool(problem);
    if sleeping.is_empty() {
        return (demand, capacity);
    }
    let lead = lead(problem, &sleeping);
    let later = if lead > problem.policy().forecast_ahead { problem.demand_ahead(lead) } else { 0 };
    (demand.max(later), capacity)
}

/// How much the purpose lacks; a host that is waking counts as there.
fn missing(draft: &Draft<'_, '_>, purpose: Purpose) -> u64 {
    let (problem, state) = (draft.problem, &draft.state);
    match purpose {
        Purpose::HostsUpMin => {
            let coming = problem.hosts.iter().filter(|host| host.view.state == HostState::Waking).count();
            let up = u64::from(state.up_count(problem)) + coming as u64;
            u64::from(problem.policy().hosts_up_min).saturating_sub(up)
        }
        Purpose::Relief => draft.hot.iter().filter(|host| still_hot(problem, state, **host)).count() as u64,
        Purpose::Evacuation => {
            let drained = (0..problem.hosts.len()).filter(|host| problem.drains(state, *host));
            let movable = |vm: &&VmIx| rules::not_movable(problem, **vm).is_none();
            drained.map(|host| state.on[host].iter().filter(movable).count() as u64).sum()
        }
        Purpose::Pool => {
            let (demand, capacity) = pool_ahead(problem, state);
            let room_for = CpuMillis(capacity).scale(problem.policy().wake_above.0);
            demand.saturating_sub(room_for.0)
        }
        Purpose::Spare => spare::homeless(problem, state).len() as u64,
    }
}

fn reason(draft: &Draft<'_, '_>, purpose: Purpose) -> Reason {
    let (problem, state) = (draft.problem, &draft.state);
    match purpose {
        Purpose::HostsUpMin => Reason::WakeMin,
        Purpose::Relief => match draft.hot.iter().find(|host| still_hot(problem, state, **host)) {
            Some(host) => Reason::WakeRelief { asked: Asked::of(problem, state, *host) },
            None => Reason::WakePool { asked: pool_asked(problem, state) },
        },
        Purpose::Evacuation => Reason::WakeDrained,
        Purpose::Pool => Reason::WakePool { asked: pool_asked(problem, state) },
        Purpose::Spare => Reason::WakeSpare,
    }
}

fn pool_asked(problem: &Problem<'_>, state: &State) -> Ratio {
    asked_of_pool(pool_ahead(problem, state))
}
