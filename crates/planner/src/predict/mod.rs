//! What a migration will take, before it begins: total time, downtime and bytes, each with an interval.
//!
//! ```text
//!  Features ──inputs corrected──▶ physics: round by round ──outcomes corrected──▶ Prediction, with its basis
//!                  ▲                                               ▲                    │ kept in the record
//!                  └────────────── lessons: factors by class, pair, vm ◀── learn ◀── MigrationRecord with its report
//! ```
//! `physics` knows memory, writable working set and links, and nothing of the past; `learn` knows the past, and nothing
//! of migrations. What was known before is kept with the prediction, so that a predictor taught with the stored records
//! equals the one that saw them happen. `choose` picks the strategy by prediction.

mod choose;
mod learn;
mod physics;

pub use choose::{Allowed, Choice};
pub use physics::goodput;

use drover_model::migration::{
    Basis, Interval, Method, MigrationPhase, MigrationRecord, MigrationReport, Prediction, Strategy, Writing,
};
use drover_model::world::{VmView, World};
use drover_model::{Bytes, HostId, Millis, VmId};
use learn::{Class, FIGURES, Figure, Lessons, Observation};
use physics::Course;
pub(crate) use physics::SET_UP_S;

/// What a link carries until a move has shown it.
pub const LINK_ASSUMED: Bytes = goodput(1_000_000_000);
/// Over which a guest's dirty rate is measured, as far as the rate alone tells.
const DIRTY_RATE_SPAN: Millis = Millis::secs(1);
/// Samples of resident memory looked at; the largest counts.
const RESIDENT_SAMPLES: usize = 5;
/// Less than this share of what was asked for means that the link could not do more.
const LINK_FULL_BELOW: f64 = 0.9;
/// A move of less than this ends before a link's speed shows.
const TELLING_MIN: Bytes = Bytes::mib(32);
/// A pre-copy gave no trouble if it sent no more than this share of the memory in use.
const CALM_SENT_MAX: f64 = 1.3;
/// Writing less than this per second is idling, and one idle guest is like another.
const IDLE: Bytes = Bytes(64 << 10);

/// All that is known of a move before it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    pub vm: VmId,
    pub from: HostId,
    pub to: HostId,
    /// Memory worth sending, as far as known: resident, or all that it has.
    pub in_use: Bytes,
    /// `None`: nobody measured it.
    pub writing: Option<Writing>,
    /// Bytes per second that it gets of the links, and may not pass. `None`: it is alone there, and nothing limits it.
    pub bandwidth: Option<Bytes>,
}

impl Features {
    /// From the load windows and the policy's limits; `None` if the world has no such vm, or it has no host.
    pub fn of(world: &World, vm: &VmId, to: &HostId) -> Option<Self> {
        let view = world.vms.get(vm)?;
        Some(Self::of_view(world, vm, view, view.host.as_ref()?, to))
    }

    pub(crate) fn of_view(world: &World, vm: &VmId, view: &VmView, from: &HostId, to: &HostId) -> Self {
        let policy = &world.policy.migration;
        let newest = || view.load.iter().rev().map(|(_, sample)| sample);
        let resident = newest().take(RESIDENT_SAMPLES).map(|sample| sample.memory_used).max();
        let dirty_rate = newest().find_map(|sample| sample.dirty_rate);
        Self {
            vm: vm.clone(),
            from: from.clone(),
            to: to.clone(),
            in_use: resident.filter(|resident| *resident > Bytes::ZERO).unwrap_or(view.memory),
            writing: dirty_rate.map(|rate| physics::writing_of_rate(rate, DIRTY_RATE_SPAN)),
            bandwidth: [policy.bandwidth_max, policy.host_bandwidth_max]
                .into_iter()
                .filter(|max| *max > Bytes::ZERO)
                .min(),
        }
    }

    fn pair(&self) -> (HostId, HostId) {
        (self.from.clone(), self.to.clone())
    }
}

/// Learns from reports what the physics misses. A value: equal records in equal order make it equal.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictor {
    lessons: Lessons,
}

impl Default for Predictor {
    fn default() -> Self {
        Self::new()
    }
}

impl Predictor {
    pub const fn new() -> Self {
        Self { lessons: Lessons::new() }
    }

    /// What the move would take. `downtime_max` bounds how long the guest may stand still.
    pub fn predict(&self, features: &Features, strategy: &Strategy, downtime_max: Millis) -> Prediction {
        let basis = self.basis(features, downtime_max);
        let pair = features.pair();
        let class = class(&basis, strategy);
        let course = self.course(features, strategy, downtime_max);
        let returning = self.lessons.knows(&features.vm);
        let interval = |figure, expected: f64| {
            let expected = expected * self.lessons.factor(figure, &features.vm, &pair, class);
            let (low, high) = self.lessons.bounds(figure, returning);
            [expected * low, expected, expected * high]
        };
        let millis = |seconds: f64| Millis((seconds * 1000.0).round() as u64);
        let bytes = |count: f64| Bytes(count.round() as u64);
        Prediction {
            total: of_three(interval(Figure::Total, course.total_s), millis),
            downtime: of_three(interval(Figure::Downtime, course.downtime_s), millis),
            transferred: of_three(interval(Figure::Transferred, course.sent), bytes),
            basis,
        }
    }

    /// Takes in a migration that is over. One that did not arrive, or has no report or no prediction, teaches nothing.
    pub fn learn(&mut self, record: &MigrationRecord) {
        self.learn_all(std::iter::once(record));
    }

    /// Takes in many, oldest first, as after a restart.
    pub fn learn_all<'r>(&mut self, records: impl IntoIterator<Item = &'r MigrationRecord>) {
        let mut learned = false;
        for observation in records.into_iter().filter_map(observation) {
            self.lessons.add(observation);
            learned = true;
        }
        if learned {
            self.lessons.fit();
        }
    }

    /// What the link from one host to another carries, in bytes of memory per second, as moves have shown.
    pub fn link_speed(&self, from: &HostId, to: &HostId) -> Bytes {
        self.lessons.link(&(from.clone(), to.clone())).unwrap_or(LINK_ASSUMED)
    }

    /// Source and destination of moves that were learned from.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = &(HostId, HostId)> {
        self.lessons.pairs()
    }

    fn bandwidth(&self, features: &Features) -> Bytes {
        let link = self.link_speed(&features.from, &features.to);
        features.bandwidth.map_or(link, |share| share.min(link)).max(Bytes(1))
    }

    fn basis(&self, features: &Features, downtime_max: Millis) -> Basis {
        let bandwidth = self.bandwidth(features);
        Basis { in_use: features.in_use, writing: features.writing, bandwidth, downtime_max }
    }

    /// By physics alone, from inputs corrected by what earlier ones missed.
    fn course(&self, features: &Features, strategy: &Strategy, downtime_max: Millis) -> Course {
        physics::course(&self.corrected(features, downtime_max, strategy), strategy)
    }

    fn corrected(&self, features: &Features, downtime_max: Millis, strategy: &Strategy) -> Basis {
        let known = self.basis(features, downtime_max);
        let (pair, class) = (features.pair(), class(&known, strategy));
        let factor = |figure| self.lessons.factor(figure, &features.vm, &pair, class);
        rescaled(&known, factor(Figure::InUse), factor(Figure::Writing))
    }
}

fn of_three<T>([low, expected, high]: [f64; 3], unit: impl Fn(f64) -> T) -> Interval<T> {
    Interval { low: unit(low), expected: unit(expected), high: unit(high) }
}

fn class(basis: &Basis, strategy: &Strategy) -> Class {
    let octave = physics::course(basis, strategy).total_s.max(0.01).log2().floor().clamp(-8.0, 16.0) as i8;
    let writes = physics::dirtied(basis, 1.0) / (basis.bandwidth.0 as f64).max(1.0);
    let load = [0.05, 0.3, 1.0].iter().filter(|bound| writes >= **bound).count() as u8;
    Class { method: strategy.method.word(), octave, load }
}

fn rescaled(basis: &Basis, in_use: f64, writing: f64) -> Basis {
    let written = physics::writing(basis);
    let writing = Writing { hot: written.hot.scale(writing), rate: written.rate.scale(writing), ..written };
    Basis { in_use: basis.in_use.scale(in_use), writing: Some(writing), ..*basis }
}

/// What a finished move says of the physics and of what was known before it.
fn observation(record: &MigrationRecord) -> Option<Observation> {
    let (prediction, report) = (record.prediction?, record.report?);
    let basis = prediction.basis;
    if record.phase != MigrationPhase::Done || report.total == Millis::ZERO || basis.bandwidth == Bytes::ZERO {
        return None;
    }
    let class = class(&basis, &record.strategy);
    let log = |measured: f64, expected: f64| (measured > 0.0 && expected > 0.0).then(|| (measured / expected).ln());
    // In a post-copy what is sent before the switch-over is cut short, and says nothing of the guest's memory and writing.
    let copied_whole = report.post_copied == Bytes::ZERO;
    let in_use = log(report.in_use.0 as f64, basis.in_use.0 as f64).filter(|_| copied_whole);
    let writing = wrote(&basis, &report);
    let mut measured = rescaled(&basis, in_use.unwrap_or(0.0).exp(), writing.unwrap_or(0.0).exp());
    let carried = carried(&basis, &record.strategy, &report);
    if let Some(carried) = carried {
        measured.bandwidth = carried;
    }
    let course = physics::course(&measured, &record.strategy);
    let outcome = |total_ms: f64, downtime_ms: f64, sent: f64| {
        let total = log(report.total.0 as f64, total_ms);
        let downtime = log(report.downtime.0 as f64, downtime_ms);
        let transferred = log(report.transferred.0 as f64, sent);
        (total, downtime, transferred)
    };
    let mut missed = [None; FIGURES.len()];
    (missed[Figure::InUse as usize], missed[Figure::Writing as usize]) = (in_use, writing);
    (missed[Figure::Total as usize], missed[Figure::Downtime as usize], missed[Figure::Transferred as usize]) =
        outcome(course.total_s * 1000.0, course.downtime_s * 1000.0, course.sent);
    let mut forecast = [None; FIGURES.len()];
    let expected = (prediction.total.expected, prediction.downtime.expected, prediction.transferred.expected);
    (forecast[Figure::Total as usize], forecast[Figure::Downtime as usize], forecast[Figure::Transferred as usize]) =
        outcome(expected.0.0 as f64, expected.1.0 as f64, expected.2.0 as f64);
    let pair = (record.from.clone(), record.to.clone());
    // A guest that writes much in the measured second, and not at any moment of it, is no trouble to pre-copy.
    let by_pre_copy = record.strategy.method == Method::PreCopy;
    let sent_anew = report.transferred.0 as f64 > CALM_SENT_MAX * report.in_use.0 as f64;
    // One that had to be moved by post-copy, perhaps after pre-copy came to nothing, is as much.
    let troubled = record.strategy.method == Method::PostCopy || (by_pre_copy && sent_anew);
    let calm = by_pre_copy && !troubled && report.downtime <= basis.downtime_max;
    let calm_at = basis.writing.filter(|_| calm).map(|writing| writing.hot);
    let vm = record.vm.clone();
    Some(Observation { vm, pair, class, missed, forecast, returning: false, carried, calm_at, troubled })
}

/// What the guest wrote during the first round against what it was expected to.
fn wrote(basis: &Basis, report: &MigrationReport) -> Option<f64> {
    if report.throughput == Bytes::ZERO || report.in_use == Bytes::ZERO || report.post_copied > Bytes::ZERO {
        return None;
    }
    let round_s = report.in_use.0 as f64 / report.throughput.0 as f64;
    let idle = IDLE.0 as f64 * round_s;
    let measured = (report.dirty_rate.0 as f64 * round_s).max(idle);
    let expected = physics::dirtied(basis, round_s).max(idle);
    Some((measured / expected).ln())
}

/// What the link carried, if it was the link that set the pace.
fn carried(basis: &Basis, strategy: &Strategy, report: &MigrationReport) -> Option<Bytes> {
    if report.throughput == Bytes::ZERO || report.transferred < TELLING_MIN {
        return None;
    }
    // A post-copy goes at the pace of the guest's requests, and may have stalled for a while.
    if report.post_copied > Bytes::ZERO {
        return None;
    }
    let unlimited = strategy.pace.max == Bytes::ZERO;
    let unpaced = strategy.pace.min == Bytes::ZERO;
    let asked = if unpaced { basis.bandwidth } else { strategy.pace.min.min(basis.bandwidth) };
    let slower = (report.throughput.0 as f64) < LINK_FULL_BELOW * asked.0 as f64;
    let faster = report.throughput > basis.bandwidth;
    (slower || (unlimited && (unpaced || faster))).then_some(report.throughput)
}
