//! Carries moves out on the cluster as it is written, one by one, with the rules of hbal(1), "PLACEMENT RESTRICTIONS".
//! It knows nothing of how they were found.

use super::score::{TagRules, VCPU_RATIO, is_offline};
use anyhow::{Context, Result, ensure};
use drover_planner::text::ganeti::{Cluster, Instance, Node, Status};
use std::collections::BTreeMap;

/// The cluster after the moves, each an instance and its new node; an error is the first move hbal would not make.
pub fn carry_out<'a>(cluster: &Cluster, moves: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Cluster> {
    let mut cluster = cluster.clone();
    for (step, (instance, to)) in moves.into_iter().enumerate() {
        one(&mut cluster, instance, to).with_context(|| format!("move {}: {instance} to {to}", step + 1))?;
    }
    Ok(cluster)
}

fn one(cluster: &mut Cluster, name: &str, to: &str) -> Result<()> {
    let at = cluster.instances.iter().position(|i| i.name == name).context("there is no such instance")?;
    let instance = cluster.instances[at].clone();
    let node = |name: &str| cluster.nodes.iter().position(|node| node.name == name);
    let from = node(&instance.primary).context("it is on no node")?;
    let to = node(to).context("there is no such node")?;
    let (source, target) = (&cluster.nodes[from], &cluster.nodes[to]);
    let tags = TagRules::of(&cluster.tags);
    ensure!(from != to, "it is there already");
    ensure!(instance.template.is_shared() && !instance.forthcoming, "its disks can't be reached from elsewhere");
    ensure!(instance.auto_balance, "it is not to be moved without being asked for");
    ensure!(!is_offline(target), "the node is offline");
    ensure!(source.group == target.group, "the node is in another group");
    ensure!(tags.may_migrate(source, target), "the node is of a class it can't migrate to");

    let forced = is_offline(source);
    let short_before = free_mib(target, cluster).1 < reserved_mib(target, cluster);
    let tagged: Vec<&str> = on(cluster, target).flat_map(|i| tags.exclusive(i)).collect();
    let conflict = tags.exclusive(&instance).iter().any(|tag| tagged.contains(tag));
    ensure!(forced || !conflict, "an instance with the same exclusion tag is there");

    let used = if instance.status.uses_memory() { instance.memory_mib as i64 } else { 0 };
    for (node, sign) in [(from, 1), (to, -1)] {
        if let Some(resources) = &mut cluster.nodes[node].resources {
            resources.free_memory_mib += sign * used;
        }
    }
    cluster.instances[at].primary = cluster.nodes[to].name.clone();

    let target = &cluster.nodes[to];
    let (free, _) = free_mib(target, cluster);
    ensure!(free > 0, "the node has {free} MiB left with it");
    if forced {
        return Ok(());
    }
    ensure!(short_before || free > reserved_mib(target, cluster), "the node can't take over what it must any more");
    let planned = |i: &&Instance| i.forthcoming || !i.status.uses_memory();
    let to_come: u64 = on(cluster, target).filter(planned).map(|i| i.memory_mib).sum();
    let reported = target.resources.map_or(0, |r| r.free_memory_mib);
    ensure!(reported - to_come as i64 > 0, "what is planned there has no memory left with it");
    let policy = cluster.policies.iter().find(|policy| {
        cluster.groups.iter().any(|group| group.uuid == target.group && policy.group.as_ref() == Some(&group.name))
    });
    let most = policy.map_or(VCPU_RATIO, |policy| policy.vcpu_ratio);
    let vcpus: u64 = on(cluster, target).filter(|i| i.status != Status::AdminOffline).map(|i| i.vcpus).sum();
    let ratio = (target.own_vcpus + vcpus) as f64 / target.resources.map_or(0, |r| r.cpus) as f64;
    ensure!(ratio <= most, "the node has {ratio:.3} vcpus per cpu with it");
    Ok(())
}

fn on<'a>(cluster: &'a Cluster, node: &'a Node) -> impl Iterator<Item = &'a Instance> {
    cluster.instances.iter().filter(|instance| instance.primary == node.name)
}

/// What neither records nor the node leave free, and what the node says.
fn free_mib(node: &Node, cluster: &Cluster) -> (i64, i64) {
    let Some(resources) = node.resources else { return (0, 0) };
    let running = |i: &&Instance| i.status.uses_memory() && !i.forthcoming;
    let used: u64 = on(cluster, node).filter(running).map(|i| i.memory_mib).sum();
    let recorded = resources.memory_mib as i64 - resources.own_memory_mib as i64 - used as i64;
    (recorded.min(resources.free_memory_mib), resources.free_memory_mib)
}

/// What fails over to the node from the one other node that would send most.
fn reserved_mib(node: &Node, cluster: &Cluster) -> i64 {
    let mut from: BTreeMap<&str, u64> = BTreeMap::new();
    for instance in cluster.instances.iter().filter(|i| i.secondary.as_ref() == Some(&node.name)) {
        if instance.auto_balance && !instance.forthcoming && instance.status != Status::AdminOffline {
            *from.entry(&instance.primary).or_default() += instance.memory_mib;
        }
    }
    from.values().copied().max().unwrap_or_default() as i64
}
