//! The clients of one guest: two probes with every workload, and those that the workload is there for.
//!
//! | client | asks | gap: longest wait for the next | period |
//! |---|---|---|---|
//! | `udp` | numbered datagrams, answered | answer | 10 ms |
//! | `tcp` | numbers on one connection, one at a time | answer | 10 ms |
//! | `web` | 100 connections, a file of 512 KB each every 15 s | part of a file, while one is awaited | - |
//! | `game` | six players, an input every 50 ms | tick | 20 ms |
//! | `database` | transactions of 4 pages, one at a time | answer | 10 ms |
//!
//! Clients rest until they are told to ask, so that the guest of the side that is not measured has none.

mod database;
mod game;
pub mod ledger;
mod probes;
pub mod site;
mod web;

use super::workloads::Workload;
use anyhow::{Context, Result, bail};
use ledger::{Ledger, Seen};
use site::Site;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub use database::Checked;

/// After a window a datagram may still be on its way for so long; then it is lost.
const STRAGGLERS_WAIT_MAX: Duration = Duration::from_secs(2);
/// A request that is not answered for so long is given up, with its connection.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(20);
/// Before a connection that was lost is tried anew.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(10);
/// So many answers to each steady client mean that all goes on.
const SETTLED_ANSWERS: u64 = 25;
const CHECK_WAIT_MAX: Duration = Duration::from_secs(60);

/// What all clients of one guest share.
#[derive(Debug, Clone)]
struct Shared {
    ledger: Arc<Mutex<Ledger>>,
    opened: Instant,
    /// Whether to ask. Its end is the clients' end.
    asking: watch::Receiver<bool>,
}

impl Shared {
    fn now(&self) -> Duration {
        self.opened.elapsed()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asks(&self) -> bool {
        *self.asking.borrow()
    }

    /// Waits until there is asking to be done.
    async fn wait_to_ask(&mut self) {
        // The end of the channel: the clients are about to be dropped with their site or aborted.
        if self.asking.wait_for(|asking| *asking).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The clients of one guest. Dropping them ends them.
#[derive(Debug)]
pub struct Clients {
    shared: Shared,
    asking: watch::Sender<bool>,
    checks: Option<mpsc::Sender<oneshot::Sender<Checked>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    pub fn start(site: &Site, guest: IpAddr, workload: Workload) -> Self {
        let (asking, asks) = watch::channel(false);
        let shared = Shared { ledger: Arc::default(), opened: Instant::now(), asking: asks };
        let mut tasks = probes::spawn(site.handle(), &shared, guest);
        let mut checks = None;
        match workload {
            Workload::Idle | Workload::Diabolical => {}
            Workload::Web => tasks.extend(web::spawn(site.handle(), &shared, guest)),
            Workload::Game => tasks.extend(game::spawn(site.handle(), &shared, guest)),
            Workload::Database => {
                let (sender, receiver) = mpsc::channel(1);
                checks = Some(sender);
                tasks.push(database::spawn(site.handle(), &shared, guest, receiver));
            }
        }
        Self { shared, asking, checks, tasks }
    }

    pub fn ask(&self, asking: bool) {
        self.asking.send_replace(asking);
        if !asking {
            self.shared.ledger().rest();
        }
    }

    /// Waits until every client gets what it asks for. `false`: not within the limit.
    pub async fn settled(&self, limit: Duration) -> bool {
        let (mark, then) = (self.shared.ledger().mark(), self.shared.now());
        let deadline = Instant::now() + limit;
        while !self.shared.ledger().settled(&mark, SETTLED_ANSWERS, then) {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }

    pub fn open_window(&self) {
        self.shared.ledger().open(self.shared.now());
    }

    /// Ends the window and tells what was seen in it.
    pub async fn close_window(&self) -> Seen {
        let seen_at = self.shared.now();
        // Gaps are judged as of now, and losses once what is late has come.
        let gaps = {
            let mut ledger = self.shared.ledger();
            ledger.close();
            ledger.seen(seen_at)
        };
        let deadline = Instant::now() + STRAGGLERS_WAIT_MAX;
        while !self.shared.ledger().whole() && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
        let losses = self.shared.ledger().seen(seen_at);
        Seen {
            packets_lost: losses.packets_lost,
            packets_lost_on_the_way_back: losses.packets_lost_on_the_way_back,
            packets_duplicated: losses.packets_duplicated,
            probes_lost_at_ms: losses.probes_lost_at_ms,
            ..gaps
        }
    }

    /// Whether the database holds what it said it holds. `None` for a workload without one.
    pub async fn check(&self) -> Result<Option<Checked>> {
        let Some(checks) = &self.checks else { return Ok(None) };
        let (answer, answered) = oneshot::channel();
        checks.send(answer).await.context("the database's client has ended")?;
        match tokio::time::timeout(CHECK_WAIT_MAX, answered).await {
            Ok(checked) => Ok(Some(checked.context("the database's client gave up the check")?)),
            Err(_) => bail!("the database was not checked within {} s", CHECK_WAIT_MAX.as_secs()),
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// How an exchange on a connection ended that should not have.
fn broken(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}
