//! Networks of tenants (design section 7): overlay networks, security groups, ports of hosts, and the addresses of vms.
//!
//! ```text
//!   requests ─▶ rows (kinds::{network, security_group, port}, the vm's card)
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
mod host;

pub use cards::{card, set_groups};
pub use fabric::{Fabric, NetworkStanding, reported};

use crate::Control;
use crate::interface::Refusal;
use crate::tables::Tables;
use drover_model::intent::{Host, Vm};
use drover_model::network::{Network, Port, Subnet};
use drover_model::{NetworkId, TenantName};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Vms and ports of one overlay network: every host with one of them is told of all, whole, whenever one moves.
const MEMBERS_MAX: usize = 1_000;
/// A vm's network, as its tenant named it.
enum Named {
    Overlay(Network),
    /// One that hosts map to a bridge.
    Provider,
}

/// Whether a member of the network may have the address; else why not.
pub(crate) fn assignable(subnet: Subnet, address: Ipv4Addr) -> Result<(), String> {
    if !subnet.contains(address) {
        return Err(format!("{address} is outside {subnet}"));
    }
    if address == subnet.network() || address == subnet.broadcast() {
        return Err(format!("{address} is the first or last address of {subnet}, which nobody can have"));
    }
    Ok(())
}

pub(crate) fn is_provider(tables: &Tables, name: &str) -> bool {
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
pub(crate) fn assign(tables: &Tables, network: &Network, asked: Option<Ipv4Addr>) -> Result<Ipv4Addr, Refusal> {
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
pub(crate) fn has_room(tables: &Tables, network: &Network, mac: &str) -> Result<(), Refusal> {
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
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.tables.all()
    }

    pub fn network(&self, id: &NetworkId) -> Option<&Network> {
        self.tables.get(id)
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

fn no_network(reference: &str) -> Refusal {
    Refusal::not_found(format!("there is no network {reference:?}; `drover network ls` shows yours"))
}

#[cfg(test)]
mod tests;
