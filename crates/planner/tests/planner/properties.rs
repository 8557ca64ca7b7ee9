//! Over random clusters, written as scenario text: a failing one is printed that way, ready to become a scenario
//! file.
//!
//! The seed is fixed, so that everybody runs the same clusters; `PROPTEST_RNG_SEED=N PROPTEST_CASES=N` run others.

use crate::cluster::{NOW, parse};
use drover_model::placement::{HostSet, PlacementRule, RuleKind, Scope};
use drover_model::plan::{Action, Findings, Plan, Step};
use drover_model::policy::Aim;
use drover_model::world::{HostState, HostView, VmView, World};
use drover_model::{Bytes, CpuMillis, Generation, HostId, TimeMs, VmId};
use drover_planner::predict::Predictor;
use drover_planner::{Refusal, apply, check, detect, place, plan};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use std::fmt::Write;

fn config() -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(20);
    }
    config
}

#[derive(Debug, Clone)]
struct RandomHost {
    cores: f64,
    mib: u64,
    words: String,
    holds_vms: bool,
}

#[derive(Debug, Clone)]
struct RandomVm {
    vcpus: u32,
    mib: u64,
    load: String,
    words: String,
    group: Option<u32>,
    /// Of the hosts with room, the one it is on; `None` to leave it without.
    pick: Option<usize>,
    pinned: bool,
}

/// `sick`: with hosts that are lost, drained or silent.
fn hosts(sick: bool) -> impl Strategy<Value = Vec<RandomHost>> {
    let rarely = u32::from(sick);
    let state = prop_oneof![
        12 => Just(("up", true)),
        2 => Just(("asleep", false)),
        rarely => Just(("down", true)),
        rarely => Just(("suspect", true)),
        rarely => Just(("unknown", true)),
    ];
    let host = (
        prop::sample::select(vec![0.5, 1.0, 2.0, 4.0]),
        prop::sample::select(vec![1024, 2048, 4096]),
        state,
        prop::bool::weighted(0.15 * f64::from(rarely)),
        prop::bool::weighted(0.7),
        prop::bool::weighted(0.08 * f64::from(rarely)),
        prop::sample::select(vec!["", "net=red", "net=red,blue", "net=red,blue", "net=red,blue"]),
        prop::sample::select(vec![10, 30, 30, 30]),
    );
    let host = host.prop_map(|(cores, mib, (state, holds_vms), drained, managed, dark, net, boot)| {
        let flag = |on: bool, word: &'static str| if on { word } else { "" };
        let flags = [flag(drained, "drained"), flag(managed, "managed"), flag(dark, "dark"), net].join(" ");
        RandomHost { cores, mib, words: format!("state={state} boot={boot} {flags}"), holds_vms }
    });
    prop::collection::vec(host, 1..7)
}

/// Cores from 0 to twice `scale`.
fn load(scale: f64) -> impl Strategy<Value = String> {
    let cores = move || (0_u32..20).prop_map(move |n| f64::from(n) * scale / 10.0);
    prop_oneof![
        6 => cores().prop_map(|a| format!("load={a:.2}")),
        3 => (cores(), cores(), 1_u32..20).prop_map(|(a, b, n)| format!("load={a:.2}*{},{b:.2}*{n}", 60 - n)),
        2 => (cores(), 0.0..0.04).prop_map(|(a, up)| {
            let run: Vec<_> = (0..60).map(|n| format!("{:.3}*1", a + up * f64::from(n))).collect();
            format!("load={}", run.join(","))
        }),
        2 => prop::collection::vec(cores(), 60).prop_map(|values| {
            let run: Vec<_> = values.iter().map(|value| format!("{value:.2}*1")).collect();
            format!("load={}", run.join(","))
        }),
        1 => (cores(), 1_u32..8).prop_map(|(a, n)| format!("load={a:.2}*{n}")),
        1 => Just(String::new()),
    ]
}

fn vms(scale: f64) -> impl Strategy<Value = Vec<RandomVm>> {
    let vm = (
        1_u32..4,
        prop::sample::select(vec![128, 256, 512, 1024]),
        load(scale),
        prop::option::weighted(0.2, 0_u32..3),
        prop::option::weighted(0.9, any::<prop::sample::Index>()),
        prop::bool::weighted(0.08),
        prop::sample::select(vec!["", "", "", "", "", "net=red", "net=blue", "fixed=no", "moved=100:h0"]),
        1_u64..5,
    );
    let vm = vm.prop_map(|(vcpus, mib, load, group, pick, pinned, words, quarters)| RandomVm {
        vcpus,
        mib,
        load,
        words: format!("res={} {words}", mib * quarters / 4),
        group,
        pick: pick.map(|index| index.index(1000)),
        pinned,
    });
    prop::collection::vec(vm, 0..22)
}

fn policy() -> impl Strategy<Value = String> {
    (any::<bool>(), any::<bool>(), prop::sample::select(vec![1, 1, 1, 3]), prop::sample::select(vec![0, 100, 20_000]))
        .prop_map(|(saving, spare, min, gain)| {
            let (aim, spare) = (if saving { "auto" } else { "balance" }, u32::from(spare));
            format!(r#"policy {{"aim":"{aim}","spare_hosts":{spare},"hosts_up_min":{min},"gain_min":{gain}}}"#)
        })
}

/// Every vm on a host where it may be: a cluster that keeps its own rules.
fn clusters() -> impl Strategy<Value = String> {
    let kind = (prop::sample::select(vec![0.05, 0.2, 0.5, 1.0]), prop::bool::weighted(0.3));
    let parts = kind.prop_flat_map(|(scale, sick)| (policy(), hosts(sick), vms(scale)));
    parts.prop_map(|(policy, hosts, vms)| {
        let mut text = format!("{policy}\n");
        for (n, host) in hosts.iter().enumerate() {
            writeln!(text, "host h{n} cpu={} mem={} {}", host.cores, host.mib, host.words).unwrap();
        }
        let mut free: Vec<u64> = hosts.iter().map(|host| if host.holds_vms { host.mib } else { 0 }).collect();
        let mut groups: Vec<Vec<u32>> = vec![Vec::new(); hosts.len()];
        for (n, vm) in vms.iter().enumerate() {
            let net = vm.words.split_once("net=").map(|(_, net)| net);
            let fits = |h: &usize| {
                let reached = net.is_none_or(|net| hosts[*h].words.contains(net));
                free[*h] >= vm.mib && reached && vm.group.is_none_or(|group| !groups[*h].contains(&group))
            };
            let open: Vec<usize> = (0..hosts.len()).filter(fits).collect();
            let on = vm.pick.filter(|_| !open.is_empty()).map(|pick| open[pick % open.len()]);
            write!(text, "vm v{n:02} vcpus={} mem={} {} {}", vm.vcpus, vm.mib, vm.load, vm.words).unwrap();
            if let Some(group) = vm.group {
                write!(text, " group=g{group}").unwrap();
            }
            if let Some(host) = on {
                free[host] -= vm.mib;
                groups[host].extend(vm.group);
                write!(text, " on=h{host}").unwrap();
                if vm.pinned {
                    write!(text, " pin=h{host},h0").unwrap();
                }
            }
            text.push('\n');
        }
        text
    })
}

fn steps(plan: &Plan) -> String {
    let shown = |step: &Step| format!("{:?} after {:?} because {}\n", step.action, step.after, step.reason);
    plan.steps.iter().map(shown).collect()
}

fn planned(world: &World) -> Plan {
    plan(world, &detect(world), &Predictor::new())
}

/// Attributes of hosts and vms, and rules among them, that the text has no words for; from what `dice` say. Rules may be
/// broken from the beginning.
fn constrained(text: &str, dice: &[u8]) -> World {
    let mut world = parse(text).world;
    let mut dice = dice.iter().copied().cycle();
    let mut roll = |sides: u8| dice.next().unwrap_or(0) % sides;
    for host in world.hosts.values_mut() {
        host.rack = [None, Some("r1"), Some("r2"), Some("r3")][usize::from(roll(4))].map(|rack| rack.parse().unwrap());
        host.zone = [None, Some("z1")][usize::from(roll(2))].map(|zone| zone.parse().unwrap());
        host.disk = (roll(3) == 0).then(|| Bytes::mib(100 * u64::from(roll(8))));
        host.link = (roll(3) == 0).then(|| Bytes::mib(20 + 20 * u64::from(roll(8))));
        host.moves_recent = u32::from(roll(4));
    }
    let hosts: Vec<HostId> = world.hosts.keys().cloned().collect();
    let names: Vec<VmId> = world.vms.keys().cloned().collect();
    for vm in world.vms.values_mut() {
        vm.disk = Bytes::mib(100 * u64::from(roll(3)));
        vm.cpu_reserved = CpuMillis(100 * u64::from(roll(4)));
        if roll(6) == 0 {
            vm.left = vec![(TimeMs(NOW.0 - 1_000_000), hosts[usize::from(roll(8)) % hosts.len()].clone())];
        }
    }
    world.policy.moves.host_hour_max = [0, 5, 60][usize::from(roll(3))];
    world.policy.moves.plan_max = [0, 0, 3][usize::from(roll(3))];
    for n in 0..if names.is_empty() { 0 } else { roll(5) } {
        let within = [Scope::Host, Scope::Rack, Scope::Zone][usize::from(roll(3))];
        let set = || HostSet { racks: ["r1".parse().unwrap(), "r2".parse().unwrap()].into(), ..HostSet::default() };
        let kind = match roll(5) {
            0 => RuleKind::Apart { within },
            1 => RuleKind::Together { within },
            2 => RuleKind::On { hosts: set() },
            3 => RuleKind::NotOn { hosts: set() },
            _ => RuleKind::HostsMax { count: 2 },
        };
        let vms = (0..2 + roll(2)).map(|_| names[usize::from(roll(64)) % names.len()].clone()).collect();
        world.rules.push(PlacementRule { id: format!("rule-{n}").parse().unwrap(), vms, kind });
    }
    world
}

/// The world's rules and limits, to follow a failure by.
fn told(world: &World) -> String {
    let host = |(id, host): (&HostId, &HostView)| {
        format!("{id} {:?} {:?} {:?} {:?}\n", host.rack, host.zone, host.disk, host.link)
    };
    let vm = |(id, vm): (&VmId, &VmView)| format!("{id} {:?} {:?} {:?}\n", vm.disk, vm.cpu_reserved, vm.left);
    let rules: String = world.rules.iter().map(|rule| format!("{rule:?}\n")).collect();
    world.hosts.iter().map(host).chain(world.vms.iter().map(vm)).chain([rules]).collect()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_constraint_is_broken_by_any_plan(text in clusters(), dice in prop::collection::vec(any::<u8>(), 64..256)) {
        let world = constrained(&text, &dice);
        let plan = planned(&world);
        let violations: Vec<String> = check(&world, &plan).iter().map(ToString::to_string).collect();
        prop_assert!(violations.is_empty(), "{}\n{text}\n{}{}", violations.join("\n"), told(&world), steps(&plan));
        let bound = plan.predicted.rate_bound.unwrap();
        prop_assert!(bound <= plan.predicted.rate_after, "{bound} is no bound of {}\n{text}", plan.predicted.rate_after);
        prop_assert!(bound <= plan.predicted.rate_before, "{bound} is no bound of {}\n{text}", plan.predicted.rate_before);
    }

    #[test]
    fn the_checker_finds_nothing_wrong_with_any_plan(text in clusters()) {
        let world = parse(&text).world;
        let plan = planned(&world);
        let violations: Vec<String> = check(&world, &plan).iter().map(ToString::to_string).collect();
        prop_assert!(violations.is_empty(), "{}\n{text}\n{}", violations.join("\n"), steps(&plan));
    }

    #[test]
    fn a_plan_leaves_nothing_to_do(text in clusters()) {
        let world = parse(&text).world;
        let plan = planned(&world);
        let after = apply(&world, &plan);
        let again = planned(&after);
        prop_assert!(again.steps.is_empty(), "{text}\n{}\n{}\nand then {}\n{}", plan.why, steps(&plan), again.why, steps(&again));
    }

    #[test]
    fn equal_worlds_give_equal_plans(text in clusters()) {
        let world = parse(&text).world;
        prop_assert_eq!(planned(&world), planned(&world.clone()));
    }

    #[test]
    fn placements_keep_the_rules_and_refusals_are_true(text in clusters()) {
        let world = parse(&text).world;
        let findings = detect(&world);
        let known = (&world, &findings);
        // What a host in the dark is taken for shows in no finding.
        let dark = |id: &HostId| world.hosts[id].state == HostState::Up && findings.hosts[id].cpu_forecast.is_none();
        if world.vms.values().any(|vm| vm.host.as_ref().is_some_and(dark)) {
            return Ok(());
        }
        for vm in world.vms.iter().filter(|(_, view)| view.host.is_none() && view.load.is_empty()).map(|(vm, _)| vm) {
            let open: Vec<&HostId> = world.hosts.keys().filter(|host| open(known, host, &world.vms[vm], true)).collect();
            match place(&world, vm) {
                Ok(placed) => prop_assert!(open.contains(&&placed.host), "{vm} on {placed:?}\n{text}"),
                Err(refusal) => {
                    prop_assert!(open.is_empty(), "{vm}: {refusal}, but {open:?} are open\n{text}");
                    let later: Vec<&HostId> = world.hosts.keys().filter(|host| could_wake(known, host, &world.vms[vm])).collect();
                    match refusal {
                        Refusal::WakeFirst { host } => prop_assert!(later.contains(&&host), "{vm}: {host}\n{text}"),
                        Refusal::NoRoom { objections } => {
                            prop_assert!(later.is_empty(), "{vm}: {later:?} could be woken\n{text}");
                            prop_assert_eq!(objections.len(), world.hosts.len());
                        }
                        Refusal::NeverFits { why } => {
                            let ever = world.hosts.iter().any(|(id, host)| suits(id, host, &world.vms[vm]));
                            prop_assert!(!ever, "{vm}: {why}\n{text}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_checker_finds_what_is_wrong_with_a_spoilt_plan(text in clusters(), which in any::<prop::sample::Index>()) {
        let world = parse(&text).world;
        let plan = planned(&world);
        if plan.steps.is_empty() {
            return Ok(());
        }
        let step = which.index(plan.steps.len());
        for (what, world, plan) in spoilt(&world, &plan, step) {
            prop_assert!(!check(&world, &plan).is_empty(), "{what}, step {step}\n{text}\n{}", steps(&plan));
        }
    }
}

/// Whether the host suits the vm by what never changes.
fn suits(id: &HostId, host: &HostView, vm: &VmView) -> bool {
    host.capacity.is_some_and(|capacity| capacity.memory >= vm.memory)
        && vm.network.as_ref().is_none_or(|network| host.networks.contains(network))
        && (vm.pinned_to.is_empty() || vm.pinned_to.contains(id))
}

/// Whether a vm nobody has measured may be placed there, worked out from the world and the findings alone.
fn open((world, findings): (&World, &Findings), id: &HostId, vm: &VmView, must_be_up: bool) -> bool {
    let host = &world.hosts[id];
    let here: Vec<&VmView> = world.vms.values().filter(|other| other.host.as_ref() == Some(id)).collect();
    let used: Bytes = here.iter().map(|other| other.memory).sum();
    let capacity = host.capacity.unwrap();
    let apart = vm.anti_affinity.is_none()
        || here.iter().all(|other| other.anti_affinity != vm.anti_affinity || other.tenant != vm.tenant);
    let asked = findings.hosts[id].cpu_forecast;
    let calm = here.is_empty() || asked.is_none_or(|asked| asked <= capacity.cpu.scale(world.policy.fill_to.0));
    let takes = if must_be_up { host.takes_vms() } else { !host.maintenance };
    takes && suits(id, host, vm) && used + vm.memory <= capacity.memory && apart && calm
}

fn could_wake(known: (&World, &Findings), id: &HostId, vm: &VmView) -> bool {
    let host = &known.0.hosts[id];
    host.state == HostState::Asleep && host.power_managed && open(known, id, vm, false)
}

/// The plan with one thing wrong, in every way that fits the step.
fn spoilt(world: &World, plan: &Plan, step: usize) -> Vec<(&'static str, World, Plan)> {
    let mut spoilt = Vec::new();
    let mut spoil = |what: &'static str, change: &dyn Fn(&mut World, &mut Plan)| {
        let (mut world, mut plan) = (world.clone(), plan.clone());
        change(&mut world, &mut plan);
        spoilt.push((what, world, plan));
    };
    spoil("the same step twice", &|_, plan| plan.steps.push(plan.steps[step].clone()));
    spoil("it waits for itself", &|_, plan| plan.steps[step].after.push(step));
    spoil("a gain from nowhere", &|_, plan| plan.predicted.gain.0 += 1);
    match plan.steps[step].action.clone() {
        Action::Migrate { vm, generation, from, to } => {
            let retarget = |plan: &mut Plan, generation, from: &HostId, to: &HostId| {
                plan.steps[step].action =
                    Action::Migrate { vm: vm.clone(), generation, from: from.clone(), to: to.clone() };
            };
            spoil("another generation", &|_, plan| retarget(plan, Generation(generation.0 + 1), &from, &to));
            spoil("the wrong way round", &|_, plan| retarget(plan, generation, &to, &from));
            for (id, host) in world.hosts.iter().filter(|(id, host)| **id != from && !suits(id, host, &world.vms[&vm]))
            {
                spoil("to a host that doesn't suit", &|_, plan| retarget(plan, generation, &from, id));
                spoil("to a host that is down", &|world, plan| {
                    world.hosts.get_mut(id).unwrap().state = HostState::Down;
                    retarget(plan, generation, &from, id);
                });
                let _ = host;
            }
            spoil("more memory than there is", &|world, _| {
                let view = world.vms.get_mut(&vm).unwrap();
                view.memory = Bytes(world.hosts[&to].capacity.unwrap().memory.0 + 1);
            });
            spoil("a drained destination", &|world, _| world.hosts.get_mut(&to).unwrap().maintenance = true);
            spoil("pinned elsewhere", &|world, _| {
                world.vms.get_mut(&vm).unwrap().pinned_to = [from.clone()].into();
            });
            if plan.steps.iter().any(|other| other.action == Action::PowerOn { host: to.clone() }) {
                spoil("before the host is on", &|_, plan| plan.steps[step].after.clear());
            }
            spoil("at rest", &|world, _| {
                let source = world.hosts.get_mut(&from).unwrap();
                (source.maintenance, source.load) = (false, Default::default());
                world.vms.get_mut(&vm).unwrap().left = vec![(TimeMs(NOW.0 - 1000), to.clone())];
            });
        }
        Action::PowerOn { host } => {
            spoil("the host is up", &|world, _| world.hosts.get_mut(&host).unwrap().state = HostState::Up);
            spoil("not for drover to wake", &|world, _| world.hosts.get_mut(&host).unwrap().power_managed = false);
        }
        Action::PowerOff { host } => {
            if !plan.steps[step].after.is_empty() {
                spoil("before the host is empty", &|_, plan| plan.steps[step].after.clear());
            }
            spoil("too few hosts", &|world, _| world.policy.hosts_up_min = world.hosts.len() as u32);
            spoil("no saving wanted", &|world, _| world.policy.aim = Aim::Balance);
            spoil("not for drover to switch", &|world, _| world.hosts.get_mut(&host).unwrap().power_managed = false);
        }
    }
    spoilt
}
