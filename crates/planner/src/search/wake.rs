//! Waking of sleeping hosts: for a hot host that nobody awake can relieve, for a pool that is about to be too
//! full, for a drained host whose vms have nowhere to go, and for the policy's minimum.

use super::evacuate::{Pressure, evacuate};
use super::relieve::{self, exceeds, still_hot};
use super::{Act, Draft};
use crate::problem::{HostIx, Problem, State, VmIx};
use crate::rules;
use drover_model::CpuMillis;
use drover_model::Ratio;
use drover_model::world::HostState;

/// Hosts woken by one plan.
pub(crate) const WAKES_MAX: usize = 4;
/// Sleeping hosts tried for one purpose.
const TRIES_MAX: usize = 16;

/// What a host is woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    HostsUpMin,
    Relief,
    Evacuation,
    Pool,
}

/// Most urgent first.
const PURPOSES: [Purpose; 4] = [Purpose::HostsUpMin, Purpose::Relief, Purpose::Evacuation, Purpose::Pool];

/// Wakes as many hosts as are needed, and moves onto them what they are needed for.
pub(crate) fn wake(draft: &mut Draft<'_, '_>) {
    let woken = |draft: &Draft<'_, '_>| draft.acts().filter(|act| matches!(act, Act::PowerOn { .. })).count();
    for purpose in PURPOSES {
        while missing(draft, purpose) > 0 && woken(draft) < WAKES_MAX && wake_for(draft, purpose) {}
    }
}

/// Wakes the first host that helps.
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
    if !draft.acts().any(|act| matches!(act, Act::PowerOn { .. })) {
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

/// Sleeping hosts that drover may wake, the one that is there soonest first.
pub(crate) fn candidates(problem: &Problem<'_>, state: &State) -> Vec<HostIx> {
    let wakes = |ix: &HostIx| {
        let view = problem.hosts[*ix].view;
        let sleeps = view.state == HostState::Asleep && !state.up[*ix];
        sleeps && view.power_managed && !view.maintenance && view.capacity.is_some()
    };
    let mut hosts: Vec<HostIx> = (0..problem.hosts.len()).filter(wakes).collect();
    hosts.sort_by_key(|ix| (problem.hosts[*ix].view.boot_time, *ix));
    hosts
}

/// Whether the forecast demand passes `share` of the capacity that is up or coming.
pub(crate) fn pool_exceeds(problem: &Problem<'_>, state: &State, share: Ratio) -> bool {
    let (demand, capacity) = problem.pool(state);
    demand as f64 > capacity as f64 * share.0
}

/// How much the purpose lacks; a host that is waking counts as there.
fn missing(draft: &Draft<'_, '_>, purpose: Purpose) -> u64 {
    let (problem, state) = (draft.problem, &draft.state);
    match purpose {
        Purpose::HostsUpMin => {
            let coming = problem.hosts.iter().filter(|host| host.view.state == HostState::Waking).count();
            let up = u64::from(problem.up_count(state)) + coming as u64;
            u64::from(problem.policy().hosts_up_min).saturating_sub(up)
        }
        Purpose::Relief => draft.hot.iter().filter(|host| still_hot(problem, state, **host)).count() as u64,
        Purpose::Evacuation => {
            let drained = (0..problem.hosts.len()).filter(|host| problem.drains(state, *host));
            let movable = |vm: &&VmIx| rules::not_movable(problem, **vm).is_none();
            drained.map(|host| state.on[host].iter().filter(movable).count() as u64).sum()
        }
        Purpose::Pool => {
            let (demand, capacity) = problem.pool(state);
            let room_for = CpuMillis(capacity).scale(problem.policy().wake_above.0);
            demand.saturating_sub(room_for.0)
        }
    }
}

fn reason(draft: &Draft<'_, '_>, purpose: Purpose) -> String {
    let policy = draft.problem.policy();
    match purpose {
        Purpose::HostsUpMin => format!("at least {} hosts must be up", policy.hosts_up_min),
        Purpose::Relief => {
            let first = draft.hot.iter().find(|host| still_hot(draft.problem, &draft.state, **host));
            let hottest = first.map_or_else(String::new, |host| relieve::asked_for(draft, *host));
            format!("{hottest} and no host that is up has room")
        }
        Purpose::Evacuation => "no host that is up has room for the vms of a drained host".to_owned(),
        Purpose::Pool => {
            let (demand, capacity) = draft.problem.pool(&draft.state);
            format!(
                "the hosts that are up are asked for {} of their processors, and above {} one more is woken",
                CpuMillis(demand).ratio_of(CpuMillis(capacity)),
                policy.wake_above
            )
        }
    }
}
