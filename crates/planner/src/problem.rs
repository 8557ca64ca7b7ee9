//! The world in arrays: hosts and vms by index (in the order of their ids), with every figure the search needs worked
//! out once. [`State`] is where the vms are; the search changes it and takes changes back.
//!
//! What the search touches for each candidate lies together: one [`Sums`] by host and vm, one bit by class of vms and
//! host, and a short list of counts by rule. Names, windows and texts stay in the world.

mod placement;
mod pools;
mod state;

pub(crate) use placement::{Kind, Placement, RuleIx};
pub(crate) use state::State;

use crate::cost::MoveCost;
use crate::forecast::{self, forecast, normal_quantile};
use crate::predict::Predictor;
use drover_model::load::{HostSample, VmSample};
use drover_model::plan::{Findings, Heat};
use drover_model::policy::{Policy, PowerCurve};
use drover_model::world::{HostState, HostView, Movable, VmView, World};
use drover_model::{CpuMillis, HostId, MicroMoney, Millis, Ratio, TimeMs, VmId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// Position of a host in [`Problem::hosts`].
pub(crate) type HostIx = usize;
/// Position of a vm in [`Problem::vms`].
pub(crate) type VmIx = usize;

/// What a vm nobody has measured yet is counted as, in thousandths of its virtual processors. Half: most vms use far
/// less, and several new ones on one host must not be taken for nothing.
const FRESH_VM_MILLIS_PER_VCPU: u64 = 500;
/// On a host whose load is unknown nothing may be hoped for.
const DARK_VM_MILLIS_PER_VCPU: u64 = 1000;
/// Samples of resident memory and traffic looked at; the largest counts.
const LARGEST_OF: usize = 5;
/// Moves within this count against the limits of moves.
const HOUR: Millis = Millis::secs(3_600);

/// What a vm asks for, or a host carries: amounts that add, so that sums are exact in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sums {
    /// Expected processor demand that was measured, thousandths of a core, and its variance.
    pub mean: u64,
    pub variance: u64,
    /// Demand of vms that nobody has measured.
    pub assumed: u64,
    pub memory: u64,
    /// Memory in use. Signed, because host and vms are measured apart.
    pub resident: i64,
    pub disk: u64,
    /// Bytes per second, in the busier direction.
    pub link: u64,
    /// Processor promised.
    pub reserved: u64,
}

impl Sums {
    #[must_use]
    pub fn with(&self, vm: &Self) -> Self {
        Self {
            mean: self.mean + vm.mean,
            variance: self.variance + vm.variance,
            assumed: self.assumed + vm.assumed,
            memory: self.memory + vm.memory,
            resident: self.resident + vm.resident,
            disk: self.disk + vm.disk,
            link: self.link + vm.link,
            reserved: self.reserved + vm.reserved,
        }
    }

    #[must_use]
    pub fn without(&self, vm: &Self) -> Self {
        Self {
            mean: self.mean - vm.mean,
            variance: self.variance - vm.variance,
            assumed: self.assumed - vm.assumed,
            memory: self.memory - vm.memory,
            resident: self.resident - vm.resident,
            disk: self.disk - vm.disk,
            link: self.link - vm.link,
            reserved: self.reserved - vm.reserved,
        }
    }

    /// Expected demand, assumed included.
    pub fn expected(&self) -> u64 {
        self.mean + self.assumed
    }
}

pub(crate) struct HostRow<'w> {
    pub id: &'w HostId,
    pub view: &'w HostView,
    /// Thousandths of a core; 0 if not known.
    pub cpu: u64,
    /// Bytes; 0 if not known.
    pub memory: u64,
    /// `u64::MAX` where they are not limited.
    pub disk: u64,
    pub link: u64,
    pub power: PowerCurve,
    pub cycle_price: MicroMoney,
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
    pub wants: Sums,
    /// Whether its demand counts as measured: it was, or is the most it can be. Otherwise it is a guess.
    pub measured: bool,
    /// Samples in a row that the demand rests on.
    pub samples: usize,
    /// Moved so recently that it is left alone for this long.
    pub cooldown: Option<Millis>,
    /// Hosts it does not return to yet, and for how long.
    pub left: Vec<(HostIx, Millis)>,
    pub moves_in_hour: u32,
}

pub(crate) struct Problem<'w> {
    pub world: &'w World,
    pub hosts: Vec<HostRow<'w>>,
    pub vms: Vec<VmRow<'w>>,
    pub placement: Placement<'w>,
    /// What the roots of the forest of pools are promised.
    pub promised: Sums,
    /// Standard deviations above the mean at the policy's quantile.
    pub sigmas: f64,
    pub predictor: &'w Predictor,
    /// Of every vm, between hosts that no move has told anything about.
    pub move_costs: Vec<Cell<Option<MoveCost>>>,
    /// By source: destinations that the predictor has learned of.
    pub known_pairs: BTreeMap<HostIx, Vec<HostIx>>,
    pub known_costs: RefCell<BTreeMap<(VmIx, HostIx), MoveCost>>,
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
        let mut vms: Vec<_> = world.vms.iter().map(|(id, view)| vm_row(world, id, view, &index, &hosts)).collect();
        pools::limit(world, &mut vms);
        let placement = Placement::new(world, &index, &vms);
        let mut known_pairs: BTreeMap<HostIx, Vec<HostIx>> = BTreeMap::new();
        for (from, to) in predictor.pairs() {
            if let (Some(from), Some(to)) = (index.get(from), index.get(to)) {
                let known = known_pairs.entry(*from).or_default();
                if !known.contains(to) {
                    known.push(*to);
                }
            }
        }
        Self {
            world,
            placement,
            promised: pools::promised(world),
            sigmas: normal_quantile(world.policy.quantile),
            predictor,
            move_costs: vec![Cell::new(None); vms.len()],
            known_pairs,
            known_costs: RefCell::default(),
            hosts,
            vms,
        }
    }

    pub fn policy(&self) -> &'w Policy {
        &self.world.policy
    }

    /// Measured demand at the policy's quantile. Vms are taken as independent: means and variances add.
    pub fn at_quantile(&self, sums: &Sums) -> u64 {
        sums.mean + (self.sigmas * (sums.variance as f64).sqrt()).ceil() as u64
    }

    /// All that a host may be asked for, assumed demand included.
    pub fn load(&self, sums: &Sums) -> u64 {
        self.at_quantile(sums) + sums.assumed
    }

    /// Thousandths of the host's processor that are asked for.
    pub fn fullness(&self, host: HostIx, sums: &Sums) -> u64 {
        self.load(sums) * 1000 / self.hosts[host].cpu.max(1)
    }

    /// Thousandths of a core that are `share` of a host.
    pub fn cpu_share(&self, host: HostIx, share: Ratio) -> u64 {
        CpuMillis(self.hosts[host].cpu).scale(share.0).0
    }

    pub fn memory_share(&self, host: HostIx, share: Ratio) -> i64 {
        (self.hosts[host].memory as f64 * share.0).round() as i64
    }

    pub fn link_share(&self, host: HostIx, share: Ratio) -> u64 {
        match self.hosts[host].link {
            u64::MAX => u64::MAX,
            link => (link as f64 * share.0).round() as u64,
        }
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

    /// Drained, and still running vms that a migration can take away.
    pub fn drains(&self, state: &State, host: HostIx) -> bool {
        let row = &self.hosts[host];
        row.view.maintenance && row.view.state == HostState::Up && !state.on[host].is_empty()
    }

    /// How full the host may become by this plan's sleep and still not be woken for: demand of all vms on hosts that are
    /// up and known, `ahead` from now, at the quantile.
    pub fn demand_ahead(&self, ahead: Millis) -> u64 {
        let mut sums = Sums::default();
        for vm in &self.vms {
            let known = |host: HostIx| self.hosts[host].load_known;
            if !vm.measured || vm.samples == 0 || !vm.host.is_some_and(known) {
                continue;
            }
            if let Some(f) = vm_forecast(self.world, vm.view, ahead) {
                sums.mean += f.mean;
                sums.variance += f.variance;
            }
        }
        self.at_quantile(&sums)
    }
}

fn host_row<'w>(world: &World, id: &'w HostId, view: &'w HostView) -> HostRow<'w> {
    let series = |value: fn(&HostSample) -> u64| {
        let samples = view.load.iter().rev().map(|(at, sample)| (*at, value(sample)));
        forecast(world.now, world.policy.forecast_ahead, samples, u64::MAX)
    };
    let up = view.state == HostState::Up && view.capacity.is_some();
    let memory_used = if up { series(|sample| sample.memory_used.0).map(|f| f.mean) } else { None };
    let price = &world.policy.money;
    HostRow {
        id,
        view,
        cpu: view.capacity.map_or(0, |c| c.cpu.0),
        memory: view.capacity.map_or(0, |c| c.memory.0),
        disk: view.disk.map_or(u64::MAX, |disk| disk.0),
        link: view.link.map_or(u64::MAX, |link| link.0),
        power: view.power.unwrap_or_else(|| PowerCurve::linear(price.host_idle_watts, price.host_busy_watts)),
        cycle_price: view.power_cycle_price.unwrap_or(price.power_cycle_price),
        load_known: memory_used.is_some(),
        memory_used,
    }
}

/// Of a vm's processor demand.
fn vm_forecast(world: &World, view: &VmView, ahead: Millis) -> Option<forecast::Forecast> {
    let samples = view.load.iter().rev().map(|(at, sample)| (*at, sample.cpu_wanted.0));
    forecast(world.now, ahead, samples, u64::from(view.vcpus) * CpuMillis::CORE.0)
}

fn vm_row<'w>(
    world: &World,
    id: &'w VmId,
    view: &'w VmView,
    index: &BTreeMap<&HostId, HostIx>,
    hosts: &[HostRow<'_>],
) -> VmRow<'w> {
    let host = view.host.as_ref().and_then(|host| index.get(host).copied());
    let forecast = vm_forecast(world, view, world.policy.forecast_ahead);
    let dark = host.is_some_and(|host| !hosts[host].load_known);
    let per_vcpu = if dark { DARK_VM_MILLIS_PER_VCPU } else { FRESH_VM_MILLIS_PER_VCPU };
    let largest = |value: fn(&VmSample) -> u64| {
        view.load.iter().rev().take(LARGEST_OF).map(|(_, sample)| value(sample)).max().filter(|_| forecast.is_some())
    };
    let measured = forecast.is_some() || dark;
    let (mean, variance) = forecast.map_or((u64::from(view.vcpus) * per_vcpu, 0), |f| (f.mean, f.variance));
    let age = |at: &TimeMs| world.now.since(*at);
    let cooldown = view.moved().map(|(at, _)| world.policy.vm_cooldown.saturating_sub(age(at)));
    let no_return = world.policy.return_after.max(world.policy.vm_cooldown);
    let left = view.left.iter().rev().filter_map(|(at, from)| {
        let left = no_return.saturating_sub(age(at));
        index.get(from).map(|host| (*host, left)).filter(|(_, left)| *left > Millis::ZERO)
    });
    VmRow {
        id,
        view,
        host,
        moving_to: match &view.movable {
            Movable::Moving { to } => index.get(to).copied(),
            Movable::Yes | Movable::No { .. } => None,
        },
        wants: Sums {
            mean: if measured { mean } else { 0 },
            variance,
            assumed: if measured { 0 } else { mean },
            memory: view.memory.0,
            resident: largest(|sample| sample.memory_used.0).unwrap_or(view.memory.0) as i64,
            disk: view.disk.0,
            link: largest(|sample| sample.net_rx.0.max(sample.net_tx.0)).unwrap_or(0),
            reserved: view.cpu_reserved.0,
        },
        measured,
        samples: forecast.map_or(0, |f| f.samples),
        cooldown: cooldown.filter(|left| *left > Millis::ZERO),
        left: left.collect(),
        moves_in_hour: view.left.iter().filter(|(at, _)| age(at) < HOUR).count() as u32,
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

impl VmRow<'_> {
    /// How long it does not return to the host.
    pub fn returns(&self, host: HostIx) -> Option<Millis> {
        self.left.iter().find(|(left, _)| *left == host).map(|(_, wait)| *wait)
    }
}
