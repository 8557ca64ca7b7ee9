//! What follows one migration in QEMU, at either end.
//!
//! A driver is a task of its own: it tells the vm's task what happens and takes its orders. It writes nothing down and
//! decides nothing. One that is dropped changes nothing in QEMU, so an agent that restarts adopts.
//!
//! ```text
//!  source       PreCopy ─▶ AtSwitchOver ─commit─▶ SwitchingOver ──▶ Sent
//!                                                     └─▶ PostCopy ──▶ Sent
//!                                                          │    ▲
//!                                                    Stalled ───┘ ordered to connect anew
//!  destination  Waiting ──▶ Arrived
//!                  └─▶ Completing ──▶ Completed
//!                        │    ▲
//!                  Stalled ───┘ ordered to listen anew
//! ```

use super::Answer;
use super::task::failed;
use drover_model::command::{CommandOutcome, CommandRefusal, MigrationTarget};
use drover_qemu::migration::{
    Adjust, Arrived, AtSwitchOver, Completing, CompletingBroken, Decision, Gate, HandedOver, Incoming, IncomingFailed,
    ListenPorts, OutgoingFailed, PostCopy, PostCopyBroken, PreCopy, Progress, RanAt, Stalled, StalledIncoming,
    Switched, SwitchingOver,
};
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Word from a driver that its vm's task has not heard yet; progress beyond that is dropped.
const EVENTS_MAX: usize = 16;
const ORDERS_MAX: usize = 4;

/// Follows one migration in QEMU.
pub(super) struct Driver {
    events: mpsc::Receiver<DriverEvent>,
    pub orders: mpsc::Sender<Order>,
    task: AbortHandle,
    /// Of an incoming one: where it listens, and since when.
    pub target: Option<(MigrationTarget, Instant)>,
    /// Of an outgoing one, while memory is sent.
    pub adjust: Option<Adjust>,
}

pub(super) enum DriverEvent {
    Progress(Progress),
    AtSwitchOver {
        stopped_at: Option<SystemTime>,
    },
    /// The guest runs at the destination, memory goes on flowing.
    PostCopy(Adjust),
    /// Post-copy lost its connection: waits for [`Order::Connect`].
    Stalled {
        why: String,
    },
    Sent(Box<Result<HandedOver, OutgoingFailed>>),
    Arrived(Result<RanAt, IncomingFailed>),
    /// The guest runs here, part of its memory is still to come.
    Completing,
    /// The same, and the connection broke: waits for [`Order::Listen`].
    CompletingStalled {
        why: String,
    },
    /// All memory is here, of a guest that runs since then; or what was missing is lost, which ends QEMU.
    Completed(Result<RanAt, String>),
    /// It ended without a verdict, which only a defect can cause.
    Lost,
}

pub(super) enum Order {
    /// `accepted` is told once nothing can decide otherwise any more.
    Commit {
        accepted: oneshot::Sender<()>,
    },
    Cancel,
    Connect {
        to: SocketAddr,
        reply: oneshot::Sender<Answer>,
    },
    Listen {
        address: IpAddr,
        reply: oneshot::Sender<Result<u16, CommandRefusal>>,
    },
}

/// Where in a migration the source's driver begins.
pub(super) enum Begin {
    PreCopy(PreCopy),
    AtSwitchOver(AtSwitchOver),
    /// The commit was recorded, and perhaps not told to QEMU.
    Committed(AtSwitchOver),
    SwitchingOver(SwitchingOver),
    PostCopy(PostCopy),
    Stalled(Stalled),
}

/// Where the destination's begins.
pub(super) enum BeginIncoming {
    Waiting(Incoming),
    Completing(Completing),
    Stalled(StalledIncoming),
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Driver {
    pub fn outgoing(begin: Begin, gate: impl Gate + Send + 'static) -> Self {
        let (told, events) = mpsc::channel(EVENTS_MAX);
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let adjust = match &begin {
            Begin::PreCopy(copying) => Some(copying.adjust()),
            Begin::AtSwitchOver(waiting) | Begin::Committed(waiting) => Some(waiting.adjust()),
            // DesiredNetwork with the post-copy, if it comes to that.
            Begin::SwitchingOver(_) | Begin::PostCopy(_) | Begin::Stalled(_) => None,
        };
        let task = tokio::spawn(async move {
            let mut sender = Sender { told, ordered };
            let sent = sender.send(begin, gate).await;
            sender.tell(DriverEvent::Sent(Box::new(sent))).await;
        });
        Self { events, orders, task: task.abort_handle(), target: None, adjust }
    }

    pub fn incoming(begin: BeginIncoming, target: Option<MigrationTarget>) -> Self {
        let (told, events) = mpsc::channel(EVENTS_MAX);
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let task = tokio::spawn(async move {
            let mut receiver = Receiver { told, ordered };
            let end = receiver.receive(begin).await;
            let _ = receiver.told.send(end).await;
        });
        let target = target.map(|target| (target, Instant::now()));
        Self { events, orders, task: task.abort_handle(), target, adjust: None }
    }

    pub async fn next(&mut self) -> DriverEvent {
        self.events.recv().await.unwrap_or(DriverEvent::Lost)
    }

    /// How it ended, past what else it says.
    pub async fn verdict(&mut self) -> DriverEvent {
        loop {
            match self.next().await {
                DriverEvent::Progress(_)
                | DriverEvent::AtSwitchOver { .. }
                | DriverEvent::PostCopy(_)
                | DriverEvent::Stalled { .. }
                | DriverEvent::Completing
                | DriverEvent::CompletingStalled { .. } => {}
                verdict @ (DriverEvent::Sent(_)
                | DriverEvent::Arrived(_)
                | DriverEvent::Completed(_)
                | DriverEvent::Lost) => return verdict,
            }
        }
    }
}

const CANCELLED_BY: &str = "the server";

/// The source's.
struct Sender {
    told: mpsc::Sender<DriverEvent>,
    ordered: mpsc::Receiver<Order>,
}

impl Sender {
    async fn tell(&self, event: DriverEvent) {
        let _ = self.told.send(event).await;
    }

    /// From wherever it begins to the verdict.
    async fn send(&mut self, begin: Begin, gate: impl Gate) -> Result<HandedOver, OutgoingFailed> {
        let waiting = match begin {
            Begin::PreCopy(copying) => {
                let told = self.told.clone();
                copying.run(on_progress(told), gate, cancelled(&mut self.ordered)).await?
            }
            Begin::AtSwitchOver(waiting) => waiting,
            Begin::Committed(waiting) => return self.finish(waiting.commit().await?).await,
            Begin::SwitchingOver(switching) => return self.finish(switching.finish().await?).await,
            Begin::PostCopy(sending) => return self.post_copy(sending).await,
            Begin::Stalled(stalled) => {
                let sending = self.connected_anew(stalled).await;
                return self.post_copy(sending).await;
            }
        };
        self.tell(DriverEvent::AtSwitchOver { stopped_at: waiting.stopped_at() }).await;
        let switched = waiting.decide(decided(&mut self.ordered)).await?;
        self.finish(switched).await
    }

    async fn finish(&mut self, switched: Switched) -> Result<HandedOver, OutgoingFailed> {
        match switched {
            Switched::HandedOver(handed_over) => Ok(handed_over),
            Switched::PostCopy(sending) => self.post_copy(sending).await,
        }
    }

    async fn post_copy(&mut self, mut sending: PostCopy) -> Result<HandedOver, OutgoingFailed> {
        loop {
            self.tell(DriverEvent::PostCopy(sending.adjust())).await;
            match sending.run(on_progress(self.told.clone())).await {
                Ok(handed_over) => return Ok(handed_over),
                Err(PostCopyBroken::Failed(failed)) => return Err(failed),
                Err(PostCopyBroken::Stalled(stalled)) => sending = self.connected_anew(stalled).await,
            }
        }
    }

    /// Waits for as long as it takes until it is ordered to connect, and can.
    async fn connected_anew(&mut self, mut stalled: Stalled) -> PostCopy {
        self.tell(DriverEvent::Stalled { why: stalled.why().to_owned() }).await;
        loop {
            match self.ordered.recv().await {
                Some(Order::Connect { to, reply }) => match stalled.recover(to).await {
                    Ok(sending) => {
                        let _ = reply.send(Ok(CommandOutcome::Done));
                        return sending;
                    }
                    Err(again) => {
                        let _ = reply.send(Err(failed(&again.cause)));
                        stalled = again.stalled;
                    }
                },
                Some(Order::Commit { .. } | Order::Cancel | Order::Listen { .. }) => {}
                None => std::future::pending().await,
            }
        }
    }
}

fn on_progress(told: mpsc::Sender<DriverEvent>) -> impl FnMut(Progress) {
    move |progress| {
        let _ = told.try_send(DriverEvent::Progress(progress));
    }
}

async fn cancelled(ordered: &mut mpsc::Receiver<Order>) -> String {
    loop {
        match ordered.recv().await {
            Some(Order::Cancel) => return CANCELLED_BY.to_owned(),
            // Too early: whoever ordered it sees that nobody accepts.
            Some(Order::Commit { .. } | Order::Connect { .. } | Order::Listen { .. }) => {}
            None => std::future::pending().await,
        }
    }
}

async fn decided(ordered: &mut mpsc::Receiver<Order>) -> Decision {
    loop {
        match ordered.recv().await {
            Some(Order::Cancel) => return Decision::Cancel { by: CANCELLED_BY.to_owned() },
            Some(Order::Commit { accepted }) => {
                let _ = accepted.send(());
                return Decision::Commit;
            }
            Some(Order::Connect { .. } | Order::Listen { .. }) => {}
            None => std::future::pending().await,
        }
    }
}

/// The destination's.
struct Receiver {
    told: mpsc::Sender<DriverEvent>,
    ordered: mpsc::Receiver<Order>,
}

impl Receiver {
    /// From wherever it begins to the verdict.
    async fn receive(&mut self, begin: BeginIncoming) -> DriverEvent {
        let completing = match begin {
            BeginIncoming::Waiting(incoming) => match incoming.wait().await {
                Ok(Arrived::Ran(ran)) => return DriverEvent::Arrived(Ok(ran)),
                Err(failed) => return DriverEvent::Arrived(Err(failed)),
                Ok(Arrived::Completing(completing)) => self.begun(completing).await,
            },
            BeginIncoming::Completing(completing) => self.begun(completing).await,
            BeginIncoming::Stalled(stalled) => self.listening_anew(stalled).await,
        };
        let ran = completing.ran_at();
        DriverEvent::Completed(self.complete(completing).await.map(|()| ran))
    }

    async fn begun(&self, completing: Completing) -> Completing {
        let _ = self.told.send(DriverEvent::Completing).await;
        completing
    }

    async fn complete(&mut self, mut completing: Completing) -> Result<(), String> {
        loop {
            match completing.wait().await {
                Ok(()) => return Ok(()),
                Err(CompletingBroken::Lost { why }) => return Err(why),
                // Whether it is connected anew shows in QEMU's events.
                Err(CompletingBroken::Stalled(stalled)) => completing = self.listening_anew(stalled).await,
            }
        }
    }

    /// Waits for as long as it takes until it is ordered to listen, and can.
    async fn listening_anew(&mut self, mut stalled: StalledIncoming) -> Completing {
        let _ = self.told.send(DriverEvent::CompletingStalled { why: stalled.why().to_owned() }).await;
        loop {
            match self.ordered.recv().await {
                Some(Order::Listen { address, reply }) => match stalled.listen(address, ListenPorts::Any).await {
                    Ok((port, completing)) => {
                        let _ = reply.send(Ok(port));
                        return completing;
                    }
                    Err(again) => {
                        let _ = reply.send(Err(failed(&again.cause)));
                        stalled = again.stalled;
                    }
                },
                Some(Order::Commit { .. } | Order::Cancel | Order::Connect { .. }) => {}
                None => std::future::pending().await,
            }
        }
    }
}
