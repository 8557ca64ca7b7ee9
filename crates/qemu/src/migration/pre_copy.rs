//! The copying before the switch-over: paces it, opens the gate, and decides when QEMU may stop the guest.
//!
//! QEMU switches over by itself when nothing is left to send, however little downtime it is allowed. So the gate has to be
//! opened before a round *ends* that may leave nothing. A guest whose memory goes over in a moment begins held back, and
//! its gate opens while QEMU connects. For others it opens when the end of a round comes near that may be
//! the last; a gate that was opened for a round that left too much is closed again.
//!
//! With post-copy the round is never let come to its end: see `docs/decisions/0007`.

use super::failure::{FailureCause, OutgoingFailed, StartError};
use super::gate::Gate;
use super::rounds::Round;
use super::source::Source;
use super::strategy::{Adjust, BANDWIDTH_HELD, BANDWIDTH_UNLIMITED, Method, Strategy, post_copy_limit, set_parameters};
use super::switch_over::AtSwitchOver;
use super::timeline::Timeline;
use super::wire::{MigrateInfo, Status};
use super::{CONNECT_MAX, GATE_MAX, Limits, POLL, PROGRESS_EVERY, Progress};
use crate::command_line::migration_uri;
use crate::machine::{Machine, RunStatus};
use crate::qmp::QmpError;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// QEMU refuses more than 2000 s.
const DOWNTIME_LIMIT_MS_MAX: u64 = 2_000_000;
/// Downtime allowed while the driver does not want to switch over. At 0 QEMU 7.2 would end a round without looking for
/// what was dirtied meanwhile, and switch over.
pub(super) const DOWNTIME_LIMIT_CLOSED_MS: u64 = 1;
/// Told before post-copy begins, and at no other time: with it, QEMU stops a guest that has anything left only to begin post-copy.
const DOWNTIME_LIMIT_POST_COPY_MS: u64 = 0;
/// QEMU measures its bandwidth each tenth of a second. Held back for two such measurements, it
/// takes not even one page for what fits into the downtime allowed.
const HELD_BEFORE_POST_COPY: Duration = Duration::from_millis(250);
/// The end of a round is near: the gate is opened. While it is open the guest gets what is sent to it twice, the second time
/// in one burst as it resumes: a lead of a second was seen to overflow its sockets.
const NEAR: Duration = Duration::from_millis(100);
/// The same where a limit is set: QEMU then sends in one go each tenth of a second what it may.
const NEAR_PACED: Duration = Duration::from_millis(250);
/// The end is so near that the round is held back until the gate is open.
const HOLD: Duration = Duration::from_millis(40);
/// An open gate is closed if the next round takes longer.
const GATE_IDLE_MAX: Duration = Duration::from_millis(300);
/// Memory that takes less than this is sent in a moment: its gate opens at once.
const MOMENT: Duration = Duration::from_millis(150);
/// The same where it is not known how much of the memory is empty, and before a post-copy, which must not let its
/// round come to its end.
const MOMENT_UNKNOWN: Duration = Duration::from_secs(1);
/// What is assumed of a link with no limit set, in bytes per second: 1 Gbit/s.
const LINK_ASSUMED: u64 = 125_000_000;
const POLL_POST_COPY: Duration = Duration::from_millis(10);
/// A stretch of empty memory passes in a moment, and what was thought to take longer is at its end.
const POLL_CLOSED: Duration = Duration::from_millis(20);
/// Shortest wait between two looks at QEMU.
const POLL_MIN: Duration = Duration::from_millis(5);

/// Memory is being copied; the guest runs.
pub struct PreCopy {
    source: Source,
    round: Current,
    gate_open: bool,
    /// The guest's memory is sent in a moment. Not known before [`Self::run`] and after an adoption.
    momentary: bool,
    adopted: bool,
    /// The guest was stopped by this driver, or QEMU told to begin post-copy.
    stopping: bool,
    /// The round that runs is held back since then, to wait for the gate or for post-copy.
    held: Option<Instant>,
    /// What QEMU was told: bandwidth, and downtime in ms. `None` after an adoption.
    told: Option<(u64, u64)>,
    paused_for: Duration,
    paused_since: Option<Instant>,
}

/// The round that runs.
#[derive(Clone, Copy)]
struct Current {
    number: u64,
    began: Instant,
    sent_before: u64,
    /// Bytes left at its beginning; 0 while not known.
    size: u64,
    undisturbed: bool,
    /// The last look.
    remaining: u64,
    at: Instant,
    /// Memory passed per second between the last two looks; pages that are all zero count in full.
    speed: f64,
}

impl Current {
    /// `speed` is what is assumed until it is seen.
    fn new(number: u64, progress: &Progress, undisturbed: bool, speed: u64) -> Self {
        let now = Instant::now();
        Self {
            number,
            began: now,
            sent_before: progress.transferred,
            size: progress.remaining,
            undisturbed,
            remaining: progress.remaining,
            at: now,
            speed: speed as f64,
        }
    }

    fn look(&mut self, progress: &Progress) {
        let now = Instant::now();
        let passed = self.remaining.saturating_sub(progress.remaining) as f64;
        let span = now.duration_since(self.at).as_secs_f64();
        if span > 0.0 && passed > 0.0 {
            self.speed = passed / span;
        }
        (self.remaining, self.at) = (progress.remaining, now);
    }

    /// Until its end, going by the greater of its average speed and that of the last moment.
    fn left(&self) -> Option<Duration> {
        let span = self.began.elapsed().as_secs_f64();
        let average = if span > 0.0 { self.size.saturating_sub(self.remaining) as f64 / span } else { 0.0 };
        let speed = average.max(self.speed);
        (speed > 0.0).then(|| Duration::try_from_secs_f64(self.remaining as f64 / speed).unwrap_or(Duration::MAX))
    }

    fn ends_within(&self, span: Duration) -> bool {
        self.left().is_some_and(|left| left <= span)
    }
}

impl PreCopy {
    /// Tells QEMU to send the guest to a destination that listens. Next to nothing flows before [`Self::run`].
    pub async fn start(
        machine: &Machine,
        destination: SocketAddr,
        strategy: Strategy,
        limits: Limits,
    ) -> Result<Self, StartError> {
        let was_running = machine.status().await? == RunStatus::Running;
        let timeline = Timeline::of(machine);
        strategy.set_up_source(machine).await?;
        let uri = migration_uri(destination.ip(), destination.port());
        if let Err(error) = machine.qmp().execute("migrate", json!({ "uri": uri })).await {
            // Perhaps only the answer was lost. If QEMU refused, another migration may be under way: not ours to cancel.
            if matches!(error, QmpError::Timeout { .. }) {
                let _ = machine.qmp().execute("migrate_cancel", json!({})).await;
            }
            return Err(error.into());
        }
        let mut source = Source::new(machine, strategy, limits, timeline);
        source.was_running = was_running;
        let memory = machine.memory_actual().await.unwrap_or(u64::MAX);
        let mut copying = Self::new(source);
        copying.adopted = false;
        let (memory, moment) = match limits.resident {
            Some(resident) if copying.source.method() != Method::PostCopy => (resident.min(memory), MOMENT),
            Some(_) | None => (memory, MOMENT_UNKNOWN),
        };
        copying.momentary = memory as f64 <= copying.first_bandwidth() as f64 * moment.as_secs_f64();
        copying.told = Some((BANDWIDTH_HELD, DOWNTIME_LIMIT_CLOSED_MS));
        Ok(copying)
    }

    /// One that was begun by another driver.
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            // The first look begins the first round.
            round: Current::new(0, &Progress::default(), false, 0),
            gate_open: false,
            momentary: false,
            adopted: true,
            stopping: false,
            held: None,
            told: None,
            paused_for: Duration::ZERO,
            paused_since: None,
        }
    }

    fn first_bandwidth(&self) -> u64 {
        let pace = *self.source.pace.borrow();
        if pace.min == 0 && pace.max == 0 { LINK_ASSUMED } else { self.source.rounds.bandwidth(pace) }
    }

    pub fn adjust(&self) -> Adjust {
        Adjust(self.source.pace.clone())
    }

    /// Copies until the guest stands at the switch-over. `cancel` completes, with who cancels, when the migration
    /// shall not go on; give [`std::future::pending`] for never. Progress is told about every half second.
    pub async fn run(
        mut self,
        mut on_progress: impl FnMut(Progress),
        mut gate: impl Gate,
        cancel: impl Future<Output = String>,
    ) -> Result<AtSwitchOver, OutgoingFailed> {
        let mut cancel = pin!(cancel);
        let mut tell_at = Instant::now();
        let mut progress = Progress::default();
        loop {
            match self.source.look().await {
                Ok(info) => {
                    self.source.connected |= !matches!(info.status, Status::None | Status::Setup);
                    progress = info.progress();
                    match info.status {
                        Status::None | Status::Setup => {}
                        Status::Active => self.note_round(&info),
                        Status::PreSwitchover => {
                            on_progress(progress);
                            return self.paused(gate, cancel, &progress).await;
                        }
                        _ => return Err(self.source.ended_early(info).await),
                    }
                    if Instant::now() >= tell_at {
                        on_progress(progress);
                        tell_at = Instant::now() + PROGRESS_EVERY;
                    }
                    if let Err(cause) = self.steer(&mut gate, cancel.as_mut(), &progress).await {
                        return Err(self.source.unwind(cause).await);
                    }
                }
                Err(error @ QmpError::Closed { .. }) => return Err(self.source.lost(error)),
                // QEMU may be busy; `give_up_at` bounds it.
                Err(error) => tracing::warn!(%error, "cannot see how the migration is doing"),
            }
            let wait = self.poll();
            let woken = tokio::select! {
                biased;
                by = &mut cancel => Some(FailureCause::Cancelled { by }),
                () = sleep_until(self.give_up_at()) => Some(self.given_up(&progress)),
                // Cannot end: the other half is in the source.
                _ = self.source.pace_changes.changed() => None,
                _ = timeout(wait, self.source.timeline.next()) => None,
            };
            if let Some(cause) = woken {
                return Err(self.source.unwind(cause).await);
            }
        }
    }

    /// QEMU stopped the guest. It may have done so by itself, because nothing was left.
    async fn paused(
        mut self,
        mut gate: impl Gate,
        cancel: Pin<&mut impl Future<Output = String>>,
        progress: &Progress,
    ) -> Result<AtSwitchOver, OutgoingFailed> {
        let begun = self.stopping || self.adopted;
        if self.source.method() == Method::PostCopy
            && !(begun && is_begin_of_post_copy(&self.source.machine, progress).await)
        {
            return Err(self.source.unwind(FailureCause::NothingLeft).await);
        }
        if !self.gate_open
            && let Err(cause) = self.open(&mut gate, cancel).await
        {
            return Err(self.source.unwind(cause).await);
        }
        Ok(AtSwitchOver::new(self.source))
    }

    /// One step on, by what the last look showed.
    async fn steer(
        &mut self,
        gate: &mut impl Gate,
        cancel: Pin<&mut impl Future<Output = String>>,
        progress: &Progress,
    ) -> Result<(), FailureCause> {
        self.note_pace();
        if self.wants_gate() && !self.gate_open {
            if self.source.method() == Method::PostCopy && self.source.connected {
                self.hold().await;
            }
            self.open(gate, cancel).await?;
        }
        match self.source.method() {
            Method::PreCopy => {
                self.check_convergence(progress)?;
                if self.gate_open && self.stop_is_far() && self.told_closed().await {
                    gate.close().await;
                    self.gate_open = false;
                }
            }
            Method::PostCopy => {
                if self.gate_open && self.source.connected && !self.stopping && !self.is_paused() {
                    self.start_post_copy().await?;
                }
            }
            Method::StopAndCopy => {
                if self.gate_open && self.source.connected && !self.stopping && !self.is_paused() {
                    self.source.machine.stop().await?;
                    self.stopping = true;
                }
            }
        }
        self.tell(self.bandwidth(), self.downtime_limit_ms()).await;
        Ok(())
    }

    /// Whether the guest may stand still soon.
    fn wants_gate(&self) -> bool {
        if self.is_paused() {
            return false;
        }
        let round = &self.round;
        match self.source.method() {
            Method::StopAndCopy => true,
            Method::PostCopy => {
                self.held.is_some()
                    || self.momentary
                    || (self.source.connected && (round.number > 1 || round.ends_within(NEAR_PACED)))
            }
            Method::PreCopy if self.momentary && round.number <= 1 => true,
            Method::PreCopy => {
                let ahead = round.left().unwrap_or(Duration::MAX);
                let whole = round.began.elapsed().saturating_add(ahead);
                self.source.connected
                    && ahead <= self.near()
                    && self.source.rounds.next_may_fit(whole, self.source.limits.downtime_max)
            }
        }
    }

    fn near(&self) -> Duration {
        let pace = *self.source.pace.borrow();
        if pace.limit() == BANDWIDTH_UNLIMITED { NEAR } else { NEAR_PACED }
    }

    /// Whether the guest surely does not stand still soon, so that an open gate can be closed. Not knowing is no reason: of a
    /// quiet guest nothing is left at any moment.
    fn stop_is_far(&self) -> bool {
        if self.is_paused() {
            return true;
        }
        let Some(ahead) = self.round.left().filter(|_| !(self.momentary && self.round.number <= 1)) else {
            return false;
        };
        let whole = self.round.began.elapsed().saturating_add(ahead);
        ahead > GATE_IDLE_MAX || !self.source.rounds.next_may_fit(whole, self.source.limits.downtime_max)
    }

    fn bandwidth(&self) -> u64 {
        let pace = *self.source.pace.borrow();
        let waits = match self.source.method() {
            Method::PreCopy => self.momentary && !self.gate_open && self.round.number <= 1,
            // What is left after the switch-over goes at a limit of its own.
            Method::PostCopy => self.momentary,
            Method::StopAndCopy => !self.stopping,
        };
        if pace.paused || self.held.is_some() || waits {
            BANDWIDTH_HELD
        } else if self.gate_open || self.source.method() == Method::StopAndCopy {
            pace.limit()
        } else {
            self.source.rounds.bandwidth(pace)
        }
    }

    fn downtime_limit_ms(&self) -> u64 {
        if self.source.method() == Method::PostCopy && self.stopping {
            return DOWNTIME_LIMIT_POST_COPY_MS;
        }
        if self.source.method() != Method::PreCopy || !self.gate_open || self.is_paused() {
            return DOWNTIME_LIMIT_CLOSED_MS;
        }
        let allowed = self.source.rounds.downtime_allowed(self.source.limits.downtime_max);
        u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX).clamp(1, DOWNTIME_LIMIT_MS_MAX)
    }

    /// Tells QEMU, if it was told otherwise. Whether it knows now.
    async fn tell(&mut self, bandwidth: u64, downtime_ms: u64) -> bool {
        if self.told == Some((bandwidth, downtime_ms)) {
            return true;
        }
        let parameters = vec![
            ("max-bandwidth", json!(bandwidth)),
            ("downtime-limit", json!(downtime_ms)),
            ("max-postcopy-bandwidth", json!(post_copy_limit(*self.source.pace.borrow()))),
        ];
        match set_parameters(&self.source.machine, parameters).await {
            Ok(()) => self.told = Some((bandwidth, downtime_ms)),
            // Tried again at the next look.
            Err(error) => tracing::warn!(%error, "cannot steer the migration"),
        }
        self.told == Some((bandwidth, downtime_ms))
    }

    /// Whether QEMU can't switch over any more, and has not.
    async fn told_closed(&mut self) -> bool {
        let bandwidth = self.told.map_or(BANDWIDTH_HELD, |(bandwidth, _)| bandwidth);
        self.tell(bandwidth, DOWNTIME_LIMIT_CLOSED_MS).await
            && self.source.look().await.is_ok_and(|info| info.status == Status::Active)
    }

    /// Awaits the gate. Rounds go on, but none to its end.
    async fn open(
        &mut self,
        gate: &mut impl Gate,
        mut cancel: Pin<&mut impl Future<Output = String>>,
    ) -> Result<(), FailureCause> {
        let mut opening = pin!(timeout(GATE_MAX, gate.open()));
        let opened = loop {
            tokio::select! {
                biased;
                opened = &mut opening => break opened,
                by = &mut cancel => return Err(FailureCause::Cancelled { by }),
                () = sleep(POLL_MIN) => {}
            }
            if let Ok(info) = self.source.look().await
                && info.status == Status::Active
            {
                self.note_round(&info);
                if self.round.ends_within(HOLD) {
                    self.hold().await;
                }
            }
        };
        if self.source.method() != Method::PostCopy {
            self.held = None;
        }
        match opened {
            Ok(Ok(())) => {
                self.gate_open = true;
                Ok(())
            }
            Ok(Err(why)) => Err(FailureCause::Gate { why }),
            Err(_) => Err(FailureCause::GateStuck),
        }
    }

    async fn hold(&mut self) {
        if self.held.is_none() && self.tell(BANDWIDTH_HELD, DOWNTIME_LIMIT_CLOSED_MS).await {
            self.held = Some(Instant::now());
            self.round.undisturbed = false;
        }
    }

    /// Tells QEMU to begin post-copy, once it can't take what is left for little enough to complete by pre-copy.
    async fn start_post_copy(&mut self) -> Result<(), FailureCause> {
        let held_for = self.held.map_or(Duration::ZERO, |since| since.elapsed());
        // What begins held back never was otherwise.
        if !self.momentary && held_for < HELD_BEFORE_POST_COPY {
            return Ok(());
        }
        let closed = self.tell(BANDWIDTH_HELD, DOWNTIME_LIMIT_POST_COPY_MS).await;
        if closed && self.source.look().await?.status == Status::Active {
            self.source.machine.qmp().execute("migrate-start-postcopy", json!({})).await?;
            self.stopping = true;
        }
        Ok(())
    }

    fn note_round(&mut self, info: &MigrateInfo) {
        let mut progress = info.progress();
        if progress.rounds <= 1
            && let Some(resident) = self.source.limits.resident
        {
            progress.remaining = progress.remaining.min(resident.saturating_sub(info.normal()));
        }
        if progress.rounds == self.round.number {
            self.round.look(&progress);
            return;
        }
        let ended = self.round;
        let followed = ended.number > 0 && progress.rounds == ended.number + 1;
        let round = Round {
            duration: ended.began.elapsed(),
            sent: progress.transferred.saturating_sub(ended.sent_before),
            left: progress.remaining,
        };
        // The first is followed from its beginning only if the migration was not adopted.
        let undisturbed = followed || !self.adopted;
        let speed = if followed { round.throughput() } else { 0 };
        self.round = Current::new(progress.rounds, &progress, undisturbed, speed);
        if self.source.in_use == 0 && progress.rounds > 1 {
            self.source.in_use = info.normal();
        }
        if followed {
            tracing::debug!(number = ended.number, ?round, "a round has ended");
            self.source.rounds.ended(round, ended.undisturbed);
        }
    }

    fn is_paused(&self) -> bool {
        self.source.pace.borrow().paused
    }

    fn note_pace(&mut self) {
        match (self.is_paused(), self.paused_since) {
            (true, None) => self.paused_since = Some(Instant::now()),
            (false, Some(since)) => {
                self.paused_for += since.elapsed();
                self.paused_since = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
        if self.is_paused() || self.source.pace_changes.has_changed().unwrap_or(false) {
            self.round.undisturbed = false;
        }
        self.source.pace_changes.mark_unchanged();
    }

    fn check_convergence(&mut self, progress: &Progress) -> Result<(), FailureCause> {
        let source = &mut self.source;
        let pace = *source.pace.borrow();
        let slower_than_allowed = source.rounds.bandwidth(pace) < pace.limit();
        if slower_than_allowed || progress.throttled < source.strategy.throttle_max() {
            source.rounds.retry_precopy();
        }
        if !source.rounds.is_hopeless(source.limits.downtime_max) {
            return Ok(());
        }
        Err(FailureCause::WillNotConverge {
            rounds: progress.rounds,
            remaining: source.rounds.writable_working_set(),
            dirty_rate: source.rounds.dirty_rate(),
            throughput: source.rounds.throughput(),
        })
    }

    fn poll(&self) -> Duration {
        if self.source.method() == Method::PostCopy && self.source.connected {
            return POLL_POST_COPY;
        }
        let longest = if self.source.connected && !self.gate_open { POLL_CLOSED } else { POLL };
        self.round.left().map_or(longest, |left| (left / 4).clamp(POLL_MIN, longest))
    }

    fn give_up_at(&self) -> Instant {
        let total = self.source.limits.total_max;
        if !self.source.connected {
            return self.source.started + total.min(CONNECT_MAX);
        }
        let paused = self.paused_for + self.paused_since.map_or(Duration::ZERO, |since| since.elapsed() + POLL);
        self.source.started + total + paused
    }

    fn given_up(&self, progress: &Progress) -> FailureCause {
        if !self.source.connected {
            return FailureCause::NoConnection;
        }
        FailureCause::NotConverging {
            dirty_rate: progress.dirty_rate.max(self.source.rounds.dirty_rate()),
            throughput: progress.throughput,
            after_s: self.source.started.elapsed().as_secs(),
        }
    }
}

/// Whether QEMU stopped the guest to begin post-copy, rather than because pre-copy was about to complete: the first is safe to
/// commit, the second is not. Also for a driver that was away: [`DOWNTIME_LIMIT_POST_COPY_MS`].
pub(super) async fn is_begin_of_post_copy(machine: &Machine, progress: &Progress) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Parameters {
        downtime_limit: u64,
    }
    match machine.qmp().query::<Parameters>("query-migrate-parameters", Value::Null).await {
        Ok(parameters) => progress.remaining > 0 && parameters.downtime_limit == DOWNTIME_LIMIT_POST_COPY_MS,
        Err(error) => {
            tracing::warn!(%error, "cannot see why QEMU stopped the guest; taking it for the wrong reason");
            false
        }
    }
}
