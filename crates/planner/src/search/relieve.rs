//! Relief of a host that is too full, by one-way moves to hosts that have room.

use super::{Act, Draft};
use crate::cost;
use crate::problem::{HostIx, Problem, State, VmIx};
use crate::rules::{self, Barrier, Room};
use drover_model::plan::Objection;
use drover_model::{MicroMoney, Ratio};
use std::cmp::Reverse;

/// Moves tried to relieve one host.
pub(crate) const MOVES_MAX: usize = 32;

/// A move out of the host, and what it is worth.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    vm: VmIx,
    to: HostIx,
    /// Goes back to the host it recently came from.
    back: bool,
    /// Brings the host down to its target.
    suffices: bool,
    gain: MicroMoney,
    /// Sandpiper's volume over size: demand per memory that must be sent.
    density: u64,
    /// How full it makes its new host, in thousandths.
    fullness: u64,
}

/// Whether the host is asked for more than this share of its processor or memory.
pub(crate) fn exceeds(problem: &Problem<'_>, state: &State, host: HostIx, share: Ratio) -> bool {
    let sums = &state.sums[host];
    problem.load(sums) > problem.cpu_share(host, share) || sums.resident > problem.memory_share(host, share)
}

/// Called hot, and still so after the draft's steps.
pub(crate) fn still_hot(problem: &Problem<'_>, state: &State, host: HostIx) -> bool {
    let (sums, hot_above) = (&state.sums[host], problem.policy().hot_above);
    problem.at_quantile(sums.measured) > problem.cpu_share(host, hot_above)
        || sums.resident > problem.memory_share(host, hot_above)
}

/// Moves vms away until no more than `target` of the host is asked for. False, with nothing changed, if that can't be
/// done or isn't worth its cost.
pub(crate) fn relieve(draft: &mut Draft<'_, '_>, host: HostIx, target: Ratio) -> bool {
    let mark = draft.len();
    while exceeds(draft.problem, &draft.state, host, target) {
        if draft.len() - mark >= MOVES_MAX || !one_move(draft, host, target) {
            draft.roll_back(mark);
            return false;
        }
    }
    if draft.len() > mark && draft.gain_since(mark) < draft.problem.policy().gain_min {
        draft.roll_back(mark);
        return false;
    }
    true
}

/// What can be done for a host that can't be relieved whole: every move that is worth its cost by itself.
pub(crate) fn ease(draft: &mut Draft<'_, '_>, host: HostIx) {
    let fill_to = draft.problem.policy().fill_to;
    for _ in 0..MOVES_MAX {
        let mark = draft.len();
        if !exceeds(draft.problem, &draft.state, host, fill_to) || !one_move(draft, host, fill_to) {
            return;
        }
        if draft.gain_since(mark) < draft.problem.policy().gain_min {
            draft.roll_back(mark);
            return;
        }
    }
}

/// The best single move out of `host`; false if there is none.
pub(crate) fn one_move(draft: &mut Draft<'_, '_>, host: HostIx, target: Ratio) -> bool {
    let (mut candidates, barriers) = candidates(draft, host, target);
    // One move that suffices beats any number that don't; then money; a tie goes to the vm that carries most load
    // per byte sent, the host with most room, the lower ids.
    candidates.sort_by_key(|c| (c.back, !c.suffices, Reverse(c.gain), Reverse(c.density), c.fullness, c.vm, c.to));
    let best = candidates.first().copied();
    if let Some(best) = best {
        for lost in &candidates[1..] {
            let resting = draft.problem.vms[lost.vm].cooldown.filter(|_| lost.back && !best.back);
            let because = match resting {
                Some((left, _)) => Barrier::Cooldown { vm: lost.vm, left }.objection(draft.problem),
                None => Objection::Money { gain: lost.gain, needed: best.gain },
            };
            draft.reject(Act::Migrate { vm: lost.vm, from: host, to: lost.to }, because);
        }
    }
    for (act, barrier) in barriers {
        draft.reject_for(act, barrier);
    }
    let Some(best) = best else { return false };
    let reason = format!("{} and {} has room", asked_for(draft, host), draft.problem.hosts[best.to].id);
    draft.migrate(best.vm, best.to, reason);
    true
}

/// "h1 is asked for 126 % of its processor".
pub(crate) fn asked_for(draft: &Draft<'_, '_>, host: HostIx) -> String {
    let (problem, sums) = (draft.problem, &draft.state.sums[host]);
    let row = &problem.hosts[host];
    let cpu = Ratio(problem.load(sums) as f64 / row.cpu.max(1) as f64);
    let memory = Ratio(sums.resident as f64 / row.memory.max(1) as f64);
    if memory > cpu && memory > problem.policy().fill_to {
        format!("{} has {memory} of its memory in use", row.id)
    } else {
        format!("{} is asked for {cpu} of its processor", row.id)
    }
}

type Lost = Vec<(Act, Barrier)>;

fn candidates(draft: &Draft<'_, '_>, host: HostIx, target: Ratio) -> (Vec<Candidate>, Lost) {
    let (problem, state) = (draft.problem, &draft.state);
    let room = Room::filled(problem);
    let hot = draft.hot.contains(&host);
    let (mut candidates, mut barriers) = (Vec::new(), Vec::new());
    for vm in state.on[host].iter().copied().filter(|vm| !draft.has_moved(*vm)) {
        let row = &problem.vms[vm];
        // A hot host presses; one that is merely fuller than it should be does not.
        let stays = if hot { rules::too_new(problem, vm) } else { rules::rests(problem, vm) };
        let rest = state.sums[host].without(row);
        let suffices = problem.load(&rest) <= problem.cpu_share(host, target)
            && rest.resident <= problem.memory_share(host, target);
        for to in (0..problem.hosts.len()).filter(|to| *to != host) {
            if let Some(barrier) = stays.or_else(|| rules::forbids(problem, state, vm, to, room)) {
                barriers.push((Act::Migrate { vm, from: host, to }, barrier));
                continue;
            }
            candidates.push(Candidate {
                vm,
                to,
                back: row.cooldown.is_some_and(|(_, from)| from == Some(to)),
                suffices,
                gain: cost::gain_of_move(problem, state, vm, to),
                density: row.demand.mean * 1_000_000 / (row.resident >> 20).max(1),
                fullness: problem.load(&state.sums[to].with(row)) * 1000 / problem.hosts[to].cpu.max(1),
            });
        }
    }
    (candidates, barriers)
}
