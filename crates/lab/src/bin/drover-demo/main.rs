//! The day of a small data centre, on one machine, out of real parts.
//!
//! `drover-demo` builds a cluster ([`drover_lab`]), plays the day ([`day`]), tells it as it happens ([`teller`]), sums it
//! up ([`summary`]) and cleans up. `drover-demo host-power` is the command that the cluster's power driver
//! calls to switch a host off and on.

mod day;
mod summary;
mod teller;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use drover_lab::cluster::ClusterOptions;
use drover_lab::{LabOptions, LabOutcome, power, process};
use drover_model::HostId;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use teller::Teller;
use tracing_subscriber::EnvFilter;

/// Plays the day of a small data centre on this machine: a hot spot relieves itself, a host goes to sleep and is
/// woken, another is drained and given back, and no guest notices.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    /// Plain lines, even if a terminal watches.
    #[arg(long)]
    headless: bool,
    /// Write the summary here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the cluster up afterwards and say how to look at it.
    #[arg(long)]
    keep: bool,
    #[command(subcommand)]
    command: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The power switch of a demo's host, for the server's `command` power driver.
    HostPower {
        op: PowerOp,
        #[arg(long)]
        state_dir: PathBuf,
        #[arg(long)]
        host: HostId,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PowerOp {
    On,
    Off,
    Status,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let (outcome, failure) = match cli.command {
        // 1 means off: see `switch_host`.
        Some(Verb::HostPower { op, state_dir, host }) => (switch_host(op, &state_dir, &host), 2),
        None => (play(&cli), 1),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("drover-demo: {error:#}");
        ExitCode::from(failure)
    })
}

/// `status` answers by its exit code, as the driver expects: 0 on, 1 off.
fn switch_host(op: PowerOp, state_dir: &std::path::Path, host: &HostId) -> Result<ExitCode> {
    let perform = |op| power::perform(op, state_dir, host);
    match op {
        PowerOp::On => perform(power::PowerOp::On).map(|_| ExitCode::SUCCESS),
        PowerOp::Off => perform(power::PowerOp::Off).map(|_| ExitCode::SUCCESS),
        PowerOp::Status => Ok(if perform(power::PowerOp::Status)? { ExitCode::SUCCESS } else { ExitCode::from(1) }),
    }
}

fn play(cli: &Cli) -> Result<ExitCode> {
    let mut teller = Teller::new(!cli.headless && std::io::stdout().is_terminal());
    teller.say("building a cluster of three hosts out of network namespaces, control groups and QEMU");
    let options = LabOptions {
        kind: "demo",
        sweep_kept: true,
        cluster: ClusterOptions {
            hosts: day::hosts(),
            policy: day::policy(),
            drover: process::programs_dir()?.join("drover"),
            power_switch: Some(std::env::current_exe().context("can't tell where this program is")?),
        },
    };
    let keep = cli.keep;
    let (mut summary, kept) = drover_lab::run(options, async |lab| {
        let summary = day::play(lab, &mut teller).await?;
        if keep {
            lab.keep()?;
        }
        Ok(summary)
    })?;
    teller.restore();
    match &kept {
        LabOutcome::No { leftovers } => summary.leftovers = leftovers.clone().into(),
        LabOutcome::Yes { dir, switch } => println!("{}", how_to_look(dir, switch)?),
    }
    if let Some(path) = &cli.json {
        let text = serde_json::to_string_pretty(&summary).context("the summary can't be written as JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("can't write {}", path.display()))?;
    }
    print!("{summary}");
    Ok(if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn how_to_look(dir: &std::path::Path, switch: &str) -> Result<String> {
    let drover = process::programs_dir()?.join("drover");
    let look =
        format!("ip netns exec {switch} {} --config {}", drover.display(), dir.join("server/client.toml").display());
    Ok(format!(
        "The cluster is left up (--keep). Look at it with\n  {look} top\n  {look} vm ls\n  {look} explain cluster\n\
         Its logs are in {}. The next demo removes it.",
        dir.display()
    ))
}
