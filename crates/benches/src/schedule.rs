//! `schedule`: evacuations made up from a seed, and transitions full of circles. How near the last end is to the bound,
//! and how long planning takes.

mod transitions;

use crate::io;
use crate::random::Random;
use anyhow::Result;
use drover_model::migration::Priority;
use drover_model::{Bytes, HostId, Millis};
use drover_planner::predict::goodput;
use drover_planner::schedule::{Limits, Link, Links, Move, Standing, Work, schedule};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// Hosts emptied, hosts that take, moves.
const SIZES: [(usize, usize, usize); 4] = [(1, 9, 30), (4, 16, 100), (20, 80, 400), (50, 200, 1000)];
const TIMES: usize = 9;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Of the made-up evacuations.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Figures {
    bench: &'static str,
    seed: u64,
    rows: Vec<Row>,
    transitions: Vec<transitions::Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    moves: usize,
    hosts: usize,
    makespan_s: f64,
    bound_s: f64,
    ratio: f64,
    /// Each at its share from the beginning, all at once: what is planned against.
    all_at_once_s: f64,
    planning_ms_median: f64,
    planning_ms_max: f64,
}

pub fn run(args: &Args) -> Result<()> {
    let rows: Vec<Row> = SIZES.into_iter().map(|size| row(args.seed, size)).collect();
    println!(
        "{:>6} {:>6} {:>11} {:>11} {:>7} {:>13} {:>12} {:>9}",
        "moves", "hosts", "makespan", "bound", "ratio", "all at once", "planned in", "at most"
    );
    for row in &rows {
        println!(
            "{:>6} {:>6} {:>9.1} s {:>9.1} s {:>7.3} {:>11.1} s {:>9.2} ms {:>6.2} ms",
            row.moves,
            row.hosts,
            row.makespan_s,
            row.bound_s,
            row.ratio,
            row.all_at_once_s,
            row.planning_ms_median,
            row.planning_ms_max
        );
    }
    let transitions = transitions::run()?;
    io::write_json(args.json.as_deref(), &Figures { bench: "schedule", seed: args.seed, rows, transitions })
}

fn row(seed: u64, (emptied, taking, count): (usize, usize, usize)) -> Row {
    let (moves, links) = evacuation(seed, emptied, taking, count);
    let limits =
        Limits { per_host: 2, at_once: u32::try_from(emptied + taking).unwrap_or(u32::MAX), rate_max: Bytes::ZERO };
    let mut times: Vec<f64> = (0..TIMES)
        .map(|_| {
            let begun = Instant::now();
            std::hint::black_box(schedule(&moves, &links, &limits));
            begun.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let planned = schedule(&moves, &links, &limits);
    Row {
        moves: count,
        hosts: emptied + taking,
        makespan_s: planned.makespan.as_secs(),
        bound_s: planned.bound.as_secs(),
        ratio: planned.makespan.0 as f64 / planned.bound.0 as f64,
        all_at_once_s: all_at_once_s(&moves, &links),
        planning_ms_median: times[TIMES / 2],
        planning_ms_max: times[TIMES - 1],
    }
}

/// Moves of 1 to 16 GiB whose guests write up to 10 MB/s; a third of the hosts has links of 500 Mbit/s, the others of
/// 1 Gbit/s.
fn evacuation(seed: u64, emptied: usize, taking: usize, count: usize) -> (Vec<Move>, Links) {
    let mut random = Random(seed);
    let host = |n: usize| -> HostId { format!("h{n}").parse().expect("a letter and digits are an id") };
    let moves = (0..count)
        .map(|n| Move {
            from: host(n % emptied),
            to: host(emptied + random.below(taking as u64) as usize),
            work: Work {
                fixed: Millis(400),
                bytes: Bytes::mib(1024 + random.below(15 * 1024)),
                dirtied: Bytes(random.below(10_000_000)),
            },
            priority: Priority::Normal,
            after: Vec::new(),
            standing: Standing::Waiting,
        })
        .collect();
    let link = |bits| Link { out: goodput(bits), into: goodput(bits) };
    let slow = (0..emptied + taking).filter(|n| n % 3 == 2).map(|n| (host(n), link(500_000_000)));
    (moves, Links { hosts: slow.collect::<BTreeMap<_, _>>(), default: link(1_000_000_000) })
}

/// When the last ends if all begin at once, and each has its part of the fuller of its two links for good.
fn all_at_once_s(moves: &[Move], links: &Links) -> f64 {
    let link = |host: &HostId| links.hosts.get(host).copied().unwrap_or(links.default);
    let leave = |host: &HostId| moves.iter().filter(|m| m.from == *host).count() as u64;
    let come = |host: &HostId| moves.iter().filter(|m| m.to == *host).count() as u64;
    let share = |m: &Move| Bytes((link(&m.from).out.0 / leave(&m.from)).min(link(&m.to).into.0 / come(&m.to)));
    moves.iter().filter_map(|m| m.work.duration(share(m))).map(Millis::as_secs).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evacuation_is_the_same_for_a_seed_and_planned_better_than_all_at_once() {
        assert_eq!(evacuation(7, 2, 4, 20).0, evacuation(7, 2, 4, 20).0);
        assert_ne!(evacuation(7, 2, 4, 20).0, evacuation(8, 2, 4, 20).0);
        let row = row(7, (2, 4, 20));
        assert!(row.ratio < 1.2 && row.makespan_s < row.all_at_once_s, "{row:?}");
    }
}
