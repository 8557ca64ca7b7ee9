//! `scale`: what a round costs as clusters grow. In each a tenth of the hosts are asked for more than they have.
//!
//! A round is what the server does each second: the newest samples of every host and vm are taken in, the planner's
//! world is made, judged and planned for, and the plan is checked. Then the plan is applied and judged again: a
//! repair that leaves a hot host is none. `cpu` is the processor time of the thread, which others on the machine don't
//! lengthen.

mod measure;

use crate::io;
use crate::worlds::{Cluster, START, Size, Telemetry};
use anyhow::{Result, bail};
use drover_model::load::{HostSample, Window};
use drover_model::plan::{Action, Findings, Heat, Plan};
use drover_model::policy::Policy;
use drover_model::{Millis, TimeMs};
use drover_planner::forecast::vm_demand;
use drover_planner::{apply, check, detect, plan, predict::Predictor};
use measure::{Spread, Stopwatch, peak_memory_mib};
use serde::Serialize;
use std::path::PathBuf;

/// Name, size, hosts to be lost at once with room kept for their vms, and the bar in seconds.
const SIZES: [(&str, Size, u32, Option<f64>); 4] = [
    ("100", Size { hosts: 100, vms_per_host: 10, rules: 60, overloaded_percent: 10 }, 0, None),
    ("1000", Size { hosts: 1_000, vms_per_host: 10, rules: 600, overloaded_percent: 10 }, 0, None),
    ("rules", Size { hosts: 5_000, vms_per_host: 6, rules: 3_000, overloaded_percent: 10 }, 1, Some(2.0)),
    ("10000", Size { hosts: 10_000, vms_per_host: 10, rules: 6_000, overloaded_percent: 10 }, 0, Some(3.0)),
];
/// Of the largest size.
const MEMORY_BAR_MIB: f64 = 1024.0;
/// Plans made one after another until nothing is hot.
const PLANS_MAX: usize = 5;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Of the made-up clusters.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this one: 100, 1000, rules or 10000. Can be given several times.
    #[arg(long = "size", value_name = "SIZE")]
    sizes: Vec<String>,
    /// Hosts that may be lost with room kept for their vms, instead of what each size has.
    #[arg(long, value_name = "N")]
    spare_hosts: Option<u32>,
    /// Rounds measured of each; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(Debug, Serialize)]
struct Figures {
    bench: &'static str,
    seed: u64,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    size: &'static str,
    hosts: usize,
    vms: usize,
    rules: usize,
    spare_hosts: u32,
    overloaded: usize,
    load_in: Spread,
    /// Of the demand of every vm, alone; detection and planning make it each for themselves.
    forecast: Spread,
    findings: Spread,
    plan: Spread,
    check: Spread,
    cycle: Spread,
    moves: usize,
    hot_before: usize,
    /// After the first plan, and how many plans it took until none was, if that many did.
    hot_after: usize,
    plans_until_none: Option<usize>,
    violations: usize,
    /// What the first violation is, if any.
    violation: Option<String>,
    /// Of the process; known for the first, and largest, cluster only.
    peak_memory_mib: Option<f64>,
    bar_s: Option<f64>,
    bar_met: Option<bool>,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(unknown) = args.sizes.iter().find(|size| SIZES.iter().all(|(name, ..)| name != size)) {
        bail!("{unknown:?} is no size; there is: {}", SIZES.map(|(name, ..)| name).join(", "));
    }
    let wanted = |name: &str| args.sizes.is_empty() || args.sizes.iter().any(|size| size == name);
    println!(
        "{:>6} {:>6} {:>7} {:>6} {:>9} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10} {:>7} {:>5} {:>9}",
        "size",
        "hosts",
        "vms",
        "rules",
        "load in",
        "forecast",
        "findings",
        "plan",
        "check",
        "cycle",
        "cpu",
        "moves",
        "hot",
        "memory"
    );
    // Largest first: the peak of the process is then its own.
    let mut rows: Vec<Row> = Vec::new();
    for entry in SIZES.iter().rev().filter(|(name, ..)| wanted(name)) {
        let mut row = row(args, entry);
        row.peak_memory_mib = row.peak_memory_mib.filter(|_| rows.is_empty());
        row.print();
        rows.push(row);
    }
    rows.reverse();
    io::write_json(args.json.as_deref(), &Figures { bench: "scale", seed: args.seed, rows })
}

fn row(args: &Args, (name, size, spare_hosts, bar_s): &(&'static str, Size, u32, Option<f64>)) -> Row {
    let spare_hosts = args.spare_hosts.unwrap_or(*spare_hosts);
    let policy = Policy { spare_hosts, ..Policy::default() };
    let cluster = Cluster::new(args.seed, size, policy);
    let mut telemetry = Telemetry::new(&cluster, args.seed);
    let mut now = START;
    let mut next = || {
        now = now.plus(Millis::secs(1));
        now
    };
    for _ in 0..Window::<HostSample>::SAMPLES_MAX {
        telemetry.take(&cluster, next());
    }
    let predictor = Predictor::new();
    let rounds: Vec<Round> =
        (0..args.rounds.max(1)).map(|_| Round::measure(&cluster, &mut telemetry, next(), &predictor)).collect();
    let peak_memory_mib = peak_memory_mib();
    let last = rounds.last().expect("there is at least one round");
    let world = telemetry.world(&cluster, now);
    let violations = check(&world, &last.plan);
    let mut hot = Vec::new();
    let (mut after, mut todo) = (apply(&world, &last.plan), None);
    for _ in 0..PLANS_MAX {
        let findings = detect(&after);
        hot.push(hot_count(&findings));
        if hot_count(&findings) == 0 {
            todo = Some(hot.len());
            break;
        }
        after = apply(&after, &plan(&after, &findings, &predictor));
    }
    let spread = |of: fn(&Round) -> &Stopwatch| Spread::of(rounds.iter().map(of));
    let cycle = spread(|round| &round.cycle);
    let within = |peak: Option<f64>| *name != "10000" || peak.is_some_and(|peak| peak <= MEMORY_BAR_MIB);
    Row {
        size: name,
        hosts: size.hosts,
        vms: cluster.world.vms.len(),
        rules: cluster.world.rules.len(),
        spare_hosts,
        overloaded: cluster.overloaded,
        load_in: spread(|round| &round.load_in),
        forecast: spread(|round| &round.forecast),
        findings: spread(|round| &round.findings),
        plan: spread(|round| &round.planned),
        check: spread(|round| &round.checked),
        moves: last.plan.steps.iter().filter(|step| matches!(step.action, Action::Migrate { .. })).count(),
        hot_before: last.hot,
        hot_after: hot[0],
        plans_until_none: todo,
        violations: violations.len(),
        violation: violations.first().map(ToString::to_string),
        peak_memory_mib,
        bar_s: *bar_s,
        bar_met: bar_s.map(|bar| {
            cycle.median_ms <= bar * 1000.0 && hot[0] == 0 && violations.is_empty() && within(peak_memory_mib)
        }),
        cycle,
    }
}

struct Round {
    load_in: Stopwatch,
    forecast: Stopwatch,
    findings: Stopwatch,
    planned: Stopwatch,
    checked: Stopwatch,
    cycle: Stopwatch,
    hot: usize,
    plan: Plan,
}

impl Round {
    fn measure(cluster: &Cluster, telemetry: &mut Telemetry, now: TimeMs, predictor: &Predictor) -> Self {
        let mut cycle = Stopwatch::start();
        let mut load_in = Stopwatch::start();
        telemetry.take(cluster, now);
        let world = telemetry.world(cluster, now);
        load_in.stop();
        let mut findings = Stopwatch::start();
        let found = detect(&world);
        findings.stop();
        let mut planned = Stopwatch::start();
        let plan = plan(&world, &found, predictor);
        planned.stop();
        let mut checked = Stopwatch::start();
        std::hint::black_box(check(&world, &plan));
        checked.stop();
        cycle.stop();
        let mut forecast = Stopwatch::start();
        let ahead = world.policy.forecast_ahead;
        std::hint::black_box(
            world.vms.values().filter_map(|vm| vm_demand(&world, vm, ahead)).map(|f| f.mean).sum::<u64>(),
        );
        forecast.stop();
        Self { load_in, forecast, findings, planned, checked, cycle, hot: hot_count(&found), plan }
    }
}

fn hot_count(findings: &Findings) -> usize {
    findings.hosts.values().filter(|finding| finding.heat == Heat::Hot).count()
}

impl Row {
    fn print(&self) {
        let memory = self.peak_memory_mib.map_or_else(|| "?".to_owned(), |mib| format!("{mib:.0} MiB"));
        println!(
            "{:>6} {:>6} {:>7} {:>6} {:>6.0} ms {:>6.0} ms {:>7.0} ms {:>7.0} ms {:>7.0} ms {:>7.0} ms {:>7.0} ms {:>7} {:>2}>{:<2} {:>9}{}",
            self.size,
            self.hosts,
            self.vms,
            self.rules,
            self.load_in.median_ms,
            self.forecast.median_ms,
            self.findings.median_ms,
            self.plan.median_ms,
            self.check.median_ms,
            self.cycle.median_ms,
            self.cycle.cpu_median_ms.unwrap_or(f64::NAN),
            self.moves,
            self.hot_before,
            self.hot_after,
            memory,
            match (self.bar_s, self.bar_met) {
                (Some(bar), Some(true)) => format!("  within {bar} s"),
                (Some(bar), _) => format!("  NOT within {bar} s, repaired and sound"),
                (None, _) => String::new(),
            }
        );
        if let Some(violation) = &self.violation {
            println!("       the checker has {} objections: {violation}", self.violations);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cluster_is_repaired_and_the_plan_is_sound() {
        let args = Args { json: None, seed: 2, sizes: Vec::new(), spare_hosts: None, rounds: 1 };
        let size = Size { hosts: 20, vms_per_host: 5, rules: 0, overloaded_percent: 10 };
        let row = row(&args, &("small", size, 0, Some(1e9)));
        assert!(row.hot_before > 0 && row.moves > 0, "{row:?}");
        assert_eq!((row.hot_after, row.violations, row.bar_met), (0, 0, Some(true)), "{row:?}");
    }
}
