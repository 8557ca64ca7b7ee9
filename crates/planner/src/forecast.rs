//! Short-horizon forecast of one load series, with its spread.
//!
//! Level: the median of the last samples, so that two spikes in five seconds don't move it, and a step is followed in
//! three. Trend: Theil and Sen's median slope, believed only if most pairs of samples agree that it rises (Mann and
//! Kendall's statistic), which a step does not achieve. A falling trend is never believed: room is given away once it
//! is there. Spread: the mean moving range over 1.128, as on Shewhart's control charts; a step counts once in it, not
//! for as long as it stays in the window.

use drover_model::{Millis, TimeMs};

/// A series whose newest sample is older than this says nothing about now; a hole of this length begins it anew.
pub(crate) const STALE_AFTER: Millis = Millis::secs(10);
/// Below this a series is unknown.
pub(crate) const SAMPLES_MIN: usize = 3;
/// What lies further back is another time's load.
const SAMPLES_MAX: usize = 30;
const LEVEL_SAMPLES: usize = 5;
const TREND_SAMPLES_MIN: usize = 10;
/// Share of sample pairs (rising minus falling) from which a trend is believed. A single step in otherwise
/// level load reaches 0.52 at most (15 of 30 samples on either side).
const TREND_AGREEMENT: f64 = 0.6;
/// Mean of the absolute difference of two normal draws, in standard deviations: 2 over the root of pi.
const MOVING_RANGE_SIGMAS: f64 = 1.128;

/// Expected value and spread of a series some time ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forecast {
    pub mean: u64,
    pub variance: u64,
    /// How many samples in a row it rests on, [`SAMPLES_MAX`] at most.
    pub samples: usize,
}

/// `newest_first` in any unit; `ceiling` is what the value can't pass. `None` when too few or too old samples exist.
pub(crate) fn forecast(
    now: TimeMs,
    ahead: Millis,
    newest_first: impl Iterator<Item = (TimeMs, u64)>,
    ceiling: u64,
) -> Option<Forecast> {
    let mut samples: Vec<(f64, f64)> = Vec::with_capacity(SAMPLES_MAX);
    let mut after = now;
    for (at, value) in newest_first.take(SAMPLES_MAX) {
        if after.since(at) > STALE_AFTER {
            break;
        }
        // Seconds before now, negative; a sample from the future (clocks step) counts as now's.
        samples.push((-now.since(at).as_secs(), value as f64));
        after = at;
    }
    if samples.len() < SAMPLES_MIN {
        return None;
    }
    let slope = rising_slope(&samples);
    let mut recent: Vec<f64> = samples.iter().take(LEVEL_SAMPLES).map(|(t, x)| x - slope * t).collect();
    let level = median(&mut recent);
    // A trend is carried on for at most half as long as it has been seen.
    let seen_s = samples[0].0 - samples[samples.len() - 1].0;
    let mean = level + slope * ahead.as_secs().min(seen_s / 2.0);
    let moves: f64 = samples.windows(2).map(|w| (w[0].1 - w[1].1 - slope * (w[0].0 - w[1].0)).abs()).sum();
    let sigma = moves / (samples.len() - 1) as f64 / MOVING_RANGE_SIGMAS;
    Some(Forecast {
        mean: (mean.ceil() as u64).min(ceiling),
        variance: (sigma * sigma).ceil() as u64,
        samples: samples.len(),
    })
}

/// Per second; 0 unless the series clearly rises.
fn rising_slope(newest_first: &[(f64, f64)]) -> f64 {
    if newest_first.len() < TREND_SAMPLES_MIN {
        return 0.0;
    }
    let pairs = || {
        newest_first.iter().enumerate().flat_map(|(i, newer)| newest_first[i + 1..].iter().map(move |old| (newer, old)))
    };
    let (mut count, mut agreement) = (0_i32, 0_i32);
    for (newer, older) in pairs() {
        count += 1;
        agreement += i32::from(newer.1 > older.1) - i32::from(newer.1 < older.1);
    }
    if f64::from(agreement) < TREND_AGREEMENT * f64::from(count) {
        return 0.0;
    }
    let mut slopes: Vec<f64> =
        pairs().filter(|(n, o)| n.0 > o.0).map(|(newer, older)| (newer.1 - older.1) / (newer.0 - older.0)).collect();
    if slopes.is_empty() { 0.0 } else { median(&mut slopes).max(0.0) }
}

/// Of a non-empty slice; the upper one of two in the middle.
fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// Standard deviations above the mean at which a normal variable has `probability` (0.5 to 0.999) below it.
/// Abramowitz and Stegun 26.2.23; within 0.00045.
pub(crate) fn normal_quantile(probability: f64) -> f64 {
    let t = (-2.0 * (1.0 - probability).ln()).sqrt();
    let above = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let below = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    (t - above / below).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One sample a second, the last one now.
    fn of(values: &[u64]) -> Option<Forecast> {
        let now = TimeMs(1_000_000);
        let series = values.iter().rev().enumerate().map(|(age, v)| (TimeMs(now.0 - age as u64 * 1000), *v));
        forecast(now, Millis::secs(30), series, u64::MAX)
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
            assert_eq!(of(&values).unwrap().mean, 900, "{new} samples after the step");
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
    fn noise_becomes_spread() {
        let values: Vec<u64> = (0..30).map(|n| if n % 2 == 0 { 300 } else { 500 }).collect();
        let sigma = (of(&values).unwrap().variance as f64).sqrt();
        assert!((sigma - 200.0 / 1.128).abs() < 1.0, "{sigma}");
    }

    #[test]
    fn the_ceiling_holds() {
        let now = TimeMs(1_000_000);
        let rising = (0..30).map(|age| (TimeMs(now.0 - age * 1000), 1000 - age * 20));
        assert_eq!(forecast(now, Millis::secs(30), rising, 1000).unwrap().mean, 1000);
    }

    #[test]
    fn too_few_or_too_old_samples_are_unknown() {
        assert_eq!(of(&[400, 400]), None);
        let now = TimeMs(1_000_000);
        let old = (0..30).map(|n| (TimeMs(now.0 - 10_001 - n * 1000), 400));
        assert_eq!(forecast(now, Millis::secs(30), old, u64::MAX), None);
    }

    #[test]
    fn a_hole_begins_the_series_anew() {
        let now = TimeMs(1_000_000);
        let ages = [0, 1, 2, 3, 20, 21, 22, 23, 24];
        let series = ages.map(|age| (TimeMs(now.0 - age * 1000), if age < 10 { 100 } else { 900 }));
        assert_eq!(forecast(now, Millis(0), series.into_iter(), u64::MAX).unwrap().samples, 4);
    }

    #[test]
    fn quantiles_are_those_of_the_table() {
        for (probability, z) in [(0.5, 0.0), (0.9, 1.2816), (0.95, 1.6449), (0.99, 2.3263), (0.999, 3.0902)] {
            assert!((normal_quantile(probability) - z).abs() < 5e-4, "{probability}");
        }
    }
}
