//! Starting, stopping, releasing and adopting a vm, and what its process's end means.

use super::migrate::Sending;
use super::receive::Reception;
use super::record::{Ended, Record, Role, SendStep};
use super::task::{VmTask, failed};
use super::{Answer, log};
use drover_model::command::{CommandOutcome, CommandRefusal, VmRun};
use drover_model::inventory::{OutgoingPhase, VmState};
use drover_model::{Generation, Millis};
use drover_qemu::{Machine, QemuProcess, RunStatus};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long a process that ended is given to have its last events delivered.
const LAST_EVENTS_WAIT_MAX: Duration = Duration::from_secs(1);

impl VmTask {
    /// Be running this vm at this generation.
    pub(super) async fn start(&mut self, run: VmRun, generation: Generation) -> Answer {
        if let Some((record, VmState::Starting | VmState::Running)) = &self.known {
            // It runs with this content already: only the generation is new.
            let record = Record { generation, ..record.clone() };
            self.record(record, VmState::Running)?;
            return Ok(CommandOutcome::Done);
        }
        self.end_process().await?;
        self.last_update = None;
        self.record(Record::new(run.clone(), generation, Role::Run), VmState::Starting)?;
        self.publish();
        match self.launch(&run, false).await {
            Ok(_) => {
                self.set_state(VmState::Running);
                Ok(CommandOutcome::Done)
            }
            Err(refusal) => {
                self.end(Ended::Failed { why: refusal.to_string() });
                Err(refusal)
            }
        }
    }

    /// Presses the power button; the deadline ends what does not go by itself.
    pub(super) async fn stop(&mut self, generation: Generation, grace: Millis) -> Answer {
        let Some((record, _)) = self.known.clone() else { return Err(CommandRefusal::UnknownVm) };
        if self.process.is_none() {
            self.record(Record { generation, role: Role::Ended(Ended::Stopped), ..record }, VmState::Stopped)?;
            return Ok(CommandOutcome::Done);
        }
        self.record(Record { generation, role: Role::Stop { grace }, ..record }, VmState::Stopping)?;
        self.power_down(grace).await;
        Ok(CommandOutcome::Done)
    }

    async fn power_down(&mut self, grace: Millis) {
        let stop_by = Instant::now() + grace.to_std();
        self.stop_by = Some(self.stop_by.map_or(stop_by, |earlier| earlier.min(stop_by)));
        if let Some(attached) = &self.attached
            && let Err(error) = attached.machine.power_down().await
        {
            tracing::warn!(vm = %self.vm, %error, "the power button did not work; the deadline ends the vm");
        }
    }

    pub(super) async fn stop_deadline(&mut self) {
        self.stop_by = None;
        tracing::info!(vm = %self.vm, "the guest did not switch itself off in time");
        if let Some(process) = &self.process
            && let Err(error) = process.kill().await
        {
            tracing::error!(vm = %self.vm, error = crate::error_chain::chain(&error), "the vm can't be ended");
            self.stop_by = Some(Instant::now() + self.host().config.limits.attach_every());
        }
    }

    /// Ends the process and forgets the vm. Each step can be repeated, and the record goes last.
    pub(super) async fn release(&mut self, delete_disk: bool) -> Answer {
        if self.is_committed_away() {
            self.leave_network().await;
        }
        self.end_process().await?;
        self.detach_nic().await.map_err(|error| failed(&error))?;
        if let Some(cgroup) = &self.host().cgroup {
            cgroup.remove(&self.vm);
        }
        if delete_disk {
            self.remove_disk()?;
        }
        self.dir.remove().map_err(|error| failed(&error))?;
        tracing::info!(vm = %self.vm, delete_disk, "released");
        self.known = None;
        self.last_update = None;
        self.refuse_deferred("it was released");
        Ok(CommandOutcome::Done)
    }

    /// Whether the right to run was handed on from here.
    fn is_committed_away(&self) -> bool {
        matches!(&self.known, Some((Record { role: Role::Send { step, .. }, .. }, _)) if step.is_committed())
    }

    /// Notes how the vm ended here.
    pub(super) fn end(&mut self, ended: Ended) {
        let Some((record, _)) = self.known.clone() else { return };
        let state = state_of(&ended);
        self.record_fact(Record { role: Role::Ended(ended), ..record }, state);
    }

    /// The process is gone: by the guest's wish, as asked, or not.
    pub(super) async fn process_ended(&mut self) {
        self.collect_last_events().await;
        self.last_verdict().await;
        if self.is_committed_away() {
            self.leave_network().await;
        }
        self.driver = None;
        self.forget_dirty_rate();
        self.process = None;
        self.attached = None;
        self.events = None;
        self.stop_by = None;
        self.handed_over = None;
        self.clear_host().await;
        let Some((record, state)) = self.known.clone() else { return };
        let ended = match &record.role {
            Role::Stop { .. } => Ended::Stopped,
            Role::Ended(_) => return,
            Role::Send { step: SendStep::HandedOver, .. } => handed_over_and_gone(),
            Role::Send { step: SendStep::PostCopied, .. } => match state {
                VmState::HandedOver { .. } => handed_over_and_gone(),
                _ => gone_with_memory(),
            },
            Role::Run | Role::Send { .. } if self.guest_shut_down => Ended::Stopped,
            Role::Receive { .. } if matches!(state, VmState::Completing { .. }) => match self.guest_shut_down {
                true => Ended::Stopped,
                false => Ended::Failed { why: format!("{COMPLETING_AND_GONE}. {}", self.death_notice()) },
            },
            // One that was to receive has a verdict by now, unless its driver was lost: then nobody knows.
            Role::Run | Role::Send { .. } | Role::Receive { .. } => Ended::Failed { why: self.death_notice() },
        };
        self.refuse_deferred("its QEMU ended");
        self.end(ended);
    }

    /// QEMU tells why it ends just before it does; its monitor's end means that all was heard.
    async fn collect_last_events(&mut self) {
        if let Some(attached) = &self.attached {
            let _ = timeout(LAST_EVENTS_WAIT_MAX, attached.machine.qmp().closed()).await;
        }
        if let Some(events) = &mut self.events {
            while let Ok(event) = events.try_recv() {
                if event.name == "SHUTDOWN" {
                    self.guest_shut_down = event.data["guest"] == true;
                }
            }
        }
    }

    pub(super) fn death_notice(&self) -> String {
        match log::last_lines(&self.dir.qemu_log(), self.host().config.limits.log_lines_max) {
            lines if lines.is_empty() => {
                "QEMU ended without a word: it was killed, perhaps for want of memory".to_owned()
            }
            lines => format!("QEMU ended; the last it said: {lines}"),
        }
    }

    /// Takes over a vm that an earlier agent left, as its record and its QEMU say.
    pub(super) async fn adopt(&mut self, record: Record) {
        let state = state_of_role(&record.role);
        self.known = Some((record.clone(), state));
        match self.find_process() {
            Ok(process) => self.process = process,
            Err(error) => {
                // Nothing is known about the process: it must not be started a second time.
                tracing::error!(vm = %self.vm, error = crate::error_chain::chain(&error), "can't look for the vm's QEMU");
                return;
            }
        }
        if self.process.is_none() {
            return self.adopt_dead(record).await;
        }
        if matches!(record.role, Role::Ended(_)) {
            // The agent died between noting the end and making it true.
            if let Err(refusal) = self.end_process().await {
                tracing::error!(vm = %self.vm, %refusal, "a QEMU that should have ended is still there");
            }
            return self.clear_host().await;
        }
        self.attach_again().await;
    }

    /// Tries to reach the process's monitor, and goes on from what it says.
    pub(super) async fn attach_again(&mut self) {
        let Some((record, _)) = self.known.clone() else { return };
        let machine = match self.attach(&record.run).await {
            Ok(machine) => machine,
            Err(error) => {
                tracing::warn!(vm = %self.vm, error = crate::error_chain::chain(&error), "QEMU can't be reached; trying again");
                return;
            }
        };
        tracing::info!(vm = %self.vm, pid = self.process.as_ref().map(QemuProcess::pid), "adopted");
        match record.role {
            Role::Run | Role::Ended(_) => {
                if let Ok(status) = machine.status().await {
                    self.adopt_running(&machine, status).await;
                }
            }
            Role::Stop { grace } => {
                self.set_state(VmState::Stopping);
                self.power_down(grace).await;
            }
            Role::Receive { migration, from, strategy } => {
                self.adopt_incoming(&machine, Reception { migration, from, strategy }).await;
            }
            Role::Send { migration, target, limits, strategy, step } => {
                self.adopt_outgoing(&machine, Sending { migration, target, limits, strategy }, step).await;
            }
        }
    }

    async fn adopt_running(&mut self, machine: &Machine, status: RunStatus) {
        let state = match status {
            // Sent away and yet to run here: an agent noted that it was taken back, and died before QEMU heard of it.
            RunStatus::PostMigrate => match machine.cont().await {
                Ok(()) => VmState::Running,
                Err(error) => VmState::Failed { why: crate::error_chain::chain(&error) },
            },
            other => state_of_status(&other),
        };
        self.set_state(state);
    }

    async fn adopt_dead(&mut self, record: Record) {
        self.clear_host().await;
        let unseen = || Ended::Failed { why: format!("it ended while no agent watched. {}", self.death_notice()) };
        let ended = match record.role {
            Role::Ended(_) => return,
            Role::Send { step: SendStep::HandedOver, .. } => handed_over_and_gone(),
            Role::Send { step: SendStep::PostCopied, .. } => gone_with_memory(),
            Role::Stop { .. } => Ended::Stopped,
            // Whether it ran before it ended nobody here knows: not said to have failed to arrive.
            Role::Run | Role::Receive { .. } | Role::Send { .. } => unseen(),
        };
        self.end(ended);
    }
}

/// Said, because it can't be taken back from here any more.
fn handed_over_and_gone() -> Ended {
    Ended::Failed { why: "it was handed over to another host, and then its QEMU ended here".to_owned() }
}

/// What the destination had not fetched by then is lost.
fn gone_with_memory() -> Ended {
    Ended::Failed { why: "it ran on another host by post-copy, and then its QEMU ended here".to_owned() }
}

const COMPLETING_AND_GONE: &str =
    "it ran here by post-copy, and its QEMU ended before all of its memory had come: start it anew";

pub(super) fn state_of(ended: &Ended) -> VmState {
    match ended {
        Ended::Stopped => VmState::Stopped,
        Ended::Failed { why } => VmState::Failed { why: why.clone() },
        Ended::IncomingFailed { migration, why } => VmState::IncomingFailed { migration: *migration, why: why.clone() },
    }
}

/// What the record alone says, until QEMU is asked.
fn state_of_role(role: &Role) -> VmState {
    match role {
        Role::Run => VmState::Running,
        Role::Stop { .. } => VmState::Stopping,
        Role::Receive { migration, .. } => VmState::Incoming { migration: *migration },
        Role::Send { migration, step, .. } => match step {
            SendStep::Copying => VmState::Outgoing { migration: *migration, phase: OutgoingPhase::PreCopy },
            SendStep::Committed => VmState::Outgoing { migration: *migration, phase: OutgoingPhase::SwitchingOver },
            SendStep::PostCopied => VmState::Outgoing { migration: *migration, phase: OutgoingPhase::PostCopy },
            SendStep::HandedOver => VmState::HandedOver { migration: *migration },
        },
        Role::Ended(ended) => state_of(ended),
    }
}

/// Of a vm that should run. A guest that stands still by its own fault is not called running.
pub(super) fn state_of_status(status: &RunStatus) -> VmState {
    match status {
        RunStatus::Running => VmState::Running,
        RunStatus::GuestPanicked => VmState::Failed { why: "the guest's kernel panicked".to_owned() },
        other => VmState::Failed { why: format!("QEMU is there and does not run the guest ({other})") },
    }
}
