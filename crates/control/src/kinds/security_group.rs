//! Security groups: made, changed and removed by their tenant.

use super::{Context, Reading, Resource, Wanted};
use crate::Control;
use crate::access::owner_of_new;
use crate::interface::Refusal;
use drover_model::kind::{Kind, Owned};
use drover_model::network::{Protocol, Remote, SecurityGroup, SecurityRule, Subnet};
use drover_model::v1::{self, CreateSecurityGroup, SecurityGroupSettings, SecurityGroupView};
use drover_model::{SecurityGroupId, TenantName};

const RULES_MAX: usize = 64;

impl Resource for SecurityGroup {
    fn create(context: &mut Context, create: CreateSecurityGroup) -> Result<Self, Refusal> {
        let CreateSecurityGroup { name: id, tenant, rules, labels } = create;
        let tenant = owner_of_new(context.actor, tenant, "security group")?;
        context.within_quota(&tenant, Wanted { security_groups: 1, ..Wanted::default() })?;
        let rules = checked(context.control, &tenant, &id, &rules)?;
        Ok(Self { id, tenant, rules, created_at: context.wall(), labels })
    }

    fn settings(&self) -> Option<SecurityGroupSettings> {
        let rules = self.rules.iter().map(v1::SecurityRule::from).collect();
        Some(SecurityGroupSettings { labels: self.labels.clone(), rules })
    }

    /// Its rules guard every vm of the group from then on.
    fn patch(&self, context: &mut Context, settings: SecurityGroupSettings) -> Result<Self, Refusal> {
        let SecurityGroupSettings { labels, rules } = settings;
        let rules = checked(context.control, &self.tenant, &self.id, &rules)?;
        Ok(Self { rules, labels, ..self.clone() })
    }

    fn view(&self, reading: Reading) -> SecurityGroupView {
        let mut view = SecurityGroupView::new(self, reading.revision);
        view.vms = reading.control.tables.vms.count_referring_to(&self.object_key()) as u64;
        view
    }
}

/// The rules as they will be kept: sound, and subnets in their usual form. A group may speak of itself.
fn checked(
    control: &Control,
    tenant: &TenantName,
    of: &SecurityGroupId,
    rules: &[v1::SecurityRule],
) -> Result<Vec<SecurityRule>, Refusal> {
    let bad = |why: String| Err(Refusal::invalid("rules", why));
    if rules.len() > RULES_MAX {
        return bad(format!("{} rules; a security group has {RULES_MAX} at most", rules.len()));
    }
    let mut kept = Vec::with_capacity(rules.len());
    for (n, rule) in rules.iter().enumerate() {
        let n = n + 1;
        let mut rule = match SecurityRule::try_from(rule) {
            Ok(rule) => rule,
            Err(error) => return bad(format!("rule {n}: {error}")),
        };
        match (rule.protocol, rule.ports) {
            (Protocol::Any | Protocol::Icmp, Some(_)) => {
                return bad(format!("rule {n}: only tcp and udp have ports"));
            }
            (Protocol::Tcp | Protocol::Udp, Some((first, last))) if first > last || first == 0 => {
                return bad(format!("rule {n}: {first} to {last} is no range of ports; the first is at least 1"));
            }
            (Protocol::Any | Protocol::Icmp, None) | (Protocol::Tcp | Protocol::Udp, _) => {}
        }
        match &mut rule.remote {
            Remote::Any => {}
            Remote::Subnet { subnet } => *subnet = Subnet { address: subnet.network(), prefix: subnet.prefix },
            Remote::Group { group } if group == of || control.security_group(tenant, group).is_some() => {}
            Remote::Group { group } => {
                return bad(format!("rule {n}: {tenant} has no security group {group}: make it first"));
            }
        }
        if !kept.contains(&rule) {
            kept.push(rule);
        }
    }
    Ok(kept)
}

impl Control {
    pub fn security_groups(&self) -> impl Iterator<Item = &SecurityGroup> {
        self.tables.all()
    }

    pub fn security_group(&self, tenant: &TenantName, id: &SecurityGroupId) -> Option<&SecurityGroup> {
        self.tables.get(&Owned { tenant: tenant.clone(), name: id.clone() })
    }
}
