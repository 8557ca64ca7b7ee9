//! One series: its level, its trend, and how far it strays.
//!
//! Level: the mean of as many of the last samples (30, 15, 8) as agree with the median of the last five; where none do,
//! that median: a step is followed in three samples. The mean, not the median, because load is skewed, and medians of
//! many vms add up to less than the vms need (on the PlanetLab traces 6 % less). What stands out by more than five times
//! the usual move counts as that much only, so that two spikes in level load move nothing.
//!
//! Trend: Theil and Sen's median slope over pairs at least half the window apart, believed only if most pairs of samples
//! agree that it rises (Mann and Kendall's statistic), which a step does not achieve. A falling trend is never believed:
//! room is given away once it is there.
//!
//! Spread: half the mean square of successive differences (von Neumann et al., Annals of Mathematical Statistics 12(2),
//! 1941), which slow change does not widen. The two largest differences count as the third largest, so that neither a step
//! nor a burst that went is noise. The square, not the moving range: tails must show, since variances are what is added up over a host.

use super::Forecast;
use super::daily::{Correction, Daily};
use drover_model::load::DailyPattern;
use drover_model::{Millis, TimeMs};

/// Below this a series is unknown.
const SAMPLES_MIN: usize = 3;
/// What lies further back is another time's load.
const SAMPLES_MAX: usize = 30;
/// Newest samples that say what the load is now, by their median.
const RECENT: usize = 5;
/// Stretches of newest samples over which the mean may be taken, longest first.
const STRETCHES: [usize; 3] = [SAMPLES_MAX, 15, 8];
/// A stretch agrees with the recent samples when the medians are this many usual moves apart at most.
const AGREES_WITHIN: f64 = 1.5;
/// Usual moves from the median beyond which a sample stands out.
const STANDS_OUT: f64 = 5.0;
/// Median of the absolute difference of two normal draws, in standard deviations: 0.6745 x root of 2.
const MEDIAN_MOVE_SIGMAS: f64 = 0.954;
/// Variance of the median of five over that of their mean, for normal draws: pi / 2, less for so few.
const MEDIAN_OF_FIVE: f64 = 1.43;
const TREND_SAMPLES_MIN: usize = 10;
/// Share of sample pairs (rising minus falling) from which a trend is believed. A single step in otherwise
/// level load reaches 0.52 at most (15 of 30 samples on either side).
const TREND_AGREEMENT: f64 = 0.6;
/// What the samples at hand don't show of the variance: rare bursts, and a level that wanders on. Measured on the PlanetLab
/// traces, so that the 90 % interval of hosts of 15 vms holds 90 % of what comes.
const VARIANCE_UNSEEN: f64 = 1.4;
/// What is added of the variance for each time as far ahead as samples reach back. Measured likewise, 5 minutes to 10
/// hours ahead.
const VARIANCE_GROWS: f64 = 0.2;

/// What the last samples of a series say, ready to be asked for any time ahead.
#[derive(Debug, Clone, Copy)]
pub struct Outlook<'a> {
    now: TimeMs,
    /// At `centre`, or now if a trend is believed.
    level: f64,
    /// How long before now the samples of the level lie, on average.
    centre: Millis,
    /// Per millisecond; 0 unless the series clearly rises.
    slope: f64,
    /// Between the oldest and the newest sample.
    seen: Millis,
    variance: f64,
    samples: usize,
    ceiling: u64,
    pattern: Option<Daily<'a>>,
}

/// The last samples, newest first; in arrays on the stack, since a hundred thousand of them are made a round.
struct Samples {
    /// Milliseconds before now.
    ages: [f64; SAMPLES_MAX],
    values: [f64; SAMPLES_MAX],
    count: usize,
    all_equal: bool,
}

impl<'a> Outlook<'a> {
    /// `newest_first` in any unit. `None` when too few or too old samples exist.
    pub fn of(now: TimeMs, stale_after: Millis, newest_first: impl Iterator<Item = (TimeMs, u64)>) -> Option<Self> {
        let mut samples = Samples::take(now, stale_after, newest_first)?;
        let count = samples.count;
        let seen = samples.ages[count - 1] - samples.ages[0];
        let (mut level, mut stretch, mut slope, mut variance) = (samples.values[0], count, 0.0, 0.0);
        if !samples.all_equal {
            slope = samples.rising_slope();
            if slope > 0.0 {
                samples.level_out(slope);
            }
            let moves = samples.moves();
            (level, stretch) = samples.level(moves.usual);
            let uncertain = if stretch > RECENT { 1.0 } else { MEDIAN_OF_FIVE } / stretch as f64;
            variance = moves.variance * (1.0 + uncertain) * VARIANCE_UNSEEN;
        }
        let centre = samples.ages[..stretch].iter().sum::<f64>() as u64 / stretch as u64;
        Some(Self {
            now,
            level,
            centre: Millis(if slope > 0.0 { 0 } else { centre }),
            slope,
            seen: Millis(seen as u64),
            variance,
            samples: count,
            ceiling: u64::MAX,
            pattern: None,
        })
    }

    /// Blended with what the series does at this time of day, if the pattern knows.
    #[must_use]
    pub fn with_pattern(mut self, pattern: &'a DailyPattern) -> Self {
        self.pattern = Daily::of(pattern);
        self
    }

    /// The value can't pass this.
    #[must_use]
    pub const fn with_ceiling(mut self, ceiling: u64) -> Self {
        self.ceiling = ceiling;
        self
    }

    pub fn at(&self, ahead: Millis) -> Forecast {
        // A trend is carried on for at most half as long as it has been seen.
        let trend = self.slope * ahead.0.min(self.seen.0 / 2) as f64;
        let farther = ahead.0 as f64 / self.seen.0.max(1) as f64;
        let (mut mean, mut variance) = (self.level + trend, self.variance * (1.0 + VARIANCE_GROWS * farther));
        if let Some(daily) = &self.pattern {
            let Correction { change, variance: more } =
                daily.correction(self.now, self.centre, ahead, self.level, self.variance, trend);
            mean += change;
            variance += more;
        }
        Forecast { mean: (up(mean)).min(self.ceiling), variance: up(variance), samples: self.samples }
    }
}

/// The next whole number, unless only rounding lifted the value above one.
fn up(value: f64) -> u64 {
    (value - 1e-6).ceil().max(0.0) as u64
}

struct Moves {
    /// Standard deviation as the median move shows it: blind to steps and bursts.
    usual: f64,
    variance: f64,
}

impl Samples {
    fn take(now: TimeMs, stale_after: Millis, newest_first: impl Iterator<Item = (TimeMs, u64)>) -> Option<Self> {
        let mut samples = Self { ages: [0.0; SAMPLES_MAX], values: [0.0; SAMPLES_MAX], count: 0, all_equal: true };
        let mut after = now;
        for (at, value) in newest_first.take(SAMPLES_MAX) {
            if after.since(at) > stale_after {
                break;
            }
            // A sample from the future (clocks step) counts as now's.
            samples.ages[samples.count] = now.since(at).0 as f64;
            samples.values[samples.count] = value as f64;
            samples.all_equal &= samples.values[0] == value as f64;
            samples.count += 1;
            after = at;
        }
        (samples.count >= SAMPLES_MIN).then_some(samples)
    }

    fn values(&self) -> &[f64] {
        &self.values[..self.count]
    }

    /// Per millisecond; 0 unless the series clearly rises.
    fn rising_slope(&self) -> f64 {
        if self.count < TREND_SAMPLES_MIN || !self.rises() {
            return 0.0;
        }
        let (apart, mut slopes, mut count) = (self.count / 2, [0.0; SAMPLES_MAX * SAMPLES_MAX / 2], 0);
        for newer in 0..self.count - apart {
            for older in newer + apart..self.count {
                let time = self.ages[older] - self.ages[newer];
                if time > 0.0 {
                    slopes[count] = (self.values[newer] - self.values[older]) / time;
                    count += 1;
                }
            }
        }
        if count == 0 { 0.0 } else { median(&mut slopes[..count]).max(0.0) }
    }

    /// Whether most pairs of samples agree that it does. Stops as soon as those left can't make it so.
    fn rises(&self) -> bool {
        let values = self.values();
        let all = (values.len() * (values.len() - 1) / 2) as f64;
        let (mut agreement, mut left) = (0_i32, all);
        for (ix, newer) in values.iter().enumerate() {
            let older = &values[ix + 1..];
            agreement += older.iter().map(|older| i32::from(newer > older) - i32::from(newer < older)).sum::<i32>();
            left -= older.len() as f64;
            if f64::from(agreement) + left < TREND_AGREEMENT * all {
                return false;
            }
        }
        true
    }

    /// Takes the trend out: what each sample would be now.
    fn level_out(&mut self, slope: f64) {
        for (value, age) in self.values.iter_mut().zip(&self.ages).take(self.count) {
            *value += slope * age;
        }
    }

    fn moves(&self) -> Moves {
        let mut moves = [0.0; SAMPLES_MAX];
        let count = self.count - 1;
        let (mut squares, mut largest) = (0.0, [0.0_f64; 3]);
        for (step, pair) in moves.iter_mut().zip(self.values().windows(2)) {
            *step = (pair[0] - pair[1]).abs();
            squares += *step * *step;
            let [first, second, third] = &mut largest;
            *third = third.max(second.min(*step));
            *second = second.max(first.min(*step));
            *first = first.max(*step);
        }
        let [first, second, third] = largest;
        squares += 2.0 * third * third - first * first - second * second;
        Moves {
            usual: median(&mut moves[..count]) / MEDIAN_MOVE_SIGMAS,
            variance: (squares / (2 * count) as f64).max(0.0),
        }
    }

    /// And how many samples it rests on.
    fn level(&self, usual: f64) -> (f64, usize) {
        let recent = self.count.min(RECENT);
        let now = self.median_of(recent);
        for stretch in STRETCHES.map(|stretch| stretch.min(self.count)) {
            if stretch <= RECENT {
                break;
            }
            let middle = self.median_of(stretch);
            if (now - middle).abs() <= AGREES_WITHIN * usual {
                let (low, high) = (middle - STANDS_OUT * usual, middle + STANDS_OUT * usual);
                let sum: f64 = self.values[..stretch].iter().map(|value| value.clamp(low, high)).sum();
                return (sum / stretch as f64, stretch);
            }
        }
        (now, recent)
    }

    /// Of the newest `count`.
    fn median_of(&self, count: usize) -> f64 {
        let mut values = self.values;
        median(&mut values[..count])
    }
}

/// Of a non-empty slice; the upper one of two in the middle.
fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALE_AFTER: Millis = Millis::secs(10);
    const AHEAD: Millis = Millis::secs(30);

    /// One sample a second, the last one now.
    fn of(values: &[u64]) -> Option<Forecast> {
        let now = TimeMs(1_000_000);
        let series = values.iter().rev().enumerate().map(|(age, v)| (TimeMs(now.0 - age as u64 * 1000), *v));
        Some(Outlook::of(now, STALE_AFTER, series)?.at(AHEAD))
    }

    #[test]
    fn a_level_series_is_forecast_as_it_is() {
        assert_eq!(of(&[400; 30]), Some(Forecast { mean: 400, variance: 0, samples: 30 }));
    }

    #[test]
    fn two_spikes_move_the_level_nowhere() {
        let mut values = [200; 30];
        (values[26], values[29]) = (1000, 1000);
        assert_eq!(of(&values).unwrap().mean, 200);
    }

    #[test]
    fn a_step_is_followed_in_three_samples_without_overshoot() {
        for new in 3..30 {
            let values: Vec<u64> = (0..30).map(|n| if n >= 30 - new { 900 } else { 100 }).collect();
            let forecast = of(&values).unwrap();
            assert_eq!((forecast.mean, forecast.variance), (900, 0), "{new} samples after the step");
        }
    }

    #[test]
    fn a_ramp_is_carried_on_for_half_the_time_it_was_seen() {
        let values: Vec<u64> = (0..30).map(|n| 100 + 10 * n).collect();
        // 390 now, seen for 29 s, 10 a second more.
        assert_eq!(of(&values).unwrap(), Forecast { mean: 390 + 145, variance: 0, samples: 30 });
    }

    #[test]
    fn a_fall_is_not_carried_on() {
        let values: Vec<u64> = (0..30).map(|n| 900 - 10 * n).collect();
        assert_eq!(of(&values).unwrap().mean, 630, "the median of the last five");
    }

    #[test]
    fn the_level_of_skewed_load_is_its_mean() {
        // A burst of twice the rest in every fourth sample: the median would miss it.
        let values: Vec<u64> = (0..30).map(|n| 400 + 10 * (n % 3) + if n % 4 == 0 { 40 } else { 0 }).collect();
        let mean = values.iter().sum::<u64>() / 30;
        assert!(of(&values).unwrap().mean.abs_diff(mean) <= 1, "{:?} for {mean}", of(&values));
    }

    #[test]
    fn noise_becomes_spread() {
        let values: Vec<u64> = (0..30).map(|n| if n % 2 == 0 { 300 } else { 500 }).collect();
        let forecast = of(&values).unwrap();
        assert_eq!(forecast.mean, 400);
        // Half the mean square of the moves, of which each is 200.
        let grown = 1.0 + VARIANCE_GROWS * 30.0 / 29.0;
        let variance = 200.0 * 200.0 / 2.0 * (1.0 + 1.0 / 30.0) * VARIANCE_UNSEEN * grown;
        assert!((forecast.variance as f64 - variance).abs() <= 1.0, "{forecast:?}");
    }

    #[test]
    fn the_ceiling_holds() {
        let now = TimeMs(1_000_000);
        let rising = (0..30).map(|age| (TimeMs(now.0 - age * 1000), 1000 - age * 20));
        let outlook = Outlook::of(now, STALE_AFTER, rising).unwrap();
        assert_eq!(outlook.with_ceiling(1000).at(AHEAD).mean, 1000);
        assert!(outlook.at(AHEAD).mean > 1000);
    }

    #[test]
    fn too_few_or_too_old_samples_are_unknown() {
        assert_eq!(of(&[400, 400]), None);
        let now = TimeMs(1_000_000);
        let old = (0..30).map(|n| (TimeMs(now.0 - 10_001 - n * 1000), 400));
        assert!(Outlook::of(now, STALE_AFTER, old).is_none());
    }

    #[test]
    fn a_hole_begins_the_series_anew() {
        let now = TimeMs(1_000_000);
        let ages = [0, 1, 2, 3, 20, 21, 22, 23, 24];
        let series = ages.map(|age| (TimeMs(now.0 - age * 1000), if age < 10 { 100 } else { 900 }));
        assert_eq!(Outlook::of(now, STALE_AFTER, series.into_iter()).unwrap().at(Millis::ZERO).samples, 4);
    }

    #[test]
    fn a_trend_is_found_through_noise_and_not_in_noise() {
        let noise = |n: u64| (n * n * 37) % 41;
        let rising: Vec<u64> = (0..30).map(|n| 100 + 10 * n + noise(n)).collect();
        let level: Vec<u64> = (0..30).map(|n| 250 + noise(n)).collect();
        let (rising, level) = (of(&rising).unwrap().mean, of(&level).unwrap().mean);
        assert!((540..=570).contains(&rising), "{rising}");
        assert!((260..=280).contains(&level), "{level}");
    }
}
