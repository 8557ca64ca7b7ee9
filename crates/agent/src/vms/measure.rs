//! Measuring how fast the guest writes to its memory, when somebody asks.
//!
//! QEMU samples the guest's pages at the start and at the end of the span. Meanwhile the vm's task takes other commands.
//!
//! ```text
//! nothing known ──asked──▶ measuring ──result──▶ known ──60 s──▶ nothing known
//!       ▲                   │     ▲                │
//!       └── failed, or the ─┘     └─────asked──────┘
//!           guest no longer runs
//! ```

use super::Answer;
use super::task::VmTask;
use drover_model::command::{CommandOutcome, CommandRefusal};
use drover_model::load::VmSample;
use drover_model::{Bytes, Millis};
use drover_qemu::QmpError;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

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
        if self.measuring.is_some() {
            return Ok(CommandOutcome::Done);
        }
        let Some(attached) = &self.attached else {
            let why = "QEMU does not answer at the moment: try again in a few seconds".to_owned();
            return Err(CommandRefusal::Failed { why });
        };
        let machine = attached.machine.clone();
        // The machine keeps it within what QEMU takes.
        let seconds = u32::try_from(span.0.div_ceil(1000)).unwrap_or(u32::MAX);
        self.dirty_rate = None;
        let task = tokio::spawn(async move { machine.dirty_rate(seconds).await });
        self.measuring = Some(Measuring { task });
        Ok(CommandOutcome::Done)
    }

    pub(super) fn measured(&mut self, rate: Result<u64, MeasureError>) {
        self.measuring = None;
        match rate {
            Ok(rate) => {
                let rate = Bytes(rate);
                tracing::info!(vm = %self.vm, %rate, "dirty rate measured");
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
        self.dirty_rate = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_dirty_rate_stands_for_a_minute() {
        let measured_at = Instant::now();
        let measured = DirtyRate { rate: Bytes::MIB, measured_at };
        assert_eq!(measured.at(measured_at), Some(Bytes::MIB));
        assert_eq!(measured.at(measured_at + Duration::from_millis(59_999)), Some(Bytes::MIB));
        assert_eq!(measured.at(measured_at + Duration::from_secs(60)), None);
    }
}
