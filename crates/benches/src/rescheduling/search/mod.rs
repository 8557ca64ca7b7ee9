//! Which vms to move where: simulated annealing over sets of moves, several chains from seeds.
//!
//! A chain holds a set of at most so many vms that are not where the file has them, feasible as an end. What it
//! weighs is whole blocks of free cores, less a price for each move, both kept up to date by what a change touches.
//! Worse is taken with a probability that falls with the temperature (Kirkpatrick et al., Science 1983). An end that
//! is better than any before counts only once an order for its moves is found.
//!
//! The price of a move is what makes it work: without one a chain fills up with whatever gains anything. What a move
//! has to be worth at this limit is what the lower bound's own price of a move says; chains take it and parts of it,
//! as a chain that pays too much stops short of the limit.
//!
//! Chance comes from the seed and chains do not talk, so with a budget of tries the result is the same on any machine,
//! unless the time limit cuts it.

mod chain;

use super::bound::Bound;
use super::input::Place;
use super::state::Site;
use chain::Chain;
use std::time::Instant;

/// Parts of the bound's price of a move that chains pay, in turn.
const PRICE_PARTS: [f64; 6] = [0.97, 0.9, 1.0, 0.94, 0.7, 0.2];

#[derive(Debug, Clone, Copy)]
pub struct Budget {
    pub seed: u64,
    /// Tries of a chain.
    pub tries: u64,
    pub chains: u64,
    /// They share the chains out, and run theirs one after the other.
    pub threads: u64,
    pub until: Instant,
}

#[derive(Debug, Clone, Default)]
pub struct Found {
    pub blocks_gained: i32,
    /// In an order that is possible.
    pub moves: Vec<(usize, Place)>,
    pub tries: u64,
    /// The time limit cut the search: another run may find something else.
    pub cut: bool,
}

/// The best end of all chains: most blocks, then fewest moves. A thread rests once it has found as much as the bound allows.
pub fn search(site: &Site, limit: usize, bound: &Bound, budget: &Budget) -> Found {
    let threads: Vec<Found> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..budget.threads)
            .map(|thread| {
                let mine = (thread..budget.chains).step_by(budget.threads as usize);
                scope.spawn(move || one_after_the_other(site, limit, bound, budget, mine))
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("a chain does not panic")).collect()
    });
    threads.into_iter().fold(Found::default(), Found::or)
}

fn one_after_the_other(
    site: &Site,
    limit: usize,
    bound: &Bound,
    budget: &Budget,
    chains: impl Iterator<Item = u64>,
) -> Found {
    let mut best = Found::default();
    for chain in chains {
        let price = bound.per_move * PRICE_PARTS[chain as usize % PRICE_PARTS.len()];
        let seed = budget.seed.wrapping_mul(1 << 16).wrapping_add(chain);
        best = best.or(Chain::new(site, limit, price, seed).run(budget));
        if best.blocks_gained >= bound.blocks as i32 {
            break;
        }
    }
    best
}

impl Found {
    fn or(self, other: Self) -> Self {
        let (tries, cut) = (self.tries + other.tries, self.cut || other.cut);
        let better = (other.blocks_gained, self.moves.len()) > (self.blocks_gained, other.moves.len());
        Self { tries, cut, ..if better { other } else { self } }
    }
}
