//! Live migrations: reserve, pre-copy, switch-over, commit, release (design sections 4 and 5).
//!
//! ```text
//!   Queued ─▶ Reserved ──dest listens──▶ PreCopy ──source paused──▶ COMMIT ──dest runs──▶ Done
//!               │                          │                         │
//!               └─── anything goes wrong ──┴─▶ Failed/Cancelled      └─ dest proven never to have run ─▶ TakenBack
//! ```
//!
//! The commit is one transaction: the vm's host and generation change hands while the guest stands paused
//! before the switch-over. Before it the vm belongs to the source and everything unwinds; after it the
//! destination has the right to run, whoever crashes, until it is *proven* not to run, when a further
//! generation gives the right back.
//!
//! Messages only make things quicker. [`turn`] resolves every open migration from what both hosts report,
//! so a server that comes back, or an agent that does, finds its way from observation alone.

mod asking;
mod committed;
mod lost;
mod recovery;
mod retry;

pub use asking::{Forecast, ask, by_hand};
pub use retry::continued;

use crate::Control;
use crate::interface::Refusal;
use crate::lifecycle::vm_event;
use crate::live::{Answered, Seen};
use drover_model::command::{Command, CommandOutcome, MigrationTarget, MigrationUpdate, VmRun};
use drover_model::event::Severity;
use drover_model::intent::{RunIntent, Vm};
use drover_model::inventory::{OutgoingPhase, VmState};
use drover_model::migration::{
    Method, MigrationPhase, MigrationProgress, MigrationRecord, MigrationReport, Pace, Priority, Strategy,
};
use drover_model::{HostId, MigrationId, Millis, PlanId, TimeMs, VmId};
use std::collections::BTreeMap;

/// For the destination to start a waiting qemu.
const PREPARE_MAX: Millis = Millis::secs(30);
/// Beyond the policy's own limit, for the source to notice it first.
const PRECOPY_SLACK: Millis = Millis::secs(15);
/// A report may lag behind a message by this much.
const REPORT_LAG: Millis = Millis(2_500);
/// An unanswered command is repeated this often.
const ASK_EVERY: Millis = Millis(1_000);

#[derive(Debug, Default)]
pub struct Migrate {
    open: BTreeMap<MigrationId, Move>,
}

/// What is remembered of an open migration besides its record. Lost with the server and rebuilt from observation.
#[derive(Debug, Default)]
struct Move {
    progress: MigrationProgress,
    /// Until when somebody held it.
    held_until: Option<TimeMs>,
    /// The source has been told to send.
    sending_since: Option<TimeMs>,
    /// On the server's clock.
    stopped_at: Option<TimeMs>,
    committed_at: Option<TimeMs>,
    /// Since when the destination is seen without it, past the commit.
    gone_at: Option<TimeMs>,
    /// Since when the destination runs with part of its memory elsewhere.
    completing_at: Option<TimeMs>,
    stalled_at: Option<TimeMs>,
    /// Since when the source is seen without memory that the destination could still get.
    source_gone_at: Option<TimeMs>,
    recovery_asked: Option<TimeMs>,
    /// How often a stalled post-copy was connected anew.
    recoveries: u32,
    source_report: Option<MigrationReport>,
    /// On the server's clock; the destination's word.
    running_at: Option<TimeMs>,
    /// Since when it is known that all of its memory is there.
    complete_at: Option<TimeMs>,
    /// Why it is being unwound, once it is.
    unwinding: Option<Unwind>,
    asked: Option<TimeMs>,
    source_run: Option<String>,
    escalated: bool,
}

#[derive(Debug, Clone)]
enum Unwind {
    Cancelled {
        by: String,
    },
    Failed {
        why: String,
    },
    /// Pre-copy would not end.
    Hopeless {
        why: String,
    },
}

impl Migrate {
    pub fn progress(&self, id: MigrationId) -> Option<&MigrationProgress> {
        self.open.get(&id).map(|open| &open.progress)
    }
}

/// A move that is asked for.
#[derive(Debug, Clone)]
pub struct MigrationRequest {
    pub vm: VmId,
    pub to: HostId,
    pub plan: Option<PlanId>,
    /// Completes "because ...".
    pub reason: String,
    pub priority: Priority,
    /// `None`: by prediction.
    pub method: Option<Method>,
}

/// Its turn has come: the destination prepares. What has changed since it was asked for may end it.
pub fn start(control: &mut Control, now: TimeMs, record: &MigrationRecord, pace: Pace) {
    let Some(row) = control.vm(&record.vm).cloned() else { return };
    if let Err(why) = asking::may_go_on(control, &row, &record.from, &record.to) {
        return close(control, now, record, MigrationPhase::Failed { why }, None);
    }
    let strategy = Strategy { pace, ..record.strategy };
    control.tables.change::<MigrationRecord>(&record.id, |m| {
        m.phase = MigrationPhase::Reserved;
        m.started_at = now;
        m.strategy = strategy;
    });
    let text = format!("{} moves from {} to {}, because {}", row.spec.name, record.from, record.to, record.reason);
    vm_event(control, now, &row, Severity::Info, "migration-started", text);
    control.migrate.open.insert(record.id, Move::default());
    prepare(control, now, &MigrationRecord { strategy, ..record.clone() });
}

/// Asks the destination to listen, or, if its answer was lost with a connection or a server, where it does.
fn prepare(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    let asked = open(control, record.id).asked;
    if asked.is_some_and(|at| now.since(at) < REPORT_LAG) || control.live.is_asked(&record.to, &record.vm) {
        return;
    }
    let Some(row) = control.vm(&record.vm) else { return };
    let Some(image) = control.image(&row.spec.image) else { return };
    let run = VmRun::new(&row.id, &row.spec, image);
    let (generation, from, strategy) = (record.generation.next(), record.from.clone(), record.strategy);
    open(control, record.id).asked = Some(now);
    let command = Command::PrepareIncoming { run, generation, migration: record.id, from, strategy };
    control.live.send(&record.to, command);
}

/// Stops a migration that is not yet committed; the vm runs on at the source.
pub fn cancel(control: &mut Control, now: TimeMs, id: MigrationId, by: &str) -> Result<(), Refusal> {
    let record = control.require::<MigrationRecord>(&id)?.clone();
    match &record.phase {
        MigrationPhase::Queued | MigrationPhase::Reserved | MigrationPhase::PreCopy => {
            // Durable before it is acknowledged: a server that restarts must not commit it after all.
            control.tables.change::<MigrationRecord>(&id, |m| m.cancelled_by = Some(by.to_owned()));
            unwind(control, now, &record, Unwind::Cancelled { by: by.to_owned() });
            Ok(())
        }
        MigrationPhase::Committed => Err(Refusal::conflict(format!(
            "migration {id} is past its commit: {} is already {}'s",
            record.vm, record.to
        ))),
        phase => Err(Refusal::conflict(format!("migration {id} is over: {}", phase.word()))),
    }
}

/// Holds a migration back, or lets it go on. Past the commit the guest itself waits for its memory.
pub fn hold(control: &mut Control, now: TimeMs, id: MigrationId, held: bool, by: &str) -> Result<(), Refusal> {
    let record = changeable(control, id)?;
    if held && record.phase == MigrationPhase::Committed {
        return Err(Refusal::conflict(format!(
            "migration {id} is past its commit: the guest on {} waits for what is still to come",
            record.to
        )));
    }
    if record.paused != held {
        control.tables.change::<MigrationRecord>(&id, |m| m.paused = held);
        let verb = if held { "holds" } else { "lets go on with" };
        told(control, now, &record, "migration-held", format!("{by} {verb} migration {id}"));
    }
    Ok(())
}

/// Changes its place in the queue, and its part of the links.
pub fn prioritise(
    control: &mut Control,
    now: TimeMs,
    id: MigrationId,
    priority: Priority,
    by: &str,
) -> Result<(), Refusal> {
    let record = changeable(control, id)?;
    if record.priority != priority {
        control.tables.change::<MigrationRecord>(&id, |m| m.priority = priority);
        let text = format!("{by} gives migration {id} {} priority", priority.word());
        told(control, now, &record, "migration-prioritised", text);
    }
    Ok(())
}

fn changeable(control: &Control, id: MigrationId) -> Result<MigrationRecord, Refusal> {
    let record = control.require::<MigrationRecord>(&id)?;
    if record.phase.is_over() {
        return Err(Refusal::conflict(format!("migration {id} is over: {}", record.phase.word())));
    }
    Ok(record.clone())
}

fn told(control: &mut Control, now: TimeMs, record: &MigrationRecord, kind: &str, text: String) {
    control.transfers.changed();
    if let Some(vm) = control.vm(&record.vm).cloned() {
        vm_event(control, now, &vm, Severity::Info, kind, text);
    }
}

pub fn answered(control: &mut Control, now: TimeMs, host: &HostId, answered: &Answered) {
    let (Command::PrepareIncoming { migration, .. }
    | Command::MigrateOut { migration, .. }
    | Command::RecoverIncoming { migration, .. }
    | Command::AdjustMigration { migration, .. }
    | Command::CommitSwitchOver { migration, .. }) = &answered.command
    else {
        return;
    };
    let Some(record) = control.migration(*migration).filter(|m| !m.phase.is_over()).cloned() else { return };
    match (&answered.command, &answered.answer) {
        (Command::PrepareIncoming { .. }, Ok(CommandOutcome::Listening { target })) => {
            start_sending(control, now, &record, target.clone());
        }
        (Command::RecoverIncoming { .. }, Ok(CommandOutcome::Listening { target })) => {
            recovery::listening(control, &record, target.clone());
        }
        (Command::AdjustMigration { .. }, Err(_)) => control.transfers.was_not_told(record.id),
        (Command::PrepareIncoming { .. } | Command::MigrateOut { .. }, Err(refusal)) => {
            unwind(control, now, &record, Unwind::Failed { why: format!("{host} refused: {refusal}") });
        }
        // A refused commit or recovery is resolved by what both sides report; an accepted command needs nothing.
        _ => {}
    }
}

fn start_sending(control: &mut Control, now: TimeMs, record: &MigrationRecord, target: MigrationTarget) {
    if record.phase != MigrationPhase::Reserved {
        return;
    }
    let limits = control.policy().migration;
    let source_run = control.agent_run(&record.from);
    let Some(open) = control.migrate.open.get_mut(&record.id).filter(|open| open.unwinding.is_none()) else { return };
    open.sending_since = Some(now);
    open.source_run = source_run;
    control.tables.change::<MigrationRecord>(&record.id, |m| m.phase = MigrationPhase::PreCopy);
    control.live.send(
        &record.from,
        Command::MigrateOut {
            vm: record.vm.clone(),
            generation: record.generation,
            migration: record.id,
            target,
            limits,
            strategy: record.strategy,
        },
    );
}

/// A host tells of a migration on its own account.
pub fn updated(control: &mut Control, now: TimeMs, host: &HostId, vm: &VmId, id: MigrationId, update: MigrationUpdate) {
    let Some(record) = control.migration(id).filter(|m| m.vm == *vm && !m.phase.is_over()).cloned() else { return };
    let at_source = record.from == *host;
    let clock = |control: &Control, at| control.live.hosts.get(host).map_or(now, |live| live.to_server_clock(at));
    match update {
        MigrationUpdate::Progress { progress } if at_source => open(control, id).progress = progress,
        MigrationUpdate::AtSwitchOver { stopped_at } if at_source => {
            let stopped_at = clock(control, stopped_at);
            open(control, id).stopped_at = Some(stopped_at);
            commit(control, now, &record);
        }
        MigrationUpdate::HandedOver { report } if at_source => {
            open(control, id).source_report = Some(report);
            if let Some(running_at) = open(control, id).running_at {
                committed::arrived(control, now, &record, running_at);
            }
        }
        MigrationUpdate::WillNotConverge { why } if at_source && record.phase == MigrationPhase::PreCopy => {
            unwind(control, now, &record, Unwind::Hopeless { why });
        }
        MigrationUpdate::SourceResumed { why } if at_source && record.phase != MigrationPhase::Committed => {
            unwind(control, now, &record, Unwind::Failed { why });
        }
        MigrationUpdate::Running { at } if record.to == *host && record.phase == MigrationPhase::Committed => {
            let at = clock(control, at);
            committed::arrived(control, now, &record, at);
        }
        MigrationUpdate::IncomingFailed { why } if record.to == *host && record.phase != MigrationPhase::Committed => {
            unwind(control, now, &record, Unwind::Failed { why });
        }
        // Past the commit the reports of both sides decide; see `committed`.
        _ => {}
    }
}

fn open(control: &mut Control, id: MigrationId) -> &mut Move {
    control.migrate.open.entry(id).or_default()
}

/// The guest stands paused at the source: the right to run changes hands.
fn commit(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    let unwinding = open(control, record.id).unwinding.is_some();
    let receiving = matches!(
        control.live.sees(&record.to, &record.vm),
        Seen::There(seen) if seen.state == VmState::Incoming { migration: record.id }
    );
    let current = control.vm(&record.vm).is_some_and(|vm| vm.generation == record.generation);
    let unwinding = unwinding || record.cancelled_by.is_some();
    // One that is not heard of may be gone, and by post-copy the memory would go with it: the source waits a while.
    let heard = control.live.hosts.get(&record.to).and_then(|live| live.reported_at);
    let silent = heard.is_none_or(|at| now.since(at) >= REPORT_LAG);
    if record.phase != MigrationPhase::PreCopy || unwinding || !receiving || !current || silent {
        return;
    }
    let generation = record.generation.next();
    control.tables.change::<Vm>(&record.vm, |vm| {
        vm.host = Some(record.to.clone());
        vm.generation = generation;
        vm.note_left(now, record.from.clone());
    });
    control.tables.change::<MigrationRecord>(&record.id, |m| m.phase = MigrationPhase::Committed);
    open(control, record.id).committed_at = Some(now);
    send_commit(control, now, record);
}

fn send_commit(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    open(control, record.id).asked = Some(now);
    let (vm, generation) = (record.vm.clone(), record.generation.next());
    control.live.send(&record.from, Command::CommitSwitchOver { vm, generation, migration: record.id });
}

/// A person has declared one end lost. The vm runs at the other, if that had the right to run it; else it is started anew.
fn end_with_lost(control: &mut Control, now: TimeMs, record: &MigrationRecord, host: &HostId) {
    let why = format!("{host} was declared lost");
    match record.phase {
        MigrationPhase::Committed if record.to == *host => lost::start_anew(control, now, record, &why),
        MigrationPhase::Committed => committed::resolve(control, now, record),
        _ => unwind(control, now, record, Unwind::Failed { why }),
    }
}

/// Every open migration, from what is observed.
pub fn turn(control: &mut Control, now: TimeMs) {
    let records: Vec<MigrationRecord> =
        control.tables.all::<MigrationRecord>().filter(|m| !m.phase.is_over()).cloned().collect();
    for record in &records {
        if let Some(host) = [&record.to, &record.from].into_iter().find(|host| control.is_lost(host)) {
            end_with_lost(control, now, record, host);
        } else if record.phase == MigrationPhase::Committed {
            committed::resolve(control, now, record);
        } else if open(control, record.id).unwinding.is_some() {
            finish_unwinding(control, now, record);
        } else if let Some(by) = record.cancelled_by.clone() {
            unwind(control, now, record, Unwind::Cancelled { by });
        } else if record.phase == MigrationPhase::Queued {
            resolve_queued(control, now, record);
        } else {
            resolve_uncommitted(control, now, record);
        }
    }
    let tables = &control.tables;
    control.migrate.open.retain(|id, _| tables.get::<MigrationRecord>(id).is_some_and(|m| !m.phase.is_over()));
}

/// It waits for its turn; what can't be moved any more needs none.
fn resolve_queued(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    let runs = match control.live.sees(&record.from, &record.vm) {
        Seen::Unknown => return,
        Seen::Absent => false,
        Seen::There(seen) => seen.state == VmState::Running,
    };
    let current = control.vm(&record.vm).is_some_and(|vm| vm.generation == record.generation);
    if !runs || !current {
        let why = "it stopped running before its turn came".to_owned();
        close(control, now, record, MigrationPhase::Failed { why }, None);
    }
}

/// Before the commit the vm is the source's. Looks for reasons to give up; else lets it run.
fn resolve_uncommitted(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    let state = open(control, record.id);
    if record.paused {
        state.held_until = Some(now);
    }
    let counted_from = record.started_at.max(state.held_until.unwrap_or(record.started_at));
    let age = now.since(counted_from.max(control.started_at));
    let precopy_max = Millis(control.policy().migration.total_max.0 + PRECOPY_SLACK.0 + PREPARE_MAX.0);
    let source_run = control.agent_run(&record.from);
    let state = open(control, record.id);
    let sending = state.sending_since;
    if record.phase == MigrationPhase::PreCopy && state.source_run.is_none() {
        state.source_run.clone_from(&source_run);
    }
    let restarted = state.source_run.is_some() && source_run.is_some() && state.source_run != source_run;
    let settled = sending.is_none_or(|at| now.since(at) >= REPORT_LAG);

    let source = control.live.sees(&record.from, &record.vm);
    let destination = control.live.sees(&record.to, &record.vm);
    let failed = |why: String| Some(Unwind::Failed { why });
    let give_up = match (source, destination) {
        _ if record.phase == MigrationPhase::Reserved && age >= PREPARE_MAX => {
            failed(format!("{} was not ready within {PREPARE_MAX}", record.to))
        }
        _ if restarted => failed(format!("the agent of {} was restarted during the copy", record.from)),
        _ if age >= precopy_max => failed("it took longer than the policy allows".to_owned()),
        (Seen::Unknown, _) | (_, Seen::Unknown) => None,
        _ if record.phase == MigrationPhase::Reserved => return prepare(control, now, record),
        _ if !settled => None,
        (Seen::There(seen), _) if !matches!(seen.state, VmState::Outgoing { .. }) => {
            failed(format!("{} is not sending: the vm is {} there", record.from, seen.state.word()))
        }
        (Seen::Absent, _) => failed(format!("{} no longer has the vm", record.from)),
        (_, Seen::Absent) => failed(format!("{} no longer waits for the vm", record.to)),
        (_, Seen::There(seen)) if seen.state != (VmState::Incoming { migration: record.id }) => {
            failed(format!("{} can't receive: the vm is {} there", record.to, seen.state.word()))
        }
        (Seen::There(seen), Seen::There(_)) => {
            if matches!(seen.state, VmState::Outgoing { phase: OutgoingPhase::AtSwitchOver, .. }) {
                commit(control, now, record);
            }
            return;
        }
    };
    if let Some(reason) = give_up {
        unwind(control, now, record, reason);
    }
}

fn unwind(control: &mut Control, now: TimeMs, record: &MigrationRecord, reason: Unwind) {
    let state = open(control, record.id);
    if state.unwinding.is_none() {
        state.unwinding = Some(reason);
        state.asked = None;
    }
    finish_unwinding(control, now, record);
}

/// Tells both sides to stop until neither is at it any more; then the record is closed.
fn finish_unwinding(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    let busy = |seen: Seen<'_>| match seen {
        Seen::There(seen) => seen.state.migration() == Some(record.id),
        // A host that does not answer is resolved by the lifecycle's rules when it is back.
        Seen::Absent | Seen::Unknown => false,
    };
    let mut waiting = false;
    let repeat = open(control, record.id).asked.is_none_or(|at| now.since(at) >= ASK_EVERY);
    for host in [&record.from, &record.to] {
        if busy(control.live.sees(host, &record.vm)) {
            waiting = true;
            if repeat {
                control.live.send(host, Command::CancelMigration { vm: record.vm.clone(), migration: record.id });
            }
        }
    }
    if repeat {
        open(control, record.id).asked = Some(now);
    }
    if waiting {
        return;
    }
    let phase = match open(control, record.id).unwinding.clone() {
        Some(Unwind::Cancelled { by }) => MigrationPhase::Cancelled { by },
        Some(Unwind::Failed { why }) => MigrationPhase::Failed { why },
        Some(Unwind::Hopeless { why }) => return retry::once_more(control, now, record, &why),
        None => return,
    };
    close(control, now, record, phase, None);
}

/// Writes the end down. What the loser still holds is released by the lifecycle as a stray.
fn close(
    control: &mut Control,
    now: TimeMs,
    record: &MigrationRecord,
    phase: MigrationPhase,
    report: Option<MigrationReport>,
) {
    let Some(vm) = control.vm(&record.vm).cloned() else { return };
    let name = &vm.spec.name;
    let (severity, kind, text) = match &phase {
        MigrationPhase::Done => (
            Severity::Info,
            "migration-done",
            match report {
                Some(report) if report.downtime.0 > 0 => format!(
                    "{name} runs on {}: moved in {}, stood still for {}",
                    record.to, report.total, report.downtime
                ),
                _ => format!("{name} runs on {}", record.to),
            },
        ),
        MigrationPhase::Cancelled { by } => {
            (Severity::Info, "migration-cancelled", format!("the move of {name} was cancelled by {by}"))
        }
        MigrationPhase::TakenBack { why } => (Severity::Warning, "migration-taken-back", format!("{name}: {why}")),
        MigrationPhase::Restarted { why } => {
            (Severity::Escalation, "vm-memory-lost", format!("{name} was started anew: {why}"))
        }
        MigrationPhase::Failed { why } => {
            (Severity::Warning, "migration-failed", format!("{name} could not be moved to {}: {why}", record.to))
        }
        MigrationPhase::Queued | MigrationPhase::Reserved | MigrationPhase::PreCopy | MigrationPhase::Committed => {
            return;
        }
    };
    control.tables.change::<MigrationRecord>(&record.id, |m| {
        m.phase = phase;
        m.finished_at = Some(now);
        m.report = report;
    });
    control.tables.change::<Vm>(&record.vm, |vm| {
        vm.migration = None;
        let others = [&record.from, &record.to].into_iter().filter(|host| vm.host.as_ref() != Some(*host));
        vm.remains_on.extend(others.cloned());
    });
    vm_event(control, now, &vm, severity, kind, text);
    if let Some(record) = control.migration(record.id).cloned() {
        control.transfers.ended(now, &record);
    }
}

impl Control {
    /// What goes on in a migration at this moment, in one word.
    pub fn migration_stage(&self, record: &MigrationRecord) -> &'static str {
        let seen = |host| match self.live.sees(host, &record.vm) {
            Seen::There(seen) if seen.state.migration() == Some(record.id) => Some(&seen.state),
            _ => None,
        };
        let (source, destination) = (seen(&record.from), seen(&record.to));
        let stands = matches!(source, Some(VmState::Outgoing { phase: OutgoingPhase::AtSwitchOver, .. }));
        let unwinds = self.migrate.open.get(&record.id).is_some_and(|open| open.unwinding.is_some());
        match (&record.phase, destination) {
            (MigrationPhase::Queued | MigrationPhase::Reserved | MigrationPhase::PreCopy, _) if unwinds => "unwinding",
            (MigrationPhase::PreCopy, _) if stands => "switch-over",
            (MigrationPhase::Queued | MigrationPhase::PreCopy, _) if record.paused => "held",
            (MigrationPhase::Queued, _) => "queued",
            (MigrationPhase::Reserved, _) => "reserve",
            (MigrationPhase::PreCopy, _) => "pre-copy",
            (MigrationPhase::Committed, Some(VmState::Completing { stalled: false, .. })) => "post-copy",
            (MigrationPhase::Committed, Some(VmState::Completing { stalled: true, .. })) => "stalled",
            (MigrationPhase::Committed, _) => match self.live.sees(&record.to, &record.vm) {
                Seen::There(seen) if seen.state == VmState::Running => "release",
                _ => "switch-over",
            },
            (over, _) => over.word(),
        }
    }

    /// How often a stalled post-copy was connected anew, as far as this run of the server knows.
    pub fn migration_recoveries(&self, id: MigrationId) -> u32 {
        self.migrate.open.get(&id).map_or(0, |open| open.recoveries)
    }

    /// Changes at each start of the host's agent; `None` before it has connected.
    pub(crate) fn agent_run(&self, host: &HostId) -> Option<String> {
        self.live.hosts.get(host)?.facts.as_ref().map(|facts| facts.agent_run.clone())
    }

    /// Migrations not yet over.
    pub(crate) fn migrations_open(&self) -> usize {
        self.migrations().filter(|record| !record.phase.is_over()).count()
    }

    /// Whether an owner's request (stop, remove) has to wait for a move. Before the commit the move is cancelled for it.
    pub(crate) fn yield_to_owner(&mut self, now: TimeMs, vm: &Vm, run: RunIntent, by: &str) -> Result<(), Refusal> {
        match vm.migration {
            Some(id) if run == RunIntent::Stopped => cancel(self, now, id, by).map_err(|_| {
                Refusal::unavailable(format!(
                    "{} is just arriving on another host: try again in a second",
                    vm.spec.name
                ))
            }),
            Some(_) | None => Ok(()),
        }
    }
}
