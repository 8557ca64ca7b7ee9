//! Rules of placement that operators write: what may be written. [`crate::rules`] holds moves to them.

use super::{Context, Reading, Resource};
use crate::Control;
use crate::interface::Refusal;
use drover_model::VmId;
use drover_model::intent::{Host, Vm};
use drover_model::placement::{HostSet, PlacementRule, RuleKind, Scope};
use drover_model::v1::{CreatePlacementRule, PlacementRuleView, RuleWord};
use std::collections::BTreeSet;

const RULES_MAX: usize = 4_096;
const VMS_MAX: usize = CreatePlacementRule::VMS_MAX;

impl Resource for PlacementRule {
    fn create(context: &mut Context, create: CreatePlacementRule) -> Result<Self, Refusal> {
        if let Some(field) = create.misplaced() {
            return Err(Refusal::invalid(field, "means nothing for this kind of rule: leave it out".to_owned()));
        }
        if create.vms.len() > VMS_MAX {
            let detail = format!("names {} vms; at most {VMS_MAX} are taken", create.vms.len());
            return Err(Refusal::invalid("vms", detail));
        }
        let control = &*context.control;
        // The path is there; what the body names is not.
        let find = |vm: &String| match control.find::<Vm>(vm, context.actor, None) {
            Ok(row) => Ok(row.value.id.clone()),
            Err(refusal) => Err(Refusal::invalid("vms", refusal.detail)),
        };
        let vms: BTreeSet<VmId> = create.vms.iter().map(find).collect::<Result<_, _>>()?;
        let rule = Self { id: create.name.clone(), vms, kind: kind_of(create)? };
        if control.tables.rules.len() >= RULES_MAX {
            let detail = format!("the cluster has {RULES_MAX} placement rules, its limit: remove one first");
            return Err(Refusal::conflict(detail));
        }
        check(control, &rule)?;
        if let Some(other) = control.placement_rules().find(|other| contradict(&rule, other)) {
            let detail = format!(
                "placement rule {} says the opposite of some of these vms: `drover rule show {}`, and remove it first",
                other.id, other.id
            );
            return Err(Refusal::conflict(detail).at("vms"));
        }
        Ok(rule)
    }

    fn view(&self, reading: Reading) -> PlacementRuleView {
        PlacementRuleView::new(self, reading.revision)
    }
}

fn kind_of(create: CreatePlacementRule) -> Result<RuleKind, Refusal> {
    let CreatePlacementRule { rule, within, hosts, racks, zones, labels, hosts_max, .. } = create;
    let within = within.unwrap_or(Scope::Host);
    let hosts = HostSet { hosts, racks, zones, labels };
    Ok(match rule {
        RuleWord::Together => RuleKind::Together { within },
        RuleWord::Apart => RuleKind::Apart { within },
        RuleWord::On => RuleKind::On { hosts },
        RuleWord::NotOn => RuleKind::NotOn { hosts },
        RuleWord::HostsMax => {
            let missing = || Refusal::invalid("hosts_max", "say on how many hosts, e.g. 2".to_owned());
            RuleKind::HostsMax { count: hosts_max.ok_or_else(missing)? }
        }
    })
}

fn check(control: &Control, rule: &PlacementRule) -> Result<(), Refusal> {
    let at_least = match rule.kind {
        RuleKind::Together { .. } | RuleKind::Apart { .. } => 2,
        RuleKind::On { .. } | RuleKind::NotOn { .. } | RuleKind::HostsMax { .. } => 1,
    };
    if !(at_least..=VMS_MAX).contains(&rule.vms.len()) {
        return Err(Refusal::invalid("vms", format!("such a rule is about {at_least} to {VMS_MAX} vms")));
    }
    if let Some(vm) = rule.vms.iter().find(|vm| control.vm(vm).is_none_or(|row| row.deleting)) {
        return Err(Refusal::invalid("vms", format!("there is no vm {vm}; `drover vm ls` lists them")));
    }
    match &rule.kind {
        RuleKind::On { hosts } | RuleKind::NotOn { hosts } => check_hosts(control, hosts),
        RuleKind::HostsMax { count: 0 } => Err(Refusal::invalid("hosts_max", "must be at least 1".to_owned())),
        RuleKind::HostsMax { .. } | RuleKind::Together { .. } | RuleKind::Apart { .. } => Ok(()),
    }
}

/// A rack, zone or label that no host has is a slip of the pen: the vms could go nowhere, or anywhere.
fn check_hosts(control: &Control, set: &HostSet) -> Result<(), Refusal> {
    let unknown = |field, what: &str, name: &str, key: &str| {
        let detail = format!("no host {what} {name}; `drover host set HOST {key}={name}` says so of one");
        Err(Refusal::invalid(field, detail))
    };
    if let Some(host) = set.hosts.iter().find(|host| control.host(host).is_none()) {
        return Err(Refusal::invalid("hosts", format!("there is no host {host}; `drover host ls` lists them")));
    }
    let any = |says: &dyn Fn(&Host) -> bool| control.hosts().any(says);
    if let Some(rack) = set.racks.iter().find(|rack| !any(&|host| host.attributes.rack.as_ref() == Some(rack))) {
        return unknown("racks", "is in rack", rack.as_str(), "rack");
    }
    if let Some(zone) = set.zones.iter().find(|zone| !any(&|host| host.attributes.zone.as_ref() == Some(zone))) {
        return unknown("zones", "is in zone", zone.as_str(), "zone");
    }
    if let Some(label) = set.labels.iter().find(|label| !any(&|host| host.attributes.labels.contains(*label))) {
        return unknown("labels", "carries label", label.as_str(), "labels");
    }
    if *set == HostSet::default() {
        return Err(Refusal::invalid("hosts", "name hosts, racks, zones or labels".to_owned()));
    }
    Ok(())
}

/// Vms that must share a host can't be kept in different racks. The scopes are in order: host, rack, zone.
fn contradict(one: &PlacementRule, other: &PlacementRule) -> bool {
    let (near, far) = match (&one.kind, &other.kind) {
        (RuleKind::Together { within: near }, RuleKind::Apart { within: far })
        | (RuleKind::Apart { within: far }, RuleKind::Together { within: near }) => (near, far),
        _ => return false,
    };
    near <= far && one.vms.intersection(&other.vms).nth(1).is_some()
}
