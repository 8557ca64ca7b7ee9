//! The world in arrays: hosts and vms by index (in the order of their ids), with every figure the
//! search needs worked out once. [`State`] is where the vms are; the search changes it and takes changes back.

use crate::cost::MoveCost;
use crate::forecast::{self, forecast, normal_quantile};
use crate::predict::Predictor;
use drover_model::load::HostSample;
use drover_model::plan::{Findings, Heat};
use drover_model::policy::Policy;
use drover_model::world::{HostState, HostView, Movable, VmView, World};
use drover_model::{CpuMillis, HostId, Millis, Ratio, TimeMs, VmId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Position of a host in [`Problem::hosts`].
pub(crate) type HostIx = usize;
/// Position of a vm in [`Problem::vms`].
pub(crate) type VmIx = usize;

/// A vm, and source and destination if the predictor knows them.
pub(crate) type MoveKey = (VmIx, Option<(HostIx, HostIx)>);

/// What a vm nobody has measured yet is counted as, in thousandths of its virtual processors. Half: most vms use far
/// less, and several new ones on one host must not be taken for nothing.
const FRESH_VM_MILLIS_PER_VCPU: u64 = 500;
/// On a host whose load is unknown nothing may be hoped for.
const DARK_VM_MILLIS_PER_VCPU: u64 = 1000;
/// Samples of resident memory looked at; the largest counts.
const RESIDENT_SAMPLES: usize = 5;

/// Processor demand in thousandths of a core: expectation and variance, so that sums are exact in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Demand {
    pub mean: u64,
    pub variance: u64,
}

pub(crate) struct HostRow<'w> {
    pub id: &'w HostId,
    pub view: &'w HostView,
    /// Thousandths of a core; 0 if not known.
    pub cpu: u64,
    /// Bytes; 0 if not known.
    pub memory: u64,
    /// Up, with telemetry that is recent and long enough.
    pub load_known: bool,
    /// Forecast of the memory its vms hold.
    pub memory_used: Option<u64>,
}

pub(crate) struct VmRow<'w> {
    pub id: &'w VmId,
    pub view: &'w VmView,
    pub host: Option<HostIx>,
    /// Where it is on the way to.
    pub moving_to: Option<HostIx>,
    pub demand: Demand,
    /// Whether `demand` counts as measured: it was, or is the most it can be. Otherwise it is a guess.
    pub measured: bool,
    /// Samples in a row that `demand` rests on.
    pub samples: usize,
    pub memory: u64,
    /// Memory it holds; all of it if not known.
    pub resident: u64,
    /// Index of (tenant, anti-affinity group).
    pub group: Option<usize>,
    /// Index into [`Problem::reach`].
    pub network: Option<usize>,
    /// Sorted; hosts that don't exist are left out.
    pub pinned_to: Vec<HostIx>,
    /// Moved so recently that it is left alone for this long, and whence it came.
    pub cooldown: Option<(Millis, Option<HostIx>)>,
}

pub(crate) struct Problem<'w> {
    pub world: &'w World,
    pub hosts: Vec<HostRow<'w>>,
    pub vms: Vec<VmRow<'w>>,
    /// By network and host: whether the host can attach a vm to it.
    pub reach: Vec<Vec<bool>>,
    /// Standard deviations above the mean at the policy's quantile.
    pub sigmas: f64,
    pub predictor: &'w Predictor,
    /// Source and destination of moves that the predictor has learned from.
    pub known_pairs: BTreeSet<(HostIx, HostIx)>,
    /// By vm and, if it is a known one, pair: the search asks again and again.
    pub move_costs: RefCell<BTreeMap<MoveKey, MoveCost>>,
}

/// What a host carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sums {
    pub measured: Demand,
    /// Of vms whose demand is assumed.
    pub assumed: u64,
    pub memory: u64,
    /// Signed, because host and vms are measured apart.
    pub resident: i64,
}

/// Where the vms are, and which hosts are powered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    pub at: Vec<Option<HostIx>>,
    /// By host: its vms, sorted, with those on the way to it.
    pub on: Vec<Vec<VmIx>>,
    pub sums: Vec<Sums>,
    /// By host: up, and meant to be.
    pub up: Vec<bool>,
}

impl<'w> Problem<'w> {
    /// For judgements in which nothing is moved, or not at a price.
    pub fn new(world: &'w World) -> Self {
        static UNTAUGHT: Predictor = Predictor::new();
        Self::with(world, &UNTAUGHT)
    }

    pub fn with(world: &'w World, predictor: &'w Predictor) -> Self {
        let index: BTreeMap<&HostId, HostIx> = world.hosts.keys().enumerate().map(|(ix, id)| (id, ix)).collect();
        let hosts: Vec<_> = world.hosts.iter().map(|(id, view)| host_row(world, id, view)).collect();
        let (mut groups, mut networks) = (BTreeMap::new(), BTreeMap::new());
        let mut vms = Vec::with_capacity(world.vms.len());
        for (id, view) in &world.vms {
            let group = view.anti_affinity.as_ref().map(|group| {
                let next = groups.len();
                *groups.entry((&view.tenant, group)).or_insert(next)
            });
            let network = view.network.as_ref().map(|network| {
                let next = networks.len();
                *networks.entry(network).or_insert(next)
            });
            let mut row = vm_row(world, id, view, &index, &hosts);
            (row.group, row.network) = (group, network);
            vms.push(row);
        }
        let mut reach = vec![Vec::new(); networks.len()];
        for (network, ix) in networks {
            reach[ix] = world.hosts.values().map(|host| host.networks.contains(network)).collect();
        }
        let ix = |id: &HostId| index.get(id).copied();
        Self {
            world,
            hosts,
            vms,
            reach,
            sigmas: normal_quantile(world.policy.quantile),
            predictor,
            known_pairs: predictor.pairs().filter_map(|(from, to)| ix(from).zip(ix(to))).collect(),
            move_costs: RefCell::default(),
        }
    }

    pub fn policy(&self) -> &'w Policy {
        &self.world.policy
    }

    /// Demand at the policy's quantile. Vms are taken as independent: means and variances add.
    pub fn at_quantile(&self, demand: Demand) -> u64 {
        demand.mean + (self.sigmas * (demand.variance as f64).sqrt()).ceil() as u64
    }

    /// All that a host may be asked for, assumed demand included.
    pub fn load(&self, sums: &Sums) -> u64 {
        self.at_quantile(sums.measured) + sums.assumed
    }

    /// Thousandths of a core that are `share` of a host.
    pub fn cpu_share(&self, host: HostIx, share: Ratio) -> u64 {
        CpuMillis(self.hosts[host].cpu).scale(share.0).0
    }

    pub fn memory_share(&self, host: HostIx, share: Ratio) -> i64 {
        (self.hosts[host].memory as f64 * share.0).round() as i64
    }

    /// Heat by host, as found.
    pub fn heat(&self, findings: &Findings) -> Vec<Heat> {
        self.hosts.iter().map(|host| findings.hosts.get(host.id).map_or(Heat::Unknown, |f| f.heat)).collect()
    }

    /// When the pool last changed: a vm moved, or a host changed its state. What was measured before is no
    /// evidence for what is underused now.
    pub fn changed_at(&self) -> TimeMs {
        let moved = self.vms.iter().filter_map(|vm| vm.view.moved().map(|(at, _)| *at));
        moved.chain(self.hosts.iter().map(|host| host.view.since)).max().unwrap_or(TimeMs::ZERO)
    }

    /// Forecast demand of all vms whose hosts are up and known (at the quantile), and the capacity of the hosts among
    /// them that take vms, with those on their way up.
    pub fn pool(&self, state: &State) -> (u64, u64) {
        let (mut demand, mut capacity) = (Demand::default(), 0);
        for (ix, host) in self.hosts.iter().enumerate() {
            let woken = state.up[ix] && host.view.state != HostState::Up;
            if host.view.state == HostState::Waking && !host.view.maintenance {
                capacity += host.cpu;
            }
            if !state.up[ix] || !(host.load_known || woken) {
                continue;
            }
            demand.mean += state.sums[ix].measured.mean;
            demand.variance += state.sums[ix].measured.variance;
            if !host.view.maintenance {
                capacity += host.cpu;
            }
        }
        (self.at_quantile(demand), capacity)
    }

    pub fn up_count(&self, state: &State) -> u32 {
        let serves = |ix: &HostIx| state.up[*ix] && !self.hosts[*ix].view.maintenance;
        u32::try_from((0..self.hosts.len()).filter(serves).count()).unwrap_or(u32::MAX)
    }

    /// Drained, and still running vms that a migration can take away.
    pub fn drains(&self, state: &State, host: HostIx) -> bool {
        let row = &self.hosts[host];
        row.view.maintenance && row.view.state == HostState::Up && !state.on[host].is_empty()
    }
}

fn host_row<'w>(world: &World, id: &'w HostId, view: &'w HostView) -> HostRow<'w> {
    let series = |value: fn(&HostSample) -> u64| {
        let samples = view.load.iter().rev().map(|(at, sample)| (*at, value(sample)));
        forecast(world.now, world.policy.forecast_ahead, samples, u64::MAX)
    };
    let up = view.state == HostState::Up && view.capacity.is_some();
    let memory_used = if up { series(|sample| sample.memory_used.0).map(|f| f.mean) } else { None };
    HostRow {
        id,
        view,
        cpu: view.capacity.map_or(0, |c| c.cpu.0),
        memory: view.capacity.map_or(0, |c| c.memory.0),
        load_known: memory_used.is_some(),
        memory_used,
    }
}

fn vm_row<'w>(
    world: &World,
    id: &'w VmId,
    view: &'w VmView,
    index: &BTreeMap<&HostId, HostIx>,
    hosts: &[HostRow<'_>],
) -> VmRow<'w> {
    let host = view.host.as_ref().and_then(|host| index.get(host).copied());
    let samples = view.load.iter().rev().map(|(at, sample)| (*at, sample.cpu_wanted.0));
    let vcpus = u64::from(view.vcpus);
    let measured = forecast(world.now, world.policy.forecast_ahead, samples, vcpus * CpuMillis::CORE.0);
    let dark = host.is_some_and(|host| !hosts[host].load_known);
    let per_vcpu = if dark { DARK_VM_MILLIS_PER_VCPU } else { FRESH_VM_MILLIS_PER_VCPU };
    let resident = view.load.iter().rev().take(RESIDENT_SAMPLES).map(|(_, sample)| sample.memory_used.0).max();
    let cooldown = view.moved().and_then(|(at, from)| {
        let left = world.policy.vm_cooldown.saturating_sub(world.now.since(*at));
        (left > Millis::ZERO).then(|| (left, index.get(from).copied()))
    });
    VmRow {
        id,
        view,
        host,
        moving_to: match &view.movable {
            Movable::Moving { to } => index.get(to).copied(),
            Movable::Yes | Movable::No { .. } => None,
        },
        demand: measured
            .map_or(Demand { mean: vcpus * per_vcpu, variance: 0 }, |f| Demand { mean: f.mean, variance: f.variance }),
        measured: measured.is_some() || dark,
        samples: measured.map_or(0, |f| f.samples),
        memory: view.memory.0,
        resident: resident.filter(|_| measured.is_some()).unwrap_or(view.memory.0),
        group: None,
        network: None,
        pinned_to: view.pinned_to.iter().filter_map(|host| index.get(host).copied()).collect(),
        cooldown,
    }
}

impl State {
    pub fn new(problem: &Problem<'_>) -> Self {
        let count = problem.hosts.len();
        let mut state = Self {
            at: vec![None; problem.vms.len()],
            on: vec![Vec::new(); count],
            sums: vec![Sums::default(); count],
            up: problem.hosts.iter().map(|host| host.view.state == HostState::Up).collect(),
        };
        for (ix, vm) in problem.vms.iter().enumerate() {
            if let Some(host) = vm.host {
                state.put(problem, ix, host);
            }
            if let Some(to) = vm.moving_to.filter(|to| Some(*to) != vm.host) {
                state.count_in(problem, ix, to);
            }
        }
        // What the host itself reports is nearer the truth than the sum over its vms.
        for (sums, host) in state.sums.iter_mut().zip(&problem.hosts) {
            if let Some(used) = host.memory_used {
                sums.resident = i64::try_from(used).unwrap_or(i64::MAX);
            }
        }
        state
    }

    /// The vm comes to run on the host.
    pub fn put(&mut self, problem: &Problem<'_>, vm: VmIx, host: HostIx) {
        self.at[vm] = Some(host);
        self.count_in(problem, vm, host);
    }

    /// The vm leaves its host, and has none.
    pub fn take(&mut self, problem: &Problem<'_>, vm: VmIx) {
        let Some(host) = self.at[vm].take() else { return };
        if let Ok(at) = self.on[host].binary_search(&vm) {
            self.on[host].remove(at);
        }
        self.sums[host] = self.sums[host].without(&problem.vms[vm]);
    }

    pub fn shift(&mut self, problem: &Problem<'_>, vm: VmIx, to: HostIx) {
        self.take(problem, vm);
        self.put(problem, vm, to);
    }

    fn count_in(&mut self, problem: &Problem<'_>, vm: VmIx, host: HostIx) {
        if let Err(at) = self.on[host].binary_search(&vm) {
            self.on[host].insert(at, vm);
        }
        self.sums[host] = self.sums[host].with(&problem.vms[vm]);
    }
}

impl Sums {
    #[must_use]
    pub fn with(mut self, vm: &VmRow<'_>) -> Self {
        if vm.measured {
            self.measured.mean += vm.demand.mean;
            self.measured.variance += vm.demand.variance;
        } else {
            self.assumed += vm.demand.mean;
        }
        self.memory += vm.memory;
        self.resident += vm.resident as i64;
        self
    }

    #[must_use]
    pub fn without(mut self, vm: &VmRow<'_>) -> Self {
        if vm.measured {
            self.measured.mean -= vm.demand.mean;
            self.measured.variance -= vm.demand.variance;
        } else {
            self.assumed -= vm.demand.mean;
        }
        self.memory -= vm.memory;
        self.resident -= vm.resident as i64;
        self
    }
}

impl HostRow<'_> {
    /// Samples in a row, newest first, that are recent enough to be evidence.
    pub fn evidence(&self, now: TimeMs) -> impl Iterator<Item = &(TimeMs, HostSample)> {
        let mut after = now;
        self.view.load.iter().rev().take_while(move |(at, _)| {
            let joined = after.since(*at) <= forecast::STALE_AFTER;
            after = *at;
            joined
        })
    }
}
