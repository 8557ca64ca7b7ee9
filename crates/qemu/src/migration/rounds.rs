//! What the rounds of a pre-copy measured, and what follows from it. Pure: time is passed in.
//!
//! The rule for the switch-over: as long as each round leaves clearly less than the one before, it waits for little to be
//! left; once rounds stop shrinking the writable working set is reached, and all that the limits allow is taken. If that
//! does not fit either, and nothing is left to be turned up, more rounds would only repeat the last.

use super::Pace;
use std::time::Duration;

/// Stop-time aimed at while the rounds still shrink.
const DOWNTIME_AIM: Duration = Duration::from_millis(40);
/// A round that leaves more than this share of what the one before left did not shrink.
const SHRINKS_BELOW: f64 = 0.9;
/// So many rounds in a row that do not shrink, and so much time in them, make a migration hopeless.
const HOPELESS_ROUNDS: u32 = 2;
const HOPELESS_AFTER: Duration = Duration::from_millis(800);
/// Added to the dirty rate of a round for the bandwidth of the next: 50 Mbit/s (Clark et al. 2005, section 5.3).
const PACE_STEP: u64 = 50_000_000 / 8;
/// The dirty rate is that of so many first rounds: later ones cover the pages written most only.
const DIRTY_RATE_ROUNDS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Round {
    pub duration: Duration,
    pub sent: u64,
    /// Left when it ended: what the guest wrote meanwhile.
    pub left: u64,
}

impl Round {
    pub fn throughput(&self) -> u64 {
        per_second(self.sent, self.duration)
    }

    fn dirty_rate(&self) -> u64 {
        per_second(self.left, self.duration)
    }
}

fn per_second(bytes: u64, span: Duration) -> u64 {
    if span.is_zero() { 0 } else { (bytes as f64 / span.as_secs_f64()) as u64 }
}

/// Bounded: the first rounds, the last one, and sums.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    first: Vec<Round>,
    last: Option<Round>,
    not_shrinking: u32,
    not_shrinking_for: Duration,
    sent: u64,
    lasted: Duration,
}

impl Rounds {
    /// `undisturbed`: nobody held it back meanwhile, so that its figures say something about guest and link.
    pub fn ended(&mut self, round: Round, undisturbed: bool) {
        let shrank = self.last.is_none_or(|last| (round.left as f64) < last.left as f64 * SHRINKS_BELOW);
        if shrank || !undisturbed {
            (self.not_shrinking, self.not_shrinking_for) = (0, Duration::ZERO);
        } else {
            self.not_shrinking += 1;
            self.not_shrinking_for += round.duration;
        }
        self.last = Some(round);
        if undisturbed {
            self.sent += round.sent;
            self.lasted += round.duration;
            if self.first.len() < DIRTY_RATE_ROUNDS {
                self.first.push(round);
            }
        }
    }

    /// How long the guest may stand still, as far as is known now.
    pub fn downtime_allowed(&self, downtime_max: Duration) -> Duration {
        if self.not_shrinking > 0 { downtime_max } else { downtime_max.min(DOWNTIME_AIM) }
    }

    /// Whether what is left after the round that runs now, if it takes `duration`, may fit into the downtime.
    pub fn next_may_fit(&self, duration: Duration, downtime_max: Duration) -> bool {
        let (Some(last), throughput) = (self.last, self.throughput()) else { return true };
        let left = (last.dirty_rate() as f64 * duration.as_secs_f64()).min(last.left as f64);
        left <= throughput as f64 * downtime_max.as_secs_f64()
    }

    /// Further rounds at the same bandwidth and the same throttling would leave as much as the last ones.
    pub fn is_hopeless(&self, downtime_max: Duration) -> bool {
        let Some(last) = self.last else { return false };
        self.not_shrinking >= HOPELESS_ROUNDS
            && self.not_shrinking_for >= HOPELESS_AFTER
            && last.left as f64 > self.throughput() as f64 * downtime_max.as_secs_f64()
    }

    /// Forgets that rounds did not shrink: something was turned up.
    pub fn retry_precopy(&mut self) {
        (self.not_shrinking, self.not_shrinking_for) = (0, Duration::ZERO);
    }

    /// Bytes per second for the round that runs now.
    pub fn bandwidth(&self, pace: Pace) -> u64 {
        let limit = pace.limit();
        if pace.min == 0 {
            return limit;
        }
        match self.last {
            None => pace.min.min(limit),
            Some(last) => last.dirty_rate().saturating_add(PACE_STEP).max(pace.min).min(limit),
        }
    }

    /// Bytes per second on the wire, of the rounds that ended.
    pub fn throughput(&self) -> u64 {
        per_second(self.sent, self.lasted)
    }

    /// Bytes per second that the guest dirtied in the first rounds.
    pub fn dirty_rate(&self) -> u64 {
        let (left, lasted) =
            self.first.iter().fold((0, Duration::ZERO), |(left, lasted), r| (left + r.left, lasted + r.duration));
        per_second(left, lasted)
    }

    /// What the last round left.
    pub fn writable_working_set(&self) -> u64 {
        self.last.map_or(0, |last| last.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;
    const MAX: Duration = Duration::from_millis(300);

    /// `(milliseconds, sent, left)` in megabytes.
    fn rounds(all: &[(u64, u64, u64)]) -> Rounds {
        let mut rounds = Rounds::default();
        for (millis, sent, left) in all {
            let round = Round { duration: Duration::from_millis(*millis), sent: sent * MB, left: left * MB };
            rounds.ended(round, true);
        }
        rounds
    }

    #[test]
    fn little_is_aimed_at_while_rounds_shrink_and_all_that_is_allowed_afterwards() {
        assert_eq!(rounds(&[(8_000, 800, 80), (800, 80, 9)]).downtime_allowed(MAX), DOWNTIME_AIM);
        assert_eq!(rounds(&[(8_000, 800, 80), (800, 80, 10), (100, 10, 10)]).downtime_allowed(MAX), MAX);
        let less = Duration::from_millis(10);
        assert_eq!(rounds(&[(8_000, 800, 80)]).downtime_allowed(less), less);
    }

    #[test]
    fn a_guest_that_rewrites_as_much_as_the_link_carries_is_hopeless_after_two_such_rounds() {
        let [first, shrunk, same] = [(5_000, 60, 50), (4_000, 50, 40), (4_000, 48, 42)];
        assert!(!rounds(&[first, shrunk, same]).is_hopeless(MAX));
        assert!(rounds(&[first, shrunk, same, same]).is_hopeless(MAX));
        // What remains is carried within the downtime allowed.
        assert!(!rounds(&[first, shrunk, same, same]).is_hopeless(Duration::from_secs(4)));
        // Two rounds of a moment say nothing.
        assert!(!rounds(&[(50, 1, 1), (50, 1, 1), (50, 1, 1)]).is_hopeless(Duration::from_millis(1)));
    }

    #[test]
    fn rounds_that_somebody_held_back_are_no_evidence() {
        let mut held = rounds(&[(5_000, 60, 50), (4_000, 48, 48)]);
        held.ended(Round { duration: Duration::from_secs(60), sent: MB, left: 60 * MB }, false);
        assert!(!held.is_hopeless(MAX));
        assert_eq!(held.throughput(), 12 * MB);
    }

    #[test]
    fn bandwidth_follows_the_dirty_rate_of_the_round_before() {
        let pace = Pace { min: 10 * MB, max: 100 * MB, paused: false };
        assert_eq!(rounds(&[]).bandwidth(pace), 10 * MB);
        assert_eq!(rounds(&[(1_000, 10, 20)]).bandwidth(pace), 20 * MB + PACE_STEP);
        assert_eq!(rounds(&[(1_000, 10, 200)]).bandwidth(pace), 100 * MB);
        assert_eq!(rounds(&[(1_000, 10, 0)]).bandwidth(pace), 10 * MB);
        assert_eq!(rounds(&[]).bandwidth(Pace { min: 0, max: 7, paused: false }), 10, "7 would be no limit to QEMU");
        assert_eq!(rounds(&[]).bandwidth(Pace { min: 5 * MB, max: 0, paused: false }), 5 * MB);
    }

    #[test]
    fn what_will_be_left_is_foreseen_from_the_last_round() {
        let second = Duration::from_secs(1);
        assert!(rounds(&[]).next_may_fit(second, MAX));
        // 10 MB/s on a link of 100 MB/s.
        assert!(rounds(&[(8_000, 800, 80)]).next_may_fit(second, MAX));
        assert!(!rounds(&[(8_000, 800, 800)]).next_may_fit(second, MAX));
    }
}
