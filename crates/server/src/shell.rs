//! The one task that owns the state machine and the store, and gives it time.
//!
//! ```text
//!  Serving ── a commit fails ──▶ Broken ── the store can be written again ──▶ Serving
//!                                  │        (state rebuilt from the store)
//!                                  └── tried too often ──▶ the server ends with an error
//! ```
//! Effects are carried out strictly in order, so nothing leaves before what it rests on is durable.
//! While broken, reading goes on from what the store holds, changes are refused with what to do, and
//! agents are kept out: they must say hello to the state machine that will be.

use crate::hub::{End, Hub};
use crate::metrics::Metrics;
use crate::power::{PowerDrivers, PowerResult};
use crate::store::{Reader, Store, StoreError};
use drover_api::agent::ToAgent;
use drover_control::interface::{
    Action, Actor, AgentMessage, Commit, ConnectionId, Effect, Input, PersistedState, Refusal, RefusalKind, Reply,
    Request, RequestId,
};
use drover_control::{Control, Now, Settings};
use drover_model::{EventSeq, HostId, Millis, Revision, TimeMs};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Waits between tries of a broken store: doubled from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// The wall clock, for people and for what is dated by it. The state machine decides by [`Clock`].
pub fn now() -> TimeMs {
    // Before 1970 the clock is not set at all; 0 keeps the loops waiting rather than wrong.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The cluster clock: the wall clock's time when the server started, and from then on the monotonic clock's. See
/// `docs/decisions/0010-elapsed-time-is-monotonic.md`.
#[derive(Debug, Clone, Copy)]
struct Clock {
    begun: Instant,
    begun_at: TimeMs,
}

impl Clock {
    /// Goes on from no earlier time than the store knows: the wall clock may have been set back since.
    fn begin(loaded: &PersistedState) -> Self {
        Self { begun: Instant::now(), begun_at: now().max(loaded.newest_time()) }
    }

    fn now(&self) -> Now {
        self.at(Instant::now(), now())
    }

    fn at(&self, instant: Instant, wall: TimeMs) -> Now {
        let elapsed = u64::try_from(instant.saturating_duration_since(self.begun).as_millis()).unwrap_or(u64::MAX);
        Now { at: self.begun_at.plus(Millis(elapsed)), wall }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    #[error("the store failed {tries} times in a row; correct what it says and start the server again")]
    Store { tries: u32, source: StoreError },
    #[error("the server no longer holds its store")]
    LeaseLost { source: StoreError },
}

/// A request of the API on its way to the state machine.
#[derive(Debug)]
pub struct Change {
    pub actor: Actor,
    pub idempotency_key: Option<String>,
    pub if_match: Option<Revision>,
    pub action: Action,
}

impl Change {
    /// Without conditions.
    pub fn new(actor: Actor, action: Action) -> Self {
        Self { actor, idempotency_key: None, if_match: None, action }
    }
}

type Question = Box<dyn FnOnce(&Control) + Send>;
type Answer = oneshot::Sender<Result<Reply, Refusal>>;

enum Message {
    Change(Box<Change>, Answer),
    Query(Question),
    /// `received`: when its frame was read from the connection.
    Agent {
        host: HostId,
        connection: ConnectionId,
        message: Box<AgentMessage>,
        received: Instant,
    },
    Power(PowerResult),
}

/// How the rest of the server reaches the state machine.
#[derive(Clone)]
pub struct ShellHandle {
    queue: mpsc::Sender<Message>,
    serving: Arc<AtomicBool>,
    events: watch::Receiver<EventSeq>,
    reader: Arc<dyn Reader>,
}

impl std::fmt::Debug for ShellHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ShellHandle")
    }
}

fn unavailable(detail: impl Into<String>) -> Refusal {
    Refusal { kind: RefusalKind::Unavailable, field: None, detail: detail.into() }
}

impl ShellHandle {
    /// Asks for a change and waits until it is durable or refused.
    pub async fn submit(&self, change: Change) -> Result<Reply, Refusal> {
        let (sender, answer) = oneshot::channel();
        if self.queue.send(Message::Change(Box::new(change), sender)).await.is_err() {
            return Err(unavailable("the server is ending; try again"));
        }
        answer.await.unwrap_or_else(|_| Err(unavailable("the server is ending; look before you try again")))
    }

    /// Reads from the state machine.
    pub async fn query<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Control) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (sender, answer) = oneshot::channel();
        let question: Question = Box::new(move |control| {
            // Whoever asked may have gone away meanwhile.
            let _gone = sender.send(question(control));
        });
        if self.queue.send(Message::Query(question)).await.is_err() {
            return Err(unavailable("the server is ending; try again"));
        }
        answer.await.map_err(|_| unavailable("the store can't be read at the moment; try again"))
    }

    /// `received`: when the frame was read, or the connection's end was noticed.
    pub async fn agent(&self, host: &HostId, connection: ConnectionId, message: AgentMessage, received: Instant) {
        let message = Message::Agent { host: host.clone(), connection, message: Box::new(message), received };
        // It fails only when the server ends, and the agent will say it all to the next one.
        let _ending = self.queue.send(message).await;
    }

    async fn power(&self, result: PowerResult) {
        let _ending = self.queue.send(Message::Power(result)).await;
    }

    /// Whether changes can be made durable now.
    pub fn serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    /// The newest event that is durable; changes whenever there is a newer one.
    pub fn newest_event(&self) -> watch::Receiver<EventSeq> {
        self.events.clone()
    }

    /// What is durable, read past the state machine.
    pub fn reader(&self) -> &dyn Reader {
        &*self.reader
    }

    /// Hands over what power drivers find, for as long as they live.
    pub async fn forward_power(self, mut results: mpsc::Receiver<PowerResult>) {
        while let Some(result) = results.recv().await {
            self.power(result).await;
        }
    }
}

/// What the shell carries effects out with.
pub struct Surroundings {
    pub hub: Arc<Hub>,
    pub power: PowerDrivers,
    pub metrics: Arc<Metrics>,
    pub tick: Duration,
    pub queue_max: usize,
    pub store_retries_max: u32,
}

enum Health {
    Serving,
    /// `readable`: the state was rebuilt, so what is read is what is durable.
    Broken {
        why: String,
        retry_at: Instant,
        readable: bool,
    },
}

pub struct Shell {
    control: Control,
    settings: Settings,
    store: Box<dyn Store>,
    around: Surroundings,
    queue: mpsc::Receiver<Message>,
    serving: Arc<AtomicBool>,
    events: watch::Sender<EventSeq>,
    open: BTreeMap<RequestId, Answer>,
    next_request: u64,
    clock: Clock,
    health: Health,
    /// Since the last commit that succeeded.
    failures: u32,
}

impl Shell {
    pub async fn start(
        mut store: Box<dyn Store>,
        settings: Settings,
        around: Surroundings,
    ) -> Result<(Self, ShellHandle), StoreError> {
        let loaded = store.load().await?;
        let clock = Clock::begin(&loaded);
        let newest = loaded.events.last().map_or(EventSeq(0), |event| event.seq);
        around.metrics.loaded(&loaded.objects);
        let control = build(loaded, &settings, clock.now());
        let (sender, queue) = mpsc::channel(around.queue_max);
        let (events, events_seen) = watch::channel(newest);
        let serving = Arc::new(AtomicBool::new(true));
        let handle =
            ShellHandle { queue: sender, serving: serving.clone(), events: events_seen, reader: store.reader() };
        let shell = Self {
            control,
            settings,
            store,
            around,
            queue,
            serving,
            events,
            open: BTreeMap::new(),
            next_request: 0,
            clock,
            health: Health::Serving,
            failures: 0,
        };
        Ok((shell, handle))
    }

    /// Runs until `ending` is cancelled, until the store has failed too often, or another process has taken it over.
    pub async fn run(mut self, ending: CancellationToken) -> Result<(), ShellError> {
        let ended = self.serve(ending).await;
        match self.store.release().await {
            Ok(()) | Err(StoreError::LeaseLost { .. }) => {}
            Err(error) => tracing::warn!(error = %chain(&error), "the store's lease was not given back; it expires"),
        }
        ended
    }

    async fn serve(&mut self, ending: CancellationToken) -> Result<(), ShellError> {
        let mut ticks = tokio::time::interval(self.around.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    // What was said before the tick is heard before anybody is judged by it.
                    self.take_waiting().await?;
                    self.tick().await?;
                }
                message = self.queue.recv() => {
                    let Some(message) = message else { return Ok(()) };
                    self.take(message).await?;
                }
                () = ending.cancelled() => return Ok(()),
            }
        }
    }

    /// As many messages as wait now: those that come meanwhile don't put off the tick.
    async fn take_waiting(&mut self) -> Result<(), ShellError> {
        for _ in 0..self.queue.len() {
            let Ok(message) = self.queue.try_recv() else { break };
            self.take(message).await?;
        }
        Ok(())
    }

    async fn tick(&mut self) -> Result<(), ShellError> {
        match &self.health {
            Health::Serving => {
                self.step(Input::Tick).await?;
                self.maintain().await
            }
            Health::Broken { retry_at, .. } if Instant::now() >= *retry_at => self.recover().await,
            Health::Broken { .. } => Ok(()),
        }
    }

    /// Not while broken: what the store does of its own needs the room that is missing.
    async fn maintain(&mut self) -> Result<(), ShellError> {
        if !matches!(self.health, Health::Serving) {
            return Ok(());
        }
        match self.store.maintain(self.clock.now().at).await {
            Ok(()) => Ok(()),
            Err(error) => self.broken(error).await,
        }
    }

    async fn take(&mut self, message: Message) -> Result<(), ShellError> {
        let input = match (message, &self.health) {
            // Dropped unanswered, it is told that the store can't be read.
            (Message::Query(_), Health::Broken { readable: false, .. }) => return Ok(()),
            (Message::Query(question), Health::Serving | Health::Broken { .. }) => {
                // A view that panics is a defect of the view: whoever asked is told, and the loops go on.
                let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| question(&self.control)));
                if asked.is_err() {
                    tracing::error!("a view of the state failed; please report what the log says above");
                }
                return Ok(());
            }
            (Message::Change(change, answer), Health::Serving) => {
                self.next_request += 1;
                let id = RequestId(self.next_request);
                self.open.insert(id, answer);
                let Change { actor, idempotency_key, if_match, action } = *change;
                let fresh = crate::secret::fresh();
                Input::Request(Request { id, actor, idempotency_key, if_match, fresh, action })
            }
            (Message::Change(_, answer), Health::Broken { why, .. }) => {
                let _gone = answer.send(Err(unavailable(why.clone())));
                return Ok(());
            }
            (Message::Agent { host, connection, message, received }, Health::Serving) => {
                self.step(Input::Agent { host, connection, message: *message }).await?;
                self.around.metrics.agent_message_handled(received.elapsed());
                return Ok(());
            }
            (Message::Agent { connection, .. }, Health::Broken { .. }) => {
                self.around.hub.disconnect(connection, End::Closed("the store can't be used"));
                return Ok(());
            }
            (Message::Power(PowerResult { host, op, result }), Health::Serving) => Input::Power { host, op, result },
            (Message::Power(_), Health::Broken { .. }) => return Ok(()),
        };
        self.step(input).await
    }

    async fn step(&mut self, input: Input) -> Result<(), ShellError> {
        for effect in self.control.step(self.clock.now(), input) {
            match effect {
                Effect::Commit(commit) => {
                    if let Err(error) = self.commit(&commit).await {
                        return self.broken(error).await;
                    }
                }
                Effect::Send { host: _, connection, id, command } => {
                    self.around.hub.send(connection, ToAgent::Command { id, command: Box::new(command) });
                }
                Effect::Network { host: _, connection, network } => {
                    self.around.hub.send(connection, ToAgent::Network { network });
                }
                Effect::StorePatterns(patterns) => {
                    if let Err(error) = self.store.keep(&patterns).await {
                        return self.broken(error).await;
                    }
                }
                Effect::Power { host, op } => self.around.power.ask(&host, op),
                Effect::Reply { request, result } => {
                    if let Some(answer) = self.open.remove(&request) {
                        // The client may have gone away; the change stands.
                        let _gone = answer.send(result);
                    }
                }
                Effect::Disconnect { host: _, connection, why } => {
                    self.around.hub.disconnect(connection, End::Refused(why));
                }
            }
        }
        Ok(())
    }

    async fn commit(&mut self, commit: &Commit) -> Result<(), StoreError> {
        let started = Instant::now();
        self.store.commit(commit).await?;
        self.failures = 0;
        self.around.metrics.committed(commit, started.elapsed());
        for event in &commit.events {
            tracing::info!(object = %event.object, kind = %event.kind, severity = %event.severity, "{}", event.text);
        }
        if let Some(event) = commit.events.last() {
            self.events.send_replace(event.seq);
        }
        Ok(())
    }

    /// What was not committed never happened: nobody is told it did, and the state is rebuilt.
    async fn broken(&mut self, error: StoreError) -> Result<(), ShellError> {
        tracing::error!(error = %chain(&error), "a change could not be stored");
        self.serving.store(false, Ordering::Release);
        self.around.metrics.store_failed();
        let told = match &error {
            StoreError::Full { .. }
            | StoreError::Conflict { .. }
            | StoreError::RecordConflict { .. }
            | StoreError::RevisionConflict { .. }
            | StoreError::LeaseHeld { .. }
            | StoreError::LeaseLost { .. } => format!("{error}. Nothing was changed"),
            StoreError::Io { .. }
            | StoreError::Lock { .. }
            | StoreError::Migration { .. }
            | StoreError::Unreadable { .. }
            | StoreError::Schema { .. } => {
                format!(
                    "{error}. Whether the change was made is not known: look, or repeat it with its Idempotency-Key"
                )
            }
        };
        for (_, answer) in std::mem::take(&mut self.open) {
            let _gone = answer.send(Err(unavailable(told.clone())));
        }
        self.around.hub.disconnect_all("the store can't be used");
        if matches!(error, StoreError::LeaseLost { .. }) {
            return Err(ShellError::LeaseLost { source: error });
        }
        // Queries are answered from what is durable, from here on.
        match self.reload().await {
            Ok(()) => self.retry_later(error, true),
            Err(error) => self.retry_later(error, false),
        }
    }

    fn retry_later(&mut self, error: StoreError, readable: bool) -> Result<(), ShellError> {
        self.failures += 1;
        if self.failures > self.around.store_retries_max {
            return Err(ShellError::Store { tries: self.failures, source: error });
        }
        let wait = RETRY_FIRST.saturating_mul(1 << (self.failures - 1).min(16)).min(RETRY_LAST);
        self.health = Health::Broken { why: error.to_string(), retry_at: Instant::now() + wait, readable };
        Ok(())
    }

    async fn recover(&mut self) -> Result<(), ShellError> {
        // The state is rebuilt even if it was before: its clocks start now.
        if let Err(error) = self.reload().await {
            return self.retry_later(error, false);
        }
        match self.store.probe().await {
            Ok(()) => {}
            Err(source @ StoreError::LeaseLost { .. }) => return Err(ShellError::LeaseLost { source }),
            Err(error) => return self.retry_later(error, true),
        }
        tracing::info!("the store can be written again");
        self.health = Health::Serving;
        self.serving.store(true, Ordering::Release);
        Ok(())
    }

    async fn reload(&mut self) -> Result<(), StoreError> {
        let loaded = self.store.load().await?;
        self.around.metrics.loaded(&loaded.objects);
        if let Some(event) = loaded.events.last() {
            self.events.send_replace(event.seq);
        }
        self.control = build(loaded, &self.settings, self.clock.now());
        Ok(())
    }
}

fn build(loaded: PersistedState, settings: &Settings, now: Now) -> Control {
    Control::load(loaded, settings.clone(), now)
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_control::interface::{Idempotency, Object, Stored};

    #[test]
    fn the_cluster_clock_follows_no_step_of_the_wall_clock() {
        let clock = Clock { begun: Instant::now(), begun_at: TimeMs(1_790_000_000_000) };
        for wall in [clock.begun_at, TimeMs(clock.begun_at.0 + 3_600_000), TimeMs(clock.begun_at.0 - 3_600_000)] {
            let now = clock.at(clock.begun + Duration::from_millis(1_234), wall);
            assert_eq!(now, Now { at: TimeMs(clock.begun_at.0 + 1_234), wall });
        }
    }

    #[test]
    fn a_server_goes_on_from_no_earlier_time_than_its_store_knows() {
        let mut loaded = PersistedState::default();
        let before = now();
        assert!(Clock::begin(&loaded).begun_at >= before);
        // The wall clock was an hour ahead when this was written, and was set right since.
        let at = now().plus(Millis::secs(3_600));
        let (key, fingerprint) = ("operator/k".to_owned(), String::new());
        let object = Object::Idempotency(Idempotency { key, fingerprint, reply: Reply::Done, at });
        loaded.objects.push(Stored { revision: Revision(1), object });
        assert_eq!(Clock::begin(&loaded).begun_at, at);
    }
}
