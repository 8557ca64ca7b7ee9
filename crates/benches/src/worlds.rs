//! Made-up clusters in which every rule is kept and some hosts are asked for more than they have.

use crate::random::Random;
use drover_model::inventory::Capacity;
use drover_model::load::{DailyPattern, HostSample, VmSample, Window};
use drover_model::placement::{HostSet, PlacementRule, RuleKind, Scope};
use drover_model::policy::Policy;
use drover_model::world::{HostState, HostView, Movable, VmView, World};
use drover_model::{Bytes, CpuMillis, Generation, HostId, Millis, Ratio, Revision, TimeMs, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

/// A Tuesday morning.
pub const START: TimeMs = TimeMs(1_767_686_400_000);
const HOST_CPU: CpuMillis = CpuMillis(32_000);
const HOST_MEMORY: Bytes = Bytes(192 << 30);
const RACK_HOSTS: usize = 20;
const ZONE_RACKS: usize = 10;
/// Of the processor asked for, in percent: on a host as it should be, and on one that has too much.
const USUAL_PERCENT: (u64, u64) = (35, 60);
const OVERLOADED_PERCENT: (u64, u64) = (95, 110);
/// Tries to find vms that a rule suits.
const TRIES_MAX: usize = 50;

/// How large a made-up cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub hosts: usize,
    pub vms_per_host: usize,
    /// Of placement; of each kind as many.
    pub rules: usize,
    /// Percent of the hosts that are asked for more than they have.
    pub overloaded_percent: u64,
}

/// A cluster without load, and what its vms want.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// With empty windows.
    pub world: World,
    /// In the order of the vms' ids, on average.
    pub wants: Vec<CpuMillis>,
    pub overloaded: usize,
}

type Placed<'c> = (&'c VmId, &'c HostId);

/// The windows of everything, in the order of the ids: what a server keeps between rounds.
pub struct Telemetry {
    hosts: Vec<Window<HostSample>>,
    vms: Vec<Window<VmSample>>,
    /// By vm: its host's place.
    at: Vec<usize>,
    random: Random,
}

impl Cluster {
    pub fn new(seed: u64, size: &Size, policy: Policy) -> Self {
        let mut random = Random(seed);
        let mut world = World::empty(START, Revision(1), policy);
        let mut wants = BTreeMap::new();
        let mut overloaded = 0;
        for h in 0..size.hosts {
            let id: HostId = id("h", h);
            world.hosts.insert(id.clone(), host(h));
            let hot = random.below(100) < size.overloaded_percent;
            overloaded += usize::from(hot);
            let (low, high) = if hot { OVERLOADED_PERCENT } else { USUAL_PERCENT };
            let percent = low + random.below(high - low + 1);
            let weights: Vec<u64> = (0..size.vms_per_host).map(|_| 50 + random.below(100)).collect();
            let all: u64 = weights.iter().sum();
            for (n, weight) in weights.into_iter().enumerate() {
                let cpu = CpuMillis(HOST_CPU.0 * percent * weight / (100 * all));
                let vm: VmId = self::id("vm-", h * size.vms_per_host + n);
                world.vms.insert(vm.clone(), self::vm(&vm, &id, cpu, Bytes::GIB * (4 << random.below(3))));
                wants.insert(vm, cpu);
            }
        }
        let mut cluster = Self { world, wants: wants.into_values().collect(), overloaded };
        cluster.world.rules = {
            let placed = cluster.world.vms.iter().filter_map(|(id, vm)| Some((id, vm.host.as_ref()?)));
            let vms: Vec<Placed<'_>> = placed.collect();
            (0..size.rules).filter_map(|n| cluster.rule(&mut random, &vms, size.vms_per_host, n)).collect()
        };
        cluster
    }

    /// The `n`th rule; the kinds take turns. `None` if no vms were found that it suits.
    fn rule(&self, random: &mut Random, vms: &[Placed<'_>], vms_per_host: usize, n: usize) -> Option<PlacementRule> {
        let mut place = || random.below(vms.len() as u64) as usize;
        let beside = place() / vms_per_host * vms_per_host;
        let mut pick = |count: usize| -> Vec<Placed<'_>> { (0..count).map(|_| vms[place()]).collect() };
        let rack = |host: &HostId| self.world.hosts[host].rack.clone();
        let racks = |hosts: &[Placed<'_>]| hosts.iter().filter_map(|(_, host)| rack(host)).collect::<BTreeSet<_>>();
        let of_racks = |racks| HostSet { racks, ..HostSet::default() };
        let (vms, kind) = match n % 6 {
            0 => {
                let apart = |vms: &Vec<Placed<'_>>| distinct(vms.iter().map(|(_, host)| *host)) == vms.len();
                ((0..TRIES_MAX).map(|_| pick(3)).find(apart)?, RuleKind::Apart { within: Scope::Host })
            }
            1 => {
                let apart = |vms: &Vec<Placed<'_>>| racks(vms).len() == vms.len();
                ((0..TRIES_MAX).map(|_| pick(2)).find(apart)?, RuleKind::Apart { within: Scope::Rack })
            }
            2 => {
                let two = vms.iter().skip(beside).take(2.min(vms_per_host)).copied().collect();
                (two, RuleKind::Together { within: Scope::Host })
            }
            3 => {
                let here = pick(2);
                let allowed = racks(&here).into_iter().chain(racks(&pick(2))).collect();
                (here, RuleKind::On { hosts: of_racks(allowed) })
            }
            4 => {
                let here = pick(3);
                let taken = racks(&here);
                let forbidden = racks(&pick(2)).into_iter().filter(|rack| !taken.contains(rack)).collect();
                (here, RuleKind::NotOn { hosts: of_racks(forbidden) })
            }
            _ => {
                let here = pick(4);
                let count = distinct(here.iter().map(|(_, host)| *host)) as u32;
                (here, RuleKind::HostsMax { count })
            }
        };
        Some(PlacementRule { id: id("rule-", n), vms: vms.into_iter().map(|(vm, _)| vm.clone()).collect(), kind })
    }
}

impl Telemetry {
    pub fn new(cluster: &Cluster, seed: u64) -> Self {
        let places: BTreeMap<&HostId, usize> =
            cluster.world.hosts.keys().enumerate().map(|(place, id)| (id, place)).collect();
        Self {
            hosts: vec![Window::default(); cluster.world.hosts.len()],
            vms: vec![Window::default(); cluster.world.vms.len()],
            at: cluster.world.vms.values().filter_map(|vm| places.get(vm.host.as_ref()?).copied()).collect(),
            random: Random(seed),
        }
    }

    /// Takes in one sample of every vm and host: what the vms want, give or take 5 %.
    pub fn take(&mut self, cluster: &Cluster, at: TimeMs) {
        let mut sums = vec![IDLE; self.hosts.len()];
        for (((window, want), vm), host) in
            self.vms.iter_mut().zip(&cluster.wants).zip(cluster.world.vms.values()).zip(&self.at)
        {
            let cpu = CpuMillis(want.0 * (950 + self.random.below(101)) / 1000);
            let memory = vm.memory.scale(0.6);
            window.push(at, VmSample { cpu_used: cpu, cpu_wanted: cpu, memory_used: memory, ..STILL });
            sums[*host].cpu_wanted += cpu;
            sums[*host].memory_used += memory;
        }
        for (window, mut sum) in self.hosts.iter_mut().zip(sums) {
            sum.cpu_used = sum.cpu_wanted.min(HOST_CPU);
            window.push(at, sum);
        }
    }

    /// What the planner sees at `now`, made anew as a server makes it each round.
    pub fn world(&self, cluster: &Cluster, now: TimeMs) -> World {
        let hosts = cluster.world.hosts.iter().zip(&self.hosts);
        let vms = cluster.world.vms.iter().zip(&self.vms);
        World {
            now,
            revision: cluster.world.revision,
            policy: cluster.world.policy.clone(),
            sample_every: cluster.world.sample_every,
            hosts: hosts
                .map(|((id, view), load)| (id.clone(), HostView { load: load.clone(), ..view.clone() }))
                .collect(),
            vms: vms.map(|((id, view), load)| (id.clone(), VmView { load: load.clone(), ..view.clone() })).collect(),
            pools: cluster.world.pools.clone(),
            rules: cluster.world.rules.clone(),
        }
    }
}

const STILL: VmSample = VmSample {
    cpu_used: CpuMillis::ZERO,
    cpu_wanted: CpuMillis::ZERO,
    memory_used: Bytes::ZERO,
    net_rx: Bytes::ZERO,
    net_tx: Bytes::ZERO,
    disk_latency_us: 0,
    dirty_rate: None,
};

const IDLE: HostSample = HostSample {
    cpu_used: CpuMillis::ZERO,
    cpu_wanted: CpuMillis::ZERO,
    memory_used: Bytes::ZERO,
    memory_pressure: Ratio(0.0),
    net_rx: Bytes::ZERO,
    net_tx: Bytes::ZERO,
    disk_latency_us: 0,
};

/// Numbers with leading zeros, so that ids sort as they count.
pub fn id<T: FromStr<Err: Display>>(prefix: &str, n: usize) -> T {
    format!("{prefix}{n:06}").parse().unwrap_or_else(|problem| panic!("{prefix}{n} is no id: {problem}"))
}

fn distinct<T: Ord>(items: impl Iterator<Item = T>) -> usize {
    items.collect::<BTreeSet<_>>().len()
}

/// Up, empty and unmeasured.
pub fn host(n: usize) -> HostView {
    HostView {
        state: HostState::Up,
        capacity: Some(Capacity { cpu: HOST_CPU, memory: HOST_MEMORY }),
        maintenance: false,
        power_managed: true,
        boot_time: Millis::secs(120),
        networks: BTreeSet::new(),
        kind: 0,
        refuses: BTreeSet::new(),
        load: Window::default(),
        since: TimeMs(START.0 - Millis::secs(86_400).0),
        rack: Some(id("r", n / RACK_HOSTS)),
        zone: Some(id("z", n / RACK_HOSTS / ZONE_RACKS)),
        labels: BTreeSet::new(),
        disk: None,
        link: None,
        power: None,
        power_cycle_price: None,
        moves_recent: 0,
    }
}

/// Running and unmeasured, with a quarter more virtual processors than it wants.
pub fn vm(id: &VmId, host: &HostId, wants: CpuMillis, memory: Bytes) -> VmView {
    VmView {
        name: id.as_str().parse().expect("ids of vms are names, too"),
        tenant: "acme".parse().expect("a word is a tenant"),
        generation: Generation(1),
        vcpus: (wants.cores() * 1.25).ceil().max(1.0) as u32,
        memory,
        network: None,
        anti_affinity: None,
        pinned_to: BTreeSet::new(),
        host: Some(host.clone()),
        movable: Movable::Yes,
        left: Vec::new(),
        load: Window::default(),
        pattern: DailyPattern::default(),
        disk: Bytes::ZERO,
        pool: None,
        cpu_reserved: CpuMillis::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { hosts: 60, vms_per_host: 5, rules: 36, overloaded_percent: 10 };

    #[test]
    fn a_cluster_is_the_same_for_a_seed_and_begins_with_every_rule_kept() {
        let cluster = Cluster::new(3, &SIZE, Policy::default());
        assert_eq!(cluster.world, Cluster::new(3, &SIZE, Policy::default()).world);
        assert_ne!(cluster.wants, Cluster::new(4, &SIZE, Policy::default()).wants);
        let World { hosts, vms, rules, .. } = &cluster.world;
        assert_eq!((hosts.len(), vms.len(), rules.len()), (60, 300, 36));
        for rule in rules {
            let here: Vec<&HostId> = rule.vms.iter().filter_map(|vm| vms[vm].host.as_ref()).collect();
            let racks: Vec<_> = here.iter().filter_map(|host| hosts[*host].rack.clone()).collect();
            let kept = match &rule.kind {
                RuleKind::Apart { within: Scope::Host } => distinct(here.iter()) == here.len(),
                RuleKind::Apart { .. } => distinct(racks.iter()) == racks.len(),
                RuleKind::Together { .. } => distinct(here.iter()) == 1,
                RuleKind::On { hosts } => racks.iter().all(|rack| hosts.racks.contains(rack)),
                RuleKind::NotOn { hosts } => !racks.iter().any(|rack| hosts.racks.contains(rack)),
                RuleKind::HostsMax { count } => distinct(here.iter()) <= *count as usize,
            };
            assert!(kept, "{rule:?}");
        }
    }

    #[test]
    fn overloaded_hosts_show_in_the_samples() {
        let cluster = Cluster::new(3, &SIZE, Policy::default());
        let mut telemetry = Telemetry::new(&cluster, 1);
        for second in 0..8 {
            telemetry.take(&cluster, TimeMs(START.0 + second * 1000));
        }
        let world = telemetry.world(&cluster, TimeMs(START.0 + 7000));
        let over = |view: &&HostView| view.load.last().is_some_and(|(_, s)| s.cpu_wanted > HOST_CPU.scale(0.9));
        assert_eq!(world.hosts.values().filter(over).count(), cluster.overloaded);
        assert!(cluster.overloaded > 0);
    }
}
