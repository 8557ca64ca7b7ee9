//! Whose frames come where: two tenants with the same addresses on the same hosts, and guests that lie.

use super::bed::{Bed, Guest, Host, contains, datagram, end, mac, network, overlay, port};
use crate::net::Coming;
use crate::net::packet::{gratuitous_arp, rarp, udp_frame};
use drover_model::network::{HostNetwork, Port, VmPort};
use std::net::Ipv4Addr;

const M1: &str = "52:00:00:00:00:01";
const M2: &str = "52:00:00:00:00:02";
const A1: &str = "10.1.0.1";
const A2: &str = "10.1.0.2";

/// On each of two hosts one vm of tenant a and one of tenant b; the two tenants' have the same addresses of both kinds.
struct Tenants {
    bed: Bed,
    hosts: [Host; 2],
    ports: [VmPort; 4],
    a1: Guest,
    b1: Guest,
    a2: Guest,
    b2: Guest,
}

fn tenants() -> Tenants {
    let mut bed = Bed::new();
    let mut hosts = [bed.host(1), bed.host(2)];
    let ports = [
        port("vm-a1", "net-a", M1, Some(A1)),
        port("vm-b1", "net-b", M1, Some(A1)),
        port("vm-a2", "net-a", M2, Some(A2)),
        port("vm-b2", "net-b", M2, Some(A2)),
    ];
    let [a1, b1, a2, b2] = &ports;
    for host in &mut hosts {
        host.open(&[]);
    }
    hosts[0].stands(first(&ports));
    hosts[1].stands(network(
        vec![overlay("net-a", 5001, &[1], &[(a1, 1)]), overlay("net-b", 5002, &[1], &[(b1, 1)])],
        &[a2, b2],
    ));
    let (a1, b1) = (hosts[0].guest(&bed, "vm-a1", a1, Coming::Fresh), hosts[0].guest(&bed, "vm-b1", b1, Coming::Fresh));
    let (a2, b2) = (hosts[1].guest(&bed, "vm-a2", a2, Coming::Fresh), hosts[1].guest(&bed, "vm-b2", b2, Coming::Fresh));
    Tenants { bed, hosts, ports, a1, b1, a2, b2 }
}

fn first([a1, b1, a2, b2]: &[VmPort; 4]) -> HostNetwork {
    network(vec![overlay("net-a", 5001, &[2], &[(a2, 2)]), overlay("net-b", 5002, &[2], &[(b2, 2)])], &[a1, b1])
}

#[test]
fn tenants_with_the_same_addresses_never_see_each_others_frames() {
    let mut t = tenants();
    let (one, two, all) = (end(M1, A1, 4000), end(M2, A2, 4000), end(M2, "255.255.255.255", 4000));
    let broadcast = |text: &str| {
        let mut frame = datagram(one, all, text);
        frame[..6].fill(0xff);
        frame
    };
    t.a1.send(&datagram(one, two, "from-a unicast"));
    t.a1.send(&broadcast("from-a to all"));
    t.a1.send(&gratuitous_arp(mac(M1), A1.parse().unwrap()));
    t.b1.send(&datagram(one, two, "from-b unicast"));
    t.b1.send(&broadcast("from-b to all"));
    t.b1.send(&datagram(one, two, "from-b at last"));
    t.a1.send(&datagram(one, two, "from-a at last"));
    // The last one in each direction has come: whatever was to come before it has, too.
    let heard = |guest: &mut Guest, last: &[u8]| {
        let mut frames = Vec::new();
        while let Some(frame) = guest.next() {
            let end = contains(&frame, last);
            frames.push(frame);
            if end {
                return frames;
            }
        }
        panic!("{:?} did not come", String::from_utf8_lossy(last));
    };
    let (a, b) = (heard(&mut t.a2, b"from-a at last"), heard(&mut t.b2, b"from-b at last"));
    for (frames, own, other) in [(&a, &b"from-a"[..], &b"from-b"[..]), (&b, b"from-b", b"from-a")] {
        assert_eq!(frames.iter().filter(|frame| contains(frame, own)).count(), 3, "unicast, broadcast, last");
        assert!(!frames.iter().any(|frame| contains(frame, other)), "another tenant's frame came through");
    }
    assert!(t.a1.heard().iter().all(|frame| !contains(frame, b"from-b")));
    assert!(t.b1.heard().iter().all(|frame| !contains(frame, b"from-a")));
}

#[test]
fn a_guest_sends_as_itself_or_not_at_all() {
    let mut t = tenants();
    let (one, two) = (end(M1, A1, 4000), end(M2, A2, 4000));
    let say = |from, text: &str| datagram(from, two, text);
    // Another's address of either kind.
    t.a1.send(&say(end("52:00:00:00:00:09", A1, 4000), "LIE mac"));
    t.a1.send(&say(end(M2, A1, 4000), "LIE mac of the other"));
    t.a1.send(&say(end(M1, "10.1.0.9", 4000), "LIE address"));
    // The router's, by ARP: as sender, and with another card's address within.
    let lie = |text: &[u8], mut frame: Vec<u8>| {
        frame.extend(text);
        frame
    };
    t.a1.send(&lie(b"LIE arp", gratuitous_arp(mac(M1), Ipv4Addr::new(10, 1, 0, 254))));
    let mut inner = gratuitous_arp(mac("52:00:00:00:00:09"), A1.parse().unwrap());
    inner[6..12].copy_from_slice(&mac(M1).0);
    t.a1.send(&lie(b"LIE arp card", inner));
    // A DHCP server that is none, a router that is none, a tagged frame, and a protocol nobody asked for.
    t.a1.send(&udp_frame(end(M1, A1, 67), end(M2, A2, 68), b"LIE dhcp"));
    t.a1.send(&lie(b"LIE ra", ipv6(M1, "fe80::5000:ff:fe00:1", 58, &[134, 0, 0, 0, 0, 0, 0, 0])));
    t.a1.send(&ipv6(M1, "fe80::9", 17, b"LIE ipv6 source"));
    let mut tagged = say(one, "LIE tag");
    tagged.splice(12..12, [0x81, 0, 0, 1]);
    t.a1.send(&tagged);
    let mut other = say(one, "LIE type");
    other[12..14].copy_from_slice(&[0x88, 0xcc]);
    t.a1.send(&other);
    t.a1.send(&say(one, "the truth"));
    let mut frames = Vec::new();
    while let Some(frame) = t.a2.next() {
        let done = contains(&frame, b"the truth");
        frames.push(frame);
        if done {
            break;
        }
    }
    assert!(frames.last().is_some_and(|frame| contains(frame, b"the truth")), "legitimate traffic did not pass");
    for frame in frames {
        assert!(!contains(&frame, b"LIE"), "{:?}", String::from_utf8_lossy(&frame));
    }
    // What is true passes in every form.
    t.a1.send(&rarp(mac(M1)));
    assert!(t.a2.hears(&[0x80, 0x35]));
    t.a1.send(&ipv6(M1, "fe80::5000:ff:fe00:1", 17, b"ipv6 of its own"));
    assert!(t.a2.hears(b"ipv6 of its own"));
}

/// An IPv6 packet to all nodes (RFC 8200 section 3).
fn ipv6(from_mac: &str, from: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac(from_mac).0, &[0x86, 0xdd]].concat();
    frame.extend([0x60, 0, 0, 0, 0, payload.len() as u8, next, 255]);
    frame.extend(from.parse::<std::net::Ipv6Addr>().unwrap().octets());
    frame.extend("ff02::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    frame.extend(payload);
    frame
}

/// A VXLAN header for this network, and a frame within (RFC 7348 section 5).
fn vxlan(vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x08, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    packet.extend(inner);
    packet
}

#[test]
fn a_guest_can_not_speak_vxlan_to_a_host() {
    let mut bed = Bed::new();
    let mut hosts = [bed.host(1), bed.host(2)];
    // The worst there can be: a guest on a provider network that is the hosts' own underlay.
    bed.ip(
        "h1",
        &["link", "add", "name", "prov", "address", "02:00:00:00:01:01", "type", "bridge", "forward_delay", "0"],
    );
    bed.ip("h1", &["link", "set", "dev", "prov", "up"]);
    bed.ip("h1", &["addr", "flush", "dev", "eth0"]);
    bed.ip("h1", &["link", "set", "dev", "eth0", "master", "prov"]);
    bed.ip("h1", &["addr", "add", "192.168.77.1/24", "dev", "prov"]);
    let ports = [port("vm-p", "lan", M1, Some("192.168.77.50")), port("vm-v", "net-a", M2, Some(A2))];
    let [liar, victim] = &ports;
    hosts[0].open(&[("lan", "prov")]);
    hosts[1].open(&[]);
    hosts[0].stands(network(vec![overlay("net-a", 5001, &[2], &[(victim, 2)])], &[liar]));
    hosts[1].stands(network(vec![overlay("net-a", 5001, &[1], &[])], &[victim]));
    let liar = hosts[0].guest(&bed, "vm-p", liar, Coming::Fresh);
    let mut victim = hosts[1].guest(&bed, "vm-v", victim, Coming::Fresh);

    let inner = datagram(end("52:00:00:00:00:09", A1, 4000), end(M2, A2, 4000), "LIE tunnel");
    let shown = bed.ip("h2", &["-o", "link", "show", "dev", "eth0"]);
    let host_mac = shown.split_once("link/ether ").unwrap().1.split(' ').next().unwrap().to_owned();
    let attack = udp_frame(end(M1, "192.168.77.50", 4789), end(&host_mac, "192.168.77.2", 4789), &vxlan(5001, &inner));
    liar.send(&attack);
    // The same from another machine of the underlay that is no host, and then from the host itself.
    let outsider = bed.host(9);
    let outside = Guest::listen(&outsider, "eth0");
    let shown = bed.ip("h9", &["-o", "link", "show", "dev", "eth0"]);
    let outside_mac = shown.split_once("link/ether ").unwrap().1.split(' ').next().unwrap().to_owned();
    outside.send(&udp_frame(
        end(&outside_mac, "192.168.77.9", 4789),
        end(&host_mac, "192.168.77.2", 4789),
        &vxlan(5001, &inner),
    ));
    let honest = datagram(end("52:00:00:00:00:09", A1, 4000), end(M2, A2, 4000), "through the tunnel");
    outside.send(&udp_frame(
        end(&outside_mac, "192.168.77.1", 4789),
        end(&host_mac, "192.168.77.2", 4789),
        &vxlan(5001, &honest),
    ));
    let mut heard = Vec::new();
    while let Some(frame) = victim.next() {
        heard.push(frame);
        if heard.last().is_some_and(|frame| contains(frame, b"through the tunnel")) {
            break;
        }
    }
    assert!(heard.iter().any(|frame| contains(frame, b"through the tunnel")), "frames of a host were not taken");
    assert!(!heard.iter().any(|frame| contains(frame, b"LIE")));
}

#[test]
fn a_port_reaches_the_members_of_its_network_on_any_host_and_nobody_else() {
    let mut t = tenants();
    let gateway = |id: &str, network: &str, interface: &str, mac: &str| Port {
        id: id.parse().unwrap(),
        network: network.parse().unwrap(),
        host: "h1".parse().unwrap(),
        interface: interface.to_owned(),
        mac: mac.to_owned(),
        address: "10.1.0.100".parse().unwrap(),
        created_at: drover_model::TimeMs(0),
        labels: Default::default(),
    };
    let mut told = first(&t.ports);
    told.ports = vec![gateway("gw-a", "net-a", "gwa", "52:00:00:00:00:aa")];
    t.hosts[0].stands(told.clone());
    let shown = t.hosts[0].show("ip", &["-o", "addr", "show", "dev", "gwa"]);
    assert!(shown.contains("10.1.0.100/24"), "{shown}");
    // A vm on the same host asks by ARP, and the port answers.
    let mut ask = gratuitous_arp(mac(M1), A1.parse().unwrap());
    ask[38..42].copy_from_slice(&[10, 1, 0, 100]);
    t.a1.send(&ask);
    assert!(t.a1.hears(&[0x52, 0, 0, 0, 0, 0xaa, 10, 1, 0, 100]), "the port did not answer");
    // What the host itself has other addresses for is out of reach through it.
    let before = udp_in(&t.hosts[0]);
    t.a1.send(&datagram(end(M1, A1, 4000), end("52:00:00:00:00:aa", "192.168.77.1", 4000), "to the host"));
    t.a1.send(&datagram(end(M1, A1, 4000), end("52:00:00:00:00:aa", "10.1.0.100", 4000), "to the port"));
    // A closed port of the port's own address answers by ICMP: so far everything has been worked off.
    assert!(t.a1.hears(b"to the port"), "no ICMP error came back");
    assert_eq!(udp_in(&t.hosts[0]) - before, 1, "the host took what was not for its port");
    // It goes as it came.
    told.generation += 1_000_000;
    told.ports.clear();
    t.hosts[0].stands(told);
    assert!(!t.hosts[0].show("ip", &["-o", "link"]).contains("gwa"));
    drop(t.bed);
}

/// Datagrams that came to this host and to no open port.
fn udp_in(host: &Host) -> u64 {
    let text = host.show("cat", &["/proc/net/snmp"]);
    let line = text.lines().filter(|line| line.starts_with("Udp:")).nth(1).unwrap();
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[test]
fn what_is_told_anew_keeps_what_is_right_and_a_bad_word_changes_nothing() {
    let mut t = tenants();
    let interfaces = |host: &Host| {
        host.show("ip", &["-o", "link"])
            .lines()
            .map(|line| line.split(' ').nth(1).unwrap().to_owned() + line.split(' ').next().unwrap())
            .collect::<Vec<_>>()
    };
    let before = interfaces(&t.hosts[0]);
    t.hosts[0].stands(first(&t.ports));
    t.hosts[0].open(&[]);
    assert_eq!(interfaces(&t.hosts[0]), before, "an interface was made anew");
    let mut bad = first(&t.ports);
    bad.overlays[1].stations[0].mac = "52:00:00:00:00:02\" accept".to_owned();
    let rules = t.hosts[0].show("nft", &["list", "ruleset"]);
    assert!(t.hosts[0].tell(bad).is_some_and(|error| error.contains("Ethernet address")));
    assert_eq!(t.hosts[0].show("nft", &["list", "ruleset"]), rules);
    t.a1.send(&datagram(end(M1, A1, 4000), end(M2, A2, 4000), "still there"));
    assert!(t.a2.hears(b"still there"));
    // A network that is gone goes from the host, and its vm's tap is cut off.
    let [a1, _, a2, _] = &t.ports;
    t.hosts[0].stands(network(vec![overlay("net-a", 5001, &[2], &[(a2, 2)])], &[a1]));
    let left = t.hosts[0].show("ip", &["-o", "link"]);
    assert!(left.contains("drb5001") && !left.contains("5002"), "{left}");
    assert!(t.b2.heard().is_empty());
}
