//! Measuring how fast the guest writes to its memory: again and again without being asked, so that what a migration
//! will take can be told at any time, and at once when somebody asks.
//!
//! QEMU samples the guest's pages at the start and at the end of the span. Meanwhile the vm's task takes other commands.
//!
//! ```text
//! nothing known ──due, or asked──▶ measuring ──result──▶ known ──60 s──▶ nothing known
//!       ▲                            │     ▲                │
//!       └── failed, or the guest ────┘     └──due, or asked─┘
//!           no longer runs
//! ```
//!
//! Of the measurements that nobody asked for one is under way on a host at a time. A vm that is not simply running is
//! not measured: one that moves is, by its migration.

use super::Answer;
use super::task::VmTask;
use drover_model::command::{CommandOutcome, CommandRefusal};
use drover_model::inventory::VmState;
use drover_model::load::VmSample;
use drover_model::{Bytes, Millis};
use drover_qemu::QmpError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

/// How long a guest runs before it is measured for the first time.
const FIRST_AFTER: Duration = Duration::from_secs(2);
/// Until the next one; doubled each time up to what is configured. A guest that has just started soon does something else.
const SECOND_AFTER: Duration = Duration::from_secs(4);
/// Span of a measurement that nobody asked for; the shortest that QEMU knows.
const SPAN: Millis = Millis::secs(1);
/// Wait for the turn of a vm that found another one being measured.
const TURN_AFTER: Duration = Duration::from_millis(500);

/// A measurement under way; dropping it gives it up.
pub(super) struct Measuring {
    task: JoinHandle<Result<u64, QmpError>>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum MeasureError {
    #[error(transparent)]
    Monitor(#[from] QmpError),
    #[error("the measurement broke off, which only a defect can cause: report it")]
    Lost(#[from] JoinError),
}

impl Measuring {
    /// Bytes per second. Nothing is lost when the wait is given up and begun again.
    pub async fn rate(&mut self) -> Result<u64, MeasureError> {
        Ok((&mut self.task).await??)
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What was measured last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DirtyRate {
    rate: Bytes,
    measured_at: Instant,
}

impl DirtyRate {
    /// `None` once it is too old to say anything of the guest.
    pub fn at(self, now: Instant) -> Option<Bytes> {
        let age = now.duration_since(self.measured_at);
        (age < VmSample::DIRTY_RATE_KEPT_MAX.to_std()).then_some(self.rate)
    }
}

impl VmTask {
    /// Begins a measurement. What was known before no longer stands: its result can't be taken for this one's.
    pub(super) fn measure_dirty_rate(&mut self, span: Millis) -> Answer {
        if self.attached.is_none() {
            let why = "QEMU does not answer at the moment: try again in a few seconds".to_owned();
            return Err(CommandRefusal::Failed { why });
        }
        self.dirty_rate = None;
        if self.measuring.is_none() {
            self.begin_measurement(span, None);
        }
        Ok(CommandOutcome::Done)
    }

    /// When this vm is to be measured next without being asked; `None` while it can't be.
    pub(super) fn measure_at(&self) -> Option<Instant> {
        let runs = matches!(self.known, Some((_, VmState::Running)));
        let attached = self.attached.as_ref().filter(|_| runs && self.measuring.is_none())?;
        Some(self.measure_at.unwrap_or(attached.since + FIRST_AFTER))
    }

    pub(super) fn measure_in_turn(&mut self) {
        let turn = Arc::clone(&self.shared.measuring).try_acquire_owned();
        let Ok(turn) = turn else {
            self.measure_at = Some(Instant::now() + TURN_AFTER);
            return;
        };
        let every = self.host().config.limits.dirty_rate_every();
        let wait = self.measure_wait.map_or(SECOND_AFTER, |last| last * 2).min(every);
        self.measure_wait = Some(wait);
        self.measure_at = Some(Instant::now() + wait);
        self.begin_measurement(SPAN, Some(turn));
    }

    fn begin_measurement(&mut self, span: Millis, turn: Option<OwnedSemaphorePermit>) {
        let Some(attached) = &self.attached else { return };
        let machine = attached.machine.clone();
        // The machine keeps it within what QEMU takes.
        let seconds = u32::try_from(span.0.div_ceil(1000)).unwrap_or(u32::MAX);
        let task = tokio::spawn(async move {
            let _turn = turn;
            machine.dirty_rate(seconds).await
        });
        self.measuring = Some(Measuring { task });
    }

    pub(super) fn measured(&mut self, rate: Result<u64, MeasureError>) {
        self.measuring = None;
        match rate {
            Ok(rate) => {
                let rate = Bytes(rate);
                tracing::debug!(vm = %self.vm, %rate, "dirty rate measured");
                self.dirty_rate = Some(DirtyRate { rate, measured_at: Instant::now() });
            }
            Err(error) => {
                let error = crate::error_chain::chain(&error);
                tracing::warn!(vm = %self.vm, error, "the dirty rate was not measured");
            }
        }
    }

    /// The process is another, or none: what was measured was not its guest.
    pub(super) fn forget_dirty_rate(&mut self) {
        self.measuring = None;
        self.measure_at = None;
        self.measure_wait = None;
        self.dirty_rate = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dirty_rate_stands_for_a_minute() {
        let measured_at = Instant::now();
        let measured = DirtyRate { rate: Bytes::MIB, measured_at };
        assert_eq!(measured.at(measured_at), Some(Bytes::MIB));
        assert_eq!(measured.at(measured_at + Duration::from_millis(59_999)), Some(Bytes::MIB));
        assert_eq!(measured.at(measured_at + Duration::from_secs(60)), None);
    }
}
