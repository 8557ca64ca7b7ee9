//! `hbal`: Ganeti's balancer and us on the same clusters, by its own score, in one run.
//!
//! Each cluster is balanced by `hbal --no-disk-moves` (live migration over shared storage only) and by the search here,
//! which may make as many moves as hbal made. The moves are carried out on the cluster by a checker that knows hbal's
//! rules and nothing of the search; the cluster is written in Ganeti's format, and hbal gives it its score. Without
//! hbal there is our part only, by our own reckoning of its score.
//!
//! ```text
//!   file, seed ─▶ generate ─▶ problem ─▶ search (state) ─▶ plan ─▶ check ─▶ score by hbal
//! ```
//! Times are processor time. hbal's is of its process; ours, the median of repeated runs, is from the text of the files
//! to the ordered moves.

mod check;
mod generate;
mod peer;
mod plan;
mod problem;
mod score;
mod search;
mod state;
#[cfg(test)]
mod tests;

use crate::io;
use anyhow::{Context, Result, bail, ensure};
use drover_planner::text::ganeti::{Cluster, Load, parse_load, write_load};
use nix::time::{ClockId, clock_gettime};
use peer::Files;
use problem::Problem;
use score::Score;
use search::Limits;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Runs of ours, of which the median is told: at least so many, and until so much time has gone.
const RUNS_MIN: usize = 5;
const RUNS_MAX: usize = 101;
const RUNS_S: f64 = 2.0;
/// hbal prints eight digits behind the point.
const DIGITS: f64 = 1e-8;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A cluster in Ganeti's text format (`hbal -t`).
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The load of its instances (`hbal -U`); without it the file of the same name with the ending .load is taken, if
    /// there is one.
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Nodes of the made-up clusters; 0 for none.
    #[arg(long, value_name = "NODES", value_delimiter = ',', default_value = "20,50,100,200,400")]
    generated: Vec<usize>,
    /// Of the made-up clusters.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Moves our side may make; without it as many as hbal made.
    #[arg(long, value_name = "MOVES")]
    moves_max: Option<usize>,
    /// Processor time hbal may take for one cluster, in seconds. What it has found until then counts.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    hbal_max_s: u64,
    /// Gain in score an instance must bring at least to be moved.
    #[arg(long, value_name = "SCORE", default_value_t = 1e-3)]
    gain_min: f64,
}

#[derive(Debug, Serialize)]
struct Figures {
    bench: &'static str,
    /// Which hbal; nothing where none is installed.
    hbal: Option<String>,
    seed: u64,
    hbal_max_s: u64,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    cluster: String,
    nodes: usize,
    instances: usize,
    start_score: f64,
    hbal_score: Option<f64>,
    hbal_moves: Option<usize>,
    hbal_s: Option<f64>,
    /// hbal was not done: its score and moves are those of the time limit.
    hbal_ended_by_limit: Option<bool>,
    /// By hbal, of our result with at most as many moves as hbal made; by our own reckoning without hbal.
    our_score: f64,
    our_moves: usize,
    our_s: f64,
    our_s_min: f64,
    our_s_max: f64,
    our_candidates: u64,
    times_faster: Option<f64>,
    /// The same without a limit on moves.
    free_score: f64,
    free_moves: usize,
    free_s: f64,
    /// Between our reckoning of hbal's score and hbal's own, at the start and for our results: at most.
    score_difference_max: Option<f64>,
}

pub fn run(args: &Args) -> Result<()> {
    let hbal = peer::version();
    match &hbal {
        Some(version) => println!("beside {version}, which may take {} s of processor time", args.hbal_max_s),
        None => println!("hbal is not installed (Debian: ganeti-htools): only our own part is measured"),
    }
    heading();
    let mut rows = Vec::new();
    let given = Texts::read(&args.input, args.load.as_deref())?;
    let made = args.generated.iter().filter(|nodes| **nodes > 0).map(|nodes| Texts::generate(args.seed, *nodes));
    for texts in std::iter::once(given).chain(made) {
        let row = row(&texts, hbal.is_some(), args).with_context(|| format!("can't balance {}", texts.name))?;
        row.print();
        rows.push(row);
    }
    let figures = Figures { bench: "hbal", hbal, seed: args.seed, hbal_max_s: args.hbal_max_s, rows };
    io::write_json(args.json.as_deref(), &figures)
}

/// What both sides are given.
struct Texts {
    name: String,
    cluster: String,
    load: Option<String>,
}

impl Texts {
    fn read(cluster: &Path, load: Option<&Path>) -> Result<Self> {
        let text =
            |path: &Path| String::from_utf8(io::read(path)?).with_context(|| format!("{} is not text", path.display()));
        let sibling = cluster.with_extension("load");
        let load = load.or_else(|| sibling.exists().then_some(sibling.as_path()));
        Ok(Self {
            name: cluster.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            cluster: text(cluster)?,
            load: load.map(text).transpose()?,
        })
    }

    fn generate(seed: u64, nodes: usize) -> Self {
        let (cluster, loads) = generate::cluster(seed, nodes);
        Self { name: format!("generated-{nodes}"), cluster: cluster.to_string(), load: Some(write_load(&loads)) }
    }

    fn parse(&self) -> Result<(Cluster, BTreeMap<String, Load>)> {
        let cluster: Cluster = self.cluster.parse().context("in the file of the cluster")?;
        let loads = match &self.load {
            Some(load) => parse_load(load).context("in the file of loads")?,
            None => BTreeMap::new(),
        };
        ensure!(!cluster.instances.is_empty(), "there are no instances: give a file with some");
        if let Some(other) = cluster.nodes.iter().find(|node| node.group != cluster.nodes[0].group) {
            bail!("node {} is in another group than the first: hbal balances one group at a time", other.name);
        }
        if let Some(name) = loads.keys().find(|name| cluster.instances.iter().all(|i| i.name != **name)) {
            bail!("the file of loads has {name}, which is no instance of the cluster: take it out");
        }
        Ok((cluster, loads))
    }
}

/// What our side answers.
struct Ours {
    moves: Vec<(String, String)>,
    candidates: u64,
}

/// From text to moves: what is timed.
fn ours(texts: &Texts, limits: &Limits) -> Result<Ours> {
    let (cluster, loads) = texts.parse()?;
    let problem = Problem::of(&cluster, &loads);
    let found = search::search(&problem, limits);
    let moves = plan::moves(&problem, &found, limits.moves_max);
    let named = |step: &plan::Move| {
        let instance = &cluster.instances[problem.instances[step.instance].index];
        (instance.name.clone(), cluster.nodes[step.to].name.clone())
    };
    Ok(Ours { moves: moves.iter().map(named).collect(), candidates: found.candidates })
}

fn row(texts: &Texts, with_hbal: bool, args: &Args) -> Result<Row> {
    let (cluster, loads) = texts.parse()?;
    let directory = tempfile::tempdir().context("can't make a temporary directory")?;
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let path = directory.path().join(name);
        std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    };
    let load = texts.load.as_ref().map(|load| write("load", load)).transpose()?;
    let mut difference: Option<f64> = None;
    // hbal's where it is there, ours else.
    let mut score = |cluster: &Cluster| -> Result<f64> {
        let ours = Score::of(cluster, &loads).total();
        if !with_hbal {
            return Ok(ours);
        }
        let path = write("scored", &cluster.to_string())?;
        let theirs = peer::score(Files { cluster: &path, load: load.as_deref() })?;
        difference = Some(difference.unwrap_or_default().max((ours - theirs).abs()));
        Ok(theirs)
    };

    let start_score = score(&cluster)?;
    let balanced = if with_hbal {
        let path = write("start", &texts.cluster)?;
        let limit = Duration::from_secs(args.hbal_max_s);
        Some(peer::balance(Files { cluster: &path, load: load.as_deref() }, limit)?)
    } else {
        None
    };
    let free = Limits { moves_max: usize::MAX, gain_min: args.gain_min, candidates_max: u64::MAX };
    let hbal_moves = balanced.as_ref().map(|balanced| balanced.after.len());
    let limited = Limits { moves_max: args.moves_max.or(hbal_moves).unwrap_or(usize::MAX), ..free };
    let mut result = |limits: &Limits| -> Result<(Ours, f64)> {
        let ours = ours(texts, limits)?;
        let moves = ours.moves.iter().map(|(instance, to)| (instance.as_str(), to.as_str()));
        let after = check::carry_out(&cluster, moves).context("the search broke a rule: a defect of it")?;
        let scored = score(&after)?;
        Ok((ours, scored))
    };
    let (ours, our_score) = result(&limited)?;
    let (freely, free_score) = result(&free)?;
    let times = time(texts, &limited)?;
    let free_times = time(texts, &free)?;
    let our_s = times[times.len() / 2];
    Ok(Row {
        cluster: texts.name.clone(),
        nodes: cluster.nodes.len(),
        instances: cluster.instances.len(),
        start_score,
        hbal_score: balanced.as_ref().map(|balanced| balanced.after.last().copied().unwrap_or(start_score)),
        hbal_moves,
        hbal_s: balanced.as_ref().map(|balanced| balanced.cpu_s),
        hbal_ended_by_limit: balanced.as_ref().map(|balanced| balanced.ended_by_limit),
        our_score,
        our_moves: ours.moves.len(),
        our_s,
        our_s_min: times[0],
        our_s_max: times[times.len() - 1],
        our_candidates: ours.candidates,
        times_faster: balanced.as_ref().map(|balanced| balanced.cpu_s / our_s),
        free_score,
        free_moves: freely.moves.len(),
        free_s: free_times[free_times.len() / 2],
        score_difference_max: difference,
    })
}

/// Processor seconds of each run, least first.
fn time(texts: &Texts, limits: &Limits) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    while times.len() < RUNS_MIN || (times.len() < RUNS_MAX && times.iter().sum::<f64>() < RUNS_S) {
        let begun = cpu_s()?;
        std::hint::black_box(ours(texts, limits)?);
        times.push(cpu_s()? - begun);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Processor time of this thread.
fn cpu_s() -> Result<f64> {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("can't read the processor time")?;
    Ok(Duration::from(now).as_secs_f64())
}

fn heading() {
    println!(
        "{:<16} {:>5} {:>9} | {:>9} {:>9} {:>5} {:>10} | {:>9} {:>5} {:>10} {:>9} | {:>9} {:>5} {:>10}",
        "cluster",
        "nodes",
        "instances",
        "start",
        "hbal",
        "moves",
        "hbal s",
        "ours",
        "moves",
        "ours s",
        "faster",
        "any moves",
        "moves",
        "s"
    );
}

impl Row {
    fn print(&self) {
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        println!(
            "{:<16} {:>5} {:>9} | {:>9.5} {:>9} {:>5} {:>10} | {:>9.5} {:>5} {:>10.6} {:>9} | {:>9.5} {:>5} {:>10.6}",
            self.cluster,
            self.nodes,
            self.instances,
            self.start_score,
            or_none(self.hbal_score.map(|score| format!("{score:.5}"))),
            or_none(self.hbal_moves.map(|moves| moves.to_string())),
            or_none(self.hbal_s.map(|s| format!("{s:.2}"))),
            self.our_score,
            self.our_moves,
            self.our_s,
            or_none(self.times_faster.map(|times| format!("{times:.0} x"))),
            self.free_score,
            self.free_moves,
            self.free_s
        );
        if self.hbal_ended_by_limit == Some(true) {
            println!("                 hbal was ended by the limit: score and moves are as far as it had come");
        }
        if self.score_difference_max.is_some_and(|difference| difference > DIGITS) {
            println!("                 our reckoning of the score is off: {:?}", self.score_difference_max);
        }
    }
}
