//! Networks of tenants (design section 7): overlay networks, security groups, ports of hosts, and the addresses of vms.
//!
//! ```text
//!   requests ─▶ rows (networks, security-groups, ports, the vm's card)
//!                 │ what a step changed
//!                 ▼
//!              fabric ─▶ HostNetwork of each host it concerns ─▶ Effect::Network
//! ```
//!
//! Tenants decide; hosts are told whole states and replace what they had. Whatever a host needs to run or to receive a
//! vm leaves before the command that says so; what others must know of it leaves with the next tick, since the old host
//! passes frames on meanwhile.

mod cards;
mod fabric;
mod groups;
mod host;
mod ports;

pub use cards::{card, set_groups};
pub use fabric::{Fabric, NetworkStanding, reported};
pub use groups::{create_group, remove_group, set_rules};
pub use ports::{create_port, remove_port};

use crate::Control;
use crate::interface::{Actor, NetworkSpec, Refusal, RefusalKind, Reply};
use crate::tables::Tables;
use drover_model::event::Severity;
use drover_model::intent::{Host, Role, Tenant, Vm};
use drover_model::network::{Network, Port, SecurityGroup, Subnet};
use drover_model::{NetworkId, SecurityGroupId, TenantName, TimeMs};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Overlay networks of the whole cluster, and of one tenant.
const NETWORKS_MAX: usize = 10_000;
const NETWORKS_PER_TENANT_MAX: usize = 64;
/// Vms and ports of one overlay network: every host with one of them is told of all, whole, whenever one moves.
const MEMBERS_MAX: usize = 1_000;
const DNS_MAX: usize = 4;
/// Shortest and longest prefix of a network: the longest still has two addresses for vms.
const PREFIX: std::ops::RangeInclusive<u8> = 8..=30;
const MTU: std::ops::RangeInclusive<u16> = 576..=8950;
/// What hosts keep for themselves (RFC 1122 section 3.2.1.3, RFC 3927), and what no interface has (RFC 5771, RFC 1112).
const RESERVED: [(Subnet, &str); 4] = [
    (subnet([0, 0, 0, 0], 8), "this network"),
    (subnet([127, 0, 0, 0], 8), "loopback"),
    (subnet([169, 254, 0, 0], 16), "link-local"),
    (subnet([224, 0, 0, 0], 3), "multicast or reserved"),
];

const fn subnet([a, b, c, d]: [u8; 4], prefix: u8) -> Subnet {
    Subnet { address: Ipv4Addr::new(a, b, c, d), prefix }
}

/// A vm's network, as its tenant named it.
enum Named {
    Overlay(Network),
    /// One that hosts map to a bridge.
    Provider,
}

pub fn create(
    control: &mut Control,
    now: TimeMs,
    actor: &Actor,
    id: NetworkId,
    spec: NetworkSpec,
) -> Result<Reply, Refusal> {
    let NetworkSpec { tenant, name, subnet, router, dns, mtu } = spec;
    for_itself(actor, &tenant, "networks")?;
    control.require::<Tenant>(&tenant, "tenant").map_err(|refusal| refusal.at("tenant"))?;
    check_subnet(subnet)?;
    if let Some(router) = router {
        assignable(subnet, router).map_err(|why| Refusal::invalid("router", why))?;
    }
    if dns.len() > DNS_MAX {
        return Err(Refusal::invalid("dns", format!("names {} servers; at most {DNS_MAX} are taken", dns.len())));
    }
    if let Some(bad) = dns.iter().find(|server| server.is_unspecified() || server.is_multicast()) {
        return Err(Refusal::invalid("dns", format!("{bad} is no server's address")));
    }
    if !MTU.contains(&mtu) {
        let detail = format!("must lie between {} and {} bytes", MTU.start(), MTU.end());
        return Err(Refusal::invalid("mtu", detail));
    }
    if control.networks().any(|network| network.tenant == tenant && network.name == name) {
        let detail = format!("{tenant} has a network {name} already: choose another name");
        return Err(Refusal::conflict(detail).at("name"));
    }
    if is_provider(&control.tables, name.as_str()) {
        let detail = format!("{name} is a provider network of the hosts: choose another name");
        return Err(Refusal::conflict(detail).at("name"));
    }
    if control.networks().filter(|network| network.tenant == tenant).count() >= NETWORKS_PER_TENANT_MAX {
        let detail = format!("{tenant} has {NETWORKS_PER_TENANT_MAX} networks, its limit: remove one first");
        return Err(Refusal::conflict(detail));
    }
    if control.tables.networks.len() >= NETWORKS_MAX {
        return Err(Refusal::conflict(format!("the cluster has {NETWORKS_MAX} networks, its limit")));
    }
    let vni = free_vni(&control.tables, &id).ok_or_else(|| {
        Refusal::conflict("every VXLAN network identifier is in use: remove a network first".to_owned())
    })?;
    let text = format!("{} made network {name} of {subnet}", actor.name);
    network_event(control, now, &id, &tenant, "network-created", text);
    control.tables.put(Network { id: id.clone(), tenant, name, vni, subnet, router, dns, mtu, created_at: control.to_wall(now) });
    Ok(Reply::Network(id))
}

pub fn remove(control: &mut Control, now: TimeMs, actor: &Actor, id: &NetworkId) -> Result<Reply, Refusal> {
    let network = control.require::<Network>(id, "network")?.clone();
    if !may_touch(actor, &network.tenant) {
        return Err(Refusal::not_found(format!("there is no network {id}")));
    }
    let vms = control.vms().filter(|vm| on_network(vm, id)).count();
    let ports = control.ports().filter(|port| port.network == *id).count();
    if vms + ports > 0 {
        let detail = format!("{} has {vms} vms and {ports} ports: remove them first", network.name);
        return Err(Refusal::conflict(detail));
    }
    control.tables.remove::<Network>(id);
    let text = format!("{} removed network {}", actor.name, network.name);
    network_event(control, now, id, &network.tenant, "network-removed", text);
    Ok(Reply::Done)
}

fn network_event(control: &mut Control, now: TimeMs, id: &NetworkId, tenant: &TenantName, kind: &str, text: String) {
    control.tables.event(now, Severity::Info, format!("network/{id}"), Some(tenant), kind, text);
}

/// A tenant makes things for itself only.
fn for_itself(actor: &Actor, tenant: &TenantName, things: &str) -> Result<(), Refusal> {
    if may_touch(actor, tenant) {
        return Ok(());
    }
    let detail = format!("a tenant makes {things} for itself only");
    Err(Refusal::new(RefusalKind::Forbidden, detail).at("tenant"))
}

fn may_touch(actor: &Actor, tenant: &TenantName) -> bool {
    match &actor.role {
        Role::Operator => true,
        Role::Tenant { tenant: own } => own == tenant,
    }
}

fn check_subnet(subnet: Subnet) -> Result<(), Refusal> {
    let bad = |why: String| Err(Refusal::invalid("subnet", why));
    if !PREFIX.contains(&subnet.prefix) {
        return bad(format!("its prefix must lie between {} and {}", PREFIX.start(), PREFIX.end()));
    }
    if subnet.address != subnet.network() {
        return bad(format!("{subnet} is an address in a network: write {}/{}", subnet.network(), subnet.prefix));
    }
    match RESERVED.iter().find(|(reserved, _)| reserved.overlaps(subnet)) {
        Some((reserved, what)) => bad(format!("{subnet} touches {reserved} ({what}): take private addresses")),
        None => Ok(()),
    }
}

/// Whether a member of the network may have the address; else why not.
fn assignable(subnet: Subnet, address: Ipv4Addr) -> Result<(), String> {
    if !subnet.contains(address) {
        return Err(format!("{address} is outside {subnet}"));
    }
    if address == subnet.network() || address == subnet.broadcast() {
        return Err(format!("{address} is the first or last address of {subnet}, which nobody can have"));
    }
    Ok(())
}

/// Begins at a place derived from the id, which is random: one that was just given back is as good as never the next,
/// across restarts, too, without anybody remembering which those are.
fn free_vni(tables: &Tables, id: &NetworkId) -> Option<u32> {
    let used: BTreeSet<u32> = tables.all::<Network>().map(|network| network.vni).collect();
    let count = Network::VNI_MAX - Network::VNI_MIN + 1;
    // FNV-1a, 32 bits.
    let hash = id.as_str().bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    (0..count).map(|n| Network::VNI_MIN + (hash % count + n) % count).find(|vni| !used.contains(vni))
}

fn is_provider(tables: &Tables, name: &str) -> bool {
    tables.all::<Host>().any(|host| host.networks.iter().any(|network| network.as_str() == name))
}

fn on_network(vm: &Vm, network: &NetworkId) -> bool {
    vm.spec.nic.as_ref().is_some_and(|nic| nic.network == *network)
}

/// Addresses of the network that are somebody's.
fn taken(tables: &Tables, network: &Network) -> BTreeSet<Ipv4Addr> {
    let vms = tables.all::<Vm>().filter(|vm| on_network(vm, &network.id));
    let vms = vms.filter_map(|vm| Some(cards::address(vm.spec.nic.as_ref()?)?.address));
    let ports = tables.all::<Port>().filter(|port| port.network == network.id).map(|port| port.address);
    vms.chain(ports).chain(network.router).collect()
}

/// The address asked for, or the lowest free one.
fn assign(tables: &Tables, network: &Network, asked: Option<Ipv4Addr>) -> Result<Ipv4Addr, Refusal> {
    let (taken, subnet) = (taken(tables, network), network.subnet);
    if let Some(address) = asked {
        assignable(subnet, address).map_err(|why| Refusal::invalid("address", why))?;
        if taken.contains(&address) {
            let whose = if network.router == Some(address) { "the router's" } else { "in use" };
            let detail = format!("{address} is {whose} on network {}: take another, or leave it out", network.name);
            return Err(Refusal::conflict(detail).at("address"));
        }
        return Ok(address);
    }
    let (first, last) = (u32::from(subnet.network()) + 1, u32::from(subnet.broadcast()) - 1);
    (first..=last).map(Ipv4Addr::from).find(|address| !taken.contains(address)).ok_or_else(|| {
        Refusal::conflict(format!("every address of network {} ({subnet}) is in use", network.name)).at("address")
    })
}

/// Room for one more vm or port, with this MAC.
fn has_room(tables: &Tables, network: &Network, mac: &str) -> Result<(), Refusal> {
    let vms = tables.all::<Vm>().filter_map(|vm| vm.spec.nic.as_ref()).filter(|nic| nic.network == network.id);
    let ports = tables.all::<Port>().filter(|port| port.network == network.id);
    let macs: Vec<&str> = vms.map(|nic| nic.mac.as_str()).chain(ports.map(|port| port.mac.as_str())).collect();
    if macs.len() >= MEMBERS_MAX {
        let detail = format!("network {} has {MEMBERS_MAX} vms and ports, its limit: use another", network.name);
        return Err(Refusal::conflict(detail).at("network"));
    }
    if macs.contains(&mac) {
        let detail = format!("{mac} is another's on network {}: ask again, or give another", network.name);
        return Err(Refusal::conflict(detail).at("mac"));
    }
    Ok(())
}

/// Finding things by name. Another tenant's are not found.
impl Control {
    /// An overlay network by id, or by name within the caller's tenant; an operator may name the tenant, and must if the
    /// name is not unique.
    pub fn find_network(
        &self,
        reference: &str,
        actor: &Actor,
        tenant: Option<&TenantName>,
    ) -> Result<NetworkId, Refusal> {
        let within = within(actor, tenant);
        let mut found = self
            .networks()
            .filter(|network| within.is_none_or(|tenant| network.tenant == *tenant))
            .filter(|network| network.id.as_str() == reference || network.name.as_str() == reference);
        match (found.next(), found.next()) {
            (None, _) => Err(no_network(reference)),
            (Some(network), None) => Ok(network.id.clone()),
            (Some(_), Some(_)) => Err(Refusal::conflict(format!(
                "several tenants have a network {reference:?}: name the tenant too, or use the network's id"
            ))),
        }
    }

    /// A security group by its name, likewise.
    pub fn find_security_group(
        &self,
        reference: &SecurityGroupId,
        actor: &Actor,
        tenant: Option<&TenantName>,
    ) -> Result<(TenantName, SecurityGroupId), Refusal> {
        let within = within(actor, tenant);
        let mut found = self
            .security_groups()
            .filter(|group| within.is_none_or(|tenant| group.tenant == *tenant) && group.id == *reference);
        match (found.next(), found.next()) {
            (None, _) => Err(Refusal::not_found(format!(
                "there is no security group {reference}; `drover security-group ls` shows yours"
            ))),
            (Some(group), None) => Ok((group.tenant.clone(), group.id.clone())),
            (Some(_), Some(_)) => Err(Refusal::conflict(format!(
                "several tenants have a security group {reference}: name the tenant, too"
            ))),
        }
    }

    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.tables.all()
    }

    pub fn network(&self, id: &NetworkId) -> Option<&Network> {
        self.tables.get(id)
    }

    pub fn security_groups(&self) -> impl Iterator<Item = &SecurityGroup> {
        self.tables.all()
    }

    pub fn security_group(&self, tenant: &TenantName, id: &SecurityGroupId) -> Option<&SecurityGroup> {
        self.tables.get(&(tenant.clone(), id.clone()))
    }

    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.tables.all()
    }

    pub fn port(&self, id: &drover_model::PortId) -> Option<&Port> {
        self.tables.get(id)
    }

    /// What a tenant means by a network's name.
    fn named(&self, tenant: &TenantName, name: &NetworkId) -> Result<Named, Refusal> {
        if let Some(network) = self.network(name) {
            return match network.tenant == *tenant {
                true => Ok(Named::Overlay(network.clone())),
                false => Err(no_network(name.as_str()).at("network")),
            };
        }
        let own = self.networks().find(|network| network.tenant == *tenant && network.name.as_str() == name.as_str());
        match (own, is_provider(&self.tables, name.as_str())) {
            (Some(network), false) => Ok(Named::Overlay(network.clone())),
            (Some(network), true) => {
                let detail = format!(
                    "{name} is both a network of {tenant} and a provider network of the hosts: name the first by its \
                     id, {}, or rename the other in the agents' configuration",
                    network.id
                );
                Err(Refusal::conflict(detail).at("network"))
            }
            (None, _) => Ok(Named::Provider),
        }
    }
}

fn within<'a>(actor: &'a Actor, tenant: Option<&'a TenantName>) -> Option<&'a TenantName> {
    match &actor.role {
        Role::Operator => tenant,
        Role::Tenant { tenant } => Some(tenant),
    }
}

fn no_network(reference: &str) -> Refusal {
    Refusal::not_found(format!("there is no network {reference:?}; `drover network ls` shows yours"))
}

#[cfg(test)]
mod tests;
