//! What every kind of object can do, and who may have it done, through the state machine as the server drives it.

use super::*;
use crate::interface::{Action, RefusalKind};
use crate::testing::{Site, TICK, host, operator, small_vm};
use drover_model::intent::{ImageFile, Role, RunIntent, VmSpec};
use drover_model::kind::Owned;
use drover_model::migration::Priority;
use drover_model::plan::{Findings, Plan, PlanState, Prediction, Scenario};
use drover_model::v1::{
    CreateNetwork, CreatePlacementRule, CreatePort, CreateSecurityGroup, CreateTenant, List, ListQuery, RuleWord,
};
use drover_model::{Bytes, MicroMoney, MicroMoneyPerHour, MigrationId, Millis, PlanId, TokenId, VmId};
use serde_json::json;
use std::collections::BTreeSet;

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
    Action::Create(Draft::Tenant(CreateTenant { name, labels, quota }))
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

/// All pages, with so many objects at most on each.
fn pages<K: Resource>(site: &Site, actor: &Actor, query: &ListQuery) -> Vec<K::View> {
    let mut query = query.clone();
    let mut items = Vec::new();
    for _ in 0..1_000 {
        let List { items: page, next } = site.control.list::<K>(actor, &query).unwrap();
        let full = page.len() == query.limit.unwrap();
        items.extend(page);
        match next {
            Some(next) => query.cursor = Some(next),
            None => return items,
        }
        assert!(full, "only the last page has room left");
    }
    panic!("there is no last page");
}

fn limit(limit: usize) -> ListQuery {
    ListQuery { limit: Some(limit), ..ListQuery::default() }
}

#[test]
fn the_pages_of_a_list_hold_everything_once_in_order() {
    let mut site = site();
    for n in 0..12 {
        let tenant = if n % 3 == 0 { "green" } else { "blue" };
        let key = made(&mut site, network(tenant, &format!("n-{n}")));
        if n % 2 == 0 {
            site.ask(patch(&key, json!({"labels": {"env": "prod"}}))).unwrap();
        }
    }
    let text = |text: &str| Some(text.to_owned());
    let queries = [
        (operator(), ListQuery::default(), 12),
        (operator(), ListQuery { tenant: text("blue"), ..ListQuery::default() }, 8),
        (of("blue"), ListQuery::default(), 8),
        (of("blue"), ListQuery { tenant: text("green"), ..ListQuery::default() }, 0),
        (operator(), ListQuery { selector: text("env=prod"), ..ListQuery::default() }, 6),
        (of("green"), ListQuery { selector: text("env"), ..ListQuery::default() }, 2),
        (operator(), ListQuery { selector: text("env=test"), ..ListQuery::default() }, 0),
        (operator(), ListQuery { name: text("n-1"), ..ListQuery::default() }, 1),
        (of("green"), ListQuery { name: text("n-1"), ..ListQuery::default() }, 0),
        (operator(), ListQuery { tenant: text("nobody"), ..ListQuery::default() }, 0),
    ];
    for (actor, query, count) in queries {
        let whole = site.control.list::<Network>(&actor, &query).unwrap();
        let ids: Vec<String> = whole.items.iter().map(|view| view.id.to_string()).collect();
        assert_eq!((ids.len(), whole.next), (count, None), "{query:?}");
        assert!(ids.is_sorted(), "{ids:?}");
        for size in [1, 2, 3, 5, 12, 1_000] {
            let query = ListQuery { limit: Some(size), ..query.clone() };
            let paged = pages::<Network>(&site, &actor, &query);
            assert_eq!(paged.iter().map(|view| view.id.to_string()).collect::<Vec<_>>(), ids, "{query:?}");
        }
    }
    // What is removed between two pages is not missed, and nothing is shown twice.
    let first = site.control.list::<Network>(&operator(), &limit(5)).unwrap();
    site.ask(remove(&key::<Network>(first.next.as_deref().unwrap()))).unwrap();
    let rest = ListQuery { cursor: first.next, ..limit(100) };
    assert_eq!(site.control.list::<Network>(&operator(), &rest).unwrap().items.len(), 7);
}

#[test]
fn a_list_is_chosen_by_name_state_label_and_host() {
    let mut site = site();
    for (n, at) in ["h1", "h2", "h1", "h1"].into_iter().enumerate() {
        let spec = small_vm("blue", &format!("v{n}"));
        let labels = [("n".parse().unwrap(), n.to_string())].into_iter().collect();
        site.ask(vm(&format!("vm-{n}"), VmSpec { pinned_to: [host(at)].into(), labels, ..spec })).unwrap();
    }
    site.pass(Millis::secs(5));
    site.set_run(&"vm-2".parse().unwrap(), RunIntent::Stopped).unwrap();
    site.pass(Millis::secs(5));
    let text = |text: &str| Some(text.to_owned());
    let find = |query: ListQuery| -> String {
        let found = pages::<Vm>(&site, &operator(), &ListQuery { limit: Some(1), ..query });
        found.iter().map(|view| view.name.as_str()).collect::<Vec<_>>().join(" ")
    };
    let all = ListQuery::default;
    assert_eq!(find(all()), "v0 v1 v2 v3");
    assert_eq!(find(ListQuery { host: text("h1"), ..all() }), "v0 v2 v3");
    assert_eq!(find(ListQuery { host: text("h9"), ..all() }), "");
    assert_eq!(find(ListQuery { state: text("stopped"), ..all() }), "v2");
    assert_eq!(find(ListQuery { host: text("h1"), state: text("running"), ..all() }), "v0 v3");
    assert_eq!(find(ListQuery { name: text("v1"), ..all() }), "v1");
    assert_eq!(find(ListQuery { name: text("v1"), host: text("h1"), ..all() }), "");
    assert_eq!(find(ListQuery { selector: text("n=3"), ..all() }), "v3");
    let up = ListQuery { state: text("up"), ..limit(1) };
    assert_eq!(pages::<Host>(&site, &operator(), &up).len(), 2);
    for (query, field) in [
        (limit(0), "limit"),
        (limit(1_001), "limit"),
        (ListQuery { state: text("asleep"), ..all() }, "state"),
        (ListQuery { host: text("H1"), ..all() }, "host"),
        (ListQuery { tenant: text("No Name"), ..all() }, "tenant"),
        (ListQuery { selector: text("Env"), ..all() }, "selector"),
        (ListQuery { cursor: text("No Key"), ..all() }, "cursor"),
    ] {
        let refusal = site.control.list::<Vm>(&operator(), &query).unwrap_err();
        assert_eq!((refusal.kind, refusal.field.as_deref()), (RefusalKind::Invalid, Some(field)), "{query:?}");
    }
    assert_eq!(site.control.list::<Host>(&of("blue"), &all()).unwrap_err().kind, RefusalKind::Forbidden);
}

#[test]
fn the_newest_plans_come_first() {
    let mut site = site();
    let (rate, at) = (MicroMoneyPerHour(0), TimeMs(1));
    let predicted = Prediction {
        rate_before: rate,
        rate_after: rate,
        moving_cost: MicroMoney(0),
        gain: MicroMoney(0),
        rate_bound: None,
        hosts: Default::default(),
    };
    for n in 1..=11 {
        let (scenario, why) = (Scenario::Balanced, String::new());
        let findings = Findings { at, scenario, why: why.clone(), hosts: Default::default() };
        let plan = Plan {
            parent: Revision(1),
            made_at: at,
            scenario,
            why,
            steps: Vec::new(),
            predicted: predicted.clone(),
            rejected: Vec::new(),
            timing: Default::default(),
        };
        let state = if n % 2 == 0 { PlanState::Done } else { PlanState::Rejected { by: "ops".to_owned() } };
        let (id, steps) = (PlanId(n), Vec::new());
        let record = PlanRecord { id, plan, findings, state, steps, finished_at: Some(at), verification: None };
        site.control.tables.put(record);
    }
    for size in [1, 2, 5, 11, 100] {
        let ids: Vec<u64> =
            pages::<PlanRecord>(&site, &operator(), &limit(size)).iter().map(|plan| plan.id.0).collect();
        assert_eq!(ids, (1..=11).rev().collect::<Vec<_>>(), "by {size}");
        let done = ListQuery { state: Some("done".to_owned()), ..limit(size) };
        let ids: Vec<u64> = pages::<PlanRecord>(&site, &operator(), &done).iter().map(|plan| plan.id.0).collect();
        assert_eq!(ids, [10, 8, 6, 4, 2], "by {size}");
    }
}

#[test]
fn an_id_comes_before_a_name_and_another_tenants_object_is_not_found() {
    let mut site = site();
    for (id, tenant, name) in [("vm-a", "blue", "a"), ("vm-b", "blue", "vm-a"), ("vm-c", "green", "a")] {
        site.ask(vm(id, small_vm(tenant, name))).unwrap();
    }
    site.ask(group("blue", "web")).unwrap();
    let find = |reference: &str, actor: &Actor, tenant: Option<&str>| -> Result<String, RefusalKind> {
        let tenant = tenant.map(|tenant| tenant.parse().unwrap());
        let found = site.control.find::<Vm>(reference, actor, tenant.as_ref());
        found.map(|row| row.value.id.to_string()).map_err(|refusal| refusal.kind)
    };
    let (blue, green, vm) = (of("blue"), of("green"), |id: &str| Ok(id.to_owned()));
    assert_eq!(find("vm-a", &operator(), None), vm("vm-a"), "not the one that is called vm-a");
    assert_eq!(find("blue/vm-a", &operator(), None), vm("vm-a"));
    assert_eq!(find("a", &operator(), None), Err(RefusalKind::Conflict));
    assert_eq!(find("blue/a", &operator(), None), vm("vm-a"));
    assert_eq!(find("a", &operator(), Some("green")), vm("vm-c"));
    assert_eq!(find("green/a", &operator(), Some("green")), Err(RefusalKind::NotFound), "a name has no slash");
    assert_eq!((find("a", &blue, None), find("a", &green, None)), (vm("vm-a"), vm("vm-c")));
    for (reference, tenant) in [("vm-a", None), ("blue/a", None), ("vm-b", Some("blue")), ("vm-b", Some("green"))] {
        assert_eq!(find(reference, &green, tenant), Err(RefusalKind::NotFound), "{reference} {tenant:?}");
    }
    for nonsense in ["", "/", "No/a", "x", "blue/x", "../a"] {
        assert_eq!(find(nonsense, &operator(), None), Err(RefusalKind::NotFound), "{nonsense:?}");
    }
    let groups = |reference: &str, actor: &Actor| site.control.find::<SecurityGroup>(reference, actor, None).is_ok();
    assert!(groups("blue/web", &operator()) && groups("web", &operator()) && groups("web", &blue));
    assert!(!groups("blue/web", &green) && !groups("web", &green));
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

/// What a caller meets who is not an operator.
#[derive(Debug, Clone, Copy, PartialEq)]
enum May {
    Do,
    /// It is as if the object were not there.
    NotFind,
    /// His role does not allow it.
    Not,
    /// He must not say that it is somebody else's.
    NotForOthers,
}

const OWN: [May; 2] = [May::Do, May::NotFind];
const NONE: [May; 2] = [May::Not, May::Not];

/// What tenant blue may do, and what green may do with what is blue's. Every action has its place here.
fn tenants_may(action: &Action) -> [May; 2] {
    match action {
        Action::Create(draft) => match draft {
            Draft::Network(_) | Draft::SecurityGroup(_) => [May::Do, May::NotForOthers],
            Draft::Tenant(_) | Draft::Port(_) | Draft::PlacementRule(_) => NONE,
        },
        Action::Patch { key, .. } | Action::Remove { key } => match &*key.kind {
            "network" | "security-group" => OWN,
            "tenant" | "api-token" | "host" | "image" | "port" | "placement-rule" => NONE,
            other => panic!("{other} can't be changed this way"),
        },
        Action::CreateVm { .. } => [May::Do, May::Not],
        Action::SetRun { .. }
        | Action::RemoveVm { .. }
        | Action::MeasureVm { .. }
        | Action::SetSecurityGroups { .. } => OWN,
        // Its token says all.
        Action::Join { .. } => [May::Do, May::Do],
        Action::CreateToken { .. }
        | Action::CreateImage { .. }
        | Action::CreateJoinToken { .. }
        | Action::DrainHost { .. }
        | Action::UndrainHost { .. }
        | Action::PowerHost { .. }
        | Action::MigrateVm { .. }
        | Action::CancelMigration { .. }
        | Action::HoldMigration { .. }
        | Action::PrioritiseMigration { .. }
        | Action::PlanNow
        | Action::ApprovePlan { .. }
        | Action::RejectPlan { .. }
        | Action::SetPolicy { .. } => NONE,
    }
}

/// Of what is there in [`peopled`].
fn each_action(lan: &ObjectKey) -> Vec<Action> {
    let id: VmId = "vm-a".parse().unwrap();
    let join: TokenId = "join-h3".parse().unwrap();
    let join_token = JoinToken {
        id: "join-h4".parse().unwrap(),
        secret_sha256: String::new(),
        host: host("h4"),
        created_at: TimeMs(1),
        expires_at: TimeMs(u64::MAX),
    };
    let group_id = Owned { tenant: "blue".parse().unwrap(), name: "web".parse().unwrap() };
    let keys = [
        key::<Tenant>("red"),
        key::<ApiToken>("ci"),
        key::<Host>("h2"),
        key::<Image>("big"),
        lan.clone(),
        ObjectKey::of::<SecurityGroup>(&group_id),
        key::<Port>("gw"),
        key::<PlacementRule>("seat"),
    ];
    let migration = MigrationId(1);
    let mut actions = vec![
        tenant("pink"),
        network("blue", "new"),
        group("blue", "new"),
        port("new", &lan.id),
        rule("new", "vm-a"),
        token("new", Role::Operator, "s9"),
        Action::CreateJoinToken { token: join_token },
        Action::Join { host: host("h3"), token: join, secret_sha256: String::new() },
        Action::DrainHost { host: host("h1") },
        Action::UndrainHost { host: host("h1") },
        Action::PowerHost { host: host("h1"), on: true },
        image("new", 1),
        vm("vm-new", small_vm("blue", "new")),
        Action::SetRun { vm: id.clone(), run: RunIntent::Stopped },
        Action::RemoveVm { vm: id.clone() },
        Action::MigrateVm { vm: id.clone(), to: None, method: None },
        Action::CancelMigration { id: migration },
        Action::HoldMigration { id: migration, held: true },
        Action::PrioritiseMigration { id: migration, priority: Priority::High },
        Action::MeasureVm { vm: id.clone(), span: Millis::secs(2) },
        Action::SetSecurityGroups { vm: id, groups: BTreeSet::new() },
        Action::PlanNow,
        Action::ApprovePlan { id: PlanId(1) },
        Action::RejectPlan { id: PlanId(1) },
        Action::SetPolicy { policy: Box::default() },
    ];
    actions.extend(keys.iter().map(|key| patch(key, json!({}))));
    actions.extend(keys.iter().map(remove));
    actions
}

/// Something of each kind, nothing of it in use but the image tiny and the networks that a port is on.
fn peopled() -> (Site, ObjectKey) {
    let mut site = site();
    site.create_vm("a");
    let lan = made(&mut site, network("blue", "lan"));
    let other = made(&mut site, network("blue", "other"));
    for action in [
        tenant("red"),
        group("blue", "web"),
        port("gw", &other.id),
        rule("seat", "vm-a"),
        image("big", 1),
        token("ci", Role::Operator, "s1"),
        token("ops", Role::Operator, "s2"),
    ] {
        site.ask(action).unwrap();
    }
    site.control.tables.put(JoinToken {
        id: "join-h3".parse().unwrap(),
        secret_sha256: String::new(),
        host: host("h3"),
        created_at: TimeMs(1),
        expires_at: TimeMs(u64::MAX),
    });
    site.pass(Millis::secs(2));
    (site, lan)
}

#[test]
fn everybody_may_do_what_the_role_allows_and_no_more() {
    let (mut site, lan) = peopled();
    let mut kinds = BTreeSet::new();
    for action in each_action(&lan) {
        kinds.insert(serde_json::to_value(&action).unwrap()["ask"].as_str().unwrap().to_owned());
        for (tenant, may) in ["blue", "green"].into_iter().zip(tenants_may(&action)) {
            let expected = match may {
                May::Do => None,
                May::NotFind => Some(RefusalKind::NotFound),
                May::Not => Some(RefusalKind::Forbidden),
                May::NotForOthers => Some(RefusalKind::Invalid),
            };
            match expected {
                Some(kind) => {
                    let refusal = refused(&mut site, of(tenant), action.clone());
                    assert_eq!(refusal.kind, kind, "{tenant}: {action:?}: {refusal}");
                    let field = (may == May::NotForOthers).then_some("tenant");
                    assert!(field.is_none() || refusal.field.as_deref() == field, "{tenant}: {action:?}");
                }
                None => allowed(of(tenant), &action),
            }
        }
        allowed(operator(), &action);
    }
    assert_eq!(kinds.len(), 23, "an action is missing: {kinds:?}");
}

/// Not refused for who asks. In a cluster of its own: it may take effect.
fn allowed(actor: Actor, action: &Action) {
    let (mut site, _) = peopled();
    if let Err(refusal) = site.ask_with(actor.clone(), None, None, action.clone()) {
        let who = matches!(refusal.kind, RefusalKind::Forbidden | RefusalKind::Unauthorized);
        let hidden = actor != operator() && refusal.kind == RefusalKind::NotFound;
        assert!(!who && !hidden, "{}: {action:?}: {refusal}", actor.name);
    }
}
