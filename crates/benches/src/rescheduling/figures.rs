//! What is printed and written: a row for each limit, with the sum and each cluster.

use super::check::Fragments;
use super::input::{BLOCK, Cluster, Move, Shape};
use serde::Serialize;
use std::fmt::{self, Display, Formatter};

#[derive(Debug, Serialize)]
pub struct Figures {
    bench: &'static str,
    seed: u64,
    hosts: usize,
    vms: usize,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub moves_max: usize,
    #[serde(flatten)]
    pub sum: Outcome,
    /// With the lower bound: from the clusters in memory to moves in order.
    pub wall_s: f64,
    /// Of all threads.
    pub cpu_s: f64,
    pub tries: u64,
    /// The time ended before the tries did: another run may find something else.
    pub cut: bool,
    pub clusters: Vec<Outcome>,
    /// One at a time, in this order.
    pub steps: Vec<Step>,
}

/// FR16 before, after, and as low as it could be.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub cluster: String,
    pub moves: usize,
    pub start: f64,
    pub result: f64,
    pub bound: f64,
    /// Of the result to the bound.
    pub gap: f64,
    /// In blocks of 16 free cores, what came together and what could at most.
    pub gained: i64,
    pub gained_max: u32,
}

#[derive(Debug, Serialize)]
pub struct Step {
    cluster: String,
    vm: String,
    host: String,
    /// Of a vm that lies on one node.
    numa: Option<usize>,
}

impl Figures {
    pub fn new(clusters: &[Cluster], seed: u64, rows: Vec<Row>) -> Self {
        let hosts = clusters.iter().map(|cluster| cluster.hosts.len()).sum();
        let vms = clusters.iter().map(|cluster| cluster.vms.len()).sum();
        Self { bench: "rescheduling", seed, hosts, vms, rows }
    }
}

impl Outcome {
    pub fn new(cluster: &str, moves: usize, start: Fragments, result: Fragments, gained_max: u32) -> Self {
        let bound = Fragments { cores: start.cores.saturating_sub(BLOCK * gained_max), ..start }.rate();
        Self {
            cluster: cluster.to_owned(),
            moves,
            start: start.rate(),
            result: result.rate(),
            bound,
            gap: result.rate() - bound,
            gained: (i64::from(start.cores) - i64::from(result.cores)) / i64::from(BLOCK),
            gained_max,
        }
    }
}

impl Step {
    pub fn new(clusters: &[Cluster], step: &Move) -> Self {
        let cluster = &clusters[step.cluster];
        let vm = &cluster.vms[step.vm];
        Self {
            cluster: cluster.name.clone(),
            vm: vm.id.clone(),
            host: cluster.hosts[step.to.host].id.clone(),
            numa: matches!(vm.shape, Shape::One(_)).then_some(step.to.node),
        }
    }
}

impl Display for Figures {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} hosts, {} vms", self.hosts, self.vms)?;
        writeln!(
            f,
            "{:>6}  {:<14} {:>5} {:>7} {:>7} {:>7} {:>7} {:>8} {:>8} {:>8}",
            "limit", "cluster", "moves", "start", "result", "bound", "gap", "blocks", "wall", "CPU"
        )?;
        for row in &self.rows {
            let cut = if row.cut { ", cut" } else { "" };
            writeln!(f, "{:>6}  {} {:>6.2} s {:>6.2} s{cut}", row.moves_max, row.sum, row.wall_s, row.cpu_s)?;
            for outcome in &row.clusters {
                writeln!(f, "{:>6}  {outcome}", "")?;
            }
        }
        Ok(())
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let blocks = format!("{}/{}", self.gained, self.gained_max);
        write!(
            f,
            "{:<14} {:>5} {:>7.4} {:>7.4} {:>7.4} {:>7.4} {:>8}",
            self.cluster, self.moves, self.start, self.result, self.bound, self.gap, blocks
        )
    }
}
