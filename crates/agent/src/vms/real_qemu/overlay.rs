//! A vm on an overlay network moves: what its hosts' networks do at each moment.

use super::*;
use drover_model::network::{HostNetwork, Overlay, Station, VmPort};
use std::fs::File;
use std::process::Command as Program;
use std::thread::JoinHandle;

/// The whole program of a filter that drops every frame: one instruction, `ret TC_ACT_SHOT`.
const DROPS_ALL: &str = "bytecode '1,6 0 0 2'";

/// Two hosts, each in a network namespace with a cable between them.
struct Cable {
    prefix: String,
}

impl Cable {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("dvo{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cable = Self { prefix };
        let (a, b) = (cable.namespace("h1"), cable.namespace("h2"));
        ip(&["netns", "add", &a]);
        ip(&["netns", "add", &b]);
        ip(&["-n", &a, "link", "add", "name", "up0", "type", "veth", "peer", "name", "up0", "netns", &b]);
        for (namespace, address) in [(&a, "10.9.0.1/24"), (&b, "10.9.0.2/24")] {
            ip(&["-n", namespace, "address", "add", address, "dev", "up0"]);
            ip(&["-n", namespace, "link", "set", "up0", "up"]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
        }
        cable
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    /// What is done to frames at the vm's tap on this host, one way, as `tc` says it.
    fn filters(&self, host: &str, vm: &VmId, side: &str) -> String {
        let (namespace, tap) = (self.namespace(host), tap_name(vm));
        let shown = Program::new("tc").args(["-n", &namespace, "filter", "show", "dev", &tap, side]).output().unwrap();
        String::from_utf8(shown.stdout).unwrap()
    }

    fn has_tap(&self, host: &str, vm: &VmId) -> bool {
        let (namespace, tap) = (self.namespace(host), tap_name(vm));
        Program::new("ip").args(["-n", &namespace, "link", "show", "dev", &tap]).output().unwrap().status.success()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for host in ["h1", "h2"] {
            let _ = Program::new("ip").args(["netns", "delete", &self.namespace(host)]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let done = Program::new("ip").args(arguments).status().expect("these tests need Debian's iproute2");
    assert!(done.success(), "ip {arguments:?}: these tests need root");
}

/// A host's agent on a thread of its own: a namespace is a thread's.
struct AwayHost {
    commands: mpsc::Sender<(Command, oneshot::Sender<Answer>)>,
    updates: broadcast::Receiver<Update>,
    thread: JoinHandle<()>,
}

impl AwayHost {
    async fn start(mut host: LabHost, namespace: &str, network: HostNetwork) -> Self {
        let file = File::open(format!("/run/netns/{namespace}")).unwrap();
        let (commands, mut told) = mpsc::channel::<(Command, oneshot::Sender<Answer>)>(1);
        let (ready, started) = oneshot::channel();
        let local = host.address.parse().unwrap();
        let run = async move {
            host.start_agent().await;
            host.agent().host().net.apply(network, Some(local)).await.unwrap();
            let _ = ready.send(host.agent().updates());
            while let Some((command, reply)) = told.recv().await {
                let answer = host.agent().command(command);
                tokio::spawn(async move { reply.send(answer.await.unwrap()) });
            }
        };
        let thread = std::thread::spawn(move || {
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run);
        });
        let updates = started.await.expect("an agent that starts");
        Self { commands, updates, thread }
    }

    async fn tell(&self, command: Command) -> Answer {
        let (reply, answer) = oneshot::channel();
        assert!(self.commands.send((command, reply)).await.is_ok(), "an agent that runs");
        timeout(PATIENCE, answer).await.expect("an answer in time").expect("an answer")
    }

    /// Ends the agent; what is left of its vm ends with its host.
    fn end(self) {
        let Self { commands, thread, .. } = self;
        drop(commands);
        thread.join().unwrap();
    }
}

/// What the server would tell of the vm's network to one host, the other being at `peer`.
fn network(host: &LabHost, peer: &str, vm_is_there: bool) -> HostNetwork {
    let id = host.network.clone().unwrap();
    let station = Station { mac: MAC.to_owned(), address: None, at: peer.parse().unwrap() };
    HostNetwork {
        generation: 1,
        overlays: vec![Overlay {
            network: id.clone(),
            vni: 5000,
            mtu: 1450,
            subnet: "10.1.0.0/24".parse().unwrap(),
            peers: BTreeSet::from([peer.parse().unwrap()]),
            stations: if vm_is_there { vec![station] } else { Vec::new() },
        }],
        vms: vec![VmPort {
            vm: host.vm.clone(),
            network: id,
            mac: MAC.to_owned(),
            address: None,
            lease: None,
            perimeter: None,
            bandwidth: Bandwidth::default(),
        }],
        ports: Vec::new(),
    }
}

#[tokio::test]
async fn frames_are_relayed_before_the_guest_stops_and_nothing_leaves_the_old_copy_once_it_is_committed() {
    let (lab, cable) = (Lab::new(COUNTER), Cable::new());
    let (mut source, mut destination) = (lab.host("h1"), lab.host("h2"));
    (source.address, destination.address) = ("10.9.0.1", "10.9.0.2");
    for host in [&mut source, &mut destination] {
        host.network = Some("net-aaaaaaaaaaaa".parse().unwrap());
    }
    let (vm, run) = (lab.vm.clone(), source.vm_run());
    let (to_source, to_destination) = (network(&source, "10.9.0.2", false), network(&destination, "10.9.0.1", true));
    let mut source = AwayHost::start(source, &cable.namespace("h1"), to_source).await;
    let mut destination = AwayHost::start(destination, &cable.namespace("h2"), to_destination).await;
    let run_here = Command::Run { run: run.clone(), generation: Generation(1) };
    assert_eq!(source.tell(run_here).await, Ok(CommandOutcome::Done));
    let relayed = || cable.filters("h1", &vm, "egress").contains("mirred");
    let fenced = || cable.filters("h1", &vm, "ingress").contains(DROPS_ALL);
    assert!(!relayed() && !fenced());

    let from: drover_model::HostId = "h1".parse().unwrap();
    for (generation, goes) in [(2, false), (3, true)] {
        let (generation, migration) = (Generation(generation), MigrationId(generation));
        let (run, from, strategy) = (run.clone(), from.clone(), lab.strategy);
        let prepare = Command::PrepareIncoming { run, generation, migration, from, strategy };
        let target = match destination.tell(prepare).await {
            Ok(CommandOutcome::Listening { target }) => target,
            other => panic!("{other:?}"),
        };
        assert_eq!(target.relay, Some("10.9.0.2".parse().unwrap()));
        let (vm, limits) = (vm.clone(), policy());
        let send =
            Command::MigrateOut { vm: vm.clone(), generation: Generation(1), migration, target, limits, strategy };
        assert_eq!(source.tell(send).await, Ok(CommandOutcome::Done));
        assert!(matches!(significant(&mut source.updates).await, MigrationUpdate::AtSwitchOver { .. }));
        assert!(relayed() && !fenced(), "{}", cable.filters("h1", &vm, "egress"));
        if goes {
            let commit = Command::CommitSwitchOver { vm, generation, migration };
            assert_eq!(source.tell(commit).await, Ok(CommandOutcome::Done));
        } else {
            let cancel = Command::CancelMigration { vm, migration };
            assert_eq!(source.tell(cancel).await, Ok(CommandOutcome::Done));
            assert!(matches!(significant(&mut source.updates).await, MigrationUpdate::SourceResumed { .. }));
            assert!(!relayed() && !fenced(), "{}", cable.filters("h1", &lab.vm, "egress"));
            assert!(matches!(significant(&mut destination.updates).await, MigrationUpdate::IncomingFailed { .. }));
            until("the destination has no tap", || !cable.has_tap("h2", &lab.vm)).await;
        }
    }
    assert!(fenced() && !relayed(), "{}", cable.filters("h1", &vm, "ingress"));
    assert!(matches!(significant(&mut source.updates).await, MigrationUpdate::HandedOver { .. }));
    assert!(matches!(significant(&mut destination.updates).await, MigrationUpdate::Running { .. }));
    let filters = cable.filters("h2", &vm, "ingress") + &cable.filters("h2", &vm, "egress");
    assert!(!filters.contains("mirred") && !filters.contains(DROPS_ALL), "{filters}");
    let release = |delete_disk| Command::Release { vm: vm.clone(), generation: Generation(3), delete_disk };
    assert_eq!(source.tell(release(false)).await, Ok(CommandOutcome::Done));
    assert!(!cable.has_tap("h1", &vm) && cable.has_tap("h2", &vm));
    assert_eq!(destination.tell(release(true)).await, Ok(CommandOutcome::Done));
    assert!(!cable.has_tap("h2", &vm));
    source.end();
    destination.end();
}
