//! When each step begins and at which rate it sends, from its start to its end: a plan says one figure of each.
//!
//! List scheduling (Graham, SIAM Journal on Applied Mathematics 17(2), 1969): whenever a place is free, of the steps
//! that may begin the one with most behind it does, if its links leave it half of what it could use. In whole
//! milliseconds and bytes, so that sums over links can be checked exactly.

use crate::schedule::bound::{self, Chains};
use crate::schedule::course::Task;
use crate::schedule::{Limits, Problem, Work};
use drover_model::plan::Timing;
use drover_model::{Bytes, Millis};
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// A move begins when its links leave it one part in so many of the rate it could have alone, for that is the rate it keeps.
const SHARE_MIN_OF: u64 = 2;
/// And so many times what its guest dirties.
const OVER_DIRTIED: u64 = 2;

pub(crate) struct Timed {
    /// Earlier steps.
    pub after: Vec<usize>,
    /// Those of `after` that any order must keep.
    pub inherent: Vec<usize>,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Between hosts by index, whose links carry so much; if steps disagree, the most any of them says.
    Move {
        from: usize,
        to: usize,
        out: Bytes,
        into: Bytes,
        work: Work,
    },
    Switch {
        takes: Millis,
    },
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Slot {
    pub start: Millis,
    pub duration: Millis,
    pub bandwidth: Bytes,
}

/// Steps come after all they wait for. The bound holds for any order of them: of `after` only what is inherent counts.
pub(crate) fn times(steps: &[Timed], limits: &Limits) -> (Vec<Slot>, Timing) {
    let slots = Player::new(steps, limits).play();
    let makespan = slots.iter().map(|slot| slot.start + slot.duration).max().unwrap_or(Millis::ZERO);
    let problem = problem(steps, limits);
    let shortest = bound::bound(&problem, &Chains::new(&problem), &|_| true);
    let bound = Millis((shortest * 1000.0).floor().max(0.0) as u64).min(makespan);
    (slots, Timing { makespan, bound })
}

fn problem(steps: &[Timed], limits: &Limits) -> Problem {
    let count = hosts(steps);
    let (mut out, mut into) = (vec![0.0; count], vec![0.0; count]);
    let task = |step: &Timed| {
        let mut task = match step.kind {
            Kind::Move { from, to, out: leaves, into: comes, work } => {
                out[from] = f64::max(out[from], leaves.0 as f64);
                into[to] = f64::max(into[to], comes.0 as f64);
                Task::whole(&work, from, to, best(leaves, comes, limits).0 as f64)
            }
            Kind::Switch { takes } => Task::switch(takes),
        };
        task.after.clone_from(&step.inherent);
        task
    };
    let tasks = steps.iter().map(task).collect();
    let (per_host, at_once) = (limits.per_host.max(1) as usize, limits.at_once.max(1) as usize);
    Problem { tasks, hosts: Vec::new(), out, into, per_host, at_once }
}

fn hosts(steps: &[Timed]) -> usize {
    let most = |step: &Timed| if let Kind::Move { from, to, .. } = step.kind { from.max(to) + 1 } else { 0 };
    steps.iter().map(most).max().unwrap_or(0)
}

/// The rate of a move that has its links to itself.
fn best(out: Bytes, into: Bytes, limits: &Limits) -> Bytes {
    let link = out.min(into);
    if limits.rate_max == Bytes::ZERO { link } else { link.min(limits.rate_max) }
}

/// What keeps a step from beginning.
enum Blocked {
    /// As many run as may.
    AtOnce,
    /// At this list: even ones are of hosts that send, odd ones of those that receive.
    Link(usize),
}

/// Most behind it first.
type Key = (Reverse<Millis>, usize);

struct Player<'s> {
    steps: &'s [Timed],
    limits: &'s Limits,
    slots: Vec<Slot>,
    /// By step: what is behind it at best, itself included.
    tail: Vec<Millis>,
    missing: Vec<usize>,
    behind: Vec<Vec<usize>>,
    /// By host.
    places: Vec<u32>,
    out: Vec<Bytes>,
    into: Vec<Bytes>,
    running: u32,
    /// By end.
    ends: BTreeSet<(Millis, usize)>,
    ready: BTreeSet<Key>,
    /// By link and direction: whose turn it is there when something ends.
    waiting: Vec<BTreeSet<Key>>,
    /// By step: the list it was taken from.
    list: Vec<Option<usize>>,
}

impl<'s> Player<'s> {
    fn new(steps: &'s [Timed], limits: &'s Limits) -> Self {
        let (count, hosts) = (steps.len(), hosts(steps));
        let mut player = Self {
            steps,
            limits,
            slots: vec![Slot::default(); count],
            tail: vec![Millis::ZERO; count],
            missing: steps.iter().map(|step| step.after.len()).collect(),
            behind: vec![Vec::new(); count],
            places: vec![0; hosts],
            out: vec![Bytes::ZERO; hosts],
            into: vec![Bytes::ZERO; hosts],
            running: 0,
            ends: BTreeSet::new(),
            ready: BTreeSet::new(),
            waiting: vec![BTreeSet::new(); 2 * hosts],
            list: vec![None; count],
        };
        for (ix, step) in steps.iter().enumerate() {
            for first in &step.after {
                player.behind[*first].push(ix);
            }
            if let Kind::Move { from, to, out, into, .. } = step.kind {
                player.out[from] = player.out[from].max(out);
                player.into[to] = player.into[to].max(into);
            }
        }
        for ix in (0..count).rev() {
            let behind = player.behind[ix].iter().map(|next| player.tail[*next]).max().unwrap_or(Millis::ZERO);
            let alone = match steps[ix].kind {
                Kind::Move { out, into, work, .. } => lasts(&work, best(out, into, limits)),
                Kind::Switch { takes } => takes,
            };
            player.tail[ix] = behind + alone;
        }
        player.ready = (0..count).filter(|ix| player.missing[*ix] == 0).map(|ix| player.key(ix)).collect();
        player
    }

    fn key(&self, ix: usize) -> Key {
        (Reverse(self.tail[ix]), ix)
    }

    fn play(mut self) -> Vec<Slot> {
        self.begin_all(Millis::ZERO);
        while let Some((now, ix)) = self.ends.pop_first() {
            self.end(ix);
            while let Some((_, also)) = self.ends.first().copied().filter(|(at, _)| *at == now) {
                self.ends.pop_first();
                self.end(also);
            }
            self.begin_all(now);
        }
        self.slots
    }

    fn end(&mut self, ix: usize) {
        if let Kind::Move { from, to, .. } = self.steps[ix].kind {
            let rate = self.slots[ix].bandwidth;
            self.running -= 1;
            self.places[from] -= 1;
            self.places[to] -= 1;
            self.out[from] += rate;
            self.into[to] += rate;
            for list in [2 * from, 2 * from + 1, 2 * to, 2 * to + 1] {
                self.next_of(list);
            }
        }
        for next in std::mem::take(&mut self.behind[ix]) {
            self.missing[next] -= 1;
            if self.missing[next] == 0 {
                self.ready.insert(self.key(next));
            }
        }
    }

    fn next_of(&mut self, list: usize) {
        if let Some(key) = self.waiting[list].pop_first() {
            self.list[key.1] = Some(list);
            self.ready.insert(key);
        }
    }

    fn begin_all(&mut self, now: Millis) {
        while let Some(key) = self.ready.pop_first() {
            let ix = key.1;
            match self.begin(ix, now) {
                Ok(()) => {
                    if let Some(list) = self.list[ix].take() {
                        self.next_of(list);
                    }
                }
                Err(Blocked::AtOnce) => {
                    self.ready.insert(key);
                    return;
                }
                Err(Blocked::Link(at)) => {
                    self.waiting[at].insert(key);
                    // Where it came from there may be room for another.
                    if let Some(list) = self.list[ix].take().filter(|list| *list != at) {
                        self.next_of(list);
                    }
                }
            }
        }
    }

    fn begin(&mut self, ix: usize, now: Millis) -> Result<(), Blocked> {
        let (duration, bandwidth) = match self.steps[ix].kind {
            Kind::Switch { takes } => (takes, Bytes::ZERO),
            Kind::Move { from, to, out, into, work } => {
                let per_host = self.limits.per_host.max(1);
                if self.running >= self.limits.at_once.max(1) {
                    return Err(Blocked::AtOnce);
                }
                let best = best(out, into, self.limits);
                let need = Bytes(best.0.div_ceil(SHARE_MIN_OF)).max(work.dirtied * OVER_DIRTIED).min(best);
                if self.places[from] >= per_host || self.out[from] < need {
                    return Err(Blocked::Link(2 * from));
                }
                if self.places[to] >= per_host || self.into[to] < need {
                    return Err(Blocked::Link(2 * to + 1));
                }
                let rate = best.min(self.out[from]).min(self.into[to]);
                self.running += 1;
                self.places[from] += 1;
                self.places[to] += 1;
                self.out[from] = self.out[from] - rate;
                self.into[to] = self.into[to] - rate;
                (lasts(&work, rate), rate)
            }
        };
        self.slots[ix] = Slot { start: now, duration, bandwidth };
        self.ends.insert((now + duration, ix));
        Ok(())
    }
}

/// Nothing moves in no time.
fn lasts(work: &Work, rate: Bytes) -> Millis {
    work.duration(rate).unwrap_or(work.fixed).max(Millis(1))
}
