//! What drives the world: a policy, asked once per round which vms to move and where.

use super::day::Day;
use super::world::{HostIx, Illegal, Move, World};
use std::time::Instant;

/// Sees the world as it is: hosts with their kinds and vms, and each vm's load at every round up to now.
pub trait Policy {
    fn name(&self) -> String;

    /// The moves of this round. No vm is in migration when it is asked.
    fn round(&mut self, world: &World<'_>) -> Vec<Move>;
}

/// A day that a policy has driven.
pub struct Driven<'a> {
    pub world: World<'a>,
    /// Of each round, in milliseconds.
    pub decisions_ms: Vec<f64>,
}

pub fn drive<'a>(day: &'a Day, placement: &[HostIx], policy: &mut dyn Policy) -> Result<Driven<'a>, Illegal> {
    let mut world = World::new(day, placement);
    let mut decisions_ms = Vec::new();
    while world.advance() {
        let begun = Instant::now();
        let moves = policy.round(&world);
        decisions_ms.push(begun.elapsed().as_secs_f64() * 1000.0);
        world.begin(&moves)?;
    }
    Ok(Driven { world, decisions_ms })
}

/// Nothing moves.
pub struct Stay;

impl Policy for Stay {
    fn name(&self) -> String {
        "no migration".to_owned()
    }

    fn round(&mut self, _: &World<'_>) -> Vec<Move> {
        Vec::new()
    }
}
