//! Exchange: where no one-way move fits, a big vm of a hot host and a smaller one of another change places, through a
//! third host when neither can come before the other has left.

use super::Draft;
use super::relieve::{self, asked_for, exceeds};
use crate::cost;
use crate::problem::{HostIx, Problem, State, VmIx};
use crate::rules::{self, Room};
use drover_model::{MicroMoney, Ratio};
use std::cmp::Reverse;

/// Pairs looked at for one host.
const PAIRS_MAX: usize = 200_000;
/// Exchanges tried to relieve one host.
const EXCHANGES_MAX: usize = 4;

/// `big` of the hot host against `small` of `other`.
#[derive(Debug, Clone, Copy)]
struct Exchange {
    big: VmIx,
    small: VmIx,
    other: HostIx,
    way: Way,
}

/// Lower is better: suffices, gains, then the lower ids.
type Rank = (bool, Reverse<MicroMoney>, VmIx, VmIx);

#[derive(Debug, Clone, Copy)]
enum Way {
    BigFirst,
    SmallFirst,
    /// The small one waits here.
    Through(HostIx),
}

/// Like [`relieve::relieve`], with exchanges where no one-way move fits.
pub(crate) fn relieve(draft: &mut Draft<'_, '_>, host: HostIx, target: Ratio) -> bool {
    let mark = draft.len();
    let mut exchanges = 0;
    while exceeds(draft.problem, &draft.state, host, target) {
        if draft.len() - mark < relieve::MOVES_MAX && relieve::one_move(draft, host, target) {
            continue;
        }
        if exchanges == EXCHANGES_MAX || !one_exchange(draft, host, target) {
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
    let Some(Exchange { big, small, other, way }) = best(draft, host, target) else { return false };
    let problem = draft.problem;
    let name = |vm: VmIx| &problem.vms[vm].view.name;
    let there = format!(
        "{}, no host has room for {} alone, and {} can take the place of {}",
        asked_for(draft, host),
        name(big),
        name(big),
        name(small)
    );
    let here = format!("it makes room on {} for {}", problem.hosts[other].id, name(big));
    match way {
        Way::BigFirst => {
            draft.migrate(big, other, there);
            draft.migrate(small, host, here);
        }
        Way::SmallFirst => {
            draft.migrate(small, host, here);
            draft.migrate(big, other, there);
        }
        Way::Through(third) => {
            draft.migrate(small, third, here);
            draft.migrate(big, other, there);
            // Where it is welcome to stay there is no need to bring it on.
            if !exceeds(problem, &draft.state, third, problem.policy().fill_to) {
                return true;
            }
            let home = format!("{} only had to let {} pass", problem.hosts[third].id, name(small));
            draft.migrate(small, host, home);
        }
    }
    true
}

fn best(draft: &Draft<'_, '_>, host: HostIx, target: Ratio) -> Option<Exchange> {
    let (problem, state) = (draft.problem, &draft.state);
    let mut pairs = 0;
    let mut best: Option<(Rank, Exchange)> = None;
    let bigs = state.on[host].iter().copied();
    for big in bigs.filter(|vm| !draft.has_moved(*vm) && rules::too_new(problem, *vm).is_none()) {
        for other in (0..problem.hosts.len()).filter(|other| *other != host) {
            let smalls = state.on[other].iter().copied();
            for small in smalls.filter(|vm| !draft.has_moved(*vm) && rules::rests(problem, *vm).is_none()) {
                pairs += 1;
                if pairs > PAIRS_MAX {
                    return best.map(|(_, exchange)| exchange);
                }
                let Some((suffices, gain)) = worth(draft, host, target, (big, small, other)) else { continue };
                let key = (!suffices, Reverse(gain), big, small);
                if best.as_ref().is_some_and(|(least, _)| *least <= key) {
                    continue;
                }
                if let Some(way) = way(problem, state, host, (big, small, other)) {
                    best = Some((key, Exchange { big, small, other, way }));
                }
            }
        }
    }
    best.map(|(_, exchange)| exchange)
}

/// Whether the exchange brings the host to its target, and what it gains; `None` if the places can't be changed.
fn worth(
    draft: &Draft<'_, '_>,
    host: HostIx,
    target: Ratio,
    (big, small, other): (VmIx, VmIx, HostIx),
) -> Option<(bool, MicroMoney)> {
    let (problem, state) = (draft.problem, &draft.state);
    let row = |vm: VmIx| &problem.vms[vm];
    let back = |vm: VmIx, to: HostIx| row(vm).cooldown.is_some_and(|(_, from)| from == Some(to));
    if back(big, other)
        || rules::forbids_without(problem, state, big, other, Some(small), Room::filled(problem)).is_some()
    {
        return None;
    }
    // The hot host stays full: the small vm needs a place there by every rule but load, which must fall.
    rules::never_on(problem, small, host)
        .or_else(|| rules::not_taking(problem, state, host))
        .or_else(|| rules::not_beside(problem, state, small, host, Some(big)))
        .is_none()
        .then_some(())?;
    let (here, there) = (state.sums[host], state.sums[other]);
    let here_after = here.without(row(big)).with(row(small));
    let there_after = there.without(row(small)).with(row(big));
    // What is too much must become less, and what is not must not become too much.
    let worse = |before: i64, after: i64, most: i64| after > most && after >= before;
    let load = |sums| i64::try_from(problem.load(sums)).unwrap_or(i64::MAX);
    let cpu_most = i64::try_from(problem.cpu_share(host, target)).unwrap_or(i64::MAX);
    if worse(load(&here), load(&here_after), cpu_most)
        || worse(here.resident, here_after.resident, problem.memory_share(host, target))
    {
        return None;
    }
    let rate = |ix: HostIx, sums| cost::host_rate(problem, ix, sums);
    let saved = rate(host, &here) + rate(other, &there) - rate(host, &here_after) - rate(other, &there_after);
    let cost = cost::of_move(problem, big, other).cost + cost::of_move(problem, small, host).cost;
    let suffices = problem.load(&here_after) <= problem.cpu_share(host, target)
        && here_after.resident <= problem.memory_share(host, target);
    Some((suffices, saved.over(problem.policy().money.horizon) - cost))
}

/// An order in which every moment keeps the rules.
fn way(problem: &Problem<'_>, state: &State, host: HostIx, (big, small, other): (VmIx, VmIx, HostIx)) -> Option<Way> {
    let passes = |vm, to| rules::forbids(problem, state, vm, to, Room::PASSING).is_none();
    if passes(big, other) {
        return Some(Way::BigFirst);
    }
    if passes(small, host) {
        return Some(Way::SmallFirst);
    }
    let third = |ix: &HostIx| *ix != host && *ix != other && passes(small, *ix);
    (0..problem.hosts.len())
        .filter(third)
        .min_by_key(|ix| (problem.load(&state.sums[*ix]) * 1000 / problem.hosts[*ix].cpu.max(1), *ix))
        .map(Way::Through)
}
