//! The planner's view of the moment, and a vm's state in one word: both made from intent and what is observed.

use crate::Control;
use crate::compatibility::{Kinds, reach};
use crate::live::Seen;
use drover_model::intent::{Host, PowerIntent, RunIntent, Vm};
use drover_model::inventory::{VmInventory, VmState};
use drover_model::load::VmSample;
use drover_model::migration::MigrationPhase;
use drover_model::world::{HostView, Movable, VmView, World};
use drover_model::{Bytes, HostId, Millis, TimeMs, VmId};
use std::collections::BTreeMap;

/// Until a host's first boot was measured.
const BOOT_TIME_GUESS: Millis = Millis::secs(120);
/// What "recent" means for moves from and to a host.
const RECENT: Millis = Millis::secs(3_600);

/// How a vm stands, for those who read.
#[derive(Debug, Clone)]
pub struct VmStatus<'a> {
    /// `waiting`, `starting`, `running`, `migrating`, `stopping`, `stopped`, `failed`, `unknown`, `deleting`.
    pub phase: &'static str,
    /// Where the phase alone does not say enough.
    pub why: Option<String>,
    /// What its host last said of it.
    pub inventory: Option<&'a VmInventory>,
    pub sample: Option<&'a VmSample>,
}

impl Control {
    /// Everything the planner may know, at `now`.
    pub fn world(&self, now: TimeMs) -> World {
        let kinds = Kinds::of(self);
        let moves = self.moves_recent(now);
        let recent = |host: &HostId| moves.get(host).copied().unwrap_or(0);
        World {
            hosts: self.hosts().map(|host| (host.id.clone(), self.host_view(host, &kinds, recent(&host.id)))).collect(),
            rules: self.placement_rules().cloned().collect(),
            vms: self.vms().filter_map(|vm| Some((vm.id.clone(), self.vm_view(vm, now)?))).collect(),
            ..World::empty(now, self.revision(), self.policy().clone())
        }
    }

    /// As much of it as concerns this vm alone, without the hosts.
    pub(crate) fn world_of(&self, now: TimeMs, vm: &Vm) -> World {
        let vms = self.vm_view(vm, now).map(|view| (vm.id.clone(), view)).into_iter().collect();
        World { vms, ..World::empty(now, self.revision(), self.policy().clone()) }
    }

    /// Of each host: moves from and to it that are under way or ended a short while ago. Those that never began don't count.
    fn moves_recent(&self, now: TimeMs) -> BTreeMap<&HostId, u32> {
        let mut moves = BTreeMap::new();
        for record in self.migrations() {
            let counts = match (&record.phase, record.finished_at) {
                (MigrationPhase::Failed { .. } | MigrationPhase::Cancelled { .. }, _) => false,
                (_, Some(at)) => now.since(at) < RECENT,
                (_, None) => true,
            };
            if counts {
                *moves.entry(&record.from).or_default() += 1;
                *moves.entry(&record.to).or_default() += 1;
            }
        }
        moves
    }

    fn host_view(&self, host: &Host, kinds: &Kinds, moves_recent: u32) -> HostView {
        let (kind, refuses) = kinds.of_host(&host.id);
        let live = self.live.hosts.get(&host.id);
        let said = &host.attributes;
        HostView {
            state: self.live.state(&host.id),
            capacity: host.capacity,
            maintenance: host.maintenance,
            power_managed: self.settings.power_managed.contains(&host.id)
                && host.power != PowerIntent::Off
                && self.wake_problem(host).is_none(),
            boot_time: host.boot_time.unwrap_or(BOOT_TIME_GUESS),
            networks: reach(host),
            kind,
            refuses,
            load: live.map(|live| live.load.clone()).unwrap_or_default(),
            since: live.map_or(self.started_at, |live| live.since),
            rack: said.rack.clone(),
            zone: said.zone.clone(),
            labels: said.labels.clone(),
            disk: said.disk,
            link: said.link,
            power: said.power,
            power_cycle_price: said.power_cycle_price,
            moves_recent,
        }
    }

    /// `None` for a vm that takes no room: stopped, and gone from its host.
    fn vm_view(&self, vm: &Vm, now: TimeMs) -> Option<VmView> {
        if !self.takes_room(vm) {
            return None;
        }
        let seen = vm.host.as_ref().map(|host| self.live.sees(host, &vm.id));
        Some(VmView {
            name: vm.spec.name.clone(),
            tenant: vm.spec.tenant.clone(),
            generation: vm.generation,
            vcpus: vm.spec.vcpus,
            memory: vm.spec.memory,
            network: self.reach_needed(&vm.spec),
            anti_affinity: vm.spec.anti_affinity.clone(),
            pinned_to: vm.spec.pinned_to.clone(),
            host: vm.host.clone(),
            movable: self.movable_by_plan(vm, seen, now),
            left: vm.left.clone(),
            pattern: self.patterns.of(&vm.id),
            disk: Bytes::ZERO,
            pool: None,
            cpu_reserved: vm.spec.cpu_reserved,
            load: self.live.vm_load.get(&vm.id).cloned().unwrap_or_default(),
        })
    }

    pub(crate) fn takes_room(&self, vm: &Vm) -> bool {
        let seen = vm.host.as_ref().map(|host| self.live.sees(host, &vm.id));
        let runs = matches!(seen, Some(Seen::There(inventory)) if inventory.state.runs_guest());
        (vm.run == RunIntent::Running && !vm.deleting) || runs
    }

    /// Why a vm may not come to a host as things stand now, whatever the load: a plan's later steps were made
    /// when things stood otherwise.
    pub(crate) fn keeps_out(&self, vm: &Vm, to: &HostId) -> Option<String> {
        let host = self.host(to)?;
        if host.maintenance {
            return Some(format!("{to} is drained"));
        }
        if !vm.spec.pinned_to.is_empty() && !vm.spec.pinned_to.contains(to) {
            return Some(format!("{} is pinned to other hosts than {to}", vm.spec.name));
        }
        if let Some(why) = self.breaks_rule(vm, to) {
            return Some(why);
        }
        if let Some(why) = self.incompatible(vm, to) {
            return Some(why);
        }
        let moves = |other: &Vm| {
            other.migration.and_then(|id| self.migration(id)).is_some_and(|m| m.to == *to || m.from == *to)
        };
        let there = |other: &&Vm| {
            other.id != vm.id && self.takes_room(other) && (other.host.as_ref() == Some(to) || moves(other))
        };
        let mut demand = vm.spec.memory;
        for other in self.vms().filter(there) {
            let same_group = vm.spec.anti_affinity.is_some() && other.spec.anti_affinity == vm.spec.anti_affinity;
            if same_group && other.spec.tenant == vm.spec.tenant {
                return Some(format!("{to} holds {} of the same anti-affinity group", other.spec.name));
            }
            demand += other.spec.memory;
        }
        let room_for = host.capacity.map_or(Bytes::ZERO, |capacity| capacity.memory);
        (demand > room_for).then(|| format!("{to} would need {demand} of memory and has {room_for}"))
    }

    fn movable_by_plan(&self, vm: &Vm, seen: Option<Seen<'_>>, now: TimeMs) -> Movable {
        match (self.movable(vm, seen), self.cools_down(&vm.id, now)) {
            (Movable::Yes, Some(why)) => Movable::No { why },
            (movable, _) => movable,
        }
    }

    /// Why the planner leaves this vm alone for now; completes "because ...".
    pub(crate) fn cools_down(&self, vm: &VmId, now: TimeMs) -> Option<String> {
        let cooled = self.transfers.cooling().of(vm, now)?;
        let times = if cooled.failures == 1 {
            "its last move".to_owned()
        } else {
            format!("its last {} moves", cooled.failures)
        };
        Some(format!("{times} failed ({}), and it is left alone for another {}", cooled.why, cooled.until.since(now)))
    }

    pub(crate) fn movable(&self, vm: &Vm, seen: Option<Seen<'_>>) -> Movable {
        let no = |why: &str| Movable::No { why: why.to_owned() };
        if let Some(record) = vm.migration.and_then(|id| self.migration(id)) {
            let to = if vm.host.as_ref() == Some(&record.to) { record.from.clone() } else { record.to.clone() };
            return Movable::Moving { to };
        }
        match seen {
            None => no("it has no host yet"),
            Some(_) if vm.deleting => no("it is being removed"),
            Some(Seen::Unknown) => no("its host does not answer"),
            Some(Seen::Absent) => no("it has not started yet"),
            Some(Seen::There(inventory)) => match &inventory.state {
                VmState::Running if inventory.generation == vm.generation => Movable::Yes,
                state => no(&format!("it is {}", state.word())),
            },
        }
    }

    pub fn vm_status(&self, id: &VmId) -> VmStatus<'_> {
        let Some(vm) = self.vm(id) else {
            return VmStatus { phase: "unknown", why: None, inventory: None, sample: None };
        };
        let seen = vm.host.as_ref().map_or(Seen::Absent, |host| self.live.sees(host, id));
        let inventory = match seen {
            Seen::There(inventory) => Some(inventory),
            Seen::Absent | Seen::Unknown => None,
        };
        let sample = self.live.vm_load.get(id).and_then(|window| window.last()).map(|(_, sample)| sample);
        let (phase, why) = self.phase(vm, seen);
        VmStatus { phase, why, inventory, sample }
    }

    fn phase(&self, vm: &Vm, seen: Seen<'_>) -> (&'static str, Option<String>) {
        let trouble = self.lifecycle.trouble(&vm.id).map(str::to_owned);
        if vm.deleting {
            return ("deleting", trouble);
        }
        if vm.migration.is_some() {
            return ("migrating", None);
        }
        match (vm.run, seen) {
            (RunIntent::Running, _) if vm.host.is_none() => ("waiting", trouble),
            (_, Seen::Unknown) => ("unknown", Some("its host does not answer".to_owned())),
            (RunIntent::Running, Seen::Absent) if vm.gave_up.is_some() => ("failed", vm.gave_up.clone()),
            (RunIntent::Running, Seen::Absent) => ("starting", trouble),
            (RunIntent::Stopped, Seen::Absent) => ("stopped", trouble),
            (run, Seen::There(inventory)) => match &inventory.state {
                VmState::Running if run == RunIntent::Stopped => ("stopping", trouble),
                VmState::Running | VmState::Outgoing { .. } => ("running", trouble),
                VmState::Completing { stalled: false, .. } => ("migrating", trouble),
                VmState::Completing { stalled: true, .. } => {
                    ("migrating", Some("part of its memory is still at its last host, which is not reached".to_owned()))
                }
                VmState::Starting => ("starting", trouble),
                VmState::Stopping => ("stopping", trouble),
                VmState::Stopped if run == RunIntent::Running => ("starting", trouble),
                VmState::Stopped => ("stopped", trouble),
                VmState::Failed { .. } if run == RunIntent::Stopped => ("stopped", trouble),
                VmState::Failed { why } => ("failed", Some(why.clone())),
                VmState::Incoming { .. } | VmState::HandedOver { .. } | VmState::IncomingFailed { .. } => {
                    ("migrating", trouble)
                }
            },
        }
    }
}
