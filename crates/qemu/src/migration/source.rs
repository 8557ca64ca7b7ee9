//! What all phases at the source share, and how a failed one comes to rest.

use super::failure::{FailureCause, OutgoingFailed, SourceGuest};
use super::rounds::Rounds;
use super::strategy::{Method, Pace, Strategy};
use super::timeline::Timeline;
use super::wire::{MigrateInfo, Status};
use super::{Limits, UNWIND_MAX};
use crate::machine::{Machine, RunStatus};
use crate::qmp::QmpError;
use serde_json::json;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long QEMU has to resume the guest itself before the driver does, and how often it is looked at.
const REVIVE_AFTER: Duration = Duration::from_secs(1);
pub(super) const SETTLE_POLL: Duration = Duration::from_millis(20);

/// Whether the driver may let the guest run if QEMU does not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Revive {
    /// The end mark was never sent: before the commit, or QEMU says so and only it stopped short of resuming.
    IfStopped,
    /// QEMU alone may.
    Never,
    /// Nobody may: the destination may run the guest already.
    Forbid,
}

pub(super) struct Source {
    pub machine: Machine,
    pub strategy: Strategy,
    pub limits: Limits,
    pub timeline: Timeline,
    pub was_running: bool,
    /// Memory flows, or flowed.
    pub connected: bool,
    pub started: Instant,
    pub pace: watch::Sender<Pace>,
    pub pace_changes: watch::Receiver<Pace>,
    pub rounds: Rounds,
    /// Bytes that were worth sending in the first round; 0 until it has ended.
    pub in_use: u64,
    /// The greatest seen, in percent.
    pub throttled: u8,
}

impl Source {
    pub fn new(machine: &Machine, strategy: Strategy, limits: Limits, timeline: Timeline) -> Self {
        let (pace, pace_changes) = watch::channel(strategy.pace);
        Self {
            machine: machine.clone(),
            strategy,
            limits,
            timeline,
            was_running: true,
            connected: false,
            started: Instant::now(),
            pace,
            pace_changes,
            rounds: Rounds::default(),
            in_use: 0,
            throttled: 0,
        }
    }

    pub fn method(&self) -> Method {
        self.strategy.method
    }

    pub async fn look(&mut self) -> Result<MigrateInfo, QmpError> {
        let info = MigrateInfo::query(&self.machine).await?;
        self.timeline.catch_up();
        self.throttled = self.throttled.max(info.progress().throttled);
        Ok(info)
    }

    /// Whether QEMU has left the switch-over; no answer is a no.
    pub async fn is_at_rest(&self) -> bool {
        matches!(self.machine.status().await, Ok(status) if status != RunStatus::FinishMigrate)
    }

    pub fn lost(self, error: QmpError) -> OutgoingFailed {
        OutgoingFailed { cause: error.into(), guest: SourceGuest::Gone }
    }

    /// The copying is over and the guest never stood at the switch-over.
    pub async fn ended_early(self, info: MigrateInfo) -> OutgoingFailed {
        match info.status {
            Status::Failed => {
                let cause = FailureCause::Stream { desc: info.error() };
                self.settled(cause, Revive::IfStopped).await
            }
            Status::Cancelling | Status::Cancelled => {
                let cause = FailureCause::Cancelled { by: "someone else at QEMU's monitor".to_owned() };
                self.settled(cause, Revive::IfStopped).await
            }
            status => {
                let cause = FailureCause::Foreign { status: status.to_string() };
                self.settled(cause, Revive::Never).await
            }
        }
    }

    /// Cancels. Only ever called before the commit.
    pub async fn unwind(self, cause: FailureCause) -> OutgoingFailed {
        if let Err(error) = self.machine.qmp().execute("migrate_cancel", json!({})).await {
            tracing::warn!(%error, "QEMU did not take the cancel");
        }
        self.settled(cause, Revive::IfStopped).await
    }

    pub async fn stuck(self) -> OutgoingFailed {
        let guest = match self.machine.status().await {
            Ok(RunStatus::Running) => SourceGuest::RunsHere,
            Ok(status) => SourceGuest::StandsStill(status),
            Err(QmpError::Closed { .. }) => SourceGuest::Gone,
            Err(_) => SourceGuest::Unknown,
        };
        OutgoingFailed { cause: FailureCause::SwitchOverStuck, guest }
    }

    /// Stops a guest that QEMU let run although it may run at the destination. Returns what it then does.
    pub async fn keep_still(&mut self) -> Result<RunStatus, QmpError> {
        let status = self.machine.status().await?;
        if status != RunStatus::Running {
            return Ok(status);
        }
        tracing::error!("QEMU resumed a guest whose right to run has left; stopping it");
        self.machine.stop().await?;
        self.machine.status().await
    }

    /// Waits until the guest runs again or stands still for good. QEMU resumes it itself a moment after it
    /// says that the migration is over.
    pub async fn settled(mut self, cause: FailureCause, revive: Revive) -> OutgoingFailed {
        let give_up_at = Instant::now() + UNWIND_MAX;
        // QEMU 7.2 leaves a guest still that it, or the driver, stopped for these methods.
        let patience = if self.method() == Method::PreCopy { REVIVE_AFTER } else { Duration::ZERO };
        let revive_at = Instant::now() + patience;
        let mut guest = SourceGuest::Unknown;
        while Instant::now() < give_up_at {
            match self.state(revive).await {
                Err(QmpError::Closed { .. }) => {
                    guest = SourceGuest::Gone;
                    break;
                }
                Err(error) => tracing::warn!(%error, "cannot see what the guest does"),
                Ok((over, RunStatus::Running)) => {
                    guest = SourceGuest::RunsHere;
                    if over {
                        break;
                    }
                }
                Ok((over, status)) => {
                    let for_good = revive == Revive::Forbid && status != RunStatus::FinishMigrate;
                    guest = SourceGuest::StandsStill(status);
                    if over && (!self.was_running || for_good) {
                        break;
                    }
                    if over && revive == Revive::IfStopped && Instant::now() >= revive_at {
                        // Its success shows in the next round.
                        let _ = self.machine.cont().await;
                    }
                }
            }
            tokio::time::sleep(SETTLE_POLL).await;
        }
        OutgoingFailed { cause, guest }
    }

    /// Whether the migration is over, and what the guest does.
    async fn state(&mut self, revive: Revive) -> Result<(bool, RunStatus), QmpError> {
        let info = MigrateInfo::query(&self.machine).await?;
        let over = match info.status {
            Status::None | Status::Failed | Status::Cancelled => true,
            // QEMU stays so until its attempt to connect times out, minutes later; what never
            // began to copy never stops the guest.
            Status::Cancelling => !self.connected,
            _ => false,
        };
        let status = match revive {
            Revive::Forbid => self.keep_still().await?,
            Revive::IfStopped | Revive::Never => self.machine.status().await?,
        };
        Ok((over, status))
    }
}
