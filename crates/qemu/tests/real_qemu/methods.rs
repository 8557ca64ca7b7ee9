//! The ways to move a guest, how they are paced, and the gate before the guest stands still.

use crate::drive::{
    LIMITS, PLAIN, SHORT, at_most, at_switch_over, by, committed, failed, incoming_end, listening, listening_for,
    pre_copy,
};
use crate::support::{Lab, PATIENCE, Vm};
use drover_qemu::migration::{
    Adopted, AdoptedIncoming, Arrived, FailureCause, Gate, HandedOver, Incoming, Limits, Method, NoGate, Pace,
    SourceGuest, Strategy, Switched, TakeBackError, adopt,
};
use drover_qemu::{Machine, RunStatus};
use serde_json::json;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// 128 pages that are rewritten all the time then need half a second.
const POST_COPY: Strategy = by(Method::PostCopy, 1_000_000);
const STOP_AND_COPY: Strategy = by(Method::StopAndCopy, 0);

async fn moved(source: &Vm, destination: &Vm, strategy: &Strategy, limits: Limits) -> HandedOver {
    let incoming = listening_for(destination, strategy).await;
    let handed_over = committed(at_switch_over(source, &incoming, strategy, limits).await).await;
    let ran = incoming_end(incoming).await.expect("the guest at the destination");
    source.assert_status(RunStatus::PostMigrate).await;
    destination.assert_runs_on().await;
    let figures = handed_over.figures();
    let downtime = ran.at.duration_since(figures.stopped_at.expect("its stop")).unwrap();
    println!("{:?}, {} channels: downtime {downtime:?}, {figures:?}", strategy.method, strategy.channels);
    assert!(ran.exact && figures.in_use > 0 && figures.throughput > 0, "{figures:?}");
    handed_over
}

#[tokio::test]
async fn post_copy_moves_a_guest_that_writes_faster_than_the_link_carries() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let handed_over = moved(&source, &destination, &POST_COPY, SHORT).await;
    assert!(handed_over.figures().post_copied >= 400_000, "{:?}", handed_over.figures());
    assert!(matches!(handed_over.take_back().await, Err(TakeBackError::AfterPostCopy)));
    source.assert_status(RunStatus::PostMigrate).await;
}

#[tokio::test]
async fn post_copy_begins_at_once_where_memory_is_sent_in_a_moment() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let strategy = Strategy { method: Method::PostCopy, ..PLAIN };
    moved(&source, &destination, &strategy, LIMITS).await;
}

#[tokio::test]
async fn a_guest_cancelled_before_its_post_copy_runs_on_at_the_source() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening_for(&destination, &POST_COPY).await;
    let paused = at_switch_over(&source, &incoming, &POST_COPY, LIMITS).await;
    source.assert_status(RunStatus::FinishMigrate).await;
    destination.assert_status(RunStatus::InMigrate).await;
    let failed = paused.cancel("a test".to_owned()).await;
    assert_eq!(failed.guest, SourceGuest::RunsHere, "{failed}");
    source.assert_runs_on().await;
    assert!(incoming_end(incoming).await.unwrap_err().never_ran());
}

/// Opens the switch-over behind the driver's back.
struct SomebodyElse(Machine);

impl Gate for SomebodyElse {
    async fn open(&mut self) -> Result<(), String> {
        let mut events = self.0.events();
        let open = json!({ "downtime-limit": 30_000, "max-bandwidth": 1 << 30 });
        self.0.qmp().execute("migrate-set-parameters", open).await.map_err(|error| error.to_string())?;
        while events.recv().await.map_err(|error| error.to_string())?.name != "STOP" {}
        Ok(())
    }

    async fn close(&mut self) {}
}

/// Its pre-copy would complete, which post-copy's return path makes unsafe to commit.
#[tokio::test]
async fn a_post_copy_that_would_end_as_pre_copy_is_unwound() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening_for(&destination, &POST_COPY).await;
    let copying = pre_copy(&source, &incoming, &POST_COPY, LIMITS).await;
    let gate = SomebodyElse(source.machine.clone());
    let failed = failed(copying.run(|_| {}, gate, pending()).await);
    assert!(matches!(failed.cause, FailureCause::NothingLeft), "{failed}");
    assert_eq!(failed.guest, SourceGuest::RunsHere);
    source.assert_runs_on().await;
    assert!(incoming_end(incoming).await.unwrap_err().never_ran());
}

#[tokio::test]
async fn stop_and_copy_sends_everything_while_the_guest_stands_still() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let handed_over = moved(&source, &destination, &STOP_AND_COPY, SHORT).await;
    let figures = handed_over.figures();
    let still = figures.completed_at.unwrap().duration_since(figures.stopped_at.unwrap()).unwrap();
    assert!(still > figures.commit_wait + figures.copy, "{figures:?}");
    assert!(figures.transferred < figures.in_use + (1 << 20), "each page went once: {figures:?}");
}

#[tokio::test]
async fn a_guest_stopped_to_be_copied_runs_on_after_a_cancel_or_a_broken_stream() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening_for(&destination, &STOP_AND_COPY).await;
    let paused = at_switch_over(&source, &incoming, &STOP_AND_COPY, LIMITS).await;
    assert_eq!(paused.cancel("a test".to_owned()).await.guest, SourceGuest::RunsHere);
    source.assert_runs_on().await;
    drop(destination);

    let destination = lab.start("destination", true).await;
    let slow = by(Method::StopAndCopy, 100_000);
    let incoming = listening_for(&destination, &slow).await;
    let copying = pre_copy(&source, &incoming, &slow, LIMITS).await;
    let (flowing, mut flows) = mpsc::channel(1);
    let driving = tokio::spawn(copying.run(move |progress| _ = flowing.try_send(progress), NoGate, pending()));
    while flows.recv().await.expect("a word").transferred == 0 {}
    destination.process.kill().await.unwrap();
    let failed = failed(driving.await.unwrap());
    assert!(matches!(failed.cause, FailureCause::Stream { .. }), "{failed}");
    assert_eq!(failed.guest, SourceGuest::RunsHere);
    source.assert_runs_on().await;
}

#[tokio::test]
async fn several_connections_carry_a_guest_compressed_or_not() {
    for compress in [false, true] {
        let lab = Lab::new();
        let (source, destination) = lab.pair().await;
        let strategy = Strategy { channels: 4, compress, ..PLAIN };
        moved(&source, &destination, &strategy, LIMITS).await;
    }
}

#[tokio::test]
async fn a_guest_is_slowed_down_no_further_than_allowed() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let strategy = Strategy { throttle_max: 30, ..at_most(400_000) };
    let incoming = listening_for(&destination, &strategy).await;
    let mut throttled = 0;
    let pre_copy = pre_copy(&source, &incoming, &strategy, SHORT).await;
    let told = |progress: drover_qemu::migration::Progress| throttled = throttled.max(progress.throttled);
    let failed = failed(pre_copy.run(told, NoGate, pending()).await);
    assert!(matches!(failed.cause, FailureCause::WillNotConverge { .. }), "{failed}");
    assert_eq!(throttled, 30);
    source.assert_runs_on().await;
}

/// Remembers when it was opened, which takes it a while, and how often it was closed.
#[derive(Clone, Default)]
struct Recorder {
    opened_at: Arc<Mutex<Vec<SystemTime>>>,
    closed: Arc<Mutex<u32>>,
}

impl Gate for Recorder {
    async fn open(&mut self) -> Result<(), String> {
        tokio::time::sleep(Duration::from_millis(150)).await;
        self.opened_at.lock().unwrap().push(SystemTime::now());
        Ok(())
    }

    async fn close(&mut self) {
        *self.closed.lock().unwrap() += 1;
    }
}

#[tokio::test]
async fn the_network_is_open_to_both_before_the_guest_stands_still() {
    let slow = |method| by(method, 400_000);
    let methods = [Method::PreCopy, Method::PostCopy, Method::StopAndCopy];
    for strategy in methods.map(slow).into_iter().chain(methods.map(|method| Strategy { method, ..PLAIN })) {
        let lab = Lab::new();
        let (source, destination) = lab.pair().await;
        let incoming = listening_for(&destination, &strategy).await;
        let gate = Recorder::default();
        let copying = pre_copy(&source, &incoming, &strategy, LIMITS).await;
        let paused = copying.run(|_| {}, gate.clone(), pending()).await.expect("a guest at the switch-over");
        let stopped_at = paused.stopped_at().unwrap();
        let opened_at = *gate.opened_at.lock().unwrap().last().expect("an open gate");
        assert!(opened_at < stopped_at, "{strategy:?}: opened {opened_at:?}, stopped {stopped_at:?}");
        committed(paused).await;
        incoming_end(incoming).await.unwrap();
        destination.assert_runs_on().await;
    }
}

#[tokio::test]
async fn a_gate_that_was_opened_too_early_is_closed_again() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    // Each round takes more than a second and leaves half a megabyte.
    let strategy = at_most(300_000);
    let incoming = listening_for(&destination, &strategy).await;
    let gate = Recorder::default();
    let copying = pre_copy(&source, &incoming, &strategy, SHORT).await;
    let failed = failed(copying.run(|_| {}, gate.clone(), pending()).await);
    assert!(matches!(failed.cause, FailureCause::WillNotConverge { .. }), "{failed}");
    let (opened, closed) = (gate.opened_at.lock().unwrap().len(), *gate.closed.lock().unwrap());
    assert!(opened as u32 == closed && opened <= 1, "opened {opened} times, closed {closed} times");
}

struct Locked;

impl Gate for Locked {
    async fn open(&mut self) -> Result<(), String> {
        Err("no such network".to_owned())
    }

    async fn close(&mut self) {}
}

#[tokio::test]
async fn a_network_that_cannot_be_opened_leaves_the_guest_running_at_the_source() {
    for method in [Method::PreCopy, Method::PostCopy, Method::StopAndCopy] {
        let lab = Lab::new();
        let (source, destination) = lab.pair().await;
        let strategy = Strategy { method, ..PLAIN };
        let incoming = listening_for(&destination, &strategy).await;
        let copying = pre_copy(&source, &incoming, &strategy, LIMITS).await;
        let failed = failed(copying.run(|_| {}, Locked, pending()).await);
        assert!(failed.to_string().contains("no such network"), "{failed}");
        assert_eq!(failed.guest, SourceGuest::RunsHere);
        source.assert_runs_on().await;
    }
}

#[tokio::test]
async fn a_migration_that_is_paused_sends_next_to_nothing_and_has_all_its_time_left() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let strategy = Strategy { pace: Pace { paused: true, ..Pace::default() }, ..PLAIN };
    let incoming = listening(&destination).await;
    let limits = Limits { total_max: Duration::from_secs(1), ..LIMITS };
    let copying = pre_copy(&source, &incoming, &strategy, limits).await;
    let adjust = copying.adjust();
    let (telling, mut told) = mpsc::channel(64);
    let driving = tokio::spawn(copying.run(move |progress| _ = telling.try_send(progress), NoGate, pending()));
    // Told every half second: longer than it may take without the pause.
    for _ in 0..4 {
        let progress = timeout(PATIENCE, told.recv()).await.unwrap().expect("a word");
        assert!(progress.transferred < 1 << 17, "{progress:?}");
    }
    adjust.pace(Pace::default());
    committed(driving.await.unwrap().expect("a guest at the switch-over")).await;
    incoming_end(incoming).await.unwrap();
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_post_copy_is_adopted_at_both_ends_and_goes_on_at_another_pace() {
    let slow = by(Method::PostCopy, 60_000);
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening_for(&destination, &slow).await;
    let paused = at_switch_over(&source, &incoming, &slow, LIMITS).await;
    drop(paused);
    let source = source.reattached().await;
    let Ok(Adopted::AtSwitchOver(paused)) = adopt(&source.machine, slow.clone(), LIMITS).await else {
        panic!("not at the switch-over")
    };
    let (deciding, decided) = oneshot::channel();
    let driving = tokio::spawn(paused.decide(async { decided.await.unwrap() }));
    deciding.send(drover_qemu::migration::Decision::Commit).unwrap();
    let Ok(Switched::PostCopy(post_copy)) = driving.await.unwrap() else { panic!("no post-copy") };
    let Ok(Arrived::Completing(completing)) = timeout(PATIENCE, incoming.wait()).await.unwrap() else {
        panic!("not in post-copy")
    };
    assert!(completing.ran_at().exact);
    drop((post_copy, completing));

    let (source, destination) = (source.reattached().await, destination.reattached().await);
    let Ok(Adopted::PostCopy(post_copy)) = adopt(&source.machine, slow.clone(), LIMITS).await else {
        panic!("not in post-copy")
    };
    // The destination says the same of itself, and must not be taken for a source whose guest may not run.
    assert!(matches!(adopt(&destination.machine, slow.clone(), LIMITS).await, Ok(Adopted::Idle { .. })));
    destination.assert_status(RunStatus::Running).await;
    let Ok(AdoptedIncoming::Completing(completing)) = Incoming::adopt(&destination.machine, &slow).await else {
        panic!("not in post-copy")
    };
    assert!(!completing.ran_at().exact);
    post_copy.adjust().pace(Pace::default());
    let handed_over = post_copy.run(|_| {}).await.expect("the adopted post-copy to end");
    timeout(PATIENCE, completing.wait()).await.unwrap().expect("all memory");
    destination.assert_runs_on().await;
    assert!(matches!(Incoming::adopt(&destination.machine, &slow).await, Ok(AdoptedIncoming::Ran(_))));
    assert!(matches!(adopt(&source.machine, slow, LIMITS).await, Ok(Adopted::HandedOver(_))));
    assert!(handed_over.figures().post_copied > 0);
}
