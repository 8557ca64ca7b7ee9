//! What reports teach: by which factor the figures of past moves missed, split into what they have in common and what
//! is a class's, a host pair's or a vm's own.
//!
//! Each figure is compared as a logarithm of measured over expected, so that twice and half weigh alike. Effects are
//! medians of the newest few of a group (an outlier moves them little), shrunk towards the level above by how much the
//! groups differ from each other against how much one group's moves do (empirical Bayes; Morris, JASA 1983). Intervals
//! are quantiles of what earlier predictions really missed by, with pseudo-observations of the prior among them, so
//! that they are wide until there is evidence (split conformal prediction; Vovk et al. 2005).

use drover_model::{Bytes, HostId, VmId};
use std::collections::{BTreeMap, VecDeque};

/// Observations kept; the oldest go.
const OBSERVATIONS_MAX: usize = 512;
/// Of one group, only so many count, the newest: hosts and guests change.
const NEWEST: usize = 24;
/// Of a link, only so many.
const NEWEST_OF_LINK: usize = 5;
/// Logarithm of the ratio of two speeds that are taken for one.
const LINK_AGREES_WITHIN: f64 = 0.25;
/// Of a vm, only so many show that it is calm.
const NEWEST_OF_VM: usize = 8;
/// A group of fewer says nothing of its own spread.
const SPREAD_FROM: usize = 3;
/// Moves are never more alike than this (natural logarithm).
const SPREAD_MIN: f64 = 0.01;
/// Of the spread assumed, what moves of one vm over one pair have among themselves.
const WITHIN_SHARE: f64 = 0.5;
/// The variance of a median of n over the variance of one: this over n.
const MEDIAN_VARIANCE: f64 = std::f64::consts::FRAC_PI_2;
/// Mean absolute deviation to standard deviation, of a normal distribution. (The median deviation would not see the
/// tail that migrations have, and a group of three is as likely to lie in it.)
const DEVIATION_TO_SIGMA: f64 = 1.2533;
/// Standard normal quantiles of 0.05, 0.15, ... 0.95.
const PSEUDO: [f64; 10] = [-1.645, -1.036, -0.674, -0.385, -0.126, 0.126, 0.385, 0.674, 1.036, 1.645];
/// Share of outcomes left out below and above the bounds of an interval.
const TAIL: f64 = 0.1;
/// Where that share begins, in standard deviations of a normal distribution.
const TAIL_SIGMAS: f64 = 1.282;

/// A figure that is learned about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    /// Inputs: known before against measured.
    InUse,
    Writing,
    /// Outcomes: worked out from measured inputs against measured.
    Total,
    Downtime,
    Transferred,
}

pub(super) const FIGURES: [Figure; 5] =
    [Figure::InUse, Figure::Writing, Figure::Total, Figure::Downtime, Figure::Transferred];

impl Figure {
    /// No factor beyond this is believed.
    fn factor_max(self) -> f64 {
        match self {
            Self::Writing => 64.0,
            Self::InUse | Self::Total | Self::Downtime | Self::Transferred => 8.0,
        }
    }

    /// Observations that "nothing is missed" weighs as much as. Physics deserves some trust; a sampled dirty rate none,
    /// because it reads low by what nobody knows.
    fn prior_weight(self) -> f64 {
        match self {
            Self::Writing => 0.1,
            Self::InUse | Self::Total | Self::Downtime | Self::Transferred => 1.0,
        }
    }

    /// Standard deviation of the logarithm while nothing was measured.
    fn spread_assumed(self) -> f64 {
        match self {
            Self::Downtime | Self::Writing => 0.7,
            Self::Total => 0.35,
            Self::InUse | Self::Transferred => 0.25,
        }
    }
}

/// Moves that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    pub method: &'static str,
    /// Its expected time, in octaves of seconds.
    pub octave: i8,
    /// How much of the link what it dirties would take: little, some, most, more than all.
    pub load: u8,
}

/// One finished move.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Observation {
    pub vm: VmId,
    pub pair: (HostId, HostId),
    pub class: Class,
    /// By figure: the logarithm of measured over expected.
    pub missed: [Option<f64>; FIGURES.len()],
    /// By figure: the same against what was predicted then, all corrections included.
    pub forecast: [Option<f64>; FIGURES.len()],
    /// Whether the vm had been seen to move before.
    pub returning: bool,
    /// What the link showed itself to carry, per second, if it was the link that set the pace.
    pub carried: Option<Bytes>,
    /// What was measured as written again and again, of a pre-copy that ended early and within its downtime all the same.
    pub calm_at: Option<Bytes>,
    /// A pre-copy that had to send much of the memory more than once, or no pre-copy.
    pub troubled: bool,
}

/// What there is to correct with, and how far off it may still be.
#[derive(Debug, Clone, PartialEq, Default)]
struct Effects {
    global: [f64; FIGURES.len()],
    class: BTreeMap<Class, [f64; FIGURES.len()]>,
    pair: BTreeMap<(HostId, HostId), [f64; FIGURES.len()]>,
    vm: BTreeMap<VmId, [f64; FIGURES.len()]>,
    /// By figure: lower and upper bound, for vms never seen to move, and for others.
    bounds: [[(f64, f64); 2]; FIGURES.len()],
    links: BTreeMap<(HostId, HostId), Bytes>,
    /// The middle one of `links`.
    link: Option<Bytes>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lessons {
    observations: VecDeque<Observation>,
    /// `None`: nothing was learned.
    effects: Option<Effects>,
}

impl Lessons {
    pub const fn new() -> Self {
        Self { observations: VecDeque::new(), effects: None }
    }

    pub fn add(&mut self, mut observation: Observation) {
        observation.returning = self.knows(&observation.vm);
        if self.observations.len() == OBSERVATIONS_MAX {
            self.observations.pop_front();
        }
        self.observations.push_back(observation);
    }

    /// Works the effects out anew from all that is kept.
    pub fn fit(&mut self) {
        let mut effects = Effects::default();
        for (ix, figure) in FIGURES.into_iter().enumerate() {
            self.fit_figure(ix, figure, &mut effects);
        }
        let mut links: BTreeMap<(HostId, HostId), Vec<f64>> = BTreeMap::new();
        for observation in self.observations.iter().rev() {
            if let Some(carried) = observation.carried {
                links.entry(observation.pair.clone()).or_default().push(carried.0 as f64);
            }
        }
        for (pair, mut speeds) in links {
            effects.links.insert(pair, Bytes(link_speed(&mut speeds) as u64));
        }
        let mut speeds: Vec<f64> = effects.links.values().map(|speed| speed.0 as f64).collect();
        effects.link = (!speeds.is_empty()).then(|| Bytes(median(&mut speeds) as u64));
        self.effects = Some(effects);
    }

    pub fn knows(&self, vm: &VmId) -> bool {
        self.observations.iter().any(|observation| observation.vm == *vm)
    }

    /// The most that was measured as written again and again before one of the vm's last pre-copies that gave no trouble.
    pub fn calm_at(&self, vm: &VmId) -> Option<Bytes> {
        let own = self.observations.iter().rev().filter(|observation| observation.vm == *vm);
        own.take(NEWEST_OF_VM).filter_map(|observation| observation.calm_at).max()
    }

    /// Whether one of the vm's last moves had trouble to end by pre-copy.
    pub fn troubled(&self, vm: &VmId) -> bool {
        self.observations.iter().rev().filter(|o| o.vm == *vm).take(NEWEST_OF_VM).any(|o| o.troubled)
    }

    pub fn pairs(&self) -> impl Iterator<Item = &(HostId, HostId)> {
        self.observations.iter().map(|observation| &observation.pair)
    }

    /// By which factor to multiply the figure.
    pub fn factor(&self, figure: Figure, vm: &VmId, pair: &(HostId, HostId), class: Class) -> f64 {
        let Some(effects) = &self.effects else { return 1.0 };
        let ix = figure as usize;
        let of = |row: Option<&[f64; FIGURES.len()]>| row.map_or(0.0, |row| row[ix]);
        let log =
            effects.global[ix] + of(effects.class.get(&class)) + of(effects.pair.get(pair)) + of(effects.vm.get(vm));
        let most = figure.factor_max().ln();
        log.clamp(-most, most).exp()
    }

    /// Factors on the corrected figure: its interval's bounds.
    pub fn bounds(&self, figure: Figure, returning: bool) -> (f64, f64) {
        let (low, high) = match &self.effects {
            Some(effects) => effects.bounds[figure as usize][usize::from(returning)],
            None => bounds(Vec::new(), figure),
        };
        (low.exp(), high.exp())
    }

    /// What the link between two hosts carries, per second, as far as moves have shown; otherwise what others do.
    pub fn link(&self, pair: &(HostId, HostId)) -> Option<Bytes> {
        let effects = self.effects.as_ref()?;
        effects.links.get(pair).copied().or(effects.link)
    }

    fn fit_figure(&self, ix: usize, figure: Figure, effects: &mut Effects) {
        let mut left: Vec<(&Observation, f64)> =
            self.observations.iter().rev().filter_map(|o| o.missed[ix].map(|missed| (o, missed))).collect();
        let spread = spread(&left, figure);
        let mut all: Vec<f64> = left.iter().map(|(_, missed)| *missed).collect();
        let count = all.len() as f64;
        let global = if all.is_empty() { 0.0 } else { median(&mut all) * count / (count + figure.prior_weight()) };
        effects.global[ix] = global;
        for (_, missed) in &mut left {
            *missed -= global;
        }
        level(&mut left, spread, |o| o.class, ix, &mut effects.class);
        level(&mut left, spread, |o| o.pair.clone(), ix, &mut effects.pair);
        // Had a returning vm not been known, what is its own would have been missed.
        let as_if_new: Vec<f64> = left.iter().filter(|(o, _)| o.returning).map(|(_, missed)| *missed).collect();
        level(&mut left, spread, |o| o.vm.clone(), ix, &mut effects.vm);
        let forecasts = |returning| {
            self.observations.iter().filter(move |o| o.returning == returning).filter_map(|o| o.forecast[ix])
        };
        effects.bounds[ix] =
            [bounds(forecasts(false).chain(as_if_new).collect(), figure), bounds(forecasts(true).collect(), figure)];
    }
}

/// Of what a link was seen to carry, newest first. Two newest that agree speak for a link that has changed; an odd one
/// does not.
fn link_speed(speeds: &mut Vec<f64>) -> f64 {
    if let [newest, before, ..] = speeds[..]
        && (newest / before).ln().abs() <= LINK_AGREES_WITHIN
    {
        return (newest + before) / 2.0;
    }
    speeds.truncate(NEWEST_OF_LINK);
    median(speeds)
}

/// How far apart moves of one vm over one pair are: the standard deviation of the logarithm.
fn spread(observations: &[(&Observation, f64)], figure: Figure) -> f64 {
    let mut groups: BTreeMap<(&VmId, &(HostId, HostId)), Vec<f64>> = BTreeMap::new();
    for (o, missed) in observations {
        groups.entry((&o.vm, &o.pair)).or_default().push(*missed);
    }
    let mut deviations = Vec::new();
    for mut group in groups.into_values().filter(|group| group.len() >= SPREAD_FROM) {
        let middle = median(&mut group);
        deviations.extend(group.iter().map(|missed| (missed - middle).abs()));
    }
    if deviations.is_empty() {
        return figure.spread_assumed() * WITHIN_SHARE;
    }
    let count = deviations.len() as f64;
    (deviations.iter().sum::<f64>() / count * DEVIATION_TO_SIGMA).max(SPREAD_MIN)
}

/// Finds the groups' effects of one level, and takes them out of what is left.
fn level<K: Ord + Clone>(
    left: &mut [(&Observation, f64)],
    spread: f64,
    key: impl Fn(&Observation) -> K,
    ix: usize,
    effects: &mut BTreeMap<K, [f64; FIGURES.len()]>,
) {
    let mut groups: BTreeMap<K, Vec<f64>> = BTreeMap::new();
    for (o, missed) in left.iter() {
        let group = groups.entry(key(o)).or_default();
        if group.len() < NEWEST {
            group.push(*missed);
        }
    }
    // One group alone can't differ from others: what it has is common to all, and in the level above.
    if groups.len() < 2 {
        return;
    }
    let noise = |count: usize| MEDIAN_VARIANCE * spread * spread / count as f64;
    let middles: Vec<(K, f64, usize)> =
        groups.into_iter().map(|(key, mut group)| (key, median(&mut group), group.len())).collect();
    let surplus: f64 = middles.iter().map(|(_, middle, count)| middle * middle - noise(*count)).sum();
    let between = (surplus / middles.len() as f64).max(0.0);
    for (key, middle, count) in middles {
        let share = between / (between + noise(count));
        effects.entry(key).or_default()[ix] = middle * share;
    }
    for (o, missed) in left.iter_mut() {
        *missed -= effects.get(&key(o)).map_or(0.0, |row| row[ix]);
    }
}

/// Bounds of the interval, as logarithms, from what predictions missed by.
fn bounds(mut missed: Vec<f64>, figure: Figure) -> (f64, f64) {
    missed.extend(PSEUDO.iter().map(|z| z * figure.spread_assumed()));
    missed.sort_by(f64::total_cmp);
    let rank = ((missed.len() + 1) as f64 * TAIL).floor().max(1.0) as usize;
    let least = SPREAD_MIN * TAIL_SIGMAS;
    (missed[rank - 1].min(-least), missed[missed.len() - rank].max(least))
}

/// 0 of none.
fn median(values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: Class = Class { method: "pre-copy", octave: 1, load: 0 };

    fn pair(from: &str, to: &str) -> (HostId, HostId) {
        (from.parse().unwrap(), to.parse().unwrap())
    }

    fn observation(vm: &str, from: &str, total: f64) -> Observation {
        let mut missed = [None; FIGURES.len()];
        missed[Figure::Total as usize] = Some(total);
        Observation {
            vm: vm.parse().unwrap(),
            pair: pair(from, "h9"),
            class: CLASS,
            missed,
            forecast: missed,
            returning: false,
            carried: None,
            calm_at: None,
            troubled: false,
        }
    }

    fn taught(observations: impl IntoIterator<Item = Observation>) -> Lessons {
        let mut lessons = Lessons::new();
        observations.into_iter().for_each(|observation| lessons.add(observation));
        lessons.fit();
        lessons
    }

    fn log(lessons: &Lessons, vm: &str, from: &str) -> f64 {
        lessons.factor(Figure::Total, &vm.parse().unwrap(), &pair(from, "h9"), CLASS).ln()
    }

    #[test]
    fn what_all_moves_share_holds_for_a_vm_nobody_has_seen() {
        let lessons = taught((0..20).map(|n| observation(&format!("vm-{n}"), "h1", 0.4)));
        assert!((log(&lessons, "vm-new", "h2") - 0.4).abs() < 0.05);
    }

    #[test]
    fn a_slow_pair_is_told_apart_from_the_others_and_outliers_do_not_count() {
        let noise = |n: u64| f64::from(u32::try_from(n % 5).unwrap()) * 0.02 - 0.04;
        let lessons = taught((0..60).map(|n| {
            let outlier = if n % 13 == 0 { 3.0 } else { 0.0 };
            let (from, slow) = if n % 3 == 0 { ("h1", 0.5) } else { ("h2", 0.0) };
            observation(&format!("vm-{}", n % 7), from, slow + noise(n) + outlier)
        }));
        assert!((log(&lessons, "vm-new", "h1") - 0.5).abs() < 0.1, "{}", log(&lessons, "vm-new", "h1"));
        assert!(log(&lessons, "vm-new", "h2").abs() < 0.1, "{}", log(&lessons, "vm-new", "h2"));
    }

    #[test]
    fn one_odd_move_is_not_believed_and_many_are() {
        let quiet = || (0..20).map(|n| observation(&format!("vm-{}", n % 5), "h1", 0.02 * f64::from(n % 3) - 0.02));
        let odd = |times| (0..times).map(|_| observation("odd", "h1", 0.3));
        let (once, often) = (taught(quiet().chain(odd(1))), taught(quiet().chain(odd(8))));
        assert!(log(&once, "odd", "h1") < log(&often, "odd", "h1"));
        assert!((log(&often, "odd", "h1") - 0.3).abs() < 0.05, "{}", log(&often, "odd", "h1"));
    }

    #[test]
    fn intervals_are_wide_at_first_and_narrow_to_what_was_missed() {
        let (low, high) = Lessons::new().bounds(Figure::Total, false);
        assert!(low < 0.75 && high > 1.35, "{low} {high}");
        let precise = taught((0..200).map(|n| observation(&format!("vm-{n}"), "h1", f64::from(n % 21) * 0.01 - 0.1)));
        let (low, high) = precise.bounds(Figure::Total, false);
        assert!((0.88..0.96).contains(&low) && (1.04..1.13).contains(&high), "{low} {high}");
    }

    #[test]
    fn memory_is_bounded_and_the_newest_count() {
        let lessons = taught(
            (0..2 * OBSERVATIONS_MAX)
                .map(|n| observation(&format!("vm-{n}"), "h1", if n < OBSERVATIONS_MAX { 1.0 } else { 0.0 })),
        );
        assert_eq!(lessons.observations.len(), OBSERVATIONS_MAX);
        assert!(log(&lessons, "vm-new", "h1").abs() < 0.01);
    }
}
