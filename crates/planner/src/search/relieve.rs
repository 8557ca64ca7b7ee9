//! Relief of a host that is too full, by one-way moves to hosts that have room.

use super::{Act, Asked, Draft, Reason, Seek};
use crate::cost;
use crate::problem::{HostIx, Problem, State, Sums, VmIx};
use crate::rules::{self, Barrier, Room};
use drover_model::plan::{Objection, Rejected, Step};
use drover_model::{MicroMoney, Ratio};
use std::cmp::Reverse;

/// Moves tried to relieve one host.
pub(crate) const MOVES_MAX: usize = 32;
/// Losing moves of one choice that are noted.
const LOSERS_MAX: usize = 24;

/// A move out of the host, and what it is worth.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    vm: VmIx,
    to: HostIx,
    /// Goes back to a host it recently came from.
    back: bool,
    /// Brings the host down to its target.
    suffices: bool,
    gain: MicroMoney,
    /// Sandpiper's volume over size: demand per memory that must be sent.
    density: u64,
    /// How full it makes its new host, in thousandths.
    fullness: u64,
}

type Rank = (bool, bool, Reverse<MicroMoney>, Reverse<u64>, u64, VmIx, HostIx);

impl Candidate {
    /// One move that suffices beats any number that don't; then money; a tie goes to the vm that carries most load per
    /// byte sent, the host with most room, the lower ids.
    fn rank(&self) -> Rank {
        (self.back, !self.suffices, Reverse(self.gain), Reverse(self.density), self.fullness, self.vm, self.to)
    }
}

/// Whether that is more than this share of the host's processor, memory or link.
pub(crate) fn sums_exceed(problem: &Problem<'_>, sums: &Sums, host: HostIx, share: Ratio) -> bool {
    problem.load(sums) > problem.cpu_share(host, share)
        || sums.resident > problem.memory_share(host, share)
        || sums.link > problem.link_share(host, share)
}

/// Whether the host is asked for more than this share of its processor, memory or link.
pub(crate) fn exceeds(problem: &Problem<'_>, state: &State, host: HostIx, share: Ratio) -> bool {
    sums_exceed(problem, &state.sums[host], host, share)
}

/// Called hot, and still so after the draft's changes.
pub(crate) fn still_hot(problem: &Problem<'_>, state: &State, host: HostIx) -> bool {
    let (sums, hot_above) = (&state.sums[host], problem.policy().hot_above);
    problem.at_quantile(sums) > problem.cpu_share(host, hot_above)
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
    if !draft.may_move() {
        return false;
    }
    let mut candidates = candidates(draft, host, target);
    let Some(best) = candidates.iter().copied().min_by_key(Candidate::rank) else { return false };
    let mut alternatives = Vec::new();
    if draft.notes_rejected() {
        candidates.sort_by_key(Candidate::rank);
        for lost in candidates.iter().skip(1).take(LOSERS_MAX) {
            let act = Act::Migrate { vm: lost.vm, from: host, to: lost.to };
            let because = why_lost(draft, lost, &best);
            if alternatives.len() < Step::ALTERNATIVES_MAX {
                alternatives.push(Rejected { action: super::action(draft.problem, act, 0), because: because.clone() });
            }
            draft.reject(act, because);
        }
        note_barriers(draft, host);
    }
    // What stands on the emptiest host is what everybody asks first.
    if let Some(obvious) = obvious(draft, host, &best) {
        alternatives.truncate(Step::ALTERNATIVES_MAX - 1);
        alternatives.push(obvious);
    }
    let (asked, to) = (Asked::of(draft.problem, &draft.state, host), best.to);
    let reason = if draft.was_hot(host) { Reason::Relief { asked, to } } else { Reason::Spread { asked, to } };
    draft.migrate_rather(best.vm, best.to, reason, alternatives);
    true
}

fn why_lost(draft: &Draft<'_, '_>, lost: &Candidate, best: &Candidate) -> Objection {
    let problem = draft.problem;
    match problem.vms[lost.vm].returns(lost.to).filter(|_| lost.back && !best.back) {
        Some(left) => Barrier::Return { vm: lost.vm, host: lost.to, left }.objection(problem),
        None => Objection::Money { gain: lost.gain, needed: best.gain },
    }
}

/// The rule that forbade the emptiest host to the vm, if one did.
fn obvious(draft: &Draft<'_, '_>, from: HostIx, best: &Candidate) -> Option<Rejected> {
    let (problem, state) = (draft.problem, &draft.state);
    let to = draft.emptiest().filter(|to| *to != from && *to != best.to)?;
    let barrier = rules::forbids(problem, state, best.vm, to, Room::filled(problem))?;
    Some(draft.lost(Act::Migrate { vm: best.vm, from, to }, barrier.objection(problem)))
}

/// Why a vm of the host is no candidate at all. A hot host presses; one that is merely fuller than it should be does not.
fn stays(draft: &Draft<'_, '_>, host: HostIx, vm: VmIx) -> Option<Barrier> {
    let hot = draft.was_hot(host);
    if hot { rules::too_new(draft.problem, vm) } else { rules::rests(draft.problem, vm) }
}

/// With the moves that rules forbid, as far as there is room for notes.
fn note_barriers(draft: &mut Draft<'_, '_>, host: HostIx) {
    let problem = draft.problem;
    for vm in draft.state.on[host].clone() {
        for to in (0..problem.hosts.len()).filter(|to| *to != host) {
            if !draft.notes_rejected() {
                return;
            }
            let room = Room::filled(problem);
            let barrier = stays(draft, host, vm).or_else(|| rules::forbids(problem, &draft.state, vm, to, room));
            if let Some(barrier) = barrier.filter(|_| !draft.has_moved(vm)) {
                draft.reject_for(Act::Migrate { vm, from: host, to }, barrier);
            }
        }
    }
}

fn candidates(draft: &mut Draft<'_, '_>, host: HostIx, target: Ratio) -> Vec<Candidate> {
    let problem = draft.problem;
    let room = Room::filled(problem);
    let pressed = draft.was_hot(host);
    let mut candidates = Vec::new();
    for vm in draft.state.on[host].clone() {
        if draft.has_moved(vm) || stays(draft, host, vm).is_some() {
            continue;
        }
        let row = &problem.vms[vm];
        let suffices = !sums_exceed(problem, &draft.state.sums[host].without(&row.wants), host, target);
        for to in draft.targets(vm, room, Seek::Emptiest) {
            if !pressed && draft.unpressed(vm, host, to).is_some() {
                continue;
            }
            candidates.push(Candidate {
                vm,
                to,
                back: row.returns(to).is_some(),
                suffices,
                gain: cost::gain_of_move(problem, &draft.state, vm, to),
                density: row.wants.mean * 1_000_000 / (row.wants.resident.max(0) as u64 >> 20).max(1),
                fullness: problem.fullness(to, &draft.state.sums[to].with(&row.wants)),
            });
        }
    }
    if candidates.is_empty() {
        note_barriers(draft, host);
    }
    candidates
}
