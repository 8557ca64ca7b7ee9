//! What drover itself costs, measured on a cluster of real parts.
//!
//! `drover-bench footprint` measures what server and agents use at rest ([`footprint`]), by what the kernel counts
//! ([`usage`]), and sets it against the bars ([`report`]). `drover-bench migration-faults` kills everything that takes
//! part in a migration in each of its phases ([`faults`]). `drover-bench migration` tells what clients of a vm see
//! while it moves, beside stock QEMU ([`migration`]). `drover-bench control` measures the server with the agents of many
//! hosts, which another process plays ([`control`]). A bar that is missed is said and is no failure: the exit
//! status tells only whether it could be measured.

mod control;
mod faults;
mod footprint;
mod migration;
mod report;
mod usage;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use drover_lab::faults::Cell;
use serde::Serialize;
use std::path::{Path, PathBuf};
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
    /// Each victim (processes, hosts, the link) in each phase of a migration: the vm runs exactly once afterwards.
    MigrationFaults(MigrationFaults),
    /// What clients of a vm see while it moves, by stock QEMU and by drover, over links of 1 Gbit/s and of 100 Mbit/s.
    Migration(migration::Arguments),
    /// The real server with the agents of many hosts: processor, memory, answer times, and how soon all are back after a
    /// restart. Needs neither namespaces nor guests.
    Control(control::Arguments),
    /// Plays the agents for `control`, in a process of its own. Ends when its standard input is closed.
    #[command(hide = true)]
    ControlPlayer(control::player::Arguments),
}

#[derive(Debug, Args)]
struct MigrationFaults {
    /// Write what came out here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only this cell, as VICTIM/PHASE (`server/commit`); may be given more than once.
    #[arg(long = "cell", value_name = "CELL")]
    cells: Vec<Cell>,
    /// Keep the logs of cells that fail below this directory.
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
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
        Bench::MigrationFaults(args) => measure_migration_faults(args),
        Bench::Migration(args) => measure_migration(args),
        Bench::Control(args) => measure_control(args),
        Bench::ControlPlayer(args) => control::player::play(args),
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
    write(args.json.as_deref(), &report)
}

fn measure_migration_faults(args: &MigrationFaults) -> Result<()> {
    let cells = if args.cells.is_empty() { Cell::all() } else { args.cells.clone() };
    let report = faults::measure(&cells, args.logs.as_deref())?;
    print!("{report}");
    write(args.json.as_deref(), &report)
}

fn measure_migration(args: &migration::Arguments) -> Result<()> {
    let report = migration::measure(&args.options())?;
    print!("{report}");
    write(args.json.as_deref(), &report)?;
    ensure!(report.complete, "not everything could be measured: see the notes above");
    Ok(())
}

fn measure_control(args: &control::Arguments) -> Result<()> {
    let report = control::measure(args)?;
    print!("{report}");
    write(args.json.as_deref(), &report)
}

fn write(path: Option<&Path>, report: &impl Serialize) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(report).context("the figures can't be written as JSON")?;
    std::fs::write(path, text + "\n").with_context(|| format!("can't write {}", path.display()))
}
