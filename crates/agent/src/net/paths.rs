//! Which way frames go: what forwarding entries and filters a state means, and the steps from one route to another.
//!
//! A step never leaves a moment in which a frame has no way, and what cuts off comes first where two copies of a guest
//! could speak.

use super::kernel::{EVERYBODY, Entry, Filter, Forward, Kernel, KernelError, Side};
use super::names::{Mac, bridge_name, port_end_name, tap_name, tunnel_name};
use super::state::{Card, Presence, Route, State};
use drover_model::VmId;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Priorities of the filters at a tap, by side; the lowest is looked at first.
pub const FENCE: u16 = 1;
pub const SHAPE: u16 = 10;
const NO_MULTICAST: u16 = 1;
const FROM_TUNNEL: u16 = 2;
const BACK_TO_SOURCE: u16 = 3;
const RELAY: u16 = 5;

/// Where a vm's frames were led last, so that only changes cost something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Led {
    route: Route,
    presence: Presence,
    fenced: bool,
    /// Indices: an interface that was made anew knows nothing of the past.
    tap: Option<u32>,
    tunnel: Option<u32>,
}

/// One request to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Filterable(u32),
    Add(u32, Side, u16, Filter),
    Remove(u32, Side, u16),
    Lead(Entry),
}

/// What there is of a vm on this host.
#[derive(Debug, Clone)]
pub struct Place {
    pub mac: Mac,
    pub tap: Option<u32>,
    /// Index and name of the network's VXLAN device; `None` on a provider network.
    pub tunnel: Option<(u32, String)>,
}

/// From whatever it was to this route.
pub fn steps(card: &Card, route: Route, place: &Place) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(tap) = place.tap {
        steps.push(Step::Filterable(tap));
        if card.fenced {
            steps.push(Step::Add(tap, Side::Ingress, FENCE, Filter::Drop));
        }
        if card.presence == Presence::Incoming {
            // What waits in the tap until the guest runs is for it alone, and is not pushed out by what is for everybody.
            steps.push(Step::Add(tap, Side::Egress, NO_MULTICAST, Filter::DropMulticast));
        } else {
            steps.push(Step::Remove(tap, Side::Egress, NO_MULTICAST));
        }
    }
    if let Some((tunnel, name)) = &place.tunnel {
        steps.push(Step::Filterable(*tunnel));
        lead(&mut steps, card, route, place, *tunnel, name);
    }
    if let Some(tap) = place.tap
        && !card.fenced
    {
        steps.push(Step::Remove(tap, Side::Ingress, FENCE));
    }
    steps
}

fn lead(steps: &mut Vec<Step>, card: &Card, route: Route, place: &Place, tunnel: u32, tunnel_name: &str) {
    let mac = place.mac;
    let by = |device, to| Step::Lead(Entry { device, mac: mac.0, to });
    let to_tap = |steps: &mut Vec<Step>| steps.extend(place.tap.map(|tap| by(tap, Forward::Port)));
    let no_redirect = Step::Remove(tunnel, Side::Ingress, card.slot);
    let no_relay = |steps: &mut Vec<Step>| steps.extend(place.tap.map(|tap| Step::Remove(tap, Side::Egress, RELAY)));
    let settled = |steps: &mut Vec<Step>| {
        let tap = place.tap.into_iter();
        steps.extend(tap.flat_map(|tap| [BACK_TO_SOURCE, FROM_TUNNEL].map(|at| Step::Remove(tap, Side::Egress, at))));
    };
    match route {
        Route::Here => {
            settled(steps);
            to_tap(steps);
            steps.push(no_redirect);
            no_relay(steps);
        }
        Route::Relayed { to } => {
            settled(steps);
            steps.push(by(tunnel, Forward::Tunnel(to)));
            if let Some(tap) = place.tap {
                let copy = Filter::Send { mac, device: tunnel, copy: true };
                steps.push(Step::Add(tap, Side::Egress, RELAY, copy));
            }
            to_tap(steps);
            steps.push(no_redirect);
        }
        Route::Arriving { from } => {
            if let Some(tap) = place.tap {
                // In this order, or what came through the tunnel would go back.
                let pass = Filter::PassFrom { interface: tunnel_name.to_owned() };
                steps.push(Step::Add(tap, Side::Egress, FROM_TUNNEL, pass));
                let back = Filter::Send { mac, device: tunnel, copy: false };
                steps.push(Step::Add(tap, Side::Egress, BACK_TO_SOURCE, back));
            }
            steps.push(by(tunnel, Forward::Tunnel(from)));
            to_tap(steps);
            steps.push(no_redirect);
            no_relay(steps);
        }
        Route::Left { to } => {
            steps.push(by(tunnel, Forward::Tunnel(to)));
            let on = Filter::Send { mac, device: tunnel, copy: false };
            steps.push(Step::Add(tunnel, Side::Ingress, card.slot, on));
            steps.push(by(tunnel, Forward::Port));
            no_relay(steps);
        }
        Route::Elsewhere => {
            steps.push(by(tunnel, Forward::Port));
            steps.push(no_redirect);
            no_relay(steps);
            settled(steps);
        }
    }
}

pub async fn take(kernel: &Kernel, steps: &[Step]) -> Result<(), KernelError> {
    for step in steps {
        match step {
            Step::Filterable(device) => kernel.make_filterable(*device).await?,
            Step::Add(device, side, priority, filter) => kernel.add_filter(*device, *side, *priority, filter).await?,
            Step::Remove(device, side, priority) => kernel.remove_filter(*device, *side, *priority).await?,
            Step::Lead(entry) => kernel.set_entry(*entry).await?,
        }
    }
    Ok(())
}

/// Leads one vm's frames, if that has changed.
pub async fn lead_vm(
    kernel: &Kernel,
    state: &State,
    led: &mut BTreeMap<VmId, Led>,
    vm: &VmId,
) -> Result<(), KernelError> {
    let Some(card) = state.cards.get(vm) else { return Ok(()) };
    let Ok(mac) = card.mac.parse::<Mac>() else { return Ok(()) };
    let tap = kernel.find(&tap_name(vm)).await?;
    let tunnel = match state.overlay(&card.network) {
        Some(overlay) => {
            let name = tunnel_name(overlay.vni);
            kernel.find(&name).await?.map(|index| (index, name))
        }
        None => None,
    };
    let now = Led {
        route: state.route(card),
        presence: card.presence,
        fenced: card.fenced,
        tap,
        tunnel: tunnel.as_ref().map(|(index, _)| *index),
    };
    if led.get(vm) == Some(&now) {
        return Ok(());
    }
    // Half-way is not where it was, either.
    led.remove(vm);
    let place = Place { mac, tap, tunnel };
    take(kernel, &steps(card, now.route, &place)).await?;
    led.insert(vm.clone(), now);
    Ok(())
}

/// What the whole state means, in the kernel's terms.
#[derive(Debug, Default)]
pub struct Wanted {
    pub entries: BTreeSet<Entry>,
    pub arp: BTreeSet<(u32, Ipv4Addr, [u8; 6])>,
    /// Devices whose entries are ours alone.
    pub devices: BTreeSet<u32>,
    pub bridges: BTreeSet<u32>,
    /// Filters at tunnels.
    pub redirects: BTreeMap<u32, BTreeSet<u16>>,
}

pub fn wanted(state: &State, index: impl Fn(&str) -> Option<u32>) -> Wanted {
    let mut wanted = Wanted::default();
    for overlay in &state.network.overlays {
        let Some(tunnel) = index(&tunnel_name(overlay.vni)) else { continue };
        let Some(bridge) = index(&bridge_name(overlay.vni)) else { continue };
        wanted.devices.insert(tunnel);
        wanted.bridges.insert(bridge);
        wanted.redirects.insert(tunnel, BTreeSet::new());
        for peer in &overlay.peers {
            wanted.entries.insert(Entry { device: tunnel, mac: EVERYBODY, to: Forward::Tunnel(*peer) });
        }
        let here: BTreeMap<[u8; 6], (&VmId, &Card)> = state
            .cards
            .iter()
            .filter(|(_, card)| card.network == overlay.network)
            .filter_map(|(vm, card)| Some((card.mac.parse::<Mac>().ok()?.0, (vm, card))))
            .collect();
        for station in &overlay.stations {
            let Ok(Mac(mac)) = station.mac.parse() else { continue };
            if let Some(address) = station.address {
                wanted.arp.insert((bridge, address, mac));
            }
            let card = here.get(&mac).map(|(_, card)| state.route(card));
            if card.is_none_or(|route| route == Route::Elsewhere) {
                wanted.entries.insert(Entry { device: tunnel, mac, to: Forward::Tunnel(station.at) });
                wanted.entries.insert(Entry { device: tunnel, mac, to: Forward::Port });
            }
        }
        for (mac, (vm, card)) in here {
            let tap = index(&tap_name(vm));
            wanted.devices.extend(tap);
            let to_tap = tap.map(|device| Entry { device, mac, to: Forward::Port });
            let through = |at| Entry { device: tunnel, mac, to: Forward::Tunnel(at) };
            match state.route(card) {
                Route::Here => wanted.entries.extend(to_tap),
                Route::Relayed { to: at } | Route::Arriving { from: at } => {
                    wanted.entries.extend(to_tap);
                    wanted.entries.insert(through(at));
                }
                Route::Left { to } => {
                    wanted.entries.insert(Entry { device: tunnel, mac, to: Forward::Port });
                    wanted.entries.insert(through(to));
                    wanted.redirects.entry(tunnel).or_default().insert(card.slot);
                }
                Route::Elsewhere => {}
            }
        }
    }
    for port in &state.network.ports {
        let (Some(device), Ok(Mac(mac))) = (index(&port_end_name(&port.id)), port.mac.parse()) else { continue };
        wanted.devices.insert(device);
        wanted.entries.insert(Entry { device, mac, to: Forward::Port });
    }
    wanted
}

/// Makes it so: what is missing first, then what is too much.
pub async fn settle(kernel: &Kernel, wanted: &Wanted) -> Result<(), KernelError> {
    let there = kernel.entries().await?;
    for entry in wanted.entries.difference(&there) {
        kernel.set_entry(*entry).await?;
    }
    let answers = kernel.arp_answers().await?;
    for (bridge, address, mac) in wanted.arp.difference(&answers) {
        kernel.set_arp_answer(*bridge, *address, *mac).await?;
    }
    for entry in there.difference(&wanted.entries).filter(|entry| wanted.devices.contains(&entry.device)) {
        kernel.remove_entry(*entry).await?;
    }
    let kept: BTreeSet<_> = wanted.arp.iter().map(|(bridge, address, _)| (*bridge, *address)).collect();
    for (bridge, address, _) in answers {
        if wanted.bridges.contains(&bridge) && !kept.contains(&(bridge, address)) {
            kernel.remove_arp_answer(bridge, address).await?;
        }
    }
    for (tunnel, slots) in &wanted.redirects {
        for slot in kernel.filters(*tunnel, Side::Ingress).await?.difference(slots) {
            kernel.remove_filter(*tunnel, Side::Ingress, *slot).await?;
        }
    }
    Ok(())
}
