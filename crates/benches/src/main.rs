//! Benches that compute: the product's own judgement on recorded or made-up input, beside what others make of it.
//!
//! `drover-figures NAME` prints a table and writes the figures as JSON. What a bench measures stands in its module; a
//! bar that is missed is said and is no failure. Exit status 2: an input is not there.

mod forecast;
mod io;
mod pingpong;
mod planetlab;
mod prediction;
mod random;
mod scale;
mod schedule;
mod worlds;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Figures that are computed, not measured on a cluster.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Whether forecasts' intervals hold what comes, on recorded days.
    Forecast(forecast::Args),
    /// Whether vms are sent to and fro in a week of noisy load.
    Pingpong(pingpong::Args),
    /// What policies of consolidation make of recorded days: energy, slowness and moves, beside the published ones.
    Planetlab(planetlab::Args),
    /// How far predicted migration times are from real ones, on instances held back.
    Prediction(prediction::Args),
    /// What a round costs as clusters grow.
    Scale(scale::Args),
    /// How near the end of many migrations is to what no order can beat, and how long planning them takes.
    Schedule(schedule::Args),
}

/// Exit status for an input that is not there.
const EXIT_ABSENT: u8 = 2;

fn main() -> ExitCode {
    match dispatch(&Cli::parse().bench) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("drover-figures: {problem:#}");
            if problem.is::<io::Absent>() { EXIT_ABSENT.into() } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Forecast(args) => forecast::run(args),
        Bench::Pingpong(args) => pingpong::run(args),
        Bench::Planetlab(args) => planetlab::run(args),
        Bench::Prediction(args) => prediction::run(args),
        Bench::Scale(args) => scale::run(args),
        Bench::Schedule(args) => schedule::run(args),
    }
}
