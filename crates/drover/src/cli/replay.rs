//! `drover sim replay`: recorded load under one or several policies, side by side. Needs no server.

use super::output::{Columns, Output, cell};
use super::values::{self, key_value};
use super::{Failure, input, show, what_if};
use clap::Args;
use drover_model::Millis;
use drover_model::policy::{Aim, Policy};
use drover_model::world::World;
use drover_sim::replay::{self, Recording, Report};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const AFTER_HELP: &str = "\
The recording is CSV as `drover load record` writes it (time,vm,cpu_millis,memory_mib), or, with --step, a line for each vm:
its name, then its load at fixed steps in percent of a core. It may be compressed; - is standard input.

A policy is that of the cluster's file with the evidence for hot and cold hosts counted in the recording's steps, and its own
keys on top: balance, save and auto set the aim alone, any other name needs keys.

Examples:
  drover sim replay monday.csv --cluster cluster.txt --chart monday.svg
  drover sim replay day.csv.gz --step 300s --cluster hosts.txt --policy balance --policy tight=aim=save,fill_to=0.8";

#[derive(Debug, Args)]
pub struct Replay {
    #[arg(value_name = "RECORDING")]
    recording: PathBuf,
    /// Hosts, vms and policy as text (docs/planner.md); without vms they are made up from the recording
    #[arg(long, value_name = "FILE")]
    cluster: PathBuf,
    /// Time between two values [default: the smallest distance of two records]
    #[arg(long, value_name = "SPAN", value_parser = values::span)]
    step: Option<Duration>,
    /// Name, or NAME=KEY=VALUE,...; again for more [default: balance, save and auto]
    #[arg(long = "policy", value_name = "NAME[=KEY=VALUE,...]")]
    policies: Vec<String>,
    /// Hosts on and load over time, as SVG
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Everything that happened, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One line of the table, and of `-o json`.
#[derive(Debug, Serialize)]
struct Row {
    policy: String,
    energy_kwh: f64,
    /// Mean over the time.
    hosts_on: f64,
    missed_core_h: f64,
    wanted_core_h: f64,
    moves: usize,
    /// To a host left within six hours.
    returns: usize,
    wakes: u32,
    plans: u32,
    /// Thrown away because the checker objected.
    plans_unsound: u32,
    energy_micro: i64,
    slowness_micro: i64,
    moving_micro: i64,
    wear_micro: i64,
    total_micro: i64,
}

impl Row {
    fn new(policy: &str, report: &Report) -> Self {
        let bill = &report.bill;
        Self {
            policy: policy.to_owned(),
            energy_kwh: report.energy_kwh,
            hosts_on: report.host_on_h / (report.span.as_secs() / 3_600.0).max(f64::MIN_POSITIVE),
            missed_core_h: report.missed_core_h,
            wanted_core_h: report.wanted_core_h,
            moves: report.moves.len(),
            returns: report.returns(),
            wakes: report.wakes,
            plans: report.plans,
            plans_unsound: report.plans_unsound,
            energy_micro: bill.energy.0,
            slowness_micro: bill.slowness.0,
            moving_micro: bill.moving.0,
            wear_micro: bill.wear.0,
            total_micro: bill.total().0,
        }
    }
}

impl Replay {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        let recording = self.recording()?;
        let mut world = what_if::native_world(&self.cluster, output)?;
        recording.inhabit(&mut world).map_err(|stranger| Failure::Usage(stranger.to_string()))?;
        let base = replay::at_pace(&world.policy, recording.step);
        let names = if self.policies.is_empty() {
            ["balance", "save", "auto"].map(str::to_owned).to_vec()
        } else {
            self.policies.clone()
        };
        let policies: Vec<(String, Policy)> =
            names.iter().map(|text| named_policy(text, &base)).collect::<Result<_, _>>()?;
        let mut runs = Vec::with_capacity(policies.len());
        for (name, policy) in policies {
            world.policy = policy;
            let report = run(&world, &recording);
            if let Some(objection) = &report.objection {
                let times = report.plans_unsound;
                output.say(&format!(
                    "{name}: the checker threw away {times} plans, the first because {objection}: a defect of the planner"
                ));
            }
            runs.push((name, report));
        }
        if let Some(path) = &self.chart {
            write(path, &replay::chart(&runs))?;
        }
        if let Some(path) = &self.json {
            let all: Vec<_> = runs.iter().map(|(name, report)| (Row::new(name, report), report)).collect();
            write(path, &(serde_json::to_string_pretty(&all).expect("reports serialise to JSON") + "\n"))?;
        }
        let rows: Vec<Row> = runs.iter().map(|(name, report)| Row::new(name, report)).collect();
        output.emit(&rows, |rows| table(rows, output))
    }

    fn recording(&self) -> Result<Recording, Failure> {
        let text = input::text(&self.recording)?;
        let step = self.step.map(|step| Millis(step.as_millis() as u64));
        let csv = text.trim_start().starts_with(replay::HEADER);
        let recording = match step {
            Some(step) if !csv => Recording::from_rows(&text, step),
            step => Recording::from_csv(&text, step),
        };
        recording.map_err(|error| Failure::Usage(format!("{}: {error}", self.recording.display())))
    }
}

fn run(world: &World, recording: &Recording) -> Report {
    let mut replay = replay::Replay::new(world, recording);
    while replay.step() {}
    replay.finish()
}

/// `save`, or `tight=aim=save,fill_to=0.8`.
fn named_policy(text: &str, base: &Policy) -> Result<(String, Policy), Failure> {
    let (name, changes) = text.split_once('=').unwrap_or((text, ""));
    let mut policy = base.clone();
    match name {
        "balance" => policy.aim = Aim::Balance,
        "save" => policy.aim = Aim::Save,
        "auto" => policy.aim = Aim::Auto,
        _ if changes.is_empty() => {
            return Err(Failure::Usage(format!(
                "--policy {text}: write balance, save or auto, or a name with its keys: {text}=aim=save,fill_to=0.8"
            )));
        }
        _ => {}
    }
    let changes: Vec<(String, String)> = changes
        .split(',')
        .filter(|change| !change.is_empty())
        .map(|change| key_value(change).map_err(|why| Failure::Usage(format!("--policy {text}: {why}"))))
        .collect::<Result<_, _>>()?;
    what_if::change_policy(&mut policy, &changes)?;
    Ok((name.to_owned(), policy))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let error = |source| Failure::File { path: path.display().to_string(), what: "written", source };
    std::fs::write(path, text).map_err(error)
}

fn table(rows: &[Row], output: Output) -> String {
    let names = [
        "POLICY",
        ">KWH",
        ">HOSTS ON",
        ">MISSED CORE-H",
        ">OF WANTED",
        ">MOVES",
        ">RETURNS",
        ">WAKE-UPS",
        ">ENERGY",
        ">SLOWNESS",
        ">MOVING",
        ">WEAR",
        ">TOTAL",
    ];
    let mut columns = Columns::new(output, &names);
    for row in rows {
        let share = if row.wanted_core_h > 0.0 { row.missed_core_h / row.wanted_core_h * 100.0 } else { 0.0 };
        columns.row([
            cell(&row.policy),
            cell(format!("{:.2}", row.energy_kwh)),
            cell(format!("{:.1}", row.hosts_on)),
            cell(format!("{:.2}", row.missed_core_h)),
            cell(format!("{share:.3} %")),
            cell(row.moves),
            cell(row.returns),
            cell(row.wakes),
            cell(show::money(row.energy_micro)),
            cell(show::money(row.slowness_micro)),
            cell(show::money(row.moving_micro)),
            cell(show::money(row.wear_micro)),
            cell(show::money(row.total_micro)),
        ]);
    }
    columns.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::PLAIN;

    #[test]
    fn a_policy_is_a_name_and_its_keys() {
        let base = Policy::default();
        let policy = |text| named_policy(text, &base);
        assert_eq!(policy("save").unwrap().1.aim, Aim::Save);
        let (name, tight) = policy("tight=aim=auto,fill_to=0.8,spare_hosts=").unwrap();
        assert_eq!((name.as_str(), tight.aim, tight.fill_to.0), ("tight", Aim::Auto, 0.8));
        assert_eq!(policy("balance=eagerness=5").unwrap().1.eagerness.0, 5);
        for bad in ["tight", "tight=fill_to", "save=aims=auto", "save=fill_to=0.95"] {
            assert!(matches!(policy(bad), Err(Failure::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn policies_stand_side_by_side_with_a_chart_and_all_that_happened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("hosts.txt"), "host h1 cpu=4 mem=8192 managed\nhost h2 cpu=4 mem=8192 managed\n").unwrap();
        let values = "20,".repeat(239) + "20";
        std::fs::write(path("day.csv"), format!("web_1,{values}\nweb_2,{values}\n")).unwrap();
        let replay = Replay {
            recording: path("day.csv"),
            cluster: path("hosts.txt"),
            step: Some(Duration::from_secs(1)),
            policies: vec!["balance".to_owned(), "thrifty=aim=save,settle_ms=1000".to_owned()],
            chart: Some(path("day.svg")),
            json: Some(path("day.json")),
        };
        replay.run(PLAIN).unwrap();
        assert!(std::fs::read_to_string(path("day.svg")).unwrap().contains(">thrifty: "));
        let json: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path("day.json")).unwrap()).unwrap();
        let kwh = |n: usize| json[n][0]["energy_kwh"].as_f64().unwrap();
        assert!(kwh(1) < kwh(0), "one host of two is switched off: {} and {}", kwh(1), kwh(0));
        assert_eq!(json[1][1]["moves"].as_array().unwrap().len(), 1);
        assert_eq!(json[0][0]["policy"], "balance");
    }
}
