//! The packet filter, as one text for `nft`: who may send as whom (always), and who may reach whom (where a vm has a
//! perimeter).
//!
//! ```text
//! bridge: prerouting ─▶ (inet: prerouting: zone, conntrack, mark KNOWN) ─▶ bridge: forward ─▶ postrouting
//!         spoofing                                                        perimeter           marks for tunnels
//! ```
//!
//! Rules name the tap, which only the bridge family knows; whether a packet belongs to a known connection only the inet
//! family knows without `nf_conntrack_bridge`, which not every kernel has. The packet's mark carries the answer from
//! one to the other. docs/decisions/0008 says what is let through after a migration, and why.

use super::names::{BRIDGE_PREFIX, Mac, PORT_PREFIX, TAP_PREFIX, TUNNEL_PREFIX, bridge_name, tap_name};
use super::state::{Presence, State};
use drover_model::network::{Direction, PortRule, Protocol, Subnet, VmPort};
use drover_model::{NetworkId, TimeMs};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

/// The packet's connection is known. Beyond what a VXLAN header carries.
const KNOWN: u32 = 0x0100_0000;
/// The perimeter at the source of a migration let this frame through. Linux carries this very bit in the VXLAN header as the
/// "A" bit of the Group Policy extension (draft-smith-vxlan-group-policy, `VXLAN_GBP_POLICY_APPLIED`).
const APPLIED: u32 = 0x0008_0000;

/// How long after its arrival a vm's TCP connections may go on without being known here: as long as an idle connection is
/// kept before Linux probes it (tcp(7), tcp_keepalive_time).
const ADOPT_TCP: Duration = Duration::from_secs(7_200);
/// How long after its arrival replies are let through that can't be told from requests.
const ADOPT_REPLIES: Duration = Duration::from_secs(10);
/// Ports that Linux takes for those who ask (ip_local_port_range); replies go there.
const EPHEMERAL_PORTS: &str = "32768-65535";
/// At its own priority, 0, br_netfilter takes the packet away and brings it back behind all that have the same.
const BEFORE_BR_NETFILTER: i32 = -10;
/// RFC 7348 section 5.
pub const VXLAN_PORT: u16 = 4789;

/// The whole of drover's rules for this host.
pub fn render(state: &State, providers: &BTreeMap<NetworkId, String>, now: TimeMs) -> String {
    let mut ports = state.ports();
    ports.sort_by(|a, b| a.vm.cmp(&b.vm));
    let parsed: Vec<_> = ports.iter().filter_map(|port| Some((port, port.mac.parse().ok()?))).collect();
    let rules = Rules { state, providers, ports: parsed, now };
    let mut text = String::new();
    for table in ["bridge drover", "inet drover"] {
        // Made first, so that deleting it can't fail; all in one transaction.
        let _ = writeln!(text, "table {table}\ndelete table {table}");
    }
    text.push_str(&rules.bridge());
    text.push_str(&rules.inet());
    text
}

struct Rules<'a> {
    state: &'a State,
    providers: &'a BTreeMap<NetworkId, String>,
    ports: Vec<(&'a VmPort, Mac)>,
    now: TimeMs,
}

impl Rules<'_> {
    fn bridge(&self) -> String {
        let mut text = String::from("table bridge drover {\n");
        text.push_str(&self.adopting("adopt_tcp", ADOPT_TCP));
        text.push_str(&self.adopting("adopt_replies", ADOPT_REPLIES));
        for (port, mac) in &self.ports {
            self.guard(&mut text, port, *mac);
        }
        let guarded: Vec<_> = self.ports.iter().map(|(port, _)| *port).collect();
        let bounded: Vec<_> = guarded.iter().copied().filter(|port| port.perimeter.is_some()).collect();
        for port in &bounded {
            self.perimeter(&mut text, port);
        }
        let jumps = |ports: &[&VmPort], to: &str| {
            let jumps = ports.iter().map(|port| {
                let tap = tap_name(&port.vm);
                format!("\"{tap}\" : jump {to}_{tap}")
            });
            jumps.collect::<Vec<_>>().join(", ")
        };
        // An empty map can't be written.
        let dispatch = |interface: &str, ports: &[&VmPort], to: &str| match jumps(ports, to) {
            elements if elements.is_empty() => String::new(),
            elements => format!("  {interface} vmap {{ {elements} }}\n"),
        };
        let from = dispatch("iifname", &guarded, "from");
        let out = dispatch("iifname", &bounded, "out");
        let into = dispatch("oifname", &bounded, "into");
        let kept = !(KNOWN | APPLIED);
        let overlay_taps = quoted(guarded.iter().filter(|p| self.overlay(p)).map(|p| tap_name(&p.vm)));
        let input = overlay_taps.map_or(String::new(), |taps| format!("  iifname {taps} drop\n"));
        let _ = write!(
            text,
            " chain c_prerouting {{\n  type filter hook prerouting priority -300; policy accept;\n  \
             iifname \"{TUNNEL_PREFIX}*\" meta mark set meta mark & {APPLIED:#010x} accept\n  \
             meta mark set meta mark & {kept:#010x}\n{from}  iifname \"{TAP_PREFIX}*\" drop\n }}\n \
             chain c_forward {{\n  type filter hook forward priority {BEFORE_BR_NETFILTER}; policy accept;\n  \
             meta mark & {APPLIED:#010x} == {APPLIED:#010x} accept\n{out}{into} }}\n \
             chain c_postrouting {{\n  type filter hook postrouting priority 300; policy accept;\n  \
             oifname \"{TAP_PREFIX}*\" meta mark set {APPLIED:#010x}\n  oifname \"{TUNNEL_PREFIX}*\" meta mark set 0\n }}\n \
             chain c_input {{\n  type filter hook input priority -300; policy accept;\n{input}  \
             iifname \"{TUNNEL_PREFIX}*\" drop\n  iifname \"{PORT_PREFIX}*\" drop\n }}\n}}\n"
        );
        text
    }

    fn overlay(&self, port: &VmPort) -> bool {
        self.state.overlay(&port.network).is_some()
    }

    /// Taps of vms that came by migration not longer ago than `span`; the kernel forgets them when that is over.
    fn adopting(&self, name: &str, span: Duration) -> String {
        let element = |(port, _): &(&VmPort, Mac)| {
            let arrived_at = self.state.cards.get(&port.vm)?.presence.arrived_at()?;
            let tap = tap_name(&port.vm);
            let Some(at) = arrived_at else {
                // Not here yet: counted from its arrival.
                return Some(format!("\"{tap}\""));
            };
            let left = span.checked_sub(self.now.since(at).to_std())?;
            (left >= Duration::from_secs(1)).then(|| format!("\"{tap}\" timeout {}s", left.as_secs()))
        };
        let elements: Vec<_> = self.ports.iter().filter_map(element).collect();
        let elements =
            if elements.is_empty() { String::new() } else { format!(" elements = {{ {} }};", elements.join(", ")) };
        format!(" set {name} {{ type ifname; flags timeout;{elements} }}\n")
    }

    /// As whom a vm may send.
    fn guard(&self, text: &mut String, port: &VmPort, mac: Mac) {
        let address = port.address.map(|subnet| subnet.address);
        let link_local = mac.link_local();
        let mut say = |line: &str| {
            let _ = writeln!(text, "  {line}");
        };
        say(&format!("chain from_{} {{", tap_name(&port.vm)));
        say(&format!("ether saddr != {mac} drop"));
        say(&format!("ether type arp arp saddr ether != {mac} drop"));
        if let Some(address) = address {
            // 0.0.0.0 asks whether an address is free (RFC 5227).
            say(&format!("ether type arp arp saddr ip != {{ 0.0.0.0, {address} }} drop"));
        }
        // 0x8035 is RARP, which QEMU announces a vm with.
        say("ether type { arp, 0x8035 } accept");
        say("ether type ip udp sport 67 drop");
        if port.lease.is_some() {
            // Its own host answers, before this.
            say("ether type ip udp dport 67 drop");
        } else if address.is_some() {
            say("ether type ip ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept");
        }
        if !self.overlay(port) {
            for (family, ends) in self.tunnel_ends() {
                say(&format!("ether type {family} {family} daddr {ends} udp dport {VXLAN_PORT} drop"));
            }
        }
        match address {
            Some(address) => say(&format!("ether type ip ip saddr {address} accept")),
            None => say("ether type ip accept"),
        }
        say("ether type ip6 icmpv6 type nd-router-advert drop");
        say("ether type ip6 udp sport 547 drop");
        match address {
            Some(_) => {
                // The target of a neighbour advertisement follows 8 bytes of header (RFC 4861 section 4.4).
                let target = u128::from(link_local);
                say(&format!("ether type ip6 icmpv6 type nd-neighbor-advert @th,64,128 != {target:#034x} drop"));
                say(&format!("ether type ip6 ip6 saddr {{ ::, {link_local} }} accept"));
            }
            None => say("ether type ip6 accept"),
        }
        say("drop");
        text.push_str(" }\n");
    }

    fn perimeter(&self, text: &mut String, port: &VmPort) {
        let rules = port.perimeter.as_deref().unwrap_or_default();
        let of = |direction| rules.iter().filter(move |rule: &&PortRule| rule.direction == direction);
        let tap = tap_name(&port.vm);
        let waiting = self.state.cards.get(&port.vm).is_some_and(|card| card.presence == Presence::Incoming);
        // Not for the tap, but sent on to where the guest still runs, whose perimeter it meets there.
        let sent_on = if waiting && self.overlay(port) {
            format!("  iifname != \"{TUNNEL_PREFIX}*\" return\n")
        } else {
            String::new()
        };
        let always = format!(
            "  meta mark & {KNOWN:#010x} == {KNOWN:#010x} return\n  ether type {{ arp, 0x8035 }} return\n  \
             ether type ip6 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} return\n"
        );
        let going_on = "tcp flags & (syn | ack) != syn return";
        let _ = write!(
            text,
            " chain into_{tap} {{\n{sent_on}{always}  oifname @adopt_tcp {going_on}\n  \
             oifname @adopt_replies udp dport {EPHEMERAL_PORTS} return\n  \
             oifname @adopt_replies icmp type echo-reply return\n"
        );
        if port.lease.is_none() && !self.overlay(port) {
            // The answer of the provider's DHCP belongs to no connection that could be known: it was asked of everybody.
            text.push_str("  udp sport 67 udp dport 68 return\n");
        }
        of(Direction::Ingress).for_each(|rule| matches(text, rule, "saddr"));
        text.push_str("  drop\n }\n");
        let _ = writeln!(text, " chain out_{tap} {{");
        if of(Direction::Egress).next().is_some() {
            let _ = write!(
                text,
                "{always}  iifname @adopt_tcp {going_on}\n  iifname @adopt_replies meta l4proto {{ udp, icmp }} return\n"
            );
            of(Direction::Egress).for_each(|rule| matches(text, rule, "daddr"));
            text.push_str("  drop\n");
        }
        text.push_str(" }\n");
    }

    fn inet(&self) -> String {
        let bridge_of = |port: &VmPort| match self.state.overlay(&port.network) {
            Some(overlay) => Some(bridge_name(overlay.vni)),
            None => self.providers.get(&port.network).cloned(),
        };
        let bounded = self.ports.iter().map(|(port, _)| *port).filter(|port| port.perimeter.is_some());
        let tracked: BTreeSet<String> = bounded.filter_map(bridge_of).collect();
        let overlays = &self.state.network.overlays;
        let zone = |network: &NetworkId| self.state.zones.get(network).copied().unwrap_or(0);
        let zones: Vec<_> = overlays
            .iter()
            .filter(|overlay| tracked.contains(&bridge_name(overlay.vni)))
            .map(|overlay| format!("\"{}\" : {}", bridge_name(overlay.vni), zone(&overlay.network)))
            .collect();
        let mut text = String::from(
            "table inet drover {\n chain c_zones {\n  type filter hook prerouting priority -300; policy accept;\n",
        );
        if !zones.is_empty() {
            // A bridge is named by its ports' packets here, too: br_netfilter shows them as the bridge's.
            let _ = writeln!(text, "  ct zone set iifname map {{ {} }}", zones.join(", "));
        }
        let untracked = overlays.iter().map(|overlay| bridge_name(overlay.vni)).filter(|name| !tracked.contains(name));
        if let Some(untracked) = quoted(untracked) {
            let _ = writeln!(text, "  iifname {untracked} notrack");
        }
        text.push_str(" }\n");
        if let Some(tracked) = quoted(tracked.into_iter()) {
            // What the source of a migration knows is known here as soon as one frame of it was relayed.
            let _ = writeln!(
                text,
                " chain c_known {{\n  type filter hook prerouting priority -150; policy accept;\n  iifname != {tracked} return\n  \
                 meta mark & {APPLIED:#010x} == {APPLIED:#010x} ct mark set ct mark | {KNOWN:#010x}\n  \
                 ct state established,related meta mark set meta mark | {KNOWN:#010x}\n  \
                 ct mark & {KNOWN:#010x} == {KNOWN:#010x} meta mark set meta mark | {KNOWN:#010x}\n }}"
            );
        }
        text.push_str(" chain c_input {\n  type filter hook input priority 0; policy accept;\n");
        if !overlays.is_empty() {
            let _ = writeln!(text, "  iifname \"{BRIDGE_PREFIX}*\" drop");
            let allowed = self.tunnel_ends();
            for (family, protocol) in [("ip", "ipv4"), ("ip6", "ipv6")] {
                let other = allowed.iter().find(|(of, _)| *of == family);
                let other = other.map_or(String::new(), |(_, ends)| format!(" {family} saddr != {ends}"));
                let _ = writeln!(text, "  meta nfproto {protocol}{other} udp dport {VXLAN_PORT} drop");
            }
        }
        for port in &self.state.network.ports {
            let interface = &port.interface;
            let _ = writeln!(text, "  iifname \"{interface}\" ip daddr != {} drop", port.address);
            let _ = writeln!(text, "  iifname \"{interface}\" meta nfproto ipv6 drop");
        }
        text.push_str(" }\n");
        if let Some(ports) = quoted(self.state.network.ports.iter().map(|port| port.interface.clone())) {
            let _ = writeln!(
                text,
                " chain c_forward {{\n  type filter hook forward priority 0; policy accept;\n  \
                 iifname {ports} oifname {ports} drop\n }}"
            );
        }
        text.push_str("}\n");
        text
    }

    /// Sets of tunnel end points by address family, this host's included; no empty ones.
    fn tunnel_ends(&self) -> Vec<(&'static str, String)> {
        let ends: BTreeSet<IpAddr> = self.state.tunnel_ends().into_iter().chain(self.state.local).collect();
        let of = |wanted: bool| ends.iter().filter(move |end| end.is_ipv4() == wanted).map(IpAddr::to_string);
        let families = [("ip", of(true).collect::<Vec<_>>()), ("ip6", of(false).collect())];
        let some = families.into_iter().filter(|(_, ends)| !ends.is_empty());
        some.map(|(family, ends)| (family, format!("{{ {} }}", ends.join(", ")))).collect()
    }
}

/// One rule that returns what it matches.
fn matches(text: &mut String, rule: &PortRule, side: &str) {
    let remote = match rule.remotes.as_deref() {
        None => String::new(),
        Some([]) => return,
        Some(remotes) => format!(" ip {side} {{ {} }}", networks(remotes)),
    };
    let ports = rule.ports.map_or(String::new(), |(first, last)| format!("{}-{}", first, last.max(first)));
    let what = match (rule.protocol, ports.as_str()) {
        (Protocol::Any, _) => String::new(),
        (Protocol::Tcp, "") => " meta l4proto tcp".to_owned(),
        (Protocol::Udp, "") => " meta l4proto udp".to_owned(),
        (Protocol::Tcp, ports) => format!(" tcp dport {ports}"),
        (Protocol::Udp, ports) => format!(" udp dport {ports}"),
        (Protocol::Icmp, _) => " meta l4proto { icmp, icmpv6 }".to_owned(),
    };
    let _ = writeln!(text, " {remote}{what} return");
}

/// Without those that lie in others, which a set of ranges refuses.
fn networks(remotes: &[Subnet]) -> String {
    let mut kept: Vec<Subnet> = Vec::new();
    let mut sorted = remotes.to_vec();
    sorted.sort_by_key(|subnet| subnet.prefix);
    for subnet in sorted {
        if !kept.iter().any(|wide| wide.contains(subnet.address)) {
            kept.push(subnet);
        }
    }
    kept.iter().map(|subnet| format!("{}/{}", subnet.network(), subnet.prefix)).collect::<Vec<_>>().join(", ")
}

/// A set of names, if there are any.
fn quoted(names: impl Iterator<Item = String>) -> Option<String> {
    let names: Vec<_> = names.map(|name| format!("\"{name}\"")).collect();
    (!names.is_empty()).then(|| format!("{{ {} }}", names.join(", ")))
}
