//! A vm moves by post-copy: it runs at the destination before its memory is all there.

use super::*;
use drover_model::migration::{Method, Pace};

const POST_COPY: Strategy = Strategy { method: Method::PostCopy, ..Strategy::PRE_COPY };
/// The guest's 30 MiB take a few seconds, and it writes all of them some thousand times a second.
const SLOW: Pace = Pace { min: Bytes::ZERO, max: Bytes::mib(6), paused: false };
const UNLIMITED: Pace = Pace { min: Bytes::ZERO, max: Bytes::ZERO, paused: false };
const COMPLETING: VmState = VmState::Completing { migration: MIGRATION, stalled: false };
const STALLED: VmState = VmState::Completing { migration: MIGRATION, stalled: true };

impl Lab {
    /// A vm whose guest runs at the second host, most of its memory being still at the first.
    async fn in_post_copy(pace: Pace) -> (Self, LabHost, LabHost) {
        let lab = Self::moving(REWRITES_MEMORY, Strategy { pace, ..POST_COPY });
        let (source, destination) = lab.at_switch_over().await;
        assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
        source.until_state(&outgoing(OutgoingPhase::PostCopy)).await;
        destination.until_state(&COMPLETING).await;
        (lab, source, destination)
    }

    /// The same, its connection broken.
    async fn stalled() -> (Self, LabHost, LabHost) {
        let (lab, source, destination) = Self::in_post_copy(SLOW).await;
        source.machine().qmp().execute("migrate-pause", serde_json::Value::Null).await.unwrap();
        source.until_state(&outgoing(OutgoingPhase::PostCopyPaused)).await;
        destination.until_state(&STALLED).await;
        (lab, source, destination)
    }
}

impl LabHost {
    fn machine(&self) -> Machine {
        let vms = self.agent().shared.vms();
        vms[&self.vm].seen.borrow().process.as_ref().expect("a QEMU that answers").machine.clone()
    }

    async fn recover_incoming(&self) -> MigrationTarget {
        let (vm, generation) = (self.vm.clone(), Generation(2));
        match self.tell(Command::RecoverIncoming { vm, generation, migration: MIGRATION }).await {
            Ok(CommandOutcome::Listening { target }) => target,
            other => panic!("{other:?}"),
        }
    }

    async fn recover_outgoing(&self, target: MigrationTarget) -> Answer {
        let (vm, generation) = (self.vm.clone(), Generation(2));
        self.tell(Command::RecoverOutgoing { vm, generation, migration: MIGRATION, target }).await
    }

    async fn adjust(&self, pace: Pace) -> Answer {
        self.tell(Command::AdjustMigration { vm: self.vm.clone(), migration: MIGRATION, pace }).await
    }

    async fn take_back(&self, generation: u64) -> Answer {
        let (vm, generation) = (self.vm.clone(), Generation(generation));
        self.tell(Command::TakeBack { vm, generation, migration: MIGRATION }).await
    }
}

/// All of the memory comes, and it is whole.
async fn assert_completes(source: &LabHost, destination: &LabHost) {
    assert_eq!(source.adjust(UNLIMITED).await, Ok(CommandOutcome::Done));
    source.until_state(&VmState::HandedOver { migration: MIGRATION }).await;
    destination.until_state(&VmState::Running).await;
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_guest_that_outpaces_its_link_runs_there_first_and_is_whole_afterwards() {
    let lab = Lab::moving(REWRITES_MEMORY, Strategy { pace: SLOW, ..POST_COPY });
    let (source, destination) = lab.at_switch_over().await;
    let (mut told, mut arrived) = (source.agent().updates(), destination.agent().updates());
    assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
    source.until_state(&outgoing(OutgoingPhase::PostCopy)).await;
    destination.until_state(&COMPLETING).await;
    assert!(matches!(source.take_back(3).await, Err(CommandRefusal::WrongState { .. })));
    assert_eq!(source.adjust(UNLIMITED).await, Ok(CommandOutcome::Done));
    let MigrationUpdate::HandedOver { report } = significant(&mut told).await else { panic!("not handed over") };
    assert!(report.post_copied > Bytes::ZERO && report.in_use >= Bytes::mib(30), "{report:?}");
    let MigrationUpdate::Running { .. } = significant(&mut arrived).await else { panic!("not arrived") };
    let seen = destination.inventory().unwrap();
    assert_eq!((seen.state, seen.generation), (VmState::Running, Generation(2)));
    destination.assert_runs_on().await;
    // What is left at the source is no guest, and nobody is let believe it.
    let Err(CommandRefusal::Failed { why }) = source.take_back(3).await else { panic!("taken back") };
    assert!(why.contains("post-copy"), "{why}");
    assert_eq!(source.release_keeping_disk(2).await, Ok(CommandOutcome::Done));
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn agents_that_die_in_post_copy_are_succeeded_by_ones_that_finish_it() {
    let (_lab, mut source, mut destination) = Lab::in_post_copy(SLOW).await;
    source.kill_agent().await;
    destination.kill_agent().await;
    source.start_agent().await;
    destination.start_agent().await;
    assert_eq!(source.inventory().unwrap().state, outgoing(OutgoingPhase::PostCopy));
    assert_eq!(destination.inventory().unwrap().state, COMPLETING);
    assert_completes(&source, &destination).await;
    // Known from the record, too, once QEMU has nothing more to say.
    source.kill_agent().await;
    source.start_agent().await;
    assert_eq!(source.inventory().unwrap().state, VmState::HandedOver { migration: MIGRATION });
    assert!(matches!(source.take_back(3).await, Err(CommandRefusal::Failed { .. })));
}

#[tokio::test]
async fn a_post_copy_whose_connection_broke_is_connected_anew() {
    let (_lab, source, destination) = Lab::in_post_copy(SLOW).await;
    let (mut told, mut arrived) = (source.agent().updates(), destination.agent().updates());
    source.machine().qmp().execute("migrate-pause", serde_json::Value::Null).await.unwrap();
    assert!(matches!(significant(&mut told).await, MigrationUpdate::Stalled { .. }));
    assert!(matches!(significant(&mut arrived).await, MigrationUpdate::Stalled { .. }));
    assert_eq!(source.inventory().unwrap().state, outgoing(OutgoingPhase::PostCopyPaused));
    assert_eq!(destination.inventory().unwrap().state, STALLED);
    assert!(matches!(source.take_back(3).await, Err(CommandRefusal::WrongState { .. })));

    let nowhere = MigrationTarget { port: 1, ..destination.recover_incoming().await };
    let refused = source.recover_outgoing(nowhere).await;
    assert!(matches!(refused, Err(CommandRefusal::Failed { .. })), "{refused:?}");
    let target = destination.recover_incoming().await;
    assert_eq!(destination.recover_incoming().await, target, "it listens already");
    assert_eq!(source.recover_outgoing(target).await, Ok(CommandOutcome::Done));
    source.until_state(&outgoing(OutgoingPhase::PostCopy)).await;
    destination.until_state(&COMPLETING).await;
    for host in [&source, &destination] {
        assert_eq!(host.agent().last_updates(), [], "a stall that is over is not told again");
    }
    assert_completes(&source, &destination).await;
}

#[tokio::test]
async fn a_stalled_post_copy_is_recovered_by_agents_that_did_not_see_it_begin() {
    let (_lab, mut source, mut destination) = Lab::stalled().await;
    source.kill_agent().await;
    destination.kill_agent().await;
    source.start_agent().await;
    destination.start_agent().await;
    assert_eq!(source.inventory().unwrap().state, outgoing(OutgoingPhase::PostCopyPaused));
    assert_eq!(destination.inventory().unwrap().state, STALLED);
    // One that listens and is asked by an agent that knows of no port listens anew.
    let first = destination.recover_incoming().await;
    destination.kill_agent().await;
    destination.start_agent().await;
    assert_eq!(destination.inventory().unwrap().state, STALLED);
    let target = destination.recover_incoming().await;
    assert_ne!(target.port, first.port);
    assert_eq!(source.recover_outgoing(target).await, Ok(CommandOutcome::Done));
    destination.until_state(&COMPLETING).await;
    assert_completes(&source, &destination).await;
}

#[tokio::test]
async fn a_guest_whose_memory_is_lost_is_started_anew_only_when_told_so() {
    let (_lab, source, destination) = Lab::in_post_copy(SLOW).await;
    let (before, sent) = (destination.pid(), source.pid());
    assert!(std::process::Command::new("kill").args(["-9", &sent.to_string()]).status().unwrap().success());
    let failed = |state: &VmState| matches!(state, VmState::Failed { why } if why.contains("post-copy"));
    source.until_inventory("failed", failed).await;
    destination.until_state(&STALLED).await;
    assert_eq!(destination.run(2).await, Ok(CommandOutcome::Done), "it is what was told before");
    assert_eq!(destination.pid(), before);
    assert_eq!(destination.run(3).await, Ok(CommandOutcome::Done));
    destination.until_state(&VmState::Running).await;
    assert_ne!(destination.pid(), before);
    assert!(!exists(before));
    destination.assert_runs_on().await;
    assert_eq!(source.release_keeping_disk(3).await, Ok(CommandOutcome::Done));
}

#[tokio::test]
async fn a_destination_that_dies_stalled_has_failed_and_one_that_is_released_is_gone() {
    let (_lab, _source, destination) = Lab::stalled().await;
    let pid = destination.pid();
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let failed = |state: &VmState| matches!(state, VmState::Failed { why } if why.contains("memory"));
    destination.until_inventory("failed", failed).await;

    let (_lab, source, destination) = Lab::stalled().await;
    let (sent, received) = (source.pid(), destination.pid());
    assert_eq!(destination.release_keeping_disk(3).await, Ok(CommandOutcome::Done));
    assert_eq!(source.release_keeping_disk(3).await, Ok(CommandOutcome::Done));
    assert!(!exists(sent) && !exists(received));
    assert!(source.inventory().is_none() && destination.inventory().is_none());
}
