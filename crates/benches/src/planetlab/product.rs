//! The product's planner at the wheel of the benchmark's data centre: its world in the product's terms, once per round.
//!
//! A MIPS is a thousandth of a core. Memory and links do not bind, as the benchmark has it. The planner is told what an
//! operator would set who wants the benchmark's trade: hosts filled by forecast, relieved once they are short, and
//! emptied as soon as the others hold everything.

use super::policy::Policy;
use super::world::{BEGIN_S, HostIx, Move, VmIx, World, round_s};
use drover_model::inventory::Capacity;
use drover_model::load::{DailyPattern, HostSample, VmSample, Window};
use drover_model::plan::Action;
use drover_model::policy::{Aim, Eagerness, KOfN, MigrationPolicy, Money, MoveLimits, PowerCurve};
use drover_model::world::{HostState, HostView, Movable, VmView, World as Cluster};
use drover_model::{Bytes, CpuMillis, Generation, HostId, MicroMoney, Millis, Ratio, Revision, TimeMs, VmId};
use drover_planner::predict::Predictor;
use drover_planner::{detect, plan};
use std::collections::BTreeMap;

const SAMPLE_EVERY: Millis = Millis::secs(300);
/// Memory that does not bind.
const HOST_MEMORY: Bytes = Bytes(1 << 40);
/// Long before the day: nothing has changed since.
const EPOCH: TimeMs = TimeMs(1_000_000_000_000);

pub struct Product {
    round: usize,
    predictor: Predictor,
    policy: drover_model::policy::Policy,
    loads: Vec<Window<VmSample>>,
    hosts: Vec<Window<HostSample>>,
    left: Vec<Vec<(TimeMs, HostId)>>,
}

impl Product {
    pub fn new() -> Self {
        Self {
            round: 0,
            predictor: Predictor::new(),
            policy: policy(),
            loads: Vec::new(),
            hosts: Vec::new(),
            left: Vec::new(),
        }
    }

    fn cluster(&mut self, world: &World<'_>) -> Cluster {
        let now = at(round_s(self.round));
        self.loads.resize_with(world.vms.len(), Window::default);
        self.hosts.resize_with(world.hosts.len(), Window::default);
        self.left.resize_with(world.vms.len(), Vec::new);
        for seen_s in seen_s(self.round) {
            for (ix, (load, vm)) in self.loads.iter_mut().zip(&world.vms).enumerate() {
                load.push(at(seen_s), vm_sample(world.asked_at(VmIx(ix), seen_s) * vm.kind.mips));
            }
            for (load, host) in self.hosts.iter_mut().zip(&world.hosts) {
                let asked = |vm: &VmIx| world.asked_at(*vm, seen_s) * world.vms[vm.0].kind.mips;
                load.push(at(seen_s), host_sample(host.vms.iter().map(asked).sum()));
            }
        }
        let hosts = world.hosts.iter().enumerate().map(|(ix, host)| {
            let state = if host.vms.is_empty() { HostState::Asleep } else { HostState::Up };
            let view = HostView {
                state,
                capacity: Some(Capacity { cpu: CpuMillis(host.kind.mips as u64), memory: HOST_MEMORY }),
                maintenance: false,
                power_managed: true,
                boot_time: Millis::ZERO,
                networks: Default::default(),
                kind: 0,
                refuses: Default::default(),
                load: self.hosts[ix].clone(),
                since: EPOCH,
                rack: None,
                zone: None,
                labels: Default::default(),
                disk: None,
                link: None,
                power: Some(PowerCurve(host.kind.watts)),
                power_cycle_price: None,
                moves_recent: 0,
            };
            (host_id(ix), view)
        });
        let vms = world.vms.iter().enumerate().filter_map(|(ix, vm)| {
            let view = VmView {
                name: format!("v{ix}").parse().ok()?,
                tenant: "planetlab".parse().ok()?,
                generation: Generation(0),
                vcpus: (vm.kind.mips / 1_000.0).ceil() as u32,
                memory: Bytes::mib(u64::from(vm.kind.ram_mb)),
                network: None,
                anti_affinity: None,
                pinned_to: Default::default(),
                host: Some(host_id(vm.host?.0)),
                movable: Movable::Yes,
                left: self.left[ix].clone(),
                load: self.loads[ix].clone(),
                pattern: DailyPattern::default(),
                disk: Bytes::ZERO,
                pool: None,
                cpu_reserved: CpuMillis::ZERO,
            };
            Some((vm_id(ix), view))
        });
        let (hosts, vms) = (hosts.collect::<BTreeMap<_, _>>(), vms.collect::<BTreeMap<_, _>>());
        Cluster {
            sample_every: SAMPLE_EVERY,
            hosts,
            vms,
            ..Cluster::empty(now, Revision(self.round as u64), self.policy.clone())
        }
    }
}

impl Policy for Product {
    fn name(&self) -> String {
        "drover".to_owned()
    }

    fn round(&mut self, world: &World<'_>) -> Vec<Move> {
        let cluster = self.cluster(world);
        let findings = detect(&cluster);
        let plan = plan(&cluster, &findings, &self.predictor);
        let mut to: BTreeMap<usize, usize> = BTreeMap::new();
        for step in &plan.steps {
            if let Action::Migrate { vm, to: host, from, .. } = &step.action {
                let vm = number(vm.as_str());
                to.insert(vm, number(host.as_str()));
                self.left[vm].push((cluster.now, from.clone()));
            }
        }
        self.round += 1;
        to.into_iter()
            .filter(|(vm, host)| world.vms[*vm].host != Some(HostIx(*host)))
            .map(|(vm, host)| Move { vm: VmIx(vm), to: HostIx(host) })
            .collect()
    }
}

/// When load is measured: at each round, and as often before the first as it takes to know anything.
fn seen_s(round: usize) -> Vec<f64> {
    let now_s = round_s(round);
    if round == 0 { vec![BEGIN_S, BEGIN_S.midpoint(now_s), now_s] } else { vec![now_s] }
}

fn at(seconds: f64) -> TimeMs {
    TimeMs(EPOCH.0 + 86_400_000 + (seconds * 1000.0) as u64)
}

fn host_id(ix: usize) -> HostId {
    format!("h{ix}").parse().expect("a letter and digits are a name")
}

fn vm_id(ix: usize) -> VmId {
    format!("v{ix}").parse().expect("a letter and digits are a name")
}

fn number(name: &str) -> usize {
    name[1..].parse().expect("made here from a number")
}

fn vm_sample(mips: f64) -> VmSample {
    let cpu = CpuMillis(mips.round() as u64);
    VmSample {
        cpu_used: cpu,
        cpu_wanted: cpu,
        memory_used: Bytes::ZERO,
        net_rx: Bytes::ZERO,
        net_tx: Bytes::ZERO,
        disk_latency_us: 0,
        dirty_rate: None,
    }
}

fn host_sample(mips: f64) -> HostSample {
    let cpu = CpuMillis(mips.round() as u64);
    HostSample {
        cpu_used: cpu,
        cpu_wanted: cpu,
        memory_used: Bytes::ZERO,
        memory_pressure: Ratio(0.0),
        net_rx: Bytes::ZERO,
        net_tx: Bytes::ZERO,
        disk_latency_us: 0,
    }
}

/// The same for every day.
fn policy() -> drover_model::policy::Policy {
    let once = KOfN { k: 1, n: 1 };
    drover_model::policy::Policy {
        aim: Aim::Save,
        eagerness: Eagerness(5),
        hot_above: Ratio(1.0),
        hot_evidence: once,
        cold_below: Ratio(0.96),
        cold_evidence: once,
        fill_to: Ratio(0.99),
        wake_above: Ratio(1.0),
        forecast_ahead: SAMPLE_EVERY,
        quantile: 0.85,
        gain_min: MicroMoney::ZERO,
        vm_cooldown: Millis::ZERO,
        return_after: Millis::ZERO,
        moves: MoveLimits { vm_hour_max: 0, host_hour_max: 0, plan_max: 0 },
        settle: Millis::ZERO,
        migrations_at_once_max: 64,
        migration: MigrationPolicy { per_host_max: 16, ..MigrationPolicy::default() },
        money: Money { power_cycle_price: MicroMoney::ZERO, ..Money::default() },
        ..drover_model::policy::Policy::default()
    }
}
