//! Keeps one virtual processor busy for a share of each period.
//!
//! The share is of wall-clock time, not of processor time received: a guest that is given less than
//! it wants does not work longer to make up for it. So what it wants stays the set share, and what
//! it is not given shows on the host as time its vcpu thread waited to run.

use crate::stats::Shared;
use std::hint::black_box;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_millis(100);
/// While nothing is to be burnt: how soon a new share is noticed. Longer, because waking up is what an idle guest costs.
const IDLE_PERIOD: Duration = Duration::from_millis(500);
/// Between two looks at the clock.
const STEPS: u32 = 2_000;

/// The busy part of a period.
fn busy(percent: u32) -> Duration {
    PERIOD * percent.min(100) / 100
}

/// When the next period begins: on the old beat if that is still ahead, else now. A guest that was
/// paused does not make up for periods it missed.
fn next_period(began: Instant, now: Instant) -> Instant {
    let next = began + PERIOD;
    if next < now { now } else { next }
}

pub fn run(shared: &Shared) {
    let mut began = Instant::now();
    loop {
        let percent = shared.cpu_percent.load(Relaxed);
        if percent == 0 {
            thread::sleep(IDLE_PERIOD);
            began = Instant::now();
            continue;
        }
        let until = began + busy(percent);
        while Instant::now() < until {
            let mut x = 1_u64;
            for step in 0..STEPS {
                x = black_box(x.wrapping_mul(3) ^ u64::from(step));
            }
        }
        let now = Instant::now();
        began = next_period(began, now);
        thread::sleep(began - now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busy_part_is_the_set_share_of_a_period() {
        assert_eq!(busy(0), Duration::ZERO);
        assert_eq!(busy(37), Duration::from_millis(37));
        assert_eq!(busy(100), PERIOD);
        assert_eq!(busy(250), PERIOD);
    }

    #[test]
    fn periods_keep_their_beat_and_a_long_pause_is_not_made_up_for() {
        let began = Instant::now();
        assert_eq!(next_period(began, began + Duration::from_millis(40)), began + PERIOD);
        let late = began + Duration::from_secs(30);
        assert_eq!(next_period(began, late), late);
    }
}
