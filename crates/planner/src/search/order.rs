//! What each step must wait for, and when it goes. The steps come in an order in which they are valid one by one; here
//! only as much of it is kept as is needed for every order that `after` allows to be valid too, with several steps
//! under way at once.

use super::Act;
use crate::predict::{Allowed, Features};
use crate::problem::{HostIx, Problem, State, Sums};
use crate::schedule::transition::{Kind, Slot, Timed, times};
use crate::schedule::{Limits, Work};
use drover_model::Bytes;
use drover_model::plan::Timing;

/// By step, when it goes.
pub(super) fn timed(problem: &Problem<'_>, acts: &[Act], after: &[Vec<usize>]) -> (Vec<Slot>, Timing) {
    let policy = problem.policy();
    let limits = Limits {
        per_host: policy.migration.per_host_max,
        at_once: policy.migrations_at_once_max,
        rate_max: policy.migration.bandwidth_max,
    };
    let timed = |(n, act): (usize, &Act)| Timed {
        after: after[n].clone(),
        inherent: after[n].iter().copied().filter(|m| is_inherent(acts[*m], *act)).collect(),
        kind: kind(problem, *act),
    };
    times(&acts.iter().enumerate().map(timed).collect::<Vec<_>>(), &limits)
}

/// Whether no order could do without.
fn is_inherent(earlier: Act, this: Act) -> bool {
    match (earlier, this) {
        (Act::Migrate { vm: other, .. }, Act::Migrate { vm, .. }) => other == vm,
        (Act::PowerOn { .. }, _) | (_, Act::PowerOff { .. }) => true,
        (_, Act::PowerOn { .. }) | (Act::PowerOff { .. }, _) => false,
    }
}

fn kind(problem: &Problem<'_>, act: Act) -> Kind {
    let (vm, from, to) = match act {
        Act::Migrate { vm, from, to } => (vm, from, to),
        Act::PowerOn { host } => return Kind::Switch { takes: problem.hosts[host].view.boot_time },
        // How long a shutdown takes nobody measures; nothing waits for it.
        Act::PowerOff { .. } => return Kind::Switch { takes: drover_model::Millis::ZERO },
    };
    let (source, destination, row) = (&problem.hosts[from], &problem.hosts[to], &problem.vms[vm]);
    let features = Features::of_view(problem.world, row.id, row.view, source.id, destination.id);
    let prediction = problem.predictor.choose(&features, &Allowed::by(&problem.policy().migration)).prediction;
    let max = problem.policy().migration.host_bandwidth_max;
    let carries = |host: HostIx| {
        let known = problem.hosts[host].view.link.into_iter().chain((max > Bytes::ZERO).then_some(max)).min();
        known.unwrap_or_else(|| problem.predictor.link_speed(source.id, destination.id))
    };
    let work = Work::of(&features, &prediction);
    Kind::Move { from, to, out: carries(from), into: carries(to), work }
}
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
                let group = problem.vms[vm].group;
                let parts = group.is_some() && problem.vms[other].group == group;
                other == vm || (left == to && (tight[to] || parts))
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
            sums = sums.with(&problem.vms[vm]);
            comes = true;
        }
    }
    comes && (sums.memory > problem.hosts[host].memory || problem.load(&sums) > problem.hosts[host].cpu)
}
