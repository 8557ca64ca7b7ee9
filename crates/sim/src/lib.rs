//! A seeded simulator: hosts, agents, qemus, network, store, people and time are virtual; the control plane and
//! the planner are the real ones. A run disturbs them for a while, then stops, and demands that everything comes to rest.
//!
//! ```text
//!  workload ─asks─▶ shell ─Input─▶ Control ─Effect─▶ store (may fail), links (delay, stall, cut), power drivers
//!  faults ──────────▲                                                        │
//!  invariants ◀── what really happens ── fleet: agents, qemus, streams ◀─────┘
//! ```
//! Everything follows from the seed: a failing run prints the command that replays it. In the manner of
//! TigerBeetle's VOPR, the exit code says what kind of failure it was: see [`FailureKind`].
//!
//! The rules by which an agent admits commands are those of `drover agent`: [`drover_model::admission`].

mod adopt;
mod agent;
mod cluster;
pub mod contract;
mod dice;
mod faults;
mod fleet;
mod hosts;
mod invariants;
mod link;
mod load;
mod network;
mod postcopy;
mod qemu;
pub mod replay;
mod schedule;
mod settle;
mod shell;
pub mod store;
mod workload;

pub use cluster::{Broken, Cluster, host_id};
pub use load::Demand;
pub use qemu::Phase;
pub use workload::VmRequest;

use drover_model::Millis;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Lines of what happened last that a failure shows.
const SHOWN_MAX: usize = 120;

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub seed: u64,
    /// Virtual minutes of disturbance; the time to come to rest is on top.
    pub minutes: u64,
    pub hosts: usize,
    pub vms: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, minutes: 20, hosts: 4, vms: 8 }
    }
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub seed: u64,
    /// Virtual, coming to rest included.
    pub span: Millis,
    /// By how they ended.
    pub migrations: BTreeMap<&'static str, u64>,
    /// By kind.
    pub faults: BTreeMap<String, u64>,
    pub commits: u64,
    pub events: u64,
    pub guests_booted: u64,
    /// To faults: each was said.
    pub memories_lost: u64,
    /// Post-copies that lost their connection and were connected anew.
    pub recovered: u64,
    /// Time that hosts were powered, summed over them.
    pub powered: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Something panicked.
    Crash,
    /// Undisturbed, the cluster did not come to rest.
    Liveness,
    /// An invariant broke.
    Correctness,
}

impl FailureKind {
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Crash => 1,
            Self::Liveness => 3,
            Self::Correctness => 4,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?}: {what}\n{}\nreplay: {}", trace.join("\n"), replay(options))]
pub struct Failure {
    pub kind: FailureKind,
    pub options: Options,
    pub what: String,
    /// What happened last, oldest first: virtual seconds and what.
    pub trace: Vec<String>,
}

fn replay(options: &Options) -> String {
    let Options { seed, minutes, hosts, vms } = options;
    format!("drover sim --seed {seed} --minutes {minutes} --hosts {hosts} --vms {vms}")
}

/// Disturbs a cluster for as long as asked, then demands that it comes to rest.
pub fn run(options: &Options) -> Result<Summary, Failure> {
    let mut cluster = None;
    let ended = catch_unwind(AssertUnwindSafe(|| live(options, &mut cluster)));
    let (kind, what) = match ended {
        Ok(Ok(())) => return Ok(summary(options, cluster.as_ref())),
        Ok(Err(Broken::Invariant(what))) => (FailureKind::Correctness, what),
        Ok(Err(Broken::Liveness(what))) => (FailureKind::Liveness, what),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            (FailureKind::Crash, text.unwrap_or("a panic without a word").to_owned())
        }
    };
    let trace = cluster.as_ref().map(Cluster::trace).unwrap_or_default();
    let shown = trace.len().saturating_sub(SHOWN_MAX);
    Err(Failure { kind, options: options.clone(), what, trace: trace[shown..].to_vec() })
}

fn live(options: &Options, place: &mut Option<Cluster>) -> Result<(), Broken> {
    let cluster = place.insert(Cluster::random(options)?);
    cluster.pass(Millis::secs(options.minutes * 60))?;
    cluster.settle()
}

fn summary(options: &Options, cluster: Option<&Cluster>) -> Summary {
    let Some(cluster) = cluster else { return Summary::default() };
    let tally = &cluster.around.witness.tally;
    Summary {
        seed: options.seed,
        span: cluster.now().since(schedule::EPOCH),
        migrations: tally.migrations.clone(),
        faults: cluster.faults.injected.iter().map(|(fault, count)| (fault.to_string(), *count)).collect(),
        commits: tally.commits,
        events: tally.events,
        guests_booted: tally.guests_booted,
        memories_lost: tally.memories_lost,
        recovered: tally.recovered,
        powered: cluster.powered,
    }
}

impl Summary {
    pub fn moves(&self) -> u64 {
        self.migrations.get("done").copied().unwrap_or(0)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |counts: Vec<String>| if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
        let migrations = self.migrations.iter().map(|(word, count)| format!("{count} {word}")).collect();
        let faults = self.faults.iter().map(|(fault, count)| format!("{count} {fault}")).collect();
        write!(
            f,
            "seed {}: ok after {:.0} virtual minutes. Migrations: {}. Faults: {}. {} commits, {} events, {} boots, {} \
             memories lost to faults and said so, {} post-copies connected anew, {:.1} host hours powered",
            self.seed,
            self.span.as_secs() / 60.0,
            list(migrations),
            list(faults),
            self.commits,
            self.events,
            self.guests_booted,
            self.memories_lost,
            self.recovered,
            self.powered.as_secs() / 3600.0
        )
    }
}

/// What `drover sim` was asked for: `seeds` runs from `first.seed` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub first: Options,
    pub seeds: u64,
}

/// The exit code of `drover sim`: 0, or that of the first failure. Prints a line for each run.
pub fn main_with(range: &Range) -> i32 {
    for seed in range.first.seed..range.first.seed.saturating_add(range.seeds.max(1)) {
        match run(&Options { seed, ..range.first.clone() }) {
            Ok(summary) => println!("{summary}"),
            Err(failure) => {
                eprintln!("{failure}");
                return failure.kind.exit_code();
            }
        }
    }
    0
}
