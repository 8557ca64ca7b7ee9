//! The source's end of a live migration, as the owner of the vm sees it. The destination's is in [`super::receive`],
//! what follows QEMU at both in [`super::driver`].
//!
//! The vm's task decides what the driver's word means, writes it down, and passes on orders.
//!
//! ```text
//!  Copying ──AtSwitchOver──▶ (commit: recorded, then ordered) ──▶ Committed ──Sent──▶ HandedOver
//!      │                                                           │  └─PostCopy─▶ PostCopied ──Sent──▶ HandedOver
//!      └───── cancelled, failed, no commit in time: SourceResumed ◀┘ QEMU could not send it all (never PostCopied)
//! ```
//!
//! In post-copy the guest never runs here again: what it has written since is at the destination alone. Should QEMU
//! resume it all the same, it is stopped at once.

use super::Answer;
use super::driver::{Begin, Driver, DriverEvent, Order};
use super::figures::{limits_of, pace_of, progress_of, report_of, strategy_of, within};
use super::record::{Record, Role, SendStep};
use super::task::{VmTask, failed};
use crate::clock::{now_ms, time_ms};
use crate::error_chain::chain;
use crate::telemetry::guest_holds;
use drover_model::command::{CommandOutcome, CommandRefusal, MigrationTarget, MigrationUpdate};
use drover_model::inventory::{OutgoingPhase, VmState};
use drover_model::migration::{Method, Pace, Strategy};
use drover_model::policy::MigrationPolicy;
use drover_model::{Generation, MigrationId};
use drover_qemu::migration::{Adopted, FailureCause, HandedOver, OutgoingFailed, PreCopy, SourceGuest, adopt};
use drover_qemu::{Machine, QemuProcess, RunStatus};
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// Commands that wait for a driver's end.
const DEFERRED_MAX: usize = 16;
/// How long the driver of a process that ended is given to say how the migration ended.
const VERDICT_WAIT_MAX: Duration = Duration::from_secs(3);
/// How long QEMU may take to give up a stuck switch-over, and how often it is asked.
const GIVE_UP_WAIT_MAX: Duration = Duration::from_secs(15);
const GIVE_UP_POLL: Duration = Duration::from_millis(50);

/// A command whose answer the driver's end decides.
pub(super) enum Deferred {
    Cancel(oneshot::Sender<Answer>),
    TakeBack { generation: Generation, reply: oneshot::Sender<Answer> },
}

/// What a source was told of its migration; recorded with it.
#[derive(Debug, Clone)]
pub(super) struct Sending {
    pub migration: MigrationId,
    pub target: MigrationTarget,
    pub limits: MigrationPolicy,
    pub strategy: Strategy,
}

/// The source.
impl VmTask {
    pub(super) async fn migrate_out(&mut self, sending: Sending) -> Answer {
        let Some((record, _)) = self.known.clone() else { return Err(CommandRefusal::UnknownVm) };
        let machine = self.machine()?;
        let Sending { migration, target, limits, strategy } = sending;
        let strategy = Strategy { pace: within(&limits, strategy.pace), ..strategy };
        let address = SocketAddr::new(target.address, target.port);
        let relay = self.relay(&target);
        let how = strategy_of(strategy, &target.host, &self.host().config.state_dir);
        let role = Role::Send { migration, target, limits, strategy, step: SendStep::Copying };
        let state = VmState::Outgoing { migration, phase: OutgoingPhase::PreCopy };
        self.record(Record { role, arrived_by: None, ..record.clone() }, state)?;
        self.last_update = None;
        let pid = self.process.as_ref().map(QemuProcess::pid);
        let resident = pid.and_then(|pid| guest_holds(pid, record.run.memory));
        match PreCopy::start(&machine, address, how, limits_of(&limits, resident)).await {
            Ok(copying) => {
                self.driver = Some(Driver::outgoing(Begin::PreCopy(copying), relay));
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
            // Meanwhile the last bytes are on their way: the guest stands still, and the fence costs no downtime.
            self.fence().await;
            return Ok(CommandOutcome::Done);
        }
        // It was taken back a moment ago, for want of the commit: the driver's verdict is on its way.
        self.record_fact(record, VmState::Outgoing { migration, phase: OutgoingPhase::AtSwitchOver });
        Err(CommandRefusal::Failed { why: "the commit came too late: the guest runs on at the source".to_owned() })
    }

    /// The pace is recorded, too: an agent that restarts must not let go on what somebody holds.
    pub(super) fn adjust_migration(&mut self, pace: Pace) -> Answer {
        let Some((record, state)) = self.known.clone() else { return Err(CommandRefusal::UnknownVm) };
        let Role::Send { migration, target, limits, strategy, step } = record.role.clone() else {
            return Err(CommandRefusal::WrongState { state: state.word().to_owned() });
        };
        let adjust = self.driver.as_ref().and_then(|driver| driver.adjust.clone()).ok_or_else(unreachable_qemu)?;
        let pace = within(&limits, pace);
        let strategy = Strategy { pace, ..strategy };
        self.record(Record { role: Role::Send { migration, target, limits, strategy, step }, ..record }, state)?;
        adjust.pace(pace_of(pace));
        Ok(CommandOutcome::Done)
    }

    /// Answered once the destination's QEMU was reached, or was not.
    pub(super) fn recover_outgoing(&mut self, target: MigrationTarget, reply: oneshot::Sender<Answer>) {
        let Some(driver) = &self.driver else {
            let _ = reply.send(Err(unreachable_qemu()));
            return;
        };
        let to = SocketAddr::new(target.address, target.port);
        if let Err(mpsc::error::TrySendError::Full(order) | mpsc::error::TrySendError::Closed(order)) =
            driver.orders.try_send(Order::Connect { to, reply })
            && let Order::Connect { reply, .. } = order
        {
            let _ = reply.send(Err(unreachable_qemu()));
        }
    }

    pub(super) async fn cancel_migration(&mut self, reply: oneshot::Sender<Answer>) {
        let incoming = match self.known.as_ref().map(|(_, state)| state) {
            Some(VmState::Incoming { .. }) => Some(self.cancel_incoming().await),
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
        if at_step(&record, SendStep::PostCopied).is_some_and(|copied| copied == record) {
            let why = "it ran at the destination by post-copy: its memory here is not whole. Start it anew".to_owned();
            return Err(CommandRefusal::Failed { why });
        }
        let machine = self.machine()?;
        let ours = Record { generation, role: Role::Run, arrived_by: None, ..record.clone() };
        self.record(ours, state.clone())?;
        // What it sends must get out from its first instruction on.
        self.reopen_network().await;
        if let Err(refusal) = self.run_again(&machine).await {
            self.fence().await;
            self.record_fact(record, state);
            return Err(refusal);
        }
        self.announce().await;
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

    pub(super) async fn adopt_outgoing(&mut self, machine: &Machine, sending: Sending, step: SendStep) {
        let Sending { migration, target, limits, strategy } = sending;
        let how = strategy_of(strategy, &target.host, &self.host().config.state_dir);
        let adopted = match adopt(machine, how, limits_of(&limits, None)).await {
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
            Adopted::PostCopy(sending) => (Begin::PostCopy(sending), OutgoingPhase::PostCopy),
            Adopted::Stalled(stalled) => (Begin::Stalled(stalled), OutgoingPhase::PostCopyPaused),
            Adopted::HandedOver(handed_over) => {
                self.fence().await;
                return self.handed_over(migration, handed_over);
            }
            Adopted::Idle { guest, last } => return self.adopt_idle(machine, migration, guest, last, step).await,
        };
        match phase {
            OutgoingPhase::PreCopy | OutgoingPhase::AtSwitchOver => {}
            OutgoingPhase::SwitchingOver => self.fence().await,
            OutgoingPhase::PostCopy | OutgoingPhase::PostCopyPaused => {
                self.fence().await;
                self.note_post_copied();
            }
        }
        self.set_state(VmState::Outgoing { migration, phase });
        self.driver = Some(Driver::outgoing(begin, self.relay(&target)));
    }

    async fn adopt_idle(
        &mut self,
        machine: &Machine,
        migration: MigrationId,
        guest: RunStatus,
        last: String,
        step: SendStep,
    ) {
        let why = format!("the migration ended while no agent watched ({last})");
        let guest = match guest {
            RunStatus::Running => SourceGuest::RunsHere,
            // Stopped to be copied at rest, or cancelled in post-copy's switch-over, by a driver that was gone then.
            RunStatus::Paused | RunStatus::PostMigrate if step == SendStep::Copying && machine.cont().await.is_ok() => {
                SourceGuest::RunsHere
            }
            other => SourceGuest::StandsStill(other),
        };
        self.back_at_source(migration, why, guest, step).await;
    }

    /// Everything was sent. After a post-copy the record goes on saying that it was one.
    fn handed_over(&mut self, migration: MigrationId, handed_over: HandedOver) {
        let report = report_of(handed_over.figures());
        self.handed_over = Some(handed_over);
        let Some((record, _)) = self.known.clone() else { return };
        let state = VmState::HandedOver { migration };
        match &record.role {
            Role::Send { step: SendStep::PostCopied, .. } => self.set_state(state),
            Role::Send { .. } => {
                if let Some(record) = at_step(&record, SendStep::HandedOver) {
                    self.record_fact(record, state);
                }
            }
            Role::Run | Role::Stop { .. } | Role::Receive { .. } | Role::Ended(_) => {}
        }
        self.update(migration, MigrationUpdate::HandedOver { report });
    }

    /// Not on disk, the guest here might be taken for a whole one later.
    fn note_post_copied(&mut self) {
        let Some((record, state)) = self.known.clone() else { return };
        if let Some(copied) = at_step(&record, SendStep::PostCopied)
            && copied != record
        {
            self.record_fact(copied, state);
        }
    }

    /// The driver ended without handing over.
    async fn not_sent(&mut self, migration: MigrationId, error: OutgoingFailed, step: SendStep) {
        let why = chain(&error);
        if matches!(error.cause, FailureCause::WillNotConverge { .. }) && error.guest == SourceGuest::RunsHere {
            self.runs_on(VmState::Running).await;
            return self.update(migration, MigrationUpdate::WillNotConverge { why });
        }
        self.back_at_source(migration, why, error.guest, step).await;
    }

    /// The migration ended at the source without handing over.
    async fn back_at_source(&mut self, migration: MigrationId, why: String, guest: SourceGuest, step: SendStep) {
        let guest = match guest {
            SourceGuest::RunsHere if step.is_committed() && self.is_post_copy() => self.stopped_again().await,
            other => other,
        };
        match (guest, step) {
            (SourceGuest::RunsHere, _) | (SourceGuest::Unknown, SendStep::Copying) => {
                self.runs_on(VmState::Running).await;
                self.update(migration, MigrationUpdate::SourceResumed { why });
            }
            // Before the commit it is still this host's, in whatever state.
            (SourceGuest::StandsStill(status), SendStep::Copying) => {
                self.runs_on(super::lifecycle::state_of_status(&status)).await;
                self.update(migration, MigrationUpdate::SourceResumed { why });
            }
            // Still at it, or silent: adopted again, which asks QEMU.
            (SourceGuest::StandsStill(RunStatus::FinishMigrate), SendStep::Committed | SendStep::HandedOver)
            | (SourceGuest::Unknown, SendStep::Committed | SendStep::PostCopied | SendStep::HandedOver) => {
                tracing::warn!(vm = %self.vm, why, "the switch-over does not end");
                self.attached = None;
            }
            // Past the commit and not resumed by QEMU: it stays so until the server gives the right back.
            (SourceGuest::StandsStill(status), SendStep::Committed | SendStep::HandedOver) => {
                tracing::warn!(vm = %self.vm, %status, why, "the guest stands still past the commit");
                let handed_over = self.known.as_ref().and_then(|(record, _)| at_step(record, SendStep::HandedOver));
                if let Some(record) = handed_over {
                    self.record_fact(record, VmState::HandedOver { migration });
                }
            }
            // It runs at the destination, and nobody can send what it still needs.
            (SourceGuest::StandsStill(_), SendStep::PostCopied) => {
                self.set_state(VmState::Failed { why: format!("post-copy can't go on: {why}") });
            }
            // What that means is decided when the process has ended.
            (SourceGuest::Gone, _) => {
                tracing::warn!(vm = %self.vm, why, "QEMU ended while it sent the guest");
            }
        }
    }

    fn is_post_copy(&self) -> bool {
        matches!(&self.known, Some((Record { role: Role::Send { strategy, .. }, .. }, _)) if strategy.method == Method::PostCopy)
    }

    /// Stops a guest that QEMU resumed past the commit of a post-copy: the destination may run it.
    async fn stopped_again(&self) -> SourceGuest {
        tracing::error!(vm = %self.vm, "QEMU resumed a guest that was committed to another host: stopping it");
        let stopped = async {
            let machine = self.machine()?;
            machine.stop().await.map_err(|error| failed(&error))?;
            machine.status().await.map_err(|error| failed(&error))
        };
        match stopped.await {
            Ok(RunStatus::Running) | Err(_) => SourceGuest::Unknown,
            Ok(status) => SourceGuest::StandsStill(status),
        }
    }

    /// The vm is this host's as before.
    async fn runs_on(&mut self, state: VmState) {
        self.reopen_network().await;
        self.announce().await;
        let Some((record, _)) = self.known.clone() else { return };
        self.record_fact(Record { role: Role::Run, ..record }, state);
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
            DriverEvent::PostCopy(adjust) => {
                if let Some(driver) = &mut self.driver {
                    driver.adjust = Some(adjust);
                }
                // A stall that is over must not be told again.
                self.last_update = None;
                self.set_state(VmState::Outgoing { migration, phase: OutgoingPhase::PostCopy });
                self.note_post_copied();
                return self.refuse_deferred("the guest runs at the destination by post-copy");
            }
            DriverEvent::Stalled { why } => {
                self.note_post_copied();
                self.set_state(VmState::Outgoing { migration, phase: OutgoingPhase::PostCopyPaused });
                return self.update(migration, MigrationUpdate::Stalled { why });
            }
            DriverEvent::Completing => return self.completing(migration).await,
            DriverEvent::CompletingStalled { why } => return self.completing_stalled(migration, why),
            DriverEvent::Sent(sent) => {
                self.driver = None;
                match *sent {
                    Ok(handed_over) => self.handed_over(migration, handed_over),
                    Err(error) => self.not_sent(migration, error, step).await,
                }
            }
            DriverEvent::Arrived(arrived) => {
                self.driver = None;
                match arrived {
                    Ok(ran) => self.arrived(migration, ran).await,
                    Err(error) => self.did_not_run(migration, error).await,
                }
            }
            DriverEvent::Completed(completed) => {
                self.driver = None;
                match completed {
                    Ok(ran) => self.arrived(migration, ran).await,
                    // What that means is decided when the process has ended.
                    Err(why) => {
                        tracing::warn!(vm = %self.vm, why, "QEMU ended before it had all of the guest's memory")
                    }
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
        // A driver that waits to be connected anew does not look at QEMU.
        if self.is_stalled() {
            return;
        }
        let Some(driver) = &mut self.driver else { return };
        let verdict = timeout(VERDICT_WAIT_MAX, driver.verdict()).await.unwrap_or(DriverEvent::Lost);
        self.driver_event(verdict).await;
    }

    pub(super) fn is_stalled(&self) -> bool {
        match &self.known {
            Some((_, VmState::Completing { stalled, .. })) => *stalled,
            Some((_, VmState::Outgoing { phase, .. })) => *phase == OutgoingPhase::PostCopyPaused,
            _ => false,
        }
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
    let Role::Send { migration, target, limits, strategy, .. } = record.role.clone() else { return None };
    Some(Record { role: Role::Send { migration, target, limits, strategy, step }, ..record.clone() })
}
