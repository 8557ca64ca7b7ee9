//! Agents that were away while their vms moved.

use super::*;

#[tokio::test]
async fn both_agents_die_at_the_switch_over_and_their_successors_finish_it() {
    let lab = Lab::new(COUNTER);
    let (mut source, mut destination) = lab.at_switch_over().await;
    source.kill_agent().await;
    destination.kill_agent().await;
    source.start_agent().await;
    destination.start_agent().await;
    assert_eq!(source.inventory().unwrap().state, outgoing(OutgoingPhase::AtSwitchOver));
    assert_eq!(destination.inventory().unwrap().state, VmState::Incoming { migration: MIGRATION });
    assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
    source.until_state(&VmState::HandedOver { migration: MIGRATION }).await;
    destination.until_state(&VmState::Running).await;
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_recorded_commit_is_carried_out_by_the_next_agent() {
    let lab = Lab::new(COUNTER);
    let (mut source, destination) = lab.at_switch_over().await;
    source.kill_agent().await;
    // The moment between the record of the commit and QEMU hearing of it.
    let mut record = source.record();
    let Role::Send { step, .. } = &mut record.role else { panic!("{record:?}") };
    *step = SendStep::Committed;
    source.dir().save(&record).unwrap();
    source.start_agent().await;
    source.until_state(&VmState::HandedOver { migration: MIGRATION }).await;
    destination.until_state(&VmState::Running).await;
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_vm_handed_over_to_a_host_that_was_lost_is_taken_back_at_a_newer_generation() {
    let lab = Lab::new(COUNTER);
    let (mut source, destination) = lab.pair().await;
    let mut told = source.agent().updates();
    let target = destination.prepare(2).await;
    assert_eq!(source.migrate_out(1, target, policy()).await, Ok(CommandOutcome::Done));
    assert!(matches!(significant(&mut told).await, MigrationUpdate::AtSwitchOver { .. }));
    assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
    assert!(matches!(significant(&mut told).await, MigrationUpdate::HandedOver { .. }));
    destination.until_state(&VmState::Running).await;
    assert_eq!(destination.release_keeping_disk(2).await, Ok(CommandOutcome::Done));
    // The agent restarts in between: what was handed over is known from QEMU and the record.
    source.kill_agent().await;
    source.start_agent().await;
    assert_eq!(source.inventory().unwrap().state, VmState::HandedOver { migration: MIGRATION });
    let take_back =
        |generation| Command::TakeBack { vm: lab.vm.clone(), generation: Generation(generation), migration: MIGRATION };
    assert_eq!(source.tell(take_back(1)).await, Err(CommandRefusal::Conflict));
    for _ in 0..2 {
        assert_eq!(source.tell(take_back(3)).await, Ok(CommandOutcome::Done));
    }
    let seen = source.inventory().unwrap();
    assert_eq!((seen.state, seen.generation), (VmState::Running, Generation(3)));
    source.assert_runs_on().await;
}

#[tokio::test]
async fn a_vm_handed_over_whose_qemu_ends_has_failed_whoever_watched() {
    /// What the source's agent does meanwhile.
    #[derive(Debug)]
    enum Agent {
        Watches,
        AdoptedIt,
        Sleeps,
    }
    for agent in [Agent::Watches, Agent::AdoptedIt, Agent::Sleeps] {
        let lab = Lab::new(COUNTER);
        let (mut source, destination) = lab.at_switch_over().await;
        assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
        source.until_state(&VmState::HandedOver { migration: MIGRATION }).await;
        let pid = source.pid();
        if !matches!(agent, Agent::Watches) {
            source.kill_agent().await;
        }
        if matches!(agent, Agent::AdoptedIt) {
            source.start_agent().await;
            assert_eq!(source.inventory().unwrap().state, VmState::HandedOver { migration: MIGRATION });
        }
        assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
        if matches!(agent, Agent::Sleeps) {
            until("QEMU ends", || !exists(pid)).await;
            source.start_agent().await;
        }
        let failed = |state: &VmState| matches!(state, VmState::Failed { why } if why.contains("handed over"));
        source.until_inventory(&format!("failed, while the agent {agent:?}"), failed).await;
        assert_eq!(source.inventory().unwrap().pid, None);
        let take_back = Command::TakeBack { vm: lab.vm.clone(), generation: Generation(3), migration: MIGRATION };
        let refused = source.tell(take_back).await;
        assert!(matches!(refused, Err(CommandRefusal::WrongState { .. })), "{refused:?}");
        destination.assert_runs_on().await;
    }
}

#[tokio::test]
async fn a_cancel_does_not_end_a_guest_that_ran_before_its_agent_saw_it() {
    let lab = Lab::new(COUNTER);
    let (source, mut destination) = lab.at_switch_over().await;
    destination.kill_agent().await;
    assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
    source.until_state(&VmState::HandedOver { migration: MIGRATION }).await;
    destination.assert_runs_on().await;

    let mut task = destination.task_that_sees(VmState::Incoming { migration: MIGRATION }).await;
    let (reply, answer) = oneshot::channel();
    task.cancel_migration(reply).await;
    assert_eq!(answer.await.unwrap(), Err(CommandRefusal::WrongState { state: "running".to_owned() }));
    assert_eq!(task.known.as_ref().map(|(_, state)| state), Some(&VmState::Running));
    assert_eq!(destination.record().arrived_by, Some(MIGRATION));
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_guest_that_an_unfinished_cancel_forbade_to_run_runs_once_it_has_arrived() {
    for agent_returns_first in [true, false] {
        let lab = Lab::new(COUNTER);
        let (source, mut destination) = lab.at_switch_over().await;
        destination.kill_agent().await;
        // The moment between forbidding it and looking.
        let machine = Machine::attach(&destination.dir().qmp_socket()).await.unwrap();
        machine.stop().await.unwrap();
        drop(machine);
        if agent_returns_first {
            destination.start_agent().await;
            assert_eq!(destination.inventory().unwrap().state, VmState::Incoming { migration: MIGRATION });
        }
        assert_eq!(source.commit(2).await, Ok(CommandOutcome::Done));
        source.until_state(&VmState::HandedOver { migration: MIGRATION }).await;
        if !agent_returns_first {
            destination.start_agent().await;
        }
        destination.until_state(&VmState::Running).await;
        assert_eq!(destination.record().arrived_by, Some(MIGRATION));
        destination.assert_runs_on().await;
    }
}
