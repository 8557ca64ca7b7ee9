//! Learning what a vm's demand is at each time of day.
//!
//! ```text
//!  samples ──▶ the slot of now: mean, variance ──at its end──▶ that slot's mean and variance over the days, older days
//!                                                      │       fading (half-life one week)
//!                                                      └─▶ was the pattern nearer than the plain mean? ──▶ believed or not
//! ```
//! A pattern is believed when it explains: each slot, before it is learned from, is held against what the days before say
//! of it, and against the mean of all day. Only where the squared misses of the pattern are clearly smaller does
//! [`Learner::pattern`] give one, so that a vm without a daily rhythm has none, however long it is watched. That is the
//! share of the variance that the time of day explains, measured on days that were not yet known.
//!
//! Holes cost nothing but what was not seen: a slot with too few samples is not learned from, and days of absence age
//! what was learned.

use drover_model::load::{DailyPattern, PatternSlot};
use drover_model::{CpuMillis, TimeMs};
use serde::{Deserialize, Serialize};

const SLOTS: usize = DailyPattern::SLOTS;
const DAY_MS: u64 = DailyPattern::SLOT.0 * SLOTS as u64;
/// What a day counts for falls to half over this many days.
const HALF_LIFE_DAYS: f32 = 7.0;
/// Weight of the newest day once many have been seen: 1 - 0.5^(1 / half-life).
const NEWEST_WEIGHT: f32 = 0.094_3;
/// Samples below which a slot was not seen.
const SLOT_SAMPLES_MIN: u32 = 2;
/// Slots that may lack for a whole day to count as one; they are filled in from their neighbours.
const SLOTS_LACKING_MAX: usize = 8;
/// Slots that must have been held against the days before, a quarter of a day, for a pattern to be believed.
const TRIED_MIN: u16 = 24;
/// Share of the variance that the time of day must explain.
const EXPLAINS_MIN: f32 = 0.3;
/// Weight of the newest slot in the misses: as over some four days.
const MISS_WEIGHT: f32 = 1.0 / 384.0;

/// Learns the daily pattern of one vm; about 900 bytes, whatever it has seen. Constant work a sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Learner {
    /// Per slot: mean over the days, thousandths of a core.
    means: Box<[f32; SLOTS]>,
    /// Per slot: variance, within the slot and from day to day.
    variances: Box<[f32; SLOTS]>,
    /// Per slot: days it rests on, as far as they still count.
    days: Box<[u8; SLOTS]>,
    open: Open,
    misses: Misses,
}

/// The slot of now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Open {
    last_at: TimeMs,
    samples: u32,
    mean: f32,
    /// Sum of squared distances from the mean (Welford, Technometrics 4(3), 1962).
    squares: f32,
}

/// What the pattern, and the mean of all day, missed the slots by; mean squares that fade.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Misses {
    tried: u16,
    of_pattern: f32,
    of_mean: f32,
}

/// As it is kept over restarts.
#[derive(Serialize, Deserialize)]
struct Stored {
    means: Vec<f32>,
    variances: Vec<f32>,
    days: Vec<u8>,
    open: Open,
    misses: Misses,
}

impl Default for Learner {
    fn default() -> Self {
        Self {
            means: Box::new([0.0; SLOTS]),
            variances: Box::new([0.0; SLOTS]),
            days: Box::new([0; SLOTS]),
            open: Open::default(),
            misses: Misses::default(),
        }
    }
}

impl Learner {
    /// Takes a sample in. One that is not newer than the last is passed over.
    pub fn take(&mut self, at: TimeMs, demand: CpuMillis) {
        let last_at = self.open.last_at;
        if self.open.samples > 0 && at <= last_at {
            return;
        }
        let slot_number = |at: TimeMs| at.0 / DailyPattern::SLOT.0;
        if self.open.samples > 0 && slot_number(at) != slot_number(last_at) {
            self.close();
            self.age(at.since(last_at).0 / DAY_MS);
        }
        let open = &mut self.open;
        open.last_at = at;
        open.samples = open.samples.saturating_add(1);
        let off = demand.0 as f32 - open.mean;
        open.mean += off / open.samples as f32;
        open.squares += off * (demand.0 as f32 - open.mean);
    }

    /// What has been learned; empty while no whole day has been seen, or the time of day does not explain the demand.
    pub fn pattern(&self) -> DailyPattern {
        let lacking = self.days.iter().filter(|days| **days == 0).count();
        if lacking > SLOTS_LACKING_MAX || !self.explains() {
            return DailyPattern::default();
        }
        let seen: u32 = self.days.iter().map(|days| u32::from(*days)).sum();
        let days = u16::try_from(seen / (SLOTS - lacking) as u32).unwrap_or(u16::MAX);
        DailyPattern { days, slots: (0..SLOTS).map(|slot| self.slot(slot)).collect() }
    }

    /// Share of the variance of slots that the days before explained, below 1; negative where the pattern misses by more
    /// than the mean of all day does. `None` while too few slots could be tried.
    pub fn explained(&self) -> Option<f32> {
        let Misses { tried, of_pattern, of_mean } = self.misses;
        (tried >= TRIED_MIN).then(|| if of_mean > 0.0 { 1.0 - of_pattern / of_mean } else { 0.0 })
    }

    fn explains(&self) -> bool {
        self.explained().is_some_and(|share| share >= EXPLAINS_MIN)
    }

    fn slot(&self, slot: usize) -> PatternSlot {
        let near = |step: usize| (0..SLOTS).map(|n| (slot + n * step) % SLOTS).find(|slot| self.days[*slot] > 0);
        let (Some(before), Some(after)) = (near(SLOTS - 1), near(1)) else { return PatternSlot::default() };
        let mean = (self.means[before] + self.means[after]) / 2.0;
        // What few days don't show of the difference between days, the misses do.
        let few = self.days[before].min(self.days[after]) < 3;
        let variance = self.variances[before].max(self.variances[after]);
        let variance = if few { variance.max(self.misses.of_pattern) } else { variance };
        PatternSlot { mean: mean.round() as u32, deviation: variance.sqrt().ceil() as u32 }
    }

    /// The slot of now is over: it is tried, then learned from.
    fn close(&mut self) {
        let open = std::mem::take(&mut self.open);
        if open.samples < SLOT_SAMPLES_MIN {
            return;
        }
        let slot = (open.last_at.0 / DailyPattern::SLOT.0) as usize % SLOTS;
        let within = open.squares / open.samples as f32;
        self.try_slot(slot, open.mean);
        let days = self.days[slot];
        let weight = NEWEST_WEIGHT.max(1.0 / (f32::from(days) + 1.0));
        let off = open.mean - self.means[slot];
        self.means[slot] += weight * off;
        // West, Communications of the ACM 22(9), 1979, with weights that fade.
        let between = if days == 0 { 0.0 } else { weight * off * off };
        self.variances[slot] = (1.0 - weight) * (self.variances[slot] + between) + weight * within;
        self.days[slot] = days.saturating_add(1);
    }

    fn try_slot(&mut self, slot: usize, mean: f32) {
        let known = self.days.iter().filter(|days| **days > 0).count();
        if self.days[slot] == 0 || known < SLOTS - SLOTS_LACKING_MAX {
            return;
        }
        let all_day = self.means.iter().sum::<f32>() / known as f32;
        let misses = &mut self.misses;
        misses.tried = misses.tried.saturating_add(1);
        let weight = MISS_WEIGHT.max(1.0 / f32::from(misses.tried));
        misses.of_pattern += weight * ((mean - self.means[slot]).powi(2) - misses.of_pattern);
        misses.of_mean += weight * ((mean - all_day).powi(2) - misses.of_mean);
    }

    /// After days of absence what was learned counts for less.
    fn age(&mut self, days_absent: u64) {
        if days_absent == 0 {
            return;
        }
        let left = 0.5_f32.powf(days_absent as f32 / HALF_LIFE_DAYS);
        self.days.iter_mut().for_each(|days| *days = (f32::from(*days) * left).round() as u8);
        for slot in 0..SLOTS {
            if self.days[slot] == 0 {
                (self.means[slot], self.variances[slot]) = (0.0, 0.0);
            }
        }
    }
}

impl From<Learner> for Stored {
    fn from(learner: Learner) -> Self {
        Self {
            means: learner.means.to_vec(),
            variances: learner.variances.to_vec(),
            days: learner.days.to_vec(),
            open: learner.open,
            misses: learner.misses,
        }
    }
}

/// A learner was kept by something that knows other days.
#[derive(Debug, thiserror::Error)]
#[error("a daily pattern as kept has not {SLOTS} slots of sound figures: forget it, and it is learned anew")]
pub struct BadLearner;

impl TryFrom<Stored> for Learner {
    type Error = BadLearner;

    fn try_from(stored: Stored) -> Result<Self, BadLearner> {
        let sound = |value: &f32| value.is_finite() && *value >= 0.0;
        let figures = stored.means.iter().chain(&stored.variances).chain([&stored.open.mean, &stored.open.squares]);
        if !figures.chain([&stored.misses.of_pattern, &stored.misses.of_mean]).all(sound) {
            return Err(BadLearner);
        }
        Ok(Self {
            means: Box::new(stored.means.try_into().map_err(|_| BadLearner)?),
            variances: Box::new(stored.variances.try_into().map_err(|_| BadLearner)?),
            days: Box::new(stored.days.try_into().map_err(|_| BadLearner)?),
            open: stored.open,
            misses: stored.misses,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    /// A midnight.
    const START: u64 = 20_000 * DAY_MS;

    /// 300 at night, 1200 in office hours, and made-up noise of up to 100 each way.
    fn office(at: TimeMs) -> u64 {
        let day = (8..18).contains(&(at.0 / HOUR % 24));
        (if day { 1200 } else { 300 }) + noise(at.0) % 200 - 100
    }

    fn noise(seed: u64) -> u64 {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn feed(learner: &mut Learner, from_hour: u64, to_hour: u64, demand: impl Fn(TimeMs) -> u64) {
        for at in (START + from_hour * HOUR..START + to_hour * HOUR).step_by(60_000).map(TimeMs) {
            learner.take(at, CpuMillis(demand(at)));
        }
    }

    #[test]
    fn office_hours_are_learned_within_a_day_and_a_quarter() {
        let mut learner = Learner::default();
        feed(&mut learner, 0, 25, office);
        assert_eq!(learner.pattern(), DailyPattern::default(), "one day alone is no rhythm");
        feed(&mut learner, 25, 34, office);
        let pattern = learner.pattern();
        assert_eq!((pattern.days, pattern.slots.len()), (1, SLOTS));
        let (night, noon) = (pattern.slots[8], pattern.slots[48]);
        assert!(night.mean.abs_diff(300) < 40 && noon.mean.abs_diff(1200) < 40, "{night:?} {noon:?}");
        assert!((40..90).contains(&noon.deviation), "{noon:?}");
    }

    #[test]
    fn load_without_a_rhythm_has_no_pattern() {
        let mut learner = Learner::default();
        // Changes every five hours, which fits no day.
        feed(&mut learner, 0, 24 * 12, |at| 200 + noise(at.0 / (5 * HOUR)) % 1500);
        assert_eq!(learner.pattern(), DailyPattern::default(), "{:?}", learner.explained());
        let mut level = Learner::default();
        feed(&mut level, 0, 24 * 3, |_| 500);
        assert_eq!(level.pattern(), DailyPattern::default());
    }

    #[test]
    fn a_new_rhythm_takes_the_place_of_the_old() {
        let mut learner = Learner::default();
        feed(&mut learner, 0, 24 * 10, office);
        let shifted = |at: TimeMs| office(TimeMs(at.0 + 12 * HOUR));
        feed(&mut learner, 24 * 10, 24 * 12, shifted);
        assert_eq!(learner.pattern(), DailyPattern::default(), "no longer believed, and not yet");
        feed(&mut learner, 24 * 12, 24 * 45, shifted);
        let pattern = learner.pattern();
        assert!(pattern.slots[8].mean > 1000 && pattern.slots[48].mean < 500, "{:?}", pattern.slots[48]);
    }

    #[test]
    fn holes_are_filled_in_and_absence_ages() {
        let mut learner = Learner::default();
        for day in 0..5 {
            // From 9:00 to 10:30 nothing is heard.
            feed(&mut learner, 24 * day, 24 * day + 9, office);
            for at in (START + (24 * day + 10) * HOUR + HOUR / 2..START + 24 * (day + 1) * HOUR).step_by(60_000) {
                learner.take(TimeMs(at), CpuMillis(office(TimeMs(at))));
            }
        }
        let pattern = learner.pattern();
        assert_eq!(pattern.days, 4, "the slot of now is not over");
        assert!(pattern.slots[38].mean.abs_diff(1200) < 60, "{:?}", pattern.slots[38]);
        feed(&mut learner, 24 * 40, 24 * 40 + 1, office);
        assert_eq!(learner.pattern().days, 0, "forgotten after five weeks");
    }

    #[test]
    fn samples_out_of_order_change_nothing() {
        let mut learner = Learner::default();
        feed(&mut learner, 0, 30, office);
        let before = learner.clone();
        learner.take(TimeMs(START), CpuMillis(9_000));
        assert_eq!(learner, before);
    }

    #[test]
    fn it_is_the_same_after_a_restart_and_refuses_what_is_not_one() {
        let mut learner = Learner::default();
        feed(&mut learner, 0, 60, office);
        let kept = serde_json::to_string(&learner).unwrap();
        let mut back: Learner = serde_json::from_str(&kept).unwrap();
        assert_eq!(back, learner);
        feed(&mut back, 60, 70, office);
        feed(&mut learner, 60, 70, office);
        assert_eq!(back.pattern(), learner.pattern());
        let short = kept.replacen("\"days\":[", "\"days\":[1,", 1);
        assert!(serde_json::from_str::<Learner>(&short).unwrap_err().to_string().contains("learned anew"));
    }

    #[test]
    fn it_stays_small() {
        let on_heap = SLOTS * (4 + 4 + 1);
        assert!(size_of::<Learner>() + on_heap <= 1024, "{}", size_of::<Learner>() + on_heap);
    }
}
