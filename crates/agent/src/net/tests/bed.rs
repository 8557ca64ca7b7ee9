//! Hosts as network namespaces on one underlay, guests as namespaces behind their "taps": a veth pair whose one end has
//! the tap's name. So a test sends and receives whole frames, and guests have a whole network stack where one is needed.
//! What real taps add, a queue while the guest stands still, the tests with QEMU have.

use crate::net::names::{Mac, tap_name};
use crate::net::packet::{End, PacketSocket, udp_frame};
use crate::net::{Coming, Net, NetConfig};
use drover_model::VmId;
use drover_model::network::{Bandwidth, HostNetwork, Overlay, Station, VmPort};
use nix::sched::{CloneFlags, setns};
use socket2::SockFilter;
use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;

static BEDS: AtomicU32 = AtomicU32::new(0);
/// Frames that must come have come within this on a busy machine.
pub const COMES_WITHIN: Duration = Duration::from_secs(5);

/// Removed with all that is in it when it is dropped, by a panic, too.
pub struct Bed {
    prefix: String,
    namespaces: Vec<String>,
    dir: TempDir,
}

impl Drop for Bed {
    fn drop(&mut self) {
        for name in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().expect("the program is installed");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {}: {said} (this test needs root)", args.join(" "));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

impl Bed {
    /// An underlay: a namespace with a bridge.
    pub fn new() -> Self {
        let number = BEDS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("dt{}x{number}", std::process::id());
        let mut bed = Self { prefix, namespaces: Vec::new(), dir: TempDir::new().unwrap() };
        bed.namespace("u");
        bed.ip("u", &["link", "add", "name", "under", "type", "bridge", "forward_delay", "0"]);
        bed.ip("u", &["link", "set", "dev", "under", "up"]);
        bed
    }

    fn namespace(&mut self, name: &str) -> String {
        let full = self.name(name);
        run("ip", &["netns", "add", &full]);
        self.namespaces.push(full.clone());
        run("ip", &["-n", &full, "link", "set", "dev", "lo", "up"]);
        full
    }

    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn ip(&self, namespace: &str, args: &[&str]) -> String {
        run("ip", &[&["-n", &self.name(namespace)], args].concat())
    }

    /// A host `h<number>` at [`vtep`], with a thread of its own that works inside.
    pub fn host(&mut self, number: u8) -> Host {
        let name = format!("h{number}");
        let full = self.namespace(&name);
        let up = format!("up{number}");
        let (under, address) = (self.name("u"), format!("{}/24", vtep(number)));
        self.ip("u", &["link", "add", "name", &up, "type", "veth", "peer", "name", "eth0", "netns", &full]);
        run("ip", &["-n", &under, "link", "set", "dev", &up, "master", "under", "up"]);
        self.ip(&name, &["addr", "add", &address, "dev", "eth0"]);
        self.ip(&name, &["link", "set", "dev", "eth0", "mtu", "9000", "up"]);
        self.ip("u", &["link", "set", "dev", &up, "mtu", "9000"]);
        let state_file = self.dir.path().join(format!("{name}.json"));
        Host { number, name, full, state_file, runtime: Inside::new(&self.name(&format!("h{number}"))), net: None }
    }
}

pub fn vtep(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 168, 77, host))
}

/// A thread inside a namespace that runs futures.
pub struct Inside {
    runtime: tokio::runtime::Runtime,
}

impl Inside {
    /// Its only worker enters the namespace before anything else runs on it.
    pub fn new(namespace: &str) -> Self {
        let path = format!("/run/netns/{namespace}");
        let enter = move || {
            let file = File::open(&path).expect("the namespace is there");
            setns(file, CloneFlags::CLONE_NEWNET).expect("this test needs root");
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(enter)
            .enable_all()
            .build()
            .unwrap();
        Self { runtime }
    }

    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let handle = self.runtime.spawn(work);
        match self.runtime.block_on(handle) {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }
}

pub struct Host {
    pub number: u8,
    pub name: String,
    pub full: String,
    state_file: PathBuf,
    runtime: Inside,
    net: Option<Net>,
}

impl Host {
    /// Opens its networks, or opens them anew, as an agent that was killed and started again does.
    pub fn open(&mut self, providers: &[(&str, &str)]) {
        let providers = providers.iter().map(|(name, bridge)| (name.parse().unwrap(), (*bridge).to_owned())).collect();
        let config = NetConfig { state_file: self.state_file.clone(), providers, wait_max: Duration::from_secs(20) };
        self.net = None;
        self.net = Some(self.runtime.run(async { Net::open(config).await.unwrap() }));
    }

    pub fn call<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, work: impl FnOnce(Net) -> F) -> T {
        self.runtime.run(work(self.net.clone().expect("opened")))
    }

    /// Applies and says what came of it.
    pub fn tell(&self, network: HostNetwork) -> Option<String> {
        let local = Some(vtep(self.number));
        self.call(|net| async move { net.apply(network, local).await.err() })
    }

    pub fn stands(&self, network: HostNetwork) {
        assert_eq!(self.tell(network), None);
    }

    /// A guest behind a veth pair, attached.
    pub fn guest(&self, bed: &Bed, vm: &str, port: &VmPort, coming: Coming) -> Guest {
        let guest = Guest::plug(self, bed, vm);
        self.attach(port, coming);
        guest
    }

    pub fn attach(&self, port: &VmPort, coming: Coming) {
        let port = port.clone();
        self.call(|net| async move { net.attach(&port.vm, &port.mac, &port.network, coming).await.unwrap() });
    }

    pub fn show(&self, program: &str, args: &[&str]) -> String {
        run("ip", &[&["netns", "exec", &self.full, program], args].concat())
    }
}

/// Where a guest's frames come out.
pub struct Guest {
    inside: Inside,
    frames: mpsc::Receiver<Vec<u8>>,
    socket: std::sync::Arc<PacketSocket>,
}

impl Guest {
    pub fn plug(host: &Host, bed: &Bed, vm: &str) -> Self {
        let tap = tap_name(&vm.parse::<VmId>().unwrap());
        let card = format!("g{}", &tap[2..]);
        bed.ip(&host.name, &["link", "add", "name", &tap, "type", "veth", "peer", "name", &card]);
        bed.ip(&host.name, &["link", "set", "dev", &card, "addrgenmode", "none"]);
        bed.ip(&host.name, &["link", "set", "dev", &card, "up"]);
        Self::listen(host, &card)
    }

    pub fn listen(host: &Host, card: &str) -> Self {
        // Everything that is for this end.
        let everything = [SockFilter::new(0x06, 0, 0, 2_048)];
        let inside = Inside::new(&host.full);
        let name = card.to_owned();
        let socket = inside.run(async move { std::sync::Arc::new(PacketSocket::open(&name, &everything).unwrap()) });
        let (sender, frames) = mpsc::channel(4_096);
        let reading = socket.clone();
        inside.spawn(async move {
            while let Ok(frame) = reading.receive().await {
                if sender.send(frame).await.is_err() {
                    return;
                }
            }
        });
        Self { inside, frames, socket }
    }

    pub fn send(&self, frame: &[u8]) {
        self.socket.send(frame).unwrap();
    }

    /// The next frame that has this in it, of those that came or will come in time.
    pub fn hears(&mut self, needle: &[u8]) -> bool {
        let frames = &mut self.frames;
        let wait = async {
            while let Some(frame) = frames.recv().await {
                if contains(&frame, needle) {
                    return true;
                }
            }
            false
        };
        self.inside.runtime.block_on(async { tokio::time::timeout(COMES_WITHIN, wait).await.unwrap_or(false) })
    }

    /// The next frame of all, if it comes in time.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        let frames = &mut self.frames;
        self.inside.runtime.block_on(async { tokio::time::timeout(COMES_WITHIN, frames.recv()).await.ok().flatten() })
    }

    /// What has come until now.
    pub fn heard(&mut self) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        while let Ok(frame) = self.frames.try_recv() {
            heard.push(frame);
        }
        heard
    }
}

pub fn contains(frame: &[u8], needle: &[u8]) -> bool {
    frame.windows(needle.len()).any(|window| window == needle)
}

pub fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

pub fn end(mac_text: &str, address: &str, port: u16) -> End {
    End { mac: mac(mac_text), address: address.parse().unwrap(), port }
}

/// A datagram on port 4000 that carries this.
pub fn datagram(from: End, to: End, text: &str) -> Vec<u8> {
    udp_frame(from, to, text.as_bytes())
}

pub fn overlay(network: &str, vni: u32, peers: &[u8], stations: &[(&VmPort, u8)]) -> Overlay {
    let station = |(port, host): &(&VmPort, u8)| Station {
        mac: port.mac.clone(),
        address: port.address.map(|subnet| subnet.address),
        at: vtep(*host),
    };
    Overlay {
        network: network.parse().unwrap(),
        vni,
        mtu: 1_450,
        subnet: "10.1.0.0/24".parse().unwrap(),
        peers: peers.iter().map(|host| vtep(*host)).collect::<BTreeSet<_>>(),
        stations: stations.iter().map(station).collect(),
    }
}

pub fn port(vm: &str, network: &str, mac: &str, address: Option<&str>) -> VmPort {
    VmPort {
        vm: vm.parse().unwrap(),
        network: network.parse().unwrap(),
        mac: mac.to_owned(),
        address: address.map(|address| format!("{address}/24").parse().unwrap()),
        lease: None,
        perimeter: None,
        bandwidth: Bandwidth::default(),
    }
}

/// Generations grow by themselves.
pub fn network(overlays: Vec<Overlay>, vms: &[&VmPort]) -> HostNetwork {
    static GENERATION: AtomicU32 = AtomicU32::new(1);
    let generation = u64::from(GENERATION.fetch_add(1, Ordering::SeqCst));
    HostNetwork { generation, overlays, vms: vms.iter().map(|port| (*port).clone()).collect(), ports: Vec::new() }
}
