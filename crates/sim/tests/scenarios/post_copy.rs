//! Guests that write faster than the link carries, and what becomes of their memory when a connection breaks.

use crate::scene::*;
use drover_control::interface::Action;
use drover_model::migration::{Method, MigrationPhase};
use drover_model::{Bytes, Millis};
use drover_sim::{Phase, host_id};

const SLOW: Bytes = Bytes::mib(100);

#[test]
fn pre_copy_that_would_not_end_becomes_post_copy_which_does() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    scene.cluster.set_link(SLOW, true);
    let memory = scene.cluster.incarnation(&vm);
    let first = scene.migrate_by(&vm, &to, Some(Method::PreCopy));
    scene.wait("it runs there", |cluster| runs_on(cluster, &vm, &to) && all_over(cluster));
    assert_eq!(scene.cluster.incarnation(&vm), memory);
    let control = scene.cluster.control().unwrap();
    let (one, two) = (control.migration(first).unwrap(), control.migration(first.next()).unwrap());
    assert!(matches!(&one.phase, MigrationPhase::Failed { why } if why.contains("post-copy")), "{:?}", one.phase);
    assert_eq!((two.strategy.method, &two.phase), (Method::PostCopy, &MigrationPhase::Done));
    assert!(two.reason.contains(&format!("migration {first}")), "{}", two.reason);
    assert!(two.report.unwrap().post_copied > Bytes::ZERO);
}

#[test]
fn pre_copy_that_would_not_end_says_what_would_help_where_post_copy_is_forbidden() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    scene.policy(|policy| {
        policy.mode = drover_model::policy::Mode::Observe;
        policy.migration.post_copy = false;
    });
    scene.cluster.set_link(SLOW, true);
    let refused = scene.ask(Action::MigrateVm { vm: vm.clone(), to: Some(to.clone()), method: Some(Method::PostCopy) });
    assert!(refused.unwrap_err().detail.contains("migration_post_copy"));
    let id = scene.migrate_by(&vm, &to, None);
    scene.wait("it gives up", |cluster| phase(cluster, id).is_some_and(|phase| phase.is_over()));
    let over = scene.phase(id);
    assert!(matches!(&over, Some(MigrationPhase::Failed { why }) if why.contains("migration_post_copy")), "{over:?}");
    assert!(runs_on(&scene.cluster, &vm, &from));
}

#[test]
fn a_post_copy_whose_link_returns_keeps_its_memory() {
    for away_ms in [500, 4_000, 40_000] {
        let mut scene = Scene::new(2);
        let (from, to) = (host_id(0), host_id(1));
        let vm = scene.free_vm(&from, 0.2);
        scene.cluster.set_link(SLOW, true);
        let memory = scene.cluster.incarnation(&vm);
        let id = scene.migrate_by(&vm, &to, Some(Method::PostCopy));
        scene.wait("it runs there", |cluster| cluster.sending(&vm) == Some(Phase::PostCopy));
        scene.cluster.sever(&vm, away_ms);
        scene.wait("it stalls", |cluster| {
            let control = cluster.control().unwrap();
            control.migration_stage(control.migration(id).unwrap()) == "stalled"
        });
        scene.settle();
        assert_eq!(scene.phase(id), Some(MigrationPhase::Done), "away for {away_ms} ms");
        assert_eq!(scene.cluster.incarnation(&vm), memory);
    }
}

#[test]
fn a_post_copy_whose_link_stays_away_is_started_anew_once_and_that_is_said() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    scene.cluster.set_link(SLOW, true);
    let memory = scene.cluster.incarnation(&vm).unwrap();
    let id = scene.migrate_by(&vm, &to, Some(Method::PostCopy));
    scene.wait("it runs there", |cluster| cluster.sending(&vm) == Some(Phase::PostCopy));
    scene.cluster.sever(&vm, 3_600_000);
    scene.settle();
    assert!(matches!(scene.phase(id), Some(MigrationPhase::Restarted { .. })), "{:?}", scene.phase(id));
    assert!(scene.told("vm-memory-lost"));
    assert!(runs_on(&scene.cluster, &vm, &to));
    assert_eq!(scene.cluster.incarnation(&vm), Some(memory + 1), "once");
}

#[test]
fn a_server_that_was_away_finds_a_stalled_post_copy_and_mends_it() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    scene.cluster.set_link(SLOW, true);
    let memory = scene.cluster.incarnation(&vm);
    let id = scene.migrate_by(&vm, &to, Some(Method::PostCopy));
    scene.wait("it runs there", |cluster| cluster.sending(&vm) == Some(Phase::PostCopy));
    scene.cluster.kill_server(20_000);
    scene.cluster.sever(&vm, 2_000);
    scene.cluster.pass(Millis::secs(10)).unwrap();
    assert_eq!(scene.cluster.sending(&vm), Some(Phase::PostCopyPaused));
    scene.settle();
    assert_eq!(scene.phase(id), Some(MigrationPhase::Done));
    assert_eq!(scene.cluster.incarnation(&vm), memory);
}

#[test]
fn a_source_that_falls_silent_during_post_copy_without_harm_costs_nothing() {
    let mut scene = Scene::new(2);
    let (from, to) = (host_id(0), host_id(1));
    let vm = scene.free_vm(&from, 0.2);
    scene.cluster.set_link(Bytes::mib(30), true);
    let memory = scene.cluster.incarnation(&vm);
    let id = scene.migrate_by(&vm, &to, Some(Method::PostCopy));
    scene.wait("it runs there", |cluster| cluster.sending(&vm) == Some(Phase::PostCopy));
    scene.cluster.kill_agent(&from, 60_000);
    scene.settle();
    assert_eq!(scene.phase(id), Some(MigrationPhase::Done), "its qemu sent on all the while");
    assert_eq!(scene.cluster.incarnation(&vm), memory);
}
