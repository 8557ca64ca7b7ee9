//! Replays whose outcome can be worked out by hand.

use drover_model::policy::{Aim, Policy};
use drover_model::world::World;
use drover_model::{Bytes, CpuMillis, HostId, Millis, TimeMs, VmId};
use drover_planner::text::native;
use drover_sim::replay::{Point, Recording, Replay, Report, Stranger, at_pace, chart};

/// Samples a second apart, as agents send them.
const STEP: Millis = Millis::secs(1);

fn world(text: &str) -> World {
    native::parse(text).unwrap()
}

/// Cores wanted, each for so many steps.
fn recording(vms: &[(&str, &[(f64, usize)])]) -> Recording {
    let point = |cores: f64| Some(Point { cpu: CpuMillis::CORE.scale(cores), memory: Bytes::mib(256) });
    let series = |runs: &[(f64, usize)]| {
        runs.iter().flat_map(|(cores, steps)| std::iter::repeat_n(point(*cores), *steps)).collect()
    };
    let vms = vms.iter().map(|(id, runs)| (id.parse().unwrap(), series(runs))).collect();
    Recording { start: TimeMs(1_795_294_000_000), step: STEP, vms }
}

fn run(world: &World, recording: &Recording) -> Report {
    let mut replay = Replay::new(world, recording);
    while replay.step() {
        let asleep_ones_are_empty = replay.world().vms.values().all(|vm| {
            let host = vm.host.as_ref().and_then(|host| replay.world().hosts.get(host));
            host.is_some_and(|host| host.state == drover_model::world::HostState::Up)
        });
        assert!(asleep_ones_are_empty, "a vm is where nothing runs");
    }
    replay.finish()
}

const TWO_HOSTS: &str = "\
host h1 cpu=4 mem=8192 managed power=100,200
host h2 cpu=4 mem=8192 managed power=100,200
vm a vcpus=2 mem=1024 on=h1
vm b vcpus=2 mem=1024 on=h2
";

#[test]
fn what_stands_still_costs_what_its_hosts_draw() {
    let world = world(&format!("policy mode=act eagerness=1\n{TWO_HOSTS}"));
    // Two hosts at a quarter of their processors draw 125 W each, for an hour.
    let report = run(&world, &recording(&[("a", &[(1.0, 3600)]), ("b", &[(1.0, 3600)])]));
    assert!((report.energy_kwh - 0.25).abs() < 1e-9, "{}", report.energy_kwh);
    assert_eq!((report.moves.len(), report.wakes, report.plans_unsound), (0, 0, 0));
    assert!((report.wanted_core_h - 2.0).abs() < 1e-9 && report.missed_core_h == 0.0);
    assert_eq!(report.bill.total().0, 62_500, "a quarter of a kWh at a quarter of the unit");
    assert_eq!((report.timeline.len(), report.span), (3600, Millis::secs(3600)));
    assert!(report.timeline.iter().all(|moment| (moment.hosts_on - 2.0).abs() < 1e-9));
}

#[test]
fn what_a_host_does_not_have_is_missed() {
    let world = world("host h1 cpu=1 mem=8192\nvm a vcpus=1 mem=64 on=h1\nvm b vcpus=2 mem=64 on=h1 load=0.5");
    // 1 core of a's two is all that its processor can want; b, not recorded, wants half a core all the time.
    let report = run(&world, &recording(&[("a", &[(2.0, 3600)])]));
    assert!((report.wanted_core_h - 1.5).abs() < 1e-9, "{}", report.wanted_core_h);
    assert!((report.missed_core_h - 0.5).abs() < 1e-9, "{}", report.missed_core_h);
    assert_eq!(report.bill.slowness.0, 200_000);
}

#[test]
fn a_quiet_host_is_emptied_switched_off_and_woken_when_the_load_is_back() {
    let text = format!("policy aim=save settle_ms=5000 vm_cooldown_ms=30000 return_after_ms=60000\n{TWO_HOSTS}");
    let world = world(&text);
    let load: &[(f64, usize)] = &[(0.3, 400), (1.9, 600)];
    let recording = recording(&[("a", load), ("b", load)]);
    let report = run(&world, &recording);
    assert_eq!((report.sleeps, report.plans_unsound, report.steps_failed), (1, 0, 0), "{report:?}");
    assert_eq!(report.wakes, 1, "3.8 cores do not fit one host of 4: {:?}", report.moves);
    assert!(report.moves.iter().all(|done| done.ended > done.started), "a move takes its time");
    let on: Vec<f64> = report.timeline.iter().map(|moment| moment.hosts_on).collect();
    assert!((on[0] - 2.0).abs() < 1e-9 && (on[350] - 1.0).abs() < 1e-9 && (on[999] - 2.0).abs() < 1e-9, "{on:?}");
    assert_eq!(report.bill.wear.0, 3000);
    assert_eq!(report, run(&world, &recording), "equal recordings have equal outcomes");
}

#[test]
fn nobody_sees_a_point_before_its_time() {
    let world = world(&format!("policy aim=save\n{TWO_HOSTS}"));
    let calm: &[(f64, usize)] = &[(0.3, 200)];
    let (quiet, rising) =
        (recording(&[("a", calm), ("b", calm)]), recording(&[("a", &[(0.3, 100), (2.0, 100)]), ("b", calm)]));
    let (mut one, mut other) = (Replay::new(&world, &quiet), Replay::new(&world, &rising));
    for _ in 0..100 {
        assert!(one.step() && other.step());
        assert_eq!(one.report(), other.report());
    }
}

#[test]
fn a_vm_that_comes_back_is_counted() {
    let mut world = world(&format!("policy aim=save return_after_ms=0 vm_cooldown_ms=0 settle_ms=1000\n{TWO_HOSTS}"));
    let left: HostId = "h2".parse().unwrap();
    let a: VmId = "a".parse().unwrap();
    world.vms.get_mut(&a).unwrap().left = vec![(TimeMs(world.now.0 - 900_000), left.clone())];
    // h1 can't be kept on: a must go back to h2.
    world.hosts.get_mut(&"h1".parse().unwrap()).unwrap().maintenance = true;
    let report = run(&world, &recording(&[("a", &[(0.3, 60)]), ("b", &[(0.3, 60)])]));
    assert_eq!(report.moves.len(), 1, "{:?}", report.moves);
    let after = report.moves[0].returned_after.unwrap();
    assert!((900..960).contains(&(after.0 / 1000)), "{after}");
    assert_eq!(report.returns(), 1);
}

#[test]
fn evidence_counted_in_seconds_is_counted_in_steps() {
    let policy = Policy { aim: Aim::Auto, ..Policy::default() };
    assert_eq!(at_pace(&policy, Millis::secs(1)), policy);
    let slow = at_pace(&policy, Millis::secs(300));
    assert_eq!((slow.hot_evidence.k, slow.hot_evidence.n), (2, 3));
    assert_eq!((slow.cold_evidence.k, slow.cold_evidence.n), (3, 3));
    assert_eq!((slow.forecast_ahead, slow.aim), (Millis::secs(300), Aim::Auto));
    assert_eq!((at_pace(&policy, Millis::secs(10)).cold_evidence.k, slow.check()), (5, Ok(())));
}

const CSV: &str = "time,vm,cpu_millis,memory_mib\n100,a,500,64\n100,b,10,\n110,a,700,65\n130,a,900,60\n";

#[test]
fn records_are_put_into_steps() {
    let recording = Recording::from_csv(CSV, None).unwrap();
    assert_eq!((recording.start, recording.step, recording.len()), (TimeMs(100_000), Millis::secs(10), 4));
    let point = |vm: &str, step| recording.point(&vm.parse().unwrap(), step).map(|p| (p.cpu.0, p.memory.0 >> 20));
    assert_eq!([0, 1, 2, 3].map(|n| point("a", n)), [Some((500, 64)), Some((700, 65)), None, Some((900, 60))]);
    assert_eq!((point("b", 0), point("b", 1)), (Some((10, 0)), None));
    let coarse = Recording::from_csv(CSV, Some(Millis::secs(20))).unwrap();
    let point = coarse.point(&"a".parse().unwrap(), 0).unwrap();
    assert_eq!((point.cpu.0, point.memory, coarse.len()), (600, Bytes::mib(65), 2), "mean, and the larger memory");
}

#[test]
fn rows_of_percents_are_read_and_vms_made_up_from_them() {
    let text = "Node_1.example,50,150,10\nnode-1-example,5,5,5\n";
    let recording = Recording::from_rows(text, Millis::secs(300)).unwrap();
    let ids: Vec<&str> = recording.vms.keys().map(VmId::as_str).collect();
    assert_eq!(ids, ["node-1-example", "node-1-example-2"]);
    let mut world = world("host h1 cpu=4 mem=1536\nhost h2 cpu=4 mem=1100\nhost h3 cpu=4 mem=9999 drained");
    recording.inhabit(&mut world).unwrap();
    let vms: Vec<_> = world.vms.values().map(|vm| (vm.vcpus, vm.host.as_ref().unwrap().as_str())).collect();
    assert_eq!(vms, [(2, "h1"), (1, "h2")], "as large as they got, and where memory is free");
    assert_eq!(recording.point(&"node-1-example".parse().unwrap(), 1).unwrap().cpu.0, 1500);
}

#[test]
fn what_can_not_be_replayed_is_said() {
    let csv = |from: &str, to: &str| Recording::from_csv(&CSV.replace(from, to), None).unwrap_err().to_string();
    assert!(csv("time,", "when,").starts_with("line 1: \"when,vm,"), "{}", csv("time,", "when,"));
    assert!(csv("110,a,700,65", "110,a,700").starts_with("line 4: \"110,a,700\", but expected four fields"));
    assert!(csv("110,a", "noon,a").starts_with("line 4: \"noon\", but expected seconds since 1970"));
    assert!(csv("110,a", "110,A").starts_with("line 4: \"A\", but expected the id of a vm"));
    assert!(csv("700", "-1").starts_with("line 4: \"-1\", but expected processor demand"));
    assert!(csv("110,a", "99999999999,a").contains("but expected a longer step"), "no room for so many");
    assert!(Recording::from_csv("time,vm,cpu_millis,memory_mib\n", None).is_err());
    let rows = |text: &str| Recording::from_rows(text, Millis::secs(300)).unwrap_err().to_string();
    assert!(
        rows("a,1\nb,x\n").starts_with("line 2: \"x\", but expected a name, then percents"),
        "{}",
        rows("a,1\nb,x\n")
    );
    assert!(rows("_,1\n").contains("a name with a letter"), "{}", rows("_,1\n"));
    assert!(rows("").starts_with("line 1") && rows("a\n").starts_with("line 1"));
    let recording = Recording::from_csv(CSV, None).unwrap();
    let stranger = recording.inhabit(&mut world(TWO_HOSTS.replace("vm b", "vm c").as_str())).unwrap_err();
    assert_eq!(stranger, Stranger::Vm { vm: "b".parse().unwrap() });
    let none = recording.inhabit(&mut world("host h1 cpu=4 mem=64")).unwrap_err();
    assert!(matches!(none, Stranger::NoRoom { .. }), "{none}");
}

#[test]
fn a_chart_shows_every_policy_with_axes_and_units() {
    let world = world(TWO_HOSTS);
    let report = run(&world, &recording(&[("a", &[(1.0, 7200)]), ("b", &[(0.5, 7200)])]));
    let svg = chart(&[("balance".to_owned(), report.clone()), ("a<b & \"c\"".to_owned(), report)]);
    for part in ["Hosts on", "Cores: wanted", ">balance: ", ">a&lt;b &amp; ", ">h<", ">2<", "prefers-color-scheme:dark"]
    {
        assert!(svg.contains(part), "{part} is missing in {svg}");
    }
    assert_eq!(svg.matches("class=\"line\"").count(), 2 + 2 * 2, "legend, and a line in each panel");
    assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
    assert!(svg.len() < 20_000, "what stays level takes no room: {}", svg.len());
    assert!(!chart(&[]).contains("NaN") && !svg.contains("NaN"));
}

#[test]
fn no_more_moves_go_at_once_than_the_policy_allows() {
    let drained = "host h1 cpu=8 mem=8192 drained\nhost h2 cpu=8 mem=8192\nhost h3 cpu=8 mem=8192\n";
    let vms: String = (0..6).map(|n| format!("vm v{n} vcpus=1 mem=1024 on=h1\n")).collect();
    let load: &[(f64, usize)] = &[(0.3, 300)];
    let recording = recording(&["v0", "v1", "v2", "v3", "v4", "v5"].map(|vm| (vm, load)));
    let most_at_once = |policy: &str| {
        let report = run(&world(&format!("policy {policy}\n{drained}{vms}")), &recording);
        assert_eq!(report.moves.len(), 6, "{:?}", report.objection);
        let under_way = |at: TimeMs| report.moves.iter().filter(|m| m.started <= at && at < m.ended).count();
        report.moves.iter().map(|done| under_way(done.started)).max().unwrap()
    };
    assert_eq!(most_at_once("migrations_at_once_max=1"), 1);
    assert_eq!(most_at_once("migrations_at_once_max=6 migrations_per_host_max=2"), 2);
    assert_eq!(most_at_once("migrations_at_once_max=3 migrations_per_host_max=6"), 3);
}
