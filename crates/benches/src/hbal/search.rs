//! Local search over where instances are: moves and swaps, for the score and a price per instance moved.
//!
//! ```text
//!   price high ──▶ descend: an instance moves, moves on, goes home, or two change places, while score + price falls
//!      ▲              │
//!      │              ├── lower ─▶ until the price is at its end, or as many are away as may be
//!      └── raise ◀────┘   then: those that gain least go home, others go instead; the best of all rounds is the answer
//! ```
//! At a high price only what gains much moves, so the first instances are the best ones; what they have brought out of
//! place is mended at each lower price. Nothing is random: the same cluster gives the same moves.

use super::problem::{OFFLINE, Problem};
use super::state::State;

/// A price below that of the level before.
const PRICE_FALLS_TO: f64 = 0.5;
/// Swaps are many, and worth little before most moves are made: they are looked at from this part of the first price.
const SWAPS_FROM: f64 = 1.0 / 16.0;
/// Prices while instances are exchanged: up, and then down by finer steps.
const PRICE_RISES_TO: f64 = 2.0;
const PRICE_FALLS_FINELY_TO: f64 = 0.65;
/// Times the price is raised once as many are away as may be.
const ROUNDS: usize = 1;
/// Up to so many moves, the best of all is looked for each time.
const STEEPEST_MAX: usize = 32;
/// Sweeps over all instances at one price, at most: each sweep but the last has found something.
const SWEEPS_MAX: usize = 4;
/// Of moves alone, before swaps are looked at.
const MOVE_SWEEPS_MAX: usize = 16;
/// What is less is rounding.
const GAIN_MIN: f64 = 1e-10;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Instances that may be elsewhere in the end.
    pub moves_max: usize,
    /// What an instance must gain at least to be moved, in score.
    pub gain_min: f64,
    /// Candidates looked at, about; the best found until then is the answer.
    pub candidates_max: u64,
}

/// Where instances are better.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// By instance of the problem.
    pub node_of: Vec<usize>,
    pub candidates: u64,
}

pub fn search(problem: &Problem, limits: &Limits) -> Found {
    let mut search = Search {
        state: State::start(problem),
        limits: *limits,
        price: 0.0,
        was_full: false,
        candidates: 0,
        moved: Vec::new(),
        swapped: Vec::new(),
    };
    if limits.moves_max <= STEEPEST_MAX {
        search.steepest();
    } else {
        search.price = search.best_move().map_or(0.0, |(.., change)| -change.max(-OFFLINE / 2.0)).max(limits.gain_min);
        let swaps_from = (search.price * SWAPS_FROM).max(limits.gain_min);
        search.fall(PRICE_FALLS_TO, swaps_from);
    }
    let mut best = (search.state.score, search.state.node_of.clone());
    let rounds = if search.was_full { ROUNDS } else { 0 };
    for _ in 0..rounds {
        search.price *= PRICE_RISES_TO;
        search.state.refresh();
        search.descend(true);
        search.fall(PRICE_FALLS_FINELY_TO, f64::INFINITY);
        if search.state.score < best.0 {
            best = (search.state.score, search.state.node_of.clone());
        }
    }
    Found { node_of: best.1, candidates: search.candidates }
}

struct Search<'a> {
    state: State<'a>,
    limits: Limits,
    price: f64,
    /// As many were away as may be, since the price began to fall.
    was_full: bool,
    candidates: u64,
    /// What the slope promises: by node, and by instance from the next one on.
    moved: Vec<f32>,
    swapped: Vec<f32>,
}

impl Search<'_> {
    fn exhausted(&self) -> bool {
        self.candidates >= self.limits.candidates_max
    }

    fn full(&self) -> bool {
        self.state.away >= self.limits.moves_max
    }

    /// The best move of all, again and again: where few may move, each counts.
    fn steepest(&mut self) {
        while !self.full() && !self.exhausted() {
            self.state.refresh();
            let Some((instance, to, change)) = self.best_move() else { break };
            if change > -self.limits.gain_min {
                break;
            }
            self.state.apply(instance, to, change);
            self.price = -change;
        }
        self.was_full = self.full();
    }

    /// Instance, node, and what the score changes.
    fn best_move(&mut self) -> Option<(usize, usize, f64)> {
        let mut best: Option<(usize, usize, f64)> = None;
        for instance in 0..self.state.node_of.len() {
            self.promise(instance);
            if let Some((to, change)) = self.best_node(instance)
                && best.is_none_or(|(.., least)| change < least)
            {
                best = Some((instance, to, change));
            }
        }
        best
    }

    /// Descends at lower and lower prices, with swaps from `swaps_from` on, until no more may move.
    fn fall(&mut self, step: f64, swaps_from: f64) {
        self.was_full = false;
        loop {
            self.descend(self.price <= swaps_from);
            if self.price <= self.limits.gain_min || self.was_full || self.exhausted() {
                return;
            }
            self.price = (self.price * step).max(self.limits.gain_min);
            self.state.refresh();
        }
    }

    /// Swaps come where no move is left.
    fn descend(&mut self, swaps: bool) {
        for _ in 0..SWEEPS_MAX {
            for _ in 0..MOVE_SWEEPS_MAX {
                if !self.sweep_moves() || self.exhausted() {
                    break;
                }
            }
            if !swaps || !self.sweep_swaps() || self.exhausted() {
                return;
            }
        }
    }

    /// Whether anything was found better.
    fn sweep_moves(&mut self) -> bool {
        let mut found = false;
        for instance in 0..self.state.node_of.len() {
            if self.exhausted() {
                break;
            }
            if self.stays(instance) {
                continue;
            }
            self.promise(instance);
            let Some((to, change)) = self.best_node(instance) else { continue };
            if change + self.price_of(instance, to) < -GAIN_MIN {
                self.state.apply(instance, to, change);
                self.was_full |= self.full();
                found = true;
            }
        }
        found
    }

    fn sweep_swaps(&mut self) -> bool {
        let mut found = false;
        for instance in 0..self.state.node_of.len() {
            if self.exhausted() {
                break;
            }
            if self.stays(instance) {
                continue;
            }
            self.promise(instance);
            if let Some((other, change)) = self.best_swap(instance) {
                let (p, q) = (self.state.node_of[instance], self.state.node_of[other]);
                // Of both together; there is no share of each.
                self.state.apply(instance, q, change);
                self.state.apply(other, p, 0.0);
                self.was_full |= self.full();
                found = true;
            }
        }
        found
    }

    /// One more may not go.
    fn stays(&self, instance: usize) -> bool {
        self.full() && self.state.node_of[instance] == self.state.problem.instances[instance].home
    }

    fn promise(&mut self, instance: usize) {
        self.state.promises(instance, &mut self.moved);
        self.candidates += self.moved.len() as u64;
    }

    /// What the price adds if the instance goes there.
    fn price_of(&self, instance: usize, to: usize) -> f64 {
        let home = self.state.problem.instances[instance].home;
        match (self.state.node_of[instance] == home, to == home) {
            (true, false) => self.price,
            (false, true) => -self.price,
            (true, true) | (false, false) => 0.0,
        }
    }

    /// The node that promises most, and what the score truly changes.
    fn best_node(&mut self, instance: usize) -> Option<(usize, f64)> {
        let state = &self.state;
        let (home, at) = (state.problem.instances[instance].home, state.node_of[instance]);
        // Away it pays no more wherever it goes, and gets the price back at home.
        if at != home {
            self.moved[home] -= self.price as f32;
        }
        let own = std::mem::replace(&mut self.moved[at], f32::INFINITY);
        let mut best = (f32::INFINITY, at);
        for (to, promise) in self.moved.iter().enumerate() {
            if *promise < best.0 && state.takes(to, instance) {
                best = (*promise, to);
            }
        }
        self.moved[at] = own;
        if at != home {
            self.moved[home] += self.price as f32;
        }
        (best.1 != at).then(|| (best.1, state.change(instance, best.1)))
    }

    /// The instance after this one in the order that promises most in exchange, if the exchange is worth its price, and
    /// what the score changes.
    fn best_swap(&mut self, one: usize) -> Option<(usize, f64)> {
        let state = &self.state;
        let p = state.node_of[one];
        if !state.problem.nodes[p].online {
            return None;
        }
        state.promises_of_swaps(one, &self.moved, &mut self.swapped);
        self.candidates += self.swapped.len() as u64;
        // Both could get the price back; what is not worth even that needs no closer look.
        let least = 2.0 * self.price as f32;
        let mut best: Option<(usize, f64)> = None;
        for (at, promise) in self.swapped.iter().enumerate() {
            if *promise >= least {
                continue;
            }
            let other = one + 1 + at;
            let q = state.node_of[other];
            if q == p || !state.problem.nodes[q].online {
                continue;
            }
            let paid = f64::from(*promise) + self.price_of(one, q) + self.price_of(other, p);
            let better = best.is_none_or(|(_, best)| paid < best) && paid < -GAIN_MIN;
            if better && self.away_after(one, other) <= self.limits.moves_max && state.swappable(one, other) {
                best = Some((other, paid));
            }
        }
        let (other, _) = best?;
        let change = state.change_of_swap(one, other);
        let price = self.price_of(one, state.node_of[other]) + self.price_of(other, p);
        (change + price < -GAIN_MIN).then_some((other, change))
    }

    fn away_after(&self, one: usize, other: usize) -> usize {
        let state = &self.state;
        let (p, q) = (state.node_of[one], state.node_of[other]);
        let away = |instance: usize, node: usize| usize::from(state.problem.instances[instance].home != node);
        state.away + away(one, q) + away(other, p) - away(one, p) - away(other, q)
    }
}
