//! A Ganeti cluster as numbers: what the search reads and changes.

use super::score::{LOAD, TagRules, VCPU_RATIO, is_offline};
use drover_planner::text::ganeti::{Cluster, Load, Node, Status};
use std::collections::BTreeMap;

/// What a move changes of the deviations: memory used, also with what is only planned, vcpus, also with what is only
/// planned, and load of cpu, memory, disk and network.
pub const DIMENSIONS: usize = 8;
const WEIGHTS: Row = [0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0];
/// Of an instance on a node that is offline: its two weights, of all instances there and of primaries.
pub const OFFLINE: f64 = 4.0 + 16.0;
/// Of an instance on a node that fails N+1.
pub const SHORT: f64 = 1.0;
/// Of an instance with an exclusion tag that some other on its node has.
pub const CONFLICT: f64 = 2.0;

pub type Row = [f64; DIMENSIONS];

/// Nodes, and the instances that may move: those on shared storage that Ganeti balances by itself. All others stay
/// where they are and count as part of their nodes.
#[derive(Debug, Clone)]
pub struct Problem {
    pub nodes: Vec<Host>,
    pub instances: Vec<Guest>,
    /// What instances add, by dimension and instance.
    pub columns: [Vec<f32>; DIMENSIONS],
    pub weights: Row,
    /// Nodes that are online.
    pub online: f64,
    /// No tag says anything: most clusters.
    pub plain: bool,
    pub tags: usize,
    /// By node of the start and node of the end.
    pub may_migrate: Vec<Vec<bool>>,
    /// How often each pair of location and exclusion tag is there at the start.
    pub places: Vec<i32>,
}

#[derive(Debug, Clone)]
pub struct Host {
    pub online: bool,
    /// What one unit of an instance adds to the node's row.
    pub scale: Row,
    /// At the start, less the mean over the nodes that are online.
    pub at: Row,
    /// What neither records nor the node's own report leave free, in MiB.
    pub free: i64,
    /// What the node reports as free, in MiB.
    pub reported: i64,
    /// The same, less what is only planned or down.
    pub free_to_come: i64,
    /// For instances of other nodes that would fail over to it, in MiB.
    pub reserved: i64,
    pub vcpus_left: i64,
    /// Instances of both kinds.
    pub count: i64,
    /// How often each exclusion tag is there.
    pub tags: Vec<i32>,
    pub locations: Vec<usize>,
}

#[derive(Debug, Clone)]
pub struct Guest {
    /// Index among all instances of the file.
    pub index: usize,
    pub home: usize,
    pub adds: Row,
    pub memory: i64,
    /// 0 where it is down and takes none.
    pub memory_used: i64,
    pub vcpus: i64,
    pub tags: Vec<usize>,
    /// By node: wishes for locations that it does not meet. Empty without wishes.
    pub unmet: Vec<f64>,
}

impl Problem {
    /// All nodes of the cluster must be in one group.
    pub fn of(cluster: &Cluster, loads: &BTreeMap<String, Load>) -> Self {
        let rules = TagRules::of(&cluster.tags);
        let ids: BTreeMap<&str, usize> =
            cluster.nodes.iter().enumerate().map(|(n, node)| (node.name.as_str(), n)).collect();
        let mut exclusive: Vec<&str> = cluster.instances.iter().flat_map(|i| rules.exclusive(i)).collect();
        exclusive.sort_unstable();
        exclusive.dedup();
        let mut locations: Vec<&str> = cluster.nodes.iter().flat_map(|node| rules.locations(node)).collect();
        locations.sort_unstable();
        locations.dedup();
        let tag_of = |tag: &str| exclusive.binary_search(&tag).unwrap_or_default();
        let location_of = |location: &str| locations.binary_search(&location).unwrap_or_default();

        let mut nodes: Vec<Host> = cluster
            .nodes
            .iter()
            .map(|node| Host::bare(node, vcpus_max(node, cluster), exclusive.len()))
            .zip(&cluster.nodes)
            .map(|(host, node)| Host {
                locations: rules.locations(node).into_iter().map(location_of).collect(),
                ..host
            })
            .collect();
        let mut places = vec![0; exclusive.len() * locations.len()];
        let mut instances = Vec::new();
        let mut from_peers: BTreeMap<(usize, usize), i64> = BTreeMap::new();
        for (index, instance) in cluster.instances.iter().enumerate() {
            let home = ids[instance.primary.as_str()];
            let load = loads.get(&instance.name).copied().unwrap_or(LOAD);
            let memory = whole(instance.memory_mib);
            let memory_used = if instance.status.uses_memory() { memory } else { 0 };
            let vcpus = if instance.status == Status::AdminOffline { 0 } else { whole(instance.vcpus) };
            let tags: Vec<usize> = rules.exclusive(instance).into_iter().map(tag_of).collect();
            let host = &mut nodes[home];
            tags.iter().for_each(|tag| host.tags[*tag] += 1);
            if instance.forthcoming {
                host.add_planned(memory, vcpus);
                continue;
            }
            let online = host.online;
            let adds = [
                memory_used as f64,
                memory as f64,
                vcpus as f64,
                vcpus as f64,
                load.cpu,
                load.memory,
                load.disk,
                load.network,
            ];
            host.add(&adds, memory_used, memory, vcpus);
            if online {
                for location in &host.locations {
                    tags.iter().for_each(|tag| places[location * exclusive.len() + tag] += 1);
                }
            }
            if let Some(other) = instance.secondary.as_ref().map(|name| ids[name.as_str()]) {
                nodes[other].at[6] += load.disk;
                nodes[other].count += 1;
                if instance.auto_balance && instance.status != Status::AdminOffline {
                    *from_peers.entry((other, home)).or_default() += memory;
                }
            }
            if instance.auto_balance && instance.template.is_shared() {
                let wished = rules.wished(instance);
                let unmet = |node: &Node| wished.difference(&rules.locations(node)).count() as f64;
                let unmet = if wished.is_empty() { Vec::new() } else { cluster.nodes.iter().map(unmet).collect() };
                instances.push(Guest { index, home, adds, memory, memory_used, vcpus, tags, unmet });
            }
        }
        for ((node, _), memory) in from_peers {
            nodes[node].reserved = nodes[node].reserved.max(memory);
        }
        let online = nodes.iter().filter(|host| host.online).count().max(1) as f64;
        for (host, node) in nodes.iter_mut().zip(&cluster.nodes) {
            host.settle(node);
        }
        centre(&mut nodes, online);
        let may_migrate: Vec<Vec<bool>> = cluster
            .nodes
            .iter()
            .map(|from| cluster.nodes.iter().map(|to| rules.may_migrate(from, to)).collect())
            .collect();
        let plain = exclusive.is_empty() && locations.is_empty() && may_migrate.iter().flatten().all(|may| *may);
        Self {
            columns: std::array::from_fn(|d| instances.iter().map(|guest| guest.adds[d] as f32).collect()),
            nodes,
            instances,
            weights: WEIGHTS,
            online,
            plain,
            tags: exclusive.len(),
            may_migrate,
            places,
        }
    }

    /// Whether an instance weighs the same on every node.
    pub fn alike(&self) -> bool {
        let mut scales = self.nodes.iter().filter(|host| host.online).map(|host| &host.scale);
        let first = scales.next();
        scales.all(|scale| Some(scale) == first)
    }
}

impl Host {
    /// Without instances.
    fn bare(node: &Node, vcpus_max: i64, tags: usize) -> Self {
        let (memory, reported, cpus) = node.resources.map_or((0, 0, 0), |r| (r.memory_mib, r.free_memory_mib, r.cpus));
        let (memory, cpus) = (1.0 / memory as f64, 1.0 / (cpus as f64 * node.cpu_speed));
        Self {
            online: !is_offline(node),
            scale: [memory, memory, cpus, cpus, 1.0, 1.0, 1.0, 1.0],
            at: [0.0; DIMENSIONS],
            free: 0,
            reported,
            free_to_come: reported,
            reserved: 0,
            vcpus_left: vcpus_max,
            count: 0,
            tags: vec![0; tags],
            locations: Vec::new(),
        }
    }

    fn add(&mut self, adds: &Row, memory_used: i64, memory: i64, vcpus: i64) {
        for (at, add) in self.at.iter_mut().zip(adds) {
            *at += add;
        }
        // Gathers what is used, until it is settled.
        self.free += memory_used;
        self.free_to_come -= memory - memory_used;
        self.vcpus_left -= vcpus;
        self.count += 1;
    }

    fn add_planned(&mut self, memory: i64, vcpus: i64) {
        self.free_to_come -= memory;
        self.at[3] += vcpus as f64;
        self.vcpus_left -= vcpus;
    }

    /// From sums over the instances to shares of the node. Memory is a share of what is not free: what deviates is the
    /// same, and an instance adds to it.
    fn settle(&mut self, node: &Node) {
        let recorded = node.resources.map_or(0, |r| whole(r.memory_mib) - whole(r.own_memory_mib)) - self.free;
        self.free = self.reported.min(recorded);
        self.at[0] = -self.free as f64;
        self.at[1] = -self.free_to_come as f64;
        self.at[2] += node.own_vcpus as f64;
        self.at[3] += node.own_vcpus as f64;
        for (at, scale) in self.at.iter_mut().zip(&self.scale) {
            *at *= scale;
        }
    }
}

/// Sums of small numbers lose less.
fn centre(nodes: &mut [Host], online: f64) {
    let mut mean = [0.0; DIMENSIONS];
    for host in nodes.iter().filter(|host| host.online) {
        for (mean, at) in mean.iter_mut().zip(&host.at) {
            *mean += at / online;
        }
    }
    for host in nodes.iter_mut() {
        for (at, mean) in host.at.iter_mut().zip(&mean) {
            *at -= mean;
        }
        if !host.online {
            (host.at, host.scale) = ([0.0; DIMENSIONS], [0.0; DIMENSIONS]);
        }
    }
}

/// Virtual processors its policy lets a node have for instances.
fn vcpus_max(node: &Node, cluster: &Cluster) -> i64 {
    let of_group = |name: &String| cluster.groups.iter().any(|g| g.uuid == node.group && g.name == *name);
    let policy = cluster.policies.iter().find(|policy| policy.group.as_ref().is_some_and(of_group));
    let ratio = policy.map_or(VCPU_RATIO, |policy| policy.vcpu_ratio);
    let cpus = node.resources.map_or(0, |r| r.cpus) as f64;
    // The largest n with n / cpus <= ratio, as that is how it is compared.
    let about = (ratio * cpus) as i64;
    let most = (about - 1..=about + 1).rev().find(|n| *n as f64 / cpus <= ratio).unwrap_or(about);
    most - whole(node.own_vcpus)
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
