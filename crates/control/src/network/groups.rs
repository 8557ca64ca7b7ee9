//! Security groups: made, changed and removed by their tenant.

use super::{for_itself, may_touch};
use crate::Control;
use crate::interface::{Actor, Refusal, Reply};
use drover_model::event::Severity;
use drover_model::intent::{Tenant, Vm};
use drover_model::network::{Protocol, Remote, SecurityGroup, SecurityRule, Subnet};
use drover_model::{SecurityGroupId, TenantName, TimeMs};

const GROUPS_PER_TENANT_MAX: usize = 128;
const RULES_MAX: usize = 64;

pub fn create_group(control: &mut Control, now: TimeMs, actor: &Actor, group: SecurityGroup) -> Result<Reply, Refusal> {
    let SecurityGroup { id, tenant, rules, created_at } = group;
    for_itself(actor, &tenant, "security groups")?;
    control.require::<Tenant>(&tenant, "tenant").map_err(|refusal| refusal.at("tenant"))?;
    if control.security_group(&tenant, &id).is_some() {
        let detail = format!("{tenant} has a security group {id} already: choose another name, or change that one");
        return Err(Refusal::conflict(detail).at("name"));
    }
    if control.security_groups().filter(|group| group.tenant == tenant).count() >= GROUPS_PER_TENANT_MAX {
        let detail = format!("{tenant} has {GROUPS_PER_TENANT_MAX} security groups, its limit: remove one first");
        return Err(Refusal::conflict(detail));
    }
    let rules = checked(control, &tenant, &id, rules)?;
    let text = format!("{} made security group {id} with {} rules", actor.name, rules.len());
    group_event(control, now, &tenant, &id, "security-group-created", text);
    control.tables.put(SecurityGroup { id: id.clone(), tenant: tenant.clone(), rules, created_at });
    Ok(Reply::SecurityGroup { tenant, id })
}

/// Replaces all rules; guards every vm of the group by them from then on.
pub fn set_rules(
    control: &mut Control,
    now: TimeMs,
    actor: &Actor,
    tenant: TenantName,
    id: SecurityGroupId,
    rules: Vec<SecurityRule>,
) -> Result<Reply, Refusal> {
    let group = own_group(control, actor, &tenant, &id)?;
    let rules = checked(control, &tenant, &id, rules)?;
    if group.rules != rules {
        let text = format!("{} changed the rules of security group {id}: {} now", actor.name, rules.len());
        group_event(control, now, &tenant, &id, "security-group-changed", text);
        control.tables.put(SecurityGroup { rules, ..group });
    }
    Ok(Reply::SecurityGroup { tenant, id })
}

pub fn remove_group(
    control: &mut Control,
    now: TimeMs,
    actor: &Actor,
    tenant: TenantName,
    id: SecurityGroupId,
) -> Result<Reply, Refusal> {
    own_group(control, actor, &tenant, &id)?;
    let holds = |vm: &&Vm| {
        vm.spec.tenant == tenant && vm.spec.nic.as_ref().is_some_and(|nic| nic.security_groups.contains(&id))
    };
    let vms = control.vms().filter(holds).count();
    if vms > 0 {
        return Err(Refusal::conflict(format!("{vms} vms are in security group {id}: take them out of it first")));
    }
    let names = |rule: &SecurityRule| rule.remote == Remote::Group { group: id.clone() };
    let other = control
        .security_groups()
        .find(|group| group.tenant == tenant && group.id != id && group.rules.iter().any(names));
    if let Some(other) = other {
        let detail = format!("a rule of security group {} speaks of {id}: change that one first", other.id);
        return Err(Refusal::conflict(detail));
    }
    control.tables.remove::<SecurityGroup>(&(tenant.clone(), id.clone()));
    let text = format!("{} removed security group {id}", actor.name);
    group_event(control, now, &tenant, &id, "security-group-removed", text);
    Ok(Reply::Done)
}

fn own_group(
    control: &Control,
    actor: &Actor,
    tenant: &TenantName,
    id: &SecurityGroupId,
) -> Result<SecurityGroup, Refusal> {
    let group = control.security_group(tenant, id).filter(|_| may_touch(actor, tenant));
    group.cloned().ok_or_else(|| Refusal::not_found(format!("there is no security group {id}")))
}

/// The rules as they will be kept: sound, and subnets in their usual form. A group may speak of itself.
fn checked(
    control: &Control,
    tenant: &TenantName,
    of: &SecurityGroupId,
    rules: Vec<SecurityRule>,
) -> Result<Vec<SecurityRule>, Refusal> {
    let bad = |why: String| Err(Refusal::invalid("rules", why));
    if rules.len() > RULES_MAX {
        return bad(format!("{} rules; a security group has {RULES_MAX} at most", rules.len()));
    }
    let mut kept = Vec::with_capacity(rules.len());
    for (n, mut rule) in rules.into_iter().enumerate() {
        let n = n + 1;
        match (rule.protocol, rule.ports) {
            (Protocol::Any | Protocol::Icmp, Some(_)) => {
                return bad(format!("rule {n}: only tcp and udp have ports"));
            }
            (Protocol::Tcp | Protocol::Udp, Some((first, last))) if first > last || first == 0 => {
                return bad(format!("rule {n}: {first} to {last} is no range of ports; the first is at least 1"));
            }
            _ => {}
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

fn group_event(
    control: &mut Control,
    now: TimeMs,
    tenant: &TenantName,
    id: &SecurityGroupId,
    kind: &str,
    text: String,
) {
    control.tables.event(now, Severity::Info, format!("security-group/{tenant}/{id}"), Some(tenant), kind, text);
}
