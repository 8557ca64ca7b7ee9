//! Chance, all of it from the seed. Each concern draws from a stream of its own, so that changing how often one
//! of them draws leaves the others' luck as it was.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[derive(Debug)]
pub struct Dice(StdRng);

impl Dice {
    pub fn new(seed: u64, stream: u64) -> Self {
        // Neighbouring seeds must not share streams: spread by the golden ratio, as in splitmix64.
        Self(StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(stream)))
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.0.random_bool(probability)
    }

    /// Both ends included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.random_range(low..=high)
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { from.get(self.between(0, from.len() as u64 - 1) as usize) }
    }

    /// A wait with this mean, at most eight times as long (exponential, so that events bunch as real ones do).
    pub fn wait_ms(&mut self, mean_ms: u64) -> u64 {
        let share: f64 = self.0.random_range(0.0..1.0);
        let wait = -(1.0 - share).ln() * mean_ms as f64;
        (wait as u64).min(mean_ms * 8).max(1)
    }
}
