//! The plan followed step by step through the world, in arrays: who is where from which step to which.

use super::peak::Presence;
use super::reach::Reach;
use super::{Violation, found, measured};
use drover_model::placement::{HostSet, PlacementRule, RuleKind, Scope};
use drover_model::plan::{Action, Plan, Step};
use drover_model::world::{HostView, Movable, VmView, World};
use drover_model::{Generation, HostId, RackId, VmId, ZoneId};
use std::collections::{BTreeMap, BTreeSet};

/// A vm's time on a host. `None`: since before the plan, or beyond it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stay {
    pub vm: usize,
    pub arrives: Option<usize>,
    pub leaves: Option<usize>,
}

pub(super) struct Move<'a> {
    pub step: usize,
    pub vm: usize,
    pub id: &'a VmId,
    pub view: &'a VmView,
    pub from: usize,
    pub to: usize,
    /// The vm's first in the plan.
    pub first: bool,
}

/// Where a rule looks: hosts of one domain count as one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Domain<'a> {
    Host(usize),
    Rack(&'a RackId),
    Zone(Option<&'a ZoneId>),
}

pub(super) struct Replay<'a> {
    pub world: &'a World,
    pub plan: &'a Plan,
    pub reach: Reach,
    /// In the order of their ids.
    pub hosts: Vec<(&'a HostId, &'a HostView)>,
    vms: Vec<(&'a VmId, &'a VmView)>,
    /// In the order of the steps.
    pub moves: Vec<Move<'a>>,
    /// By host.
    stays: Vec<Vec<Stay>>,
    /// Steps and hosts that they switch.
    pub switched_on: Vec<(usize, usize)>,
    pub switched_off: Vec<(usize, usize)>,
    /// Rules with a vm that moves, and their vms.
    pub rules: Vec<(&'a PlacementRule, Vec<usize>)>,
    /// By vm that moves: the hosts it comes to, in turn, and indices of its rules.
    tracks: BTreeMap<usize, Track>,
}

#[derive(Default)]
struct Track {
    to: Vec<usize>,
    rules: Vec<usize>,
}

impl<'a> Replay<'a> {
    /// What doesn't even hold together is a violation already.
    pub fn new(world: &'a World, plan: &'a Plan, violations: &mut Vec<Violation>) -> Self {
        let mut replay = Self {
            world,
            plan,
            reach: Reach::new(&plan.steps, violations),
            hosts: world.hosts.iter().collect(),
            vms: world.vms.iter().collect(),
            moves: Vec::new(),
            stays: vec![Vec::new(); world.hosts.len()],
            switched_on: Vec::new(),
            switched_off: Vec::new(),
            rules: Vec::new(),
            tracks: BTreeMap::new(),
        };
        for (vm, (_, view)) in replay.vms.iter().enumerate() {
            let moving = if let Movable::Moving { to } = &view.movable { Some(to) } else { None };
            for host in view.host.iter().chain(moving.filter(|to| view.host.as_ref() != Some(*to))) {
                if let Some(host) = replay.host(host) {
                    replay.stays[host].push(Stay { vm, arrives: None, leaves: None });
                }
            }
        }
        let mut at = BTreeMap::new();
        for (step, Step { action, .. }) in plan.steps.iter().enumerate() {
            let done = match action {
                Action::Migrate { vm, generation, from, to } => {
                    replay.follow(step, (vm, *generation, from, to), &mut at)
                }
                Action::PowerOn { host } => replay.known(host).map(|host| replay.switched_on.push((step, host))),
                Action::PowerOff { host } => replay.known(host).map(|host| replay.switched_off.push((step, host))),
            };
            if let Err(problem) = done {
                found(violations, step, problem);
            }
        }
        replay.rules = replay.touched_rules();
        for (ix, (_, members)) in replay.rules.iter().enumerate() {
            for vm in members {
                if let Some(track) = replay.tracks.get_mut(vm) {
                    track.rules.push(ix);
                }
            }
        }
        replay
    }

    fn host(&self, id: &HostId) -> Option<usize> {
        self.hosts.binary_search_by_key(&id, |(id, _)| id).ok()
    }

    fn known(&self, id: &HostId) -> Result<usize, String> {
        self.host(id).ok_or_else(|| format!("there is no host {id}"))
    }

    fn vm(&self, id: &VmId) -> Option<usize> {
        self.vms.binary_search_by_key(&id, |(id, _)| id).ok()
    }

    fn follow(
        &mut self,
        step: usize,
        (id, generation, from, to): (&'a VmId, Generation, &'a HostId, &'a HostId),
        at: &mut BTreeMap<usize, (&'a HostId, Generation, usize)>,
    ) -> Result<(), String> {
        let vm = self.vm(id).ok_or_else(|| format!("there is no vm {id}"))?;
        let (source, destination) = (self.known(from)?, self.known(to)?);
        let view = self.vms[vm].1;
        let earlier = at.get(&vm).copied();
        let host = earlier.map(|(host, ..)| host).or(view.host.as_ref());
        if host != Some(from) || from == to {
            let is = host.map_or("nowhere".to_owned(), |host| format!("on {host}"));
            return Err(format!("{id} can't go from {from} to {to}: it is {is} by then"));
        }
        let is_at = earlier.map_or(view.generation, |(_, generation, _)| generation);
        if is_at != generation {
            return Err(format!("{id} is at generation {is_at} by then, not {generation}"));
        }
        if earlier.is_some_and(|(.., last)| !self.reach.done(Some(last), step)) {
            return Err(format!("{id} may still be under way by an earlier step"));
        }
        at.insert(vm, (to, generation.next(), step));
        if let Some(stay) = self.stays[source].iter_mut().rev().find(|stay| stay.vm == vm) {
            stay.leaves = Some(step);
        }
        self.stays[destination].push(Stay { vm, arrives: Some(step), leaves: None });
        self.tracks.entry(vm).or_default().to.push(destination);
        self.moves.push(Move { step, vm, id, view, from: source, to: destination, first: earlier.is_none() });
        Ok(())
    }

    fn touched_rules(&self) -> Vec<(&'a PlacementRule, Vec<usize>)> {
        let moved: BTreeSet<&VmId> = self.moves.iter().map(|m| m.id).collect();
        let touched = self.world.rules.iter().filter(|rule| rule.vms.iter().any(|vm| moved.contains(vm)));
        touched.map(|rule| (rule, rule.vms.iter().filter_map(|vm| self.vm(vm)).collect())).collect()
    }

    pub fn host_id(&self, host: usize) -> &'a HostId {
        self.hosts[host].0
    }

    pub fn host_view(&self, host: usize) -> &'a HostView {
        self.hosts[host].1
    }

    pub fn vm_id(&self, vm: usize) -> &'a VmId {
        self.vms[vm].0
    }

    pub fn vm_view(&self, vm: usize) -> &'a VmView {
        self.vms[vm].1
    }

    pub fn stays_on(&self, host: usize) -> &[Stay] {
        &self.stays[host]
    }

    /// Hosts that something comes to, once each.
    pub fn destinations(&self) -> BTreeSet<usize> {
        self.moves.iter().map(|m| m.to).collect()
    }

    /// What a host carries, by some weight of its vms.
    pub fn presences(&self, host: usize, weight: impl Fn(&VmView) -> u64) -> Vec<Presence> {
        let presence = |stay: &Stay| Presence {
            arrives: stay.arrives,
            leaves: stay.leaves,
            weight: weight(self.vm_view(stay.vm)),
        };
        self.stays[host].iter().map(presence).collect()
    }

    /// Where the vm is, in turn. One that is on its way counts at both ends.
    pub fn journey(&self, vm: usize) -> Vec<(usize, Stay)> {
        let view = self.vm_view(vm);
        let moving = if let Movable::Moving { to } = &view.movable { Some(to) } else { None };
        let mut hosts: Vec<usize> = view.host.iter().chain(moving).filter_map(|host| self.host(host)).collect();
        hosts.extend(self.tracks.get(&vm).into_iter().flat_map(|track| &track.to));
        hosts.sort_unstable();
        hosts.dedup();
        let stays =
            |host: usize| self.stays[host].iter().filter(move |stay| stay.vm == vm).map(move |stay| (host, *stay));
        let mut journey: Vec<(usize, Stay)> = hosts.into_iter().flat_map(stays).collect();
        journey.sort_by_key(|(_, stay)| stay.arrives);
        journey
    }

    /// Of a vm that moves.
    pub fn rules_of(&self, vm: usize) -> impl Iterator<Item = (&'a PlacementRule, &[usize])> {
        let rules = self.tracks.get(&vm).into_iter().flat_map(|track| &track.rules);
        rules.map(|ix| (self.rules[*ix].0, self.rules[*ix].1.as_slice()))
    }

    pub fn domain(&self, host: usize, scope: Scope) -> Domain<'a> {
        match (scope, &self.host_view(host).rack) {
            (Scope::Host, _) | (Scope::Rack, None) => Domain::Host(host),
            (Scope::Rack, Some(rack)) => Domain::Rack(rack),
            (Scope::Zone, _) => Domain::Zone(self.host_view(host).zone.as_ref()),
        }
    }

    pub fn is_in(&self, host: usize, set: &HostSet) -> bool {
        let (id, view) = self.hosts[host];
        set.hosts.contains(id)
            || view.rack.as_ref().is_some_and(|rack| set.racks.contains(rack))
            || view.zone.as_ref().is_some_and(|zone| set.zones.contains(zone))
            || view.labels.iter().any(|label| set.labels.contains(label))
    }

    /// Whether the vm must, or should, leave where it is at the beginning, whatever it costs: its host is drained, hot
    /// or promises more than it has, or a rule forbids the vm to be there.
    pub fn is_pressed(&self, m: &Move<'_>) -> bool {
        let Some(host) = m.view.host.as_ref().and_then(|host| self.host(host)) else { return true };
        let view = self.host_view(host);
        view.maintenance
            || (!m.view.pinned_to.is_empty() && !m.view.pinned_to.contains(self.host_id(host)))
            || self.rules_of(m.vm).any(|(rule, members)| self.is_broken(rule, members, m.vm, host))
            || measured::is_hot(self.world, view)
            || self.is_beside_its_like(m, host)
            || self.is_overfull(host)
    }

    /// Before the plan, by the vm's being where it is.
    fn is_broken(&self, rule: &PlacementRule, members: &[usize], vm: usize, host: usize) -> bool {
        let places = |scope: Scope| {
            let others = members.iter().filter(move |other| **other != vm);
            let hosts = others.filter_map(|other| self.vm_view(*other).host.as_ref().and_then(|host| self.host(host)));
            hosts.map(move |host| self.domain(host, scope))
        };
        match &rule.kind {
            RuleKind::On { hosts } => !self.is_in(host, hosts),
            RuleKind::NotOn { hosts } => self.is_in(host, hosts),
            RuleKind::Apart { within } => places(*within).any(|other| other == self.domain(host, *within)),
            RuleKind::Together { within } => places(*within).any(|other| other != self.domain(host, *within)),
            RuleKind::HostsMax { count } => {
                let all: BTreeSet<Domain<'_>> = places(Scope::Host).chain([Domain::Host(host)]).collect();
                all.len() > *count as usize
            }
        }
    }

    fn is_beside_its_like(&self, m: &Move<'_>, host: usize) -> bool {
        let before = self.stays[host].iter().filter(|stay| stay.arrives.is_none() && stay.vm != m.vm);
        m.view.anti_affinity.is_some() && before.map(|stay| self.vm_view(stay.vm)).any(|other| are_alike(other, m.view))
    }

    fn is_overfull(&self, host: usize) -> bool {
        let view = self.host_view(host);
        let sum = |weight: fn(&VmView) -> u64| {
            let before = self.stays[host].iter().filter(|stay| stay.arrives.is_none());
            before.map(|stay| weight(self.vm_view(stay.vm))).sum::<u64>()
        };
        view.capacity.is_some_and(|has| sum(|vm| vm.memory.0) > has.memory.0 || sum(|vm| vm.cpu_reserved.0) > has.cpu.0)
            || view.disk.is_some_and(|disk| sum(|vm| vm.disk.0) > disk.0)
    }
}

/// Of one tenant's anti-affinity group.
pub(super) fn are_alike(one: &VmView, other: &VmView) -> bool {
    one.anti_affinity.is_some() && one.anti_affinity == other.anti_affinity && one.tenant == other.tenant
}
