//! Drives the two ends of a migration for the tests.

use crate::support::{PATIENCE, Vm};
use drover_qemu::migration::{
    Arrived, AtSwitchOver, HandedOver, Incoming, IncomingFailed, Limits, ListenPorts, Method, NoGate, OutgoingFailed,
    Pace, PreCopy, Progress, RanAt, Strategy, Switched,
};
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub const LIMITS: Limits =
    Limits { downtime_max: Duration::from_secs(2), total_max: PATIENCE, commit_wait_max: PATIENCE, resident: None };

/// With [`SLOW`] memory takes some seconds, and what the guest rewrites meanwhile never fits into the downtime.
pub const SHORT: Limits = Limits { downtime_max: Duration::from_millis(10), ..LIMITS };

pub const PLAIN: Strategy = Strategy::PRE_COPY;

pub const SLOW: Strategy = at_most(150_000);

pub const fn at_most(bytes_per_second: u64) -> Strategy {
    by(Method::PreCopy, bytes_per_second)
}

pub const fn by(method: Method, bytes_per_second: u64) -> Strategy {
    let pace = Pace { min: 0, max: bytes_per_second, paused: false };
    Strategy { method, channels: 1, compress: false, throttle_max: 0, tls: None, pace }
}

pub async fn listening(destination: &Vm) -> Incoming {
    listening_for(destination, &PLAIN).await
}

pub async fn listening_for(destination: &Vm, strategy: &Strategy) -> Incoming {
    Incoming::prepare(&destination.machine, LOOPBACK, ListenPorts::Any, strategy)
        .await
        .expect("a destination that listens")
}

pub async fn pre_copy(source: &Vm, incoming: &Incoming, strategy: &Strategy, limits: Limits) -> PreCopy {
    let destination = SocketAddr::new(LOOPBACK, incoming.port());
    PreCopy::start(&source.machine, destination, strategy.clone(), limits).await.expect("a migration")
}

pub async fn at_switch_over(source: &Vm, incoming: &Incoming, strategy: &Strategy, limits: Limits) -> AtSwitchOver {
    let pre_copy = pre_copy(source, incoming, strategy, limits).await;
    pre_copy.run(|_| {}, NoGate, pending()).await.expect("a guest at the switch-over")
}

pub async fn committed(paused: AtSwitchOver) -> HandedOver {
    match paused.commit().await.expect("a hand-over") {
        Switched::HandedOver(handed_over) => handed_over,
        Switched::PostCopy(post_copy) => post_copy.run(|_| {}).await.expect("the post-copy to end"),
    }
}

/// Where the guest ran, once all of it is there.
pub async fn incoming_end(incoming: Incoming) -> Result<RanAt, IncomingFailed> {
    match timeout(PATIENCE, incoming.wait()).await.expect("the destination to decide")? {
        Arrived::Ran(ran) => Ok(ran),
        Arrived::Completing(completing) => {
            let ran = completing.ran_at();
            timeout(PATIENCE, completing.wait()).await.expect("the post-copy to end").expect("all memory");
            Ok(ran)
        }
    }
}

/// Drives pre-copy in the background; the receiver hears when memory flows.
pub fn in_background(
    pre_copy: PreCopy,
) -> (tokio::task::JoinHandle<Result<AtSwitchOver, OutgoingFailed>>, oneshot::Receiver<Progress>) {
    let (flowing, flows) = oneshot::channel();
    let mut flowing = Some(flowing);
    let task = tokio::spawn(pre_copy.run(
        move |progress| {
            if progress.transferred > 0
                && let Some(flowing) = flowing.take()
            {
                let _ = flowing.send(progress);
            }
        },
        NoGate,
        pending(),
    ));
    (task, flows)
}

pub fn failed<T>(result: Result<T, OutgoingFailed>) -> OutgoingFailed {
    match result {
        Ok(_) => panic!("the migration went through"),
        Err(failed) => failed,
    }
}

/// The address of a destination that nobody listens at.
pub fn closed_port() -> SocketAddr {
    TcpListener::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap()
}

/// A link between the two hosts that can be cut. Sends a reset to both ends, as a dying link's peers see.
pub async fn cuttable_link(incoming: &Incoming) -> (SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let (address, to) = (listener.local_addr().unwrap(), SocketAddr::new(LOOPBACK, incoming.port()));
    let (cut, mut when) = oneshot::channel::<()>();
    let link = tokio::spawn(async move {
        let (stop, _) = watch::channel(());
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                from = listener.accept() => {
                    let (from, to) = (from.unwrap().0, TcpStream::connect(to).await.unwrap());
                    connections.spawn(pass(from, to, stop.subscribe()));
                }
                _ = &mut when => break,
            }
        }
        stop.send_replace(());
        while let Some(ended) = connections.join_next().await {
            ended.unwrap();
        }
    });
    (address, cut, link)
}

/// Of one of the connections that a migration has.
async fn pass(mut from: TcpStream, mut to: TcpStream, mut stop: watch::Receiver<()>) {
    tokio::select! {
        _ = copy_bidirectional(&mut from, &mut to) => panic!("an end closed before the link was cut"),
        _ = stop.changed() => {}
    }
    from.set_zero_linger().unwrap();
    to.set_zero_linger().unwrap();
}
