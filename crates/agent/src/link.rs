//! The connection to the server: dialled by the agent, held, and dialled again for as long as the agent lives.
//!
//! ```text
//!  Dialling ──TCP, TLS, WebSocket──▶ Hello ──Welcome──▶ Serving
//!     ▲                                │ Refused           │ silence, error, full queue
//!     └── wait: short at first ◀───────┴───────────────────┘
//! ```
//!
//! Losing the server stops no vm and no migration. After each connection the server gets everything anew: the whole
//! inventory, and the last word on each migration, because the one before may have been lost with the old connection.

use crate::clock::now_ms;
use crate::config::Limits;
use crate::console::Consoles;
use crate::error_chain::chain;
use crate::identity::Identity;
use crate::telemetry::Newest;
use crate::vms::{Answer, Supervisor, Update};
use drover_api::agent::{FromAgent, Hello, PATH, PROTOCOL_VERSION, Report, TO_AGENT_FRAME_MAX, ToAgent, Welcome};
use drover_model::command::CommandRefusal;
use drover_model::inventory::HostFacts;
use drover_model::{CommandId, HostId, TimeMs};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use rand::RngExt;
use rand::rngs::StdRng;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

/// Each wait before dialling again is longer than the one before by this factor.
const BACKOFF_FACTOR: f64 = 1.5;
/// Two agents must not dial in step: each wait is this share of itself or more, at random.
const JITTER_MIN: f64 = 0.5;
/// Clocks further apart than this are told of.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("can't reach the server at {host} port {port}")]
    Connect {
        host: String,
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("the server's TLS was not accepted, or it did not accept ours")]
    Tls(#[source] io::Error),
    #[error("the WebSocket broke")]
    WebSocket(#[from] WsError),
    #[error("the server did not answer within {} ms", .0.as_millis())]
    HandshakeTimeout(Duration),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server was silent for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the server refused this agent: {why}")]
    Refused { why: String },
    #[error("the server said something this agent does not understand: run the same version of drover on both")]
    NotUnderstood(#[source] serde_json::Error),
    #[error("the server takes frames too slowly")]
    Congested,
}

/// What the link needs to speak for its host.
pub struct Link {
    pub host: HostId,
    pub facts: HostFacts,
    pub identity: Identity,
    pub limits: Limits,
    pub supervisor: Arc<Supervisor>,
    pub load: watch::Receiver<Newest>,
    /// `migration_address` is not configured: it follows the connection's local address.
    pub learn_migration_address: bool,
}

impl Link {
    /// Never returns.
    pub async fn run(self) {
        let mut backoff = Backoff::new(self.limits, rand::make_rng());
        loop {
            let error = match self.connect_and_serve(&mut backoff).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let refused = matches!(error, LinkError::Refused { .. });
            let wait = if refused { self.limits.refused_wait() } else { backoff.next(Instant::now()) };
            tracing::warn!(error = chain(&error), again_in_ms = wait.as_millis() as u64, "not connected to the server");
            sleep(wait).await;
        }
    }

    async fn connect_and_serve(&self, backoff: &mut Backoff) -> Result<std::convert::Infallible, LinkError> {
        let wait_max = self.limits.connect_wait_max();
        let late = |_| LinkError::HandshakeTimeout(wait_max);
        let (socket, local) = timeout(wait_max, self.dial()).await.map_err(late)??;
        let (mut sink, mut stream) = socket.split();
        if self.learn_migration_address {
            self.supervisor.host().migration_address.send_replace(Some(local));
        }
        // Subscribed before the inventory is taken: what changes after it is told.
        let changes = self.supervisor.changes();
        let updates = self.supervisor.updates();
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            host: self.host.clone(),
            // Learned with the connection, where it is not configured.
            facts: HostFacts { overlay_address: self.supervisor.host().overlay_address(), ..self.facts.clone() },
            vms: self.supervisor.inventory(),
        };
        send(&mut sink, &FromAgent::Hello(hello)).await?;
        let welcome = timeout(wait_max, welcome(&mut stream)).await.map_err(late)??;
        backoff.connected();
        self.supervisor.host().net.connected();
        note_clock(welcome.now, now_ms());
        tracing::info!(server = self.identity.server_host, "connected");
        Serving::new(self, welcome, changes, updates).run(&mut sink, &mut stream).await
    }

    async fn dial(
        &self,
    ) -> Result<
        (impl Stream<Item = Result<Message, WsError>> + Sink<Message, Error = WsError> + Unpin + use<>, IpAddr),
        LinkError,
    > {
        let Identity { tls, server_host, server_name, agent_port } = &self.identity;
        let failed = |source| LinkError::Connect { host: server_host.clone(), port: *agent_port, source };
        let tcp = TcpStream::connect((server_host.as_str(), *agent_port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let local = tcp.local_addr().map_err(failed)?.ip();
        let tls = TlsConnector::from(Arc::clone(tls));
        let stream = tls.connect(server_name.clone(), tcp).await.map_err(LinkError::Tls)?;
        let authority = match server_host.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            Ok(IpAddr::V4(_)) | Err(_) => server_host.clone(),
        };
        let url = format!("wss://{authority}:{agent_port}{PATH}");
        let config = WebSocketConfig::default()
            .max_message_size(Some(TO_AGENT_FRAME_MAX))
            .max_frame_size(Some(TO_AGENT_FRAME_MAX))
            .read_buffer_size(16 << 10)
            .write_buffer_size(16 << 10);
        let (socket, _) = client_async_with_config(url, stream, Some(config)).await?;
        Ok((socket, local))
    }
}

async fn send(sink: &mut (impl Sink<Message, Error = WsError> + Unpin), message: &FromAgent) -> Result<(), LinkError> {
    sink.send(frame(message)).await.map_err(LinkError::from)
}

fn frame(message: &FromAgent) -> Message {
    let text = serde_json::to_string(message).expect("messages have string keys only, which always serialize");
    Message::text(text)
}

/// The server's first word.
async fn welcome(stream: &mut (impl Stream<Item = Result<Message, WsError>> + Unpin)) -> Result<Welcome, LinkError> {
    loop {
        match receive(stream.next().await)? {
            Some(ToAgent::Welcome(welcome)) => return Ok(welcome),
            Some(ToAgent::Refused { why }) => return Err(LinkError::Refused { why }),
            Some(
                ToAgent::Command { .. }
                | ToAgent::ConsoleOpen { .. }
                | ToAgent::ConsoleInput { .. }
                | ToAgent::ConsoleClose { .. }
                | ToAgent::Network { .. },
            )
            | None => {}
        }
    }
}

/// `None` for frames that only show that the server lives.
fn receive(message: Option<Result<Message, WsError>>) -> Result<Option<ToAgent>, LinkError> {
    match message {
        None => Err(LinkError::Closed),
        Some(Err(error)) => Err(error.into()),
        Some(Ok(Message::Text(text))) => serde_json::from_str(&text).map(Some).map_err(LinkError::NotUnderstood),
        Some(Ok(Message::Close(_))) => Err(LinkError::Closed),
        Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
    }
}

fn note_clock(server: TimeMs, own: TimeMs) {
    let apart = server.since(own).max(own.since(server));
    if apart.to_std() > CLOCK_SKEW_MAX {
        tracing::warn!(apart_ms = apart.0, "this host's clock and the server's disagree: synchronise them (NTP)");
    }
}

/// One connection that was welcomed.
struct Serving<'a> {
    link: &'a Link,
    report_every: Duration,
    changes: watch::Receiver<u64>,
    updates: broadcast::Receiver<Update>,
    load: watch::Receiver<Newest>,
    consoles: Consoles,
    /// Frames from tasks: answers and console output.
    frames: mpsc::Receiver<FromAgent>,
    frames_sender: mpsc::Sender<FromAgent>,
    reports_sent: u64,
}

impl<'a> Serving<'a> {
    fn new(
        link: &'a Link,
        welcome: Welcome,
        changes: watch::Receiver<u64>,
        updates: broadcast::Receiver<Update>,
    ) -> Self {
        let (frames_sender, frames) = mpsc::channel(link.limits.frames_waiting_max);
        let consoles = Consoles::new(frames_sender.clone(), link.limits);
        let report_every = welcome.report_every.to_std().max(REPORT_EVERY_MIN);
        let load = link.load.clone();
        Self { link, report_every, changes, updates, load, consoles, frames, frames_sender, reports_sent: 0 }
    }

    /// Until the connection ends; says why.
    async fn run(
        mut self,
        sink: &mut (impl Sink<Message, Error = WsError> + Unpin),
        stream: &mut (impl Stream<Item = Result<Message, WsError>> + Unpin),
    ) -> Result<std::convert::Infallible, LinkError> {
        let silence_max = self.link.limits.server_silence_max();
        let mut reports = interval(self.report_every);
        let mut pings = interval(self.link.limits.ping_every());
        for ticks in [&mut reports, &mut pings] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut heard_at = Instant::now();
        // The server may have missed the last word on a migration with the connection before.
        for update in self.link.supervisor.last_updates() {
            sink.feed(frame(&message_of(update))).await?;
        }
        loop {
            let message = tokio::select! {
                received = stream.next() => {
                    heard_at = Instant::now();
                    if let Some(message) = receive(received)? {
                        self.take(message)?;
                    }
                    continue;
                }
                frame = self.frames.recv() => frame,
                update = self.updates.recv() => match update {
                    Ok(update) => Some(message_of(update)),
                    Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => {
                        return Err(LinkError::Congested);
                    }
                },
                changed = self.changes.changed() => match changed {
                    Ok(()) => Some(self.report(false)),
                    Err(_) => return Err(LinkError::Closed),
                },
                _ = reports.tick() => Some(self.report(true)),
                _ = pings.tick() => {
                    if heard_at.elapsed() > silence_max {
                        return Err(LinkError::Silent(silence_max));
                    }
                    send_in_time(sink, Message::Ping(Vec::new().into()), silence_max).await?;
                    continue;
                }
            };
            if let Some(message) = message {
                send_in_time(sink, frame(&message), silence_max).await?;
            }
        }
    }

    fn take(&mut self, message: ToAgent) -> Result<(), LinkError> {
        match message {
            ToAgent::Command { id, command } => {
                self.answer_when_done(id, self.link.supervisor.command(*command));
            }
            ToAgent::ConsoleOpen { session, vm } => {
                let dir = self.link.supervisor.running_dir(&vm);
                self.consoles.open(session, vm, dir);
            }
            ToAgent::ConsoleInput { session, data } => self.consoles.input(session, data),
            ToAgent::ConsoleClose { session } => self.consoles.close(session),
            ToAgent::Refused { why } => return Err(LinkError::Refused { why }),
            ToAgent::Network { network } => {
                let host = self.link.supervisor.host();
                host.net.tell(network, host.overlay_address());
            }
            ToAgent::Welcome(_) => {}
        }
        Ok(())
    }

    /// Exactly one answer per command, while this connection lasts. How many can wait is bounded by the mailboxes.
    fn answer_when_done(&self, id: CommandId, answer: oneshot::Receiver<Answer>) {
        let frames = self.frames_sender.clone();
        tokio::spawn(async move {
            let gone = |_| {
                let why = "the agent stops: the vm's state is unchanged or seen at its return".to_owned();
                Err(CommandRefusal::Failed { why })
            };
            let answer = answer.await.unwrap_or_else(gone);
            let _ = frames.send(FromAgent::Answer { id, answer }).await;
        });
    }

    fn report(&mut self, with_load: bool) -> FromAgent {
        self.reports_sent += 1;
        // A change that is in this report needs no other one.
        self.changes.mark_unchanged();
        // Each sample is reported once.
        let fresh = with_load && self.load.has_changed().unwrap_or(false);
        let load = if fresh { self.load.borrow_and_update().clone().map(|(_, load)| load) } else { None };
        let (network, network_error) = self.link.supervisor.host().net.applied();
        let (seq, at, vms) = (self.reports_sent, now_ms(), self.link.supervisor.inventory());
        FromAgent::Report(Report { seq, at, vms, load, network, network_error })
    }
}

/// Whatever the server asks for: more often than this is an overload, not a report.
const REPORT_EVERY_MIN: Duration = Duration::from_millis(100);

async fn send_in_time(
    sink: &mut (impl Sink<Message, Error = WsError> + Unpin),
    message: Message,
    wait_max: Duration,
) -> Result<(), LinkError> {
    timeout(wait_max, sink.send(message)).await.map_err(|_| LinkError::Congested)?.map_err(LinkError::from)
}

fn message_of(update: Update) -> FromAgent {
    FromAgent::Migration { vm: update.vm, migration: update.migration, update: update.update }
}

/// How long to wait before dialling again.
struct Backoff {
    limits: Limits,
    random: StdRng,
    wait: Duration,
    lost_at: Option<Instant>,
}

impl Backoff {
    fn new(limits: Limits, random: StdRng) -> Self {
        Self { limits, random, wait: limits.reconnect_min(), lost_at: None }
    }

    fn connected(&mut self) {
        self.wait = self.limits.reconnect_min();
        self.lost_at = None;
    }

    fn next(&mut self, now: Instant) -> Duration {
        let lost_at = *self.lost_at.get_or_insert(now);
        let eager = now.duration_since(lost_at) < self.limits.reconnect_eager();
        let max = if eager { self.limits.reconnect_eager_max() } else { self.limits.reconnect_max() };
        let wait = self.wait.min(max);
        self.wait = self.wait.mul_f64(BACKOFF_FACTOR).min(self.limits.reconnect_max());
        wait.mul_f64(self.random.random_range(JITTER_MIN..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn waits_grow_to_their_limit_and_start_anew_after_a_connection() {
        let limits = Limits { reconnect_max_ms: 50_000, ..Limits::default() };
        let mut backoff = Backoff::new(limits, StdRng::seed_from_u64(1));
        let lost_at = Instant::now();
        assert!(backoff.next(lost_at) <= limits.reconnect_min());
        for _ in 0..20 {
            assert!(backoff.next(lost_at) <= limits.reconnect_eager_max());
        }
        let late = backoff.next(lost_at + limits.reconnect_eager());
        assert!(late > limits.reconnect_eager_max() && late <= limits.reconnect_max(), "{late:?}");
        backoff.connected();
        assert!(backoff.next(lost_at) <= limits.reconnect_min());
    }
}
