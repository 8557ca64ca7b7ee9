//! Answers to "why", and the constraints that the scenario files' format has no words for.

use crate::cluster::parse;
use drover_model::placement::{HostSet, PlacementRule, PoolView, RuleKind, Scope};
use drover_model::plan::{Action, Objection, Plan};
use drover_model::policy::PowerCurve;
use drover_model::world::World;
use drover_model::{Bytes, CpuMillis, MicroMoney, TimeMs};
use drover_planner::explain::{why_off, why_on, why_stays};
use drover_planner::predict::Predictor;
use drover_planner::{Effort, check, detect, plan, plan_within};

const COLD: &str = "policy aim=auto
    host h1 cpu=4 mem=8192 managed
    host h2 cpu=4 mem=8192 managed
    host h3 cpu=4 mem=8192 state=asleep managed
    vm a vcpus=2 mem=1024 on=h1 load=0.3
    vm b vcpus=2 mem=1024 on=h2 load=0.4";

fn planned(world: &World) -> Plan {
    let plan = plan(world, &detect(world), &Predictor::new());
    let violations: Vec<String> = check(world, &plan).iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{violations:?}");
    plan
}

fn moves(plan: &Plan) -> Vec<String> {
    let shown = |action: &Action| match action {
        Action::Migrate { vm, from, to, .. } => format!("{vm} {from} {to}"),
        Action::PowerOn { host } => format!("on {host}"),
        Action::PowerOff { host } => format!("off {host}"),
    };
    plan.steps.iter().map(|step| shown(&step.action)).collect()
}

fn ruled(cluster: &str, vms: &[&str], kind: RuleKind) -> World {
    let mut world = parse(cluster).world;
    let vms = vms.iter().map(|vm| vm.parse().unwrap()).collect();
    world.rules.push(PlacementRule { id: "r".parse().unwrap(), vms, kind });
    world
}

#[test]
fn a_host_is_on_for_the_rule_that_keeps_it_so() {
    let sentence = |world: &World, host: &str| {
        why_on(world, &Predictor::new(), &host.parse().unwrap()).expect("it is up").sentence
    };
    let world = parse(COLD).world;
    assert!(sentence(&world, "h1").starts_with("h1 is on, though nothing keeps it on"), "{}", sentence(&world, "h1"));
    let change = |change: &dyn Fn(&mut World)| {
        let mut world = world.clone();
        change(&mut world);
        sentence(&world, "h1")
    };
    let spare = change(&|world| world.policy.spare_hosts = 1);
    assert!(spare.contains("no host could be lost any more"), "{spare}");
    let least = change(&|world| world.policy.hosts_up_min = 2);
    assert!(least.contains("2 hosts are up"), "{least}");
    let balance = change(&|world| world.policy.aim = drover_model::policy::Aim::Balance);
    assert!(balance.contains("all hosts stay on"), "{balance}");
    let pinned = change(&|world| {
        let vm = world.vms.get_mut(&"a".parse().unwrap()).unwrap();
        vm.pinned_to = ["h1".parse().unwrap()].into();
    });
    assert!(pinned.contains("a could go nowhere: a is pinned to h1"), "{pinned}");
    let dear = change(&|world| {
        world.hosts.get_mut(&"h1".parse().unwrap()).unwrap().power_cycle_price = Some(MicroMoney(1_000_000));
    });
    assert!(dear.contains("its sleep would save") && dear.contains("cost 1.000"), "{dear}");
    let promised = change(&|world| {
        let pool = PoolView { cpu_reserved: CpuMillis(6_000), ..PoolView::default() };
        world.pools.insert("gold".parse().unwrap(), pool);
    });
    assert!(promised.contains("pools would not have what they are promised"), "{promised}");
    assert_eq!(why_on(&world, &Predictor::new(), &"h3".parse().unwrap()), None);
}

#[test]
fn a_host_is_off_while_the_others_suffice() {
    let world = parse(COLD).world;
    let answer = why_off(&world, &Predictor::new(), &"h3".parse().unwrap()).unwrap();
    assert!(answer.sentence.contains("asked for 9 % of their processors, and above 70 % one is woken"), "{answer:?}");
    assert_eq!(why_off(&world, &Predictor::new(), &"h1".parse().unwrap()), None);
}

#[test]
fn a_vm_stays_for_the_money_or_the_rule() {
    let stays = |world: &World| why_stays(world, &Predictor::new(), &"a".parse().unwrap()).unwrap();
    let world = parse(COLD).world;
    let answer = stays(&world);
    assert!(answer.sentence.contains("the best other host, h2, would gain -"), "{}", answer.sentence);
    let mut drained = world.clone();
    drained.hosts.get_mut(&"h2".parse().unwrap()).unwrap().maintenance = true;
    assert!(stays(&drained).sentence.contains("no other host can take it: h2 is in maintenance"));
    let mut rests = world;
    rests.vms.get_mut(&"a".parse().unwrap()).unwrap().left = vec![(TimeMs(9_990_000), "h2".parse().unwrap())];
    assert!(matches!(stays(&rests).rests, Some(Objection::Cooldown { .. })));
}

const THREE: &str = "host h1 cpu=4 mem=8192
    host h2 cpu=4 mem=8192
    host h3 cpu=4 mem=8192
    vm a vcpus=2 mem=1024 on=h1 load=0.3
    vm b vcpus=2 mem=2048 on=h1 load=0.4
    vm c vcpus=2 mem=1024 on=h2 load=0.4";

#[test]
fn rules_that_are_broken_are_mended() {
    let apart = ruled(THREE, &["a", "b"], RuleKind::Apart { within: Scope::Host });
    assert_eq!(moves(&planned(&apart)), ["a h1 h3"]);
    let together = ruled(THREE, &["a", "b", "c"], RuleKind::Together { within: Scope::Host });
    assert_eq!(moves(&planned(&together)), ["c h2 h1"]);
    let only = HostSet { hosts: ["h3".parse().unwrap()].into(), ..HostSet::default() };
    assert_eq!(moves(&planned(&ruled(THREE, &["b"], RuleKind::On { hosts: only.clone() }))), ["b h1 h3"]);
    let never = HostSet { hosts: ["h1".parse().unwrap(), "h2".parse().unwrap()].into(), ..HostSet::default() };
    assert_eq!(moves(&planned(&ruled(THREE, &["a"], RuleKind::NotOn { hosts: never }))), ["a h1 h3"]);
    let most = ruled(THREE, &["a", "b", "c"], RuleKind::HostsMax { count: 1 });
    assert_eq!(moves(&planned(&most)), ["c h2 h1"]);
    // Two rules at once: b must go to h3, and takes a along.
    let mut both = ruled(THREE, &["a", "b"], RuleKind::Together { within: Scope::Host });
    let kind = RuleKind::On { hosts: only };
    both.rules.push(PlacementRule { id: "s".parse().unwrap(), vms: ["b".parse().unwrap()].into(), kind });
    assert_eq!(moves(&planned(&both)), ["a h1 h3", "b h1 h3"]);
}

#[test]
fn racks_count_as_one_where_a_rule_says_so() {
    let mut world = ruled(THREE, &["a", "c"], RuleKind::Apart { within: Scope::Rack });
    for (host, rack) in [("h1", "left"), ("h2", "left"), ("h3", "right")] {
        world.hosts.get_mut(&host.parse().unwrap()).unwrap().rack = Some(rack.parse().unwrap());
    }
    assert_eq!(moves(&planned(&world)), ["a h1 h3"]);
    let plan = planned(&ruled(THREE, &["a", "c"], RuleKind::Apart { within: Scope::Rack }));
    assert!(plan.steps.is_empty(), "a host without a rack is one of its own");
}

#[test]
fn what_a_host_promised_twice_leaves_it() {
    let mut world = parse(THREE).world;
    world.hosts.get_mut(&"h1".parse().unwrap()).unwrap().disk = Some(Bytes::mib(100));
    for vm in ["a", "b"] {
        world.vms.get_mut(&vm.parse().unwrap()).unwrap().disk = Bytes::mib(60);
    }
    world.hosts.get_mut(&"h3".parse().unwrap()).unwrap().disk = Some(Bytes::mib(50));
    assert_eq!(moves(&planned(&world)), ["a h1 h2"]);
    let mut world = parse(THREE).world;
    for vm in ["a", "b"] {
        world.vms.get_mut(&vm.parse().unwrap()).unwrap().cpu_reserved = CpuMillis(2_500);
    }
    assert_eq!(moves(&planned(&world)), ["a h1 h3"]);
}

#[test]
fn eagerness_is_a_multiple_of_the_cost() {
    let cluster = "host h1 cpu=4 mem=8192
        host h2 cpu=4 mem=8192
        vm a vcpus=4 mem=1024 on=h1 load=1.6
        vm b vcpus=4 mem=1024 on=h1 load=1.6
        vm c vcpus=4 mem=1024 on=h2 load=0.4";
    let at = |eagerness: u8| {
        let mut world = parse(cluster).world;
        world.policy.eagerness = drover_model::policy::Eagerness(eagerness);
        planned(&world)
    };
    assert!(at(1).steps.is_empty(), "80 % is not hot, and at 1 nothing moves that need not");
    let plan = at(3);
    assert_eq!(moves(&plan), ["a h1 h2"]);
    assert!(plan.predicted.gain.0 > 2 * plan.predicted.moving_cost.0);
}

#[test]
fn work_goes_to_where_it_draws_least() {
    let mut world = parse(THREE).world;
    for (host, busy) in [("h1", 900.0), ("h2", 900.0), ("h3", 150.0)] {
        let curve = PowerCurve::linear(100.0, busy);
        world.hosts.get_mut(&host.parse().unwrap()).unwrap().power = Some(curve);
    }
    let plan = planned(&world);
    assert_eq!(moves(&plan), ["b h1 h3", "a h1 h3", "c h2 h3"]);
    let predicted = &plan.predicted;
    assert!(predicted.rate_bound.unwrap() <= predicted.rate_after && predicted.rate_after < predicted.rate_before);
}

#[test]
fn demand_beyond_a_pools_limit_does_not_count() {
    let mut world = parse(THREE).world;
    for vm in world.vms.values_mut() {
        vm.pool = Some("bronze".parse().unwrap());
    }
    let asked = |world: &World| detect(world).hosts[&"h1".parse().unwrap()].cpu_forecast.unwrap();
    assert_eq!(asked(&world), CpuMillis(700));
    let pool = PoolView { cpu_limit: Some(CpuMillis(550)), ..PoolView::default() };
    world.pools.insert("bronze".parse().unwrap(), pool);
    assert_eq!(asked(&world), CpuMillis(350));
}

#[test]
fn no_effort_gives_a_plan_too() {
    let world = parse(THREE).world;
    let plan = plan_within(&world, &detect(&world), &Predictor::new(), &Effort { evaluations: 0 });
    assert!(check(&world, &plan).is_empty());
}
