//! Past the commit: the destination has the right to run, until it is proven that it never did.
//!
//! ```text
//!   destination │ source: runs, paused      switches over         post-copy             post-copy paused      handed over            holds nothing
//!  ─────────────┼──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
//!   ran         │ done                      done                  done                  done                  done                   done
//!   completes   │ released there            wait                  wait                  wait                  wait                   lost, unless it
//!               │                                                                                                                    still completes
//!   stalled     │ released there            wait                  wait                  recovered             lost                   lost
//!   waits       │ end it there; tell        wait, then end it     wait, then end it     end it there          wait, then end it      end it there
//!               │ a paused source to go on  there                 there                                       there
//!   gone        │ taken back                taken back            lost                  lost                  taken back; lost if    lost
//!               │                                                                                             it was post-copy
//!   ended       │ taken back                taken back            lost                  lost                  done: it may have run  done
//!   powered off │ taken back                taken back            done                  done                  done                   done
//! ```
//! *Gone* is proof by the destination's own word: it holds nothing, or its stream broke. *Ended* is none: its qemu
//! died and nobody watched whether it ran before. Then only the source can prove that it did not, by a word that
//! was said after that end: everything was not sent yet. What either does not say is waited for.
//!
//! Past the start of post-copy the guest has run at the destination, and the source's memory is an old copy of which
//! the destination still needs parts. It is never taken back. *Lost*: those parts, or all that the destination had,
//! are gone for good, and the vm is started anew, once, at a newer generation; see [`super::lost`]. A source counts as gone for
//! good when its own agent says so, or when a stalled destination has waited for as long as the policy allows.

use super::{ASK_EVERY, close, open, recovery, send_commit};
use crate::Control;
use crate::live::Seen;
use drover_model::command::Command;
use drover_model::event::Severity;
use drover_model::intent::Vm;
use drover_model::inventory::{OutgoingPhase, VmState};
use drover_model::migration::{Method, MigrationPhase, MigrationRecord};
use drover_model::{HostId, Millis, TimeMs};

/// How long the source's figures are waited for once the destination runs.
const SOURCE_REPORT_WITHIN: Millis = Millis(1_500);
/// A destination that still waits so long after what is left should have come will not get it: the stream was lost on
/// the way.
const SWITCH_OVER_SLACK: Millis = Millis::secs(4);
/// Neither side resolved: a person should look.
const COMMITTED_MAX: Millis = Millis::secs(60);

/// What the destination says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    Unknown,
    Ran,
    /// Runs, with part of its memory still at the source.
    Completes,
    /// The same, cut off from the source.
    Stalled,
    Waits,
    Gone,
    Ended,
    PoweredOff,
}

/// What the source says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Unknown,
    Runs,
    /// Waits for the commit.
    Paused,
    SwitchesOver,
    PostCopies,
    PostCopyPaused,
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
        VmState::Completing { stalled: false, .. } => Destination::Completes,
        VmState::Completing { stalled: true, .. } => Destination::Stalled,
        VmState::Incoming { .. } => Destination::Waits,
        VmState::IncomingFailed { .. } => Destination::Gone,
        VmState::Failed { .. } => Destination::Ended,
        VmState::Stopped => Destination::PoweredOff,
    }
}

fn source_of(control: &Control, record: &MigrationRecord) -> Source {
    match control.live.sees(&record.from, &record.vm) {
        Seen::Unknown => Source::Unknown,
        Seen::Absent => Source::Nothing,
        Seen::There(seen) => match &seen.state {
            VmState::Running | VmState::Starting | VmState::Stopping => Source::Runs,
            VmState::Outgoing { phase, .. } => match phase {
                OutgoingPhase::PreCopy | OutgoingPhase::AtSwitchOver => Source::Paused,
                OutgoingPhase::SwitchingOver => Source::SwitchesOver,
                OutgoingPhase::PostCopy => Source::PostCopies,
                OutgoingPhase::PostCopyPaused => Source::PostCopyPaused,
            },
            VmState::HandedOver { .. } => Source::HandedOver,
            VmState::Stopped
            | VmState::Failed { .. }
            | VmState::Incoming { .. }
            | VmState::IncomingFailed { .. }
            | VmState::Completing { .. } => Source::Nothing,
        },
    }
}

pub fn resolve(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    use Destination as D;
    use Source as S;
    let (destination, source) = (destination_of(control, record), source_of(control, record));
    let state = open(control, record.id);
    let committed_at = *state.committed_at.get_or_insert(now);
    // By post-copy it ran before it was complete.
    let running_at = state.running_at.or(state.completing_at).unwrap_or(now);
    let note = |at: &mut Option<TimeMs>, holds: bool| *at = if holds { at.or(Some(now)) } else { None };
    note(&mut state.gone_at, matches!(destination, D::Gone | D::Ended | D::PoweredOff));
    note(&mut state.completing_at, matches!(destination, D::Completes | D::Stalled));
    note(
        &mut state.stalled_at,
        destination == D::Stalled || (destination == D::Completes && source == S::PostCopyPaused),
    );
    note(&mut state.source_gone_at, matches!(source, S::Nothing | S::HandedOver));
    let gone_at = state.gone_at;
    let completing_at = state.completing_at;
    let spoken_since = |host, at: Option<TimeMs>| at.is_some_and(|at| control.live.has_spoken_since(host, at));
    let proven = spoken_since(&record.from, gone_at);
    match (destination, source) {
        (D::Ran, _)
        | (D::Ended, S::HandedOver | S::Nothing)
        | (D::PoweredOff, S::PostCopies | S::PostCopyPaused | S::HandedOver | S::Nothing) => {
            return arrived(control, now, record, running_at);
        }
        (D::Completes | D::Stalled, _) => {
            let outdated = matches!(source, S::Runs | S::Paused) && spoken_since(&record.from, completing_at);
            if outdated {
                release_source(control, now, record);
            }
            if let Some(why) = recovery::turn(control, now, record, destination == D::Stalled, source) {
                return super::lost::start_anew(control, now, record, &why);
            }
        }
        (D::Waits | D::Unknown, S::Paused) => {
            if may_ask(control, now, record) {
                send_commit(control, now, record);
            }
        }
        (D::Waits, S::Runs | S::Nothing | S::PostCopyPaused) => {
            if control.live.has_spoken_since(&record.from, committed_at) {
                cancel_at(control, now, record, &record.to);
            }
        }
        (D::Waits, S::SwitchesOver | S::PostCopies | S::HandedOver) => {
            if now.since(committed_at) >= switch_over_max(control, record) {
                cancel_at(control, now, record, &record.to);
            }
        }
        (D::Gone, S::HandedOver) if record.strategy.method != Method::PostCopy => {
            return take_back(control, now, record);
        }
        (D::Gone | D::Ended | D::PoweredOff, S::Runs | S::SwitchesOver) if proven => {
            return take_back(control, now, record);
        }
        (D::Gone | D::Ended | D::PoweredOff, S::Paused) if proven => {
            cancel_at(control, now, record, &record.from);
        }
        (D::Gone | D::Ended, S::PostCopies | S::PostCopyPaused) | (D::Gone, S::HandedOver) => {
            let why = format!("{} lost it while its memory was still arriving", record.to);
            return super::lost::start_anew(control, now, record, &why);
        }
        (D::Gone, S::Nothing) => {
            return super::lost::start_anew(control, now, record, "both sides lost it in the switch-over");
        }
        (D::Gone | D::Ended | D::PoweredOff, S::Runs | S::SwitchesOver | S::Paused) => {}
        (_, S::Unknown) | (D::Unknown, _) => {}
    }
    escalate_if_stuck(control, now, record);
}

/// How long the last of the memory may be on its way: what the guest was allowed to stand still, or more where all of it
/// goes then, plus slack.
fn switch_over_max(control: &Control, record: &MigrationRecord) -> Millis {
    let expected = record.prediction.map(|prediction| prediction.downtime.high).unwrap_or_default();
    let allowed = control.policy().migration.downtime_max;
    expected.max(allowed) + expected.max(allowed) + SWITCH_OVER_SLACK
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
        vm.left.pop_if(|(_, left)| *left == record.from);
    });
    let command = Command::TakeBack { vm: record.vm.clone(), generation, migration: record.id };
    control.live.send(&record.from, command);
    let why = format!("{} never ran it; it goes on at {}", record.to, record.from);
    close(control, now, record, MigrationPhase::TakenBack { why }, None);
}

/// It has no right to run and the guest has run elsewhere since: what it holds is an old copy.
fn release_source(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    if may_ask(control, now, record) {
        open(control, record.id).asked = Some(now);
        let (vm, generation) = (record.vm.clone(), record.generation.next());
        control.live.send(&record.from, Command::Release { vm, generation, delete_disk: false });
    }
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
    let complete_at = *state.complete_at.get_or_insert(now);
    if state.source_report.is_some() || now.since(complete_at) >= SOURCE_REPORT_WITHIN {
        done(control, now, record, running_at, complete_at);
    }
}

fn done(control: &mut Control, now: TimeMs, record: &MigrationRecord, running_at: TimeMs, complete_at: TimeMs) {
    let memory = control.vm(&record.vm).map(|vm| vm.spec.memory).unwrap_or_default();
    let state = open(control, record.id);
    let mut report = state.source_report.unwrap_or_default();
    report.predicted_total = record.prediction.map(|prediction| prediction.total.expected).unwrap_or_default();
    report.memory = memory;
    // By post-copy the guest runs before its memory is there.
    let arrived_at = if record.strategy.method == Method::PostCopy { complete_at } else { running_at };
    report.total = arrived_at.since(state.sending_since.unwrap_or(record.started_at));
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
