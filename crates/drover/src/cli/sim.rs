//! `drover sim`: a virtual fleet under faults, from a seed. Needs no server.

use super::output::Output;
use super::replay::{self, Replay};
use clap::{Args, Subcommand};
use drover_sim::{Options, Range};
use std::process::ExitCode;

/// Each run injects faults for its minutes, then stops and demands that the cluster comes to rest. A failure prints
/// what happened and the command that replays it.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0  every run was sound
  1  a run crashed
  3  a run did not come to rest (liveness)
  4  a run broke an invariant (correctness)

Example:
  drover sim --seed 1 --seeds 100 --minutes 20")]
pub struct Sim {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Of the first run
    #[arg(long, default_value_t = Options::default().seed)]
    seed: u64,
    /// How many runs, each with the next seed
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Virtual minutes of disturbance
    #[arg(long, default_value_t = Options::default().minutes, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,
    #[arg(long, default_value_t = Options::default().hosts, value_parser = hosts)]
    hosts: usize,
    #[arg(long, default_value_t = Options::default().vms, value_parser = vms)]
    vms: usize,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Recorded load under one or several policies: energy, slowness, moves and money, side by side
    #[command(after_help = replay::AFTER_HELP)]
    Replay(Replay),
}

fn hosts(text: &str) -> Result<usize, String> {
    within(text, 1, 1_000)
}

fn vms(text: &str) -> Result<usize, String> {
    within(text, 0, 10_000)
}

fn within(text: &str, least: usize, most: usize) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("write a number from {least} to {most}"))
}

impl Sim {
    pub fn run(self, output: Output) -> ExitCode {
        let Self { verb, seed, seeds, minutes, hosts, vms } = self;
        if let Some(Verb::Replay(replay)) = verb {
            return super::ended(replay.run(output));
        }
        let code = drover_sim::main_with(&Range { first: Options { seed, minutes, hosts, vms }, seeds });
        ExitCode::from(u8::try_from(code).unwrap_or(1))
    }
}
