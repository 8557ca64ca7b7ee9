//! What drover itself costs, measured on a cluster of real parts.
//!
//! `drover-bench footprint` measures what server and agents use at rest ([`footprint`]), by what the kernel counts
//! ([`usage`]), and sets it against the bars ([`report`]). A bar that is missed is said and is no failure: the exit
//! status tells only whether it could be measured.

mod footprint;
mod report;
mod usage;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Measures what drover itself costs, on a cluster that it builds on this machine and removes again.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Processor and memory of server and agents, with three hosts, ten idle vms on one of them.
    Footprint(Footprint),
}

#[derive(Debug, Args)]
struct Footprint {
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How long to measure.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=3_600))]
    seconds: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let outcome = match &cli.bench {
        Bench::Footprint(args) => measure_footprint(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("drover-bench: {problem:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure_footprint(args: &Footprint) -> Result<()> {
    let report = footprint::measure(Duration::from_secs(args.seconds))?;
    print!("{report}");
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).context("the figures can't be written as JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}
