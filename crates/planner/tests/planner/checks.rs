//! The checker on plans made by hand, one constraint at a time: the least that breaks it, and the most that doesn't.

use crate::cluster::parse;
use drover_model::plan::{Action, HostPrediction, Plan, Prediction, Scenario, Step, Timing};
use drover_model::world::World;
use drover_model::{Bytes, Generation, MicroMoney, MicroMoneyPerHour, Millis, Ratio};
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
    let violations: Vec<String> = check(&world, &plan(&world, steps)).iter().map(ToString::to_string).collect();
    let all = violations.join("\n");
    assert_eq!(violations.len(), expected.len(), "{steps:?}:\n{all}");
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
