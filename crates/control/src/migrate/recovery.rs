//! A post-copy that lost its connection: both ends keep what they have, and are connected anew.
//!
//! ```text
//!  stalled ─▶ RecoverIncoming ─▶ destination listens ─▶ RecoverOutgoing ─▶ flows again
//!     ▲                                                        │
//!     └── still stalled after a while: the link is away ───────┘
//! ```
//! Bounded by the policy: while the source's agent says that it has the memory, longer than while nothing is heard of
//! it. What the destination waits for is given up then, and the vm is started anew.

use super::committed::Source;
use super::{REPORT_LAG, open};
use crate::Control;
use drover_model::command::{Command, MigrationTarget};
use drover_model::migration::MigrationRecord;
use drover_model::{Millis, TimeMs};

/// Connecting anew is tried this often while both ends wait for it.
const RECOVER_EVERY: Millis = Millis::secs(2);

/// `Some`: why what is missing will never come.
pub fn turn(
    control: &mut Control,
    now: TimeMs,
    record: &MigrationRecord,
    stalled: bool,
    source: Source,
) -> Option<String> {
    let limits = control.policy().migration;
    let heard_at = control.live.hosts.get(&record.from).and_then(|live| live.reported_at);
    let state = open(control, record.id);
    let (stalled_at, gone_at) = (state.stalled_at, state.source_gone_at);
    let completing_at = state.completing_at.unwrap_or(now);
    let silent_since = heard_at.map_or(completing_at, |at| at.max(completing_at));
    let silent_for = now.since(silent_since);
    let stalled_for = stalled_at.map_or(Millis::ZERO, |at| now.since(at));

    // What was sent before the source ended may be enough.
    let gone = gone_at.is_some_and(|at| {
        control.live.has_spoken_since(&record.from, at.max(completing_at))
            && control.live.has_spoken_since(&record.to, at)
            && (stalled || now.since(at) >= REPORT_LAG)
    });
    if matches!(source, Source::Nothing | Source::HandedOver) && gone {
        let has = if stalled { "waits for" } else { "still lacks" };
        return Some(format!("{} {has} memory that {} no longer has", record.to, record.from));
    }
    if stalled && silent_for >= limits.source_silence_max && stalled_for >= limits.source_silence_max {
        return Some(format!(
            "nothing was heard of {} for {}, and part of the memory was still there",
            record.from, limits.source_silence_max
        ));
    }
    if stalled_for >= limits.recovery_max {
        return Some(format!("{} was not reached by {} for {}", record.from, record.to, limits.recovery_max));
    }
    // Cut off without having noticed it.
    if !stalled && silent_for >= limits.recovery_max {
        return Some(format!("nothing was heard of {} for {}", record.from, limits.recovery_max));
    }
    if stalled && source == Source::PostCopyPaused {
        connect_anew(control, now, record);
    }
    None
}

fn connect_anew(control: &mut Control, now: TimeMs, record: &MigrationRecord) {
    let state = open(control, record.id);
    if state.recovery_asked.is_some_and(|at| now.since(at) < RECOVER_EVERY) {
        return;
    }
    state.recovery_asked = Some(now);
    state.recoveries += 1;
    let (vm, generation) = (record.vm.clone(), record.generation.next());
    control.live.send(&record.to, Command::RecoverIncoming { vm, generation, migration: record.id });
}

/// The destination listens once more.
pub fn listening(control: &mut Control, record: &MigrationRecord, target: MigrationTarget) {
    let (vm, generation) = (record.vm.clone(), record.generation.next());
    control.live.send(&record.from, Command::RecoverOutgoing { vm, generation, migration: record.id, target });
}
