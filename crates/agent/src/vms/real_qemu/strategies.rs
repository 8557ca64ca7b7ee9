//! The ways to move that are asked for by name, and who may take part.

use super::*;
use drover_model::migration::{Method, Pace};

const HELD: Pace = Pace { min: Bytes::ZERO, max: Bytes::ZERO, paused: true };

impl Lab {
    async fn moves(&self) -> (LabHost, LabHost, MigrationUpdate) {
        let (source, destination) = self.at_switch_over().await;
        let mut told = source.agent().updates();
        assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
        let update = significant(&mut told).await;
        destination.until_state(&VmState::Running).await;
        destination.assert_runs_on().await;
        (source, destination, update)
    }

    /// A vm that is being sent, as slowly as can be.
    async fn held(&self) -> (LabHost, LabHost) {
        let (source, destination) = self.pair().await;
        let target = destination.prepare(2).await;
        assert_eq!(source.migrate_out(1, target, policy()).await, Ok(CommandOutcome::Done));
        source.until_state(&outgoing(OutgoingPhase::PreCopy)).await;
        (source, destination)
    }
}

impl LabHost {
    async fn pace(&self, pace: Pace) -> Answer {
        self.tell(Command::AdjustMigration { vm: self.vm.clone(), migration: MIGRATION, pace }).await
    }
}

#[tokio::test]
async fn a_guest_moves_in_every_way_there_is_and_its_memory_with_it() {
    for strategy in [
        Strategy { tls: false, ..Strategy::PRE_COPY },
        Strategy { method: Method::StopAndCopy, ..Strategy::PRE_COPY },
        Strategy { channels: 2, ..Strategy::PRE_COPY },
        Strategy { channels: 3, compress: true, tls: false, ..Strategy::PRE_COPY },
    ] {
        let lab = Lab::moving(COUNTER, strategy);
        let (_source, _destination, update) = lab.moves().await;
        assert!(matches!(update, MigrationUpdate::HandedOver { .. }), "{strategy:?}: {update:?}");
    }
}

#[tokio::test]
async fn only_the_source_that_was_announced_is_let_in() {
    let lab = Lab::new(COUNTER);
    let (source, destination) = lab.pair().await;
    let Ok(CommandOutcome::Listening { target }) = destination.prepare_from("h3", 2).await else { panic!("no target") };
    let mut told = source.agent().updates();
    let _ = source.migrate_out(1, target, policy()).await;
    let update = significant(&mut told).await;
    assert!(matches!(update, MigrationUpdate::SourceResumed { .. }), "{update:?}");
    source.until_state(&VmState::Running).await;
    source.assert_runs_on().await;
    assert!(!destination.printed().contains('.'));
}

#[tokio::test]
async fn a_destination_that_shows_another_name_is_sent_nothing() {
    let lab = Lab::new(COUNTER);
    let (source, destination) = lab.pair().await;
    let target = MigrationTarget { host: "h3".parse().unwrap(), ..destination.prepare(2).await };
    let mut told = source.agent().updates();
    let _ = source.migrate_out(1, target, policy()).await;
    let update = significant(&mut told).await;
    assert!(matches!(update, MigrationUpdate::SourceResumed { .. }), "{update:?}");
    source.until_state(&VmState::Running).await;
    source.assert_runs_on().await;
}

#[tokio::test]
async fn a_migration_that_is_held_waits_for_its_next_agent_too_and_can_be_cancelled() {
    let lab = Lab::moving(REWRITES_MEMORY, Strategy { pace: HELD, ..Strategy::PRE_COPY });
    let (mut source, destination) = lab.held().await;
    source.kill_agent().await;
    source.start_agent().await;
    assert_eq!(source.inventory().unwrap().state, outgoing(OutgoingPhase::PreCopy));
    assert_eq!(source.tell(lab.cancel()).await, Ok(CommandOutcome::Done));
    source.until_state(&VmState::Running).await;
    source.assert_runs_on().await;
    let failed = |state: &VmState| matches!(state, VmState::IncomingFailed { .. });
    destination.until_inventory("incoming failed", failed).await;
}

#[tokio::test]
async fn a_migration_that_was_held_and_let_go_on_moves_the_vm() {
    let lab = Lab::moving(COUNTER, Strategy { pace: HELD, ..Strategy::PRE_COPY });
    let (mut source, destination) = lab.held().await;
    let mut told = source.agent().updates();
    assert_eq!(source.pace(Pace::default()).await, Ok(CommandOutcome::Done));
    assert!(matches!(significant(&mut told).await, MigrationUpdate::AtSwitchOver { .. }));
    // The pace is remembered: the next agent does not hold it again.
    source.kill_agent().await;
    let Role::Send { strategy, .. } = source.record().role else { panic!("{:?}", source.record()) };
    assert_eq!(strategy.pace, Pace::default());
    source.start_agent().await;
    assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
    destination.until_state(&VmState::Running).await;
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_guest_that_pre_copy_cannot_move_stays_and_post_copy_is_called_for() {
    let pace = Pace { max: Bytes::mib(4), ..Pace::default() };
    let lab = Lab::moving(REWRITES_MEMORY, Strategy { pace, ..Strategy::PRE_COPY });
    let (source, destination) = lab.pair().await;
    let mut told = source.agent().updates();
    let target = destination.prepare(2).await;
    let brief = MigrationPolicy { downtime_max: Millis(100), total_max: Millis(120_000), ..policy() };
    assert_eq!(source.migrate_out(1, target, brief).await, Ok(CommandOutcome::Done));
    let told = timeout(4 * PATIENCE, significant(&mut told)).await.expect("a verdict");
    assert!(matches!(told, MigrationUpdate::WillNotConverge { .. }), "{told:?}");
    source.until_state(&VmState::Running).await;
    source.assert_runs_on().await;
}

#[tokio::test]
async fn what_a_destination_lacks_is_said_before_anything_starts_there() {
    let lab = Lab::new(COUNTER);
    let (_source, destination) = lab.pair().await;
    let disk = destination.shared_dir.join("images/img/disk");
    let content = std::fs::read(&disk).unwrap();
    std::fs::write(&disk, "not a disk").unwrap();
    let Err(CommandRefusal::Failed { why }) = destination.prepare_from("h1", 2).await else { panic!("prepared") };
    assert!(why.contains("images/img/disk is not a qcow2 disk"), "{why}");
    std::fs::write(&disk, content).unwrap();
    let mut abroad = destination.vm_run();
    abroad.nic = Some(Nic {
        network: "far".parse().unwrap(),
        mac: MAC.to_owned(),
        address: None,
        security_groups: BTreeSet::new(),
        bandwidth: Bandwidth::default(),
    });
    let (migration, from) = (MIGRATION, "h1".parse().unwrap());
    let (generation, strategy) = (Generation(2), lab.strategy);
    let prepared =
        destination.tell(Command::PrepareIncoming { run: abroad, generation, migration, from, strategy }).await;
    let Err(CommandRefusal::Failed { why }) = prepared else { panic!("{prepared:?}") };
    assert!(why.contains("network far"), "{why}");
    assert!(destination.inventory().is_none() && !destination.dir().pid_file().exists());
}
