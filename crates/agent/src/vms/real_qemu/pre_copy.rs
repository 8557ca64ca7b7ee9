//! A vm moves by pre-copy, or does not after all.

use super::*;

#[tokio::test]
async fn a_committed_vm_runs_at_the_destination_and_the_source_lets_go() {
    let lab = Lab::new(COUNTER);
    let (source, destination) = lab.pair().await;
    let (mut told, mut arrived) = (source.agent().updates(), destination.agent().updates());
    let target = destination.prepare(2).await;
    assert_eq!(destination.prepare(2).await, target, "the same answer to the same command");
    assert_eq!(source.migrate_out(1, target.clone(), policy()).await, Ok(CommandOutcome::Done));
    let MigrationUpdate::AtSwitchOver { stopped_at } = significant(&mut told).await else { panic!("no switch-over") };
    assert_eq!(source.inventory().unwrap().state, outgoing(OutgoingPhase::AtSwitchOver));

    assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
    let MigrationUpdate::HandedOver { report } = significant(&mut told).await else { panic!("not handed over") };
    let MigrationUpdate::Running { at } = significant(&mut arrived).await else { panic!("not arrived") };
    assert!(at >= stopped_at, "{at:?} {stopped_at:?}");
    assert!(report.memory >= Bytes::mib(31) && report.transferred > Bytes::ZERO && report.rounds >= 1, "{report:?}");
    destination.assert_runs_on().await;
    let seen = destination.inventory().unwrap();
    assert_eq!((seen.state, seen.generation), (VmState::Running, Generation(2)));
    assert_eq!(source.inventory().unwrap().state, VmState::HandedOver { migration: MIGRATION });
    assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done), "twice is once");
    for host in [&source, &destination] {
        let refused = host.tell(lab.cancel()).await;
        assert!(matches!(refused, Err(CommandRefusal::WrongState { .. })), "{refused:?}");
    }
    let pid = source.pid();
    let release = Command::Release { vm: lab.vm.clone(), generation: Generation(2), delete_disk: false };
    assert_eq!(source.tell(release).await, Ok(CommandOutcome::Done));
    assert!(!exists(pid) && source.inventory().is_none());
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn without_a_commit_in_time_the_source_runs_on_and_the_destination_never_ran() {
    let lab = Lab::new(COUNTER);
    let (source, destination) = lab.pair().await;
    let (mut told, mut arrived) = (source.agent().updates(), destination.agent().updates());
    let target = destination.prepare(2).await;
    let hasty = MigrationPolicy { commit_wait_max: Millis(100), ..policy() };
    assert_eq!(source.migrate_out(1, target, hasty).await, Ok(CommandOutcome::Done));
    assert!(matches!(significant(&mut told).await, MigrationUpdate::AtSwitchOver { .. }));
    let MigrationUpdate::SourceResumed { why } = significant(&mut told).await else { panic!("not resumed") };
    assert!(why.contains("commit"), "{why}");
    assert!(matches!(significant(&mut arrived).await, MigrationUpdate::IncomingFailed { .. }));
    assert!(matches!(source.commit(2).await, Err(CommandRefusal::WrongState { .. })), "too late");
    source.until_state(&VmState::Running).await;
    source.assert_runs_on().await;
    assert_eq!(destination.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
    assert_eq!(destination.inventory(), None);
}

#[tokio::test]
async fn a_cancelled_migration_leaves_the_vm_where_it_was_and_nothing_at_the_destination() {
    let lab = Lab::new(COUNTER);
    let (source, destination) = lab.pair().await;
    let target = destination.prepare(2).await;
    // Slow enough to be cancelled while memory flows.
    let slow = MigrationPolicy { bandwidth_max: Bytes(100_000), downtime_max: Millis(1), ..policy() };
    assert_eq!(source.migrate_out(1, target, slow).await, Ok(CommandOutcome::Done));
    source.until_state(&outgoing(OutgoingPhase::PreCopy)).await;
    assert_eq!(source.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
    assert_eq!(source.inventory().unwrap().state, VmState::Running);
    source.assert_runs_on().await;
    // Its stream is broken and its QEMU ends: while it does, a cancel may be told to try again.
    let cancelled = async { while destination.tell(lab.cancel()).await != Ok(CommandOutcome::Done) {} };
    timeout(PATIENCE, cancelled).await.expect("the destination lets go");
    assert_eq!(destination.inventory(), None);
    assert_eq!(destination.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
    assert_eq!(source.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
}

#[tokio::test]
async fn a_cancel_ends_a_destination_that_has_not_received_everything() {
    let lab = Lab::new(COUNTER);
    let (source, destination) = lab.at_switch_over().await;
    let pid = destination.pid();
    assert_eq!(destination.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
    assert!(!exists(pid) && destination.inventory().is_none());
    assert_eq!(source.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
    source.until_state(&VmState::Running).await;
    source.assert_runs_on().await;
}

#[tokio::test]
async fn a_destination_that_dies_during_pre_copy_leaves_the_vm_at_the_source() {
    let lab = Lab::new(COUNTER);
    let (source, destination) = lab.pair().await;
    let (mut told, mut arrived) = (source.agent().updates(), destination.agent().updates());
    let target = destination.prepare(2).await;
    let slow = MigrationPolicy { bandwidth_max: Bytes(100_000), downtime_max: Millis(1), ..policy() };
    assert_eq!(source.migrate_out(1, target, slow).await, Ok(CommandOutcome::Done));
    let pid = destination.pid().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    assert!(matches!(significant(&mut arrived).await, MigrationUpdate::IncomingFailed { .. }));
    assert!(matches!(significant(&mut told).await, MigrationUpdate::SourceResumed { .. }));
    source.until_state(&VmState::Running).await;
    source.assert_runs_on().await;
    destination.until_inventory("incoming failed", |state| matches!(state, VmState::IncomingFailed { .. })).await;
}
