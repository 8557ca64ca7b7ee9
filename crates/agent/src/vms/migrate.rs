//! The source's end of a live migration, as the owner of the vm sees it, and what drives both ends. The destination's
//! is in [`super::receive`].
//!
//! A driver task follows QEMU and tells what happens; the vm's own task decides what it means, writes it down, and
//! passes on orders. A driver that is dropped changes nothing in QEMU, so an agent that restarts adopts.
//!
//! ```text
//!  Copying ──AtSwitchOver──▶ (commit: recorded, then ordered) ──▶ Committed ──Sent──▶ HandedOver
//!      └───── cancelled, failed, no commit in time: SourceResumed ◀─────┘ QEMU could not send it all
//! ```

use super::Answer;
use super::record::{Record, Role, SendStep};
use super::task::{VmTask, failed};
use crate::clock::{now_ms, time_ms};
use crate::error_chain::chain;
use drover_model::command::{CommandOutcome, CommandRefusal, MigrationTarget, MigrationUpdate};
use drover_model::inventory::{OutgoingPhase, VmState};
use drover_model::migration::{DowntimePhases, MigrationProgress, MigrationReport};
use drover_model::policy::MigrationPolicy;
use drover_model::{Bytes, Generation, MigrationId, Millis};
use drover_qemu::migration::{
    Adopted, AtSwitchOver, Decision, Figures, HandedOver, Incoming, IncomingFailed, Limits, OutgoingFailed, PreCopy,
    Progress, RanAt, SourceGuest, SwitchingOver, adopt,
};
use drover_qemu::{Machine, RunStatus};
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

/// Word from a driver that its vm's task has not heard yet; progress beyond that is dropped.
const DRIVER_EVENTS_MAX: usize = 16;
const DRIVER_ORDERS_MAX: usize = 4;
/// Commands that wait for a driver's end.
const DEFERRED_MAX: usize = 16;
/// How long the driver of a process that ended is given to say how the migration ended.
const VERDICT_WAIT_MAX: Duration = Duration::from_secs(3);
/// How long QEMU may take to give up a stuck switch-over, and how often it is asked.
const GIVE_UP_WAIT_MAX: Duration = Duration::from_secs(15);
const GIVE_UP_POLL: Duration = Duration::from_millis(50);

/// Follows one migration in QEMU.
pub(super) struct Driver {
    events: mpsc::Receiver<DriverEvent>,
    orders: mpsc::Sender<Order>,
    task: AbortHandle,
    /// Of an incoming one: where it listens.
    pub target: Option<MigrationTarget>,
}

pub(super) enum DriverEvent {
    Progress(Progress),
    AtSwitchOver {
        stopped_at: Option<SystemTime>,
    },
    Sent(Box<Result<HandedOver, OutgoingFailed>>),
    Arrived(Result<RanAt, IncomingFailed>),
    /// It ended without a verdict, which only a defect can cause.
    Lost,
}

enum Order {
    /// `accepted` is told once nothing can decide otherwise any more.
    Commit {
        accepted: oneshot::Sender<()>,
    },
    Cancel,
}

/// A command whose answer the driver's end decides.
pub(super) enum Deferred {
    Cancel(oneshot::Sender<Answer>),
    TakeBack { generation: Generation, reply: oneshot::Sender<Answer> },
}

/// Where in a migration a driver begins.
enum Begin {
    PreCopy(PreCopy),
    AtSwitchOver(AtSwitchOver),
    /// The commit was recorded, and perhaps not told to QEMU.
    Committed(AtSwitchOver),
    SwitchingOver(SwitchingOver),
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Driver {
    fn outgoing(begin: Begin) -> Self {
        let (told, events) = mpsc::channel(DRIVER_EVENTS_MAX);
        let (orders, mut ordered) = mpsc::channel(DRIVER_ORDERS_MAX);
        let task = tokio::spawn(async move {
            let sent = send(begin, &mut ordered, &told).await;
            let _ = told.send(DriverEvent::Sent(Box::new(sent))).await;
        });
        Self { events, orders, task: task.abort_handle(), target: None }
    }

    pub(super) fn incoming(incoming: Incoming, target: Option<MigrationTarget>) -> Self {
        let (told, events) = mpsc::channel(DRIVER_EVENTS_MAX);
        let (orders, _) = mpsc::channel(DRIVER_ORDERS_MAX);
        let task = tokio::spawn(async move {
            let _ = told.send(DriverEvent::Arrived(incoming.wait().await)).await;
        });
        Self { events, orders, task: task.abort_handle(), target }
    }

    pub async fn next(&mut self) -> DriverEvent {
        self.events.recv().await.unwrap_or(DriverEvent::Lost)
    }

    /// How it ended, past what else it says.
    async fn verdict(&mut self) -> DriverEvent {
        loop {
            match self.next().await {
                DriverEvent::Progress(_) | DriverEvent::AtSwitchOver { .. } => {}
                verdict @ (DriverEvent::Sent(_) | DriverEvent::Arrived(_) | DriverEvent::Lost) => return verdict,
            }
        }
    }
}

/// The source's driver, from wherever it begins to the verdict.
async fn send(
    begin: Begin,
    orders: &mut mpsc::Receiver<Order>,
    told: &mpsc::Sender<DriverEvent>,
) -> Result<HandedOver, OutgoingFailed> {
    let waiting = match begin {
        Begin::PreCopy(copying) => {
            let on_progress = |progress| {
                let _ = told.try_send(DriverEvent::Progress(progress));
            };
            copying.run(on_progress, cancelled(orders)).await?
        }
        Begin::AtSwitchOver(waiting) => waiting,
        Begin::Committed(waiting) => return waiting.commit().await,
        Begin::SwitchingOver(switching) => return switching.finish().await,
    };
    let _ = told.send(DriverEvent::AtSwitchOver { stopped_at: waiting.stopped_at() }).await;
    waiting.decide(decided(orders)).await
}

const CANCELLED_BY: &str = "the server";

async fn cancelled(orders: &mut mpsc::Receiver<Order>) -> String {
    loop {
        match orders.recv().await {
            Some(Order::Cancel) => return CANCELLED_BY.to_owned(),
            // Too early: whoever ordered it sees that nobody accepts.
            Some(Order::Commit { .. }) => {}
            None => std::future::pending().await,
        }
    }
}

async fn decided(orders: &mut mpsc::Receiver<Order>) -> Decision {
    match orders.recv().await {
        Some(Order::Cancel) => Decision::Cancel { by: CANCELLED_BY.to_owned() },
        Some(Order::Commit { accepted }) => {
            let _ = accepted.send(());
            Decision::Commit
        }
        None => std::future::pending().await,
    }
}

fn limits(policy: MigrationPolicy) -> Limits {
    Limits {
        downtime_max: policy.downtime_max.to_std(),
        total_max: policy.total_max.to_std(),
        bandwidth_max: (policy.bandwidth_max.0 > 0).then_some(policy.bandwidth_max.0),
        commit_wait_max: policy.commit_wait_max.to_std(),
    }
}

fn progress_of(progress: Progress) -> MigrationProgress {
    MigrationProgress {
        transferred: Bytes(progress.transferred),
        remaining: Bytes(progress.remaining),
        total: Bytes(progress.total),
        rounds: progress.rounds,
        dirty_rate: Bytes(progress.dirty_rate),
        throughput: Bytes(progress.throughput),
    }
}

/// What the source knows; the server adds what was predicted and when the destination ran.
fn report_of(figures: &Figures) -> MigrationReport {
    let millis = |span: Duration| Millis(span.as_millis() as u64);
    MigrationReport {
        predicted_total: Millis::ZERO,
        total: millis(figures.total),
        downtime: Millis::ZERO,
        downtime_phases: DowntimePhases {
            commit: millis(figures.commit_wait),
            copy: millis(figures.copy),
            resume: Millis::ZERO,
        },
        transferred: Bytes(figures.transferred),
        memory: Bytes(figures.memory),
        rounds: figures.rounds,
    }
}

/// The source.
impl VmTask {
    pub(super) async fn migrate_out(
        &mut self,
        migration: MigrationId,
        target: MigrationTarget,
        policy: MigrationPolicy,
    ) -> Answer {
        let Some((record, _)) = self.known.clone() else { return Err(CommandRefusal::UnknownVm) };
        let machine = self.machine()?;
        let role = Role::Send { migration, target: target.clone(), limits: policy, step: SendStep::Copying };
        let sending = VmState::Outgoing { migration, phase: OutgoingPhase::PreCopy };
        self.record(Record { role, arrived_by: None, ..record.clone() }, sending)?;
        self.last_update = None;
        match PreCopy::start(&machine, SocketAddr::new(target.address, target.port), limits(policy)).await {
            Ok(copying) => {
                self.driver = Some(Driver::outgoing(Begin::PreCopy(copying)));
                Ok(CommandOutcome::Done)
            }
            Err(error) => {
                self.record_fact(record, VmState::Running);
                Err(failed(&error))
            }
        }
    }

    /// The right to run has left: written down before QEMU hears of it, so that no later agent resumes the guest.
    pub(super) async fn commit_switch_over(&mut self) -> Answer {
        let Some((record, state)) = self.known.clone() else { return Err(CommandRefusal::UnknownVm) };
        let (Some(migration), Some(committed)) = (state.migration(), at_step(&record, SendStep::Committed)) else {
            return Err(CommandRefusal::WrongState { state: state.word().to_owned() });
        };
        let Some(orders) = self.driver.as_ref().map(|driver| driver.orders.clone()) else {
            return Err(unreachable_qemu());
        };
        self.record(committed, VmState::Outgoing { migration, phase: OutgoingPhase::SwitchingOver })?;
        let (accepted, acceptance) = oneshot::channel();
        let ordered = orders.try_send(Order::Commit { accepted }).is_ok();
        drop(orders);
        if ordered && acceptance.await.is_ok() {
            return Ok(CommandOutcome::Done);
        }
        // It was taken back a moment ago, for want of the commit: the driver's verdict is on its way.
        self.record_fact(record, VmState::Outgoing { migration, phase: OutgoingPhase::AtSwitchOver });
        Err(CommandRefusal::Failed { why: "the commit came too late: the guest runs on at the source".to_owned() })
    }

    pub(super) async fn cancel_migration(&mut self, reply: oneshot::Sender<Answer>) {
        let incoming = match self.known.as_ref().map(|(_, state)| state) {
            Some(VmState::Incoming { migration }) => Some(self.cancel_incoming(*migration).await),
            Some(VmState::IncomingFailed { .. }) => Some(self.release(false).await),
            _ => None,
        };
        if let Some(answer) = incoming {
            let _ = reply.send(answer);
            return;
        }
        match self.driver.as_ref().map(|driver| driver.orders.try_send(Order::Cancel)) {
            // Full: cancelled already, and more than once.
            Some(Ok(()) | Err(mpsc::error::TrySendError::Full(_))) => self.defer(Deferred::Cancel(reply)),
            Some(Err(mpsc::error::TrySendError::Closed(_))) | None => {
                let _ = reply.send(Err(unreachable_qemu()));
            }
        }
    }

    pub(super) async fn take_back(&mut self, generation: Generation, reply: oneshot::Sender<Answer>) {
        if self.driver.is_some() {
            // QEMU still sends. What comes of it decides whether there is anything to take back.
            return self.defer(Deferred::TakeBack { generation, reply });
        }
        let answer = self.take_back_now(generation).await;
        let _ = reply.send(answer);
    }

    async fn take_back_now(&mut self, generation: Generation) -> Answer {
        let Some((record, state)) = self.known.clone() else { return Err(CommandRefusal::UnknownVm) };
        if self.process.is_none() {
            let why = "its QEMU has ended here, and its memory with it: start it anew".to_owned();
            return Err(CommandRefusal::Failed { why });
        }
        let machine = self.machine()?;
        let ours = Record { generation, role: Role::Run, arrived_by: None, ..record.clone() };
        self.record(ours, state.clone())?;
        if let Err(refusal) = self.run_again(&machine).await {
            self.record_fact(record, state);
            return Err(refusal);
        }
        self.handed_over = None;
        self.last_update = None;
        self.set_state(VmState::Running);
        Ok(CommandOutcome::Done)
    }

    async fn run_again(&self, machine: &Machine) -> Result<(), CommandRefusal> {
        if let Some(handed_over) = &self.handed_over {
            return handed_over.take_back().await.map_err(|error| failed(&error));
        }
        let deadline = Instant::now() + GIVE_UP_WAIT_MAX;
        loop {
            match machine.status().await.map_err(|error| failed(&error))? {
                RunStatus::Running => return Ok(()),
                RunStatus::PostMigrate | RunStatus::Paused => {
                    return machine.cont().await.map_err(|error| failed(&error));
                }
                status if Instant::now() >= deadline => {
                    let why = format!("QEMU does not give up sending the guest ({status})");
                    return Err(CommandRefusal::Failed { why });
                }
                // Stuck in the switch-over to a destination that is gone. Refused where nothing is left to cancel.
                _ => {
                    let _ = machine.qmp().execute("migrate_cancel", json!({})).await;
                    sleep(GIVE_UP_POLL).await;
                }
            }
        }
    }

    pub(super) async fn adopt_outgoing(
        &mut self,
        machine: &Machine,
        migration: MigrationId,
        policy: MigrationPolicy,
        step: SendStep,
    ) {
        let adopted = match adopt(machine, limits(policy)).await {
            Ok(adopted) => adopted,
            Err(error) => {
                tracing::warn!(vm = %self.vm, %error, "can't see how the migration stands; trying again");
                self.attached = None;
                return;
            }
        };
        let (begin, phase) = match adopted {
            Adopted::PreCopy(copying) => (Begin::PreCopy(copying), OutgoingPhase::PreCopy),
            Adopted::AtSwitchOver(waiting) if step == SendStep::Copying => {
                (Begin::AtSwitchOver(waiting), OutgoingPhase::AtSwitchOver)
            }
            Adopted::AtSwitchOver(waiting) => (Begin::Committed(waiting), OutgoingPhase::SwitchingOver),
            Adopted::SwitchingOver(switching) => (Begin::SwitchingOver(switching), OutgoingPhase::SwitchingOver),
            Adopted::HandedOver(handed_over) => return self.handed_over(migration, handed_over),
            Adopted::Idle { guest, last } => return self.adopt_idle(migration, guest, last, step).await,
        };
        self.set_state(VmState::Outgoing { migration, phase });
        self.driver = Some(Driver::outgoing(begin));
    }

    async fn adopt_idle(&mut self, migration: MigrationId, guest: RunStatus, last: String, step: SendStep) {
        let why = format!("the migration ended while no agent watched ({last})");
        let guest = match guest {
            RunStatus::Running => SourceGuest::RunsHere,
            other => SourceGuest::StandsStill(other),
        };
        self.back_at_source(migration, why, guest, step).await;
    }

    fn handed_over(&mut self, migration: MigrationId, handed_over: HandedOver) {
        let report = report_of(handed_over.figures());
        self.handed_over = Some(handed_over);
        let Some((record, _)) = self.known.clone() else { return };
        if let Some(record) = at_step(&record, SendStep::HandedOver) {
            self.record_fact(record, VmState::HandedOver { migration });
        }
        self.update(migration, MigrationUpdate::HandedOver { report });
    }

    /// The migration ended at the source without handing over.
    async fn back_at_source(&mut self, migration: MigrationId, why: String, guest: SourceGuest, step: SendStep) {
        let Some((record, _)) = self.known.clone() else { return };
        let ours = Record { role: Role::Run, ..record.clone() };
        match (guest, step) {
            (SourceGuest::RunsHere, _) | (SourceGuest::Unknown, SendStep::Copying) => {
                self.record_fact(ours, VmState::Running);
                self.update(migration, MigrationUpdate::SourceResumed { why });
            }
            // Before the commit it is still this host's, in whatever state.
            (SourceGuest::StandsStill(status), SendStep::Copying) => {
                self.record_fact(ours, super::lifecycle::state_of_status(&status));
                self.update(migration, MigrationUpdate::SourceResumed { why });
            }
            // Still at it, or silent: adopted again, which asks QEMU.
            (
                SourceGuest::StandsStill(RunStatus::FinishMigrate) | SourceGuest::Unknown,
                SendStep::Committed | SendStep::HandedOver,
            ) => {
                tracing::warn!(vm = %self.vm, why, "the switch-over does not end");
                self.attached = None;
            }
            // Past the commit and not resumed by QEMU: it stays so until the server gives the right back.
            (SourceGuest::StandsStill(status), SendStep::Committed | SendStep::HandedOver) => {
                tracing::warn!(vm = %self.vm, %status, why, "the guest stands still past the commit");
                if let Some(record) = at_step(&record, SendStep::HandedOver) {
                    self.record_fact(record, VmState::HandedOver { migration });
                }
            }
            // What that means is decided when the process has ended.
            (SourceGuest::Gone, _) => {
                tracing::warn!(vm = %self.vm, why, "QEMU ended while it sent the guest");
            }
        }
    }
}

/// Word from the driver.
impl VmTask {
    pub(super) async fn driver_event(&mut self, event: DriverEvent) {
        let Some((record, state)) = &self.known else { return };
        let Some(migration) = state.migration() else { return };
        let step = match &record.role {
            Role::Send { step, .. } => *step,
            Role::Run | Role::Stop { .. } | Role::Receive { .. } | Role::Ended(_) => SendStep::Copying,
        };
        match event {
            DriverEvent::Progress(progress) => {
                self.update(migration, MigrationUpdate::Progress { progress: progress_of(progress) });
                return;
            }
            DriverEvent::AtSwitchOver { stopped_at } => {
                self.set_state(VmState::Outgoing { migration, phase: OutgoingPhase::AtSwitchOver });
                let stopped_at = stopped_at.map_or_else(now_ms, time_ms);
                self.update(migration, MigrationUpdate::AtSwitchOver { stopped_at });
                return;
            }
            DriverEvent::Sent(sent) => {
                self.driver = None;
                match *sent {
                    Ok(handed_over) => self.handed_over(migration, handed_over),
                    Err(error) => {
                        let why = chain(&error);
                        self.back_at_source(migration, why, error.guest, step).await;
                    }
                }
            }
            DriverEvent::Arrived(arrived) => {
                self.driver = None;
                match arrived {
                    Ok(ran) => self.arrived(migration, ran),
                    Err(error) => self.did_not_run(migration, error).await,
                }
            }
            DriverEvent::Lost => {
                tracing::error!(vm = %self.vm, "the migration's driver was lost; asking QEMU anew");
                self.driver = None;
                self.attached = None;
            }
        }
        self.answer_deferred().await;
    }

    /// The process has ended: waits for what its driver made of that.
    pub(super) async fn last_verdict(&mut self) {
        let Some(driver) = &mut self.driver else { return };
        let verdict = timeout(VERDICT_WAIT_MAX, driver.verdict()).await.unwrap_or(DriverEvent::Lost);
        self.driver_event(verdict).await;
    }

    async fn answer_deferred(&mut self) {
        for deferred in std::mem::take(&mut self.deferred) {
            match deferred {
                Deferred::Cancel(reply) => {
                    let answer = match self.known.as_ref().map(|(_, state)| state) {
                        Some(VmState::Running) => Ok(CommandOutcome::Done),
                        Some(state) => Err(CommandRefusal::WrongState { state: state.word().to_owned() }),
                        None => Err(CommandRefusal::UnknownVm),
                    };
                    let _ = reply.send(answer);
                }
                Deferred::TakeBack { generation, reply } => {
                    let answer = self.take_back_now(generation).await;
                    let _ = reply.send(answer);
                }
            }
        }
    }

    fn defer(&mut self, deferred: Deferred) {
        if self.deferred.len() >= DEFERRED_MAX {
            self.refuse_deferred("too many commands waited for the end of the migration");
        }
        self.deferred.push(deferred);
    }

    pub(super) fn refuse_deferred(&mut self, why: &str) {
        for Deferred::Cancel(reply) | Deferred::TakeBack { reply, .. } in self.deferred.drain(..) {
            let _ = reply.send(Err(CommandRefusal::Failed { why: why.to_owned() }));
        }
    }

    pub(super) fn machine(&self) -> Result<Machine, CommandRefusal> {
        self.attached.as_ref().map(|attached| attached.machine.clone()).ok_or_else(unreachable_qemu)
    }
}

pub(super) fn unreachable_qemu() -> CommandRefusal {
    CommandRefusal::Failed { why: "the vm's QEMU can't be reached at the moment: try again".to_owned() }
}

/// The record one step on; `None` if it is not about sending.
fn at_step(record: &Record, step: SendStep) -> Option<Record> {
    let Role::Send { migration, target, limits, .. } = record.role.clone() else { return None };
    Some(Record { role: Role::Send { migration, target, limits, step }, ..record.clone() })
}
