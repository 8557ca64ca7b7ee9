//! What one host must make true, worked out from the rows and the fabric's indices.

use super::cards;
use super::fabric::{Fabric, Member};
use crate::tables::Tables;
use drover_model::intent::Host;
use drover_model::kind::Owned;
use drover_model::network::{
    HostNetwork, Lease, Network, Overlay, Port, PortRule, Remote, SecurityGroup, SecurityRule, Station, Subnet, VmPort,
};
use drover_model::{HostId, NetworkId, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

impl Fabric {
    /// Whole, with every list in the order of ids: the same rows give the same value.
    pub(super) fn host_network(&self, tables: &Tables, host: &HostId) -> HostNetwork {
        let end_points = end_points(tables, self, host);
        let takes_part = end_points.contains_key(host);
        let ports: Vec<Port> = match takes_part {
            true => tables.all::<Port>().filter(|port| port.host == *host).cloned().collect(),
            false => Vec::new(),
        };
        let mut overlays: BTreeSet<&NetworkId> = ports.iter().map(|port| &port.network).collect();
        let mut vms = Vec::new();
        for (vm, member) in self.present(host) {
            overlays.insert(&member.nic.network);
            vms.push(self.vm_port(tables, vm, member));
        }
        let overlays = overlays.into_iter().filter(|_| takes_part).filter_map(|id| tables.get::<Network>(id));
        let overlays = overlays.map(|network| self.overlay(tables, network, host, &end_points)).collect();
        HostNetwork { generation: 0, overlays, vms, ports }
    }

    fn overlay(
        &self,
        tables: &Tables,
        network: &Network,
        host: &HostId,
        end_points: &BTreeMap<HostId, IpAddr>,
    ) -> Overlay {
        let others = self.hosts_of(tables, &network.id).into_iter().filter(|other| other != host);
        let peers = others.filter_map(|other| end_points.get(&other).copied()).collect();
        let elsewhere = |at: &HostId| if at == host { None } else { end_points.get(at).copied() };
        let mut stations: Vec<Station> = self
            .members_of(&network.id)
            .filter_map(|(_, member)| {
                let at = elsewhere(member.host.as_ref()?)?;
                let address = cards::address(&member.nic).map(|subnet| subnet.address);
                Some(Station { mac: member.nic.mac.clone(), address, at })
            })
            .collect();
        let ports = self.ports_of(&network.id).filter_map(|id| tables.get::<Port>(id));
        stations.extend(ports.filter_map(|port| {
            Some(Station { mac: port.mac.clone(), address: Some(port.address), at: elsewhere(&port.host)? })
        }));
        stations.sort();
        Overlay {
            network: network.id.clone(),
            vni: network.vni,
            mtu: network.mtu,
            subnet: network.subnet,
            peers,
            stations,
        }
    }

    fn vm_port(&self, tables: &Tables, vm: &VmId, member: &Member) -> VmPort {
        let nic = &member.nic;
        let address = cards::address(nic);
        let lease = tables.get::<Network>(&nic.network).filter(|_| address.is_some()).map(|network| Lease {
            host_name: member.name.to_string(),
            router: network.router,
            dns: network.dns.clone(),
            mtu: network.mtu,
        });
        VmPort {
            vm: vm.clone(),
            network: nic.network.clone(),
            mac: nic.mac.clone(),
            address,
            lease,
            perimeter: self.perimeter(tables, member),
            bandwidth: nic.bandwidth,
        }
    }

    fn perimeter(&self, tables: &Tables, member: &Member) -> Option<Vec<PortRule>> {
        let groups = &member.nic.security_groups;
        if groups.is_empty() {
            return None;
        }
        let groups = groups
            .iter()
            .filter_map(|id| tables.get::<SecurityGroup>(&Owned { tenant: member.tenant.clone(), name: id.clone() }));
        let rules = groups.flat_map(|group| &group.rules).map(|rule| self.resolved(rule, member));
        let unique: BTreeSet<PortRule> = rules.collect();
        Some(unique.into_iter().collect())
    }

    fn resolved(&self, rule: &SecurityRule, member: &Member) -> PortRule {
        let remotes = match &rule.remote {
            Remote::Any => None,
            Remote::Subnet { subnet } => Some(vec![*subnet]),
            Remote::Group { group } => {
                let of_group = self.group_members(&member.tenant, group);
                let here = of_group.filter(|other| other.nic.network == member.nic.network);
                let addresses = here.filter_map(|other| cards::address(&other.nic)).map(|subnet| subnet.address);
                let unique: BTreeSet<_> = addresses.collect();
                Some(unique.into_iter().map(|address| Subnet { address, prefix: 32 }).collect())
            }
        };
        PortRule { direction: rule.direction, protocol: rule.protocol, ports: rule.ports, remotes }
    }
}

/// Where frames to each host go, of those that share a network with `host`.
fn end_points(tables: &Tables, fabric: &Fabric, host: &HostId) -> BTreeMap<HostId, IpAddr> {
    let mut networks: BTreeSet<&NetworkId> = fabric.present(host).map(|(_, member)| &member.nic.network).collect();
    networks.extend(tables.all::<Port>().filter(|port| port.host == *host).map(|port| &port.network));
    let mut hosts: BTreeSet<HostId> = BTreeSet::from([host.clone()]);
    for network in networks.into_iter().filter(|id| tables.get::<Network>(id).is_some()) {
        hosts.extend(fabric.hosts_of(tables, network));
    }
    let known = hosts.into_iter().filter_map(|id| Some((tables.get::<Host>(&id)?.overlay_address?, id)));
    known.map(|(address, id)| (id, address)).collect()
}
