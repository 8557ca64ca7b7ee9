//! Sums of forecasts: of a host, of the pool.

use super::Forecast;

/// What vms have in common beyond their patterns: correlation of the forecast errors of any two. Measured on the PlanetLab
/// traces: next to nothing among the vms of one host, and half of the spread of a pool of a thousand.
const CORRELATION: f64 = 0.008;

/// The sum of forecasts, in their unit; the order of adding changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Total {
    pub mean: u64,
    /// Sum of the variances: the variance of the sum if nothing is in common.
    pub variance: u64,
    /// Sum of the standard deviations, in thousandths: what it would be if everything were.
    deviations: u64,
}

impl Total {
    pub fn add(&mut self, forecast: &Forecast) {
        self.mean += forecast.mean;
        self.variance = self.variance.saturating_add(forecast.variance);
        self.deviations += ((forecast.variance as f64).sqrt() * 1000.0) as u64;
    }

    /// Standard deviation of the sum.
    pub fn deviation(&self) -> f64 {
        let (apart, together) = (self.variance as f64, (self.deviations as f64 / 1000.0).powi(2));
        (apart + CORRELATION * (together - apart).max(0.0)).sqrt()
    }

    /// Exceeded with the probability that a normal variable is, `sigmas` above its mean ([`normal_quantile`]).
    pub fn at_quantile(&self, sigmas: f64) -> u64 {
        self.mean + (sigmas * self.deviation()).ceil() as u64
    }
}

impl<'a> FromIterator<&'a Forecast> for Total {
    fn from_iter<I: IntoIterator<Item = &'a Forecast>>(forecasts: I) -> Self {
        let mut total = Self::default();
        forecasts.into_iter().for_each(|forecast| total.add(forecast));
        total
    }
}

/// Standard deviations above the mean at which a normal variable has `probability` (0.5 to 0.999) below it.
/// Abramowitz and Stegun 26.2.23; within 0.00045.
pub fn normal_quantile(probability: f64) -> f64 {
    let t = (-2.0 * (1.0 - probability).ln()).sqrt();
    let above = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let below = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    (t - above / below).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vms_have_in_common_shows_in_a_pool_and_not_on_a_host() {
        let vm = Forecast { mean: 100, variance: 2500, samples: 30 };
        let sum = |count| std::iter::repeat_n(&vm, count).collect::<Total>();
        let (host, pool) = (sum(10), sum(1000));
        assert_eq!((host.mean, host.variance), (1000, 25_000));
        assert!((host.deviation() / 25_000_f64.sqrt() - 1.0).abs() < 0.05);
        assert!(pool.deviation() > 2.0 * 2_500_000_f64.sqrt());
    }

    #[test]
    fn quantiles_are_those_of_the_table() {
        for (probability, z) in [(0.5, 0.0), (0.9, 1.2816), (0.95, 1.6449), (0.99, 2.3263), (0.999, 3.0902)] {
            assert!((normal_quantile(probability) - z).abs() < 5e-4, "{probability}");
        }
    }
}
