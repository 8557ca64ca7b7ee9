//! What is to stand on this host: the server's last word, and what the vms here are in the middle of. Written down, so
//! that a restarted agent knows it before it has met its server, and the same after a restart of the host.

use super::NetError;
use super::names::{Mac, is_interface_name, shown, tap_name};
use drover_model::network::{HostNetwork, Overlay, Station, Subnet, VmPort};
use drover_model::{NetworkId, TimeMs, VmId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;

/// Conntrack's zones are 16 bits; 0 is the host's own.
const ZONES_MAX: u16 = u16::MAX;
const SLOT_MIN: u16 = 100;

/// A vm with a tap here, or one that has just left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    pub mac: String,
    pub network: NetworkId,
    pub presence: Presence,
    /// Frames to the vm go to this tunnel end point, too.
    pub relay: Option<IpAddr>,
    /// Nothing that the tap sends passes.
    pub fenced: bool,
    /// Priority of its filter at the tunnel, once it has left: one of its own.
    pub slot: u16,
    /// The vm has left; what still arrives for it is sent after it, until then.
    pub redirect_until: Option<TimeMs>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    Home,
    /// A QEMU waits for the guest, which still runs elsewhere.
    Incoming,
    /// The guest came by migration and runs here; what it was in the middle of is let through for a while after this.
    Arrived {
        at: TimeMs,
        /// The server has said so: from now on its word counts where the vm is.
        noted: bool,
    },
}

impl Presence {
    /// When it came, for what is let through in consequence; `None`: it did not come by migration.
    pub fn arrived_at(self) -> Option<Option<TimeMs>> {
        match self {
            Self::Home => None,
            Self::Incoming => Some(None),
            Self::Arrived { at, .. } => Some(Some(at)),
        }
    }
}

/// Where frames to a vm go.
///
/// ```text
/// attach(Incoming)            arrived()
///      ▼                         │
///   Arriving ────────────────────▶ Here ──open_relay──▶ Relayed ──fence──▶ Left ──detach, time──▶ (forgotten)
///                                    ▲ └───────────────── ▲ │  ◀─unfence── │
///                                    └───close_relay──────┼─┘              │
///                                    ▲                    └────────────────┘
///                                  attach(Fresh)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To the tap.
    Here,
    /// To the tap, and a copy through the tunnel.
    Relayed { to: IpAddr },
    /// What comes through the tunnel to the tap; what is sent on this host to where the guest still runs.
    Arriving { from: IpAddr },
    /// Through the tunnel, what came through it included.
    Left { to: IpAddr },
    /// Through the tunnel: the server says that it runs elsewhere.
    Elsewhere,
}

impl Card {
    /// `station` is where the server says that the vm is, if not here.
    pub fn route(&self, station: Option<IpAddr>) -> Route {
        if let Some(to) = self.relay.or(station)
            && (self.fenced || self.redirect_until.is_some())
        {
            return Route::Left { to };
        }
        match (self.relay, self.presence, station) {
            (Some(to), _, _) => Route::Relayed { to },
            (None, Presence::Incoming, Some(from)) => Route::Arriving { from },
            (None, Presence::Home | Presence::Arrived { noted: true, .. }, Some(_)) => Route::Elsewhere,
            (None, Presence::Arrived { noted: false, .. }, Some(_)) | (None, _, None) => Route::Here,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    pub network: HostNetwork,
    /// This host's tunnel end point.
    pub local: Option<IpAddr>,
    /// A conntrack zone for each overlay network, the same as long as it is here: connections are known by it.
    pub zones: BTreeMap<NetworkId, u16>,
    pub cards: BTreeMap<VmId, Card>,
}

impl State {
    /// `None` if there is none or it can't be understood: the server tells everything anew.
    pub fn load(file: &Path) -> Option<Self> {
        let text = std::fs::read(file).ok()?;
        let read = serde_json::from_slice(&text);
        if let Err(error) = &read {
            tracing::warn!(%error, file = %file.display(), "what was known of networks can't be read and is asked of the server");
        }
        read.ok()
    }

    pub fn store(&self, file: &Path) -> Result<(), NetError> {
        let failed = |source: io::Error| NetError::Store { path: file.to_owned(), source };
        let text = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        let fresh = file.with_extension("new");
        std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, file)).map_err(failed)
    }

    /// Takes the server's word. Arrivals that it has noted end, and so do zones of networks that are gone.
    pub fn accept(&mut self, network: HostNetwork, local: Option<IpAddr>) -> Result<(), NetError> {
        for (vm, card) in &mut self.cards {
            let elsewhere = |network: &HostNetwork| station_of(network, card).is_some();
            let was = elsewhere(&self.network);
            if elsewhere(&network) {
                continue;
            }
            match card.presence {
                Presence::Incoming if was => {
                    card.presence = Presence::Arrived { at: crate::clock::now_ms(), noted: true };
                    tracing::info!(%vm, "the server says that the vm has arrived");
                }
                Presence::Arrived { at, .. } => card.presence = Presence::Arrived { at, noted: true },
                Presence::Incoming | Presence::Home => {}
            }
        }
        self.network = network;
        self.local = local;
        self.zones.retain(|id, _| self.network.overlays.iter().any(|overlay| overlay.network == *id));
        for overlay in &self.network.overlays {
            if !self.zones.contains_key(&overlay.network) {
                let taken: BTreeSet<u16> = self.zones.values().copied().collect();
                let free = (1..ZONES_MAX).find(|zone| !taken.contains(zone)).ok_or(NetError::TooManyNetworks)?;
                self.zones.insert(overlay.network.clone(), free);
            }
        }
        Ok(())
    }

    /// For a vm whose tap is here or is about to be.
    pub fn new_card(&self, mac: &str, network: &NetworkId, presence: Presence) -> Card {
        let taken: BTreeSet<u16> = self.cards.values().map(|card| card.slot).collect();
        // More vms than slots do not fit a host.
        let slot = (SLOT_MIN..u16::MAX).find(|slot| !taken.contains(slot)).unwrap_or(u16::MAX);
        Card {
            mac: mac.to_owned(),
            network: network.clone(),
            presence,
            relay: None,
            fenced: false,
            slot,
            redirect_until: None,
        }
    }

    pub fn overlay(&self, network: &NetworkId) -> Option<&Overlay> {
        self.network.overlays.iter().find(|overlay| overlay.network == *network)
    }

    pub fn port_of(&self, vm: &VmId) -> Option<&VmPort> {
        self.network.vms.iter().find(|port| port.vm == *vm)
    }

    pub fn route(&self, card: &Card) -> Route {
        card.route(station_of(&self.network, card).map(|station| station.at))
    }

    /// Every port to be guarded: those the server told of, and those on provider networks that it did not (yet), of
    /// which only the address of the card is known.
    pub fn ports(&self) -> Vec<VmPort> {
        let unlisted =
            self.cards.iter().filter(|(vm, card)| self.overlay(&card.network).is_none() && self.port_of(vm).is_none());
        let unlisted = unlisted.map(|(vm, card)| VmPort {
            vm: vm.clone(),
            network: card.network.clone(),
            mac: card.mac.clone(),
            address: None,
            lease: None,
            perimeter: None,
            bandwidth: drover_model::network::Bandwidth::default(),
        });
        self.network.vms.iter().cloned().chain(unlisted).collect()
    }

    /// Every tunnel end point that frames may come from.
    pub fn tunnel_ends(&self) -> BTreeSet<IpAddr> {
        let overlays = &self.network.overlays;
        let told = overlays
            .iter()
            .flat_map(|overlay| overlay.peers.iter().copied().chain(overlay.stations.iter().map(|station| station.at)));
        told.chain(self.cards.values().filter_map(|card| card.relay)).collect()
    }
}

fn station_of<'a>(network: &'a HostNetwork, card: &Card) -> Option<&'a Station> {
    let overlay = network.overlays.iter().find(|overlay| overlay.network == card.network)?;
    overlay.stations.iter().find(|station| station.mac.eq_ignore_ascii_case(&card.mac))
}

/// Nothing is begun with what could not be made to stand, or would break the language of a tool.
pub fn check(network: &HostNetwork, providers: &BTreeMap<NetworkId, String>) -> Result<(), NetError> {
    let bad = |what: String| Err(NetError::BadNetwork { what });
    let mut vnis = BTreeSet::new();
    for overlay in &network.overlays {
        let name = shown(&overlay.network, overlay.vni);
        if overlay.vni == 0 || overlay.vni > drover_model::network::Network::VNI_MAX || !vnis.insert(overlay.vni) {
            return bad(format!("{name}: its VNI is out of range, or another network has it"));
        }
        for station in &overlay.stations {
            if let Err(error) = station.mac.parse::<Mac>() {
                return bad(format!("{name}: {error}"));
            }
        }
    }
    let mut taps = BTreeSet::new();
    for port in &network.vms {
        if let Err(error) = port.mac.parse::<Mac>() {
            return bad(format!("vm {}: {error}", port.vm));
        }
        if !taps.insert(tap_name(&port.vm)) {
            return bad(format!("vm {}: another has the same tap", port.vm));
        }
        let known = providers.contains_key(&port.network)
            || network.overlays.iter().any(|overlay| overlay.network == port.network);
        if !known {
            return bad(format!("vm {}: its network {} is neither told of nor in [networks]", port.vm, port.network));
        }
    }
    for port in &network.ports {
        if !is_interface_name(&port.interface) || super::names::is_own(&port.interface) {
            return bad(format!("port {}: {:?} can't be the name of an interface", port.id, port.interface));
        }
        if let Err(error) = port.mac.parse::<Mac>() {
            return bad(format!("port {}: {error}", port.id));
        }
        if !network.overlays.iter().any(|overlay| overlay.network == port.network) {
            return bad(format!("port {}: its network {} is not told of", port.id, port.network));
        }
    }
    Ok(())
}

/// The address of a port with its network's length.
pub fn port_subnet(network: &HostNetwork, port: &drover_model::network::Port) -> Option<Subnet> {
    let overlay = network.overlays.iter().find(|overlay| overlay.network == port.network)?;
    Some(Subnet { address: port.address, prefix: overlay.subnet.prefix })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn told(at: Option<IpAddr>) -> HostNetwork {
        let station = |at| Station { mac: "52:00:00:00:00:0A".to_owned(), address: None, at };
        let overlay = Overlay {
            network: "net-a".parse().unwrap(),
            vni: 5_001,
            mtu: 1_450,
            subnet: "10.1.0.0/24".parse().unwrap(),
            peers: BTreeSet::new(),
            stations: at.map(station).into_iter().collect(),
        };
        HostNetwork { overlays: vec![overlay], ..HostNetwork::default() }
    }

    #[test]
    fn the_servers_word_ends_an_arrival_and_counts_after_it() {
        let vm: VmId = "vm-a".parse().unwrap();
        let mut state = State::default();
        let card = state.new_card("52:00:00:00:00:0a", &"net-a".parse().unwrap(), Presence::Incoming);
        state.cards.insert(vm.clone(), card);
        let mut route_when = |at| {
            state.accept(told(at), None).unwrap();
            state.route(&state.cards[&vm])
        };
        assert_eq!(route_when(None), Route::Here, "nothing is known of a source yet");
        assert_eq!(route_when(Some(SOURCE)), Route::Arriving { from: SOURCE });
        assert_eq!(route_when(None), Route::Here);
        assert_eq!(route_when(Some(OTHER)), Route::Elsewhere);
    }

    #[test]
    fn an_arrival_that_the_server_has_not_noted_stands() {
        let state = State::default();
        let mut card = state.new_card("52:00:00:00:00:0a", &"net-a".parse().unwrap(), Presence::Incoming);
        card.presence = Presence::Arrived { at: TimeMs(1), noted: false };
        assert_eq!(card.route(Some(SOURCE)), Route::Here);
        card.relay = Some(OTHER);
        assert_eq!(card.route(Some(SOURCE)), Route::Relayed { to: OTHER });
        card.fenced = true;
        assert_eq!(card.route(None), Route::Left { to: OTHER });
    }

    #[test]
    fn networks_keep_their_zone_as_long_as_they_are_here() {
        let mut state = State::default();
        let mut both = told(None);
        both.overlays.push(Overlay { network: "net-b".parse().unwrap(), vni: 5_002, ..both.overlays[0].clone() });
        state.accept(both.clone(), None).unwrap();
        let zone_of_b = state.zones[&"net-b".parse().unwrap()];
        both.overlays.remove(0);
        state.accept(both, None).unwrap();
        assert_eq!(state.zones.into_values().collect::<Vec<_>>(), [zone_of_b]);
    }
}
