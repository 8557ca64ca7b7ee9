//! Local search over where instances are: moves and swaps, for the score and a price per instance moved.
//!
//! ```text
//!   price high ──▶ descend: an instance moves, moves on, goes home, or two change places, while score + price falls
//!      ▲              │
//!      └── lower ◀────┘   until the price is at its end, or as many are away as may be
//! ```
//! At a high price only what gains much moves, so the first instances are the best ones; what they have brought out of
//! place is mended at each lower price. Nothing is random: the same cluster gives the same moves.

use super::problem::{DIMENSIONS, OFFLINE, Problem, Row};
use super::state::{State, dot, squared};

/// A price below that of the level before.
const PRICE_FALLS_TO: f64 = 0.6;
/// Sweeps over all instances at one price, at most: each sweep but the last has found something.
const SWEEPS_MAX: usize = 8;
/// What is less is rounding.
const GAIN_MIN: f64 = 1e-10;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Instances that may be elsewhere in the end.
    pub moves_max: usize,
    /// What an instance must gain at least to be moved, in score.
    pub gain_min: f64,
    /// Candidates looked at; the best found until then is the answer.
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
    let mut search = Search { state: State::start(problem), limits: *limits, price: 0.0, candidates: 0 };
    search.price = search.price_at_start();
    loop {
        search.descend();
        if search.price <= limits.gain_min || search.exhausted() {
            break;
        }
        search.price = (search.price * PRICE_FALLS_TO).max(limits.gain_min);
        search.state.refresh();
    }
    Found { node_of: search.state.node_of, candidates: search.candidates }
}

struct Search<'a> {
    state: State<'a>,
    limits: Limits,
    price: f64,
    candidates: u64,
}

impl Search<'_> {
    fn exhausted(&self) -> bool {
        self.candidates >= self.limits.candidates_max
    }

    /// What the best move gains at the start.
    fn price_at_start(&mut self) -> f64 {
        let mut price = self.limits.gain_min;
        for instance in 0..self.state.node_of.len() {
            if let Some((_, change)) = self.best_node(instance) {
                price = price.max(-change.max(-OFFLINE / 2.0));
            }
        }
        price
    }

    fn descend(&mut self) {
        for _ in 0..SWEEPS_MAX {
            let found = self.sweep_moves();
            let swapped = self.sweep_swaps();
            if !(found || swapped) || self.exhausted() {
                return;
            }
        }
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

    fn sweep_moves(&mut self) -> bool {
        let mut found = false;
        for instance in 0..self.state.node_of.len() {
            if self.exhausted() {
                break;
            }
            let Some((to, change)) = self.best_node(instance) else { continue };
            if change + self.price_of(instance, to) < -GAIN_MIN {
                self.state.apply(instance, to, change);
                found = true;
            }
        }
        found
    }

    /// By the slope; the change is the true one.
    fn best_node(&mut self, instance: usize) -> Option<(usize, f64)> {
        let state = &self.state;
        let guest = &state.problem.instances[instance];
        let at = state.node_of[instance];
        let full = at == guest.home && state.away >= self.limits.moves_max;
        let mut squares = guest.adds;
        squares.iter_mut().for_each(|square| *square *= *square);
        let mut best: Option<(usize, f64)> = None;
        if !full {
            for to in 0..state.slopes.linear.len() {
                let mut promise = dot(&guest.adds, &state.slopes.linear[to]) + self.price_of(instance, to);
                if !state.slopes.alike {
                    promise += dot(&squares, &state.slopes.square[to]);
                }
                if to != at && best.is_none_or(|(_, least)| promise < least) && state.takes(to, instance) {
                    best = Some((to, promise));
                }
            }
        }
        self.candidates += self.state.slopes.linear.len() as u64;
        best.map(|(to, _)| (to, self.state.change(instance, to)))
    }

    fn sweep_swaps(&mut self) -> bool {
        let mut found = false;
        for one in 0..self.state.node_of.len() {
            if self.exhausted() {
                break;
            }
            if let Some((other, change)) = self.best_swap(one) {
                let (p, q) = (self.state.node_of[one], self.state.node_of[other]);
                let price = self.price_of(one, q) + self.price_of(other, p);
                if change + price < -GAIN_MIN && self.away_after(one, other) <= self.limits.moves_max {
                    // The first half's share of the change is not needed: only the sum counts.
                    self.state.apply(one, q, change);
                    self.state.apply(other, p, 0.0);
                    found = true;
                }
            }
        }
        found
    }

    fn away_after(&self, one: usize, other: usize) -> usize {
        let state = &self.state;
        let (p, q) = (state.node_of[one], state.node_of[other]);
        let away = |instance: usize, node: usize| usize::from(state.problem.instances[instance].home != node);
        state.away + away(one, q) + away(other, p) - away(one, p) - away(other, q)
    }

    /// With instances that come later in the order: every pair is seen once in a sweep.
    fn best_swap(&mut self, one: usize) -> Option<(usize, f64)> {
        let state = &self.state;
        let problem = state.problem;
        let guest = &problem.instances[one];
        let p = state.node_of[one];
        if !problem.nodes[p].online {
            return None;
        }
        let mut best: Option<(usize, f64)> = None;
        let mut looked = 0;
        for (q, others) in state.on.iter().enumerate() {
            if q == p || !problem.nodes[q].online {
                continue;
            }
            let (linear, square) = (&state.slopes.linear, &state.slopes.square);
            let slope: Row = std::array::from_fn(|d| linear[q][d] - linear[p][d]);
            let bend: Row = std::array::from_fn(|d| square[q][d] + square[p][d]);
            let price = self.price_of(one, q);
            for &other in others.iter().filter(|other| **other > one) {
                looked += 1;
                let theirs = &problem.instances[other].adds;
                let adds: Row = std::array::from_fn(|d| guest.adds[d] - theirs[d]);
                let promise = dot(&adds, &slope) + squared(&adds, &bend) + price + self.price_of(other, p);
                if promise < best.map_or(-GAIN_MIN, |(_, least)| least) && state.swappable(one, other) {
                    best = Some((other, promise));
                }
            }
        }
        self.candidates += looked;
        const { assert!(DIMENSIONS == 8) };
        best.map(|(other, _)| (other, self.state.change_of_swap(one, other)))
    }
}
