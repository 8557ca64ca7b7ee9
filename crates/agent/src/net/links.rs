//! Interfaces: what there is, by `ip -json`, and what is missing of what should be, as lines for `ip -batch`.

use super::names::{
    BRIDGE_PREFIX, Mac, PORT_ID_LEN, PORT_PREFIX, SHAPER_PREFIX, TUNNEL_PREFIX, bridge_mac, bridge_name, port_end_name,
    shaper_name, tap_mac, tap_name, tunnel_name,
};
use super::rules::VXLAN_PORT;
use super::state::{State, port_subnet};
use drover_model::VmId;
use drover_model::network::{Bandwidth, Overlay, Port};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Frames that wait in a tap while its guest stands still.
const TAP_QUEUE_FRAMES: u32 = 4_096;
/// A rate limit lets this many bytes pass at once at least: a segment as large as guests hand over.
const BURST_BYTES_MIN: u64 = 128 << 10;
/// And as much as comes in such a time, so that the kernel's timer is never what limits.
const BURST_MS: u64 = 4;
/// What waits longer is dropped: sender's TCP takes the hint.
const QUEUE_MS_MAX: u64 = 100;

/// An interface as `ip -json -details link show` shows it.
#[derive(Debug, Clone, Deserialize)]
pub struct Seen {
    pub ifindex: u32,
    pub ifname: String,
    pub mtu: u32,
    #[serde(default)]
    pub master: Option<String>,
    #[serde(default)]
    pub address: String,
    #[serde(default)]
    qdisc: String,
    #[serde(default)]
    flags: Vec<String>,
    /// Absent where the kernel has no IPv6.
    #[serde(default)]
    inet6_addr_gen_mode: Option<String>,
    #[serde(default)]
    linkinfo: Info,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Info {
    #[serde(default)]
    info_kind: Option<String>,
    #[serde(default)]
    info_data: Option<Data>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Data {
    #[serde(default)]
    id: Option<u32>,
    #[serde(default)]
    local: Option<IpAddr>,
    #[serde(default)]
    local6: Option<IpAddr>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    gbp: Option<bool>,
    #[serde(default)]
    nf_call_iptables: Option<u8>,
}

impl Seen {
    fn kind(&self) -> &str {
        self.linkinfo.info_kind.as_deref().unwrap_or_default()
    }

    fn is_up(&self) -> bool {
        self.flags.iter().any(|flag| flag == "UP")
    }
}

pub struct Links {
    seen: BTreeMap<String, Seen>,
}

impl Links {
    pub fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        let seen: Vec<Seen> = serde_json::from_slice(json)?;
        Ok(Self { seen: seen.into_iter().map(|link| (link.ifname.clone(), link)).collect() })
    }

    pub fn get(&self, name: &str) -> Option<&Seen> {
        self.seen.get(name)
    }

    fn has_ipv6(&self) -> bool {
        self.seen.get("lo").is_some_and(|lo| lo.inet6_addr_gen_mode.is_some())
    }

    /// Bridges, tunnels and ports as they should be; what is right is not touched.
    pub fn networks(&self, state: &State) -> Vec<String> {
        let mut lines = Vec::new();
        for overlay in &state.network.overlays {
            let Some(local) = state.local else { continue };
            self.bridge(&mut lines, overlay);
            self.tunnel(&mut lines, overlay, local);
        }
        for port in &state.network.ports {
            self.port(&mut lines, state, port);
        }
        lines
    }

    /// Interfaces of drover's that nothing needs. Taps are the vms' own.
    pub fn left_over(&self, state: &State) -> Vec<String> {
        let overlays = state.network.overlays.iter();
        let needed = overlays.flat_map(|overlay| [bridge_name(overlay.vni), tunnel_name(overlay.vni)]);
        let needed = needed.chain(state.network.ports.iter().map(|port| port_end_name(&port.id)));
        let shaped = state.network.vms.iter().filter(|port| port.bandwidth.egress_max.0 > 0);
        let needed: BTreeSet<String> = needed.chain(shaped.map(|port| shaper_name(&port.vm))).collect();
        let digits = |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
        let hex = |rest: &str| rest.len() == PORT_ID_LEN && rest.bytes().all(|b| b.is_ascii_hexdigit());
        let ours = |link: &&Seen| {
            let rest = |prefix| link.ifname.strip_prefix(prefix);
            match link.kind() {
                "bridge" => rest(BRIDGE_PREFIX).is_some_and(digits),
                "vxlan" => rest(TUNNEL_PREFIX).is_some_and(digits),
                "veth" => rest(PORT_PREFIX).is_some_and(hex),
                "ifb" => rest(SHAPER_PREFIX).is_some(),
                _ => false,
            }
        };
        // One end of a pair takes the other with it.
        let left = self.seen.values().filter(ours).filter(|link| !needed.contains(&link.ifname));
        left.map(|link| format!("link delete dev {}", link.ifname)).collect()
    }

    fn quiet(&self, lines: &mut Vec<String>, name: &str) {
        // The host itself says nothing on tenants' networks.
        if self.has_ipv6() {
            lines.push(format!("link set dev {name} addrgenmode none"));
        }
    }

    fn bridge(&self, lines: &mut Vec<String>, overlay: &Overlay) {
        let name = bridge_name(overlay.vni);
        let seen = self.seen.get(&name);
        if seen.is_none() {
            let mac = bridge_mac(overlay.vni);
            lines.push(format!(
                "link add name {name} address {mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0 \
                 vlan_default_pvid 0 nf_call_iptables 1 nf_call_ip6tables 1"
            ));
            self.quiet(lines, &name);
        }
        if seen.is_none_or(|link| link.mtu != u32::from(overlay.mtu) || !link.is_up()) {
            lines.push(format!("link set dev {name} mtu {} up", overlay.mtu));
        }
    }

    fn tunnel(&self, lines: &mut Vec<String>, overlay: &Overlay, local: IpAddr) {
        let name = tunnel_name(overlay.vni);
        let mut seen = self.seen.get(&name);
        let wrong = |link: &&Seen| {
            let data = link.linkinfo.info_data.clone().unwrap_or_default();
            data.id != Some(overlay.vni)
                || data.local.or(data.local6) != Some(local)
                || data.port != Some(VXLAN_PORT)
                || data.gbp != Some(true)
        };
        if seen.filter(wrong).is_some() {
            lines.push(format!("link delete dev {name}"));
            seen = None;
        }
        if seen.is_none() {
            lines.push(format!(
                "link add name {name} type vxlan id {} local {local} dstport {VXLAN_PORT} nolearning gbp",
                overlay.vni
            ));
            self.quiet(lines, &name);
        }
        let bridge = bridge_name(overlay.vni);
        let right = seen.is_some_and(|link| {
            link.mtu == u32::from(overlay.mtu) && link.master.as_ref() == Some(&bridge) && link.is_up()
        });
        if !right {
            lines.push(format!("link set dev {name} mtu {} master {bridge} up", overlay.mtu));
            lines.push(format!("link set dev {name} type bridge_slave learning off flood off neigh_suppress on"));
        }
    }

    fn port(&self, lines: &mut Vec<String>, state: &State, port: &Port) {
        let Some(overlay) = state.overlay(&port.network) else { return };
        let Some(subnet) = port_subnet(&state.network, port) else { return };
        let (inner, outer, bridge) = (port_end_name(&port.id), &port.interface, bridge_name(overlay.vni));
        let mac = port.mac.to_ascii_lowercase();
        let seen = self.seen.get(&inner);
        if seen.is_none() {
            lines.push(format!("link add name {outer} address {mac} type veth peer name {inner}"));
            self.quiet(lines, &inner);
        }
        let mtu = u32::from(overlay.mtu);
        if seen.is_none_or(|link| link.master.as_ref() != Some(&bridge) || link.mtu != mtu || !link.is_up()) {
            lines.push(format!("link set dev {inner} mtu {mtu} master {bridge} up"));
            lines.push(format!("link set dev {inner} type bridge_slave learning off flood off"));
        }
        let outside = self.seen.get(outer);
        // Somebody may have moved it to a namespace of its own: what it is there is theirs to say.
        if seen.is_none() || outside.is_some_and(|link| link.mtu != mtu || link.address != mac || !link.is_up()) {
            lines.push(format!("link set dev {outer} address {mac} mtu {mtu} up"));
        }
        if seen.is_none() || outside.is_some() {
            lines.push(format!("addr replace {subnet} dev {outer}"));
        }
    }

    /// The vm's tap, made or found, not on its bridge yet.
    pub fn tap(&self, vm: &VmId, mac: Mac, mtu: Option<u16>) -> Vec<String> {
        let name = tap_name(vm);
        let mut lines = Vec::new();
        if !self.seen.contains_key(&name) {
            lines.push(format!("tuntap add dev {name} mode tap"));
        }
        self.quiet(&mut lines, &name);
        let mtu = mtu.map_or(String::new(), |mtu| format!(" mtu {mtu}"));
        lines.push(format!("link set dev {name} address {} txqueuelen {TAP_QUEUE_FRAMES}{mtu}", tap_mac(mac)));
        lines
    }

    /// Bridges of the host that a vm with a perimeter is on: the packet filter must see what they carry.
    pub fn filtered(&self, bridges: &BTreeSet<String>) -> Vec<String> {
        let unfiltered = |name: &&String| {
            let seen = self.seen.get(*name).and_then(|link| link.linkinfo.info_data.as_ref());
            seen.is_some_and(|data| data.nf_call_iptables == Some(0))
        };
        let line = |name| format!("link set dev {name} type bridge nf_call_iptables 1 nf_call_ip6tables 1");
        bridges.iter().filter(unfiltered).map(line).collect()
    }

    /// For vms that have a tap: lines for `ip`, then for `tc`.
    pub fn shaping(&self, vm: &VmId, bandwidth: Bandwidth) -> (Vec<String>, Vec<String>) {
        let (tap, shaper) = (tap_name(vm), shaper_name(vm));
        let (mut ip, mut tc) = (Vec::new(), Vec::new());
        let (towards, from) = (bandwidth.ingress_max.0, bandwidth.egress_max.0);
        if towards > 0 {
            tc.push(format!("qdisc replace dev {tap} root {}", bucket(towards)));
        } else if self.seen.get(&tap).is_some_and(|link| link.qdisc == "tbf") {
            tc.push(format!("qdisc replace dev {tap} root pfifo_fast"));
        }
        if from > 0 {
            if !self.seen.contains_key(&shaper) {
                ip.push(format!("link add name {shaper} type ifb"));
                self.quiet(&mut ip, &shaper);
            }
            ip.push(format!("link set dev {shaper} up"));
            tc.push(format!("qdisc replace dev {shaper} root {}", bucket(from)));
        }
        (ip, tc)
    }
}

/// A token bucket filter for so many bytes a second.
fn bucket(rate: u64) -> String {
    let burst = (rate.saturating_mul(BURST_MS) / 1_000).max(BURST_BYTES_MIN);
    format!("tbf rate {}bit burst {burst} latency {QUEUE_MS_MAX}ms", rate.saturating_mul(8))
}

/// The line that puts a tap on its bridge: last, when everything that guards it stands.
pub fn enslave(tap: &str, bridge: &str, overlay: bool) -> Vec<String> {
    let mut lines = vec![format!("link set dev {tap} master {bridge}")];
    if overlay {
        // Who is where is written down, not learned; what is for nobody is for no vm.
        lines.push(format!("link set dev {tap} type bridge_slave learning off flood off"));
    }
    lines.push(format!("link set dev {tap} up"));
    lines
}
