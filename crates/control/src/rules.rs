//! Whether a move keeps the rules of placement that operators write (`drover rule`, `kinds::placement_rule`).
//!
//! Plans are held to them by the planner and its checker. Here they are looked at once more when a move begins, because
//! the vms may have come to stand otherwise since, and when a person moves a vm.

use crate::Control;
use drover_model::event::Severity;
use drover_model::intent::{Host, Vm};
use drover_model::placement::{HostSet, PlacementRule, RuleKind, Scope};
use drover_model::{HostId, RackId, RuleId, TimeMs, VmId, ZoneId};
use std::collections::BTreeSet;

/// A vm is gone: no rule is about it any more, and one that was about nothing else is gone with it.
pub fn forget(control: &mut Control, now: TimeMs, vm: &VmId) {
    let about: Vec<RuleId> =
        control.placement_rules().filter(|rule| rule.vms.contains(vm)).map(|rule| rule.id.clone()).collect();
    for id in about {
        if control.placement_rule(&id).is_some_and(|rule| rule.vms.len() == 1) {
            control.tables.remove::<PlacementRule>(&id);
            let text = format!("placement rule {id} is gone with the last vm that it was about");
            control.tables.event(now, Severity::Info, format!("rule/{id}"), None, "rule-removed", text);
        } else {
            control.tables.change::<PlacementRule>(&id, |rule| {
                rule.vms.remove(vm);
            });
        }
    }
}

/// Where a host is, as far as a scope looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Domain<'a> {
    Host(&'a HostId),
    Rack(&'a RackId),
    Zone(Option<&'a ZoneId>),
}

fn domain<'a>(control: &'a Control, host: &'a HostId, scope: Scope) -> Domain<'a> {
    let said = control.host(host).map(|row| &row.attributes);
    match scope {
        Scope::Host => Domain::Host(host),
        Scope::Rack => said.and_then(|said| said.rack.as_ref()).map_or(Domain::Host(host), Domain::Rack),
        Scope::Zone => Domain::Zone(said.and_then(|said| said.zone.as_ref())),
    }
}

pub(crate) fn holds(set: &HostSet, host: &Host) -> bool {
    let said = &host.attributes;
    set.hosts.contains(&host.id)
        || said.rack.as_ref().is_some_and(|rack| set.racks.contains(rack))
        || said.zone.as_ref().is_some_and(|zone| set.zones.contains(zone))
        || !said.labels.is_disjoint(&set.labels)
}

impl Control {
    pub fn placement_rules(&self) -> impl Iterator<Item = &PlacementRule> {
        self.tables.all()
    }

    pub fn placement_rule(&self, id: &RuleId) -> Option<&PlacementRule> {
        self.tables.get(id)
    }

    /// The rules that are about this vm.
    pub(crate) fn rules_of<'a>(&'a self, vm: &'a VmId) -> impl Iterator<Item = &'a PlacementRule> {
        self.placement_rules().filter(move |rule| rule.vms.contains(vm))
    }

    /// The hosts that a vm takes room on: its own, and while it moves both.
    fn stands_on(&self, vm: &VmId) -> BTreeSet<&HostId> {
        let Some(row) = self.vm(vm).filter(|row| self.takes_room(row)) else { return BTreeSet::new() };
        let moving = row.migration.and_then(|id| self.migration(id));
        row.host.iter().chain(moving.iter().flat_map(|m| [&m.from, &m.to])).collect()
    }

    /// Which rule a vm's coming to `to` would break more than it is broken now, and why.
    ///
    /// Vms that belong together can only be moved one after another, so a plan's step is not held to that here: the plan
    /// as a whole was. See [`Control::parts`] for moves by hand.
    pub(crate) fn breaks_rule(&self, vm: &Vm, to: &HostId) -> Option<String> {
        let row = self.host(to)?;
        self.rules_of(&vm.id).find_map(|rule| {
            let why = match &rule.kind {
                RuleKind::Together { .. } => None,
                RuleKind::Apart { within } => self.crowds(vm, rule, to, *within),
                RuleKind::On { hosts } => (!holds(hosts, row)).then(|| format!("{to} is none of its hosts")),
                RuleKind::NotOn { hosts } => holds(hosts, row).then(|| format!("it keeps {} off {to}", vm.spec.name)),
                RuleKind::HostsMax { count } => self.spreads(vm, rule, to, *count),
            };
            why.map(|why| format!("placement rule {} forbids it: {why}", rule.id))
        })
    }

    fn crowds(&self, vm: &Vm, rule: &PlacementRule, to: &HostId, within: Scope) -> Option<String> {
        let others_near = |host: &HostId| -> Vec<&VmId> {
            let there = domain(self, host, within);
            let near = |other: &&VmId| self.stands_on(other).iter().any(|at| domain(self, at, within) == there);
            rule.vms.iter().filter(|other| **other != vm.id).filter(near).collect()
        };
        let there = others_near(to);
        let before = vm.host.as_ref().map_or(0, |host| others_near(host).len());
        let other = there.first().filter(|_| there.len() > before).and_then(|other| self.vm(other))?;
        Some(format!("{} is in the same {within} as {to}", other.spec.name))
    }

    fn spreads(&self, vm: &Vm, rule: &PlacementRule, to: &HostId, count: u32) -> Option<String> {
        let mut others = BTreeSet::new();
        for other in rule.vms.iter().filter(|other| **other != vm.id) {
            others.extend(self.stands_on(other));
        }
        let hosts = |own: Option<&HostId>| others.len() + usize::from(own.is_some_and(|own| !others.contains(own)));
        let after = hosts(Some(to));
        (after > count as usize && after > hosts(vm.host.as_ref()))
            .then(|| format!("its vms would run on {after} hosts, and may on {count}"))
    }

    /// Which rule a move by hand would break by taking a vm away from those that it belongs to.
    pub(crate) fn parts(&self, vm: &Vm, to: &HostId) -> Option<String> {
        let from = vm.host.as_ref()?;
        self.rules_of(&vm.id).find_map(|rule| {
            let RuleKind::Together { within } = rule.kind else { return None };
            let near = |host: &HostId| {
                let there = domain(self, host, within);
                let stands = |other: &&VmId| self.stands_on(other).iter().any(|at| domain(self, at, within) == there);
                rule.vms.iter().filter(|other| **other != vm.id).filter(stands).count()
            };
            (near(to) < near(from)).then(|| {
                format!(
                    "placement rule {} keeps {} in one {within} with vms that {to} is away from: move them by a plan \
                     (`drover host drain {from}`), or remove the rule",
                    rule.id, vm.spec.name
                )
            })
        })
    }

    /// A rule as a clause.
    pub(crate) fn say_rule(&self, rule: &PlacementRule) -> String {
        const NAMED_MAX: usize = 4;
        let name = |vm: &VmId| self.vm(vm).map_or_else(|| vm.to_string(), |row| row.spec.name.to_string());
        let mut vms = rule.vms.iter().take(NAMED_MAX).map(name).collect::<Vec<_>>().join(", ");
        if rule.vms.len() > NAMED_MAX {
            vms.push_str(&format!(" and {} more", rule.vms.len() - NAMED_MAX));
        }
        match &rule.kind {
            RuleKind::Together { within } => format!("{vms} in one {within}"),
            RuleKind::Apart { within } => format!("no two of {vms} in one {within}"),
            RuleKind::On { hosts } => format!("{vms} on {} only", say_hosts(hosts)),
            RuleKind::NotOn { hosts } => format!("{vms} never on {}", say_hosts(hosts)),
            RuleKind::HostsMax { count: 1 } => format!("{vms} on one host"),
            RuleKind::HostsMax { count } => format!("{vms} on at most {count} hosts"),
        }
    }
}

fn say_hosts(set: &HostSet) -> String {
    let hosts = set.hosts.iter().map(HostId::to_string);
    let racks = set.racks.iter().map(|rack| format!("rack {rack}"));
    let zones = set.zones.iter().map(|zone| format!("zone {zone}"));
    let labels = set.labels.iter().map(|label| format!("hosts labelled {label}"));
    hosts.chain(racks).chain(zones).chain(labels).collect::<Vec<_>>().join(", ")
}
