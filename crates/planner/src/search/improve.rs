//! Improvement: voluntary moves, one at a time, each of which pays by itself at the expected demand and at the pessimistic
//! one. Contention is convex, so this spreads; hosts that draw less power for the same work attract. It ends where no
//! single move pays, or when the effort is spent.

use super::{Asked, Draft, Reason, Seek};
use crate::cost;
use crate::problem::{HostIx, Problem, VmIx};
use crate::rules::{self, Room};
use drover_model::load::HostSample;
use drover_model::policy::KOfN;
use drover_model::world::HostState;
use drover_model::{Bytes, CpuMillis};
use std::cmp::Reverse;

/// Passes over the hosts; each needs to have found a move for another to follow.
const PASSES_MAX: usize = 4;

/// Moves what pays.
pub(crate) fn improve(draft: &mut Draft<'_, '_>) {
    let problem = draft.problem;
    if !problem.policy().aim.spreads() || problem.policy().eagerness.payback().is_none() {
        return;
    }
    let unlike = problem.hosts.iter().any(|host| host.power != problem.hosts[0].power);
    for _ in 0..PASSES_MAX {
        let mark = draft.len();
        let mut hosts: Vec<HostIx> = (0..problem.hosts.len()).filter(|host| may_gain(draft, *host, unlike)).collect();
        hosts.sort_by_key(|host| (Reverse(draft.state.rates[*host].pessimistic), *host));
        for host in hosts {
            while !draft.tired() && draft.may_move() && draft.in_time() && one_move(draft, host) {}
        }
        if draft.len() == mark {
            return;
        }
    }
}

/// Hosts that wait for something, or whose like draws less elsewhere.
fn may_gain(draft: &Draft<'_, '_>, host: HostIx, unlike: bool) -> bool {
    let (problem, row) = (draft.problem, &draft.problem.hosts[host]);
    let active = row.view.state == HostState::Up && row.load_known && !row.view.maintenance;
    active && (unlike || waits(problem, draft, host)) && !draft.state.on[host].is_empty()
}

/// Fuller than the policy fills hosts, and has been for as long as a host must be cold to be called so: what nobody
/// presses for is not done for a spike.
fn waits(problem: &Problem<'_>, draft: &Draft<'_, '_>, host: HostIx) -> bool {
    let (row, KOfN { k, n }, fill_to) =
        (&problem.hosts[host], problem.policy().cold_evidence, problem.policy().fill_to);
    let full = |sample: &HostSample| {
        sample.cpu_wanted.ratio_of(CpuMillis(row.cpu)) > fill_to
            || sample.memory_used.ratio_of(Bytes(row.memory)) > fill_to
            || sample.net_rx.max(sample.net_tx).ratio_of(Bytes(row.link)) > fill_to
    };
    super::relieve::exceeds(problem, &draft.state, host, fill_to)
        && row.evidence(problem.world.now).take(n as usize).filter(|(_, sample)| full(sample)).count() >= k as usize
}

fn one_move(draft: &mut Draft<'_, '_>, host: HostIx) -> bool {
    let problem = draft.problem;
    let room = Room::filled(problem);
    let mut best = None;
    for vm in draft.state.on[host].clone() {
        if draft.has_moved(vm) || rules::rests(problem, vm).is_some() || !can_pay(draft, vm, host) {
            continue;
        }
        for to in draft.targets(vm, room, Seek::Emptiest) {
            let saved = cost::saved_by(problem, &draft.state, vm, to);
            if saved.median <= 0 || saved.pessimistic <= 0 || draft.unpressed(vm, host, to).is_some() {
                continue;
            }
            let cost = cost::of_move(problem, vm, to).cost;
            if !cost::pays(problem, saved, cost) {
                continue;
            }
            let key = (Reverse(saved.surely(problem) - cost), vm, to);
            if best.is_none_or(|least| key < least) {
                best = Some(key);
            }
        }
    }
    let Some((_, vm, to)) = best else { return false };
    let reason = if waits(problem, draft, host) {
        Reason::Spread { asked: Asked::of(problem, &draft.state, host), to }
    } else {
        Reason::Cheaper { from: host, to }
    };
    draft.migrate(vm, to, reason);
    true
}

/// Whether it would pay if the vm were nowhere at all: what no destination can beat.
fn can_pay(draft: &Draft<'_, '_>, vm: VmIx, host: HostIx) -> bool {
    let problem = draft.problem;
    let without = draft.state.sums[host].without(&problem.vms[vm].wants);
    let saved = draft.state.rates[host] - cost::host_rate(problem, host, &without);
    saved.surely(problem) >= problem.policy().gain_min && saved.median > 0
}
