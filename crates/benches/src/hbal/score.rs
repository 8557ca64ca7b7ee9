//! The score hbal gives a cluster, from the cluster as it is written in the file.
//!
//! A weighted sum of twenty numbers over the nodes, less is better: standard deviations over the nodes that are online,
//! and counts of what should not be. Source: hbal(1), "CLUSTER SCORING", and what `hbal -v -v -l 0` of Ganeti 3.0 prints
//! for clusters that differ in one thing. Slow and plain on purpose: it holds the search to account, and shares nothing
//! with it.

use drover_planner::text::ganeti::{Cluster, Instance, Load, Node, Role, Status};
use std::collections::{BTreeMap, BTreeSet};

/// Where a group has no policy of its own, whatever the cluster's says.
pub const VCPU_RATIO: f64 = 4.0;
const SPINDLE_RATIO: f64 = 32.0;
/// Of an instance that the file of loads doesn't name.
pub const LOAD: Load = Load { cpu: 1.0, memory: 1.0, disk: 1.0, network: 1.0 };

/// Names and weights of the components, in the order of `hbal -v -v`.
pub const COMPONENTS: [(&str, f64); 20] = [
    ("free_mem_cv", 0.5),
    ("free_disk_cv", 0.5),
    ("n1_cnt", 1.0),
    ("reserved_mem_cv", 1.0),
    ("offline_all_cnt", 4.0),
    ("offline_pri_cnt", 16.0),
    ("vcpu_ratio_cv", 0.5),
    ("cpu_load_cv", 1.0),
    ("mem_load_cv", 1.0),
    ("disk_load_cv", 1.0),
    ("net_load_cv", 1.0),
    ("pri_tags_score", 2.0),
    ("spindles_cv", 0.5),
    ("free_mem_cv_forth", 0.5),
    ("free_disk_cv_forth", 0.5),
    ("vcpu_ratio_cv_forth", 0.5),
    ("spindles_cv_forth", 0.5),
    ("location_score", 1.0),
    ("location_exclusion_score", 1.0),
    ("reserved_mem_rtotal", 0.25),
];

#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// As in [`COMPONENTS`], without the weights.
    pub components: [f64; COMPONENTS.len()],
}

impl Score {
    /// Of a cluster whose nodes are all in one group.
    pub fn of(cluster: &Cluster, loads: &BTreeMap<String, Load>) -> Self {
        let tags = TagRules::of(&cluster.tags);
        let nodes: Vec<Figures> = cluster.nodes.iter().map(|node| Figures::of(node, cluster, loads, &tags)).collect();
        let online = || nodes.iter().filter(|node| !node.offline);
        let offline = || nodes.iter().filter(|node| node.offline);
        let deviation = |of: fn(&Figures) -> f64| deviation(&online().map(of).collect::<Vec<_>>());
        let total = |of: fn(&Figures) -> f64| online().map(of).sum::<f64>();
        let components = [
            deviation(|node| node.free_memory),
            deviation(|node| node.free_disk),
            total(|node| if node.short_of_memory { node.primaries + node.secondaries } else { 0.0 }),
            deviation(|node| node.reserved),
            offline().map(|node| node.primaries + node.secondaries).sum(),
            offline().map(|node| node.primaries).sum(),
            deviation(|node| node.vcpus),
            deviation(|node| node.load.cpu),
            deviation(|node| node.load.memory),
            deviation(|node| node.load.disk),
            deviation(|node| node.load.network),
            total(|node| node.conflicts),
            deviation(|node| node.spindles),
            deviation(|node| node.free_memory_to_come),
            deviation(|node| node.free_disk_to_come),
            deviation(|node| node.vcpus_to_come),
            deviation(|node| node.spindles_to_come),
            total(|node| node.misplaced),
            shared_places(cluster, &tags),
            total(|node| node.reserved),
        ];
        Self { components }
    }

    pub fn total(&self) -> f64 {
        self.components.iter().zip(COMPONENTS).map(|(value, (_, weight))| value * weight).sum()
    }
}

/// What the tags of the cluster make of the tags of nodes and instances: prefixes.
pub struct TagRules {
    exclusions: Vec<String>,
    wishes: Vec<String>,
    locations: Vec<String>,
    migrations: Vec<String>,
    /// Tag of the source and tag of the destination.
    allowed: Vec<(String, String)>,
}

impl TagRules {
    pub fn of(cluster_tags: &[String]) -> Self {
        let after = |prefix: &str| -> Vec<String> {
            cluster_tags.iter().filter_map(|tag| tag.strip_prefix(prefix)).map(str::to_owned).collect()
        };
        let filled = |prefixes: Vec<String>| prefixes.into_iter().filter(|prefix| !prefix.is_empty()).collect();
        let classes = |prefix: &str| after(prefix).into_iter().map(|class| class + ":").collect();
        Self {
            exclusions: filled(after("htools:iextags:")),
            wishes: filled(after("htools:desiredlocation:")),
            locations: classes("htools:nlocation:"),
            migrations: classes("htools:migration:"),
            allowed: after("htools:allowmigration:")
                .iter()
                .filter_map(|pair| pair.split_once("::"))
                .filter(|(_, to)| !to.contains("::"))
                .map(|(from, to)| (from.to_owned(), to.to_owned()))
                .collect(),
        }
    }

    /// No two instances with the same of these should be on one node.
    pub fn exclusive<'a>(&self, instance: &'a Instance) -> Vec<&'a str> {
        matching(&instance.tags, &self.exclusions).collect()
    }

    /// Locations the instance would like to be in.
    pub fn wished<'a>(&self, instance: &'a Instance) -> BTreeSet<&'a str> {
        matching(&instance.tags, &self.wishes).collect()
    }

    pub fn locations<'a>(&self, node: &'a Node) -> BTreeSet<&'a str> {
        matching(&node.tags, &self.locations).collect()
    }

    /// Whether instances can migrate between these nodes: the destination must have, or be allowed, every class the
    /// source has.
    pub fn may_migrate(&self, from: &Node, to: &Node) -> bool {
        let classes: BTreeSet<&str> = matching(&to.tags, &self.migrations).collect();
        matching(&from.tags, &self.migrations).all(|class| {
            classes.contains(class)
                || self.allowed.iter().any(|(source, target)| source == class && classes.contains(target.as_str()))
        })
    }
}

fn matching<'a>(tags: &'a [String], prefixes: &[String]) -> impl Iterator<Item = &'a str> {
    tags.iter().map(String::as_str).filter(|tag| prefixes.iter().any(|prefix| tag.starts_with(prefix.as_str())))
}

pub fn is_offline(node: &Node) -> bool {
    node.role == Role::Offline || node.resources.is_none()
}

/// Of one node.
struct Figures {
    offline: bool,
    primaries: f64,
    secondaries: f64,
    /// Less is free than the instances need that would fail over to it from some other node.
    short_of_memory: bool,
    /// Shares of what the node has.
    free_memory: f64,
    free_disk: f64,
    reserved: f64,
    spindles: f64,
    vcpus: f64,
    load: Load,
    /// With the instances that are only planned.
    free_memory_to_come: f64,
    free_disk_to_come: f64,
    vcpus_to_come: f64,
    spindles_to_come: f64,
    /// Instances that have an exclusion tag some other on the node has.
    conflicts: f64,
    /// Wishes for locations that are not met, and locations that both nodes of an instance are in.
    misplaced: f64,
}

impl Figures {
    fn of(node: &Node, cluster: &Cluster, loads: &BTreeMap<String, Load>, tags: &TagRules) -> Self {
        let all: Vec<&Instance> = cluster.instances.iter().filter(|i| i.primary == node.name).collect();
        let primaries: Vec<&Instance> = all.iter().copied().filter(|i| !i.forthcoming).collect();
        let secondaries: Vec<&Instance> = cluster
            .instances
            .iter()
            .filter(|i| !i.forthcoming && i.secondary.as_deref() == Some(node.name.as_str()))
            .collect();
        let (total, own, free, disk, free_disk, cpus) = node.resources.map_or((0, 0, 0, 0, 0, 0), |r| {
            (r.memory_mib, r.own_memory_mib, r.free_memory_mib, r.disk_mib, r.free_disk_mib, r.cpus)
        });

        let used: u64 = primaries.iter().filter(|i| i.status.uses_memory()).map(|i| i.memory_mib).sum();
        // What neither the records nor the node's own report leave free.
        let unallocated = free.min(signed(total) - signed(own) - signed(used));
        let claimed: u64 = all.iter().filter(|i| i.forthcoming || !i.status.uses_memory()).map(|i| i.memory_mib).sum();
        let mut from_peers: BTreeMap<&str, u64> = BTreeMap::new();
        for i in secondaries.iter().filter(|i| i.auto_balance && i.status != Status::AdminOffline) {
            *from_peers.entry(&i.primary).or_default() += i.memory_mib;
        }
        let reserved = from_peers.values().copied().max().unwrap_or_default();

        let on_disk: u64 = all.iter().filter(|i| i.forthcoming && i.template.is_local()).map(|i| i.disk_mib).sum();
        let share = |free: i64, of: u64| if of == 0 { 1.0 } else { free as f64 / of as f64 };
        let (free_disk_share, disk_to_come) = if node.exclusive_storage {
            let share = share(node.free_spindles, node.spindles);
            (share, share)
        } else {
            (share(free_disk, disk), share(free_disk - signed(on_disk), disk))
        };
        let vcpus = |instances: &[&Instance]| {
            let vcpus: u64 = instances.iter().filter(|i| i.status != Status::AdminOffline).map(|i| i.vcpus).sum();
            (node.own_vcpus + vcpus) as f64 / cpus as f64 / node.cpu_speed
        };
        let policy = cluster.policies.iter().find(|policy| {
            cluster.groups.iter().any(|g| g.uuid == node.group && policy.group.as_ref() == Some(&g.name))
        });
        let room = policy.map_or(SPINDLE_RATIO, |policy| policy.spindle_ratio) * node.spindles as f64;
        let spindles = |instances: &[&Instance]| {
            let both = instances.iter().chain(&secondaries).filter(|i| i.template.is_local());
            let use_of = both.map(|i| i.spindle_use).sum::<u64>() as f64;
            if node.exclusive_storage { 0.0 } else { use_of / room }
        };
        let mut load = Load { cpu: 0.0, memory: 0.0, disk: 0.0, network: 0.0 };
        let of = |i: &Instance| loads.get(&i.name).copied().unwrap_or(LOAD);
        for part in primaries.iter().map(|i| of(i)) {
            load.cpu += part.cpu;
            load.memory += part.memory;
            load.disk += part.disk;
            load.network += part.network;
        }
        load.disk += secondaries.iter().map(|i| of(i).disk).sum::<f64>();

        let mut seen = BTreeSet::new();
        let conflicts = all.iter().flat_map(|i| tags.exclusive(i)).filter(|tag| !seen.insert(*tag)).count();
        let locations = tags.locations(node);
        let misplaced = |i: &&Instance| {
            let other = i.secondary.as_ref().and_then(|name| cluster.nodes.iter().find(|node| node.name == *name));
            let both = other.map_or(0, |other| tags.locations(other).intersection(&locations).count());
            tags.wished(i).difference(&locations).count() + both
        };
        Self {
            offline: is_offline(node),
            primaries: primaries.len() as f64,
            secondaries: secondaries.len() as f64,
            short_of_memory: free < signed(reserved),
            free_memory: unallocated as f64 / total as f64,
            free_disk: free_disk_share,
            reserved: reserved as f64 / total as f64,
            spindles: spindles(&primaries),
            vcpus: vcpus(&primaries),
            load,
            free_memory_to_come: (free - signed(claimed)) as f64 / total as f64,
            free_disk_to_come: disk_to_come,
            vcpus_to_come: vcpus(&all),
            spindles_to_come: spindles(&all),
            conflicts: conflicts as f64,
            misplaced: primaries.iter().map(misplaced).sum::<usize>() as f64,
        }
    }
}

/// Instances with an exclusion tag that some other in the same location has.
fn shared_places(cluster: &Cluster, tags: &TagRules) -> f64 {
    let mut seen = BTreeSet::new();
    let mut shared = 0.0;
    for instance in cluster.instances.iter().filter(|i| !i.forthcoming) {
        let node = cluster.nodes.iter().find(|node| node.name == instance.primary && !is_offline(node));
        for location in node.map(|node| tags.locations(node)).unwrap_or_default() {
            for tag in tags.exclusive(instance) {
                if !seen.insert((location, tag)) {
                    shared += 1.0;
                }
            }
        }
    }
    shared
}

/// Of the whole population. Nothing deviates where nothing is.
fn deviation(values: &[f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    (values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / count).sqrt()
}

fn signed(mib: u64) -> i64 {
    i64::try_from(mib).unwrap_or(i64::MAX)
}
