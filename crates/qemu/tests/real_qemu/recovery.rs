//! A post-copy whose connection breaks.

use crate::drive::{LIMITS, LOOPBACK, at_switch_over, by, closed_port, cuttable_link, listening_for};
use crate::support::{Lab, PATIENCE, Vm};
use drover_qemu::RunStatus;
use drover_qemu::migration::{
    Adopted, AdoptedIncoming, Arrived, Completing, CompletingBroken, Incoming, ListenPorts, Method, NoGate, Pace,
    PostCopy, PostCopyBroken, PreCopy, SourceGuest, Stalled, StalledIncoming, Strategy, Switched, adopt,
};
use std::future::pending;
use std::net::SocketAddr;
use tokio::time::timeout;

/// Slow enough to be broken.
const SLOW: Strategy = by(Method::PostCopy, 60_000);

async fn in_post_copy(source: &Vm, destination: &Vm) -> (PostCopy, Completing) {
    let incoming = listening_for(destination, &SLOW).await;
    let paused = at_switch_over(source, &incoming, &SLOW, LIMITS).await;
    let Ok(Switched::PostCopy(post_copy)) = paused.commit().await else { panic!("no post-copy") };
    (post_copy, arrived(incoming).await)
}

async fn arrived(incoming: Incoming) -> Completing {
    match timeout(PATIENCE, incoming.wait()).await.expect("the destination to decide") {
        Ok(Arrived::Completing(completing)) => completing,
        Ok(Arrived::Ran(_)) => panic!("all memory came at once"),
        Err(error) => panic!("{error}"),
    }
}

async fn both_stalled(post_copy: PostCopy, completing: Completing) -> (Stalled, StalledIncoming) {
    let Err(PostCopyBroken::Stalled(stalled)) = timeout(PATIENCE, post_copy.run(|_| {})).await.expect("a stall") else {
        panic!("not stalled")
    };
    let Err(CompletingBroken::Stalled(incoming)) = timeout(PATIENCE, completing.wait()).await.expect("a stall") else {
        panic!("not stalled")
    };
    (stalled, incoming)
}

async fn recovered(source: &Vm, destination: &Vm, stalled: Stalled, incoming: StalledIncoming) {
    let (port, completing) = incoming.listen(LOOPBACK, ListenPorts::Any).await.expect("a destination that listens");
    let post_copy = stalled.recover(SocketAddr::new(LOOPBACK, port)).await.expect("a connection");
    post_copy.adjust().pace(Pace::default());
    post_copy.run(|_| {}).await.expect("the post-copy to end");
    timeout(PATIENCE, completing.wait()).await.unwrap().expect("all memory");
    source.assert_status(RunStatus::PostMigrate).await;
    destination.assert_runs_on().await;
}

#[tokio::test]
async fn a_post_copy_that_was_broken_is_connected_anew_and_ends() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let (post_copy, completing) = in_post_copy(&source, &destination).await;
    Completing::pause(&source.machine).await.unwrap();
    let (stalled, incoming) = both_stalled(post_copy, completing).await;
    recovered(&source, &destination, stalled, incoming).await;
}

#[tokio::test]
async fn a_link_cut_in_post_copy_stalls_both_ends_and_nobody_runs_the_guest_at_the_source() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let incoming = listening_for(&destination, &SLOW).await;
    let (address, cut, link) = cuttable_link(&incoming).await;
    let copying = PreCopy::start(&source.machine, address, SLOW, LIMITS).await.unwrap();
    let paused = copying.run(|_| {}, NoGate, pending()).await.unwrap();
    let Ok(Switched::PostCopy(post_copy)) = paused.commit().await else { panic!("no post-copy") };
    let completing = arrived(incoming).await;
    cut.send(()).unwrap();
    link.await.unwrap();
    let (stalled, incoming) = both_stalled(post_copy, completing).await;
    assert_ne!(source.machine.status().await.unwrap(), RunStatus::Running);

    // To a port that nobody listens at, and again to the right one.
    let failed = stalled.recover(closed_port()).await.expect_err("nobody there");
    assert!(failed.cause.to_string().contains("listen anew"), "{}", failed.cause);
    recovered(&source, &destination, failed.stalled, incoming).await;
}

#[tokio::test]
async fn a_stalled_post_copy_is_adopted_at_both_ends() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let (post_copy, completing) = in_post_copy(&source, &destination).await;
    Completing::pause(&destination.machine).await.unwrap();
    drop(both_stalled(post_copy, completing).await);
    let (source, destination) = (source.reattached().await, destination.reattached().await);
    let Ok(Adopted::Stalled(stalled)) = adopt(&source.machine, SLOW, LIMITS).await else { panic!("not stalled") };
    let Ok(AdoptedIncoming::Stalled(incoming)) = Incoming::adopt(&destination.machine, &SLOW).await else {
        panic!("not stalled")
    };
    // An agent that listened, and ended before it could say where.
    incoming.listen(LOOPBACK, ListenPorts::Any).await.unwrap();
    let destination = destination.reattached().await;
    let Ok(AdoptedIncoming::Stalled(incoming)) = Incoming::adopt(&destination.machine, &SLOW).await else {
        panic!("not stalled")
    };
    recovered(&source, &destination, stalled, incoming).await;
}

#[tokio::test]
async fn a_destination_killed_in_post_copy_is_a_loss_and_the_source_keeps_still() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let (post_copy, completing) = in_post_copy(&source, &destination).await;
    destination.process.kill().await.unwrap();
    let lost = timeout(PATIENCE, completing.wait()).await.unwrap();
    assert!(matches!(lost, Err(CompletingBroken::Lost { .. })));
    match timeout(PATIENCE, post_copy.run(|_| {})).await.expect("an end") {
        Err(PostCopyBroken::Stalled(_)) => {}
        Err(PostCopyBroken::Failed(failed)) => assert!(matches!(failed.guest, SourceGuest::StandsStill(_)), "{failed}"),
        Ok(_) => panic!("it went through"),
    }
    assert_ne!(source.machine.status().await.unwrap(), RunStatus::Running);
}

#[tokio::test]
async fn a_source_killed_in_post_copy_stalls_the_destination() {
    let lab = Lab::new();
    let (source, destination) = lab.pair().await;
    let (post_copy, completing) = in_post_copy(&source, &destination).await;
    source.process.kill().await.unwrap();
    let Err(PostCopyBroken::Failed(failed)) = timeout(PATIENCE, post_copy.run(|_| {})).await.unwrap() else {
        panic!("not noticed")
    };
    assert_eq!(failed.guest, SourceGuest::Gone);
    let stalled = timeout(PATIENCE, completing.wait()).await.unwrap();
    assert!(matches!(stalled, Err(CompletingBroken::Stalled(_))));
}
