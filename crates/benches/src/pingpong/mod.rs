//! `pingpong`: a week of noisy load, and whether vms are sent to and fro in it.
//!
//! The product's planner decides once a minute, with the loop around it that the server has: moves and boots take their
//! time, effects settle, vms cool down, daily patterns are learned. One week under each aim. Counted are the moves, and
//! among them *returns*: to a host that the vm had left within six hours. A return has a cause if the load truly came
//! back, held against samples that the planner can't choose ([`Cause`]); the bar is that none is without.

mod load;

use crate::io;
use crate::worlds::{self, START};
use anyhow::{Context, Result};
use drover_model::inventory::Capacity;
use drover_model::policy::{Aim, KOfN, Policy};
use drover_model::world::{HostView, VmView, World};
use drover_model::{Bytes, CpuMillis, HostId, Millis, Revision, TimeMs};
use drover_sim::replay::{Move, Recording, Replay, at_pace};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

const STEP: Millis = Millis::secs(60);
const DAY: Millis = Millis::secs(86_400);
const HOST: Capacity = Capacity { cpu: CpuMillis(16_000), memory: Bytes(96 << 30) };
const BOOT_TIME: Millis = Millis::secs(180);
/// Of the pool's demand, over what it was when the host was emptied.
const CAME_BACK: f64 = 1.1;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Of the made-up load.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 40)]
    hosts: usize,
    #[arg(long, default_value_t = 400)]
    vms: usize,
    #[arg(long, default_value_t = 7)]
    days: u64,
}

#[derive(Debug, Serialize)]
struct Figures {
    bench: &'static str,
    seed: u64,
    hosts: usize,
    vms: usize,
    days: u64,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    aim: Aim,
    moves: usize,
    moves_per_vm_day: f64,
    returns: usize,
    returns_from_hot: usize,
    returns_load_back: usize,
    returns_without_cause: usize,
    /// The first of those, if any.
    first_without_cause: Option<String>,
    wake_ups: u32,
    energy_kwh: f64,
    wanted_core_h: f64,
    missed_core_h: f64,
    plans: u32,
    /// Plans that the checker objected to, and its first objection.
    plans_unsound: u32,
    objection: Option<String>,
    steps_failed: u32,
    money_per_day: f64,
    took_s: f64,
    bar_met: bool,
}

/// Why a vm returned, by what was measured in the last samples before (as many as the policy takes for evidence that a
/// host is hot).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The host it left now was asked for more than the hot line in enough of them.
    FromHot,
    /// The host it returned to had been switched off, and in enough of them the pool was asked for a tenth more than when
    /// the vm left.
    LoadBack,
    None,
}

pub fn run(args: &Args) -> Result<()> {
    let recording = load::week(args.seed, args.vms, (args.days * DAY.0 / STEP.0) as usize, STEP);
    println!(
        "{:>8} {:>7} {:>11} {:>8} {:>9} {:>10} {:>9} {:>9} {:>11} {:>11} {:>8} {:>9}",
        "aim",
        "moves",
        "per vm, day",
        "returns",
        "from hot",
        "load back",
        "no cause",
        "wake-ups",
        "energy",
        "missed",
        "unsound",
        "took"
    );
    let mut rows = Vec::new();
    for aim in [Aim::Balance, Aim::Save, Aim::Auto] {
        let policy = at_pace(&Policy { aim, ..Policy::default() }, STEP);
        let row = week(args, &recording, policy)?;
        row.print();
        rows.push(row);
    }
    let figures =
        Figures { bench: "pingpong", seed: args.seed, hosts: args.hosts, vms: args.vms, days: args.days, rows };
    io::write_json(args.json.as_deref(), &figures)
}

fn week(args: &Args, recording: &Recording, policy: Policy) -> Result<Row> {
    let begun = Instant::now();
    let aim = policy.aim;
    let (hot_above, evidence) = (policy.hot_above.0, policy.hot_evidence);
    let world =
        world(args.hosts, args.vms, recording, policy).context("no world can be made: give some hosts and vms")?;
    let mut replay = Replay::new(&world, recording);
    let mut history = History::default();
    while replay.step() {
        history.take(replay.world());
    }
    let report = replay.finish();
    let causes: Vec<(&Move, Cause)> = report
        .moves
        .iter()
        .filter_map(|step| Some((step, history.cause(step, step.returned_after?, hot_above, evidence))))
        .collect();
    let count = |cause: Cause| causes.iter().filter(|(_, found)| *found == cause).count();
    let first = causes.iter().find(|(_, cause)| *cause == Cause::None);
    let without = count(Cause::None);
    Ok(Row {
        aim,
        moves: report.moves.len(),
        moves_per_vm_day: report.moves.len() as f64 / (args.vms as u64 * args.days) as f64,
        returns: causes.len(),
        returns_from_hot: count(Cause::FromHot),
        returns_load_back: count(Cause::LoadBack),
        returns_without_cause: without,
        first_without_cause: first.map(|(step, _)| {
            let minutes = step.started.since(recording.start).0 / 60_000;
            format!("{} from {} to {} after {minutes} min, because {}", step.vm, step.from, step.to, step.reason)
        }),
        wake_ups: report.wakes,
        energy_kwh: report.energy_kwh,
        wanted_core_h: report.wanted_core_h,
        missed_core_h: report.missed_core_h,
        plans: report.plans,
        plans_unsound: report.plans_unsound,
        objection: report.objection.clone(),
        steps_failed: report.steps_failed,
        money_per_day: report.bill.total().0 as f64 / 1e6 / args.days as f64,
        took_s: begun.elapsed().as_secs_f64(),
        bar_met: without == 0 && report.plans_unsound == 0,
    })
}

/// Hosts alike, and the recording's vms on them in turn.
fn world(hosts: usize, vms: usize, recording: &Recording, policy: Policy) -> Option<World> {
    let mut world = World::empty(START, Revision(1), policy);
    for n in 0..hosts {
        let view = HostView { capacity: Some(HOST), boot_time: BOOT_TIME, ..worlds::host(n) };
        world.hosts.insert(worlds::id("h", n), view);
    }
    for (n, id) in recording.vms.keys().enumerate().take(vms) {
        let host: HostId = worlds::id("h", n.checked_rem(hosts)?);
        let memory = Bytes::GIB * (2 << (n % 3));
        world
            .vms
            .insert(id.clone(), VmView { vcpus: load::vcpus(n), ..worlds::vm(id, &host, CpuMillis::CORE, memory) });
    }
    (!world.vms.is_empty()).then_some(world)
}

/// What was measured.
#[derive(Debug, Default)]
struct History {
    /// Demand over capacity while the host was up.
    hosts: BTreeMap<HostId, Vec<(TimeMs, f64)>>,
    /// Demand of all vms.
    pool: Vec<(TimeMs, f64)>,
}

impl History {
    fn take(&mut self, world: &World) {
        let mut pool = (TimeMs::ZERO, 0.0);
        for (id, host) in &world.hosts {
            let Some((at, sample)) = host.load.last() else { continue };
            let samples = self.hosts.entry(id.clone()).or_default();
            // A plan can take a host's samples away between two steps; what was measured was measured.
            if samples.last().is_none_or(|(last, _)| last < at) {
                samples.push((*at, sample.cpu_wanted.ratio_of(HOST.cpu).0));
            }
        }
        for vm in world.vms.values() {
            if let Some((at, sample)) = vm.load.last() {
                pool = (*at, pool.1 + sample.cpu_wanted.cores());
            }
        }
        self.pool.push(pool);
    }

    fn cause(&self, step: &Move, returned_after: Millis, hot_above: f64, evidence: KOfN) -> Cause {
        let here = self.hosts.get(&step.from).map_or(&[][..], Vec::as_slice);
        if enough(before(here, step.started, evidence), evidence, hot_above) {
            return Cause::FromHot;
        }
        let left = TimeMs(step.started.0.saturating_sub(returned_after.0));
        let there = self.hosts.get(&step.to).map_or(&[][..], Vec::as_slice);
        let between = there.iter().filter(|(at, _)| *at > left && *at <= step.started).count() as u64;
        // While it was off there are no samples.
        let was_off = between * STEP.0 + 2 * STEP.0 < returned_after.0;
        let then = before(&self.pool, left, evidence);
        let demand_then = then.iter().map(|(_, demand)| demand).sum::<f64>() / then.len().max(1) as f64;
        let back = enough(before(&self.pool, step.started, evidence), evidence, demand_then * CAME_BACK);
        if was_off && back { Cause::LoadBack } else { Cause::None }
    }
}

/// The last `n` samples up to `at`.
fn before(samples: &[(TimeMs, f64)], at: TimeMs, evidence: KOfN) -> &[(TimeMs, f64)] {
    let end = samples.partition_point(|(sampled, _)| *sampled <= at);
    &samples[end.saturating_sub(evidence.n as usize)..end]
}

fn enough(samples: &[(TimeMs, f64)], evidence: KOfN, above: f64) -> bool {
    samples.iter().filter(|(_, value)| *value > above).count() >= evidence.k as usize
}

impl Row {
    fn print(&self) {
        println!(
            "{:>8} {:>7} {:>11.2} {:>8} {:>9} {:>10} {:>9} {:>9} {:>7.0} kWh {:>7.1} c h {:>8} {:>7.1} s",
            serde_json::to_string(&self.aim).unwrap_or_default().trim_matches('"'),
            self.moves,
            self.moves_per_vm_day,
            self.returns,
            self.returns_from_hot,
            self.returns_load_back,
            self.returns_without_cause,
            self.wake_ups,
            self.energy_kwh,
            self.missed_core_h,
            self.plans_unsound,
            self.took_s,
        );
        for said in [&self.first_without_cause, &self.objection].into_iter().flatten() {
            println!("         {said}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(from: &str, to: &str, minute: u64) -> Move {
        let at = TimeMs(START.0 + minute * 60_000);
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        let vm = "vm-a".parse().unwrap();
        Move { vm, from, to, started: at, ended: at, returned_after: None, reason: String::new() }
    }

    #[test]
    fn a_return_has_a_cause_when_its_host_is_hot_or_the_pool_is_fuller_than_when_the_other_slept() {
        let at = |minute: u64| TimeMs(START.0 + minute * 60_000);
        let mut history = History::default();
        // h1 sleeps from minute 10 to 60; h2 is hot from 90 on; the pool doubles at 50.
        history.hosts.insert("h1".parse().unwrap(), (0..10).chain(60..120).map(|m| (at(m), 0.2)).collect());
        let h2 = (0..120).map(|m| (at(m), if m < 90 { 0.5 } else { 0.9 })).collect();
        history.hosts.insert("h2".parse().unwrap(), h2);
        history.pool = (0..120).map(|m| (at(m), if m < 50 { 10.0 } else { 20.0 })).collect();
        let evidence = KOfN { k: 2, n: 3 };
        let cause =
            |minute, after: u64| history.cause(&step("h2", "h1", minute), Millis::secs(after * 60), 0.85, evidence);
        assert_eq!(cause(95, 20), Cause::FromHot);
        assert_eq!(cause(70, 61), Cause::LoadBack);
        assert_eq!(cause(80, 10), Cause::None, "the pool is as full as it was, and nobody slept");
        assert_eq!(cause(90, 10), Cause::None, "one sample is no evidence");
    }

    #[test]
    fn two_hours_pass_the_same_way_twice() {
        let args = Args { json: None, seed: 5, hosts: 4, vms: 20, days: 1 };
        let recording = load::week(args.seed, args.vms, 120, STEP);
        let run = || week(&args, &recording, at_pace(&Policy { aim: Aim::Auto, ..Policy::default() }, STEP)).unwrap();
        let (one, two) = (run(), run());
        assert_eq!(
            (one.moves, one.wake_ups, one.energy_kwh.to_bits()),
            (two.moves, two.wake_ups, two.energy_kwh.to_bits())
        );
        assert!(one.energy_kwh > 0.0 && one.missed_core_h <= one.wanted_core_h, "{one:?}");
    }
}
