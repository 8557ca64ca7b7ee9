//! Who may reach whom, what is remembered of it, and what a vm takes with it when it moves; DHCP and bandwidth.

use super::bed::{Bed, Guest, Host, contains, datagram, end, mac, network, overlay, port, vtep};
use crate::net::Coming;
use crate::net::packet::{End, udp_frame, udp_payload};
use dhcproto::v4::{DhcpOption, Message, MessageType};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use drover_model::Bytes;
use drover_model::network::{Bandwidth, Direction, Lease, PortRule, Protocol, VmPort};

const MACS: [&str; 3] = ["52:00:00:00:00:01", "52:00:00:00:00:02", "52:00:00:00:00:03"];
const ADDRESSES: [&str; 3] = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];

fn at(who: usize, port: u16) -> End {
    end(MACS[who], ADDRESSES[who], port)
}

fn rule(direction: Direction, protocol: Protocol, ports: Option<(u16, u16)>, remotes: Option<&[&str]>) -> PortRule {
    let remotes = remotes.map(|remotes| remotes.iter().map(|remote| remote.parse().unwrap()).collect());
    PortRule { direction, protocol, ports, remotes }
}

/// Vm 0 with a perimeter on host 1, vm 1 beside it, vm 2 on host 2.
struct Walls {
    bed: Bed,
    hosts: [Host; 2],
    guests: [Guest; 3],
}

fn card(who: usize, net: &str) -> VmPort {
    port(&format!("vm-{net}{who}"), net, MACS[who], Some(ADDRESSES[who]))
}

fn walls(perimeter: Vec<PortRule>) -> Walls {
    let mut bed = Bed::new();
    let mut hosts = [bed.host(1), bed.host(2)];
    let mut inner = card(0, "net-a");
    inner.perimeter = Some(perimeter);
    let (beside, far) = (card(1, "net-a"), card(2, "net-a"));
    for host in &mut hosts {
        host.open(&[]);
    }
    hosts[0].stands(network(vec![overlay("net-a", 5001, &[2], &[(&far, 2)])], &[&inner, &beside]));
    hosts[1].stands(network(vec![overlay("net-a", 5001, &[1], &[(&inner, 1), (&beside, 1)])], &[&far]));
    let guests = [
        hosts[0].guest(&bed, "vm-net-a0", &inner, Coming::Fresh),
        hosts[0].guest(&bed, "vm-net-a1", &beside, Coming::Fresh),
        hosts[1].guest(&bed, "vm-net-a2", &far, Coming::Fresh),
    ];
    Walls { bed, hosts, guests }
}

/// Which of these texts come, of frames sent in order of which the last is one that passes.
fn come(guest: &mut Guest, texts: &[&str]) -> Vec<String> {
    let mut come = Vec::new();
    while let Some(frame) = guest.next() {
        let text = texts.iter().find(|text| contains(&frame, text.as_bytes()));
        come.extend(text.map(|text| (*text).to_owned()));
        if come.last().map(String::as_str) == texts.last().copied() {
            return come;
        }
    }
    panic!("of {texts:?} only {come:?} came");
}

#[test]
fn a_perimeter_lets_in_what_a_rule_names_and_replies() {
    let ingress = |ports, remotes| rule(Direction::Ingress, Protocol::Udp, Some(ports), remotes);
    let mut w =
        walls(vec![ingress((53, 53), Some(&["10.1.0.3/32"])), ingress((9, 9), None), ingress((7, 7), Some(&[]))]);
    let [inner, beside, far] = &mut w.guests;
    for (guest, who) in [(&*beside, 1), (&*far, 2)] {
        guest.send(&datagram(at(who, 4000), at(0, 54), "no such port"));
        guest.send(&datagram(at(who, 4000), at(0, 7), "rule for nobody"));
        guest.send(&datagram(at(who, 4000), at(0, 53), if who == 2 { "of the group" } else { "not of the group" }));
        guest.send(&tcp(at(who, 4000), at(0, 80), SYN, "SYN"));
        guest.send(&tcp(at(who, 4000), at(0, 80), ACK, "mid-stream"));
        guest.send(&datagram(at(who, 4000), at(0, 9), "for everybody"));
    }
    let texts =
        ["no such port", "rule for nobody", "not of the group", "SYN", "mid-stream", "of the group", "for everybody"];
    let mut all = come(inner, &texts);
    if !all.contains(&"of the group".to_owned()) {
        // The one on the same host was quicker.
        all.extend(come(inner, &texts));
    }
    all.retain(|text| text != "for everybody");
    assert_eq!(all, ["of the group"]);

    // Replies, and only replies.
    inner.send(&datagram(at(0, 5000), at(2, 6000), "question"));
    assert!(far.hears(b"question"));
    far.send(&datagram(at(2, 6001), at(0, 5000), "from another port"));
    far.send(&datagram(at(2, 6000), at(0, 5001), "to another port"));
    far.send(&datagram(at(2, 6000), at(0, 5000), "answer"));
    assert_eq!(come(inner, &["from another port", "to another port", "answer"]), ["answer"]);
}

#[test]
fn a_rule_for_sending_keeps_everything_else_in() {
    let egress = rule(Direction::Egress, Protocol::Udp, Some((53, 60)), None);
    let w = walls(vec![egress, rule(Direction::Ingress, Protocol::Any, None, None)]);
    let [mut inner, _beside, mut far] = w.guests;
    inner.send(&datagram(at(0, 4000), at(2, 61), "not allowed"));
    inner.send(&tcp(at(0, 4000), at(2, 53), SYN, "other protocol"));
    inner.send(&datagram(at(0, 4000), at(2, 60), "allowed"));
    assert_eq!(come(&mut far, &["not allowed", "other protocol", "allowed"]), ["allowed"]);
    // Who was let in is answered.
    far.send(&datagram(at(2, 7000), at(0, 4444), "question"));
    assert!(inner.hears(b"question"));
    inner.send(&datagram(at(0, 4444), at(2, 7000), "answer"));
    assert!(far.hears(b"answer"));
    drop((w.bed, w.hosts));
}

#[test]
fn connections_of_one_tenant_open_nothing_for_another_with_the_same_addresses() {
    let mut bed = Bed::new();
    let mut host = bed.host(1);
    host.open(&[]);
    let walled = |net| VmPort {
        perimeter: Some(vec![rule(Direction::Ingress, Protocol::Udp, Some((9, 9)), None)]),
        ..card(0, net)
    };
    let (a, b, a_far, b_far) = (walled("net-a"), walled("net-b"), card(2, "net-a"), card(2, "net-b"));
    let overlays = vec![overlay("net-a", 5001, &[], &[]), overlay("net-b", 5002, &[], &[])];
    host.stands(network(overlays, &[&a, &b, &a_far, &b_far]));
    let from_a = host.guest(&bed, "vm-net-a0", &a, Coming::Fresh);
    let mut of_b = host.guest(&bed, "vm-net-b0", &b, Coming::Fresh);
    let mut asked = host.guest(&bed, "vm-net-a2", &a_far, Coming::Fresh);
    let intruder = host.guest(&bed, "vm-net-b2", &b_far, Coming::Fresh);
    from_a.send(&datagram(at(0, 5000), at(2, 6000), "question"));
    assert!(asked.hears(b"question"));
    intruder.send(&datagram(at(2, 6000), at(0, 5000), "an answer to another tenant's question"));
    intruder.send(&datagram(at(2, 6000), at(0, 9), "allowed"));
    assert_eq!(come(&mut of_b, &["an answer to another tenant's question", "allowed"]), ["allowed"]);
}

#[test]
fn a_vm_keeps_its_connections_when_it_moves_and_opens_no_door() {
    let w = walls(vec![rule(Direction::Ingress, Protocol::Udp, Some((9, 9)), None)]);
    let (bed, hosts, [inner, _beside, far]) = (w.bed, w.hosts, w.guests);
    let mut inner_card = card(0, "net-a");
    inner_card.perimeter = Some(vec![rule(Direction::Ingress, Protocol::Udp, Some((9, 9)), None)]);
    let vm = inner_card.vm.clone();
    // Known at the source only, to a port that nothing else would let in.
    inner.send(&datagram(at(0, 5000), at(2, 6000), "question"));
    let mut far = far;
    assert!(far.hears(b"question"));
    let (beside, far_card) = (card(1, "net-a"), card(2, "net-a"));
    let mut destination = {
        let told =
            network(vec![overlay("net-a", 5001, &[1], &[(&inner_card, 1), (&beside, 1)])], &[&far_card, &inner_card]);
        hosts[1].stands(told);
        hosts[1].guest(&bed, "vm-net-a0", &inner_card, Coming::Incoming)
    };
    let of = vm.clone();
    hosts[0].call(|net| async move { net.open_relay(&of, vtep(2)).await.unwrap() });
    // The one who answers is on the destination's own host: through the source's perimeter and back.
    far.send(&datagram(at(2, 6000), at(0, 5000), "answer on the way"));
    assert!(destination.hears(b"answer on the way"));
    let of = vm.clone();
    hosts[0].call(|net| async move { net.fence(&of).await.unwrap() });
    let of = vm.clone();
    hosts[1].call(|net| async move { net.arrived(&of).await.unwrap() });
    hosts[1].stands(network(vec![overlay("net-a", 5001, &[1], &[(&beside, 1)])], &[&far_card, &inner_card]));
    far.send(&tcp(at(2, 4000), at(0, 80), SYN, "a new connection"));
    far.send(&datagram(at(2, 6001), at(0, 5000), "unasked"));
    far.send(&datagram(at(2, 6000), at(0, 5000), "known since the relay"));
    far.send(&tcp(at(2, 4001), at(0, 80), ACK, "in the middle of a stream"));
    far.send(&datagram(at(2, 53), at(0, 40_000), "a reply to what was asked before"));
    far.send(&datagram(at(2, 4000), at(0, 9), "allowed"));
    let texts = [
        "a new connection",
        "unasked",
        "known since the relay",
        "in the middle of a stream",
        "a reply to what was asked before",
        "allowed",
    ];
    assert_eq!(come(&mut destination, &texts), texts[2..]);
    let sets = hosts[1].show("nft", &["list", "set", "bridge", "drover", "adopt_replies"]);
    assert!(sets.contains("expires"), "what is let through after a move must have an end: {sets}");
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A TCP segment with its checksum (RFC 9293 section 3.1).
fn tcp(from: End, to: End, flags: u8, text: &str) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.port.to_be_bytes());
    segment.extend(to.port.to_be_bytes());
    segment.extend(1_000_u32.to_be_bytes());
    segment.extend(2_000_u32.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(text.as_bytes());
    let length = segment.len() as u16;
    let pseudo = [&from.address.octets()[..], &to.address.octets(), &[0, 6], &length.to_be_bytes(), &segment].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    // As a datagram, with the protocol and the checksum of the header put right.
    let mut frame = udp_frame(from, to, &segment[8..]);
    frame[34..].copy_from_slice(&segment);
    frame[23] = 6;
    let header = u16::from_be_bytes([frame[24], frame[25]]);
    frame[24..26].copy_from_slice(&(header + 0x0b).to_be_bytes());
    frame
}

#[test]
fn a_guest_gets_its_address_at_its_tap_and_nobody_else_hears_of_it() {
    let mut bed = Bed::new();
    let mut host = bed.host(1);
    host.open(&[]);
    let lease = Lease { host_name: "web-1".to_owned(), router: None, dns: Vec::new(), mtu: 1_450 };
    let asking = VmPort { lease: Some(lease), ..card(0, "net-a") };
    let other = card(1, "net-a");
    host.stands(network(vec![overlay("net-a", 5001, &[], &[])], &[&asking, &other]));
    let mut guest = host.guest(&bed, "vm-net-a0", &asking, Coming::Fresh);
    let mut beside = host.guest(&bed, "vm-net-a1", &other, Coming::Fresh);
    let ask = |kind, card: &str| {
        let unset = std::net::Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(77, unset, unset, unset, unset, &mac(card).0);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        if kind == MessageType::Request {
            message.opts_mut().insert(DhcpOption::RequestedIpAddress(ADDRESSES[0].parse().unwrap()));
        }
        let mut payload = Vec::new();
        message.encode(&mut Encoder::new(&mut payload)).unwrap();
        let all = End { mac: crate::net::names::Mac([0xff; 6]), address: std::net::Ipv4Addr::BROADCAST, port: 67 };
        udp_frame(end(MACS[0], "0.0.0.0", 68), all, &payload)
    };
    let answer = |guest: &mut Guest| {
        let frame = guest.next().expect("an answer");
        let reply = Message::decode(&mut Decoder::new(udp_payload(&frame).unwrap())).unwrap();
        (reply.opts().msg_type().unwrap(), reply.yiaddr().to_string())
    };
    guest.send(&ask(MessageType::Discover, MACS[0]));
    assert_eq!(answer(&mut guest), (MessageType::Offer, ADDRESSES[0].to_owned()));
    // Somebody else's card within: not answered.
    guest.send(&ask(MessageType::Discover, MACS[1]));
    guest.send(&ask(MessageType::Request, MACS[0]));
    assert_eq!(answer(&mut guest), (MessageType::Ack, ADDRESSES[0].to_owned()));
    guest.send(&datagram(at(0, 4000), at(1, 4000), "at last"));
    let first = beside.next().unwrap();
    assert!(contains(&first, b"at last"), "a request was heard by others");
    // An agent that was started anew answers, too.
    host.open(&[]);
    guest.send(&ask(MessageType::Discover, MACS[0]));
    assert_eq!(answer(&mut guest), (MessageType::Offer, ADDRESSES[0].to_owned()));
}

#[test]
fn bandwidth_is_limited_both_ways_and_the_limits_can_be_lifted() {
    let mut bed = Bed::new();
    let mut host = bed.host(1);
    host.open(&[]);
    let slow = VmPort {
        bandwidth: Bandwidth { ingress_max: Bytes(1_000_000), egress_max: Bytes(2_000_000) },
        ..card(0, "net-a")
    };
    let other = card(1, "net-a");
    let overlays = || vec![overlay("net-a", 5001, &[], &[])];
    host.stands(network(overlays(), &[&slow, &other]));
    let guest = host.guest(&bed, "vm-net-a0", &slow, Coming::Fresh);
    let mut beside = host.guest(&bed, "vm-net-a1", &other, Coming::Fresh);
    let shown = host.show("tc", &["qdisc", "show"]);
    let limit =
        |device: &str, rate: &str| shown.lines().any(|l| l.contains("tbf") && l.contains(device) && l.contains(rate));
    assert!(limit("dev dvnet-a0", "rate 8Mbit") && limit("dev drinet-a0", "rate 16Mbit"), "{shown}");
    guest.send(&datagram(at(0, 4000), at(1, 4000), "slowly"));
    assert!(beside.hears(b"slowly"));
    host.stands(network(overlays(), &[&card(0, "net-a"), &other]));
    let shown = host.show("tc", &["qdisc", "show"]);
    assert!(!shown.contains("tbf"), "{shown}");
    guest.send(&datagram(at(0, 4000), at(1, 4000), "quickly"));
    assert!(beside.hears(b"quickly"));
}
