//! Ganeti's cluster as the planner's world: what can be said in its words is, the rest is remarked upon.

use super::{Cluster, Instance, Load, Node, Resources, Role, Template};
use crate::text::{label, native};
use drover_model::inventory::Capacity;
use drover_model::load::{DailyPattern, Window};
use drover_model::placement::{HostSet, PlacementRule, RuleKind, Scope};
use drover_model::policy::Policy;
use drover_model::world::{HostState, HostView, Movable, VmView, World};
use drover_model::{Bytes, CpuMillis, Generation, HostId, Millis, Revision, TimeMs, VmId, ZoneId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

/// A world, and what of the file is not in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    pub world: World,
    /// Sentences for people.
    pub remarks: Vec<String>,
}

/// What the planner has no words for, so that its plan would be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotImport {
    #[error("{what} {first} and {second} would both be called {name} here: rename one")]
    SameName { what: &'static str, first: String, second: String, name: String },
    #[error("{what}: {name:?} holds no letter or digit that a name could be made of: rename it")]
    NoName { what: &'static str, name: String },
    #[error("the load is of {name}, which the cluster does not have: use the load of the same cluster")]
    UnknownInstance { name: String },
}

const BOOT_GUESS: Millis = Millis::secs(120);
/// Long ago: nothing has just changed.
const SINCE: Millis = Millis::secs(3_600);
const TAG_PREFIX: &str = "htools:iextags:";

/// Hosts from nodes, vms from instances that run (or are to be created), zones from groups, rules from exclusion tags.
///
/// - An offline node is drained: what runs there has to leave, and nothing comes.
/// - Memory is what the node has, less its own use and what it misses without any instance to show for it.
/// - On shared storage and diskless an instance moves within its group; with a mirror only to its secondary; with disks on
///   one node it stays, and so does one without auto-balance.
/// - The ratio of virtual to physical processors becomes a reservation of each vm.
/// - Load of the processor is in cores, of memory a share of what the instance has. Without a load, demand is not known.
pub fn import(cluster: &Cluster, loads: &BTreeMap<String, Load>) -> Result<Imported, CannotImport> {
    let mut remarks = Vec::new();
    let (mut names, mut zones) = (Names::new("groups"), BTreeMap::new());
    for group in &cluster.groups {
        zones.insert(group.uuid.as_str(), names.of::<ZoneId>(&group.name)?);
    }
    let (mut names, mut hosts) = (Names::new("nodes"), BTreeMap::new());
    for node in &cluster.nodes {
        hosts.insert(node.name.as_str(), names.of::<HostId>(&node.name)?);
    }
    let mut names = Names::new("instances");
    let mut vms: BTreeMap<&str, VmId> = BTreeMap::new();
    for instance in &cluster.instances {
        vms.insert(&instance.name, names.of(&instance.name)?);
    }
    if let Some(name) = loads.keys().find(|name| !vms.contains_key(name.as_str())) {
        return Err(CannotImport::UnknownInstance { name: name.clone() });
    }
    let mut world = World::empty(native::NOW, Revision(0), Policy::default());
    for node in &cluster.nodes {
        let zone = zones.get(node.group.as_str()).cloned();
        world.hosts.insert(hosts[node.name.as_str()].clone(), host(node, cluster, zone, world.now));
    }
    let mut down = 0;
    for instance in &cluster.instances {
        if !instance.status.uses_memory() && !instance.forthcoming {
            down += 1;
            continue;
        }
        let ratio = vcpu_ratio(cluster, instance);
        let load = loads.get(&instance.name);
        let id = &vms[instance.name.as_str()];
        world.vms.insert(id.clone(), vm(instance, id, load, &hosts, ratio, &world)?);
    }
    if down > 0 {
        remarks.push(format!("{down} instances that do not run take no room here and are left out"));
    }
    world.rules = group_rules(cluster, &zones, &vms, &world);
    world.rules.extend(exclusion_rules(cluster, &vms, &world));
    native::measure_hosts(&mut world, &BTreeSet::new());
    remarks.extend(left_out(cluster, loads));
    Ok(Imported { world, remarks })
}

/// Names of ours from names of theirs, which may hold dots and capitals.
struct Names {
    what: &'static str,
    taken: BTreeMap<String, String>,
}

impl Names {
    fn new(what: &'static str) -> Self {
        Self { what, taken: BTreeMap::new() }
    }

    fn of<T: FromStr<Err: Display>>(&mut self, theirs: &str) -> Result<T, CannotImport> {
        let name = label(theirs);
        if let Some(first) = self.taken.insert(name.clone(), theirs.to_owned()) {
            return Err(CannotImport::SameName { what: self.what, first, second: theirs.to_owned(), name });
        }
        name.parse().map_err(|_| CannotImport::NoName { what: self.what, name: theirs.to_owned() })
    }
}

fn host(node: &Node, cluster: &Cluster, zone: Option<ZoneId>, now: TimeMs) -> HostView {
    let runs = |instance: &&Instance| instance.primary == node.name && instance.status.uses_memory();
    let capacity = node.resources.map(|resources| {
        let Resources { memory_mib, own_memory_mib, free_memory_mib, cpus, .. } = resources;
        let theirs: u64 = cluster.instances.iter().filter(runs).map(|instance| instance.memory_mib).sum();
        let free = u64::try_from(free_memory_mib).unwrap_or(0);
        let missing = memory_mib.saturating_sub(own_memory_mib + theirs + free);
        let cores = cpus.saturating_sub(node.own_vcpus) as f64 * node.cpu_speed;
        let memory = Bytes::mib(memory_mib.saturating_sub(own_memory_mib + missing));
        Capacity { cpu: CpuMillis::CORE.scale(cores), memory }
    });
    HostView {
        state: if capacity.is_some() { HostState::Up } else { HostState::Down },
        capacity,
        maintenance: node.role == Role::Offline,
        power_managed: false,
        boot_time: BOOT_GUESS,
        networks: BTreeSet::new(),
        kind: 0,
        refuses: BTreeSet::new(),
        load: Window::default(),
        since: TimeMs(now.0 - SINCE.0),
        rack: None,
        zone,
        labels: BTreeSet::new(),
        disk: node.resources.map(|resources| Bytes::mib(resources.disk_mib)),
        link: None,
        power: None,
        power_cycle_price: None,
        moves_recent: 0,
    }
}

/// Virtual processors for each physical one, by the policy of the instance's group or else the cluster's.
fn vcpu_ratio(cluster: &Cluster, instance: &Instance) -> Option<f64> {
    let node = cluster.nodes.iter().find(|node| node.name == instance.primary)?;
    let group = cluster.groups.iter().find(|group| group.uuid == node.group)?;
    let of = |owner: Option<&str>| cluster.policies.iter().find(|policy| policy.group.as_deref() == owner);
    let policy = of(Some(&group.name)).or_else(|| of(None))?;
    (policy.vcpu_ratio > 0.0).then_some(policy.vcpu_ratio)
}

fn vm(
    instance: &Instance,
    id: &VmId,
    load: Option<&Load>,
    hosts: &BTreeMap<&str, HostId>,
    ratio: Option<f64>,
    world: &World,
) -> Result<VmView, CannotImport> {
    let no = |why: &str| Movable::No { why: why.to_owned() };
    let vcpus = u32::try_from(instance.vcpus).unwrap_or(u32::MAX);
    let cores = u64::from(vcpus) * CpuMillis::CORE.0;
    let memory = Bytes::mib(instance.memory_mib);
    let host = |name: &str| hosts.get(name).cloned();
    let pinned_to = match &instance.secondary {
        Some(secondary) => [host(&instance.primary), host(secondary)].into_iter().flatten().collect(),
        None => BTreeSet::new(),
    };
    let stays = matches!(instance.template, Template::Plain | Template::File);
    let window = load.map(|load| {
        let wanted = CpuMillis(((load.cpu * 1000.0).round() as u64).min(cores));
        native::level_load(wanted, memory.scale(load.memory.min(1.0)), world.now, world.sample_every)
    });
    Ok(VmView {
        name: id
            .as_str()
            .parse()
            .map_err(|_| CannotImport::NoName { what: "instance", name: instance.name.clone() })?,
        tenant: "ganeti".parse().map_err(|_| CannotImport::NoName { what: "tenant", name: String::new() })?,
        generation: Generation(1),
        vcpus,
        memory,
        network: None,
        anti_affinity: None,
        pinned_to,
        host: host(&instance.primary).filter(|_| !instance.forthcoming),
        movable: match (stays, instance.auto_balance) {
            (true, _) => no("its disks lie on its host"),
            (false, false) => no("it is not balanced automatically"),
            (false, true) => Movable::Yes,
        },
        left: Vec::new(),
        load: window.unwrap_or_default(),
        pattern: DailyPattern::default(),
        disk: if stays { Bytes::mib(instance.disk_mib) } else { Bytes::ZERO },
        pool: None,
        // Rounded down: what their ratio allows must fit here, too.
        cpu_reserved: ratio.map_or(CpuMillis::ZERO, |ratio| CpuMillis((cores as f64 / ratio) as u64)),
    })
}

/// Nothing moves from one group to another.
fn group_rules(
    cluster: &Cluster,
    zones: &BTreeMap<&str, ZoneId>,
    vms: &BTreeMap<&str, VmId>,
    world: &World,
) -> Vec<PlacementRule> {
    if cluster.groups.len() < 2 {
        return Vec::new();
    }
    let group_of: BTreeMap<&str, &str> =
        cluster.nodes.iter().map(|node| (node.name.as_str(), node.group.as_str())).collect();
    let rule = |(uuid, zone): (&&str, &ZoneId)| {
        let within = cluster.instances.iter().filter(|instance| group_of.get(instance.primary.as_str()) == Some(uuid));
        let within = within.filter_map(|instance| vms.get(instance.name.as_str()));
        let hosts = HostSet { zones: BTreeSet::from([zone.clone()]), ..HostSet::default() };
        Some(PlacementRule {
            id: label(&format!("group-{zone}")).parse().ok()?,
            vms: within.filter(|vm| world.vms.contains_key(vm)).cloned().collect(),
            kind: RuleKind::On { hosts },
        })
    };
    zones.iter().filter_map(rule).filter(|rule| !rule.vms.is_empty()).collect()
}

/// Instances with the same tag, of those that the cluster's tags call exclusive, are kept apart.
fn exclusion_rules(cluster: &Cluster, vms: &BTreeMap<&str, VmId>, world: &World) -> Vec<PlacementRule> {
    let prefixes: Vec<String> =
        cluster.tags.iter().filter_map(|tag| Some(format!("{}:", tag.strip_prefix(TAG_PREFIX)?))).collect();
    let mut tagged: BTreeMap<&str, BTreeSet<VmId>> = BTreeMap::new();
    for instance in &cluster.instances {
        let Some(vm) = vms.get(instance.name.as_str()).filter(|vm| world.vms.contains_key(vm)) else { continue };
        for tag in instance.tags.iter().filter(|tag| prefixes.iter().any(|prefix| tag.starts_with(prefix))) {
            tagged.entry(tag).or_default().insert(vm.clone());
        }
    }
    let rule = |(number, vms)| {
        // Tags may hold anything; the number keeps names apart.
        let id = format!("tag-{number}").parse().ok()?;
        Some(PlacementRule { id, vms, kind: RuleKind::Apart { within: Scope::Host } })
    };
    tagged.into_values().filter(|vms| vms.len() > 1).enumerate().filter_map(rule).collect()
}

fn left_out(cluster: &Cluster, loads: &BTreeMap<String, Load>) -> Vec<String> {
    let mut remarks = Vec::new();
    if loads.values().any(|load| load.disk > 0.0 || load.network > 0.0) {
        remarks.push("load of disks and network is left out: the file does not say in which unit it is".to_owned());
    }
    if loads.is_empty() && !cluster.instances.is_empty() {
        remarks
            .push("no load is given, so demand is not known, and half of each vm's processors is assumed".to_owned());
    }
    let spindles = cluster.nodes.iter().any(|node| node.exclusive_storage);
    if spindles {
        remarks.push("spindles are left out: nodes with exclusive storage are taken for others".to_owned());
    }
    if cluster.instances.iter().any(|instance| instance.template == Template::Drbd) {
        remarks
            .push("mirrored disks take no room here; an instance with a mirror moves to its secondary only".to_owned());
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    const CLUSTER: &str = "\
default|u-1|preferred||
spare|u-2|preferred||

Node1.example.com|65536|1024|47104|1000|900|17|M|u-1|1
node2|65536|1024|64512|1000|900|17|Y|u-1|1||N|0|1|0.5
node3|65536|1024|64512|1000|900|17|N|u-2|1
node4|?|?|?|?|?|?|N|u-2|1

web-1|4096|10|2|running|Y|Node1.example.com||ext|web:a|1
web-2|4096|10|2|running|Y|Node1.example.com||ext|web:a,other:b|1
db-1|4096|20|4|running|Y|node3|node4|drbd|other:b|1
disk-1|4096|20|4|running|Y|Node1.example.com||plain||1
calm-1|2048|20|4|running|N|Node1.example.com||rbd||1
off-1|8192|20|4|ADMIN_down|Y|Node1.example.com||rbd||1
next-1|1024|0|1|running|Y|node3||rbd||1|-|Y

htools:iextags:web

|128,1,1024,1,1,1|128,1,1024,1,1,1;32768,8,1048576,16,8,12|drbd,ext|4.0|32.0
";

    fn imported(text: &str, load: &str) -> Result<Imported, CannotImport> {
        import(&text.parse().unwrap(), &super::super::parse_load(load).unwrap())
    }

    #[test]
    fn nodes_instances_groups_and_tags_become_what_they_are_here() {
        let load = "web-1 1.5 0.25 0 0\nweb-2 9 2 0 0.5\n";
        let Imported { world, remarks } = imported(CLUSTER, load).unwrap();
        let host = |id: &str| &world.hosts[&id.parse::<HostId>().unwrap()];
        let first = host("node1-example-com");
        // 65536, less its own 1024 and 3072 that nobody accounts for: 14336 are in use and 47104 free.
        assert_eq!(first.capacity.unwrap(), Capacity { cpu: CpuMillis(16_000), memory: Bytes::mib(61_440) });
        assert_eq!(first.zone.as_ref().unwrap().as_str(), "default");
        assert_eq!((host("node2").maintenance, host("node2").capacity.unwrap().cpu), (true, CpuMillis(8_000)));
        assert_eq!((host("node4").state, host("node4").capacity), (HostState::Down, None));
        let vm = |id: &str| &world.vms[&id.parse::<VmId>().unwrap()];
        assert_eq!(vm("web-1").load.last().unwrap().1.cpu_wanted, CpuMillis(1500));
        assert_eq!(vm("web-1").load.last().unwrap().1.memory_used, Bytes::mib(1024));
        assert_eq!(vm("web-2").load.last().unwrap().1.cpu_wanted, CpuMillis(2000), "no more than its processors");
        assert_eq!((vm("web-1").cpu_reserved, &vm("web-1").movable), (CpuMillis(500), &Movable::Yes));
        let pins: Vec<&str> = vm("db-1").pinned_to.iter().map(HostId::as_str).collect();
        assert_eq!(pins, ["node3", "node4"]);
        assert!(matches!(&vm("disk-1").movable, Movable::No { why } if why == "its disks lie on its host"));
        assert!(matches!(vm("calm-1").movable, Movable::No { .. }));
        assert_eq!((vm("next-1").host.as_ref(), world.vms.len()), (None, 6), "off-1 does not run");
        let rules: Vec<(&str, usize)> = world.rules.iter().map(|rule| (rule.id.as_str(), rule.vms.len())).collect();
        assert_eq!(rules, [("group-default", 4), ("group-spare", 2), ("tag-0", 2)]);
        assert_eq!(world.rules[2].kind, RuleKind::Apart { within: Scope::Host });
        for part in ["1 instances that do not run", "load of disks and network", "mirrored disks"] {
            assert!(remarks.iter().any(|remark| remark.contains(part)), "{part}: {remarks:?}");
        }
        assert_eq!(native::parse(&native::write(&world)).unwrap(), world, "it can be written as our own");
    }

    #[test]
    fn it_can_be_planned_for() {
        let Imported { world, .. } = imported(CLUSTER, "web-1 1.5 0.25 0 0\n").unwrap();
        let findings = crate::detect(&world);
        let plan = crate::plan(&world, &findings, &crate::predict::Predictor::new());
        assert_eq!(check(&world, &plan), []);
    }

    #[test]
    fn what_can_not_be_said_here_is_refused_with_what_to_do() {
        let refused =
            |from: &str, to: &str, load: &str| imported(&CLUSTER.replace(from, to), load).unwrap_err().to_string();
        let same = refused("node3", "NODE2", "");
        assert_eq!(same, "nodes node2 and NODE2 would both be called node2 here: rename one");
        assert!(refused("web-1|", "...|", "").starts_with("instances: \"...\" holds no letter or digit"));
        assert!(refused("web-1", "web-1", "web-9 1 1 1 1").starts_with("the load is of web-9, which the cluster"));
        let quiet = imported(CLUSTER, "").unwrap();
        assert!(quiet.remarks.iter().any(|remark| remark.starts_with("no load is given")), "{:?}", quiet.remarks);
    }
}
