//! The order in which changes are made: `schedule::transition`, told of the world by index.

use super::{Act, is_up};
use crate::cost;
use crate::predict::LINK_ASSUMED;
use crate::problem::{HostIx, Kind, Problem, RuleIx, State, Sums, VmIx};
use crate::schedule::transition::{self, Apart, Host, HostsMax, Load, Move, Order, Transition, transition};
use crate::schedule::{Limits, Link};
use drover_model::placement::Scope;
use drover_model::plan::Timing;
use drover_model::{Bytes, Millis};
use std::collections::BTreeMap;

/// Steps in order with their times, and the acts that found no place in it.
pub(super) struct Ordered {
    pub steps: Vec<Ordering>,
    pub timing: Timing,
    pub dropped: Vec<Act>,
}

pub(super) struct Ordering {
    pub act: Act,
    /// It only stops over.
    pub passes: bool,
    pub after: Vec<usize>,
    pub start: Millis,
    pub duration: Millis,
    pub bandwidth: Bytes,
}

/// `after`: the state that the acts lead to.
pub(super) fn order(problem: &Problem<'_>, before: &State, after: &State, acts: &[Act]) -> Ordered {
    let moves: Vec<(VmIx, HostIx, HostIx)> = acts
        .iter()
        .filter_map(|act| match *act {
            Act::Migrate { vm, from, to } => Some((vm, from, to)),
            Act::PowerOn { .. } | Act::PowerOff { .. } => None,
        })
        .collect();
    let wanted = wanted(problem, before, after, acts, &moves);
    let may_pass = |of: usize, host: HostIx| passes(problem, after, moves[of].0, host);
    let mut order = transition(&wanted, &may_pass);
    // Stops on the way are moves, too.
    let most = problem.policy().moves.plan_max as usize;
    let moved = |order: &Order| order.steps.iter().filter(|s| matches!(s.act, transition::Act::Move { .. })).count();
    if most > 0 && moved(&order) > most {
        order = transition(&wanted, &|_, _| false);
    }
    let stuck = order.stuck.iter().map(|stuck| moves[stuck.of]);
    let mut dropped: Vec<Act> = stuck.map(|(vm, from, to)| Act::Migrate { vm, from, to }).collect();
    dropped.extend(order.kept_on.iter().map(|host| Act::PowerOff { host: *host }));
    let steps = order.steps.into_iter().map(|step| {
        let (act, passes) = match step.act {
            transition::Act::Move { of, from, to, passes } => (Act::Migrate { vm: moves[of].0, from, to }, passes),
            transition::Act::On { host } => (Act::PowerOn { host }, false),
            transition::Act::Off { host } => (Act::PowerOff { host }, false),
        };
        let transition::Step { after, start, duration, bandwidth, .. } = step;
        Ordering { act, passes, after, start, duration, bandwidth }
    });
    Ordered { steps: steps.collect(), timing: order.timing, dropped }
}

/// Whether the vm may stand on the host for a while, room apart.
fn passes(problem: &Problem<'_>, after: &State, vm: VmIx, host: HostIx) -> bool {
    let placement = &problem.placement;
    let bound = |rule: &RuleIx| placement.rules[*rule].kind == Kind::Together;
    let most = problem.policy().moves.vm_hour_max;
    let row = &problem.vms[vm];
    after.open[host]
        && placement.allows(vm, host)
        && !placement.counted(vm).iter().any(bound)
        && row.returns(host).is_none()
        && (most == 0 || row.moves_in_hour + 2 <= most)
}

fn wanted(
    problem: &Problem<'_>,
    before: &State,
    after: &State,
    acts: &[Act],
    moves: &[(VmIx, HostIx, HostIx)],
) -> Transition {
    let policy = problem.policy();
    let links = links(problem, moves);
    let host = |ix: HostIx| {
        let row = &problem.hosts[ix];
        Host {
            capacity: Load {
                cpu: row.cpu,
                memory: row.memory,
                disk: row.disk,
                rx: row.link,
                tx: row.link,
                reserved: row.cpu,
            },
            carries: load(&before.sums[ix]),
            vms: u32::try_from(before.on[ix].len()).unwrap_or(u32::MAX),
            up: is_up(problem, ix),
            receives: after.open[ix],
            link: links[ix],
            boot_time: row.view.boot_time,
            rack: problem.placement.domain(Scope::Rack, ix) as u32,
            zone: problem.placement.domain(Scope::Zone, ix) as u32,
        }
    };
    let mut wanted = Transition {
        hosts: (0..problem.hosts.len()).map(host).collect(),
        limits: Limits {
            per_host: policy.migration.per_host_max,
            at_once: policy.migrations_at_once_max,
            rate_max: policy.migration.bandwidth_max,
        },
        ..Transition::default()
    };
    for act in acts {
        match *act {
            Act::PowerOn { host } => wanted.on.push(host),
            Act::PowerOff { host } => wanted.off.push(host),
            Act::Migrate { .. } => {}
        }
    }
    let mut sets: BTreeMap<RuleIx, usize> = BTreeMap::new();
    for (vm, from, to) in moves.iter().copied() {
        let mut row = Move::new(from, to);
        row.load = load(&problem.vms[vm].wants);
        row.work = cost::of_move(problem, vm, to).work;
        for rule in problem.placement.counted(vm).iter().copied() {
            let staying = || {
                let members = problem.placement.rules[rule].members.iter();
                members.filter(|vm| before.at[**vm] == after.at[**vm]).filter_map(|vm| before.at[*vm]).collect()
            };
            match problem.placement.rules[rule].kind {
                Kind::Apart => {
                    let within = problem.placement.rules[rule].scope;
                    let set = *sets.entry(rule).or_insert_with(|| {
                        wanted.apart.push(Apart { within, staying: staying() });
                        wanted.apart.len() - 1
                    });
                    row.apart.push(set);
                }
                Kind::HostsMax(count) => {
                    let set = *sets.entry(rule).or_insert_with(|| {
                        wanted.hosts_max.push(HostsMax { count, staying: staying() });
                        wanted.hosts_max.len() - 1
                    });
                    row.hosts_max.push(set);
                }
                Kind::Together | Kind::Only | Kind::Never => {}
            }
        }
        wanted.moves.push(row);
    }
    wanted
}

fn load(sums: &Sums) -> Load {
    Load {
        cpu: sums.expected(),
        memory: sums.memory,
        disk: sums.disk,
        rx: sums.link,
        tx: sums.link,
        reserved: sums.reserved,
    }
}

/// What each host's link carries for migrations: as policy and operator say, else as the slowest of these moves is known
/// to go.
fn links(problem: &Problem<'_>, moves: &[(VmIx, HostIx, HostIx)]) -> Vec<Link> {
    let most = problem.policy().migration.host_bandwidth_max;
    let told = |ix: HostIx| {
        let policy = (most > Bytes::ZERO).then_some(most);
        problem.hosts[ix].view.link.into_iter().chain(policy).min()
    };
    let mut links: Vec<Option<Bytes>> = (0..problem.hosts.len()).map(told).collect();
    let untold: Vec<bool> = links.iter().map(Option::is_none).collect();
    for (_, from, to) in moves.iter().filter(|_| !problem.known_pairs.is_empty()) {
        let speed = problem.predictor.link_speed(problem.hosts[*from].id, problem.hosts[*to].id);
        for host in [*from, *to].into_iter().filter(|host| untold[*host]) {
            links[host] = Some(links[host].map_or(speed, |link| link.min(speed)));
        }
    }
    links.into_iter().map(|link| link.unwrap_or(LINK_ASSUMED)).map(|link| Link { out: link, into: link }).collect()
}
