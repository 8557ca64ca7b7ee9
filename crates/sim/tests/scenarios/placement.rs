//! Rules of placement and what is said of hosts: who may write them, and that moves keep them.

use crate::scene::*;
use drover_control::interface::{Action, Draft, ObjectKey, RefusalKind};
use drover_model::intent::{Host, HostAttributes};
use drover_model::placement::{HostSet, PlacementRule, RuleKind, Scope};
use drover_model::policy::{Mode, PowerCurve};
use drover_model::v1::{self, CreatePlacementRule, RuleWord};
use drover_model::{HostId, Millis, RuleId, VmId};
use drover_sim::{Cluster, host_id};

fn rule(name: &str, vms: &[&VmId], kind: RuleKind) -> Action {
    let (word, within, set, hosts_max) = match kind {
        RuleKind::Together { within } => (RuleWord::Together, Some(within), HostSet::default(), None),
        RuleKind::Apart { within } => (RuleWord::Apart, Some(within), HostSet::default(), None),
        RuleKind::On { hosts } => (RuleWord::On, None, hosts, None),
        RuleKind::NotOn { hosts } => (RuleWord::NotOn, None, hosts, None),
        RuleKind::HostsMax { count } => (RuleWord::HostsMax, None, HostSet::default(), Some(count)),
    };
    let HostSet { hosts, racks, zones, labels } = set;
    let (name, vms) = (name.parse().unwrap(), vms.iter().map(|vm| vm.to_string()).collect());
    let create = CreatePlacementRule { name, rule: word, vms, within, hosts, racks, zones, labels, hosts_max };
    Action::Create(Draft::PlacementRule(create))
}

/// All that is said of a host, in place of what was said before.
fn set_attributes(host: usize, attributes: &HostAttributes) -> Action {
    let patch = serde_json::to_value(v1::HostAttributes::from(attributes)).unwrap();
    Action::Patch { key: ObjectKey::of::<Host>(&host_id(host)), patch }
}

fn on(label: &str) -> HostSet {
    HostSet { labels: [label.parse().unwrap()].into(), ..HostSet::default() }
}

fn say(scene: &mut Scene, host: usize, change: impl FnOnce(&mut HostAttributes)) {
    let mut attributes = HostAttributes::default();
    change(&mut attributes);
    scene.ask(set_attributes(host, &attributes)).unwrap();
}

fn refused(scene: &mut Scene, vm: &VmId, to: HostId) -> String {
    let refusal = scene.ask(Action::MigrateVm { vm: vm.clone(), to: Some(to), method: None }).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Conflict);
    refusal.detail
}

fn rules(cluster: &Cluster) -> Vec<PlacementRule> {
    cluster.control().unwrap().placement_rules().cloned().collect()
}

#[test]
fn what_is_said_of_a_host_reaches_the_planner_and_nonsense_changes_nothing() {
    let mut scene = Scene::new(1);
    say(&mut scene, 0, |host| {
        host.rack = Some("r1".parse().unwrap());
        host.power = Some(PowerCurve::linear(80.0, 120.0));
    });
    let world = |scene: &Scene| scene.cluster.control().unwrap().world(scene.cluster.now()).hosts[&host_id(0)].clone();
    assert_eq!(world(&scene).rack.unwrap().as_str(), "r1");
    let falling = HostAttributes { power: Some(PowerCurve::linear(120.0, 80.0)), ..HostAttributes::default() };
    let refusal = scene.ask(set_attributes(0, &falling)).unwrap_err();
    assert_eq!((refusal.kind, refusal.field.as_deref()), (RefusalKind::Invalid, Some("power_curve_watts")));
    assert_eq!(world(&scene).power, Some(PowerCurve::linear(80.0, 120.0)));
}

#[test]
fn a_rule_about_what_does_not_exist_is_refused_by_name() {
    let mut scene = Scene::new(2);
    let (a, b) = (scene.free_vm(&host_id(0), 0.1), scene.free_vm(&host_id(1), 0.1));
    let nobody: VmId = "vm-nobody".parse().unwrap();
    let apart = || RuleKind::Apart { within: Scope::Host };
    let mut field = |ask| {
        let refusal = scene.ask(ask).unwrap_err();
        assert!(matches!(refusal.kind, RefusalKind::Invalid | RefusalKind::Conflict), "{refusal}");
        refusal.field.unwrap()
    };
    assert_eq!(field(rule("r", &[&a, &nobody], apart())), "vms");
    assert_eq!(field(rule("r", &[&a], apart())), "vms");
    assert_eq!(field(rule("r", &[&a], RuleKind::On { hosts: on("oracle") })), "labels");
    assert_eq!(field(rule("r", &[&a], RuleKind::On { hosts: HostSet::default() })), "hosts");
    let stranger = HostSet { hosts: ["h9".parse().unwrap()].into(), ..HostSet::default() };
    assert_eq!(field(rule("r", &[&a], RuleKind::NotOn { hosts: stranger })), "hosts");
    assert_eq!(field(rule("r", &[&a], RuleKind::HostsMax { count: 0 })), "hosts_max");
    assert!(rules(&scene.cluster).is_empty());

    scene.ask(rule("r", &[&a, &b], RuleKind::Apart { within: Scope::Rack })).unwrap();
    let refusal = scene.ask(rule("r", &[&a, &b], RuleKind::Apart { within: Scope::Host })).unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("name"));
    let refusal = scene.ask(rule("s", &[&a, &b], RuleKind::Together { within: Scope::Host })).unwrap_err();
    assert!(refusal.detail.contains("rule r says the opposite"), "{refusal}");
    scene.ask(rule("s", &[&a, &b], RuleKind::Together { within: Scope::Zone })).unwrap();
}

#[test]
fn a_move_by_hand_keeps_the_rules() {
    let mut scene = Scene::new(3);
    say(&mut scene, 0, |host| host.rack = Some("r1".parse().unwrap()));
    say(&mut scene, 1, |host| host.rack = Some("r1".parse().unwrap()));
    say(&mut scene, 2, |host| host.labels = ["old".parse().unwrap()].into());
    let (a, b) = (scene.free_vm(&host_id(0), 0.1), scene.free_vm(&host_id(2), 0.1));
    let c = scene.free_vm(&host_id(0), 0.1);
    scene.ask(rule("apart", &[&a, &b], RuleKind::Apart { within: Scope::Rack })).unwrap();
    scene.ask(rule("near", &[&a, &c], RuleKind::Together { within: Scope::Rack })).unwrap();
    scene.ask(rule("seat", &[&a, &c], RuleKind::HostsMax { count: 2 })).unwrap();

    let why = refused(&mut scene, &b, host_id(1));
    assert!(why.contains("apart"), "{why}");
    let why = refused(&mut scene, &c, host_id(2));
    assert!(why.contains("near"), "{why}");
    scene.ask(Action::Remove { key: ObjectKey::of::<PlacementRule>(&"near".parse().unwrap()) }).unwrap();
    scene.ask(rule("new", &[&c], RuleKind::NotOn { hosts: on("old") })).unwrap();
    let why = refused(&mut scene, &c, host_id(2));
    assert!(why.contains("new"), "{why}");
    let id = scene.migrate(&a, &host_id(1));
    scene.wait("it moves within its rack", |cluster| phase(cluster, id).is_some_and(|phase| phase.is_over()));
    assert!(runs_on(&scene.cluster, &a, &host_id(1)));
    let left = scene.cluster.control().unwrap().vm(&a).unwrap().left.last().unwrap().1.clone();
    assert_eq!(left, host_id(0));
}

#[test]
fn a_rule_forgets_vms_that_are_gone_and_holds_on_to_its_hosts() {
    let mut scene = Scene::new(2);
    let (a, b) = (scene.free_vm(&host_id(0), 0.1), scene.free_vm(&host_id(0), 0.1));
    let hosts = HostSet { hosts: [host_id(1)].into(), ..HostSet::default() };
    scene.ask(rule("off", &[&a], RuleKind::NotOn { hosts })).unwrap();
    scene.ask(rule("apart", &[&a, &b], RuleKind::Apart { within: Scope::Host })).unwrap();
    let refusal = scene.ask(Action::Remove { key: ObjectKey::of::<Host>(&host_id(1)) }).unwrap_err();
    assert!(refusal.detail.contains("host h2 is in use by 1 placement rule"), "{refusal}");
    scene.ask(Action::RemoveVm { vm: a.clone() }).unwrap();
    scene.wait("it is gone", |cluster| cluster.control().is_some_and(|control| control.vm(&a).is_none()));
    let left: Vec<(RuleId, Vec<VmId>)> =
        rules(&scene.cluster).into_iter().map(|rule| (rule.id, rule.vms.into_iter().collect())).collect();
    assert_eq!(left, [("apart".parse().unwrap(), vec![b])]);
    scene.ask(Action::Remove { key: ObjectKey::of::<Host>(&host_id(1)) }).unwrap();
}

#[test]
fn a_rule_is_kept_through_a_drain() {
    let mut scene = Scene::new(4);
    for (host, rack) in ["r1", "r1", "r2", "r3"].into_iter().enumerate() {
        say(&mut scene, host, |host| host.rack = Some(rack.parse().unwrap()));
    }
    let (a, b) = (scene.free_vm(&host_id(0), 0.1), scene.free_vm(&host_id(2), 0.1));
    let (c, _busy) = (scene.free_vm(&host_id(0), 0.1), scene.free_vm(&host_id(1), 0.6));
    scene.ask(rule("apart", &[&a, &b], RuleKind::Apart { within: Scope::Rack })).unwrap();
    scene
        .ask(rule(
            "not-there",
            &[&a, &c],
            RuleKind::NotOn { hosts: HostSet { racks: ["r3".parse().unwrap()].into(), ..HostSet::default() } },
        ))
        .unwrap();
    scene.policy(|policy| policy.mode = Mode::Act);
    scene.ask(Action::DrainHost { host: host_id(0) }).unwrap();
    let kept = |cluster: &Cluster| {
        !cluster.executing(&a).contains(&host_id(2))
            && [&a, &c].iter().all(|vm| !cluster.executing(vm).contains(&host_id(3)))
    };
    scene.wait("the host is empty", |cluster| {
        assert!(kept(cluster), "{}", cluster.trace().join("\n"));
        [&a, &c].iter().all(|vm| !cluster.executing(vm).contains(&host_id(0)))
    });
    assert_eq!(scene.cluster.executing(&a), [host_id(1)], "the only host that the rules leave");
    scene.cluster.pass(Millis::secs(30)).unwrap();
    assert!(kept(&scene.cluster));
}
