//! Replays moves on the file's content, by the rules of the bench alone. Shares no code with what found the moves.

use super::input::{Cluster, Move, Need, Place, Shape};
use anyhow::{Result, bail, ensure};
use std::iter::Sum;

/// Free cores come in blocks of this many, or are a fragment.
const BLOCK: u32 = 16;

/// What is free in a cluster, and how much of that is less than a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fragments {
    pub cores: u32,
    pub of_free: u32,
}

impl Fragments {
    /// FR16: the sum over NUMA nodes of free cores mod 16, over all free cores (VMR2L, EuroSys 2025, arXiv
    /// 2505.17359). 0 where nothing is free.
    pub fn rate(self) -> f64 {
        if self.of_free == 0 { 0.0 } else { f64::from(self.cores) / f64::from(self.of_free) }
    }
}

impl Sum for Fragments {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self { cores: a.cores + b.cores, of_free: a.of_free + b.of_free })
    }
}

/// What each cluster is left with after the moves, one at a time in this order; or the first rule that is broken.
pub fn replay(clusters: &[Cluster], moves: &[Move], limit: usize) -> Result<Vec<Fragments>> {
    ensure!(moves.len() <= limit, "{} moves, and only {limit} are allowed", moves.len());
    let mut places: Vec<Vec<Place>> =
        clusters.iter().map(|cluster| cluster.vms.iter().map(|vm| vm.place).collect()).collect();
    for (number, step) in moves.iter().enumerate() {
        let Some(cluster) = clusters.get(step.cluster) else { bail!("move {number}: no such cluster") };
        if let Err(problem) = admit(cluster, &places[step.cluster], step) {
            bail!("move {number} in cluster {}: {problem}", cluster.name);
        }
        places[step.cluster][step.vm] = step.to;
    }
    Ok(clusters.iter().zip(&places).map(|(cluster, places)| fragments(cluster, places)).collect())
}

fn admit(cluster: &Cluster, places: &[Place], step: &Move) -> Result<()> {
    let Some(vm) = cluster.vms.get(step.vm) else { bail!("no such vm") };
    let Some(host) = cluster.hosts.get(step.to.host) else { bail!("vm {}: no such host", vm.id) };
    let from = places[step.vm];
    ensure!(vm.movable, "vm {} may not be moved", vm.id);
    ensure!(host.active, "vm {}: host {} takes none", vm.id, host.id);
    ensure!(from != step.to, "vm {} is on host {} already", vm.id, host.id);
    if let Shape::Both(_) = vm.shape {
        ensure!(from.host != step.to.host, "vm {} has both nodes of host {} already", vm.id, host.id);
    }
    // The source holds the vm until the move has ended, so what it leaves is no room yet.
    for node in 0..2 {
        let need = on_node(vm.shape, step.to, node);
        let (cores, huge_mb) = room(cluster, places, step.to.host, node);
        ensure!(i64::from(need.cores) <= cores, "vm {}: host {} lacks cores on node {node}", vm.id, host.id);
        ensure!(need.huge_mb as i64 <= huge_mb, "vm {}: host {} lacks huge pages on node {node}", vm.id, host.id);
    }
    for set in cluster.apart.iter().filter(|set| set.contains(&step.vm)) {
        if let Some(&other) = set.iter().find(|&&other| other != step.vm && places[other].host == step.to.host) {
            bail!("vm {} has to stay apart from {}, which is on host {}", vm.id, cluster.vms[other].id, host.id);
        }
    }
    Ok(())
}

fn on_node(shape: Shape, place: Place, node: usize) -> Need {
    match shape {
        Shape::One(need) if place.node == node => need,
        Shape::One(_) => Need::default(),
        Shape::Both(needs) => needs[node],
    }
}

/// Cores and huge pages free on a node: what the file says, put right by who has come and gone.
fn room(cluster: &Cluster, places: &[Place], host: usize, node: usize) -> (i64, i64) {
    let found = &cluster.hosts[host].nodes[node];
    let mut room = (i64::from(found.cores_free), found.huge_mb_free as i64);
    for (vm, &place) in cluster.vms.iter().zip(places) {
        if vm.place.host == host {
            let left = on_node(vm.shape, vm.place, node);
            room = (room.0 + i64::from(left.cores), room.1 + left.huge_mb as i64);
        }
        if place.host == host {
            let held = on_node(vm.shape, place, node);
            room = (room.0 - i64::from(held.cores), room.1 - held.huge_mb as i64);
        }
    }
    room
}

fn fragments(cluster: &Cluster, places: &[Place]) -> Fragments {
    let mut total = Fragments::default();
    for host in 0..cluster.hosts.len() {
        for node in 0..2 {
            let free = room(cluster, places, host, node).0 as u32;
            total.cores += free % BLOCK;
            total.of_free += free;
        }
    }
    total
}
