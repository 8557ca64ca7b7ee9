//! What the time of day adds to a forecast.
//!
//! The series is taken as its daily pattern p plus a deviation that fades (an Ornstein-Uhlenbeck process around p):
//!
//! ```text
//!   x(now + ahead) = p(now + ahead) + fade x (level - p(then)),   fade = exp(-ahead / FADES_IN)
//!   variance       = that of the samples + (1 - fade^2) x deviation of p(now + ahead)^2
//! ```
//! For seconds ahead this is the level of now, corrected by how the pattern changes; for many hours, the pattern.
//! Where the level lies beyond twice the deviation from the pattern, today is not a day like the others: the
//! correction counts less the farther off it is, and the interval widens by what is disputed.

use drover_model::load::DailyPattern;
use drover_model::{Millis, TimeMs};

/// Time constant of a deviation from the pattern.
const FADES_IN: Millis = Millis::secs(2 * 3_600);
/// Deviations from the pattern up to which it is fully believed.
const AGREES_WITHIN: f64 = 2.0;

/// A pattern that has seen a day.
#[derive(Debug, Clone, Copy)]
pub(super) struct Daily<'a>(&'a DailyPattern);

/// To be added to a forecast made without the pattern.
#[derive(Debug, Clone, Copy)]
pub(super) struct Correction {
    pub change: f64,
    pub variance: f64,
}

impl<'a> Daily<'a> {
    pub fn of(pattern: &'a DailyPattern) -> Option<Self> {
        (pattern.days > 0 && pattern.slots.len() == DailyPattern::SLOTS).then_some(Self(pattern))
    }

    /// `level` is what the samples say of `centre` before now; `trend` is what they add by their own trend until then.
    pub fn correction(
        &self,
        now: TimeMs,
        centre: Millis,
        ahead: Millis,
        level: f64,
        variance: f64,
        trend: f64,
    ) -> Correction {
        let (at_level, deviation) = self.at(TimeMs(now.0.saturating_sub(centre.0)));
        let (then, deviation_then) = self.at(now.plus(ahead));
        let off = level - at_level;
        let fade = (-(ahead.0 as f64) / FADES_IN.0 as f64).exp();
        // A load that rises anyway does not rise twice.
        let change = then + fade * off - level - trend;
        let change = if trend > 0.0 { change.max(0.0) } else { change };
        let usual = AGREES_WITHIN * AGREES_WITHIN * (deviation * deviation + variance);
        let trust = if off * off <= usual { 1.0 } else { usual / (off * off) };
        let spread = (1.0 - fade * fade) * deviation_then * deviation_then;
        // Either may be right, with these odds: the variance of such a mixture.
        let disputed = trust * (1.0 - trust) * change * change;
        Correction { change: trust * change, variance: trust * spread + disputed }
    }

    /// Mean and deviation, linear between the middles of the slots.
    fn at(&self, at: TimeMs) -> (f64, f64) {
        let slots = &self.0.slots;
        let place = at.0 as f64 / DailyPattern::SLOT.0 as f64 - 0.5;
        let (whole, part) = (place.floor(), place - place.floor());
        let before = (whole + slots.len() as f64) as usize % slots.len();
        let (before, after) = (slots[before], slots[(before + 1) % slots.len()]);
        let between = |a: u32, b: u32| f64::from(a) + (f64::from(b) - f64::from(a)) * part;
        (between(before.mean, after.mean), between(before.deviation, after.deviation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::{Forecast, Outlook};
    use drover_model::load::PatternSlot;

    const NOON: TimeMs = TimeMs(12 * 3_600_000);

    /// 1000 at noon, 100 at midnight, straight between.
    fn pattern(deviation: u32) -> DailyPattern {
        let mean = |slot: u32| 1000 - 900 * slot.abs_diff(48) / 48;
        let slots = (0..DailyPattern::SLOTS as u32).map(|slot| PatternSlot { mean: mean(slot), deviation }).collect();
        DailyPattern { days: 5, slots }
    }

    /// Of a level series that ends `before` noon.
    fn forecast(value: u64, pattern: &DailyPattern, before: Millis, ahead: Millis) -> Forecast {
        let now = TimeMs(NOON.0 - before.0);
        let samples = (0..30).map(|age| (TimeMs(now.0 - age * 1000), value));
        Outlook::of(now, Millis::secs(10), samples).unwrap().with_pattern(pattern).at(ahead)
    }

    #[test]
    fn the_morning_is_expected_to_rise_as_on_other_days() {
        let (hour, pattern) = (Millis::secs(3_600), pattern(20));
        let soon = forecast(700, &pattern, Millis::secs(4 * 3_600), Millis::secs(30));
        assert!((700..=703).contains(&soon.mean) && soon.variance <= 5, "{soon:?}");
        let later = forecast(700, &pattern, Millis::secs(4 * 3_600), hour);
        assert!((765..=785).contains(&later.mean), "{later:?}");
        assert!((100..=400).contains(&later.variance), "up to 20 squared: {later:?}");
    }

    #[test]
    fn a_deviation_from_the_pattern_fades() {
        // 60 above the pattern, which says 700 now and 925 in three hours.
        let later = forecast(760, &pattern(50), Millis::secs(4 * 3_600), Millis::secs(3 * 3_600));
        assert!((925..=945).contains(&later.mean), "{later:?}");
    }

    #[test]
    fn a_day_unlike_the_others_is_not_pressed_into_the_pattern() {
        let hour = Millis::secs(3_600);
        let other = forecast(200, &pattern(20), Millis::secs(4 * 3_600), hour);
        assert!(other.mean < 240, "{other:?}");
        let usual = forecast(700, &pattern(20), Millis::secs(4 * 3_600), hour);
        assert!(other.variance > usual.variance, "{other:?} {usual:?}");
    }

    #[test]
    fn a_pattern_that_has_seen_no_day_changes_nothing() {
        let none = DailyPattern { days: 0, ..pattern(20) };
        let forecast = forecast(700, &none, Millis::secs(4 * 3_600), Millis::secs(3_600));
        assert_eq!(forecast, Forecast { mean: 700, variance: 0, samples: 30 });
    }

    #[test]
    fn midnight_is_between_the_last_slot_and_the_first() {
        let pattern = pattern(10);
        let at = |ms| Daily::of(&pattern).unwrap().at(TimeMs(ms)).0;
        assert!((at(0) - (100.0 + f64::from(pattern.slots[95].mean)) / 2.0).abs() < 1.0);
        assert_eq!(at(DailyPattern::SLOT.0 / 2), 100.0);
    }
}
