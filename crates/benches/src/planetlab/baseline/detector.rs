//! When the baselines take a host for overloaded (Beloglazov and Buyya 2012, section 5).

use super::sketch::Sketched;

/// Rounds of a vm's history that count.
pub const HISTORY: usize = 30;
/// With less history than a detector needs, more than this is overload.
const FALLBACK: f64 = 0.7;
const SPREAD_NEEDS: usize = 12;
const REGRESSION_NEEDS: usize = 10;
/// How many rounds a migration takes, rounded up: always one.
const AHEAD: f64 = 1.0;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Detector {
    /// More than this part of a host is asked for.
    Threshold(f64),
    /// More than 1 - this times the interquartile range of the host's history.
    InterquartileRange(f64),
    /// More than 1 - this times the median absolute deviation of the host's history.
    MedianDeviation(f64),
    /// This times where a straight line through the last ten values leads to is all of the host or more. The paper's local
    /// regression is weighted; in the simulator's release weights are never applied.
    Regression(f64),
}

impl Detector {
    pub fn overloaded(self, host: &Sketched) -> bool {
        let fallback = host.requested / host.mips > FALLBACK;
        match self {
            Detector::Threshold(threshold) => host.requested / host.mips > threshold,
            Detector::InterquartileRange(scale) => {
                let range = spread(host, interquartile_range);
                range.map_or(fallback, |range| host.requested / host.mips > 1.0 - scale * range)
            }
            Detector::MedianDeviation(scale) => {
                let deviation = spread(host, median_deviation);
                deviation.map_or(fallback, |deviation| host.requested / host.mips > 1.0 - scale * deviation)
            }
            Detector::Regression(scale) => {
                if length(&host.history) < REGRESSION_NEEDS {
                    return fallback;
                }
                scale * led_to(&host.history[..REGRESSION_NEEDS]) >= 1.0
            }
        }
    }

    pub fn name(self) -> (&'static str, f64) {
        match self {
            Detector::Threshold(scale) => ("THR", scale),
            Detector::InterquartileRange(scale) => ("IQR", scale),
            Detector::MedianDeviation(scale) => ("MAD", scale),
            Detector::Regression(scale) => ("LR", scale),
        }
    }
}

/// Without the zeros at its old end.
fn length(history: &[f64]) -> usize {
    history.iter().rposition(|value| *value != 0.0).map_or(0, |last| last + 1)
}

fn spread(host: &Sketched, of: fn(&mut [f64]) -> f64) -> Option<f64> {
    let length = length(&host.history);
    let mut history = host.history;
    (length >= SPREAD_NEEDS).then(|| of(&mut history[..length]))
}

fn interquartile_range(history: &mut [f64]) -> f64 {
    history.sort_by(f64::total_cmp);
    let at = |quarter: f64| history[(quarter * (history.len() + 1) as f64).round() as usize - 1];
    at(0.75) - at(0.25)
}

fn median_deviation(history: &mut [f64]) -> f64 {
    let middle = median(history);
    history.iter_mut().for_each(|value| *value = (*value - middle).abs());
    median(history)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) {
        values[half - 1] + (values[half] - values[half - 1]) / 2.0
    } else {
        values[half]
    }
}

/// Where a line through these values, the newest first, will be [`AHEAD`] steps on (least squares).
fn led_to(newest_first: &[f64]) -> f64 {
    let count = newest_first.len() as f64;
    let (mean_x, mean_y) = ((count + 1.0) / 2.0, newest_first.iter().sum::<f64>() / count);
    let (mut of_xy, mut of_xx) = (0.0, 0.0);
    for (ix, y) in newest_first.iter().rev().enumerate() {
        let x = (ix + 1) as f64 - mean_x;
        of_xy += x * (y - mean_y);
        of_xx += x * x;
    }
    let slope = of_xy / of_xx;
    mean_y - slope * mean_x + slope * (count + AHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(requested: f64, newest_first: &[f64]) -> Sketched {
        let mut host = Sketched { mips: 1000.0, requested, ..Sketched::default() };
        host.history[..newest_first.len()].copy_from_slice(newest_first);
        host
    }

    #[test]
    fn with_little_history_all_but_the_threshold_fall_back() {
        for detector in [Detector::InterquartileRange(1.5), Detector::MedianDeviation(2.5), Detector::Regression(1.2)] {
            assert!(detector.overloaded(&host(701.0, &[0.7; 9])));
            assert!(!detector.overloaded(&host(700.0, &[0.7; 9])));
        }
        assert!(Detector::Threshold(0.8).overloaded(&host(801.0, &[])));
        assert!(!Detector::Threshold(0.8).overloaded(&host(800.0, &[])));
    }

    #[test]
    fn a_rise_is_followed_and_a_level_is_scaled() {
        let rising: Vec<f64> = (1..=10).rev().map(|x| f64::from(x) * 0.08).collect();
        assert!((led_to(&rising) - 0.88).abs() < 1e-12);
        assert!(!Detector::Regression(1.13).overloaded(&host(800.0, &rising)));
        assert!(Detector::Regression(1.14).overloaded(&host(800.0, &rising)));
    }

    #[test]
    fn the_wider_the_history_the_lower_the_threshold() {
        let mut wide: Vec<f64> = (1..=12).map(|x| f64::from(x) / 12.0).collect();
        assert!((interquartile_range(&mut wide) - 0.5833333).abs() < 1e-6, "the 10th less the 3rd");
        assert!((median_deviation(&mut wide) - 0.25).abs() < 1e-9);
        let narrow: Vec<f64> = (1..=12).map(|x| 0.5 + f64::from(x) / 1200.0).collect();
        for detector in [Detector::InterquartileRange(1.5), Detector::MedianDeviation(2.5)] {
            assert!(!detector.overloaded(&host(900.0, &narrow)));
            assert!(detector.overloaded(&host(900.0, &wide)));
        }
    }
}
