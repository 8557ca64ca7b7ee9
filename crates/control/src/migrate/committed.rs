//! Past the commit: the destination has the right to run, until it is proven that it never did.
//!
//! ```text
//!   destination │ source: runs, paused      switches over         handed over            holds nothing
//!  ─────────────┼──────────────────────────────────────────────────────────────────────────────────────────
//!   ran         │ done                      done                  done                   done
//!   waits       │ end it there; tell        wait, then end it there                      end it there
//!               │ a paused source to go on
//!   gone        │ taken back                taken back            taken back             lost: started anew
//!   ended       │ taken back                taken back            done: it may have run  done
//! ```
//! *Gone* is proof by the destination's own word: it holds nothing, or its stream broke. *Ended* is none: its qemu
//! died and nobody watched whether it ran before. Then only the source can prove that it did not, by a word that
//! was said after that end: everything was not sent yet. What either does not say is waited for.

use super::{ASK_EVERY, close, open, send_commit};
use crate::Control;
use crate::live::Seen;
use drover_model::command::Command;
use drover_model::event::Severity;
use drover_model::intent::Vm;
use drover_model::inventory::{OutgoingPhase, VmState};
use drover_model::migration::{MigrationPhase, MigrationRecord};
use drover_model::{HostId, Millis, TimeMs};

/// How long the source's figures are waited for once the destination runs.
const SOURCE_REPORT_WITHIN: Millis = Millis(1_500);
/// A destination that still waits after this will not get the rest: the stream was lost on the way.
const SWITCH_OVER_MAX: Millis = Millis::secs(10);
/// Neither side resolved: a person should look.
const COMMITTED_MAX: Millis = Millis::secs(60);

/// What the destination says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    Unknown,
    Ran,
    Waits,
    Gone,
    Ended,
}

/// What the source says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Unknown,
    Runs,
    /// Waits for the commit.
    Paused,
    SwitchesOver,
    HandedOver,
    Nothing,
}

fn destination_of(control: &Control, record: &MigrationRecord) -> Destination {
    let seen = match control.live.sees(&record.to, &record.vm) {
        Seen::Unknown => return Destination::Unknown,
        Seen::Absent => return Destination::Gone,
        Seen::There(seen) => seen,
    };
    match &seen.state {
        // Of an earlier life there.
        _ if seen.generation < record.generation.next() => Destination::Gone,
        VmState::Running | VmState::Starting | VmState::Stopping | VmState::Outgoing { .. } => Destination::Ran,
        VmState::HandedOver { .. } => Destination::Ran,
        VmState::Incoming { .. } => Destination::Waits,
        VmState::IncomingFailed { .. } => Destination::Gone,
        VmState::Stopped | VmState::Failed { .. } => Destination::Ended,
    }
}

fn source_of(control: &Control, record: &MigrationRecord) -> Source {
    match control.live.sees(&record.from, &record.vm) {
        Seen::Unknown => Source::Unknown,
        Seen::Absent => Source::Nothing,
        Seen::There(seen) => match &seen.state {
            VmState::Running | VmState::Starting | VmState::Stopping => Source::Runs,
            VmState::Outgoing { phase: OutgoingPhase::PreCopy | OutgoingPhase::AtSwitchOver, .. } => Source::Paused,
            VmState::Outgoing { phase: OutgoingPhase::SwitchingOver, .. } => Source::SwitchesOver,
            VmState::HandedOver { .. } => Source::HandedOver,
            VmState::Stopped | VmState::Failed { .. } | VmState::Incoming { .. } | VmState::IncomingFailed { .. } => {
                Source::Nothing
            }
        },
    }
}

pub fn resolve(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    let (destination, source) = (destination_of(control, record), source_of(control, record));
    let state = open(control, record.id);
    let committed_at = *state.committed_at.get_or_insert(now);
    state.gone_at = match destination {
        Destination::Gone | Destination::Ended => state.gone_at.or(Some(now)),
        Destination::Unknown | Destination::Ran | Destination::Waits => None,
    };
    let running_at = state.running_at.unwrap_or(now);
    let proven = state.gone_at.is_some_and(|at| control.live.has_spoken_since(&record.from, at));
    match (destination, source) {
        (Destination::Ran, _) | (Destination::Ended, Source::HandedOver | Source::Nothing) => {
            return arrived(control, now, record, running_at);
        }
        (Destination::Waits | Destination::Unknown, Source::Paused) => {
            if may_ask(control, now, record) {
                send_commit(control, now, record);
            }
        }
        (Destination::Waits, Source::Runs | Source::Nothing) => {
            if control.live.has_spoken_since(&record.from, committed_at) {
                cancel_at(control, now, record, &record.to);
            }
        }
        (Destination::Waits, Source::SwitchesOver | Source::HandedOver) => {
            if now.since(committed_at) >= SWITCH_OVER_MAX {
                cancel_at(control, now, record, &record.to);
            }
        }
        (Destination::Gone, Source::HandedOver) => return take_back(control, now, record),
        (Destination::Gone | Destination::Ended, Source::Runs | Source::SwitchesOver) if proven => {
            return take_back(control, now, record);
        }
        (Destination::Gone | Destination::Ended, Source::Paused) if proven => {
            cancel_at(control, now, record, &record.from);
        }
        (Destination::Gone, Source::Nothing) => return lost(control, now, record),
        (Destination::Gone | Destination::Ended, Source::Runs | Source::SwitchesOver | Source::Paused) => {}
        (_, Source::Unknown) | (Destination::Unknown, _) => {}
    }
    escalate_if_stuck(control, now, record);
}

fn may_ask(control: &mut Control, now: TimeMs, record: &MigrationRecord) -> bool {
    open(control, record.id).asked.is_none_or(|at| now.since(at) >= ASK_EVERY)
}

/// An agent refuses it where the other side of the commit was reached meanwhile.
fn cancel_at(control: &mut Control, now: TimeMs, record: &MigrationRecord, host: &HostId) {
    if may_ask(control, now, record) {
        open(control, record.id).asked = Some(now);
        let command = Command::CancelMigration { vm: record.vm.clone(), migration: record.id };
        control.live.send(host, command);
    }
}

/// The destination never ran it, and the source has it: a further generation gives the right back.
fn take_back(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    let generation = record.generation.next().next();
    control.tables.change::<Vm>(&record.vm, |vm| {
        vm.host = Some(record.from.clone());
        vm.generation = generation;
        vm.moved_at = None;
        vm.moved_from = None;
    });
    let command = Command::TakeBack { vm: record.vm.clone(), generation, migration: record.id };
    control.live.send(&record.from, command);
    let why = format!("{} never ran it; it goes on at {}", record.to, record.from);
    close(control, now, record, MigrationPhase::TakenBack { why }, None);
}

/// Neither side holds it. The lifecycle finds it missing at its host, at a new generation, and starts it.
fn lost(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    let why = "both sides lost it in the switch-over; its memory is gone and it is started again".to_owned();
    let generation = record.generation.next().next();
    control.tables.change::<Vm>(&record.vm, |vm| vm.generation = generation);
    close(control, now, record, MigrationPhase::Failed { why }, None);
}

fn escalate_if_stuck(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    let state = open(control, record.id);
    let since = *state.committed_at.get_or_insert(now);
    if state.escalated || now.since(since) < COMMITTED_MAX {
        return;
    }
    state.escalated = true;
    let text = format!(
        "migration {} is committed and neither {} nor {} shows the vm running: bring both agents back; it is resolved from \
         what they report",
        record.id, record.from, record.to
    );
    control.tables.event(now, Severity::Escalation, format!("migration/{}", record.id), None, "migration-stuck", text);
}

/// The guest runs at the destination. The source's figures may be a moment behind.
pub fn arrived(control: &mut Control, now: TimeMs, record: &MigrationRecord, running_at: TimeMs) {
    let state = open(control, record.id);
    let running_at = *state.running_at.get_or_insert(running_at);
    if state.source_report.is_some() || now.since(running_at) >= SOURCE_REPORT_WITHIN {
        done(control, now, record, running_at);
    }
}

fn done(control: &mut Control, now: TimeMs, record: &MigrationRecord, running_at: TimeMs) {
    let memory = control.vm(&record.vm).map(|vm| vm.spec.memory).unwrap_or_default();
    let state = open(control, record.id);
    let mut report = state.source_report.unwrap_or_default();
    report.predicted_total = state.predicted_total;
    report.memory = memory;
    report.total = running_at.since(state.sending_since.unwrap_or(record.started_at));
    if let Some(stopped_at) = state.stopped_at {
        report.downtime = running_at.since(stopped_at);
        let known = Millis(report.downtime_phases.commit.0 + report.downtime_phases.copy.0);
        report.downtime_phases.resume = report.downtime.saturating_sub(known);
    }
    if report.transferred.0 == 0 {
        report.transferred = state.progress.transferred;
        report.rounds = state.progress.rounds;
    }
    close(control, now, record, MigrationPhase::Done, Some(report));
}
