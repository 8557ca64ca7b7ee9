//! Rules of placement: which vms stay together or apart, and on which hosts.

use super::schema;
use crate::intent::Host;
use crate::kind::{Access, Exposed, Fixed, Kind, ObjectKey, Owner};
use crate::placement::{HostSet, PlacementRule, RuleKind, Scope};
use crate::{HostId, Label, RackId, Revision, RuleId, VmId, ZoneId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// Which kind of rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleWord {
    Together,
    Apart,
    On,
    NotOn,
    HostsMax,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacementRuleView {
    pub name: RuleId,
    #[schema(value_type = u64)]
    pub revision: Revision,
    /// `together`: all of the vms in one host, rack or zone. `apart`: no two of them. `on`: only on these hosts. `not-on`:
    /// never there. `hosts-max`: together on no more hosts than that.
    #[schema(schema_with = schema::rule)]
    pub rule: RuleWord,
    pub vms: BTreeSet<VmId>,
    /// Of `together` and `apart`.
    #[schema(schema_with = schema::optional_scope)]
    pub within: Option<Scope>,
    /// Of `on` and `not-on`: hosts by name, rack, zone or label; the union of all four.
    pub hosts: BTreeSet<HostId>,
    pub racks: BTreeSet<RackId>,
    pub zones: BTreeSet<ZoneId>,
    pub labels: BTreeSet<Label>,
    pub hosts_max: Option<u32>,
}

impl PlacementRuleView {
    pub fn new(rule: &PlacementRule, revision: Revision) -> Self {
        let (word, within, set, hosts_max) = match rule.kind.clone() {
            RuleKind::Together { within } => (RuleWord::Together, Some(within), HostSet::default(), None),
            RuleKind::Apart { within } => (RuleWord::Apart, Some(within), HostSet::default(), None),
            RuleKind::On { hosts } => (RuleWord::On, None, hosts, None),
            RuleKind::NotOn { hosts } => (RuleWord::NotOn, None, hosts, None),
            RuleKind::HostsMax { count } => (RuleWord::HostsMax, None, HostSet::default(), Some(count)),
        };
        let HostSet { hosts, racks, zones, labels } = set;
        let (name, vms) = (rule.id.clone(), rule.vms.clone());
        Self { name, revision, rule: word, vms, within, hosts, racks, zones, labels, hosts_max }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePlacementRule {
    /// Unique in the cluster.
    pub name: RuleId,
    #[schema(schema_with = schema::rule)]
    pub rule: RuleWord,
    /// Each by its id, its name where that is unique, or `tenant/name`; at most 1000.
    pub vms: Vec<String>,
    /// Of `together` and `apart`; `host` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::optional_scope)]
    pub within: Option<Scope>,
    /// `on` and `not-on` need hosts, racks, zones or labels.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hosts: BTreeSet<HostId>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub racks: BTreeSet<RackId>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub zones: BTreeSet<ZoneId>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<Label>,
    /// `hosts-max` needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub hosts_max: Option<u32>,
}

impl CreatePlacementRule {
    pub const VMS_MAX: usize = 1_000;

    /// The first field that is given and means nothing for this kind of rule.
    pub fn misplaced(&self) -> Option<&'static str> {
        let nearness = matches!(self.rule, RuleWord::Together | RuleWord::Apart);
        let set = matches!(self.rule, RuleWord::On | RuleWord::NotOn);
        let given = [
            ("within", self.within.is_some() && !nearness),
            ("hosts", !self.hosts.is_empty() && !set),
            ("racks", !self.racks.is_empty() && !set),
            ("zones", !self.zones.is_empty() && !set),
            ("labels", !self.labels.is_empty() && !set),
            ("hosts_max", self.hosts_max.is_some() && self.rule != RuleWord::HostsMax),
        ];
        given.into_iter().find(|(_, misplaced)| *misplaced).map(|(field, _)| field)
    }
}

impl Kind for PlacementRule {
    const NAME: &'static str = "placement-rule";
    type Key = RuleId;

    fn key(&self) -> RuleId {
        self.id.clone()
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Cluster
    }

    /// The vms are not among them: a rule outlives them.
    fn references(&self) -> Vec<ObjectKey> {
        match &self.kind {
            RuleKind::On { hosts } | RuleKind::NotOn { hosts } => {
                hosts.hosts.iter().map(ObjectKey::of::<Host>).collect()
            }
            RuleKind::Together { .. } | RuleKind::Apart { .. } | RuleKind::HostsMax { .. } => Vec::new(),
        }
    }
}

impl Exposed for PlacementRule {
    const TITLE: &'static str = "placement rule";
    const PLURAL: &'static str = "placement-rules";
    const TAG: &'static str = "placement";
    const ACCESS: Access = Access::OPERATORS;
    type Create = CreatePlacementRule;
    type View = PlacementRuleView;
    type Settings = Fixed;
    const PATCHABLE: bool = false;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rule_is_told_flat_whatever_its_kind() {
        let rule = |kind| PlacementRule { id: "r".parse().unwrap(), vms: BTreeSet::new(), kind };
        let view = |kind| PlacementRuleView::new(&rule(kind), Revision(3));
        let apart = view(RuleKind::Apart { within: Scope::Rack });
        let wire = serde_json::to_value(&apart).unwrap();
        assert_eq!(
            (&wire["rule"], &wire["within"], &wire["hosts_max"]),
            (&json!("apart"), &json!("rack"), &json!(null))
        );
        assert_eq!(serde_json::from_value::<PlacementRuleView>(wire).unwrap(), apart);
        let hosts = HostSet { labels: ["oracle".parse().unwrap()].into(), ..HostSet::default() };
        let on = serde_json::to_value(view(RuleKind::On { hosts })).unwrap();
        assert_eq!((&on["rule"], &on["labels"]), (&json!("on"), &json!(["oracle"])));
        assert_eq!(view(RuleKind::HostsMax { count: 2 }).hosts_max, Some(2));
    }

    #[test]
    fn what_means_nothing_for_a_kind_of_rule_is_named() {
        let rule = |value| serde_json::from_value::<CreatePlacementRule>(value).unwrap().misplaced();
        assert_eq!(rule(json!({"name": "a", "rule": "apart", "vms": [], "within": "rack"})), None);
        assert_eq!(rule(json!({"name": "a", "rule": "apart", "vms": [], "labels": ["x"]})), Some("labels"));
        assert_eq!(rule(json!({"name": "a", "rule": "on", "vms": [], "hosts_max": 1})), Some("hosts_max"));
        assert_eq!(rule(json!({"name": "a", "rule": "hosts-max", "vms": [], "within": "host"})), Some("within"));
    }
}
