//! Transitions made up so that nothing goes without passing through third hosts: full hosts in threes, each of which
//! gives a vm to the next. How long it takes to order them, and to check the plan in its whole cluster.

use anyhow::{Result, ensure};
use drover_model::inventory::Capacity;
use drover_model::load::{DailyPattern, HostSample, VmSample, Window};
use drover_model::plan::{Action, HostPrediction, Plan, Prediction, Scenario, Step};
use drover_model::policy::Policy;
use drover_model::world::{HostState, HostView, Movable, VmView, World};
use drover_model::{
    Bytes, CpuMillis, Generation, HostId, MicroMoney, MicroMoneyPerHour, Millis, Ratio, Revision, TimeMs, VmId,
};
use drover_planner::check;
use drover_planner::schedule::transition::{Act, Host, Load, Move, Order, Transition, transition};
use drover_planner::schedule::{Limits, Link, Work};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Hosts, and circles of three moves.
const SIZES: [(usize, usize); 4] = [(100, 25), (1_000, 250), (10_000, 500), (10_000, 2_500)];
/// A host in four has room for one more than it carries.
const PLACES: usize = 10;
const EACH: Bytes = Bytes::mib(4096);
const LINK: Bytes = Bytes(1_100_000_000);
const AT_ONCE: u32 = 64;
const TIMES: usize = 5;
const NOW: TimeMs = TimeMs(1_000_000);

#[derive(Debug, Serialize)]
pub struct Row {
    hosts: usize,
    vms: usize,
    moves: usize,
    steps: usize,
    passes: usize,
    stuck: usize,
    makespan_s: f64,
    bound_s: f64,
    ratio: f64,
    ordering_ms_median: f64,
    checking_ms_median: f64,
    violations: usize,
}

pub fn run() -> Result<Vec<Row>> {
    let rows: Vec<Row> = SIZES.into_iter().map(|(hosts, circles)| row(hosts, circles)).collect();
    println!(
        "\n{:>6} {:>7} {:>6} {:>6} {:>7} {:>6} {:>10} {:>10} {:>6} {:>11} {:>11}",
        "hosts", "vms", "moves", "steps", "passes", "stuck", "makespan", "bound", "ratio", "ordered in", "checked in"
    );
    for row in &rows {
        println!(
            "{:>6} {:>7} {:>6} {:>6} {:>7} {:>6} {:>8.1} s {:>8.1} s {:>6.3} {:>8.1} ms {:>8.1} ms",
            row.hosts,
            row.vms,
            row.moves,
            row.steps,
            row.passes,
            row.stuck,
            row.makespan_s,
            row.bound_s,
            row.ratio,
            row.ordering_ms_median,
            row.checking_ms_median
        );
        ensure!(row.violations == 0, "the checker objects to {} steps of an order it should accept", row.violations);
    }
    Ok(rows)
}

fn row(hosts: usize, circles: usize) -> Row {
    let (world, wanted, movers) = circle(hosts, circles);
    let (ordering_ms_median, order) = median_ms(|| transition(&wanted, &|_, _| true));
    let plan = plan(&world, &order, &movers);
    let (checking_ms_median, violations) = median_ms(|| check(&world, &plan));
    let passes = order.steps.iter().filter(|step| matches!(step.act, Act::Move { passes: true, .. })).count();
    Row {
        hosts,
        vms: world.vms.len(),
        moves: wanted.moves.len(),
        steps: order.steps.len(),
        passes,
        stuck: order.stuck.len(),
        makespan_s: order.timing.makespan.as_secs(),
        bound_s: order.timing.bound.as_secs(),
        ratio: order.timing.makespan.0 as f64 / order.timing.bound.0.max(1) as f64,
        ordering_ms_median,
        checking_ms_median,
        violations: violations.len(),
    }
}

fn median_ms<T>(work: impl Fn() -> T) -> (f64, T) {
    let timed = || {
        let begun = Instant::now();
        let made = std::hint::black_box(work());
        (begun.elapsed().as_secs_f64() * 1000.0, made)
    };
    let mut runs: Vec<(f64, T)> = (0..TIMES).map(|_| timed()).collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    runs.swap_remove(TIMES / 2)
}

fn host_id(n: usize) -> HostId {
    format!("h{n:05}").parse().expect("a letter and digits are an id")
}

/// Of the vm in a place of a host. Its ids sort as its numbers do.
fn vm_id(host: usize, place: usize) -> VmId {
    format!("v{host:05}-{place}").parse().expect("letters, digits and a dash are an id")
}

/// Three hosts in four are full; of those, as many threes as there are circles pass one vm each on in turn.
fn circle(hosts: usize, circles: usize) -> (World, Transition, Vec<VmId>) {
    let policy = Policy { migrations_at_once_max: AT_ONCE, ..Policy::default() };
    let mut world = World::empty(NOW, Revision(1), policy);
    let carried = |host: usize| if host.is_multiple_of(4) { PLACES - 1 } else { PLACES };
    for host in 0..hosts {
        world.hosts.insert(host_id(host), host_view(carried(host)));
        world.vms.extend((0..carried(host)).map(|place| (vm_id(host, place), vm_view(host))));
    }
    let load = |count: usize| Load {
        cpu: count as u64 * 500,
        memory: count as u64 * EACH.0,
        disk: 0,
        rx: 0,
        tx: 0,
        reserved: 0,
    };
    let rows = (0..hosts).map(|host| Host {
        capacity: Load { disk: u64::MAX, rx: u64::MAX, tx: u64::MAX, ..load(PLACES) },
        carries: load(carried(host)),
        vms: carried(host) as u32,
        link: Link { out: LINK, into: LINK },
        ..Host::up()
    });
    let work = Work { fixed: Millis(400), bytes: EACH, dirtied: Bytes(5_000_000) };
    let (mut moves, mut movers) = (Vec::new(), Vec::new());
    for first in (0..circles).map(|circle| 4 * circle + 1).filter(|first| first + 2 < hosts) {
        for n in 0..3 {
            moves.push(Move { load: load(1), work, ..Move::new(first + n, first + (n + 1) % 3) });
            movers.push(vm_id(first + n, 0));
        }
    }
    let limits = Limits { per_host: world.policy.migration.per_host_max, at_once: AT_ONCE, rate_max: Bytes::ZERO };
    (world, Transition { hosts: rows.collect(), moves, limits, ..Transition::default() }, movers)
}

fn each_second<T: Copy + drover_model::load::Sample>(sample: T) -> Window<T> {
    (0..6).rev().map(|ago| (TimeMs(NOW.0 - ago * 1000), sample)).collect()
}

fn host_view(vms: usize) -> HostView {
    let cpu = CpuMillis(vms as u64 * 400);
    let sample = HostSample {
        cpu_used: cpu,
        cpu_wanted: cpu,
        memory_used: EACH * vms as u64,
        memory_pressure: Ratio(0.0),
        net_rx: Bytes::ZERO,
        net_tx: Bytes::ZERO,
        disk_latency_us: 0,
    };
    HostView {
        state: HostState::Up,
        capacity: Some(Capacity { cpu: CpuMillis(PLACES as u64 * 500), memory: EACH * PLACES as u64 }),
        maintenance: false,
        power_managed: true,
        boot_time: Millis::secs(60),
        networks: BTreeSet::new(),
        kind: 0,
        refuses: BTreeSet::new(),
        load: each_second(sample),
        since: TimeMs::ZERO,
        rack: None,
        zone: None,
        labels: BTreeSet::new(),
        disk: None,
        link: Some(LINK),
        power: None,
        power_cycle_price: None,
        moves_recent: 0,
    }
}

fn vm_view(host: usize) -> VmView {
    let sample = VmSample {
        cpu_used: CpuMillis(400),
        cpu_wanted: CpuMillis(400),
        memory_used: EACH,
        net_rx: Bytes::ZERO,
        net_tx: Bytes::ZERO,
        disk_latency_us: 0,
        dirty_rate: None,
    };
    VmView {
        name: "made-up".parse().expect("letters and a dash are a name"),
        tenant: "bench".parse().expect("letters are a name"),
        generation: Generation(1),
        vcpus: 2,
        memory: EACH,
        network: None,
        anti_affinity: None,
        pinned_to: BTreeSet::new(),
        host: Some(host_id(host)),
        movable: Movable::Yes,
        left: Vec::new(),
        load: each_second(sample),
        pattern: DailyPattern::default(),
        disk: Bytes::ZERO,
        pool: None,
        cpu_reserved: CpuMillis::ZERO,
    }
}

fn plan(world: &World, order: &Order, movers: &[VmId]) -> Plan {
    let mut generations = vec![Generation(1); movers.len()];
    let mut touched = BTreeSet::new();
    let mut action = |act: Act| match act {
        Act::Move { of, from, to, .. } => {
            let generation = generations[of];
            generations[of] = generation.next();
            touched.extend([host_id(from), host_id(to)]);
            Action::Migrate { vm: movers[of].clone(), generation, from: host_id(from), to: host_id(to) }
        }
        Act::On { host } => Action::PowerOn { host: host_id(host) },
        Act::Off { host } => Action::PowerOff { host: host_id(host) },
    };
    let steps = order
        .steps
        .iter()
        .map(|step| Step {
            after: step.after.clone(),
            action: action(step.act),
            reason: String::new(),
            gain: MicroMoney::ZERO,
            cost: MicroMoney::ZERO,
            duration: step.duration,
            start: step.start,
            bandwidth: step.bandwidth,
            alternatives: Vec::new(),
        })
        .collect();
    let none = Ratio(0.0);
    let nothing = HostPrediction { cpu_before: none, cpu_after: none, memory_before: none, memory_after: none };
    let rate_before = MicroMoneyPerHour(1_000_000);
    Plan {
        parent: world.revision,
        made_at: world.now,
        scenario: Scenario::Balanced,
        why: "made up".to_owned(),
        steps,
        predicted: Prediction {
            rate_before,
            rate_after: MicroMoneyPerHour::ZERO,
            moving_cost: MicroMoney::ZERO,
            gain: rate_before.over(world.policy.money.horizon),
            rate_bound: None,
            hosts: touched.into_iter().map(|host| (host, nothing.clone())).collect::<BTreeMap<_, _>>(),
        },
        rejected: Vec::new(),
        timing: order.timing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_circle_is_broken_by_one_pass_and_the_checker_agrees() {
        let row = row(40, 10);
        assert_eq!((row.moves, row.passes, row.steps, row.stuck, row.violations), (30, 10, 40, 0, 0), "{row:?}");
    }
}
