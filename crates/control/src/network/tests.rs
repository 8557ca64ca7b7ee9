//! Requests and what hosts are told of them, through the state machine as the server drives it.

use crate::interface::{
    Action, Actor, AgentMessage, ConnectionId, Draft, Effect, Input, NetworkReport, Refusal, RefusalKind, Reply,
    Request, RequestId,
};
use crate::{Control, Settings};
use drover_model::command::Command;
use drover_model::intent::{Host, Image, ImageFile, JoinToken, Nic, Role, Tenant, Vm, VmSpec};
use drover_model::inventory::{Accelerator, HostFacts};
use drover_model::kind::{Kind, ObjectKey, Owned};
use drover_model::network::{
    Bandwidth, Direction, HostNetwork, Network, Port, PortRule, Protocol, SecurityGroup, Station,
};
use drover_model::policy::{Mode, Policy};
use drover_model::v1::{CreateNetwork, CreatePort, CreateSecurityGroup, CreateTenant, SecurityRule};
use drover_model::{Bytes, NetworkId, TimeMs, VmId};
use serde_json::json;
use std::net::Ipv4Addr;

struct Site {
    control: Control,
    now: u64,
    requests: u64,
    /// Of the last step, without commits.
    effects: Vec<Effect>,
}

fn nic(network: &str, vm: &VmId) -> Nic {
    Nic {
        network: network.parse().unwrap(),
        mac: Vm::derived_mac(vm),
        address: None,
        security_groups: Default::default(),
        bandwidth: Bandwidth::default(),
    }
}

fn vm_id(name: &str) -> VmId {
    format!("vm-{name}").parse().unwrap()
}

fn tenant_of(name: &str) -> Actor {
    Actor { name: name.to_owned(), role: Role::Tenant { tenant: name.parse().unwrap() } }
}

fn operator() -> Actor {
    Actor { name: "operator".to_owned(), role: Role::Operator }
}

fn create_network(tenant: &str, name: &str, subnet: &str) -> CreateNetwork {
    CreateNetwork {
        name: name.parse().unwrap(),
        tenant: Some(tenant.parse().unwrap()),
        subnet: subnet.parse().unwrap(),
        router: None,
        dns: Vec::new(),
        mtu: None,
        labels: Default::default(),
    }
}

/// TCP to port 80, from anybody.
fn rule() -> SecurityRule {
    SecurityRule {
        direction: Direction::Ingress,
        protocol: Protocol::Tcp,
        first_port: Some(80),
        last_port: None,
        subnet: None,
        group: None,
    }
}

fn rule_for(group: &str) -> SecurityRule {
    SecurityRule { group: Some(group.to_owned()), ..rule() }
}

fn group(tenant: &str, name: &str, rules: Vec<SecurityRule>) -> Action {
    Action::Create(Draft::SecurityGroup(CreateSecurityGroup {
        name: name.parse().unwrap(),
        tenant: Some(tenant.parse().unwrap()),
        rules,
        labels: Default::default(),
    }))
}

fn group_key(tenant: &str, name: &str) -> ObjectKey {
    let key = Owned { tenant: tenant.parse().unwrap(), name: name.parse().unwrap() };
    ObjectKey::of::<SecurityGroup>(&key)
}

fn port(name: &str, network: &NetworkId) -> CreatePort {
    CreatePort {
        name: name.parse().unwrap(),
        network: network.to_string(),
        tenant: None,
        host: "h1".parse().unwrap(),
        interface: "gw0".to_owned(),
        mac: None,
        address: None,
        labels: Default::default(),
    }
}

fn remove<K: Kind>(key: &str) -> Action {
    Action::Remove { key: ObjectKey { kind: K::NAME.into(), id: key.to_owned() } }
}

impl Site {
    /// Tenants blue and green, and hosts h1 to h`hosts`, connected.
    fn new(hosts: u64) -> Self {
        let initial_policy = Policy { mode: Mode::Observe, ..Policy::default() };
        let settings = Settings { initial_policy, ..Settings::default() };
        let control = Control::load(crate::interface::PersistedState::default(), settings, TimeMs(1_000));
        let mut site = Self { control, now: 1_000, requests: 0, effects: Vec::new() };
        for tenant in ["blue", "green"] {
            let (name, labels, quota) = (tenant.parse().unwrap(), Default::default(), Default::default());
            site.done(Action::Create(Draft::Tenant(CreateTenant {
                labels,
                quota,
                provider_networks: [("prov".parse().unwrap(), Vec::new())].into(),
                ..CreateTenant::named(name)
            })));
        }
        let kernel = Some(ImageFile { size: Bytes(1), sha256: String::new() });
        let (id, created_at) = ("tiny".parse().unwrap(), TimeMs(1));
        let (cmdline, labels) = (String::new(), Default::default());
        let image = Image { id, created_at, kernel, initrd: None, disk: None, cmdline, labels };
        site.done(Action::CreateImage { image });
        for n in 1..=hosts {
            let host: drover_model::HostId = format!("h{n}").parse().unwrap();
            let id: drover_model::TokenId = format!("join-{n}").parse().unwrap();
            let (secret_sha256, expires_at) = (String::new(), TimeMs(u64::MAX));
            let token = JoinToken {
                id: id.clone(),
                secret_sha256: secret_sha256.clone(),
                host: host.clone(),
                created_at: TimeMs(1),
                expires_at,
            };
            site.done(Action::CreateJoinToken { token });
            site.done(Action::Join { host, token: id, secret_sha256 });
            site.connect(n, n);
        }
        site
    }

    fn step(&mut self, input: Input) -> Option<Result<Reply, Refusal>> {
        self.now += 10;
        self.effects = self.control.step(TimeMs(self.now), input);
        self.effects.retain(|effect| !matches!(effect, Effect::Commit(_)));
        let last = self.effects.pop_if(|effect| matches!(effect, Effect::Reply { .. }));
        last.map(|effect| match effect {
            Effect::Reply { result, .. } => result,
            _ => unreachable!("only a reply was taken"),
        })
    }

    fn ask(&mut self, actor: Actor, ask: Action) -> Result<Reply, Refusal> {
        self.requests += 1;
        let fresh = format!("{:012}", self.requests);
        let request = Request { id: RequestId(1), actor, idempotency_key: None, if_match: None, fresh, action: ask };
        self.step(Input::Request(request)).expect("a request is answered in its step")
    }

    fn done(&mut self, ask: Action) {
        self.ask(operator(), ask).unwrap();
    }

    fn refused(&mut self, ask: Action, kind: RefusalKind, words: &str) {
        let refusal = self.ask(operator(), ask).unwrap_err();
        assert_eq!(refusal.kind, kind, "{refusal}");
        assert!(refusal.detail.contains(words), "{refusal}");
    }

    fn hear(&mut self, host: u64, connection: u64, message: AgentMessage) {
        let host = format!("h{host}").parse().unwrap();
        self.step(Input::Agent { host, connection: ConnectionId(connection), message });
    }

    fn connect(&mut self, host: u64, connection: u64) {
        self.connect_as(host, connection, |_| {});
    }

    fn connect_as(&mut self, host: u64, connection: u64, change: impl FnOnce(&mut HostFacts)) {
        let mut facts: HostFacts = serde_json::from_value(serde_json::json!({
            "agent_version": "1", "qemu_version": "7.2.22", "kernel": "6.1", "accelerator": "tcg",
            "accelerator_why": "", "cpu_model": "", "capacity": {"cpu": 8000, "memory": 8_u64 << 30},
            "networks": ["prov"], "overlay_address": format!("192.168.0.{host}"), "boot_id": "b", "agent_run": "r",
        }))
        .unwrap();
        change(&mut facts);
        self.hear(host, connection, AgentMessage::Connected { facts, vms: Vec::new() });
    }

    fn report(&mut self, host: u64, generation: u64, error: Option<&str>) {
        let network = NetworkReport { generation, error: error.map(str::to_owned) };
        let at = TimeMs(self.now);
        self.hear(host, host, AgentMessage::Report { at, vms: Vec::new(), load: None, network });
    }

    fn tick(&mut self) {
        self.step(Input::Tick);
    }

    fn network(&mut self, tenant: &str, name: &str) -> NetworkId {
        self.create_network(create_network(tenant, name, "10.0.0.0/29"))
    }

    fn create_network(&mut self, create: CreateNetwork) -> NetworkId {
        match self.ask(operator(), Action::Create(Draft::Network(create))).unwrap() {
            Reply::Object(key) => key.id.parse().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// The network that the caller means.
    fn find(&self, reference: &str, actor: &Actor, tenant: Option<&str>) -> Result<NetworkId, RefusalKind> {
        let tenant = tenant.map(|tenant| tenant.parse().unwrap());
        let found = self.control.find::<Network>(reference, actor, tenant.as_ref());
        found.map(|row| row.value.id.clone()).map_err(|refusal| refusal.kind)
    }

    /// On the host of this number, when it is placed.
    fn try_vm(&mut self, tenant: &str, name: &str, host: u64, card: impl FnOnce(&mut Nic)) -> Result<Nic, Refusal> {
        let id = vm_id(name);
        let mut nic = nic("lan", &id);
        card(&mut nic);
        let spec = VmSpec {
            name: name.parse().unwrap(),
            tenant: tenant.parse().unwrap(),
            image: "tiny".parse().unwrap(),
            vcpus: 1,
            memory: Bytes::mib(64),
            nic: Some(nic),
            anti_affinity: None,
            pinned_to: [format!("h{host}").parse().unwrap()].into(),
            cpu_reserved: Default::default(),
            guest_args: Default::default(),
            labels: Default::default(),
        };
        self.ask(tenant_of(tenant), Action::CreateVm { id: id.clone(), spec })?;
        Ok(self.control.vm(&id).unwrap().spec.nic.clone().unwrap())
    }

    fn vm(&mut self, tenant: &str, name: &str, host: u64) -> Option<String> {
        self.try_vm(tenant, name, host, |_| {}).unwrap().address
    }

    /// What the last step told a host.
    fn told(&self, host: &str) -> Option<&HostNetwork> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Network { host: to, network, .. } if to.as_str() == host => Some(network),
            _ => None,
        })
    }
}

#[test]
fn a_vm_gets_the_lowest_free_address_and_gives_it_back_when_it_is_gone() {
    let mut site = Site::new(1);
    let router = Some(Ipv4Addr::new(10, 0, 0, 1));
    let lan = site.create_network(CreateNetwork { router, ..create_network("blue", "lan", "10.0.0.0/29") });
    let fixed = |text: &'static str| move |nic: &mut Nic| nic.address = Some(text.to_owned());
    let fixed_at = |site: &mut Site, name: &str, text| site.try_vm("blue", name, 1, fixed(text)).map(|nic| nic.address);
    assert_eq!(fixed_at(&mut site, "c", "10.0.0.3").unwrap().as_deref(), Some("10.0.0.3/29"));
    assert_eq!(site.vm("blue", "a", 1).as_deref(), Some("10.0.0.2/29"));
    site.done(Action::Create(Draft::Port(port("gw", &lan))));
    assert_eq!(site.control.ports().next().unwrap().address, Ipv4Addr::new(10, 0, 0, 4));
    assert_eq!(site.vm("blue", "b", 1).as_deref(), Some("10.0.0.5/29"));
    for (text, kind) in [
        ("10.0.0.3", RefusalKind::Conflict),
        ("10.0.0.4/29", RefusalKind::Conflict),
        ("10.0.0.1", RefusalKind::Conflict),
        ("10.0.0.0", RefusalKind::Invalid),
        ("10.0.0.7", RefusalKind::Invalid),
        ("10.0.1.2", RefusalKind::Invalid),
        ("10.0.0.6/24", RefusalKind::Invalid),
        ("fd00::1", RefusalKind::Invalid),
    ] {
        let refusal = fixed_at(&mut site, "x", text).unwrap_err();
        assert_eq!((refusal.kind, refusal.field.as_deref()), (kind, Some("address")), "{text}: {refusal}");
    }
    assert_eq!(site.vm("blue", "d", 1).as_deref(), Some("10.0.0.6/29"));
    let full = site.try_vm("blue", "e", 1, |_| {}).unwrap_err();
    assert!(full.detail.contains("every address of network lan"), "{full}");
    site.done(Action::RemoveVm { vm: vm_id("c") });
    site.tick();
    assert_eq!(site.vm("blue", "e", 1).as_deref(), Some("10.0.0.3/29"));
}

#[test]
fn a_name_means_the_tenants_own_network_and_never_anothers() {
    let mut site = Site::new(1);
    let blues = site.network("blue", "lan");
    let greens = site.network("green", "lan");
    let at = |nic: Nic| (nic.network, nic.address.unwrap());
    let lan = |network: &NetworkId| (network.clone(), "10.0.0.1/29".to_owned());
    assert_eq!(site.try_vm("blue", "a", 1, |_| {}).map(at), Ok(lan(&blues)));
    assert_eq!(site.try_vm("green", "b", 1, |_| {}).map(at), Ok(lan(&greens)));
    let by_id = |nic: &mut Nic| nic.network = blues.clone();
    let refusal = site.try_vm("green", "c", 1, by_id).unwrap_err();
    assert!(refusal.detail.contains("there is no network"), "{refusal}");
    let ask = remove::<Network>(blues.as_str());
    assert_eq!(site.ask(tenant_of("green"), ask).unwrap_err().kind, RefusalKind::NotFound);
    assert_eq!(site.find(blues.as_str(), &tenant_of("green"), None), Err(RefusalKind::NotFound));
    assert_eq!(site.find("lan", &operator(), None), Err(RefusalKind::Conflict));
    assert_eq!(site.find("lan", &operator(), Some("blue")), Ok(blues));
    // A tenant that names another tenant is refused, by the field.
    let theirs = Action::Create(Draft::Network(create_network("green", "mine", "10.0.0.0/8")));
    let refusal = site.ask(tenant_of("blue"), theirs).unwrap_err();
    assert_eq!((refusal.kind, refusal.field.as_deref()), (RefusalKind::Invalid, Some("tenant")));
    // A provider network tells nothing of addresses.
    let provider = |nic: &mut Nic| nic.network = "prov".parse().unwrap();
    assert_eq!(site.try_vm("green", "d", 1, provider).unwrap().address, None);
    let plain = |nic: &mut Nic| (nic.network, nic.address) = ("prov".parse().unwrap(), Some("10.9.9.9".to_owned()));
    assert_eq!(site.try_vm("green", "e", 1, plain).unwrap_err().field.as_deref(), Some("address"));
    let ask = Action::Create(Draft::Network(create_network("blue", "prov", "10.0.0.0/8")));
    site.refused(ask, RefusalKind::Conflict, "is a provider network");
}

#[test]
fn a_provider_network_is_for_those_who_were_granted_it_and_an_address_is_one_vms() {
    let mut site = Site::new(1);
    let grant = |site: &mut Site, tenant: &str, ranges: serde_json::Value| {
        let key = ObjectKey::of::<drover_model::intent::Tenant>(&tenant.parse().unwrap());
        site.done(Action::Patch { key, patch: serde_json::json!({ "provider_networks": ranges }) });
    };
    grant(&mut site, "green", serde_json::json!({ "prov": null }));
    grant(&mut site, "blue", serde_json::json!({ "prov": ["10.9.0.0/28"] }));
    let at = |address: &'static str| {
        move |nic: &mut Nic| (nic.network, nic.address) = ("prov".parse().unwrap(), Some(address.to_owned()))
    };
    let refusal = site.try_vm("green", "g", 1, at("10.9.0.3/24")).unwrap_err();
    assert_eq!((refusal.kind, refusal.field.as_deref()), (RefusalKind::NotFound, Some("network")));
    let refusal = site.try_vm("blue", "b", 1, at("10.9.0.77/24")).unwrap_err();
    assert_eq!((refusal.kind, refusal.field.as_deref()), (RefusalKind::Invalid, Some("address")));
    site.try_vm("blue", "b", 1, at("10.9.0.3/24")).unwrap();
    grant(&mut site, "green", serde_json::json!({ "prov": [] }));
    let refusal = site.try_vm("green", "g", 1, at("10.9.0.3/24")).unwrap_err();
    assert_eq!((refusal.kind, refusal.field.as_deref()), (RefusalKind::Conflict, Some("address")));
    assert!(!refusal.detail.contains("blue"), "{refusal}");
    site.try_vm("green", "g", 1, at("10.9.0.4/24")).unwrap();
}

#[test]
fn a_network_that_makes_no_sense_is_refused_by_the_field() {
    let mut site = Site::new(1);
    let sound = || create_network("blue", "lan", "10.1.0.0/16");
    let router = |text: &str| Some(text.parse().unwrap());
    for (create, field) in [
        (create_network("blue", "lan", "10.1.2.3/16"), "subnet"),
        (create_network("blue", "lan", "10.0.0.0/7"), "subnet"),
        (create_network("blue", "lan", "10.0.0.0/31"), "subnet"),
        (create_network("blue", "lan", "127.0.0.0/16"), "subnet"),
        (create_network("blue", "lan", "169.254.1.0/24"), "subnet"),
        (create_network("blue", "lan", "239.0.0.0/8"), "subnet"),
        (CreateNetwork { router: router("10.2.0.1"), ..sound() }, "router"),
        (CreateNetwork { router: router("10.1.0.0"), ..sound() }, "router"),
        (CreateNetwork { router: router("10.1.255.255"), ..sound() }, "router"),
        (CreateNetwork { dns: vec![Ipv4Addr::UNSPECIFIED], ..sound() }, "dns"),
        (CreateNetwork { dns: vec![Ipv4Addr::LOCALHOST; 5], ..sound() }, "dns"),
        (CreateNetwork { mtu: Some(575), ..sound() }, "mtu"),
        (CreateNetwork { mtu: Some(8951), ..sound() }, "mtu"),
    ] {
        let refusal = site.ask(operator(), Action::Create(Draft::Network(create))).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some(field), "{refusal}");
    }
    assert_eq!(site.control.networks().count(), 0);
    for n in 0..50 {
        site.create_network(create_network("blue", &format!("lan-{n}"), "10.0.0.0/8"));
    }
    let vnis: std::collections::BTreeSet<u32> = site.control.networks().map(|network| network.vni).collect();
    assert_eq!(vnis.len(), 50);
    assert!(vnis.iter().all(|vni| (Network::VNI_MIN..=Network::VNI_MAX).contains(vni)));
}

#[test]
fn what_is_in_use_is_not_removed() {
    let mut site = Site::new(1);
    let lan = site.network("blue", "lan");
    site.done(group("blue", "web", vec![rule()]));
    site.done(group("blue", "db", vec![rule_for("web")]));
    site.done(Action::Create(Draft::Port(port("gw", &lan))));
    let remove_group = |name: &str| Action::Remove { key: group_key("blue", name) };
    let remove_lan = || remove::<Network>(lan.as_str());
    for name in ["a", "b"] {
        site.try_vm("blue", name, 1, |nic| nic.security_groups = ["db".parse().unwrap()].into()).unwrap();
    }
    let refused = [
        (remove_group("web"), "security group web is in use by 1 security group: remove them first"),
        (remove_group("db"), "security group db is in use by 2 vms: remove them first"),
        (remove_lan(), "network lan is in use by 2 vms and 1 port: remove them first"),
    ];
    for (ask, words) in refused {
        site.refused(ask, RefusalKind::Conflict, words);
    }
    for name in ["a", "b"] {
        site.done(Action::RemoveVm { vm: vm_id(name) });
    }
    site.tick();
    let words = "tenant blue is in use by 1 network and 2 security groups: remove them first";
    site.refused(remove::<Tenant>("blue"), RefusalKind::Conflict, words);
    site.refused(remove_lan(), RefusalKind::Conflict, "network lan is in use by 1 port: remove them first");
    site.done(remove_group("db"));
    site.done(remove_group("web"));
    site.done(remove::<Port>("gw"));
    site.done(remove_lan());
    site.done(remove::<Tenant>("blue"));
}

#[test]
fn a_rule_that_makes_no_sense_changes_nothing() {
    let mut site = Site::new(1);
    site.done(group("green", "theirs", Vec::new()));
    let refused = |site: &mut Site, rules: Vec<SecurityRule>| {
        let refusal = site.ask(tenant_of("blue"), group("blue", "web", rules)).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some("rules"), "{refusal}");
    };
    let first_port = Some(80);
    for bad in [
        SecurityRule { protocol: Protocol::Icmp, ..rule() },
        SecurityRule { first_port: Some(90), last_port: first_port, ..rule() },
        SecurityRule { first_port: Some(0), last_port: first_port, ..rule() },
        SecurityRule { first_port: None, last_port: first_port, ..rule() },
        SecurityRule { subnet: Some("10.0.0.0".to_owned()), ..rule() },
        SecurityRule { subnet: Some("10.0.0.0/8".to_owned()), ..rule_for("web") },
        rule_for("theirs"),
    ] {
        refused(&mut site, vec![bad]);
    }
    refused(&mut site, vec![rule(); 65]);
    assert!(site.control.security_group(&"blue".parse().unwrap(), &"web".parse().unwrap()).is_none());
    let theirs = |nic: &mut Nic| nic.security_groups = ["theirs".parse().unwrap()].into();
    assert_eq!(site.try_vm("blue", "a", 1, theirs).unwrap_err().field.as_deref(), Some("security_groups"));
}

#[test]
fn a_host_knows_its_networks_before_it_runs_a_vm_and_the_others_learn_where_it_is() {
    let mut site = Site::new(3);
    site.network("blue", "lan");
    site.tick();
    site.vm("blue", "a", 1);
    site.tick();
    let is_run = |effect: &Effect| matches!(effect, Effect::Send { command: Command::Run { .. }, .. });
    let run = site.effects.iter().position(is_run).unwrap();
    let network = site.effects.iter().position(|effect| matches!(effect, Effect::Network { .. })).unwrap();
    assert!(network < run, "{:?}", site.effects);
    let told = site.told("h1").unwrap();
    let (overlay, port) = (&told.overlays[0], &told.vms[0]);
    assert!(overlay.peers.is_empty() && overlay.stations.is_empty());
    assert_eq!((port.vm.as_str(), port.address), ("vm-a", Some("10.0.0.1/29".parse().unwrap())));
    assert_eq!(port.lease.as_ref().map(|lease| (lease.host_name.as_str(), lease.mtu)), Some(("a", 1450)));
    assert!(site.told("h2").is_none() && site.told("h3").is_none());

    site.vm("blue", "b", 2);
    let told_of = |site: &Site, host: &str| site.told(host).map(|told| told.overlays[0].stations.clone());
    site.now += 2_000;
    site.tick();
    let station = |vm: &str, last: u8, host: u8| Station {
        mac: Vm::derived_mac(&vm_id(vm)),
        address: Some(Ipv4Addr::new(10, 0, 0, last)),
        at: Ipv4Addr::new(192, 168, 0, host).into(),
    };
    assert_eq!(told_of(&site, "h1"), Some(vec![station("b", 2, 2)]));
    assert_eq!(told_of(&site, "h2"), Some(vec![station("a", 1, 1)]));
    assert_eq!(site.told("h1").unwrap().overlays[0].peers, ["192.168.0.2".parse().unwrap()].into());
    assert!(site.told("h3").is_none());
    let known = site.told("h1").unwrap().clone();

    // Nothing has changed, so nothing is said; a host that comes back is told everything.
    site.tick();
    assert!(!site.effects.iter().any(|effect| matches!(effect, Effect::Network { .. })), "{:?}", site.effects);
    site.connect(1, 11);
    let again = site.told("h1").unwrap();
    assert!(again.generation > known.generation);
    assert_eq!(HostNetwork { generation: known.generation, ..again.clone() }, known);
}

#[test]
fn a_group_stands_for_the_addresses_of_its_vms_on_the_same_network() {
    let mut site = Site::new(2);
    site.network("blue", "lan");
    site.network("blue", "other");
    site.done(group("blue", "web", Vec::new()));
    site.done(group("blue", "db", vec![rule_for("web")]));
    let within = |name: &'static str| move |nic: &mut Nic| nic.security_groups = [name.parse().unwrap()].into();
    site.try_vm("blue", "db", 1, within("db")).unwrap();
    site.try_vm("blue", "web-1", 2, within("web")).unwrap();
    site.try_vm("blue", "web-2", 2, |nic| {
        within("web")(nic);
        nic.network = "other".parse().unwrap();
    })
    .unwrap();
    site.tick();
    let resolved = |remotes: &[&str]| PortRule {
        direction: Direction::Ingress,
        protocol: Protocol::Tcp,
        ports: Some((80, 80)),
        remotes: Some(remotes.iter().map(|text| text.parse().unwrap()).collect()),
    };
    let perimeter = |site: &Site| site.told("h1").and_then(|told| told.vms[0].perimeter.clone());
    assert_eq!(perimeter(&site), Some(vec![resolved(&["10.0.0.2/32"])]));
    let guards: Vec<_> = site.told("h2").unwrap().vms.iter().map(|vm| vm.perimeter.clone()).collect();
    assert_eq!(guards, [Some(Vec::new()), Some(Vec::new())]);

    // One that leaves the group is let in no longer; where nobody asks for the group, nothing is said.
    site.done(Action::SetSecurityGroups { vm: vm_id("web-1"), groups: Default::default() });
    site.tick();
    assert_eq!(perimeter(&site), Some(vec![resolved(&[])]));
    assert_eq!(site.told("h2").unwrap().vms[0].perimeter, None);
    let patch = json!({ "rules": [rule_for("web"), rule()] });
    site.done(Action::Patch { key: group_key("blue", "db"), patch });
    site.tick();
    assert_eq!(perimeter(&site).map(|rules| rules.len()), Some(2));
    assert!(site.told("h2").is_none());
}

#[test]
fn what_a_host_has_applied_is_known_and_its_failure_told_once() {
    let mut site = Site::new(1);
    let lan = site.network("blue", "lan");
    site.vm("blue", "a", 1);
    site.tick();
    let generation = site.told("h1").unwrap().generation;
    let standing = |site: &Site| site.control.network_standing(&lan).remove(0);
    assert!(!standing(&site).applied);
    let told = |site: &Site| -> Vec<String> {
        let events = site.control.events(drover_model::EventSeq(0), 1_000);
        events.iter().filter(|event| event.kind.starts_with("network-")).map(|event| event.kind.clone()).collect()
    };
    for _ in 0..3 {
        site.report(1, generation - 1, Some("nft is missing"));
    }
    assert_eq!(standing(&site).error.as_deref(), Some("nft is missing"));
    site.report(1, generation, None);
    assert!(standing(&site).applied);
    assert_eq!(told(&site), ["network-created", "network-failed", "network-applied"]);
}

#[test]
fn a_port_is_a_member_like_a_vm_and_holds_its_host() {
    let mut site = Site::new(2);
    let lan = site.network("blue", "lan");
    site.vm("blue", "a", 2);
    let port = |name: &str, change: fn(&mut CreatePort)| {
        let mut create = port(name, &lan);
        change(&mut create);
        Action::Create(Draft::Port(create))
    };
    site.done(port("gw", |_| {}));
    site.tick();
    let station = &site.told("h2").unwrap().overlays[0].stations[0];
    assert_eq!((&station.mac, station.address), (&Port::derived_mac(&"gw".parse().unwrap()), "10.0.0.2".parse().ok()));
    assert_eq!(site.told("h1").unwrap().ports.len(), 1);
    site.refused(
        port("gw", |port| port.interface = "gw1".to_owned()),
        RefusalKind::Conflict,
        "there is a port gw already: choose another name",
    );
    site.refused(port("x", |_| {}), RefusalKind::Conflict, "interface gw0 already");
    site.refused(port("x", |port| port.interface = "dvgw".to_owned()), RefusalKind::Invalid, "drover's own");
    site.refused(port("x", |port| port.interface = "a/b".to_owned()), RefusalKind::Invalid, "must be 1 to 15");
    let twin = |port: &mut CreatePort| {
        (port.interface, port.mac) = ("gw1".to_owned(), Some(Port::derived_mac(&"gw".parse().unwrap())));
    };
    site.refused(port("x", twin), RefusalKind::Conflict, "is another's");
    let group_address = |port: &mut CreatePort| {
        (port.interface, port.mac) = ("gw1".to_owned(), Some("01:00:5e:00:00:01".to_owned()));
    };
    site.refused(port("x", group_address), RefusalKind::Invalid, "unicast");
    site.refused(remove::<Host>("h1"), RefusalKind::Conflict, "host h1 is in use by 1 port: remove them first");
    let ask = remove::<Port>("gw");
    assert_eq!(site.ask(tenant_of("blue"), ask.clone()).unwrap_err().kind, RefusalKind::Forbidden);
    site.done(ask);
    site.tick();
    assert!(site.told("h2").unwrap().overlays[0].stations.is_empty());
}

#[test]
fn a_vm_is_kept_from_hosts_without_its_network_or_of_another_kind() {
    let mut site = Site::new(2);
    site.network("blue", "lan");
    site.connect_as(2, 12, |facts| {
        facts.overlay_address = None;
        facts.networks.clear();
    });
    site.vm("blue", "on-lan", 1);
    let on_provider = |nic: &mut Nic| nic.network = "prov".parse().unwrap();
    site.try_vm("blue", "on-prov", 1, on_provider).unwrap();
    site.tick();
    let why =
        |site: &Site, vm: &str| site.control.incompatible(site.control.vm(&vm_id(vm)).unwrap(), &"h2".parse().unwrap());
    assert!(why(&site, "on-lan").unwrap().contains("takes part in no overlay network, and on-lan is on lan"));
    assert!(why(&site, "on-prov").unwrap().contains("not attached to network prov of on-prov"));
    let elsewhere = |nic: &mut Nic| nic.address = None;
    let refusal = site.try_vm("blue", "pinned", 2, elsewhere).unwrap_err();
    assert!(refusal.detail.contains("attached to network overlay"), "{refusal}");

    site.connect(2, 13);
    assert_eq!((why(&site, "on-lan"), why(&site, "on-prov")), (None, None));
    let kinds = |site: &Site| {
        let world = site.control.world(TimeMs(site.now));
        world.hosts.values().map(|host| (host.kind, host.refuses.clone())).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&site), [(0, [].into()), (0, [].into())]);
    site.connect_as(2, 14, |facts| facts.accelerator = Accelerator::Kvm);
    assert!(why(&site, "on-lan").unwrap().contains("runs under TCG and that host has KVM"));
    assert_eq!(kinds(&site), [(0, [1].into()), (1, [0].into())]);
}
