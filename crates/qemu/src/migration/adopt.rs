//! An outgoing migration that another driver began: what QEMU says of it, as a phase to go on from.

use super::Limits;
use super::post_copy::{PostCopy, Stalled};
use super::pre_copy::PreCopy;
use super::source::Source;
use super::strategy::{Method, Strategy};
use super::switch_over::{AtSwitchOver, HandedOver, SwitchingOver};
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
    ///
    /// A guest that is [`RunStatus::Paused`] under stop-and-copy, or [`RunStatus::PostMigrate`] under post-copy, and whose
    /// migration was not committed, was cancelled by a driver that ended then: let it run again.
    Idle {
        guest: RunStatus,
        last: String,
    },
    PreCopy(PreCopy),
    /// `commit_wait_max` counts from the adoption.
    AtSwitchOver(AtSwitchOver),
    SwitchingOver(SwitchingOver),
    PostCopy(PostCopy),
    Stalled(Stalled),
    HandedOver(HandedOver),
}

/// Asks a QEMU whether it is sending its guest away, and takes over driving that. `strategy` is the one it was begun with;
/// its pace counts from now on.
///
/// A caller that may have committed before must commit again, never cancel: a cancel past the commit can leave the guest
/// running at both ends. QEMU itself shows a commit within moments, so a pause is believed only if it lasts.
pub async fn adopt(machine: &Machine, strategy: Strategy, limits: Limits) -> Result<Adopted, QmpError> {
    let timeline = Timeline::of(machine);
    // The status after the phase: a guest that was sent while we asked stands still in both readings or in the later.
    let mut info = MigrateInfo::query(machine).await?;
    if info.status == Status::PreSwitchover {
        tokio::time::sleep(PAUSE_BELIEVED_AFTER).await;
        info = MigrateInfo::query(machine).await?;
    }
    let mut guest = machine.status().await?;
    let mut source = Source::new(machine, strategy, limits, timeline);
    source.connected = info.status != Status::Setup;
    source.started = Instant::now().checked_sub(info.total()).unwrap_or_else(Instant::now);
    // A destination in post-copy says the same, and has sent nothing.
    let sends = info.progress().total > 0;
    let past_the_point = match info.status {
        Status::PostcopyActive | Status::PostcopyPaused | Status::PostcopyRecover => sends,
        Status::Completed => source.method() == Method::PostCopy && guest == RunStatus::PostMigrate,
        _ => false,
    };
    if past_the_point {
        guest = source.keep_still().await?;
    }
    Ok(match (&info.status, guest) {
        (_, guest @ RunStatus::InMigrate) => Adopted::Idle { guest, last: "incoming".to_owned() },
        (Status::PostcopyActive | Status::PostcopyPaused | Status::PostcopyRecover, guest) if !sends => {
            Adopted::Idle { guest, last: "incoming".to_owned() }
        }
        (Status::Setup | Status::Active, _) => Adopted::PreCopy(PreCopy::new(source)),
        (Status::PreSwitchover, _) => Adopted::AtSwitchOver(AtSwitchOver::new(source)),
        (Status::PostcopyActive | Status::PostcopyRecover, _) => Adopted::PostCopy(PostCopy::new(source, None)),
        (Status::PostcopyPaused, _) => Adopted::Stalled(Stalled::new(PostCopy::new(source, None), info.error())),
        (Status::Device, _) | (Status::Completed, RunStatus::FinishMigrate) => {
            Adopted::SwitchingOver(SwitchingOver::new(source, None))
        }
        (Status::Completed, RunStatus::PostMigrate) => {
            // Its figures are whole only now.
            let info = MigrateInfo::query(machine).await?;
            Adopted::HandedOver(HandedOver::new(&source, &info, None))
        }
        // Also a guest that came here by a migration, or was taken back after one.
        (_, guest) => Adopted::Idle { guest, last: info.describe() },
    })
}
