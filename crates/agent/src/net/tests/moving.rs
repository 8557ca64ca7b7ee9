//! Frames to a vm while it moves: to both hosts, to the new one, after it; never lost, never twice at one place, never
//! in a circle.

use super::bed::{Bed, Guest, Host, contains, datagram, end, mac, network, overlay, port, vtep};
use crate::net::Coming;
use crate::net::packet::{gratuitous_arp, rarp};
use drover_model::network::VmPort;

const NET: &str = "net-a";
const VNI: u32 = 5001;
const MOVING: (&str, &str) = ("52:00:00:00:00:0a", "10.1.0.10");

/// The vm on host 1, a neighbour of it on each of three hosts.
struct Journey {
    bed: Bed,
    hosts: [Host; 3],
    vm: VmPort,
    /// By host; each sends from its own address.
    neighbours: Vec<(VmPort, Guest)>,
    source: Guest,
    sent: u32,
}

fn neighbour(host: u8) -> VmPort {
    port(&format!("vm-n{host}"), NET, &format!("52:00:00:00:00:0{host}"), Some(&format!("10.1.0.{host}")))
}

impl Journey {
    fn new() -> Self {
        let mut bed = Bed::new();
        let mut hosts = [bed.host(1), bed.host(2), bed.host(3)];
        let vm = port("vm-m", NET, MOVING.0, Some(MOVING.1));
        for host in &mut hosts {
            host.open(&[]);
        }
        let mut journey = Self { bed, hosts, vm, neighbours: Vec::new(), source: Self::nobody(), sent: 0 };
        for host in 1..=3 {
            journey.tell(host, 1, host == 1);
        }
        for host in 1..=3 {
            let port = neighbour(host);
            let guest = journey.host(host).guest(&journey.bed, port.vm.as_str(), &port, Coming::Fresh);
            journey.neighbours.push((port, guest));
        }
        journey.source = journey.hosts[0].guest(&journey.bed, "vm-m", &journey.vm, Coming::Fresh);
        journey
    }

    /// Stands in until the real one is plugged.
    fn nobody() -> Guest {
        let mut bed = Bed::new();
        let host = bed.host(1);
        Guest::plug(&host, &bed, "vm-none")
    }

    fn host(&self, number: u8) -> &Host {
        &self.hosts[usize::from(number) - 1]
    }

    /// What the server says to a host when the vm is at `home`; the host may be one that has its card.
    fn tell(&self, host: u8, home: u8, has_card: bool) {
        let others: Vec<u8> = (1..=3).filter(|other| *other != host).collect();
        let neighbours: Vec<_> = others.iter().map(|other| (neighbour(*other), *other)).collect();
        let mut stations: Vec<_> = neighbours.iter().map(|(port, at)| (port, *at)).collect();
        if home != host {
            stations.push((&self.vm, home));
        }
        let own = neighbour(host);
        let vms: Vec<&VmPort> = if has_card { vec![&own, &self.vm] } else { vec![&own] };
        self.host(host).stands(network(vec![overlay(NET, VNI, &others, &stations)], &vms));
    }

    /// One numbered datagram from each neighbour to the vm.
    fn everybody_sends(&mut self) -> u32 {
        self.sent += 1;
        for (port, guest) in &self.neighbours {
            let from = end(&port.mac, &port.address.unwrap().address.to_string(), 4000);
            guest.send(&datagram(
                from,
                end(MOVING.0, MOVING.1, 4000),
                &format!("number {:06} from {}", self.sent, port.vm),
            ));
        }
        self.sent
    }

    fn destination(&self) -> Guest {
        self.tell(2, 1, true);
        self.hosts[1].guest(&self.bed, "vm-m", &self.vm, Coming::Incoming)
    }

    fn do_at<F>(&self, host: u8, what: impl FnOnce(crate::net::Net, drover_model::VmId) -> F)
    where
        F: Future<Output = Result<(), crate::net::NetError>> + Send + 'static,
    {
        let vm = self.vm.vm.clone();
        self.host(host).call(|net| what(net, vm)).unwrap();
    }

    fn open_relay(&self) {
        self.do_at(1, |net, vm| async move { net.open_relay(&vm, vtep(2)).await });
    }

    fn fence(&self) {
        self.do_at(1, |net, vm| async move { net.fence(&vm).await });
    }
}

/// Reads on until each neighbour's datagram of this number has come; all that came, by neighbour, in order.
fn numbers_until(guest: &mut Guest, last: u32) -> Vec<Vec<u32>> {
    let mut heard = vec![Vec::new(); 3];
    while heard.iter().any(|numbers: &Vec<u32>| numbers.last() != Some(&last)) {
        let Some(frame) = guest.next() else { panic!("number {last} did not come from all: {heard:?}") };
        if let Some((number, from)) = number_of(&frame) {
            heard[from].push(number);
        }
    }
    heard
}

fn number_of(frame: &[u8]) -> Option<(u32, usize)> {
    let text = String::from_utf8_lossy(frame);
    let rest = text.split_once("number ")?.1;
    Some((rest.get(..6)?.parse().ok()?, rest.split_once("vm-n")?.1.chars().next()?.to_digit(10)? as usize - 1))
}

fn none_heard(guest: &mut Guest) {
    let heard = guest.heard();
    assert!(heard.iter().all(|frame| number_of(frame).is_none()), "{} frames", heard.len());
}

#[test]
fn until_the_relay_is_open_all_frames_go_to_the_source_and_none_wait_at_the_destination() {
    let mut journey = Journey::new();
    let mut destination = journey.destination();
    let to_all = |port: &VmPort| gratuitous_arp(mac(&port.mac), port.address.unwrap().address);
    journey.neighbours[1].1.send(&to_all(&journey.neighbours[1].0));
    journey.neighbours[2].1.send(&to_all(&journey.neighbours[2].0));
    for _ in 0..20 {
        journey.everybody_sends();
    }
    let heard = numbers_until(&mut journey.source, 20);
    let all: Vec<u32> = (1..=20).collect();
    assert_eq!(heard, [all.clone(), all.clone(), all], "the neighbour on the destination's own host, too");
    assert_eq!(destination.heard(), Vec::<Vec<u8>>::new());
}

#[test]
fn from_the_relay_on_no_frame_is_lost_or_comes_twice_whatever_hosts_have_been_told() {
    let mut journey = Journey::new();
    let mut destination = journey.destination();
    journey.open_relay();
    // Twice is once.
    journey.open_relay();
    let send = |journey: &mut Journey| (0..20).map(|_| journey.everybody_sends()).last().unwrap();
    let both = send(&mut journey);
    let all: Vec<u32> = (1..=both).collect();
    assert_eq!(numbers_until(&mut journey.source, both), [all.clone(), all.clone(), all]);
    // The guest stands still, the server commits: from here the old place is silent.
    journey.fence();
    let ghost = datagram(end(MOVING.0, MOVING.1, 4000), end(&neighbour(3).mac, "10.1.0.3", 4000), "from the ghost");
    journey.source.send(&ghost);
    send(&mut journey);
    // It runs; its host is told first, the source later, the third host last.
    journey.do_at(2, |net, vm| async move { net.arrived(&vm).await });
    send(&mut journey);
    journey.tell(2, 2, true);
    send(&mut journey);
    journey.tell(1, 2, true);
    send(&mut journey);
    // The old copy is ended; the third host still sends to where it was.
    journey.do_at(1, |net, vm| async move { net.release(&vm).await });
    journey.do_at(1, |net, vm| async move { net.detach(&vm).await });
    journey.tell(1, 2, false);
    send(&mut journey);
    journey.tell(3, 2, false);
    let last = send(&mut journey);
    let all: Vec<u32> = (1..=last).collect();
    assert_eq!(numbers_until(&mut destination, last), [all.clone(), all.clone(), all]);
    // Nothing goes round: what has come is all that comes, and the guest's own words reach others.
    destination.send(&datagram(
        end(MOVING.0, MOVING.1, 4000),
        end(&neighbour(3).mac, "10.1.0.3", 4000),
        "from its new home",
    ));
    let mut heard = Vec::new();
    while let Some(frame) = journey.neighbours[2].1.next() {
        heard.push(frame);
        if contains(heard.last().unwrap(), b"from its new home") {
            break;
        }
    }
    assert!(heard.iter().any(|frame| contains(frame, b"from its new home")));
    assert!(!heard.iter().any(|frame| contains(frame, b"from the ghost")), "the old copy was heard");
    none_heard(&mut destination);
}

#[test]
fn a_move_that_is_unwound_leaves_everything_as_it_was() {
    let mut journey = Journey::new();
    let mut destination = journey.destination();
    journey.open_relay();
    journey.fence();
    journey.everybody_sends();
    numbers_until(&mut destination, 1);
    journey.do_at(1, |net, vm| async move { net.unfence(&vm).await });
    journey.everybody_sends();
    numbers_until(&mut destination, 2);
    journey.do_at(1, |net, vm| async move { net.close_relay(&vm).await });
    journey.do_at(2, |net, vm| async move { net.detach(&vm).await });
    journey.tell(2, 1, false);
    let last = journey.everybody_sends();
    let heard = numbers_until(&mut journey.source, last);
    assert_eq!(heard, [[2, 3], [2, 3], [2, 3]], "while it was fenced, frames went to the destination alone");
    none_heard(&mut destination);
    journey.source.send(&datagram(
        end(MOVING.0, MOVING.1, 4000),
        end(&neighbour(3).mac, "10.1.0.3", 4000),
        "here again",
    ));
    assert!(journey.neighbours[2].1.hears(b"here again"));
}

#[test]
fn an_agent_that_starts_anew_in_the_middle_goes_on_with_it() {
    let mut journey = Journey::new();
    let mut destination = journey.destination();
    journey.open_relay();
    journey.hosts[0].open(&[]);
    journey.hosts[1].open(&[]);
    journey.everybody_sends();
    let once = [[1], [1], [1]];
    assert_eq!(numbers_until(&mut journey.source, 1), once);
    assert_eq!(numbers_until(&mut destination, 1), once);
    journey.fence();
    journey.hosts[0].open(&[]);
    journey.everybody_sends();
    numbers_until(&mut destination, 2);
    none_heard(&mut journey.source);
}

#[test]
fn a_vm_that_comes_back_at_once_is_not_sent_after_itself() {
    let mut journey = Journey::new();
    let mut destination = journey.destination();
    journey.open_relay();
    journey.fence();
    journey.do_at(2, |net, vm| async move { net.arrived(&vm).await });
    for host in 1..=3 {
        journey.tell(host, 2, host < 3);
    }
    journey.do_at(1, |net, vm| async move { net.release(&vm).await });
    // Back to where it came from, within the time in which it is sent after.
    journey.host(1).attach(&journey.vm, Coming::Incoming);
    journey.do_at(2, |net, vm| async move { net.open_relay(&vm, vtep(1)).await });
    journey.everybody_sends();
    let once = [[1], [1], [1]];
    assert_eq!(numbers_until(&mut destination, 1), once);
    assert_eq!(numbers_until(&mut journey.source, 1), once);
    journey.do_at(2, |net, vm| async move { net.fence(&vm).await });
    journey.do_at(1, |net, vm| async move { net.arrived(&vm).await });
    journey.everybody_sends();
    assert_eq!(numbers_until(&mut journey.source, 2), [[2], [2], [2]]);
    none_heard(&mut destination);
}

#[test]
fn on_a_provider_network_a_vm_is_announced_and_fenced() {
    let mut bed = Bed::new();
    let mut hosts = [bed.host(1), bed.host(2)];
    for host in &mut hosts {
        let up =
            ["link", "add", "name", "prov", "address", &format!("02:00:00:00:01:0{}", host.number), "type", "bridge"];
        bed.ip(&host.name, &[&up[..], &["forward_delay", "0"]].concat());
        bed.ip(&host.name, &["link", "set", "dev", "eth0", "master", "prov"]);
        bed.ip(&host.name, &["link", "set", "dev", "prov", "up"]);
        host.open(&[("lan", "prov")]);
    }
    let (m, n) =
        (port("vm-m", "lan", MOVING.0, Some(MOVING.1)), port("vm-n1", "lan", "52:00:00:00:00:01", Some("10.1.0.1")));
    hosts[0].stands(network(Vec::new(), &[&m, &n]));
    hosts[1].stands(network(Vec::new(), &[&m]));
    let mut neighbour = hosts[0].guest(&bed, "vm-n1", &n, Coming::Fresh);
    let mut old = hosts[0].guest(&bed, "vm-m", &m, Coming::Fresh);
    let mut new = hosts[1].guest(&bed, "vm-m", &m, Coming::Incoming);
    let (here, there) = (end("52:00:00:00:00:01", "10.1.0.1", 4000), end(MOVING.0, MOVING.1, 4000));
    old.send(&rarp(mac(MOVING.0)));
    assert!(neighbour.hears(&[0x80, 0x35]));
    neighbour.send(&datagram(here, there, "before"));
    assert!(old.hears(b"before"));
    let vm = m.vm.clone();
    hosts[0].call(|net| async move { net.fence(&vm).await.unwrap() });
    let vm = m.vm.clone();
    hosts[1].call(|net| async move { net.announce(&vm).await.unwrap() });
    // Once the neighbour has heard of it, its switch has, too.
    assert!(neighbour.hears(&gratuitous_arp(mac(MOVING.0), MOVING.1.parse().unwrap())));
    neighbour.send(&datagram(here, there, "after"));
    assert!(new.hears(b"after"));
    assert!(!old.heard().iter().any(|frame| contains(frame, b"after")));
    old.send(&datagram(there, here, "from the ghost"));
    new.send(&datagram(there, here, "from its new home"));
    let heard = std::iter::from_fn(|| neighbour.next()).find(|frame| contains(frame, b"from "));
    assert!(contains(&heard.unwrap(), b"from its new home"));
    let vm = m.vm.clone();
    let refused = hosts[0].call(|net| async move { net.open_relay(&vm, vtep(2)).await });
    assert!(matches!(refused, Err(crate::net::NetError::NotOverlay(_))));
}
