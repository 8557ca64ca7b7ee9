//! Hard rules: what a vm may not do, whatever it would gain. Kept as indices while searching; turned into
//! [`Objection`]s for people at the end.

use crate::problem::{HostIx, Problem, State, VmIx};
use drover_model::plan::Objection;
use drover_model::world::{HostState, Movable};
use drover_model::{Bytes, CpuMillis, Millis, Ratio};

/// A vm is not moved for balance or saving before its load is known for this many samples.
const SAMPLES_TO_MOVE: usize = 5;

/// A broken rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Barrier {
    Cpu { host: HostIx, demand: u64, room_for: u64 },
    Memory { host: HostIx, demand: u64, room_for: u64 },
    AntiAffinity { host: HostIx, with: VmIx },
    Pinned { vm: VmIx },
    Maintenance { host: HostIx },
    HostNotUsable { host: HostIx },
    Network { host: HostIx, vm: VmIx },
    Unlike { host: HostIx, vm: VmIx },
    NotMovable { vm: VmIx },
    TooNew { vm: VmIx },
    Cooldown { vm: VmIx, left: Millis },
    UnknownLoad { host: HostIx },
}

/// How full a host may get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Share of the processor, by demand at the quantile.
    pub cpu: Ratio,
    /// Share of the memory, by what the vms hold. Their full memory must fit in any case.
    pub resident: Ratio,
    /// A vm alone on a host may want any amount: no other host would give it more.
    pub alone: bool,
}

impl Room {
    /// As full as the policy fills a host.
    pub fn filled(problem: &Problem<'_>) -> Self {
        let fill_to = problem.policy().fill_to;
        Self { cpu: fill_to, resident: fill_to, alone: false }
    }

    /// Just not hot: for vms that must leave their host.
    pub fn pressed(problem: &Problem<'_>, alone: bool) -> Self {
        let hot_above = problem.policy().hot_above;
        Self { cpu: hot_above, resident: hot_above, alone }
    }

    /// For a vm that passes through, or until its exchange partner has left.
    pub const PASSING: Self = Self { cpu: Ratio(1.0), resident: Ratio(1.0), alone: false };
}

/// What no load and no time changes: pins, networks, a vm larger than the host.
pub(crate) fn never_on(problem: &Problem<'_>, vm: VmIx, host: HostIx) -> Option<Barrier> {
    let row = &problem.vms[vm];
    if !row.view.pinned_to.is_empty() && row.pinned_to.binary_search(&host).is_err() {
        return Some(Barrier::Pinned { vm });
    }
    // A host that never reported may turn out to have both.
    problem.hosts[host].view.capacity?;
    if row.network.is_some_and(|network| !problem.reach[network][host]) {
        return Some(Barrier::Network { host, vm });
    }
    let memory = problem.hosts[host].memory;
    (row.memory > memory).then_some(Barrier::Memory { host, demand: row.memory, room_for: memory })
}

/// Whether a running vm could not go on there. One that runs nowhere is started by any host's own means.
fn unlike(problem: &Problem<'_>, vm: VmIx, host: HostIx) -> Option<Barrier> {
    let kind = problem.hosts[problem.vms[vm].host?].view.kind;
    problem.hosts[host].view.refuses.contains(&kind).then_some(Barrier::Unlike { host, vm })
}

/// Whether the host takes vms at all, in this state.
pub(crate) fn not_taking(problem: &Problem<'_>, state: &State, host: HostIx) -> Option<Barrier> {
    let view = problem.hosts[host].view;
    if view.maintenance {
        return Some(Barrier::Maintenance { host });
    }
    if !state.up[host] || view.capacity.is_none() {
        return Some(Barrier::HostNotUsable { host });
    }
    None
}

/// Rules of living together: memory in full, and anti-affinity. `leaving` is a vm of that host which will have left.
pub(crate) fn not_beside(
    problem: &Problem<'_>,
    state: &State,
    vm: VmIx,
    host: HostIx,
    leaving: Option<VmIx>,
) -> Option<Barrier> {
    let row = &problem.vms[vm];
    let leaves = leaving.map_or(0, |other| problem.vms[other].memory);
    let demand = state.sums[host].memory - leaves + row.memory;
    if demand > problem.hosts[host].memory {
        return Some(Barrier::Memory { host, demand, room_for: problem.hosts[host].memory });
    }
    let group = row.group?;
    let with = state.on[host]
        .iter()
        .copied()
        .find(|other| problem.vms[*other].group == Some(group) && *other != vm && Some(*other) != leaving)?;
    Some(Barrier::AntiAffinity { host, with })
}

/// Whether there is room by load.
pub(crate) fn too_full(
    problem: &Problem<'_>,
    state: &State,
    vm: VmIx,
    host: HostIx,
    leaving: Option<VmIx>,
    room: Room,
) -> Option<Barrier> {
    if room.alone && state.on[host].is_empty() {
        return None;
    }
    let mut sums = state.sums[host].with(&problem.vms[vm]);
    if let Some(other) = leaving {
        sums = sums.without(&problem.vms[other]);
    }
    let (demand, room_for) = (problem.load(&sums), problem.cpu_share(host, room.cpu));
    if demand > room_for {
        return Some(Barrier::Cpu { host, demand, room_for });
    }
    let room_for = problem.memory_share(host, room.resident);
    (sums.resident > room_for).then(|| Barrier::Memory {
        host,
        demand: sums.resident.unsigned_abs(),
        room_for: room_for.unsigned_abs(),
    })
}

/// Everything that may forbid a running vm to go to `host`, as the state is.
pub(crate) fn forbids(problem: &Problem<'_>, state: &State, vm: VmIx, host: HostIx, room: Room) -> Option<Barrier> {
    forbids_without(problem, state, vm, host, None, room)
}

/// The same once `leaving` has left `host`.
pub(crate) fn forbids_without(
    problem: &Problem<'_>,
    state: &State,
    vm: VmIx,
    host: HostIx,
    leaving: Option<VmIx>,
    room: Room,
) -> Option<Barrier> {
    let row = &problem.hosts[host];
    not_taking(problem, state, host)
        // A host that this plan wakes is idle, which is known.
        .or_else(|| {
            let dark = !row.load_known && row.view.state == HostState::Up;
            dark.then_some(Barrier::UnknownLoad { host })
        })
        .or_else(|| never_on(problem, vm, host))
        .or_else(|| unlike(problem, vm, host))
        .or_else(|| not_beside(problem, state, vm, host, leaving))
        .or_else(|| too_full(problem, state, vm, host, leaving, room))
}

/// Why a vm can't be moved at all.
pub(crate) fn not_movable(problem: &Problem<'_>, vm: VmIx) -> Option<Barrier> {
    match problem.vms[vm].view.movable {
        Movable::Yes => None,
        Movable::Moving { .. } | Movable::No { .. } => Some(Barrier::NotMovable { vm }),
    }
}

/// Why a vm stays where it is when nothing presses: what can't be moved, is too new, or moved recently.
pub(crate) fn rests(problem: &Problem<'_>, vm: VmIx) -> Option<Barrier> {
    let cooldown = || problem.vms[vm].cooldown.map(|(left, _)| Barrier::Cooldown { vm, left });
    too_new(problem, vm).or_else(cooldown)
}

/// Why a vm is no candidate for relieving its hot host.
pub(crate) fn too_new(problem: &Problem<'_>, vm: VmIx) -> Option<Barrier> {
    let fresh = || (problem.vms[vm].samples < SAMPLES_TO_MOVE).then_some(Barrier::TooNew { vm });
    not_movable(problem, vm).or_else(fresh)
}

impl Barrier {
    pub fn objection(self, problem: &Problem<'_>) -> Objection {
        let host_id = |host: HostIx| problem.hosts[host].id.clone();
        let vm_id = |vm: VmIx| problem.vms[vm].id.clone();
        match self {
            Self::Cpu { host, demand, room_for } => {
                Objection::Cpu { host: host_id(host), demand: CpuMillis(demand), room_for: CpuMillis(room_for) }
            }
            Self::Memory { host, demand, room_for } => {
                Objection::Memory { host: host_id(host), demand: Bytes(demand), room_for: Bytes(room_for) }
            }
            Self::AntiAffinity { host, with } => Objection::AntiAffinity { host: host_id(host), with: vm_id(with) },
            Self::Pinned { vm } => {
                Objection::Pinned { vm: vm_id(vm), to: problem.vms[vm].view.pinned_to.iter().cloned().collect() }
            }
            Self::Maintenance { host } => Objection::Maintenance { host: host_id(host) },
            Self::HostNotUsable { host } => {
                Objection::HostNotUsable { host: host_id(host), state: problem.hosts[host].view.state }
            }
            Self::Network { host, vm } => match &problem.vms[vm].view.network {
                Some(network) => Objection::Network { host: host_id(host), network: network.clone() },
                None => Objection::HostNotUsable { host: host_id(host), state: problem.hosts[host].view.state },
            },
            Self::Unlike { host, vm } => Objection::Unlike { host: host_id(host), vm: vm_id(vm) },
            Self::NotMovable { vm } => Objection::NotMovable {
                vm: vm_id(vm),
                why: match &problem.vms[vm].view.movable {
                    Movable::No { why } => why.clone(),
                    Movable::Moving { to } => format!("it is on its way to {to}"),
                    Movable::Yes => "it is needed where it is".to_owned(),
                },
            },
            Self::TooNew { vm } => {
                Objection::NotMovable { vm: vm_id(vm), why: "its load is not known well enough yet".to_owned() }
            }
            Self::Cooldown { vm, left } => Objection::Cooldown { vm: vm_id(vm), left },
            Self::UnknownLoad { host } => Objection::UnknownLoad { host: host_id(host) },
        }
    }
}
