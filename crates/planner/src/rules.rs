//! Hard rules: what a vm may not do, whatever it would gain. Kept as indices while searching; turned into
//! [`Objection`]s for people at the end.

use crate::problem::{HostIx, Kind, Problem, RuleIx, State, Sums, VmIx};
use drover_model::placement::Scope;
use drover_model::plan::Objection;
use drover_model::world::{HostState, Movable};
use drover_model::{Bytes, CpuMillis, Millis, Ratio};

/// A vm is not moved for balance or saving before its load is known for this many samples.
const SAMPLES_TO_MOVE: usize = 5;

/// A broken rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Barrier {
    Cpu {
        host: HostIx,
        demand: u64,
        room_for: u64,
    },
    Memory {
        host: HostIx,
        demand: u64,
        room_for: u64,
    },
    Disk {
        host: HostIx,
        demand: u64,
        room_for: u64,
    },
    Link {
        host: HostIx,
        demand: u64,
        room_for: u64,
    },
    Reserved {
        host: HostIx,
        demand: u64,
        room_for: u64,
    },
    AntiAffinity {
        host: HostIx,
        with: VmIx,
    },
    /// `with`: the vm that it would meet, or part from.
    Rule {
        rule: RuleIx,
        with: Option<VmIx>,
    },
    Pinned {
        vm: VmIx,
    },
    Maintenance {
        host: HostIx,
    },
    HostNotUsable {
        host: HostIx,
    },
    Network {
        host: HostIx,
        vm: VmIx,
    },
    Unlike {
        host: HostIx,
        vm: VmIx,
    },
    NotMovable {
        vm: VmIx,
    },
    TooNew {
        vm: VmIx,
    },
    Cooldown {
        vm: VmIx,
        left: Millis,
    },
    Return {
        vm: VmIx,
        host: HostIx,
        left: Millis,
    },
    VmMoves {
        vm: VmIx,
    },
    HostMoves {
        host: HostIx,
    },
    UnknownLoad {
        host: HostIx,
    },
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
}

/// What no load and no time changes: pins, networks, rules that name hosts, a vm larger than the host.
pub(crate) fn never_on(problem: &Problem<'_>, vm: VmIx, host: HostIx) -> Option<Barrier> {
    let (row, view) = (&problem.vms[vm], problem.hosts[host].view);
    if !row.view.pinned_to.is_empty() && !row.view.pinned_to.contains(problem.hosts[host].id) {
        return Some(Barrier::Pinned { vm });
    }
    if let Some(rule) = problem.placement.forbidding(vm, host) {
        return Some(Barrier::Rule { rule, with: None });
    }
    // A host that never reported may turn out to have both.
    view.capacity?;
    if row.view.network.as_ref().is_some_and(|network| !view.networks.contains(network)) {
        return Some(Barrier::Network { host, vm });
    }
    let (demand, room_for) = (row.wants.memory, problem.hosts[host].memory);
    (demand > room_for).then_some(Barrier::Memory { host, demand, room_for })
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

/// Rules of living together: what may never be given twice, and who must be apart or together. `leaving` is a vm of
/// that host which will have left.
pub(crate) fn not_beside(
    problem: &Problem<'_>,
    state: &State,
    vm: VmIx,
    host: HostIx,
    leaving: Option<VmIx>,
) -> Option<Barrier> {
    let sums = sums_after(problem, state, vm, host, leaving);
    let row = &problem.hosts[host];
    if sums.memory > row.memory {
        return Some(Barrier::Memory { host, demand: sums.memory, room_for: row.memory });
    }
    let wants = &problem.vms[vm].wants;
    if wants.disk > 0 && sums.disk > row.disk {
        return Some(Barrier::Disk { host, demand: sums.disk, room_for: row.disk });
    }
    if wants.reserved > 0 && sums.reserved > row.cpu {
        return Some(Barrier::Reserved { host, demand: sums.reserved, room_for: row.cpu });
    }
    broken_by(problem, state, (vm, host), leaving, false)
}

fn sums_after(problem: &Problem<'_>, state: &State, vm: VmIx, host: HostIx, leaving: Option<VmIx>) -> Sums {
    let sums = state.sums[host].with(&problem.vms[vm].wants);
    leaving.map_or(sums, |other| sums.without(&problem.vms[other].wants))
}

/// The rule among vms that the move would break, or break further. A rule that is broken already may stay so.
fn broken_by(
    problem: &Problem<'_>,
    state: &State,
    (vm, host): (VmIx, HostIx),
    leaving: Option<VmIx>,
    joining: bool,
) -> Option<Barrier> {
    let placement = &problem.placement;
    placement.counted(vm).iter().copied().find_map(|rule| {
        let row = &placement.rules[rule];
        let there = placement.domain(row.scope, host);
        let here = state.at[vm].map(|from| placement.domain(row.scope, from));
        if here == Some(there) {
            return None;
        }
        let gone = leaving.is_some_and(|other| placement.counted(other).contains(&rule));
        let met = state.counted(rule, there) - u32::from(gone);
        let broken = match row.kind {
            Kind::Apart => met > 0,
            Kind::Together if joining && row.scope == Scope::Host => false,
            Kind::Together => {
                let others = state.spread(rule).iter().map(|(_, count)| count).sum::<u32>()
                    - u32::from(here.is_some())
                    - u32::from(gone);
                let left_behind = here.map_or(0, |here| state.counted(rule, here) - 1);
                met != others && (left_behind == others || met <= left_behind)
            }
            Kind::HostsMax(most) => {
                let used = state.spread(rule).len() as u32;
                let vacated = here.is_some_and(|here| state.counted(rule, here) == 1);
                met == 0 && used + 1 - u32::from(vacated) > most.max(used)
            }
            Kind::Only | Kind::Never => false,
        };
        broken.then(|| {
            let beside = |other: &VmIx| {
                *other != vm
                    && Some(*other) != leaving
                    && state.at[*other].is_some_and(|at| placement.domain(row.scope, at) == there)
            };
            let with = row.members.iter().copied().find(|other| match row.kind {
                Kind::Together => !beside(other) && *other != vm,
                _ => beside(other),
            });
            match (row.id, with) {
                (None, Some(with)) => Barrier::AntiAffinity { host, with },
                _ => Barrier::Rule { rule, with },
            }
        })
    })
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
    let sums = sums_after(problem, state, vm, host, leaving);
    let (demand, room_for) = (problem.load(&sums), problem.cpu_share(host, room.cpu));
    if demand > room_for {
        return Some(Barrier::Cpu { host, demand, room_for });
    }
    let (demand, room_for) = (sums.link, problem.link_share(host, room.cpu));
    if problem.vms[vm].wants.link > 0 && demand > room_for {
        return Some(Barrier::Link { host, demand, room_for });
    }
    let room_for = problem.memory_share(host, room.resident);
    (sums.resident > room_for).then(|| Barrier::Memory {
        host,
        demand: sums.resident.unsigned_abs(),
        room_for: room_for.unsigned_abs(),
    })
}

/// The same as [`forbids`] being `None`, without saying why: a few loads where the answer is no.
pub(crate) fn fits(problem: &Problem<'_>, state: &State, vm: VmIx, host: HostIx, room: Room) -> bool {
    state.open[host]
        && problem.placement.allows(vm, host)
        && state.sums[host].memory + problem.vms[vm].wants.memory <= problem.hosts[host].memory
        && too_full(problem, state, vm, host, None, room).is_none()
        && not_beside(problem, state, vm, host, None).is_none()
}

/// As [`fits`], for one of several vms that must be on one host and go there together.
pub(crate) fn fits_joining(problem: &Problem<'_>, state: &State, vm: VmIx, host: HostIx, room: Room) -> bool {
    let (sums, row) = (state.sums[host].with(&problem.vms[vm].wants), &problem.hosts[host]);
    state.open[host]
        && problem.placement.allows(vm, host)
        && sums.memory <= row.memory
        && sums.disk <= row.disk
        && sums.reserved <= row.cpu
        && too_full(problem, state, vm, host, None, room).is_none()
        && broken_by(problem, state, (vm, host), None, true).is_none()
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

/// The vm left the host too recently to return to it unless it must.
pub(crate) fn returns(problem: &Problem<'_>, vm: VmIx, host: HostIx) -> Option<Barrier> {
    problem.vms[vm].returns(host).map(|left| Barrier::Return { vm, host, left })
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
    let row = &problem.vms[vm];
    let most = problem.policy().moves.vm_hour_max;
    let cooldown = || row.cooldown.map(|left| Barrier::Cooldown { vm, left });
    let often = || (most > 0 && row.moves_in_hour >= most).then_some(Barrier::VmMoves { vm });
    too_new(problem, vm).or_else(cooldown).or_else(often)
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
            Self::Disk { host, demand, room_for } => {
                Objection::Disk { host: host_id(host), demand: Bytes(demand), room_for: Bytes(room_for) }
            }
            Self::Link { host, demand, room_for } => {
                Objection::Link { host: host_id(host), demand: Bytes(demand), room_for: Bytes(room_for) }
            }
            Self::Reserved { host, demand, room_for } => {
                Objection::Reserved { host: host_id(host), demand: CpuMillis(demand), room_for: CpuMillis(room_for) }
            }
            Self::Rule { rule, with } => rule_objection(problem, rule, with),
            Self::Return { vm, host, left } => Objection::Return { vm: vm_id(vm), host: host_id(host), left },
            Self::VmMoves { vm } => Objection::MovesMax {
                why: format!("{} has moved {} times in the last hour", vm_id(vm), problem.vms[vm].moves_in_hour),
            },
            Self::HostMoves { host } => Objection::MovesMax {
                why: format!(
                    "{} moves went from and to {} in the last hour",
                    problem.hosts[host].view.moves_recent,
                    host_id(host)
                ),
            },
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

fn rule_objection(problem: &Problem<'_>, rule: RuleIx, with: Option<VmIx>) -> Objection {
    let row = &problem.placement.rules[rule];
    let other = with.map_or_else(|| "another of its vms".to_owned(), |vm| problem.vms[vm].id.to_string());
    let why = match row.kind {
        Kind::Apart => format!("{other} is in the same {}", row.scope),
        Kind::Together => format!("{other} is in another {}", row.scope),
        Kind::HostsMax(most) => format!("its vms may use {most} hosts at most"),
        Kind::Only => "its vms may only be on hosts that it names".to_owned(),
        Kind::Never => "its vms may not be there".to_owned(),
    };
    match row.id {
        Some(id) => Objection::PlacementRule { name: id.clone(), why },
        // Groups object with the vm they would meet; without one there is nothing to name.
        None => Objection::NotMovable { vm: problem.vms[row.members[0]].id.clone(), why },
    }
}
