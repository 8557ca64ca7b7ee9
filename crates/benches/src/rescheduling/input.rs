//! The cluster file: hosts of two NUMA nodes, the vms on them, and sets of vms that share no host.

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;

/// Free cores come in blocks of this many on a node, or are a fragment.
pub const BLOCK: u32 = 16;
/// Of the unpacked file. Ten thousand hosts take about 60 MB.
const BYTES_MAX: u64 = 512 << 20;
/// Cores of a node. Bounds the tables of the lower bound.
const CORES_MAX: u32 = 1024;
/// Only such hosts take vms.
const ACTIVE: &str = "ACTIVE";

#[derive(Debug, Clone)]
pub struct Cluster {
    pub name: String,
    pub hosts: Vec<Host>,
    pub vms: Vec<Vm>,
    /// Sets of vms, by index, no two of which may come together on a host.
    pub apart: Vec<Vec<usize>>,
}

#[derive(Debug, Clone)]
pub struct Host {
    pub id: String,
    /// A host in outage keeps its vms and gets none. Its free cores count like any others.
    pub active: bool,
    pub nodes: [Node; 2],
}

/// A NUMA node as the file finds it.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    pub cores_free: u32,
    pub huge_mb_free: u64,
}

#[derive(Debug, Clone)]
pub struct Vm {
    pub id: String,
    pub place: Place,
    pub shape: Shape,
    pub movable: bool,
}

/// What a vm needs, and how it may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// On one node, whichever.
    One(Need),
    /// On both nodes of a host. What it has on node 0 stays on a node 0.
    Both([Need; 2]),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    pub cores: u32,
    pub huge_mb: u64,
}

/// Where a vm lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub host: usize,
    /// 0 for a vm on both.
    pub node: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    pub cluster: usize,
    pub vm: usize,
    pub to: Place,
}

pub fn unpack(packed: &[u8]) -> Result<Vec<Cluster>> {
    let mut text = Vec::new();
    GzDecoder::new(packed).take(BYTES_MAX).read_to_end(&mut text).context("it is no whole gzip file")?;
    ensure!((text.len() as u64) < BYTES_MAX, "it unpacks to more than {BYTES_MAX} bytes: cut it into several");
    parse(&text)
}

pub fn parse(text: &[u8]) -> Result<Vec<Cluster>> {
    let file: File = serde_json::from_slice(text).context("it is no cluster file")?;
    ensure!(!file.cluster_list.is_empty(), "its cluster_list is empty");
    file.cluster_list
        .into_iter()
        .map(|raw| {
            let name = raw.cluster_name.clone();
            cluster(raw).with_context(|| format!("cluster {name}"))
        })
        .collect()
}

fn cluster(raw: RawCluster) -> Result<Cluster> {
    let hosts = raw.host_info.into_iter().map(host).collect::<Result<Vec<_>>>()?;
    let mut host_ix = BTreeMap::new();
    for (ix, host) in hosts.iter().enumerate() {
        ensure!(host_ix.insert(host.id.clone(), ix).is_none(), "host {} is listed twice", host.id);
    }
    let mut vms: Vec<Vm> = Vec::with_capacity(raw.vm_instance.len());
    let mut vm_ix = BTreeMap::new();
    for raw in raw.vm_instance {
        let id = raw.instance_id.clone();
        let Some(&host) = host_ix.get(&raw.host_id) else {
            bail!("vm {id} is on host {}, which is not listed", raw.host_id)
        };
        ensure!(vm_ix.insert(id.clone(), vms.len()).is_none(), "vm {id} is listed twice");
        vms.push(vm(raw, host).with_context(|| format!("vm {id}"))?);
    }
    let mut apart = Vec::new();
    for set in raw.other_requirement.deployment_set {
        let granularity = set.granularity;
        ensure!(granularity == "host", "a deployment_set keeps vms apart by {granularity}: only host is known");
        // The sets are those of all clusters together: a member not listed here is somewhere else.
        let mut members: Vec<usize> = set.data.iter().filter_map(|id| vm_ix.get(id).copied()).collect();
        members.sort_unstable();
        members.dedup();
        if members.len() > 1 {
            apart.push(members);
        }
    }
    Ok(Cluster { name: raw.cluster_name, hosts, vms, apart })
}

fn host(raw: RawHost) -> Result<Host> {
    let id = raw.node_id;
    let node = |number: usize| -> Result<Node> {
        let mut found = raw.numa.iter().filter(|numa| numa.node == number);
        let (Some(numa), None) = (found.next(), found.next()) else { bail!("node {number} has to be listed once") };
        ensure!(numa.total_cpu <= CORES_MAX, "node {number} has more than {CORES_MAX} cores");
        ensure!(numa.free_cpu <= numa.total_cpu, "node {number} has more cores free than in all");
        // What is left of a megabyte is no room.
        Ok(Node { cores_free: numa.free_cpu, huge_mb_free: numa.memory_huge_free_mb.floor() as u64 })
    };
    let nodes = (|| {
        ensure!(raw.numa.len() == 2, "{} NUMA nodes are listed: two are expected", raw.numa.len());
        Ok([node(0)?, node(1)?])
    })()
    .with_context(|| format!("host {id}"))?;
    Ok(Host { id, active: raw.status == ACTIVE, nodes })
}

fn vm(raw: RawVm, host: usize) -> Result<Vm> {
    let need = |part: &RawPart| -> Result<Need> {
        ensure!(part.cpu <= CORES_MAX, "it has more than {CORES_MAX} cores on a node");
        ensure!(part.mem_mb >= 0.0, "its memory is negative");
        Ok(Need { cores: part.cpu, huge_mb: part.mem_mb.ceil() as u64 })
    };
    let (place, shape) = match raw.numa.as_slice() {
        [only] if only.node < 2 => (Place { host, node: only.node }, Shape::One(need(only)?)),
        [a, b] if a.node == 0 && b.node == 1 => (Place { host, node: 0 }, Shape::Both([need(a)?, need(b)?])),
        [b, a] if a.node == 0 && b.node == 1 => (Place { host, node: 0 }, Shape::Both([need(a)?, need(b)?])),
        _ => bail!("its numa has to name node 0, node 1 or each once"),
    };
    Ok(Vm { id: raw.instance_id, place, shape, movable: raw.allow_migration != 0 })
}

#[derive(Debug, Deserialize)]
struct File {
    cluster_list: Vec<RawCluster>,
}

#[derive(Debug, Deserialize)]
struct RawCluster {
    cluster_name: String,
    host_info: Vec<RawHost>,
    vm_instance: Vec<RawVm>,
    other_requirement: RawRequirement,
}

#[derive(Debug, Deserialize)]
struct RawHost {
    node_id: String,
    status: String,
    numa: Vec<RawNuma>,
}

#[derive(Debug, Deserialize)]
struct RawNuma {
    node: usize,
    total_cpu: u32,
    free_cpu: u32,
    memory_huge_free_mb: f64,
}

#[derive(Debug, Deserialize)]
struct RawVm {
    instance_id: String,
    host_id: String,
    numa: Vec<RawPart>,
    allow_migration: u8,
}

#[derive(Debug, Deserialize)]
struct RawPart {
    node: usize,
    cpu: u32,
    mem_mb: f64,
}

#[derive(Debug, Deserialize)]
struct RawRequirement {
    deployment_set: Vec<RawSet>,
}

#[derive(Debug, Deserialize)]
struct RawSet {
    granularity: String,
    data: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    const FILE: &str = r#"{"cluster_list": [{
        "cluster_name": "c1",
        "host_info": [
            {"node_id": "h0", "status": "ACTIVE", "numa": [
                {"node": 1, "total_cpu": 44, "free_cpu": 0, "memory_huge_free_mb": 1024.0},
                {"node": 0, "total_cpu": 44, "free_cpu": 12, "memory_huge_free_mb": 2048.5}]},
            {"node_id": "h1", "status": "OUTAGE", "numa": [
                {"node": 0, "total_cpu": 44, "free_cpu": 44, "memory_huge_free_mb": 0.0},
                {"node": 1, "total_cpu": 44, "free_cpu": 44, "memory_huge_free_mb": 0.0}]}],
        "vm_instance": [
            {"instance_id": "v0", "host_id": "h0", "allow_migration": 1, "numa": [
                {"node": 1, "cpu": 8, "mem_mb": 16384.5}]},
            {"instance_id": "v1", "host_id": "h0", "allow_migration": 0, "numa": [
                {"node": 1, "cpu": 4, "mem_mb": 2.0}, {"node": 0, "cpu": 32, "mem_mb": 1.0}]}],
        "other_requirement": {"deployment_set": [
            {"granularity": "host", "data": ["v1", "elsewhere", "v0"]},
            {"granularity": "host", "data": ["v1", "elsewhere"]}]}}]}"#;

    #[test]
    fn hosts_vms_and_sets_are_read() {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(FILE.as_bytes()).unwrap();
        let clusters = unpack(&packed.finish().unwrap()).unwrap();
        let [Cluster { name, hosts, vms, apart }] = clusters.as_slice() else { panic!("{clusters:?}") };
        assert_eq!((name.as_str(), hosts.len(), vms.len()), ("c1", 2, 2));
        assert_eq!((hosts[0].active, hosts[1].active), (true, false));
        assert_eq!(hosts[0].nodes.map(|node| (node.cores_free, node.huge_mb_free)), [(12, 2048), (0, 1024)]);
        assert_eq!(vms[0].place, Place { host: 0, node: 1 });
        assert_eq!(vms[0].shape, Shape::One(Need { cores: 8, huge_mb: 16385 }));
        let parts = [Need { cores: 32, huge_mb: 1 }, Need { cores: 4, huge_mb: 2 }];
        assert_eq!((vms[1].shape, vms[1].movable), (Shape::Both(parts), false));
        assert_eq!(apart, &[vec![0, 1]]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (found, put, problem) in [
            ("cluster_list", "clusters", "it is no cluster file"),
            (r#""node_id": "h1""#, r#""node_id": "h0""#, "cluster c1: host h0 is listed twice"),
            (r#""instance_id": "v1""#, r#""instance_id": "v0""#, "cluster c1: vm v0 is listed twice"),
            (r#""host_id": "h0""#, r#""host_id": "h9""#, "vm v0 is on host h9, which is not listed"),
            (r#""granularity": "host""#, r#""granularity": "rack""#, "by rack: only host is known"),
            (r#""free_cpu": 12"#, r#""free_cpu": 45"#, "host h0: node 0 has more cores free than in all"),
            (r#""total_cpu": 44"#, r#""total_cpu": 4400"#, "node 1 has more than 1024 cores"),
            (
                r#"[
                {"node": 1, "total"#,
                r#"[
                {"node": 0, "total"#,
                "host h0: node 0 has to be listed once",
            ),
            (r#""mem_mb": 2.0"#, r#""mem_mb": -2.0"#, "vm v1: its memory is negative"),
            (
                r#"{"node": 1, "cpu": 8"#,
                r#"{"node": 2, "cpu": 8"#,
                "vm v0: its numa has to name node 0, node 1 or each",
            ),
        ] {
            assert!(FILE.contains(found), "{found}");
            let error = format!("{:#}", parse(FILE.replacen(found, put, 1).as_bytes()).expect_err(problem));
            assert!(error.contains(problem), "{error}");
        }
        assert!(format!("{:#}", unpack(FILE.as_bytes()).unwrap_err()).contains("no whole gzip file"));
        assert!(parse(br#"{"cluster_list": []}"#).unwrap_err().to_string().contains("empty"));
    }
}
