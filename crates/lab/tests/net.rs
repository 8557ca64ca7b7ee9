//! The lab's own network and its clean-up, in real namespaces. Needs root.

use drover_lab::net::{HostNumber, LabNet, PROVIDER_ADDRESS, SERVER_ADDRESS};
use drover_lab::netns::Namespace;
use drover_lab::place::Place;
use drover_lab::process::{self, Daemon};
use drover_lab::sweep::{self, Leftovers};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Two ends of a cut link notice nothing; this is only how long we look.
const CUT_WAIT: Duration = Duration::from_millis(500);

/// A lab without server and agents that is swept when it goes.
struct Built {
    place: Place,
    net: LabNet,
}

impl Built {
    fn new(hosts: usize) -> Self {
        let place = Place::new("test");
        place.create().unwrap();
        let net = LabNet::new(place.namespace_prefix(), hosts).unwrap();
        let built = Self { place, net };
        built.net.create().expect("this test needs root");
        built
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        sweep::sweep(&self.place).unwrap();
    }
}

fn host(number: usize) -> HostNumber {
    HostNumber::new(number).unwrap()
}

/// Whether a connection from one namespace to an address in another is made.
fn reaches(from: &Namespace, to: &Namespace, address: IpAddr, limit: Duration) -> Result<bool, anyhow::Error> {
    let listener = to.within(|| Ok(TcpListener::bind((address, 0))?))?;
    let target = SocketAddr::new(address, listener.local_addr()?.port());
    let stream = from.within(|| match TcpStream::connect_timeout(&target, limit) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(None),
        Err(error) => Err(error.into()),
    })?;
    let Some(mut stream) = stream else { return Ok(false) };
    stream.write_all(b"hello")?;
    let mut heard = [0; 5];
    listener.accept()?.0.read_exact(&mut heard)?;
    Ok(&heard == b"hello")
}

#[test]
fn hosts_reach_the_server_and_each_other_until_their_link_is_cut() {
    let lab = Built::new(2);
    let (switch, h1, h2) = (lab.net.switch(), lab.net.host(host(1)), lab.net.host(host(2)));
    assert!(reaches(&h1, &switch, SERVER_ADDRESS, CONNECT_WAIT_MAX).unwrap());
    assert!(reaches(&switch, &h2, host(2).address(), CONNECT_WAIT_MAX).unwrap());
    assert!(reaches(&h1, &h2, host(2).address(), CONNECT_WAIT_MAX).unwrap());

    lab.net.link(host(2), false).unwrap();
    assert!(!reaches(&h1, &h2, host(2).address(), CUT_WAIT).unwrap());
    assert!(reaches(&h1, &switch, SERVER_ADDRESS, CONNECT_WAIT_MAX).unwrap());
    lab.net.link(host(2), true).unwrap();
    assert!(reaches(&h1, &h2, host(2).address(), CONNECT_WAIT_MAX).unwrap());
}

#[test]
fn what_is_plugged_into_a_hosts_bridge_is_on_the_provider_network() {
    let lab = Built::new(1);
    let h1 = lab.net.host(host(1));
    // The bridge itself stands in for a guest on it.
    h1.ip(&["addr", "add", "10.78.0.11/24", "dev", "br-prov"]).unwrap();
    assert!(reaches(&h1, &lab.net.switch(), PROVIDER_ADDRESS, CONNECT_WAIT_MAX).unwrap());
}

#[test]
fn a_bridge_keeps_its_address_when_a_port_with_a_lower_one_is_plugged_in() {
    let lab = Built::new(1);
    let h1 = lab.net.host(host(1));
    let before = bridge_mac(&h1);
    h1.ip(&["tuntap", "add", "low", "mode", "tap"]).unwrap();
    h1.ip(&["link", "set", "low", "address", "02:00:00:00:00:01", "master", "br-prov", "up"]).unwrap();
    assert_eq!(bridge_mac(&h1), before);
}

fn bridge_mac(namespace: &Namespace) -> String {
    let show = ["-n", namespace.name(), "-o", "link", "show", "br-prov"];
    let said = Command::new("ip").args(show).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let mac = said.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
    mac.expect("a bridge has a hardware address").to_owned()
}

/// Stands in for an agent: its program is called alike, it names its configuration, and it runs until it is ended.
fn start_stand_in(lab: &Built) -> Daemon {
    let program = lab.place.file("drover");
    fs::copy("/usr/bin/tail", &program).unwrap();
    let config = lab.place.file("h1.toml");
    fs::write(&config, "").unwrap();
    let log = lab.place.file("h1.log");
    let daemon = Daemon { program, args: vec!["-f"], config, log, namespace: lab.net.host(host(1)) };
    daemon.start().unwrap();
    daemon
}

/// Where control groups can be made, in either version.
fn cgroup_root() -> &'static Path {
    let v1 = Path::new("/sys/fs/cgroup/cpu");
    if v1.exists() { v1 } else { Path::new("/sys/fs/cgroup") }
}

#[test]
fn a_daemon_runs_in_its_namespace_and_is_found_and_ended_by_its_configuration() {
    let lab = Built::new(1);
    let daemon = start_stand_in(&lab);
    let pid = daemon.pid().unwrap();
    daemon.start().unwrap();
    assert_eq!(daemon.pid(), Some(pid), "starting it again started another");
    let inside = lab.net.host(host(1)).within(|| Ok(fs::read_link("/proc/thread-self/ns/net")?)).unwrap();
    assert_eq!(fs::read_link(format!("/proc/{pid}/ns/net")).unwrap(), inside);

    daemon.terminate().unwrap();
    assert_eq!(daemon.pid(), None);
    assert!(daemon.expect_running().unwrap_err().to_string().contains("does not run"));
    daemon.start().unwrap();
    daemon.kill().unwrap();
    assert_eq!(daemon.pid(), None);
}

#[test]
fn a_sweep_removes_all_there_is_of_a_lab_and_leftovers_name_it() {
    let lab = Built::new(1);
    let pid = start_stand_in(&lab).pid().unwrap();
    let group = cgroup_root().join(lab.place.cgroup()).join("h1/vcpu");
    fs::create_dir_all(&group).unwrap();
    fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();

    let there = Leftovers::of(&lab.place);
    assert_eq!(there.namespaces.len(), 2, "{there:?}");
    assert_eq!(there.processes, [format!("{pid} drover")]);
    assert_eq!(there.cgroups.len(), 1, "{there:?}");

    sweep::sweep(&lab.place).unwrap();
    assert_eq!(Leftovers::of(&lab.place), Leftovers::default());
    assert!(!process::runs(pid) && !group.exists() && !lab.place.dir().exists());
}

#[test]
fn an_abandoned_lab_is_swept_by_the_next_and_one_that_is_owned_or_kept_is_not() {
    let (owned, abandoned, kept) = (Built::new(1), Built::new(1), Built::new(1));
    // No process has this number and began when the machine did.
    for lab in [&abandoned, &kept] {
        fs::write(lab.place.file("owner"), "4194304 0\n").unwrap();
    }
    kept.place.keep().unwrap();

    let swept = sweep::sweep_abandoned(false).unwrap();
    assert!(swept.contains(&abandoned.place.name().to_owned()), "{swept:?}");
    assert_eq!(Leftovers::of(&abandoned.place), Leftovers::default());
    assert_eq!(Leftovers::of(&owned.place).namespaces.len(), 2);
    assert_eq!(Leftovers::of(&kept.place).namespaces.len(), 2);
    assert!(owned.place.dir().exists() && kept.place.dir().exists() && !abandoned.place.dir().exists());
}
