//! Real migrations between two QEMUs on this machine, and everything that may end one.

use crate::drive::{
    LIMITS, LOOPBACK, PLAIN, SHORT, SLOW, at_most, at_switch_over, closed_port, committed, cuttable_link, failed,
    in_background, incoming_end, listening, pre_copy,
};
use crate::support::{Lab, PATIENCE};
use drover_qemu::RunStatus;
use drover_qemu::migration::{
    Adopted, AdoptedIncoming, Decision, FailureCause, Incoming, IncomingFailed, Limits, ListenPorts, NoGate, PreCopy,
    SourceGuest, Switched, TakeBackError, adopt,
};
use std::future::pending;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

#[tokio::test]
async fn a_committed_guest_runs_at_the_destination_with_its_memory() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let mut told = Vec::new();
    let paused =
        pre_copy(&source, &incoming, &PLAIN, LIMITS).await.run(|p| told.push(p), NoGate, pending()).await.unwrap();
    let stopped_at = paused.stopped_at().expect("the moment of the pause");
    source.assert_status(RunStatus::FinishMigrate).await;
    destination.assert_status(RunStatus::InMigrate).await;

    let handed_over = committed(paused).await;
    let ran = incoming_end(incoming).await.expect("the guest at the destination");
    source.assert_status(RunStatus::PostMigrate).await;
    destination.assert_runs_on().await;

    let figures = handed_over.figures();
    assert!(told.last().is_some_and(|p| p.total >= 32 << 20 && p.rounds >= 1), "{told:?}");
    assert!(!figures.total.is_zero(), "{figures:?}");
    assert!(figures.memory >= 32 << 20 && figures.transferred > 0 && figures.rounds >= 1, "{figures:?}");
    assert_eq!(figures.stopped_at, Some(stopped_at));
    let completed_at = figures.completed_at.expect("the moment of completion");
    assert!(ran.exact && ran.at > stopped_at && completed_at > stopped_at, "{figures:?} {ran:?}");
    assert_eq!(figures.commit_wait + figures.copy, completed_at.duration_since(stopped_at).unwrap());
}

/// Fails on a QEMU before 9.0 that is given a memory size which is a multiple of 256 KiB under TCG.
#[tokio::test]
async fn what_a_guest_writes_during_several_passes_arrives() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let handed_over = committed(at_switch_over(&source, &incoming, &at_most(300_000), LIMITS).await).await;
    assert!(handed_over.figures().rounds >= 2, "{:?}", handed_over.figures());
    incoming_end(incoming).await.unwrap();
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_guest_moves_there_and_back_again() {
    let lab = Lab::new();
    let (here, there) = lab.pair().await;
    let incoming = listening(&there).await;
    committed(at_switch_over(&here, &incoming, &PLAIN, LIMITS).await).await;
    incoming_end(incoming).await.unwrap();
    here.machine.quit().await.unwrap();
    here.process.exited().await;

    let here = lab.start("source", true).await;
    let incoming = listening(&here).await;
    committed(at_switch_over(&there, &incoming, &PLAIN, LIMITS).await).await;
    incoming_end(incoming).await.unwrap();
    here.assert_runs_on().await;
}

#[tokio::test]
async fn a_guest_cancelled_at_the_switch_over_runs_on_and_can_be_moved_later() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let failed = at_switch_over(&source, &incoming, &PLAIN, LIMITS).await.cancel("the operator".to_owned()).await;
    assert!(matches!(failed.cause, FailureCause::Cancelled { ref by } if by == "the operator"), "{failed}");
    assert_eq!(failed.guest, SourceGuest::RunsHere);
    source.assert_runs_on().await;
    assert!(matches!(incoming_end(incoming).await, Err(IncomingFailed::Ended)));
    destination.process.exited().await;

    let destination = lab.start("destination", true).await;
    let incoming = listening(&destination).await;
    committed(at_switch_over(&source, &incoming, &PLAIN, LIMITS).await).await;
    incoming_end(incoming).await.unwrap();
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_commit_that_does_not_come_gives_the_guest_back_to_the_source() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let limits = Limits { commit_wait_max: Duration::from_millis(50), ..LIMITS };
    let paused = at_switch_over(&source, &incoming, &PLAIN, limits).await;
    let failed = failed(paused.decide(pending()).await);
    assert!(matches!(failed.cause, FailureCause::NoCommit { waited_ms: 50 }), "{failed}");
    assert_eq!(failed.guest, SourceGuest::RunsHere);
    source.assert_runs_on().await;
}

#[tokio::test]
async fn a_decision_is_carried_out_when_it_comes() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let paused = at_switch_over(&source, &incoming, &PLAIN, LIMITS).await;
    let (decide, decided) = oneshot::channel();
    let driving = tokio::spawn(paused.decide(async { decided.await.unwrap() }));
    decide.send(Decision::Commit).unwrap();
    assert!(matches!(driving.await.unwrap(), Ok(Switched::HandedOver(_))));
    incoming_end(incoming).await.unwrap();
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_guest_cancelled_in_pre_copy_runs_on() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let pre_copy = pre_copy(&source, &incoming, &SLOW, SHORT).await;
    let failed = failed(pre_copy.run(|_| {}, NoGate, async { "a test".to_owned() }).await);
    assert!(matches!(failed.cause, FailureCause::Cancelled { .. }), "{failed}");
    assert_eq!(failed.guest, SourceGuest::RunsHere);
    source.assert_runs_on().await;
}

#[tokio::test]
async fn a_destination_killed_in_pre_copy_leaves_the_guest_running_at_the_source() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let (driving, flows) = in_background(pre_copy(&source, &incoming, &SLOW, SHORT).await);
    flows.await.expect("memory to flow");
    destination.process.kill().await.unwrap();
    let failed = failed(driving.await.unwrap());
    assert!(matches!(failed.cause, FailureCause::Stream { .. }), "{failed}");
    assert_eq!(failed.guest, SourceGuest::RunsHere);
    source.assert_runs_on().await;
    assert!(matches!(incoming_end(incoming).await, Err(IncomingFailed::Ended)));
}

#[tokio::test]
async fn a_destination_killed_at_the_switch_over_leaves_the_guest_to_the_source() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let paused = at_switch_over(&source, &incoming, &PLAIN, LIMITS).await;
    destination.process.kill().await.unwrap();
    assert!(matches!(incoming_end(incoming).await, Err(IncomingFailed::Ended)));
    match paused.commit().await {
        // QEMU saw its write fail.
        Err(failed) => assert_eq!(failed.guest, SourceGuest::RunsHere, "{failed}"),
        // The kernel took the last bytes before it knew that nobody reads them.
        Ok(Switched::HandedOver(handed_over)) => handed_over.take_back().await.unwrap(),
        Ok(Switched::PostCopy(_)) => panic!("not asked for"),
    }
    source.assert_runs_on().await;
}

#[tokio::test]
async fn a_destination_killed_after_the_hand_over_is_survived_by_taking_the_guest_back() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let handed_over = committed(at_switch_over(&source, &incoming, &PLAIN, LIMITS).await).await;
    destination.process.kill().await.unwrap();
    source.assert_status(RunStatus::PostMigrate).await;
    handed_over.take_back().await.expect("the guest to come back");
    source.assert_runs_on().await;
    handed_over.take_back().await.expect("nothing to do the second time");
}

#[tokio::test]
async fn a_source_killed_in_pre_copy_never_runs_the_guest_at_the_destination() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let (driving, flows) = in_background(pre_copy(&source, &incoming, &SLOW, SHORT).await);
    flows.await.expect("memory to flow");
    source.process.kill().await.unwrap();
    let failed = failed(driving.await.unwrap());
    assert_eq!(failed.guest, SourceGuest::Gone);
    assert!(matches!(incoming_end(incoming).await, Err(IncomingFailed::Ended)));
}

#[tokio::test]
async fn a_guest_that_dirties_faster_than_the_link_carries_stays_and_says_so() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let strategy = at_most(1_000_000);
    let failed = failed(pre_copy(&source, &incoming, &strategy, SHORT).await.run(|_| {}, NoGate, pending()).await);
    let FailureCause::WillNotConverge { rounds, remaining, dirty_rate, throughput } = failed.cause else {
        panic!("{failed}")
    };
    assert!((3..=8).contains(&rounds), "{rounds} rounds");
    // 128 pages, and what the firmware left.
    assert!((400_000..=800_000).contains(&remaining), "{remaining} bytes left");
    assert!(dirty_rate > 200_000 && (800_000..1_200_000).contains(&throughput), "{dirty_rate} {throughput}");
    assert_eq!(failed.guest, SourceGuest::RunsHere);
    source.assert_runs_on().await;
}

#[tokio::test]
async fn a_destination_that_nobody_listens_at_is_a_failure_of_the_stream() {
    let lab = Lab::new();
    let source = lab.start("source", false).await;
    let pre_copy = PreCopy::start(&source.machine, closed_port(), PLAIN, LIMITS).await.unwrap();
    let failed = failed(pre_copy.run(|_| {}, NoGate, pending()).await);
    assert!(matches!(failed.cause, FailureCause::Stream { .. }), "{failed}");
    assert_eq!(failed.guest, SourceGuest::RunsHere);
    source.assert_runs_on().await;
}

#[tokio::test]
async fn a_destination_that_does_not_answer_is_given_up() {
    let lab = Lab::new();
    let source = lab.start("source", false).await;
    // With its queue full, the kernel drops further attempts to connect.
    let full = TcpSocket::new_v4().unwrap();
    full.bind(SocketAddr::new(LOOPBACK, 0)).unwrap();
    let full = full.listen(0).unwrap();
    let address = full.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(connection) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        queued.push(connection.unwrap());
    }
    let limits = Limits { total_max: Duration::from_secs(1), ..LIMITS };
    let pre_copy = PreCopy::start(&source.machine, address, PLAIN, limits).await.unwrap();
    let failed = failed(pre_copy.run(|_| {}, NoGate, pending()).await);
    assert!(matches!(failed.cause, FailureCause::NoConnection), "{failed}");
    assert_eq!(failed.guest, SourceGuest::RunsHere);
    source.assert_runs_on().await;
}

#[tokio::test]
async fn a_link_cut_at_the_switch_over_makes_the_commit_fail_and_the_source_run_on() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let (address, cut, link) = cuttable_link(&incoming).await;
    let pre_copy = PreCopy::start(&source.machine, address, PLAIN, LIMITS).await.unwrap();
    let paused = pre_copy.run(|_| {}, NoGate, pending()).await.unwrap();
    cut.send(()).unwrap();
    link.await.unwrap();
    let failed = failed(paused.commit().await);
    assert!(matches!(failed.cause, FailureCause::Stream { .. }), "{failed}");
    assert_eq!(failed.guest, SourceGuest::RunsHere);
    source.assert_runs_on().await;
    let incoming = incoming_end(incoming).await.unwrap_err();
    assert!(incoming.never_ran(), "{incoming}");
}

#[tokio::test]
async fn a_second_migration_is_refused_and_does_not_disturb_the_first() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let paused = at_switch_over(&source, &incoming, &PLAIN, LIMITS).await;
    assert!(PreCopy::start(&source.machine, closed_port(), PLAIN, LIMITS).await.is_err());
    committed(paused).await;
    incoming_end(incoming).await.unwrap();
}

#[tokio::test]
async fn another_connection_takes_over_in_the_middle_of_pre_copy() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let limits = Limits { downtime_max: PATIENCE, ..LIMITS };
    let (driving, flows) = in_background(pre_copy(&source, &incoming, &SLOW, limits).await);
    flows.await.expect("memory to flow");
    driving.abort();
    let _ = driving.await;
    let source = source.reattached().await;
    let machine = &source.machine;
    let Ok(Adopted::PreCopy(pre_copy)) = adopt(machine, SLOW, limits).await else { panic!("not in pre-copy") };
    let paused = pre_copy.run(|_| {}, NoGate, pending()).await.expect("the adopted migration to go on");
    committed(paused).await;
    incoming_end(incoming).await.unwrap();
    destination.assert_runs_on().await;
    source.assert_status(RunStatus::PostMigrate).await;
}

#[tokio::test]
async fn another_connection_takes_over_at_the_switch_over_and_after_the_hand_over() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    drop(at_switch_over(&source, &incoming, &PLAIN, LIMITS).await);
    let source = source.reattached().await;
    let machine = &source.machine;
    let Ok(Adopted::AtSwitchOver(paused)) = adopt(machine, PLAIN, LIMITS).await else {
        panic!("not at the switch-over")
    };
    assert_eq!(paused.stopped_at(), None);
    let handed_over = committed(paused).await;
    assert!(handed_over.figures().commit_wait > Duration::ZERO, "QEMU's own figure: {:?}", handed_over.figures());

    let Ok(Adopted::HandedOver(adopted)) = adopt(machine, PLAIN, LIMITS).await else { panic!("not handed over") };
    assert_eq!(adopted.figures().transferred, handed_over.figures().transferred);
    incoming_end(incoming).await.unwrap();
    // A guest that came by a migration isn't being sent away, whatever QEMU calls its last one.
    let idle = adopt(&destination.machine, PLAIN, LIMITS).await;
    assert!(matches!(idle, Ok(Adopted::Idle { guest: RunStatus::Running, .. })));
}

#[tokio::test]
async fn an_incoming_migration_is_adopted_in_each_of_its_states() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let machine = &destination.machine;
    assert!(matches!(Incoming::adopt(machine, &PLAIN).await, Ok(AdoptedIncoming::NotPrepared)));
    let port = listening(&destination).await.port();
    let Ok(AdoptedIncoming::Waiting(incoming)) = Incoming::adopt(machine, &PLAIN).await else { panic!("not waiting") };
    assert_eq!(incoming.port(), port);
    let paused = at_switch_over(&source, &incoming, &PLAIN, LIMITS).await;
    assert!(matches!(Incoming::adopt(machine, &PLAIN).await, Ok(AdoptedIncoming::Waiting(_))));
    committed(paused).await;
    incoming_end(incoming).await.unwrap();
    let before = SystemTime::now();
    let Ok(AdoptedIncoming::Ran(ran)) = Incoming::adopt(machine, &PLAIN).await else { panic!("not running") };
    assert!(!ran.exact && ran.at >= before);
}

#[tokio::test]
async fn the_first_free_port_of_a_range_is_listened_on() {
    let lab = Lab::new();
    let taken = loop {
        let taken = TcpListener::bind((LOOPBACK, 0)).unwrap();
        if taken.local_addr().unwrap().port() < u16::MAX - 64 {
            break taken;
        }
    };
    let first = taken.local_addr().unwrap().port();
    let destination = lab.start("destination", true).await;
    let full = Incoming::prepare(&destination.machine, LOOPBACK, ListenPorts::Range(first..=first), &PLAIN).await;
    assert!(full.err().expect("no free port").to_string().contains("widen the range"));
    let ports = ListenPorts::Range(first..=first + 63);
    let incoming = Incoming::prepare(&destination.machine, LOOPBACK, ports, &PLAIN).await.expect("another port");
    assert!(incoming.port() > first);
}

#[tokio::test]
async fn a_vm_that_runs_does_not_become_a_destination() {
    let lab = Lab::new();
    let source = lab.start("source", false).await;
    let refused = Incoming::prepare(&source.machine, LOOPBACK, ListenPorts::Any, &PLAIN).await;
    assert!(refused.err().expect("a refusal").to_string().contains("running"));
    source.assert_runs_on().await;
}

#[tokio::test]
async fn a_guest_whose_source_has_ended_cannot_be_taken_back() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening(&destination).await;
    let handed_over = committed(at_switch_over(&source, &incoming, &PLAIN, LIMITS).await).await;
    incoming_end(incoming).await.unwrap();
    source.machine.quit().await.unwrap();
    source.process.exited().await;
    assert!(matches!(handed_over.take_back().await, Err(TakeBackError::Monitor(_))));
}
