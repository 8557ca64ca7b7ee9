//! The checker on plans made by hand, one constraint at a time: the least that breaks it, and the most that doesn't.

use crate::cluster::{NOW, parse};
use drover_model::load::VmSample;
use drover_model::placement::{HostSet, PlacementRule, PoolView, RuleKind, Scope};
use drover_model::plan::{Action, HostPrediction, Plan, Prediction, Scenario, Step, Timing};
use drover_model::world::{HostView, VmView, World};
use drover_model::{Bytes, CpuMillis, Generation, MicroMoney, MicroMoneyPerHour, Millis, Ratio, TimeMs};
use drover_planner::check;
use std::collections::BTreeMap;

/// `vm from to after...`, `on host after...` or `off host after...`. Each migration takes a second.
fn plan(world: &World, steps: &[&str]) -> Plan {
    let mut moved = BTreeMap::new();
    let steps: Vec<Step> = steps
        .iter()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let (action, after) = match words[0] {
                "on" => (Action::PowerOn { host: words[1].parse().unwrap() }, &words[2..]),
                "off" => (Action::PowerOff { host: words[1].parse().unwrap() }, &words[2..]),
                vm => {
                    let generation: &mut u64 = moved.entry(vm).or_insert(3);
                    let (from, to) = (words[1].parse().unwrap(), words[2].parse().unwrap());
                    let action =
                        Action::Migrate { vm: vm.parse().unwrap(), generation: Generation(*generation), from, to };
                    *generation += 1;
                    (action, &words[3..])
                }
            };
            let after: Vec<usize> = after.iter().map(|word| word.parse().unwrap()).collect();
            step(world, action, after)
        })
        .collect();
    let none = Ratio(0.0);
    let nothing = HostPrediction { cpu_before: none, cpu_after: none, memory_before: none, memory_after: none };
    let mut plan = Plan {
        parent: world.revision,
        made_at: world.now,
        scenario: Scenario::Hotspot,
        why: String::new(),
        steps,
        predicted: Prediction {
            rate_before: MicroMoneyPerHour(1_000_000),
            rate_after: MicroMoneyPerHour::ZERO,
            moving_cost: MicroMoney::ZERO,
            gain: MicroMoneyPerHour(1_000_000).over(world.policy.money.horizon),
            rate_bound: None,
            hosts: world.hosts.keys().map(|host| (host.clone(), nothing.clone())).collect(),
        },
        rejected: Vec::new(),
        timing: Timing::default(),
    };
    time(&mut plan);
    plan
}

fn step(world: &World, action: Action, after: Vec<usize>) -> Step {
    let duration = match &action {
        Action::Migrate { .. } => Millis(1000),
        Action::PowerOn { host } => world.hosts.get(host).map_or(Millis::ZERO, |view| view.boot_time),
        Action::PowerOff { .. } => Millis::ZERO,
    };
    Step {
        after,
        action,
        reason: String::new(),
        gain: MicroMoney::ZERO,
        cost: MicroMoney::ZERO,
        duration,
        start: Millis::ZERO,
        bandwidth: Bytes::ZERO,
        alternatives: Vec::new(),
    }
}

/// Each step after the last: no limit is in the way.
fn time(plan: &mut Plan) {
    let mut next = Millis::ZERO;
    for step in &mut plan.steps {
        step.start = next;
        next += step.duration;
    }
    plan.timing = Timing { makespan: next, bound: Millis::ZERO };
}

/// The violations must be those that contain these words; none expected, none may be.
fn checked(cluster: &str, steps: &[&str], expected: &[&str]) {
    let world = parse(cluster).world;
    holds(&world, &plan(&world, steps), expected);
}

fn holds(world: &World, plan: &Plan, expected: &[&str]) {
    let violations: Vec<String> = check(world, plan).iter().map(ToString::to_string).collect();
    let all = violations.join("\n");
    let steps: Vec<String> = plan.steps.iter().take(9).map(|step| format!("{:?}", step.action)).collect();
    assert_eq!(violations.len(), expected.len(), "{steps:#?}\nexpected {expected:?}:\n{all}");
    for words in expected {
        assert!(all.contains(words), "{words} is not in\n{all}");
    }
}

#[test]
fn a_running_vm_goes_only_where_it_can_go_on_running() {
    let cluster = "host h1 cpu=4 mem=2048 kind=1
        host h2 cpu=4 mem=2048 kind=0 refuses=1
        host h3 cpu=4 mem=2048 kind=2
        vm a vcpus=1 mem=1024 on=h1 load=0
        vm b vcpus=1 mem=1024 on=h2 load=0";
    checked(cluster, &["a h1 h2"], &["a can't go on running on h2"]);
    checked(cluster, &["a h1 h3"], &[]);
    checked(cluster, &["b h2 h1"], &[]);
}

#[test]
fn memory_counts_at_both_ends_of_every_move_that_may_be_under_way() {
    let cluster = "host h1 cpu=4 mem=2048
        host h2 cpu=4 mem=2048
        host h3 cpu=4 mem=2048
        vm a vcpus=1 mem=1024 on=h1 load=0
        vm b vcpus=1 mem=1024 on=h2 load=0
        vm c vcpus=1 mem=1024 on=h2 load=0
        vm d vcpus=1 mem=1024 on=h3 load=0";
    checked(cluster, &["a h1 h2"], &["h2 may need 3.0 GiB of memory and has 2.0 GiB"]);
    checked(cluster, &["b h2 h3", "a h1 h2"], &["step 1: h2 may need 3.0 GiB"]);
    checked(cluster, &["b h2 h3", "a h1 h2 0"], &[]);
    // Two come, each where another has left: fine. Both after the same one: not.
    checked(cluster, &["b h2 h1", "c h2 h3", "a h1 h2 0", "d h3 h2 1"], &[]);
    checked(cluster, &["b h2 h1", "c h2 h3", "a h1 h2 0", "d h3 h2 0"], &["step 3: h2 may need 3.0 GiB"]);
}

#[test]
fn room_that_one_arrival_waits_for_does_not_trouble_an_earlier_one() {
    // p may come while x is still there, b only once it left: at no moment are all three on h2.
    let cluster = "host h1 cpu=4 mem=4096
        host h2 cpu=4 mem=2048
        vm x vcpus=1 mem=1024 on=h2 load=0
        vm p vcpus=1 mem=1024 on=h1 load=0
        vm b vcpus=1 mem=1024 on=h1 load=0";
    checked(cluster, &["p h1 h2", "x h2 h1", "b h1 h2 1"], &[]);
}

#[test]
fn group_members_never_meet() {
    let cluster = "host h1 cpu=4 mem=4096
        host h2 cpu=4 mem=4096
        host h3 cpu=4 mem=4096
        vm a vcpus=1 mem=512 on=h1 load=0 group=g
        vm b vcpus=1 mem=512 on=h2 load=0 group=g
        vm c vcpus=1 mem=512 on=h2 load=0 group=g tenant=other";
    checked(cluster, &["a h1 h2"], &["a and b of one anti-affinity group may meet on h2"]);
    checked(cluster, &["b h2 h3", "a h1 h2"], &["may meet on h2"]);
    checked(cluster, &["b h2 h3", "a h1 h2 0"], &[]);
    checked(cluster, &["a h1 h3", "b h2 h3"], &["step 1: b and a of one anti-affinity group may meet on h3"]);
    // a passes through h3 before b comes.
    checked(cluster, &["a h1 h3", "a h3 h1 0", "b h2 h3 1"], &[]);
}

#[test]
fn a_destination_is_not_overrun_and_not_hot_afterwards() {
    let cluster = "host h1 cpu=2 mem=4096
        host h2 cpu=2 mem=4096
        host h3 cpu=2 mem=4096
        vm a vcpus=2 mem=512 on=h1 load=0.8
        vm b vcpus=2 mem=512 on=h2 load=1.0
        vm c vcpus=2 mem=512 on=h2 load=0.3";
    checked(cluster, &["a h1 h2"], &["may be asked for 2.10 cores", "hot above 1.70 cores"]);
    checked(cluster, &["a h1 h2", "c h2 h3"], &["may be asked for 2.10 cores", "hot above"]);
    checked(cluster, &["b h2 h3", "a h1 h2 0"], &[]);
    checked(cluster, &["b h2 h3", "a h1 h2"], &["may be asked for 2.10 cores"]);
    checked(cluster, &["c h2 h3", "a h1 h2 0"], &["would be asked for 1.80 cores and is hot above 1.70 cores"]);
}

#[test]
fn a_vm_at_rest_stays_unless_its_host_presses() {
    let cluster = |load: &str, words: &str| {
        format!(
            "host h1 cpu=2 mem=4096 {words}
             host h2 cpu=2 mem=4096
             vm a vcpus=2 mem=512 on=h1 load=0.4 moved=60:h3
             vm b vcpus=2 mem=512 on=h1 load={load}"
        )
    };
    checked(&cluster("0.4", ""), &["a h1 h2"], &["a moved recently and nothing presses it to leave h1"]);
    checked(&cluster("1.5", ""), &["a h1 h2"], &[]);
    checked(&cluster("0.4", "drained"), &["a h1 h2"], &[]);
}

#[test]
fn any_one_host_can_be_lost_after_a_host_was_switched_off() {
    let cluster = "policy aim=auto spare_hosts=1
        host h1 cpu=4 mem=4096
        host h2 cpu=4 mem=4096
        host h3 cpu=4 mem=4096 managed
        vm a vcpus=1 mem=2048 on=h1 load=0.1
        vm b vcpus=1 mem=2048 on=h2 load=0.1";
    checked(cluster, &["off h3"], &[]);
    let more = format!("{cluster}\n vm c vcpus=1 mem=1024 on=h1 load=0.1");
    checked(&more, &["off h3"], &["if h1 failed afterwards", "if h2 failed afterwards"]);
    let pinned = format!("{cluster}\n vm c vcpus=1 mem=1024 on=h1 load=0.1 pin=h1");
    checked(&pinned, &["off h3"], &["if h2 failed afterwards"]);
}

#[test]
fn no_power_is_saved_while_a_host_is_in_trouble() {
    for trouble in ["state=down", "state=suspect", "state=unknown", "drained"] {
        let cluster = format!(
            "policy aim=auto
             host h1 cpu=4 mem=4096
             host h2 cpu=4 mem=4096 managed
             host h3 cpu=4 mem=4096 {trouble}
             vm a vcpus=1 mem=512 on=h3 load=0.1"
        );
        checked(&cluster, &["off h2"], &["though h3 is lost, unknown or drained"]);
    }
}

#[test]
fn nothing_comes_to_or_leaves_a_host_that_can_not_take_part() {
    let cluster = |words: &str| {
        format!(
            "host h1 cpu=2 mem=4096
             host h2 cpu=2 mem=4096 {words}
             vm a vcpus=2 mem=512 on=h1 load=0.4
             vm b vcpus=2 mem=512 on=h2 load=0.4"
        )
    };
    checked(&cluster("dark"), &["a h1 h2"], &["the load of h2 is not known"]);
    checked(&cluster("dark"), &["b h2 h1"], &["the load of h2 is not known"]);
    checked(&cluster("dark drained"), &["b h2 h1"], &[]);
    checked(&cluster("state=down"), &["a h1 h2"], &["h2 is Down when a is to come"]);
    checked(&cluster("state=suspect"), &["b h2 h1"], &["h2 is Suspect: nothing can be moved off it"]);
}

/// What `change` makes of the world before the plan is checked.
fn checked_in(cluster: &str, change: &dyn Fn(&mut World), steps: &[&str], expected: &[&str]) {
    let mut world = parse(cluster).world;
    change(&mut world);
    holds(&world, &plan(&world, steps), expected);
}

fn vm<'w>(world: &'w mut World, id: &str) -> &'w mut VmView {
    world.vms.get_mut(&id.parse().unwrap()).unwrap()
}

fn host<'w>(world: &'w mut World, id: &str) -> &'w mut HostView {
    world.hosts.get_mut(&id.parse().unwrap()).unwrap()
}

const FOUR: &str = "policy aim=auto
    host h1 cpu=4 mem=4096 managed
    host h2 cpu=4 mem=4096 managed
    host h3 cpu=4 mem=4096 managed
    host h4 cpu=4 mem=4096 managed
    vm a vcpus=1 mem=512 on=h1 load=0.1
    vm b vcpus=1 mem=512 on=h2 load=0.1
    vm c vcpus=1 mem=512 on=h3 load=0.1";

#[test]
fn disks_and_promises_fit_at_every_moment() {
    let disks = |world: &mut World| {
        host(world, "h2").disk = Some(Bytes::mib(1000));
        for id in ["a", "b"] {
            vm(world, id).disk = Bytes::mib(600);
        }
    };
    checked_in(FOUR, &disks, &["a h1 h2"], &["step 0: h2 may need 1.2 GiB of disk and has 1000 MiB"]);
    checked_in(FOUR, &disks, &["b h2 h3", "a h1 h2"], &["h2 may need 1.2 GiB of disk"]);
    checked_in(FOUR, &disks, &["b h2 h3", "a h1 h2 0"], &[]);
    let promises = |world: &mut World| {
        vm(world, "a").cpu_reserved = CpuMillis(2500);
        vm(world, "b").cpu_reserved = CpuMillis(2000);
    };
    checked_in(FOUR, &promises, &["a h1 h2"], &["h2 may have promised 4.50 cores and has 4.00 cores"]);
    checked_in(FOUR, &promises, &["b h2 h3", "a h1 h2 0"], &[]);
}

#[test]
fn a_host_that_holds_too_much_gets_nothing_until_it_does_not() {
    let full = |world: &mut World| {
        vm(world, "b").memory = Bytes::mib(3000);
        vm(world, "c").memory = Bytes::mib(2000);
        vm(world, "c").host = Some("h2".parse().unwrap());
    };
    checked_in(FOUR, &full, &["c h2 h3", "a h1 h2"], &["step 1: h2 may need 5.4 GiB"]);
    checked_in(FOUR, &full, &["c h2 h3", "a h1 h2 0"], &[]);
}

#[test]
fn vms_send_no_more_than_the_link_carries() {
    let talks = |each: u64| {
        move |world: &mut World| {
            host(world, "h2").link = Some(Bytes(1000));
            for id in ["a", "b"] {
                let samples =
                    vm(world, id).load.iter().map(|(at, s)| (*at, VmSample { net_tx: Bytes(each), ..*s })).collect();
                vm(world, id).load = samples;
            }
        }
    };
    checked_in(FOUR, &talks(500), &["a h1 h2"], &[]);
    checked_in(FOUR, &talks(501), &["a h1 h2"], &["the vms of h2 may send 1002 B/s and its link carries 1000 B/s"]);
    checked_in(FOUR, &talks(501), &["b h2 h3", "a h1 h2 0"], &[]);
}

#[test]
fn rules_of_placement_hold_at_every_moment() {
    let rule = |kind: RuleKind| {
        move |world: &mut World| {
            for (id, rack) in [("h1", "r1"), ("h2", "r2"), ("h3", "r2")] {
                host(world, id).rack = Some(rack.parse().unwrap());
            }
            host(world, "h1").labels.insert("licensed".parse().unwrap());
            let vms = ["a", "b", "gone"].map(|vm| vm.parse().unwrap()).into();
            world.rules = vec![PlacementRule { id: "r".parse().unwrap(), vms, kind: kind.clone() }];
        }
    };
    let licensed = || HostSet { labels: ["licensed".parse().unwrap()].into(), ..HostSet::default() };
    let racks = || HostSet { racks: ["r2".parse().unwrap()].into(), ..HostSet::default() };
    let on = rule(RuleKind::On { hosts: licensed() });
    checked_in(FOUR, &on, &["a h1 h4"], &["rule r keeps a from h4"]);
    checked_in(FOUR, &on, &["b h2 h1", "c h3 h4"], &[]);
    checked_in(FOUR, &rule(RuleKind::NotOn { hosts: racks() }), &["a h1 h3"], &["rule r keeps a from h3"]);
    checked_in(FOUR, &rule(RuleKind::NotOn { hosts: racks() }), &["a h1 h4"], &[]);

    let apart = rule(RuleKind::Apart { within: Scope::Rack });
    checked_in(FOUR, &apart, &["a h1 h3"], &["a and b may meet in one rack, against rule r"]);
    checked_in(FOUR, &apart, &["b h2 h1", "a h1 h3"], &["may meet in one rack", "may meet in one rack"]);
    checked_in(FOUR, &apart, &["b h2 h4", "a h1 h3 0"], &[]);
    checked_in(FOUR, &apart, &["b h2 h3", "a h1 h4"], &[]);
    // Both in one rack already: they may change places there, and leave.
    let broken = |world: &mut World| {
        apart(world);
        vm(world, "a").host = Some("h3".parse().unwrap());
    };
    checked_in(FOUR, &broken, &["a h3 h2"], &[]);
    checked_in(FOUR, &broken, &["a h3 h4"], &[]);
    checked_in(FOUR, &rule(RuleKind::Apart { within: Scope::Zone }), &["a h1 h4"], &[]);

    let together = |world: &mut World| {
        rule(RuleKind::Together { within: Scope::Host })(world);
        vm(world, "b").host = Some("h1".parse().unwrap());
    };
    checked_in(FOUR, &together, &["a h1 h2"], &["the vms of rule r would not be together in one host"]);
    checked_in(FOUR, &together, &["a h1 h2", "b h1 h2"], &[]);
    checked_in(FOUR, &together, &["a h1 h4", "b h1 h2", "a h4 h2 0"], &["a would be away from all others of rule r"]);
    checked_in(FOUR, &rule(RuleKind::Together { within: Scope::Host }), &["a h1 h4"], &[]);
    checked_in(FOUR, &rule(RuleKind::Together { within: Scope::Rack }), &["a h1 h3"], &[]);

    let most = |count| rule(RuleKind::HostsMax { count });
    checked_in(FOUR, &most(2), &["a h1 h3"], &["the vms of rule r may be on 3 hosts and at most 2 are allowed"]);
    checked_in(FOUR, &most(3), &["a h1 h3"], &[]);
    checked_in(FOUR, &most(2), &["a h1 h2", "b h2 h3"], &["may be on 3 hosts"]);
    checked_in(FOUR, &most(2), &["a h1 h2", "b h2 h3 0"], &[]);
    checked_in(FOUR, &most(1), &["a h1 h2", "b h2 h1"], &[]);
    checked_in(FOUR, &most(1), &["a h1 h4"], &["may be on 3 hosts"]);
}

#[test]
fn what_is_wrong_may_be_repaired_at_any_price() {
    let repair = |change: &dyn Fn(&mut World), expected: &[&str]| {
        let mut world = parse(FOUR).world;
        vm(&mut world, "a").left = vec![(TimeMs(NOW.0 - 1000), "h4".parse().unwrap())];
        world.policy.moves.vm_hour_max = 1;
        change(&mut world);
        let mut plan = plan(&world, &["a h1 h4"]);
        (plan.predicted.rate_before, plan.predicted.gain) = (MicroMoneyPerHour::ZERO, MicroMoney::ZERO);
        holds(&world, &plan, expected);
    };
    let forbidden: [&str; 4] =
        ["moved recently", "a left h4 only 1000 ms ago", "move 2 times", "nothing presses, and it gains"];
    let rule =
        |kind| PlacementRule { id: "r".parse().unwrap(), vms: ["a", "b"].map(|vm| vm.parse().unwrap()).into(), kind };
    let here = || HostSet { hosts: ["h1".parse().unwrap()].into(), ..HostSet::default() };
    repair(&|_| {}, &forbidden);
    repair(&|world| host(world, "h1").maintenance = true, &[]);
    repair(&|world| world.rules = vec![rule(RuleKind::NotOn { hosts: here() })], &[]);
    repair(
        &|world| world.rules = vec![rule(RuleKind::On { hosts: here() })],
        &["moved", "left", "move 2", "presses", "rule r keeps"],
    );
    repair(&|world| vm(world, "a").pinned_to = ["h4".parse().unwrap()].into(), &[]);
    repair(&|world| world.rules = vec![rule(RuleKind::Apart { within: Scope::Zone })], &[]);
    repair(&|world| host(world, "h1").disk = Some(Bytes::ZERO), &forbidden);
    repair(
        &|world| {
            host(world, "h1").disk = Some(Bytes::ZERO);
            vm(world, "a").disk = Bytes(1);
        },
        &[],
    );
}

#[test]
fn moves_are_limited_by_host_and_plan() {
    let busy = |world: &mut World| {
        world.policy.moves.host_hour_max = 2;
        host(world, "h2").moves_recent = 1;
    };
    checked_in(FOUR, &busy, &["a h1 h2"], &[]);
    checked_in(
        FOUR,
        &busy,
        &["a h1 h2", "b h2 h3"],
        &["step 1: 3 vms would move from or to h2 within an hour and 2 may"],
    );
    let drained = |world: &mut World| {
        busy(world);
        host(world, "h2").maintenance = true;
        vm(world, "a").host = Some("h2".parse().unwrap());
    };
    checked_in(FOUR, &drained, &["a h2 h1", "b h2 h3"], &[]);
    let few = |world: &mut World| world.policy.moves.plan_max = 1;
    checked_in(FOUR, &few, &["a h1 h2", "b h2 h3"], &["2 moves are too many: a plan may make 1"]);
    let returns = |world: &mut World| {
        vm(world, "a").left = vec![
            (TimeMs(NOW.0 - 3_600_000), "h2".parse().unwrap()),
            (TimeMs(NOW.0 - 1_800_000), "h3".parse().unwrap()),
        ];
    };
    checked_in(FOUR, &returns, &["a h1 h2"], &["a left h2 only 3600.0 s ago"]);
    checked_in(FOUR, &returns, &["a h1 h4"], &[]);
}

#[test]
fn pools_keep_what_they_are_promised() {
    let promised = |cores: u64, mib: u64| {
        move |world: &mut World| {
            let pool = |parent: Option<&str>, cores| PoolView {
                parent: parent.map(|id| id.parse().unwrap()),
                cpu_reserved: CpuMillis(cores * 1000),
                memory_reserved: Bytes::mib(mib),
                ..PoolView::default()
            };
            let pools = [("all", pool(None, cores)), ("part", pool(Some("all"), 1)), ("lost", pool(Some("gone"), 2))];
            world.pools = pools.into_iter().map(|(id, pool)| (id.parse().unwrap(), pool)).collect();
        }
    };
    checked_in(FOUR, &promised(10, 6144), &["off h4"], &[]);
    checked_in(
        FOUR,
        &promised(11, 6144),
        &["off h4"],
        &["pools are promised 13.00 cores and the hosts left have 12.00 cores"],
    );
    checked_in(FOUR, &promised(10, 6145), &["off h4"], &["pools are promised 12.0 GiB of memory"]);
    checked_in(FOUR, &promised(20, 6144), &["a h1 h2"], &[]);
}

#[test]
fn several_hosts_can_be_lost_at_once_if_that_is_wanted() {
    let spare = |count: u32| {
        move |world: &mut World| {
            world.policy.spare_hosts = count;
            for id in ["a", "b", "c"] {
                vm(world, id).memory = Bytes::mib(3000);
            }
        }
    };
    checked_in(FOUR, &spare(1), &["c h3 h4"], &[]);
    checked_in(FOUR, &spare(1), &["off h4"], &["if h1 failed", "if h2 failed", "if h3 failed"]);
    // Two at once could not be lost before either.
    checked_in(FOUR, &spare(2), &["off h4"], &[]);
    let small = |world: &mut World| world.policy.spare_hosts = 2;
    checked_in(FOUR, &small, &["off h4"], &[]);
    let larger = |world: &mut World| {
        world.policy.spare_hosts = 2;
        for id in ["a", "b", "c"] {
            vm(world, id).memory = Bytes::mib(2000);
        }
    };
    checked_in(FOUR, &larger, &["off h4"], &["if h1 and h2 failed afterwards"]);
}

#[test]
fn times_are_possible_in_order_and_within_limits() {
    let world = || {
        let mut world = parse(&format!("{FOUR}\n host h5 cpu=4 mem=4096 managed state=asleep boot=40")).world;
        world.policy.migration.host_bandwidth_max = Bytes(100);
        (world.policy.migration.bandwidth_max, world.policy.migration.per_host_max) = (Bytes(80), 1);
        world
    };
    let spoilt = |steps: &[&str], change: &dyn Fn(&mut Plan), expected: &[&str]| {
        let world = world();
        let mut plan = plan(&world, steps);
        change(&mut plan);
        holds(&world, &plan, expected);
    };
    let together = |plan: &mut Plan| {
        for step in &mut plan.steps {
            step.start = Millis::ZERO;
        }
        plan.timing.makespan = Millis(1000);
    };
    spoilt(&["a h1 h4", "b h2 h3"], &together, &[]);
    spoilt(&["a h1 h4", "b h2 h4"], &together, &["h4 has 2 migrations at 0 ms and 1 may run"]);
    spoilt(
        &["a h1 h4", "b h2 h3", "c h3 h1"],
        &together,
        &["h1 has 2", "h3 has 2", "3 migrations run at 0 ms and 2 may"],
    );
    spoilt(
        &["b h2 h3", "a h1 h2 0"],
        &together,
        &["it starts at 0 ms, and step 0 before it ends at 1000 ms", "h2 has 2"],
    );
    spoilt(&["a h1 h4"], &|plan| plan.steps[0].bandwidth = Bytes(80), &[]);
    spoilt(&["a h1 h4"], &|plan| plan.steps[0].bandwidth = Bytes(81), &["a would be sent at 81 B/s and may at 80 B/s"]);
    spoilt(&["a h1 h4"], &|plan| plan.steps[0].duration = Millis::ZERO, &["no time", "its last step ends after 0 ms"]);
    spoilt(
        &["a h1 h4"],
        &|plan| plan.timing.makespan = Millis(999),
        &["takes 999 ms, and its last step ends after 1000 ms"],
    );
    spoilt(&["a h1 h4"], &|plan| plan.timing.bound = Millis(1001), &["nothing under 1001 ms"]);
    spoilt(&["on h5", "a h1 h5 0"], &|_| {}, &[]);
    spoilt(&["on h5", "a h1 h5 0"], &|plan| plan.steps[0].duration = Millis(39_999), &["h5 boots in 40.0 s"]);
    spoilt(
        &["a h1 h4"],
        &|plan| (plan.steps[0].start, plan.steps[0].duration) = (Millis(u64::MAX), Millis(5)),
        &["its last step ends"],
    );
}

#[test]
fn two_on_one_link_share_it() {
    let mut world = parse(FOUR).world;
    host(&mut world, "h1").link = Some(Bytes(100));
    vm(&mut world, "b").host = Some("h1".parse().unwrap());
    for (rate, expected) in [(50, vec![]), (51, vec!["at 0 ms the link of h1 carries 102 B/s of 100 B/s for moves"])] {
        let mut plan = plan(&world, &["a h1 h2", "b h1 h3"]);
        for step in &mut plan.steps {
            (step.start, step.bandwidth) = (Millis::ZERO, Bytes(rate));
        }
        plan.timing.makespan = Millis(1000);
        holds(&world, &plan, &expected);
    }
}

#[test]
fn plans_that_make_no_sense_are_objected_to_and_nothing_panics() {
    checked(FOUR, &["x h1 h2"], &["there is no vm x"]);
    checked(FOUR, &["a h1 h9"], &["there is no host h9"]);
    checked(FOUR, &["on h9", "off h8"], &["there is no host h9", "there is no host h8"]);
    checked(FOUR, &["a h1 h2", "a h1 h3"], &["it is on h2 by then"]);
    checked(FOUR, &["a h1 h2", "a h2 h3"], &["may still be under way"]);
    checked(FOUR, &["a h1 h2 1", "b h2 h3 0"], &["it waits for step 1, which does not come before it"]);
    checked(FOUR, &["a h1 h2 99"], &["it waits for step 99"]);
    let mut world = parse(FOUR).world;
    let many = plan(&world, &["a h1 h2"].repeat(20_001));
    world.policy.spare_hosts = 1;
    holds(&world, &many, &["20001 steps are too many"]);
}

/// Moves by hand: hard rules hold, load is the person's own business.
#[test]
fn a_move_by_hand_is_bound_by_hard_rules_and_not_by_load() {
    let world = parse(
        "host h1 cpu=2 mem=8192\nhost h2 cpu=2 mem=2048\nhost h3 cpu=1 mem=8192\n\
         vm a vcpus=2 mem=1024 on=h1 load=1.2 group=db\nvm b vcpus=1 mem=1024 on=h2 load=0.9 group=db\n\
         vm c vcpus=1 mem=2048 on=h1 load=0.1\n",
    );
    let objection = |vm: &str, to: &str| {
        drover_planner::objection(&world.world, &vm.parse().unwrap(), &to.parse().unwrap()).map(|why| why.to_string())
    };
    assert_eq!(objection("a", "h3"), None, "h3 would be asked for more than it has, and that is allowed");
    assert!(objection("a", "h2").is_some_and(|why| why.contains("same anti-affinity group")));
    assert!(objection("c", "h2").is_some_and(|why| why.contains("h2 would need 3.0 GiB and has 2.0 GiB")));
}
