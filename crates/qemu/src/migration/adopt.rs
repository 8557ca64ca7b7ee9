//! An outgoing migration that another driver began: what QEMU says of it, as a phase to go on from.

use super::Limits;
use super::outgoing::{AtSwitchOver, HandedOver, PreCopy, Source, SwitchingOver};
use super::timeline::Timeline;
use super::wire::{MigrateInfo, Status};
use crate::machine::{Machine, RunStatus};
use crate::qmp::QmpError;
use std::time::Duration;
use tokio::time::Instant;

/// QEMU leaves the state of the pause as soon as its migration thread runs after the commit.
const PAUSE_BELIEVED_AFTER: Duration = Duration::from_millis(200);

/// What became of a migration while nobody drove it.
pub enum Adopted {
    /// None is under way. The guest does here what `guest` says; `last` is QEMU's word on the last one, for people.
    Idle {
        guest: RunStatus,
        last: String,
    },
    PreCopy(PreCopy),
    /// `commit_wait_max` counts from the adoption.
    AtSwitchOver(AtSwitchOver),
    SwitchingOver(SwitchingOver),
    HandedOver(HandedOver),
}

/// Asks a QEMU whether it is sending its guest away, and takes over driving that.
///
/// A caller that may have committed before must commit again, never cancel: a cancel past the commit can leave the guest
/// running at both ends. QEMU itself shows a commit within moments, so a pause is believed only if it lasts.
pub async fn adopt(machine: &Machine, limits: Limits) -> Result<Adopted, QmpError> {
    let timeline = Timeline::of(machine);
    // The status after the phase: a guest that was sent while we asked stands still in both readings or in the later.
    let mut info = MigrateInfo::query(machine).await?;
    if info.status == Status::PreSwitchover {
        tokio::time::sleep(PAUSE_BELIEVED_AFTER).await;
        info = MigrateInfo::query(machine).await?;
    }
    let guest = machine.status().await?;
    let source = Source {
        machine: machine.clone(),
        limits,
        timeline,
        was_running: true,
        connected: info.status != Status::Setup,
        started: Instant::now().checked_sub(info.total()).unwrap_or_else(Instant::now),
    };
    Ok(match (&info.status, guest) {
        (_, guest @ RunStatus::InMigrate) => Adopted::Idle { guest, last: "incoming".to_owned() },
        (Status::Setup | Status::Active, _) => Adopted::PreCopy(PreCopy::new(source)),
        (Status::PreSwitchover, _) => Adopted::AtSwitchOver(AtSwitchOver::new(source)),
        (Status::Device, _) | (Status::Completed, RunStatus::FinishMigrate) => {
            Adopted::SwitchingOver(SwitchingOver::new(source, None))
        }
        (Status::Completed, RunStatus::PostMigrate) => {
            // Its figures are whole only now.
            let info = MigrateInfo::query(machine).await?;
            Adopted::HandedOver(HandedOver::new(source.machine, &info, &source.timeline, None))
        }
        // Also a guest that came here by a migration, or was taken back after one.
        (_, guest) => Adopted::Idle { guest, last: info.describe() },
    })
}
