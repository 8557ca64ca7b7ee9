//! A vm's network card: which network it means, its address, and its security groups.

use super::{Named, assign, has_room};
use crate::Control;
use crate::interface::{Actor, Refusal, Reply};
use crate::lifecycle::vm_event;
use drover_model::event::Severity;
use drover_model::intent::{Nic, Vm};
use drover_model::kind::ObjectKey;
use drover_model::network::{Bandwidth, Network, Subnet};
use drover_model::{Bytes, SecurityGroupId, TenantName, TimeMs, VmId};
use std::collections::BTreeSet;
use std::net::IpAddr;

const GROUPS_PER_VM_MAX: usize = 8;
/// Least limit of a card, per second: below it a guest can't even renew its lease in time.
const BANDWIDTH_MIN: Bytes = Bytes(10_000);

/// The IPv4 address of a card, with its network's prefix; `None`: it has none that drover knows.
pub fn address(nic: &Nic) -> Option<Subnet> {
    nic.address.as_deref()?.parse().ok()
}

/// The card as it will be: network found, address assigned, groups known. `asked.network` is a name as the tenant wrote
/// it, `asked.address` an address with or without a prefix.
pub fn card(control: &Control, actor: &Actor, tenant: &TenantName, asked: Nic) -> Result<Nic, Refusal> {
    check_groups(control, tenant, &asked.security_groups)?;
    check_bandwidth(asked.bandwidth)?;
    let network = match control.named(tenant, &asked.network)? {
        Named::Overlay(network) => network,
        Named::Provider => {
            let plain = asked.address.as_deref().is_some_and(|address| !address.contains('/'));
            let detail = "must be an address in CIDR form on a provider network, e.g. 10.78.0.11/24";
            if plain {
                return Err(Refusal::invalid("address", detail.to_owned()));
            }
            return on_provider(control, actor, tenant, asked);
        }
    };
    let prefix = network.subnet.prefix;
    let asked_address = match asked.address.as_deref() {
        None => None,
        Some(text) => {
            let bad = |why: String| Refusal::invalid("address", why);
            let (address, given) = match text.split_once('/') {
                Some((address, given)) => (address, given.parse::<u8>().ok()),
                None => (text, Some(prefix)),
            };
            if given != Some(prefix) {
                return Err(bad(format!("{} is {}: write the address alone", network.name, network.subnet)));
            }
            match address.parse() {
                Ok(IpAddr::V4(address)) => Some(address),
                Ok(IpAddr::V6(_)) | Err(_) => {
                    return Err(bad(format!("must be an IPv4 address of network {}", network.name)));
                }
            }
        }
    };
    has_room(&control.tables, &network, &asked.mac)?;
    let address = assign(&control.tables, &network, asked_address)?;
    Ok(Nic { network: network.id, address: Some(Subnet { address, prefix }.to_string()), ..asked })
}

/// A card on a network of the hosts: granted to the tenant whose token asks for it, with an address that nobody else has.
fn on_provider(control: &Control, actor: &Actor, tenant: &TenantName, asked: Nic) -> Result<Nic, Refusal> {
    let address = address(&asked).map(|subnet| subnet.address);
    if actor.role.tenant().is_some() {
        let row = control.tenant(tenant);
        let Some(ranges) = row.and_then(|row| row.provider_networks.get(&asked.network)) else {
            let detail = format!("there is no network {}, or {tenant} may not use it: ask an operator", asked.network);
            return Err(Refusal::not_found(detail).at("network"));
        };
        let inside = |address| ranges.iter().any(|range| range.contains(address));
        if !ranges.is_empty() && !address.is_some_and(inside) {
            let listed = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let detail = format!("must be an address out of {listed}, which {tenant} was granted on {}", asked.network);
            return Err(Refusal::invalid("address", detail));
        }
    }
    let on_it = control.tables.vms.referring_to(&ObjectKey::of::<Network>(&asked.network));
    let has = |nic: &Nic| self::address(nic).map(|subnet| subnet.address) == address;
    if address.is_some() && on_it.filter_map(|vm| vm.spec.nic.as_ref()).any(has) {
        let detail = format!("this address is in use on {}: take another", asked.network);
        return Err(Refusal::conflict(detail).at("address"));
    }
    Ok(asked)
}

fn check_groups(control: &Control, tenant: &TenantName, groups: &BTreeSet<SecurityGroupId>) -> Result<(), Refusal> {
    if groups.len() > GROUPS_PER_VM_MAX {
        let detail = format!("names {} groups; a vm is in {GROUPS_PER_VM_MAX} at most", groups.len());
        return Err(Refusal::invalid("security_groups", detail));
    }
    match groups.iter().find(|group| control.security_group(tenant, group).is_none()) {
        Some(unknown) => {
            let detail = format!("{tenant} has no security group {unknown}: make it first");
            Err(Refusal::invalid("security_groups", detail))
        }
        None => Ok(()),
    }
}

fn check_bandwidth(bandwidth: Bandwidth) -> Result<(), Refusal> {
    for (field, max) in [("ingress_max_bytes_s", bandwidth.ingress_max), ("egress_max_bytes_s", bandwidth.egress_max)] {
        if max != Bytes::ZERO && max < BANDWIDTH_MIN {
            let detail = format!("must be at least {} bytes per second; leave it out for no limit", BANDWIDTH_MIN.0);
            return Err(Refusal::invalid(field, detail));
        }
    }
    Ok(())
}

/// Takes effect at once, wherever the vm is.
pub fn set_groups(
    control: &mut Control,
    now: TimeMs,
    actor: &Actor,
    vm: &Vm,
    groups: BTreeSet<SecurityGroupId>,
) -> Result<Reply, Refusal> {
    let (id, name): (&VmId, _) = (&vm.id, &vm.spec.name);
    if vm.deleting {
        return Err(Refusal::conflict(format!("{name} is being removed")));
    }
    let Some(nic) = &vm.spec.nic else {
        return Err(Refusal::conflict(format!("{name} has no network card, so there is nothing to guard")));
    };
    check_groups(control, &vm.spec.tenant, &groups)?;
    if nic.security_groups != groups {
        let listed: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
        let which = if listed.is_empty() { "no security group".to_owned() } else { listed.join(", ") };
        let text = format!("{} puts {name} into {which}", actor.name);
        vm_event(control, now, vm, Severity::Info, "vm-security-groups-set", text);
        control.tables.change::<Vm>(id, |vm| {
            if let Some(nic) = &mut vm.spec.nic {
                nic.security_groups = groups;
            }
        });
    }
    Ok(Reply::Vm(id.clone()))
}
