//! The source's end. Each phase is a type that the next one consumes.

use super::timeline::{Ended, Timeline};
use super::wire::{MigrateInfo, Status};
use super::*;
use crate::command_line::migration_uri;
use std::net::SocketAddr;
use std::pin::pin;
use tokio::time::{Instant, sleep_until, timeout};

/// Memory is being copied; the guest runs.
pub struct PreCopy {
    source: Source,
    switch_over_open: bool,
}

/// The guest stands still at the source, everything but the last state is at the destination.
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
}

/// What to do with a guest that stands at the switch-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Commit,
    Cancel { by: String },
}

impl PreCopy {
    /// Tells QEMU to send the guest to a destination that listens.
    pub async fn start(machine: &Machine, destination: SocketAddr, limits: Limits) -> Result<Self, StartError> {
        let was_running = machine.status().await? == RunStatus::Running;
        let timeline = Timeline::of(machine);
        set_capabilities(machine).await?;
        let bandwidth = limits.bandwidth_max.unwrap_or(BANDWIDTH_UNLIMITED);
        let parameters = json!({ "max-bandwidth": bandwidth, "downtime-limit": DOWNTIME_LIMIT_CLOSED_MS });
        machine.qmp().execute("migrate-set-parameters", parameters).await?;
        let uri = migration_uri(destination.ip(), destination.port());
        if let Err(error) = machine.qmp().execute("migrate", json!({ "uri": uri })).await {
            // Perhaps only the answer was lost. If QEMU refused, another migration may be under way: not ours to cancel.
            if matches!(error, QmpError::Timeout { .. }) {
                let _ = machine.qmp().execute("migrate_cancel", json!({})).await;
            }
            return Err(error.into());
        }
        let source = Source {
            machine: machine.clone(),
            limits,
            timeline,
            was_running,
            connected: false,
            started: Instant::now(),
        };
        Ok(Self::new(source))
    }

    pub(super) fn new(source: Source) -> Self {
        Self { source, switch_over_open: false }
    }

    /// Copies until the guest stands at the switch-over. `cancel` completes, with who cancels, when the migration
    /// shall not go on; give [`std::future::pending`] for never. Progress is told about every half second.
    pub async fn run(
        mut self,
        mut on_progress: impl FnMut(Progress),
        cancel: impl Future<Output = String>,
    ) -> Result<AtSwitchOver, OutgoingFailed> {
        let mut cancel = pin!(cancel);
        let mut tell_at = Instant::now();
        let mut progress = Progress::default();
        loop {
            match self.source.look().await {
                Ok(info) => {
                    self.source.connected |= !matches!(info.status, Status::None | Status::Setup);
                    match info.status {
                        Status::None | Status::Setup | Status::Active => {}
                        Status::PreSwitchover => {
                            on_progress(info.progress());
                            return Ok(AtSwitchOver::new(self.source));
                        }
                        _ => return Err(self.source.ended_early(info).await),
                    }
                    progress = info.progress();
                    if Instant::now() >= tell_at {
                        on_progress(progress);
                        tell_at = Instant::now() + PROGRESS_EVERY;
                    }
                    self.open_switch_over(&progress).await;
                }
                Err(error @ QmpError::Closed { .. }) => return Err(self.source.lost(error)),
                // QEMU may be busy; `give_up_at` bounds it.
                Err(error) => tracing::warn!(%error, "cannot see how the migration is doing"),
            }
            let woken = tokio::select! {
                biased;
                by = &mut cancel => Some(FailureCause::Cancelled { by }),
                () = sleep_until(self.give_up_at()) => Some(self.given_up(&progress)),
                _ = timeout(POLL, self.source.timeline.next()) => None,
            };
            if let Some(cause) = woken {
                return Err(self.source.unwind(cause).await);
            }
        }
    }

    /// Allows the downtime of the limits once a full pass is done and the rest fits into it. QEMU
    /// then looks again at what is dirty and stops the guest only if that fits, too.
    async fn open_switch_over(&mut self, progress: &Progress) {
        let limit = self.source.limits.downtime_max;
        if self.switch_over_open || progress.rounds < PASSES_STARTED_MIN || progress.throughput == 0 {
            return;
        }
        if progress.remaining as f64 / progress.throughput as f64 > limit.as_secs_f64() {
            return;
        }
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).clamp(1, DOWNTIME_LIMIT_MS_MAX);
        let parameters = json!({ "downtime-limit": limit_ms });
        match self.source.machine.qmp().execute("migrate-set-parameters", parameters).await {
            Ok(_) => self.switch_over_open = true,
            // Tried again at the next look.
            Err(error) => tracing::warn!(%error, "cannot open the switch-over"),
        }
    }

    fn give_up_at(&self) -> Instant {
        let total = self.source.limits.total_max;
        self.source.started + if self.source.connected { total } else { total.min(CONNECT_MAX) }
    }

    fn given_up(&self, progress: &Progress) -> FailureCause {
        if !self.source.connected {
            return FailureCause::NoConnection;
        }
        FailureCause::NotConverging {
            dirty_rate: progress.dirty_rate,
            throughput: progress.throughput,
            after_s: self.source.started.elapsed().as_secs(),
        }
    }
}

/// QEMU refuses more than 2000 s.
const DOWNTIME_LIMIT_MS_MAX: u64 = 2_000_000;

impl AtSwitchOver {
    pub(super) fn new(source: Source) -> Self {
        let commit_by = Instant::now() + source.limits.commit_wait_max;
        Self { source, commit_by }
    }

    /// Since when the guest stands still; `None` if the driver was away then.
    pub fn stopped_at(&self) -> Option<SystemTime> {
        self.source.timeline.stopped_at
    }

    /// Waits for the decision, at most `commit_wait_max` from the pause, and does it. No decision in time
    /// is a cancel.
    pub async fn decide(mut self, decision: impl Future<Output = Decision>) -> Result<HandedOver, OutgoingFailed> {
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

    /// The destination has the right to run: sends the rest. There is no way back from here but
    /// [`HandedOver::take_back`].
    pub async fn commit(mut self) -> Result<HandedOver, OutgoingFailed> {
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

    /// Waits until everything was sent, or QEMU says that it could not.
    pub async fn finish(mut self) -> Result<HandedOver, OutgoingFailed> {
        loop {
            let mut wait = POLL;
            match self.source.look().await {
                Ok(info) => match info.status {
                    Status::Completed if self.source.is_at_rest().await => return self.handed_over().await,
                    // QEMU works out its figures between the one state and the other.
                    Status::Completed => wait = SETTLE_POLL,
                    Status::PreSwitchover | Status::Device => {}
                    Status::Failed => {
                        let cause = FailureCause::Stream { desc: info.error() };
                        return Err(self.source.settled(cause, Revive::Never).await);
                    }
                    status => {
                        let cause = FailureCause::Foreign { status: status.to_string() };
                        return Err(self.source.settled(cause, Revive::Never).await);
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

    async fn handed_over(mut self) -> Result<HandedOver, OutgoingFailed> {
        match self.source.look().await {
            Ok(info) => Ok(HandedOver::new(self.source.machine, &info, &self.source.timeline, self.committed_at)),
            Err(error @ QmpError::Closed { .. }) => Err(self.source.lost(error)),
            Err(error) => Err(OutgoingFailed { cause: error.into(), guest: SourceGuest::Unknown }),
        }
    }
}

impl HandedOver {
    pub(super) fn new(
        machine: Machine,
        info: &MigrateInfo,
        timeline: &Timeline,
        committed_at: Option<SystemTime>,
    ) -> Self {
        let (stopped_at, completed_at) = (timeline.stopped_at, timeline.completed_at);
        let between = |from: Option<SystemTime>, to: Option<SystemTime>| to?.duration_since(from?).ok();
        let downtime = info.downtime().unwrap_or_default();
        let copy = between(committed_at, completed_at).unwrap_or(downtime);
        let commit_wait = between(stopped_at, committed_at).unwrap_or_else(|| downtime.saturating_sub(copy));
        let progress = info.progress();
        let figures = Figures {
            total: info.total(),
            stopped_at,
            completed_at,
            commit_wait,
            copy,
            transferred: progress.transferred,
            memory: progress.total,
            rounds: progress.rounds,
        };
        Self { machine, figures }
    }

    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Runs the guest here again. The caller has proof that the destination never ran it and never
    /// will. Running already is success.
    pub async fn take_back(&self) -> Result<(), TakeBackError> {
        match self.machine.status().await? {
            RunStatus::Running => Ok(()),
            RunStatus::PostMigrate | RunStatus::Paused => Ok(self.machine.cont().await?),
            status => Err(TakeBackError::WrongStatus(status)),
        }
    }
}

/// Whether the driver may let the guest run if QEMU does not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Revive {
    /// Before the commit: the end mark was never sent.
    IfStopped,
    Never,
}

/// What all phases at the source share.
pub(super) struct Source {
    pub machine: Machine,
    pub limits: Limits,
    pub timeline: Timeline,
    pub was_running: bool,
    /// Memory flows, or flowed.
    pub connected: bool,
    pub started: Instant,
}

impl Source {
    async fn look(&mut self) -> Result<MigrateInfo, QmpError> {
        let info = MigrateInfo::query(&self.machine).await?;
        self.timeline.catch_up();
        Ok(info)
    }

    /// Whether QEMU has left the switch-over; no answer is a no.
    async fn is_at_rest(&self) -> bool {
        matches!(self.machine.status().await, Ok(status) if status != RunStatus::FinishMigrate)
    }

    fn lost(self, error: QmpError) -> OutgoingFailed {
        OutgoingFailed { cause: error.into(), guest: SourceGuest::Gone }
    }

    /// Pre-copy is over and the guest never stood at the switch-over.
    async fn ended_early(self, info: MigrateInfo) -> OutgoingFailed {
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
    async fn unwind(self, cause: FailureCause) -> OutgoingFailed {
        if let Err(error) = self.machine.qmp().execute("migrate_cancel", json!({})).await {
            tracing::warn!(%error, "QEMU did not take the cancel");
        }
        self.settled(cause, Revive::IfStopped).await
    }

    async fn stuck(self) -> OutgoingFailed {
        let guest = match self.machine.status().await {
            Ok(RunStatus::Running) => SourceGuest::RunsHere,
            Ok(status) => SourceGuest::StandsStill(status),
            Err(QmpError::Closed { .. }) => SourceGuest::Gone,
            Err(_) => SourceGuest::Unknown,
        };
        OutgoingFailed { cause: FailureCause::SwitchOverStuck, guest }
    }

    /// Waits until the guest runs again or stands still for good. QEMU resumes it itself a moment after it
    /// says that the migration is over.
    async fn settled(self, cause: FailureCause, revive: Revive) -> OutgoingFailed {
        let give_up_at = Instant::now() + UNWIND_MAX;
        let revive_at = Instant::now() + REVIVE_AFTER;
        let mut guest = SourceGuest::Unknown;
        while Instant::now() < give_up_at {
            match self.state().await {
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
                    guest = SourceGuest::StandsStill(status);
                    if over && !self.was_running {
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
    async fn state(&self) -> Result<(bool, RunStatus), QmpError> {
        let info = MigrateInfo::query(&self.machine).await?;
        let over = match info.status {
            Status::None | Status::Failed | Status::Cancelled => true,
            // QEMU stays so until its attempt to connect times out, minutes later; what never
            // began to copy never stops the guest.
            Status::Cancelling => !self.connected,
            _ => false,
        };
        Ok((over, self.machine.status().await?))
    }
}

/// How long QEMU has to resume the guest itself before the driver does, and how often it is looked at.
const REVIVE_AFTER: Duration = Duration::from_secs(1);
const SETTLE_POLL: Duration = Duration::from_millis(20);
