//! What every kind of object can do, and who may have it done, through the state machine as the server drives it.

mod lists;
mod roles;

use super::*;
use crate::interface::{Action, RefusalKind};
use crate::testing::{Site, TICK, host, operator, small_vm};
use drover_model::intent::{ImageFile, Role, RunIntent, VmSpec};
use drover_model::v1::{CreateNetwork, CreatePlacementRule, CreatePort, CreateSecurityGroup, CreateTenant, RuleWord};
use drover_model::{Bytes, Millis};
use serde_json::json;

/// Tenants blue and green, hosts h1 and h2 with an address for overlay networks.
fn site() -> Site {
    let mut site = Site::new(2);
    site.create_tenant("green");
    for name in ["h1", "h2"] {
        let address = Some([192, 168, 0, 1].into());
        site.control.tables.change::<Host>(&host(name), |host| host.overlay_address = address);
    }
    site.pass(TICK);
    site
}

fn of(tenant: &str) -> Actor {
    Actor { name: format!("{tenant}-token"), role: Role::Tenant { tenant: tenant.parse().unwrap() } }
}

fn key<K: Kind>(id: &str) -> ObjectKey {
    ObjectKey { kind: K::NAME.into(), id: id.to_owned() }
}

fn tenant(name: &str) -> Action {
    let (name, labels, quota) = (name.parse().unwrap(), Default::default(), Default::default());
    Action::Create(Draft::Tenant(CreateTenant { labels, quota, ..CreateTenant::named(name) }))
}

fn network(tenant: &str, name: &str) -> Action {
    Action::Create(Draft::Network(CreateNetwork {
        name: name.parse().unwrap(),
        tenant: Some(tenant.parse().unwrap()),
        subnet: "10.0.0.0/24".parse().unwrap(),
        router: None,
        dns: Vec::new(),
        mtu: None,
        labels: Default::default(),
    }))
}

fn group(tenant: &str, name: &str) -> Action {
    let (name, tenant) = (name.parse().unwrap(), Some(tenant.parse().unwrap()));
    Action::Create(Draft::SecurityGroup(CreateSecurityGroup {
        name,
        tenant,
        rules: Vec::new(),
        labels: Default::default(),
    }))
}

fn port(name: &str, network: &str) -> Action {
    Action::Create(Draft::Port(CreatePort {
        name: name.parse().unwrap(),
        network: network.to_owned(),
        tenant: None,
        host: host("h1"),
        interface: name.to_owned(),
        mac: None,
        address: None,
        labels: Default::default(),
    }))
}

fn rule(name: &str, vm: &str) -> Action {
    Action::Create(Draft::PlacementRule(CreatePlacementRule {
        name: name.parse().unwrap(),
        rule: RuleWord::HostsMax,
        vms: vec![vm.to_owned()],
        within: None,
        hosts: Default::default(),
        racks: Default::default(),
        zones: Default::default(),
        labels: Default::default(),
        hosts_max: Some(1),
    }))
}

fn token(id: &str, role: Role, secret: &str) -> Action {
    let (id, secret_sha256) = (id.parse().unwrap(), secret.to_owned());
    Action::CreateToken { token: ApiToken { id, secret_sha256, role, created_at: TimeMs(1), expires_at: None } }
}

fn image(name: &str, created_at: u64) -> Action {
    let kernel = Some(ImageFile { size: Bytes(1), sha256: String::new() });
    let (id, created_at, cmdline, labels) =
        (name.parse().unwrap(), TimeMs(created_at), String::new(), Default::default());
    Action::CreateImage { image: Image { id, created_at, kernel, initrd: None, disk: None, cmdline, labels } }
}

fn vm(id: &str, spec: VmSpec) -> Action {
    Action::CreateVm { id: id.parse().unwrap(), spec }
}

fn patch(key: &ObjectKey, patch: Value) -> Action {
    Action::Patch { key: key.clone(), patch }
}

fn remove(key: &ObjectKey) -> Action {
    Action::Remove { key: key.clone() }
}

/// The key of what was made.
fn made(site: &mut Site, action: Action) -> ObjectKey {
    match site.ask(action).unwrap() {
        Reply::Object(key) => key,
        other => panic!("{other:?}"),
    }
}

fn events_of(site: &Site, key: &ObjectKey) -> Vec<String> {
    let object = key.to_string();
    site.events.iter().filter(|event| event.object == object).map(|event| event.kind.clone()).collect()
}

/// Refused, and nothing is different.
fn refused(site: &mut Site, actor: Actor, action: Action) -> Refusal {
    let (before, events) = (site.control.revision(), site.events.len());
    let refusal = site.ask_with(actor, None, None, action.clone()).expect_err(&format!("{action:?}"));
    assert_eq!((site.control.revision(), site.events.len()), (before, events), "{action:?}: {refusal}");
    refusal
}

#[test]
fn each_kind_is_made_changed_under_a_condition_and_removed() {
    let mut site = site();
    let lan = made(&mut site, network("blue", "lan"));
    let a = site.create_vm("a");
    let labels = json!({"labels": {"env": "prod"}});
    let operators = token("second", Role::Operator, "s2");
    site.ask(token("first", Role::Operator, "s1")).unwrap();
    let cases = [
        (tenant("red"), Some(labels.clone())),
        (network("blue", "other"), Some(labels.clone())),
        (group("blue", "web"), Some(labels.clone())),
        (port("gw", &lan.id), Some(labels.clone())),
        (image("big", 1), Some(labels.clone())),
        (rule("seat", a.as_str()), None),
        (operators, None),
    ];
    for (create, change) in cases {
        let key = made(&mut site, create.clone());
        let kind = key.kind.clone();
        let again = refused(&mut site, operator(), create);
        assert_eq!(again.kind, RefusalKind::Conflict, "{again}");
        assert!(again.detail.contains("already: choose another name"), "{again}");
        let first = site.control.revision_of(&key);
        let mut expected = vec![format!("{kind}-created")];
        match change {
            Some(change) => {
                site.ask_with(operator(), None, first, patch(&key, change.clone())).unwrap();
                let second = site.control.revision_of(&key);
                assert!(second > first, "{key}");
                // The same once more changes nothing.
                site.ask_with(operator(), None, second, patch(&key, change.clone())).unwrap();
                assert_eq!(site.control.revision_of(&key), second, "{key}");
                expected.push(format!("{kind}-changed"));
                let stale = [patch(&key, json!({"labels": {}})), remove(&key)];
                for stale in stale {
                    let refusal = site.ask_with(operator(), None, first, stale).unwrap_err();
                    assert_eq!(refusal.kind, RefusalKind::Precondition, "{key}: {refusal}");
                }
                assert_eq!(site.control.revision_of(&key), second, "{key}");
                let unknown = refused(&mut site, operator(), patch(&key, json!({"colour": "red"})));
                assert_eq!((unknown.kind, unknown.field.as_deref()), (RefusalKind::Invalid, Some("colour")));
                let no_patch = refused(&mut site, operator(), patch(&key, json!(["labels"])));
                assert_eq!((no_patch.kind, no_patch.field.as_deref()), (RefusalKind::Invalid, Some("body")));
                let bad = refused(&mut site, operator(), patch(&key, json!({"labels": {"Env": ""}})));
                assert_eq!((bad.kind, bad.field.as_deref()), (RefusalKind::Invalid, Some("labels")), "{bad}");
            }
            None => {
                let refusal = refused(&mut site, operator(), patch(&key, labels.clone()));
                assert_eq!(refusal.kind, RefusalKind::Conflict, "{refusal}");
                assert!(refusal.detail.contains("does not change"), "{refusal}");
            }
        }
        let now = site.control.revision_of(&key);
        site.ask_with(operator(), None, now, remove(&key)).unwrap();
        assert_eq!(site.control.revision_of(&key), None, "{key}");
        expected.push(format!("{kind}-removed"));
        assert_eq!(events_of(&site, &key), expected);
        let gone = refused(&mut site, operator(), remove(&key));
        assert_eq!(gone.kind, RefusalKind::NotFound, "{gone}");
    }
}

#[test]
fn a_host_is_changed_key_by_key_and_removed_once_it_is_empty() {
    let mut site = site();
    let (h1, h2) = (key::<Host>("h1"), key::<Host>("h2"));
    site.ask(patch(&h1, json!({"rack": "r1", "disk_mib": 5}))).unwrap();
    site.ask(patch(&h1, json!({"disk_mib": null, "labels": ["ssd", "oracle"]}))).unwrap();
    let said = site.control.host(&host("h1")).unwrap().attributes.clone();
    let labels: Vec<String> = said.labels.iter().map(|label| label.to_string()).collect();
    assert_eq!((said.rack.unwrap().as_str(), said.disk, labels.join(",").as_str()), ("r1", None, "oracle,ssd"));
    for (change, field) in [
        (json!({"rak": "r1"}), "rak"),
        (json!({"maintenance": null}), "maintenance"),
        (json!({"power_curve_watts": [1.0, 2.0]}), "power_curve_watts"),
        (json!({"zone": "Zone 1"}), "zone"),
        (json!("r1"), "body"),
    ] {
        let refusal = refused(&mut site, operator(), patch(&h1, change.clone()));
        assert_eq!((refusal.kind, refusal.field.as_deref()), (RefusalKind::Invalid, Some(field)), "{change}");
    }
    let a = vm("vm-a", VmSpec { pinned_to: [host("h1")].into(), ..small_vm("blue", "a") });
    site.ask(a).unwrap();
    site.pass(Millis::secs(5));
    let refusal = refused(&mut site, operator(), remove(&h1));
    assert_eq!((refusal.kind, refusal.detail.as_str()), {
        (RefusalKind::Conflict, "h1 still holds 1 vms: `drover host drain h1` first")
    });
    // A stopped vm has its disk there.
    site.set_run(&"vm-a".parse().unwrap(), RunIntent::Stopped).unwrap();
    site.pass(Millis::secs(5));
    assert!(refused(&mut site, operator(), remove(&h1)).detail.contains("still holds 1 vms"));
    site.ask(remove(&h2)).unwrap();
    assert!(site.control.host(&host("h2")).is_none());
    assert_eq!(events_of(&site, &h2).last().map(String::as_str), Some("host-removed"));
}

#[test]
fn a_request_repeated_with_its_key_changes_nothing_more() {
    let mut site = site();
    let lan = made(&mut site, network("blue", "lan"));
    let group_key = made(&mut site, group("blue", "old"));
    let operators = |secret| token("ci", Role::Operator, secret);
    // The repetition brings other fresh ids, secrets and times.
    let pairs = [
        (tenant("red"), tenant("red")),
        (network("green", "lan"), network("green", "lan")),
        (group("blue", "web"), group("blue", "web")),
        (port("gw", &lan.id), port("gw", &lan.id)),
        (operators("s1"), operators("s2")),
        (image("big", 1), image("big", 2)),
        (vm("vm-1", small_vm("blue", "a")), vm("vm-2", small_vm("blue", "a"))),
        (patch(&lan, json!({"labels": {"a": ""}})), patch(&lan, json!({"labels": {"a": ""}}))),
        (remove(&group_key), remove(&group_key)),
    ];
    for (n, (first, second)) in pairs.into_iter().enumerate() {
        let key = format!("key-{n}");
        let answer = site.ask_with(operator(), Some(&key), None, first.clone()).unwrap();
        let (revision, events) = (site.control.revision(), site.events.len());
        assert_eq!(site.ask_with(operator(), Some(&key), None, second), Ok(answer), "{first:?}");
        assert_eq!((site.control.revision(), site.events.len()), (revision, events), "{first:?}");
        let other = site.ask_with(operator(), Some(&key), None, tenant("other")).unwrap_err();
        assert_eq!((other.kind, other.field.as_deref()), (RefusalKind::Invalid, Some("Idempotency-Key")), "{other}");
    }
    // Another caller's key is another key; a refusal is not remembered.
    let own = site.ask_with(of("blue"), Some("key-0"), None, network("blue", "mine")).unwrap();
    assert!(matches!(own, Reply::Object(key) if key.kind == Network::NAME));
    let taken = site.ask_with(of("blue"), Some("again"), None, network("blue", "mine")).unwrap_err();
    assert_eq!(taken.kind, RefusalKind::Conflict);
    assert!(site.ask_with(of("blue"), Some("again"), None, network("blue", "mine-2")).is_ok());
}

#[test]
fn what_would_pass_a_quota_is_refused_and_changes_nothing() {
    let mut site = site();
    let blue = key::<Tenant>("blue");
    let quota = json!({"vms": 2, "vcpus": 3, "memory_mib": 300, "networks": 1, "security_groups": 1, "tokens": 1});
    site.ask(patch(&blue, json!({ "quota": quota }))).unwrap();
    let of_blue = || Role::Tenant { tenant: "blue".parse().unwrap() };
    let over = |site: &mut Site, action: Action, words: &str| {
        for actor in [operator(), of("blue")] {
            if matches!(action, Action::CreateToken { .. }) && actor != operator() {
                continue;
            }
            let refusal = refused(site, actor, action.clone());
            assert_eq!(refusal.kind, RefusalKind::Conflict, "{refusal}");
            assert!(refusal.detail.contains(words), "{refusal}");
        }
    };
    let sized = |name: &str, vcpus, mib| {
        vm(&format!("vm-{name}"), VmSpec { vcpus, memory: Bytes::mib(mib), ..small_vm("blue", name) })
    };
    site.ask(sized("a", 1, 128)).unwrap();
    over(&mut site, sized("b", 3, 128), "tenant blue has 1 of at most 3 vcpus, and this asks for 3 more");
    over(&mut site, sized("b", 1, 173), "tenant blue has 128 of at most 300 MiB of memory, and this asks for 173 more");
    site.ask(sized("b", 2, 172)).unwrap();
    over(&mut site, sized("c", 1, 32), "tenant blue has 2 of at most 2 vms");
    site.ask(network("blue", "lan")).unwrap();
    over(&mut site, network("blue", "other"), "tenant blue has 1 of at most 1 networks");
    site.ask(group("blue", "web")).unwrap();
    over(&mut site, group("blue", "db"), "tenant blue has 1 of at most 1 security groups");
    site.ask(token("one", of_blue(), "s1")).unwrap();
    over(&mut site, token("two", of_blue(), "s2"), "tenant blue has 1 of at most 1 tokens");

    // Another tenant's is another quota; what is being removed counts no more.
    site.ask(vm("vm-g", small_vm("green", "g"))).unwrap();
    site.ask(Action::RemoveVm { vm: "vm-a".parse().unwrap() }).unwrap();
    site.ask(sized("c", 1, 128)).unwrap();
    // A lower quota takes nothing away, and a patch of one figure leaves the others.
    site.ask(patch(&blue, json!({"quota": {"vms": 0}}))).unwrap();
    assert!(site.control.vm(&"vm-b".parse().unwrap()).is_some_and(|vm| !vm.deleting));
    let quota = site.control.tenant(&"blue".parse().unwrap()).unwrap().quota;
    assert_eq!((quota.vms, quota.vcpus), (0, 3));
}

#[test]
fn what_others_need_is_not_removed_and_only_counts_are_told() {
    let mut site = site();
    let lan = made(&mut site, network("blue", "lan"));
    let web = made(&mut site, group("blue", "web"));
    let refers = json!({"rules": [{"direction": "ingress", "group": "web"}]});
    let db = made(&mut site, group("blue", "db"));
    site.ask(patch(&db, refers)).unwrap();
    site.ask(port("gw", &lan.id)).unwrap();
    for (id, tenant) in [("vm-1", "blue"), ("vm-2", "green")] {
        site.ask(vm(id, small_vm(tenant, "secret-name"))).unwrap();
    }
    for (key, words) in [
        (web.clone(), "security group web is in use by 1 security group: remove them first"),
        (lan.clone(), "network lan is in use by 1 port: remove them first"),
        (key::<Image>("tiny"), "image tiny is in use by 2 vms: remove them first"),
        (key::<Tenant>("blue"), "tenant blue is in use by 1 vm and 1 network and 2 security groups: remove them first"),
    ] {
        let refusal = refused(&mut site, operator(), remove(&key));
        assert_eq!((refusal.kind, refusal.detail.as_str()), (RefusalKind::Conflict, words));
    }
    // A tenant's tokens go with it; a reference that is gone forbids nothing.
    site.ask(patch(&db, json!({"rules": []}))).unwrap();
    site.ask(remove(&web)).unwrap();
    site.ask(token("of-green", Role::Tenant { tenant: "green".parse().unwrap() }, "s1")).unwrap();
    assert!(site.control.authenticate("s1", site.at).is_some());
    site.ask(Action::RemoveVm { vm: "vm-2".parse().unwrap() }).unwrap();
    site.pass(Millis::secs(5));
    site.ask(remove(&key::<Tenant>("green"))).unwrap();
    assert!(site.control.authenticate("s1", site.at).is_none());
}

#[test]
fn the_last_operator_token_that_does_not_expire_stays() {
    let mut site = site();
    site.ask(token("one", Role::Operator, "s1")).unwrap();
    site.ask(token("two", Role::Operator, "s2")).unwrap();
    site.ask(token("blue", Role::Tenant { tenant: "blue".parse().unwrap() }, "s3")).unwrap();
    site.ask(remove(&key::<ApiToken>("two"))).unwrap();
    let last = refused(&mut site, operator(), remove(&key::<ApiToken>("one")));
    assert_eq!(last.kind, RefusalKind::Conflict, "{last}");
}

#[test]
fn a_tenant_made_again_under_an_old_name_is_another_tenant() {
    let mut site = site();
    let red = made(&mut site, tenant("red"));
    let id = |site: &Site| site.control.tenant(&"red".parse().unwrap()).unwrap().id.clone();
    let first = id(&site);
    assert!(first.as_str().starts_with("tn-"));
    site.ask(remove(&red)).unwrap();
    site.ask(tenant("red")).unwrap();
    assert_ne!(id(&site), first);
}

#[test]
fn a_vm_is_not_called_like_an_id() {
    let mut site = site();
    for (name, taken) in
        [("vm-abcdefghijkl", false), ("vm-123456789012", false), ("vm-a", true), ("vm-abcdef-hijkl", true)]
    {
        match taken {
            true => assert!(site.ask(vm(&format!("x-{name}"), small_vm("blue", name))).is_ok(), "{name}"),
            false => {
                let refusal = refused(&mut site, operator(), vm("vm-x", small_vm("blue", name)));
                assert_eq!((refusal.kind, refusal.field.as_deref()), (RefusalKind::Invalid, Some("name")), "{name}");
            }
        }
    }
}
