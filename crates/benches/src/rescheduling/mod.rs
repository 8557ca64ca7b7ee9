//! `rescheduling`: free cores, brought together into blocks of 16 by few moves, beside what no moves could do.
//!
//! A vm of 16 cores fits where 16 are free on one NUMA node, not where 4 are free on each of four. FR16, the share of
//! free cores that are no part of such a block, is to be as low as possible after at most so many moves, with room
//! for each when its turn comes. VMR2L (EuroSys 2025, arXiv 2505.17359), which set the task, wants the answer within
//! five seconds, as clusters drift. Read off its figures for 50 moves, averages over its own clusters of 280 hosts and
//! 2,089 vms, from 0.555: exact solver 0.287 in 3,100 s, VMR2L 0.295 in 3 s, POP 0.345 in 2 s, greedy 0.388 in 0.4 s.
//! What can be reached differs from cluster to cluster, so beside each result stands a bound for the same cluster and
//! as many moves.
//!
//! Moves are counted over all clusters of the file. A cluster's own row has the bound for the moves that it got.

mod bound;
mod check;
mod figures;
mod input;
mod order;
mod search;
mod state;
#[cfg(test)]
mod tiny;

use crate::io;
use anyhow::{Context, Result, ensure};
use check::replay;
use figures::{Figures, Row, Step};
use input::{Cluster, Move};
use nix::time::{ClockId, clock_gettime};
use search::{Budget, search};
use state::Site;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const LIMITS: [usize; 4] = [10, 25, 50, 100];
const THREADS: u64 = 2;
/// Of the time for an answer, what is left for the last stretch of tries, and for handing over.
const RESERVE: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster file: hosts, vms and who has to stay apart, as JSON, gzipped.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Write the figures and the moves here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Of the search.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Chains of the search, each from a seed of its own.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=1000))]
    chains: u64,
    /// Tries of a chain. The result is that of the seed, chains and tries, unless the time ends first.
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    tries: u64,
    /// Time for an answer: the bound, which sets the price of a move, and the search.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let clusters =
        input::unpack(&io::read(&args.input)?).with_context(|| format!("can't use {}", args.input.display()))?;
    let rows = LIMITS.iter().map(|&limit| row(&clusters, limit, args)).collect::<Result<Vec<_>>>()?;
    let figures = Figures::new(&clusters, args.seed, rows);
    print!("{figures}");
    io::write_json(args.json.as_deref(), &figures)
}

fn row(clusters: &[Cluster], limit: usize, args: &Args) -> Result<Row> {
    let (begun, cpu_begun) = (Instant::now(), cpu_time()?);
    let budget = Budget {
        seed: args.seed,
        tries: args.tries,
        chains: args.chains,
        threads: THREADS.min(args.chains),
        until: begun + Duration::from_secs(args.seconds) - RESERVE,
    };
    let bound = bound::bound(&clusters.iter().collect::<Vec<_>>(), limit);
    let site = Site::new(clusters);
    let found = search(&site, limit, &bound, &budget);
    let (wall_s, cpu_s) = (begun.elapsed().as_secs_f64(), (cpu_time()? - cpu_begun).as_secs_f64());

    let moves: Vec<Move> = found.moves.iter().map(|&(vm, to)| site.to_move(vm, to)).collect();
    let start = replay(clusters, &[], limit)?;
    let result = replay(clusters, &moves, limit).context("the checker refuses the moves: a defect of the search")?;
    let of_clusters = (0..clusters.len())
        .map(|cluster| {
            let count = moves.iter().filter(|step| step.cluster == cluster).count();
            let bound = bound::bound(&[&clusters[cluster]], count);
            figures::Outcome::new(&clusters[cluster].name, count, start[cluster], result[cluster], bound.blocks)
        })
        .collect();
    let sum =
        figures::Outcome::new("sum", moves.len(), start.into_iter().sum(), result.into_iter().sum(), bound.blocks);
    ensure!(
        sum.gained == i64::from(found.blocks_gained),
        "the search took {} blocks for {}",
        sum.gained,
        found.blocks_gained
    );
    let steps = moves.iter().map(|step| Step::new(clusters, step)).collect();
    Ok(Row { moves_max: limit, sum, clusters: of_clusters, wall_s, cpu_s, tries: found.tries, cut: found.cut, steps })
}

fn cpu_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("the processor time can't be read")?;
    Ok(time.into())
}
