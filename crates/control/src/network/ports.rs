//! Ports: interfaces of hosts on overlay networks, made by operators.

use super::{assign, has_room};
use crate::Control;
use crate::interface::{Actor, PortSpec, Refusal, Reply};
use drover_model::event::Severity;
use drover_model::intent::Host;
use drover_model::network::{Network, Port};
use drover_model::{PortId, TimeMs};

const PORTS_MAX: usize = 4_096;
/// Linux's IFNAMSIZ, less the final zero.
const INTERFACE_LENGTH_MAX: usize = 15;
/// Names of what agents make themselves begin like this.
const INTERFACE_PREFIX: &str = "dv";

pub fn create_port(control: &mut Control, now: TimeMs, actor: &Actor, spec: PortSpec) -> Result<Reply, Refusal> {
    let PortSpec { id, network, host, interface, mac, address } = spec;
    if control.port(&id).is_some() {
        return Err(Refusal::conflict(format!("there is a port {id} already: choose another name")).at("name"));
    }
    let network = control.require::<Network>(&network, "network").map_err(|refusal| refusal.at("network"))?.clone();
    let row = control.require::<Host>(&host, "host").map_err(|refusal| refusal.at("host"))?;
    if row.overlay_address.is_none() {
        let detail = format!("{host} has no overlay address: set `overlay_address` in its agent's configuration");
        return Err(Refusal::conflict(detail).at("host"));
    }
    let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    if !(1..=INTERFACE_LENGTH_MAX).contains(&interface.len()) || !interface.bytes().all(letters) {
        let detail = format!("must be 1 to {INTERFACE_LENGTH_MAX} lower-case letters, digits, hyphens and underscores");
        return Err(Refusal::invalid("interface", detail));
    }
    if interface.starts_with(INTERFACE_PREFIX) {
        let detail = format!("names that begin with {INTERFACE_PREFIX} are drover's own: choose another");
        return Err(Refusal::invalid("interface", detail));
    }
    if control.ports().any(|port| port.host == host && port.interface == interface) {
        let detail = format!("{host} has a port with interface {interface} already: choose another name");
        return Err(Refusal::conflict(detail).at("interface"));
    }
    if control.tables.ports.len() >= PORTS_MAX {
        return Err(Refusal::conflict(format!("the cluster has {PORTS_MAX} ports, its limit: remove one first")));
    }
    let mac = match mac {
        Some(mac) => unicast(&mac)?,
        None => Port::derived_mac(&id),
    };
    has_room(&control.tables, &network, &mac)?;
    let address = assign(&control.tables, &network, address)?;
    let text = format!("{} made port {id}, {interface} of {host} with {address} on {}", actor.name, network.name);
    control.tables.event(now, Severity::Info, format!("port/{id}"), Some(&network.tenant), "port-created", text);
    control.tables.put(Port { id: id.clone(), network: network.id, host, interface, mac, address, created_at: control.to_wall(now) });
    Ok(Reply::Port(id))
}

pub fn remove_port(control: &mut Control, now: TimeMs, actor: &Actor, id: &PortId) -> Result<Reply, Refusal> {
    let port = control.require::<Port>(id, "port")?.clone();
    let tenant = control.network(&port.network).map(|network| network.tenant.clone());
    control.tables.remove::<Port>(id);
    let text = format!("{} removed port {id} from {}", actor.name, port.host);
    control.tables.event(now, Severity::Info, format!("port/{id}"), tenant.as_ref(), "port-removed", text);
    Ok(Reply::Done)
}

/// An individual's MAC (IEEE 802-2014, clause 8.2), in its usual spelling.
fn unicast(text: &str) -> Result<String, Refusal> {
    let bad = || Refusal::invalid("mac", "must be a unicast MAC address, e.g. 52:54:00:12:34:56".to_owned());
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2 && !part.starts_with('+')))
        .collect();
    match bytes.as_deref() {
        Some([first, rest @ ..])
            if rest.len() == 5 && first & 1 == 0 && (*first != 0 || rest.iter().any(|b| *b != 0)) =>
        {
            Ok(text.to_ascii_lowercase())
        }
        _ => Err(bad()),
    }
}
