//! Many migrations at once: turns, shares, holding, evacuation, and vms whose moves keep failing.

use crate::scene::*;
use drover_control::interface::{Action, RefusalKind};
use drover_model::migration::{Interval, MigrationPhase, Priority};
use drover_model::policy::Mode;
use drover_model::{Bytes, HostId, MigrationId, Millis, TimeMs, VmId};
use drover_sim::{Cluster, Phase, host_id};

const SLOW: Bytes = Bytes::mib(50);

fn queue(scene: &mut Scene, at_once: u32) {
    scene.policy(|policy| {
        policy.mode = Mode::Observe;
        policy.migrations_at_once_max = at_once;
        policy.migration.per_host_max = at_once.min(4);
    });
}

fn began(cluster: &Cluster, id: MigrationId) -> Option<TimeMs> {
    let record = cluster.control()?.migration(id)?;
    (record.phase != MigrationPhase::Queued).then_some(record.started_at)
}

fn vms(scene: &mut Scene, on: &HostId, count: usize) -> Vec<VmId> {
    (0..count).map(|_| scene.free_vm(on, 0.1)).collect()
}

#[test]
fn migrations_beyond_the_limit_wait_for_their_turn_by_priority_then_age() {
    let mut scene = Scene::new(3);
    queue(&mut scene, 1);
    let vms = vms(&mut scene, &host_id(0), 4);
    scene.cluster.set_link(SLOW, false);
    let ids: Vec<MigrationId> = vms.iter().map(|vm| scene.migrate(vm, &host_id(1))).collect();
    assert_eq!(scene.phase(ids[0]), Some(MigrationPhase::Reserved), "the first begins at once");
    for id in &ids[1..] {
        assert_eq!(scene.phase(*id), Some(MigrationPhase::Queued));
        let outlook = scene.cluster.control().unwrap().migration_outlook(*id).unwrap();
        assert!(outlook.waits_for.is_some() && outlook.finish_at > outlook.start_at, "{outlook:?}");
    }
    scene.ask(Action::PrioritiseMigration { id: ids[3], priority: Priority::High }).unwrap();
    scene.ask(Action::CancelMigration { id: ids[2] }).unwrap();
    assert!(matches!(scene.phase(ids[2]), Some(MigrationPhase::Cancelled { .. })), "what has not begun ends at once");
    scene.wait("all are there", all_over);
    let began: Vec<_> = [ids[0], ids[3], ids[1]].iter().map(|id| began(&scene.cluster, *id).unwrap()).collect();
    assert!(began.is_sorted(), "{began:?}");
}

#[test]
fn a_queue_outlives_the_server() {
    let mut scene = Scene::new(2);
    queue(&mut scene, 1);
    let vms = vms(&mut scene, &host_id(0), 3);
    scene.cluster.set_link(SLOW, false);
    let ids: Vec<MigrationId> = vms.iter().map(|vm| scene.migrate(vm, &host_id(1))).collect();
    scene.wait("the copy", |cluster| cluster.sending(&vms[0]) == Some(Phase::PreCopy));
    scene.cluster.kill_server(2_000);
    scene.wait("the server is back", |cluster| cluster.control().is_some());
    scene.settle();
    for id in ids {
        assert_eq!(scene.phase(id), Some(MigrationPhase::Done));
    }
}

#[test]
fn what_is_held_sends_nothing_and_goes_on_where_it_was() {
    let mut scene = Scene::new(2);
    queue(&mut scene, 1);
    let vms = vms(&mut scene, &host_id(0), 2);
    scene.cluster.set_link(SLOW, false);
    let ids: Vec<MigrationId> = vms.iter().map(|vm| scene.migrate(vm, &host_id(1))).collect();
    scene.ask(Action::HoldMigration { id: ids[1], held: true }).unwrap();
    scene.wait("the copy", |cluster| cluster.sending(&vms[0]) == Some(Phase::PreCopy));
    scene.ask(Action::HoldMigration { id: ids[0], held: true }).unwrap();
    let sent = |scene: &Scene| scene.cluster.control().unwrap().migration_progress(ids[0]).unwrap().transferred;
    scene.cluster.pass(Millis::secs(5)).unwrap();
    let before = sent(&scene);
    // Longer than any copy may take: the time that it is held does not count.
    scene.cluster.pass(Millis::secs(300)).unwrap();
    assert!(sent(&scene).0 - before.0 < Bytes::mib(5).0, "{before} and now {}", sent(&scene));
    assert_eq!(scene.phase(ids[0]), Some(MigrationPhase::PreCopy));
    scene.ask(Action::HoldMigration { id: ids[0], held: false }).unwrap();
    scene.wait("it is there", |cluster| phase(cluster, ids[0]) == Some(MigrationPhase::Done));
    assert_eq!(scene.phase(ids[1]), Some(MigrationPhase::Queued), "the other one is still held");
    let over = scene.ask(Action::HoldMigration { id: ids[0], held: true }).unwrap_err();
    assert_eq!(over.kind, RefusalKind::Conflict);
    scene.ask(Action::HoldMigration { id: ids[1], held: false }).unwrap();
    scene.settle();
    assert_eq!(scene.phase(ids[1]), Some(MigrationPhase::Done));
}

#[test]
fn two_on_one_link_share_what_the_policy_allows_and_the_last_one_gets_it_all() {
    let mut scene = Scene::new(2);
    let budget = Bytes::mib(40);
    scene.policy(|policy| {
        policy.mode = Mode::Observe;
        policy.migrations_at_once_max = 4;
        policy.migration.per_host_max = 2;
        policy.migration.host_bandwidth_max = budget;
    });
    let vms = vms(&mut scene, &host_id(0), 2);
    let ids: Vec<MigrationId> = vms.iter().map(|vm| scene.migrate(vm, &host_id(1))).collect();
    for _ in 0..200 {
        scene.cluster.pass(Millis(500)).unwrap();
        let rate: u64 = vms.iter().filter_map(|vm| scene.cluster.sending_rate(vm)).map(|rate| rate.0).sum();
        let trace = || scene.cluster.trace().join("\n");
        assert!(rate <= budget.0 * 11 / 10, "{} on a link of {budget}\n{}", Bytes(rate), trace());
    }
    scene.settle();
    assert!(ids.iter().all(|id| scene.phase(*id) == Some(MigrationPhase::Done)));
}

#[test]
fn an_evacuation_says_how_far_it_is_and_keeps_its_word() {
    let mut scene = Scene::new(3);
    let drained = host_id(0);
    scene.policy(|policy| policy.mode = Mode::Observe);
    let count = vms(&mut scene, &drained, 5).len();
    scene.policy(|policy| policy.settle = Millis::secs(3));
    scene.cluster.set_link(SLOW, false);
    scene.ask(Action::DrainHost { host: drained.clone() }).unwrap();
    let standing = |cluster: &Cluster| cluster.control().and_then(|control| control.evacuation(&drained).cloned());
    scene.wait("an eta", |cluster| standing(cluster).is_some_and(|e| e.eta_at.is_some()));
    let first = standing(&scene.cluster).unwrap();
    assert_eq!((first.total, first.done + first.moving + first.waiting), (count, count), "{first:?}");
    scene.wait("it is empty", |cluster| standing(cluster).is_some_and(|e| e.finished_at.is_some()));
    let last = standing(&scene.cluster).unwrap();
    assert_eq!((last.done, last.moving, last.waiting), (count, 0, 0), "{last:?}");
    let (promised, took) = (first.eta_at.unwrap().since(first.since), last.finished_at.unwrap().since(last.since));
    assert!(
        took.0 <= promised.0 * 3 / 2 || scene.told("evacuation-slips"),
        "{promised} promised, {took} taken, silently"
    );
    assert!(scene.told("evacuation-done"));
}

#[test]
fn a_vm_whose_moves_keep_failing_is_left_alone_for_longer_each_time() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    scene.policy(|policy| {
        policy.settle = Millis::secs(1);
        policy.migration.post_copy = false;
    });
    // Every copy is hopeless.
    scene.cluster.set_link(SLOW, true);
    scene.ask(Action::DrainHost { host: from.clone() }).unwrap();
    scene.cluster.pass(Millis::secs(900)).unwrap();
    let control = scene.cluster.control().unwrap();
    let starts: Vec<TimeMs> =
        control.migrations().filter(|m| m.vm == vm && m.plan.is_some()).map(|m| m.started_at).collect();
    assert!((3..=8).contains(&starts.len()), "{} tries in fifteen minutes", starts.len());
    let gaps: Vec<u64> = starts.windows(2).map(|pair| pair[1].since(pair[0]).0).collect();
    assert!(gaps.is_sorted(), "{gaps:?}");
    let operator =
        drover_control::interface::Actor { name: "operator".to_owned(), role: drover_model::intent::Role::Operator };
    let said = control.explain(&format!("vm/{vm}"), &operator, scene.cluster.now()).unwrap();
    assert!(said.because.iter().any(|line| line.contains("left alone")), "{:?}", said.because);
    // A person is not bound by it.
    scene.cluster.set_link(SLOW, false);
    scene.ask(Action::UndrainHost { host: from.clone() }).unwrap();
    scene.policy(|policy| policy.mode = Mode::Observe);
    let id = scene.migrate(&vm, &to);
    scene.wait("it is there", |cluster| phase(cluster, id) == Some(MigrationPhase::Done));
}

#[test]
fn a_forecast_changes_nothing_and_comes_true() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    scene.cluster.set_link(SLOW, false);
    let revision = |scene: &Scene| scene.cluster.control().unwrap().revision();
    let before = revision(&scene);
    let forecast = |scene: &Scene| {
        scene.cluster.control().unwrap().forecast_migration(scene.cluster.now(), &vm, Some(to.clone()), None).unwrap()
    };
    let first = forecast(&scene);
    assert!(first.forbidden.is_empty() && first.waits_for.is_none(), "{first:?}");
    assert_eq!(revision(&scene), before);
    // There and back: what the link carries is learned, and outlives the server.
    for host in [&to, &from, &to, &from, &to, &from] {
        let id = scene.migrate(&vm, host);
        scene.wait("it is there", |cluster| phase(cluster, id) == Some(MigrationPhase::Done));
        scene.wait("it is seen there", |cluster| runs_on(cluster, &vm, host));
    }
    let learned = forecast(&scene);
    scene.cluster.kill_server(1_000);
    scene.wait("the server is back", |cluster| cluster.control().is_some() && seen_running(cluster, &vm));
    scene.cluster.pass(Millis::secs(5)).unwrap();
    assert_eq!(forecast(&scene).choice.prediction.total, learned.choice.prediction.total, "what was learned is kept");
    let id = scene.migrate(&vm, &to);
    scene.wait("it is there", |cluster| phase(cluster, id) == Some(MigrationPhase::Done));
    let took = scene.cluster.control().unwrap().migration(id).unwrap().report.unwrap().total;
    // The guest writes at up to 0.6 of what the link carries, drawn anew for each move: the interval knows.
    let Interval { low, expected, high } = learned.choice.prediction.total;
    assert!(low <= took && took <= high, "{low} to {high} expected, {took} taken");
    let off = |expected: Millis| (took.0 as f64 / expected.0 as f64).ln().abs();
    assert!(off(expected) < off(first.choice.prediction.total.expected), "nothing was learned");
    assert!(high.0 < 4 * low.0, "{low} to {high} says nothing");
    let drained = scene.ask(Action::DrainHost { host: from.clone() });
    assert!(drained.is_ok());
    let refused = scene.cluster.control().unwrap();
    let refused = refused.forecast_migration(scene.cluster.now(), &vm, Some(from.clone()), None).unwrap();
    assert!(refused.forbidden.iter().any(|why| why.contains("drain")), "{:?}", refused.forbidden);
}
