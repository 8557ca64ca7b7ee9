//! The task that owns one vm: it alone touches the vm's process, record, tap and group.
//!
//! It waits for whichever comes first: a command, word from a migration, the end of the process, an event from QEMU, a
//! deadline. What it then does is in [`super::lifecycle`], [`super::migrate`] and [`super::receive`].

use super::driver::{Driver, DriverEvent};
use super::log;
use super::measure::{DirtyRate, MeasureError, Measuring};
use super::migrate::{Deferred, Sending};
use super::receive::Reception;
use super::record::{Record, VmDir};
use super::{Answer, Attached, Host, Seen, Shared, Update};
use drover_model::admission::{Admission, Known, admit};
use drover_model::command::{Command, CommandOutcome, CommandRefusal, MigrationUpdate};
use drover_model::inventory::{VmInventory, VmState};
use drover_model::{MigrationId, VmId};
use drover_qemu::migration::HandedOver;
use drover_qemu::{QemuProcess, QmpEvent};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

pub(super) struct Request {
    pub command: Command,
    pub reply: oneshot::Sender<Answer>,
}

pub(super) struct VmTask {
    pub(super) shared: Arc<Shared>,
    pub(super) vm: VmId,
    pub(super) dir: VmDir,
    requests: mpsc::Receiver<Request>,
    seen: watch::Sender<Seen>,
    /// Both or none: what is on disk, and the state it led to.
    pub(super) known: Option<(Record, VmState)>,
    pub(super) process: Option<QemuProcess>,
    /// `None` while QEMU does not answer.
    pub(super) attached: Option<Attached>,
    pub(super) events: Option<broadcast::Receiver<QmpEvent>>,
    /// Whether QEMU said that the guest switched itself off.
    pub(super) guest_shut_down: bool,
    /// When the process of a vm that is powering down is ended.
    pub(super) stop_by: Option<Instant>,
    pub(super) driver: Option<Driver>,
    /// Commands whose answer the driver's end decides.
    pub(super) deferred: Vec<Deferred>,
    pub(super) handed_over: Option<HandedOver>,
    pub(super) last_update: Option<(Instant, Update)>,
    pub(super) measuring: Option<Measuring>,
    /// `None`: not since its process was attached to.
    pub(super) measure_at: Option<Instant>,
    /// Between the last two of them.
    pub(super) measure_wait: Option<Duration>,
    pub(super) dirty_rate: Option<DirtyRate>,
}

enum Wakeup {
    Request(Option<Box<Request>>),
    Driver(DriverEvent),
    ProcessEnded,
    Event(Result<QmpEvent, broadcast::error::RecvError>),
    StopDeadline,
    Attach,
    CheckLogs,
    Measured(Result<u64, MeasureError>),
    Measure,
}

impl VmTask {
    pub fn new(shared: Arc<Shared>, vm: VmId, requests: mpsc::Receiver<Request>, seen: watch::Sender<Seen>) -> Self {
        let dir = VmDir::new(&shared.host.config.state_dir, &vm);
        Self {
            shared,
            vm,
            dir,
            requests,
            seen,
            known: None,
            process: None,
            attached: None,
            events: None,
            guest_shut_down: false,
            stop_by: None,
            driver: None,
            deferred: Vec::new(),
            handed_over: None,
            last_update: None,
            measuring: None,
            measure_at: None,
            measure_wait: None,
            dirty_rate: None,
        }
    }

    pub fn host(&self) -> &Host {
        &self.shared.host
    }

    pub async fn run(mut self, record: Option<Record>) {
        if let Some(record) = record {
            self.adopt(record).await;
            self.publish();
        }
        let mut attach = interval(self.host().config.limits.attach_every());
        let mut check_logs = interval(self.host().config.limits.log_check_every());
        for ticks in [&mut attach, &mut check_logs] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            let measure_at = self.measure_at();
            let wakeup = tokio::select! {
                biased;
                event = next_event(&mut self.events) => Wakeup::Event(event),
                event = next_of_driver(&mut self.driver) => Wakeup::Driver(event),
                () = ended(self.process.as_ref()) => Wakeup::ProcessEnded,
                () = at(self.stop_by) => Wakeup::StopDeadline,
                request = self.requests.recv() => Wakeup::Request(request.map(Box::new)),
                rate = dirty_rate(&mut self.measuring) => Wakeup::Measured(rate),
                () = at(measure_at) => Wakeup::Measure,
                _ = attach.tick(), if self.process.is_some() && self.attached.is_none() => Wakeup::Attach,
                _ = check_logs.tick(), if self.process.is_some() => Wakeup::CheckLogs,
            };
            match wakeup {
                Wakeup::Request(None) => return,
                Wakeup::Request(Some(request)) => self.request(*request).await,
                Wakeup::Driver(event) => self.driver_event(event).await,
                Wakeup::ProcessEnded => self.process_ended().await,
                Wakeup::Event(event) => self.qemu_event(event),
                Wakeup::StopDeadline => self.stop_deadline().await,
                Wakeup::Attach => self.attach_again().await,
                Wakeup::CheckLogs => self.shorten_logs(),
                Wakeup::Measured(rate) => self.measured(rate),
                Wakeup::Measure => self.measure_in_turn(),
            }
            self.publish();
            if self.known.is_none() && self.leave() {
                return;
            }
        }
    }

    /// Leaves the map, unless a command came in meanwhile: those are sent under its lock.
    fn leave(&mut self) -> bool {
        let mut vms = self.shared.vms();
        if !self.requests.is_empty() {
            return false;
        }
        vms.remove(&self.vm);
        true
    }

    async fn request(&mut self, Request { command, reply }: Request) {
        let known = self.known.as_ref().map(|(record, state)| Known {
            run: &record.run,
            generation: record.generation,
            state,
            arrived_by: record.arrived_by,
        });
        match admit(known, &command) {
            Admission::Refuse(refusal) => {
                tracing::info!(vm = %self.vm, command = word(&command), %refusal, "command refused");
                let _ = reply.send(Err(refusal));
            }
            Admission::Repeat => {
                let _ = reply.send(self.repeat(&command));
            }
            Admission::Act => self.act(command, reply).await,
        }
    }

    /// The answer to what was done before.
    fn repeat(&self, command: &Command) -> Answer {
        match (command, &self.driver) {
            (Command::PrepareIncoming { .. }, Some(driver)) => match &driver.target {
                Some((target, _)) => Ok(CommandOutcome::Listening { target: target.clone() }),
                None => {
                    Err(CommandRefusal::WrongState { state: "incoming, and this agent did not start it".to_owned() })
                }
            },
            _ => Ok(CommandOutcome::Done),
        }
    }

    async fn act(&mut self, command: Command, reply: oneshot::Sender<Answer>) {
        let command_word = word(&command);
        tracing::debug!(vm = %self.vm, command = command_word, "command");
        let answer = match command {
            Command::Run { run, generation } => self.start(run, generation).await,
            Command::Stop { generation, grace, .. } => self.stop(generation, grace).await,
            Command::Release { delete_disk, .. } => self.release(delete_disk).await,
            Command::PrepareIncoming { run, generation, migration, from, strategy } => {
                self.prepare_incoming(run, generation, Reception { migration, from, strategy }).await
            }
            Command::MigrateOut { migration, target, limits, strategy, .. } => {
                self.migrate_out(Sending { migration, target, limits, strategy }).await
            }
            Command::AdjustMigration { pace, .. } => self.adjust_migration(pace),
            Command::RecoverIncoming { .. } => self.recover_incoming().await,
            Command::RecoverOutgoing { target, .. } => return self.recover_outgoing(target, reply),
            Command::CommitSwitchOver { .. } => self.commit_switch_over().await,
            Command::CancelMigration { .. } => return self.cancel_migration(reply).await,
            Command::TakeBack { generation, .. } => return self.take_back(generation, reply).await,
            Command::MeasureDirtyRate { span, .. } => self.measure_dirty_rate(span),
        };
        if let Err(refusal) = &answer {
            tracing::warn!(vm = %self.vm, command = command_word, %refusal, "command failed");
        }
        let _ = reply.send(answer);
    }

    /// Notes a state that needs no record of its own.
    pub fn set_state(&mut self, next: VmState) {
        if let Some((_, state)) = &mut self.known
            && *state != next
        {
            tracing::info!(vm = %self.vm, from = state.word(), to = next.word(), "state");
            *state = next;
            // The guest stands still, or soon will: it would look as if it wrote nothing.
            self.measuring = None;
        }
    }

    /// Makes a record durable, then notes the state it leads to. On failure nothing changed.
    pub fn record(&mut self, record: Record, state: VmState) -> Result<(), CommandRefusal> {
        self.dir.save(&record).map_err(|error| failed(&error))?;
        match &mut self.known {
            Some((known, _)) => *known = record,
            None => self.known = Some((record, VmState::Starting)),
        }
        self.set_state(state);
        Ok(())
    }

    /// As [`Self::record`], for what happened already: an unwritable disk changes nothing about it. The next agent
    /// would see it from QEMU itself.
    pub fn record_fact(&mut self, record: Record, state: VmState) {
        if let Err(refusal) = self.record(record.clone(), state.clone()) {
            tracing::error!(vm = %self.vm, %refusal, "what happened to the vm is not on disk");
            self.known = Some((record, state));
        }
    }

    pub fn update(&mut self, migration: MigrationId, update: MigrationUpdate) {
        let update = Update { vm: self.vm.clone(), migration, update };
        if !matches!(update.update, MigrationUpdate::Progress { .. }) {
            tracing::info!(vm = %self.vm, %migration, update = ?update.update, "migration");
            self.last_update = Some((Instant::now(), update.clone()));
        }
        // Nobody listens while there is no connection; the last one is told again then.
        let _ = self.shared.updates.send(update);
    }

    /// Shows what changed, and says so once.
    pub fn publish(&self) {
        let pid = self.process.as_ref().map(QemuProcess::pid);
        let inventory = self.known.as_ref().map(|(record, state)| VmInventory {
            vm: self.vm.clone(),
            generation: record.generation,
            state: state.clone(),
            pid,
        });
        let changed = self.seen.send_if_modified(|seen| {
            let same_process = match (&seen.process, &self.attached) {
                (None, None) => true,
                (Some(before), Some(now)) => before.subject == now.subject,
                _ => false,
            };
            if !same_process {
                seen.process = self.attached.clone();
            }
            seen.last_update.clone_from(&self.last_update);
            seen.dirty_rate = self.dirty_rate;
            let changed = seen.inventory != inventory;
            seen.inventory = inventory;
            changed
        });
        if changed {
            self.shared.changes.send_modify(|count| *count += 1);
        }
    }

    fn qemu_event(&mut self, event: Result<QmpEvent, broadcast::error::RecvError>) {
        match event {
            Ok(event) if event.name == "SHUTDOWN" => self.guest_shut_down = event.data["guest"] == true,
            Ok(event) if event.name == "MIGRATION" && event.data["status"] == "postcopy-active" => {
                self.goes_on_completing();
            }
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            // The process ends, or its monitor broke: attached again if it still lives.
            Err(broadcast::error::RecvError::Closed) => {
                self.events = None;
                self.attached = None;
            }
        }
    }

    fn shorten_logs(&self) {
        let max = self.host().config.limits.log_bytes_max;
        for path in [self.dir.serial_log(), self.dir.qemu_log()] {
            if let Err(error) = log::shorten(&path, max) {
                tracing::warn!(log = %path.display(), %error, "can't shorten the log");
            }
        }
    }
}

/// For the log, which must not hold what a tenant put on a kernel command line.
fn word(command: &Command) -> &'static str {
    match command {
        Command::Run { .. } => "run",
        Command::Stop { .. } => "stop",
        Command::Release { .. } => "release",
        Command::PrepareIncoming { .. } => "prepare-incoming",
        Command::MigrateOut { .. } => "migrate-out",
        Command::AdjustMigration { .. } => "adjust-migration",
        Command::RecoverIncoming { .. } => "recover-incoming",
        Command::RecoverOutgoing { .. } => "recover-outgoing",
        Command::CommitSwitchOver { .. } => "commit-switch-over",
        Command::CancelMigration { .. } => "cancel-migration",
        Command::TakeBack { .. } => "take-back",
        Command::MeasureDirtyRate { .. } => "measure-dirty-rate",
    }
}

pub(super) fn failed(error: &dyn std::error::Error) -> CommandRefusal {
    CommandRefusal::Failed { why: crate::error_chain::chain(error) }
}

async fn next_event(
    events: &mut Option<broadcast::Receiver<QmpEvent>>,
) -> Result<QmpEvent, broadcast::error::RecvError> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

async fn next_of_driver(driver: &mut Option<Driver>) -> DriverEvent {
    match driver {
        Some(driver) => driver.next().await,
        None => std::future::pending().await,
    }
}

async fn dirty_rate(measuring: &mut Option<Measuring>) -> Result<u64, MeasureError> {
    match measuring {
        Some(measuring) => measuring.rate().await,
        None => std::future::pending().await,
    }
}

async fn ended(process: Option<&QemuProcess>) {
    match process {
        Some(process) => process.exited().await,
        None => std::future::pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
