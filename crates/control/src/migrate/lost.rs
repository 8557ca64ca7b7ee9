//! The vm's memory is gone: it is started anew, once, at a newer generation, and that is said out loud.

use super::close;
use crate::Control;
use crate::live::Seen;
use drover_model::TimeMs;
use drover_model::command::Command;
use drover_model::intent::Vm;
use drover_model::inventory::VmState;
use drover_model::migration::{MigrationPhase, MigrationRecord};

/// The right to run stays with the destination, at a generation that no older copy has. The lifecycle finds it missing
/// there and starts it; the source is released as a stray.
pub fn start_anew(control: &mut Control, now: TimeMs, record: &MigrationRecord, why: &str) {
    let generation = record.generation.next().next();
    control.tables.change::<Vm>(&record.vm, |vm| vm.generation = generation);
    // A guest that waits for memory that never comes holds the place of the new one.
    if let Seen::There(seen) = control.live.sees(&record.to, &record.vm)
        && matches!(seen.state, VmState::Completing { .. })
    {
        let command = Command::Release { vm: record.vm.clone(), generation, delete_disk: false };
        control.live.send(&record.to, command);
    }
    let why = format!("{why}; its memory is gone");
    close(control, now, record, MigrationPhase::Restarted { why }, None);
}
