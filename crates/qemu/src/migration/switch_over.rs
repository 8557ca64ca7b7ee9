//! From the pause to the hand-over. Each phase is a type that the next one consumes.

use super::failure::{FailureCause, OutgoingFailed, SourceGuest, TakeBackError};
use super::post_copy::PostCopy;
use super::pre_copy::is_begin_of_post_copy;
use super::source::{Revive, SETTLE_POLL, Source};
use super::strategy::{Adjust, Method};
use super::timeline::{Ended, Timeline};
use super::wire::{MigrateInfo, Status};
use super::{Figures, POLL, SWITCH_OVER_MAX};
use crate::machine::{Machine, RunStatus};
use crate::qmp::QmpError;
use serde_json::json;
use std::pin::pin;
use std::time::SystemTime;
use tokio::time::{Instant, sleep_until, timeout};

/// The guest stands still at the source; what is left goes to the destination once committed.
pub struct AtSwitchOver {
    source: Source,
    commit_by: Instant,
}

/// Committed: the last state is on its way.
pub struct SwitchingOver {
    source: Source,
    /// `None` if the driver was away at the commit.
    committed_at: Option<SystemTime>,
    give_up_at: Instant,
}

/// Everything was sent. The guest stands still here until QEMU is ended or the guest is taken back.
#[derive(Debug)]
pub struct HandedOver {
    machine: Machine,
    figures: Figures,
    after_post_copy: bool,
}

/// What to do with a guest that stands at the switch-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Commit,
    Cancel { by: String },
}

/// What follows the switch-over.
#[must_use]
pub enum Switched {
    HandedOver(HandedOver),
    PostCopy(PostCopy),
}

impl AtSwitchOver {
    pub(super) fn new(source: Source) -> Self {
        let commit_by = Instant::now() + source.limits.commit_wait_max;
        Self { source, commit_by }
    }

    /// Since when the guest stands still; `None` if the driver was away then.
    pub fn stopped_at(&self) -> Option<SystemTime> {
        self.source.timeline.stopped_at
    }

    pub fn adjust(&self) -> Adjust {
        Adjust(self.source.pace.clone())
    }

    /// Waits for the decision, at most `commit_wait_max` from the pause, and does it. No decision in time
    /// is a cancel.
    pub async fn decide(mut self, decision: impl Future<Output = Decision>) -> Result<Switched, OutgoingFailed> {
        if let Some(cause) = self.no_way_on().await {
            return Err(self.source.unwind(cause).await);
        }
        let mut decision = pin!(decision);
        let decided = loop {
            tokio::select! {
                biased;
                decided = &mut decision => break Some(decided),
                () = sleep_until(self.commit_by) => break None,
                event = self.source.timeline.next() => if let Err(Ended) = event {
                    return Err(self.source.lost(QmpError::Closed { why: "while the commit was awaited".to_owned() }));
                },
            }
        };
        match decided {
            Some(Decision::Commit) => self.commit().await,
            Some(Decision::Cancel { by }) => Err(self.cancel(by).await),
            None => {
                let waited_ms = self.source.limits.commit_wait_max.as_millis();
                Err(self.source.unwind(FailureCause::NoCommit { waited_ms }).await)
            }
        }
    }

    /// A post-copy that was adopted at the pause may be at the end of its pre-copy instead, which must not be committed.
    async fn no_way_on(&mut self) -> Option<FailureCause> {
        if self.source.method() != Method::PostCopy {
            return None;
        }
        // Without an answer the commit will not get through either.
        let progress = self.source.look().await.ok()?.progress();
        let begins = is_begin_of_post_copy(&self.source.machine, &progress).await;
        (!begins).then_some(FailureCause::NothingLeft)
    }

    /// The destination has the right to run: sends the rest. There is no way back from here but
    /// [`HandedOver::take_back`].
    pub async fn commit(mut self) -> Result<Switched, OutgoingFailed> {
        let committed_at = Some(SystemTime::now());
        let go_on = json!({ "state": "pre-switchover" });
        if let Err(error) = self.source.machine.qmp().execute("migrate-continue", go_on).await {
            let still_waits = || matches!(error, QmpError::Command { .. });
            if still_waits() && self.source.look().await.is_ok_and(|info| info.status == Status::PreSwitchover) {
                // QEMU refused, so nothing was sent.
                return Err(self.source.unwind(error.into()).await);
            }
            tracing::warn!(%error, "no answer to the commit; going by what QEMU does");
        }
        SwitchingOver::new(self.source, committed_at).finish().await
    }

    /// Lets the guest run here again.
    pub async fn cancel(self, by: String) -> OutgoingFailed {
        self.source.unwind(FailureCause::Cancelled { by }).await
    }
}

impl SwitchingOver {
    pub(super) fn new(source: Source, committed_at: Option<SystemTime>) -> Self {
        Self { source, committed_at, give_up_at: Instant::now() + SWITCH_OVER_MAX }
    }

    /// Waits until everything was sent, or post-copy has begun, or QEMU says that it could not.
    pub async fn finish(mut self) -> Result<Switched, OutgoingFailed> {
        let post_copy = self.source.method() == Method::PostCopy;
        loop {
            let mut wait = POLL;
            match self.source.look().await {
                Ok(info) => match info.status {
                    Status::PostcopyActive | Status::PostcopyPaused | Status::PostcopyRecover => {
                        return Ok(self.go_on());
                    }
                    Status::Completed if post_copy => return Ok(self.go_on()),
                    Status::Completed if self.source.is_at_rest().await => {
                        return self.handed_over().await.map(Switched::HandedOver);
                    }
                    // QEMU works out its figures between the one state and the other.
                    Status::Completed => wait = SETTLE_POLL,
                    Status::PreSwitchover | Status::Device => {}
                    Status::Failed => {
                        let cause = FailureCause::Stream { desc: info.error() };
                        return Err(self.failed(cause).await);
                    }
                    status => {
                        let cause = FailureCause::Foreign { status: status.to_string() };
                        let revive = if post_copy { Revive::Forbid } else { Revive::Never };
                        return Err(self.source.settled(cause, revive).await);
                    }
                },
                Err(error @ QmpError::Closed { .. }) => return Err(self.source.lost(error)),
                Err(error) => tracing::warn!(%error, "cannot see how the switch-over is doing"),
            }
            if Instant::now() >= self.give_up_at {
                return Err(self.source.stuck().await);
            }
            // The end of the monitor shows at the next look.
            let _ = timeout(wait, self.source.timeline.next()).await;
        }
    }

    /// QEMU could not send it all. Who may then run the guest differs: `docs/decisions/0007`.
    async fn failed(self, cause: FailureCause) -> OutgoingFailed {
        let revive = match self.source.method() {
            // QEMU resumes what it stopped itself.
            Method::PreCopy => Revive::Never,
            // The same proof; only that QEMU leaves still what was stopped before.
            Method::StopAndCopy => Revive::IfStopped,
            // No proof.
            Method::PostCopy => Revive::Forbid,
        };
        self.source.settled(cause, revive).await
    }

    fn go_on(self) -> Switched {
        Switched::PostCopy(PostCopy::new(self.source, self.committed_at))
    }

    async fn handed_over(mut self) -> Result<HandedOver, OutgoingFailed> {
        match self.source.look().await {
            Ok(info) => Ok(HandedOver::new(&self.source, &info, self.committed_at)),
            Err(error @ QmpError::Closed { .. }) => Err(self.source.lost(error)),
            Err(error) => Err(OutgoingFailed { cause: error.into(), guest: SourceGuest::Unknown }),
        }
    }
}

impl HandedOver {
    pub(super) fn new(source: &Source, info: &MigrateInfo, committed_at: Option<SystemTime>) -> Self {
        Self {
            machine: source.machine.clone(),
            figures: figures(source, info, committed_at),
            after_post_copy: source.method() == Method::PostCopy,
        }
    }

    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Runs the guest here again. The caller has proof that the destination never ran it and never
    /// will. Running already is success. Refused after a post-copy, which ends only when the destination has run.
    pub async fn take_back(&self) -> Result<(), TakeBackError> {
        if self.after_post_copy {
            return Err(TakeBackError::AfterPostCopy);
        }
        match self.machine.status().await? {
            RunStatus::Running => Ok(()),
            RunStatus::PostMigrate | RunStatus::Paused => Ok(self.machine.cont().await?),
            status => Err(TakeBackError::WrongStatus(status)),
        }
    }
}

fn figures(source: &Source, info: &MigrateInfo, committed_at: Option<SystemTime>) -> Figures {
    let Timeline { stopped_at, paused_at, post_copy_at, completed_at, .. } = source.timeline;
    let between = |from: Option<SystemTime>, to: Option<SystemTime>| to?.duration_since(from?).ok();
    let downtime = info.downtime().unwrap_or_default();
    // With stop-and-copy the guest stands still long before QEMU waits for the commit.
    let waited_from = match source.method() {
        Method::StopAndCopy => paused_at,
        Method::PreCopy | Method::PostCopy => stopped_at,
    };
    let copy = between(committed_at, post_copy_at.or(completed_at)).unwrap_or(downtime);
    let commit_wait = between(waited_from, committed_at).unwrap_or_else(|| downtime.saturating_sub(copy));
    let progress = info.progress();
    Figures {
        total: info.total(),
        stopped_at,
        completed_at,
        commit_wait,
        copy,
        transferred: progress.transferred,
        memory: progress.total,
        rounds: progress.rounds,
        in_use: if source.in_use == 0 { info.normal() } else { source.in_use },
        throughput: if source.rounds.throughput() == 0 { progress.throughput } else { source.rounds.throughput() },
        dirty_rate: source.rounds.dirty_rate(),
        writable_working_set: source.rounds.writable_working_set(),
        post_copied: progress.post_copied,
        throttled: source.throttled,
    }
}
