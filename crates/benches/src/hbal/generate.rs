//! Clusters made up from a seed.

use crate::random::Random;
use drover_planner::text::ganeti::{
    Allocation, Cluster, Group, Instance, Load, Node, Resources, Role, Status, Template,
};
use std::collections::BTreeMap;

const INSTANCES_PER_NODE: usize = 10;
const MEMORY_MIB: u64 = 256 * 1024;
const OWN_MIB: u64 = 4 * 1024;
const DISK_MIB: u64 = 4_000_000;
const CPUS: u64 = 64;
/// An instance is first tried on this part of the nodes: they fill, the others stay half empty.
const CROWDED: f64 = 0.3;

/// Equal nodes, ten instances for each on shared storage, and their loads: a cluster that has grown from one end.
pub fn cluster(seed: u64, nodes: usize) -> (Cluster, BTreeMap<String, Load>) {
    let mut random = Random(seed ^ ((nodes as u64) << 32));
    let mut free = vec![MEMORY_MIB - OWN_MIB; nodes];
    let mut loads = BTreeMap::new();
    let crowded = ((nodes as f64 * CROWDED) as u64).max(1);
    let instances: Vec<Instance> = (0..nodes * INSTANCES_PER_NODE)
        .map(|n| {
            let name = format!("i{n}");
            let memory_mib = 2048 << random.below(5);
            let vcpus = 1 << random.below(4);
            let share = |random: &mut Random, most: u64| random.below(1000 * most) as f64 / 1000.0;
            let load = Load {
                cpu: share(&mut random, vcpus),
                memory: share(&mut random, 1) * memory_mib as f64 / 32_768.0,
                disk: share(&mut random, 1) / 4.0,
                network: share(&mut random, 1) / 4.0,
            };
            loads.insert(name.clone(), load);
            let first = if random.below(10) < 6 { random.below(crowded) } else { random.below(nodes as u64) } as usize;
            let node = (0..nodes).map(|step| (first + step) % nodes).find(|node| free[*node] > memory_mib + OWN_MIB);
            let node = node.expect("ten instances of at most 32 GiB, on average 13 GiB, fit a node of 256 GiB");
            free[node] -= memory_mib;
            Instance {
                name,
                memory_mib,
                disk_mib: 0,
                vcpus,
                status: Status::Running,
                auto_balance: true,
                primary: format!("n{node}"),
                secondary: None,
                template: Template::Ext,
                tags: Vec::new(),
                spindle_use: 1,
                spindles: None,
                forthcoming: false,
            }
        })
        .collect();
    let group = Group {
        name: "default".to_owned(),
        uuid: "g-1".to_owned(),
        allocation: Allocation::Preferred,
        tags: Vec::new(),
        networks: Vec::new(),
    };
    let nodes = free
        .iter()
        .enumerate()
        .map(|(n, free)| Node {
            name: format!("n{n}"),
            resources: Some(Resources {
                memory_mib: MEMORY_MIB,
                own_memory_mib: OWN_MIB,
                free_memory_mib: i64::try_from(*free).unwrap_or(i64::MAX),
                disk_mib: DISK_MIB,
                free_disk_mib: DISK_MIB as i64,
                cpus: CPUS,
            }),
            role: if n == 0 { Role::Master } else { Role::Online },
            group: group.uuid.clone(),
            spindles: 1,
            tags: Vec::new(),
            exclusive_storage: false,
            free_spindles: 0,
            own_vcpus: 1,
            cpu_speed: 1.0,
        })
        .collect();
    (Cluster { groups: vec![group], nodes, instances, tags: Vec::new(), policies: Vec::new() }, loads)
}
