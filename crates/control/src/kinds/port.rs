//! Ports: interfaces of hosts on overlay networks, made by operators.

use super::{Context, Reading, Resource, name_taken};
use crate::interface::Refusal;
use crate::network::{assign, has_room};
use drover_model::intent::Host;
use drover_model::kind::Versioned;
use drover_model::network::{Network, Port};
use drover_model::v1::{CreatePort, OnlyLabels, PortView};

const PORTS_MAX: usize = 4_096;
/// Linux's IFNAMSIZ, less the final zero.
const INTERFACE_LENGTH_MAX: usize = 15;
/// Names of what agents make themselves begin like this.
const INTERFACE_PREFIX: &str = "dv";

impl Resource for Port {
    fn create(context: &mut Context, create: CreatePort) -> Result<Self, Refusal> {
        let CreatePort { name: id, network, tenant, host, interface, mac, address, labels } = create;
        let control = &*context.control;
        // Before its MAC, which is derived from its name, is found to be taken.
        if control.port(&id).is_some() {
            return Err(name_taken::<Self>(id.as_str()));
        }
        let network = control.find::<Network>(&network, context.actor, tenant.as_ref());
        let network = &network.map_err(|refusal| refusal.at("network"))?.value;
        let row = control.require::<Host>(&host).map_err(|refusal| refusal.at("host"))?;
        if row.overlay_address.is_none() {
            let detail = format!("{host} has no overlay address: set `overlay_address` in its agent's configuration");
            return Err(Refusal::conflict(detail).at("host"));
        }
        let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        if !(1..=INTERFACE_LENGTH_MAX).contains(&interface.len()) || !interface.bytes().all(letters) {
            let detail =
                format!("must be 1 to {INTERFACE_LENGTH_MAX} lower-case letters, digits, hyphens and underscores");
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
            None => Self::derived_mac(&id),
        };
        has_room(&control.tables, network, &mac)?;
        let address = assign(&control.tables, network, address)?;
        let network = network.id.clone();
        Ok(Self { id, network, host, interface, mac, address, created_at: context.wall(), labels })
    }

    fn settings(&self) -> Option<OnlyLabels> {
        Some(OnlyLabels { labels: self.labels.clone() })
    }

    fn patch(&self, _context: &mut Context, settings: OnlyLabels) -> Result<Self, Refusal> {
        Ok(Self { labels: settings.labels, ..self.clone() })
    }

    fn host(&self) -> Option<&drover_model::HostId> {
        Some(&self.host)
    }

    fn view(&self, reading: Reading) -> PortView {
        Versioned { object: self.clone(), revision: reading.revision }
    }
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
