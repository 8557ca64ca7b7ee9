//! Exchange: where no one-way move fits, a vm of another host makes room for a big one of the hot host. It goes to a third
//! host (an ejection chain, up to two vms long), or, where that has no room either, to the hot host in its place.

use super::relieve::{self, exceeds, sums_exceed};
use super::{Asked, Draft, Reason, Seek};
use crate::cost::{self, Rates};
use crate::problem::{HostIx, Problem, State, VmIx};
use crate::rules::{self, Room};
use drover_model::{MicroMoney, Ratio};
use std::cmp::Reverse;

/// Pairs looked at for one host.
const PAIRS_MAX: usize = 100_000;
/// Exchanges tried to relieve one host.
const EXCHANGES_MAX: usize = 4;
/// Other hosts looked into, least full first.
const OTHERS_MAX: usize = 64;
/// Chains of two tried where one is not enough.
const DEEP_TRIES_MAX: usize = 256;

/// `big` of the hot host goes to where `small` is, and `small` goes on.
#[derive(Debug, Clone, Copy)]
struct Exchange {
    big: VmIx,
    small: VmIx,
    other: HostIx,
    /// The hot host itself, or a third one.
    small_to: HostIx,
}

/// Lower is better: suffices, nobody comes to the hot host, gains, then the lower ids.
type Rank = (bool, bool, Reverse<MicroMoney>, VmIx, VmIx);

/// Like [`relieve::relieve`], with exchanges where no one-way move fits.
pub(crate) fn relieve(draft: &mut Draft<'_, '_>, host: HostIx, target: Ratio) -> bool {
    let mark = draft.len();
    let mut exchanges = 0;
    while exceeds(draft.problem, &draft.state, host, target) {
        if draft.len() - mark < relieve::MOVES_MAX && relieve::one_move(draft, host, target) {
            continue;
        }
        if exchanges == EXCHANGES_MAX || draft.tired() || !one_exchange(draft, host, target) {
            draft.roll_back(mark);
            return false;
        }
        exchanges += 1;
    }
    if draft.len() > mark && draft.gain_since(mark) < draft.problem.policy().gain_min {
        draft.roll_back(mark);
        return false;
    }
    true
}

fn one_exchange(draft: &mut Draft<'_, '_>, host: HostIx, target: Ratio) -> bool {
    let most = draft.problem.policy().moves.plan_max;
    if most > 0 && !draft.may_move() {
        return false;
    }
    let Some(Exchange { big, small, other, small_to }) = best(draft, host, target) else {
        return deep(draft, host);
    };
    let asked = Asked::of(draft.problem, &draft.state, host);
    if small_to == host {
        draft.migrate(big, other, Reason::Exchange { asked, big, small });
        draft.migrate(small, small_to, Reason::MakesRoom { on: other, for_vm: big });
    } else {
        draft.migrate(small, small_to, Reason::MakesRoom { on: other, for_vm: big });
        draft.migrate(big, other, Reason::Exchange { asked, big, small });
    }
    draft.may_move() || most == 0
}

/// Hosts whose vms may make room: all, or those with most.
fn others(draft: &Draft<'_, '_>, host: HostIx) -> Vec<HostIx> {
    let (problem, state) = (draft.problem, &draft.state);
    let mut others: Vec<HostIx> =
        (0..problem.hosts.len()).filter(|other| *other != host && state.open[*other]).collect();
    if others.len() > OTHERS_MAX {
        others.sort_by_key(|other| (problem.fullness(*other, &state.sums[*other]), *other));
        others.truncate(OTHERS_MAX);
        others.sort_unstable();
    }
    others
}

fn bigs(draft: &Draft<'_, '_>, host: HostIx) -> Vec<VmIx> {
    let on = draft.state.on[host].iter().copied();
    on.filter(|vm| !draft.has_moved(*vm) && rules::too_new(draft.problem, *vm).is_none()).collect()
}

fn smalls(draft: &Draft<'_, '_>, other: HostIx) -> Vec<VmIx> {
    let on = draft.state.on[other].iter().copied();
    on.filter(|vm| !draft.has_moved(*vm) && rules::rests(draft.problem, *vm).is_none()).collect()
}

fn best(draft: &mut Draft<'_, '_>, host: HostIx, target: Ratio) -> Option<Exchange> {
    let problem = draft.problem;
    let bigs = bigs(draft, host);
    let mut pairs = 0;
    let mut best: Option<(Rank, Exchange)> = None;
    for other in others(draft, host) {
        for small in smalls(draft, other) {
            // Where it would go does not depend on who comes in its place.
            let mut outlet = None;
            for big in bigs.iter().copied() {
                pairs += 1;
                if pairs > PAIRS_MAX || draft.tired() {
                    return best.map(|(_, exchange)| exchange);
                }
                if problem.vms[big].returns(other).is_some() || !comes(problem, &draft.state, big, other, small) {
                    continue;
                }
                let outlet = *outlet.get_or_insert_with(|| outlet_of(draft, small, other, host));
                for small_to in outlet.into_iter().chain([host]) {
                    let exchange = Exchange { big, small, other, small_to };
                    let Some((suffices, gain)) = worth(draft, host, target, exchange) else { continue };
                    let key = (!suffices, small_to == host, Reverse(gain), big, small);
                    if best.as_ref().is_none_or(|(least, _)| key < *least) {
                        best = Some((key, exchange));
                    }
                }
            }
        }
        draft.spend(bigs.len());
    }
    best.map(|(_, exchange)| exchange)
}

fn comes(problem: &Problem<'_>, state: &State, big: VmIx, other: HostIx, small: VmIx) -> bool {
    let sums = state.sums[other].without(&problem.vms[small].wants).with(&problem.vms[big].wants);
    sums.memory <= problem.hosts[other].memory
        && problem.load(&sums) <= problem.cpu_share(other, problem.policy().fill_to)
        && rules::forbids_without(problem, state, big, other, Some(small), Room::filled(problem)).is_none()
}

/// The cheapest third host for the vm.
fn outlet_of(draft: &mut Draft<'_, '_>, small: VmIx, other: HostIx, host: HostIx) -> Option<HostIx> {
    let problem = draft.problem;
    let open = draft.targets(small, Room::filled(problem), Seek::Emptiest);
    let welcome = |to: &HostIx| *to != host && draft.unpressed(small, other, *to).is_none();
    open.into_iter().filter(welcome).min_by_key(|to| {
        let gain = cost::gain_of_move(problem, &draft.state, small, *to);
        (Reverse(gain), problem.fullness(*to, &draft.state.sums[*to]), *to)
    })
}

/// Whether the exchange brings the host to its target, and what it gains; `None` if the places can't be changed.
fn worth(draft: &Draft<'_, '_>, host: HostIx, target: Ratio, exchange: Exchange) -> Option<(bool, MicroMoney)> {
    let (problem, state) = (draft.problem, &draft.state);
    let Exchange { big, small, other, small_to } = exchange;
    let wants = |vm: VmIx| &problem.vms[vm].wants;
    let cost = cost::of_move(problem, big, other).cost + cost::of_move(problem, small, small_to).cost;
    let (here, there) = (state.sums[host], state.sums[other]);
    let there_after = there.without(wants(small)).with(wants(big));
    let rate = |ix: HostIx, sums| cost::host_rate(problem, ix, sums);
    let saved_there: Rates = state.rates[other] - rate(other, &there_after);
    if small_to != host {
        let here_after = here.without(wants(big));
        let third_after = state.sums[small_to].with(wants(small));
        let saved = saved_there + state.rates[host] - rate(host, &here_after) + state.rates[small_to]
            - rate(small_to, &third_after);
        return Some((!sums_exceed(problem, &here_after, host, target), saved.over(problem) - cost));
    }
    // The hot host stays full: the small vm needs a place there by every rule but load, which must fall.
    problem.placement.allows(small, host).then_some(())?;
    rules::not_taking(problem, state, host)
        .or_else(|| rules::not_beside(problem, state, small, host, Some(big)))
        .or_else(|| draft.unpressed(small, other, host))
        .is_none()
        .then_some(())?;
    let here_after = here.without(wants(big)).with(wants(small));
    // What is too much must become less, and what is not must not become too much.
    let worse = |before: i64, after: i64, most: i64| after > most && after >= before;
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let cpu_most = signed(problem.cpu_share(host, target));
    if worse(signed(problem.load(&here)), signed(problem.load(&here_after)), cpu_most)
        || worse(here.resident, here_after.resident, problem.memory_share(host, target))
        || worse(signed(here.link), signed(here_after.link), signed(problem.link_share(host, target)))
    {
        return None;
    }
    let saved = saved_there + state.rates[host] - rate(host, &here_after);
    Some((!sums_exceed(problem, &here_after, host, target), saved.over(problem) - cost))
}

/// A chain one longer: `big` comes where `small` leaves, `small` where `tiny` leaves, and `tiny` finds room.
fn deep(draft: &mut Draft<'_, '_>, host: HostIx) -> bool {
    let problem = draft.problem;
    let most = problem.policy().moves.plan_max;
    let (bigs, others) = (bigs(draft, host), others(draft, host));
    let mut tries = 0;
    for other in others.iter().copied() {
        for small in smalls(draft, other) {
            let Some(big) = bigs.iter().copied().find(|big| {
                problem.vms[*big].returns(other).is_none() && comes(problem, &draft.state, *big, other, small)
            }) else {
                continue;
            };
            for third in others.iter().copied().filter(|third| *third != other) {
                for tiny in smalls(draft, third) {
                    if !comes(problem, &draft.state, small, third, tiny)
                        || draft.unpressed(small, other, third).is_some()
                    {
                        continue;
                    }
                    tries += 1;
                    if tries > DEEP_TRIES_MAX || draft.tired() {
                        return false;
                    }
                    let Some(fourth) = outlet_of(draft, tiny, third, host).filter(|to| *to != other) else { continue };
                    let mark = draft.len();
                    let asked = Asked::of(problem, &draft.state, host);
                    draft.migrate(tiny, fourth, Reason::MakesRoom { on: third, for_vm: small });
                    draft.migrate(small, third, Reason::MakesRoom { on: other, for_vm: big });
                    draft.migrate(big, other, Reason::Exchange { asked, big, small });
                    let gains = draft.gain_since(mark) >= problem.policy().gain_min;

                    if gains && (most == 0 || draft.may_move()) {
                        return true;
                    }
                    draft.roll_back(mark);
                }
            }
        }
    }
    false
}
