//! The host's clock; the only place that reads it.
//!
//! What the agent reports is measured from its own start by the monotonic clock, so that a step of the host's wall clock
//! (NTP, a person) moves none of its reports. Only the start itself is taken from the wall clock.

use drover_model::TimeMs;
use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// When the agent first looked at a clock, by both clocks.
static START: LazyLock<(Instant, TimeMs)> = LazyLock::new(|| (Instant::now(), since_1970(SystemTime::now())));

pub fn now_ms() -> TimeMs {
    at_instant(*START, Instant::now())
}

/// A recent time of the wall clock, as QEMU stamps its events with, on the clock of [`now_ms`].
pub fn time_ms(at: SystemTime) -> TimeMs {
    on_agent_clock(now_ms(), SystemTime::now(), at)
}

fn at_instant((start, start_ms): (Instant, TimeMs), at: Instant) -> TimeMs {
    TimeMs(start_ms.0.saturating_add(at.saturating_duration_since(start).as_millis() as u64))
}

fn on_agent_clock(now: TimeMs, wall: SystemTime, at: SystemTime) -> TimeMs {
    let ahead = |span: std::time::Duration| span.as_millis() as u64;
    match wall.duration_since(at) {
        Ok(ago) => TimeMs(now.0.saturating_sub(ahead(ago))),
        Err(later) => TimeMs(now.0.saturating_add(ahead(later.duration()))),
    }
}

/// A clock before 1970 counts as 1970.
fn since_1970(at: SystemTime) -> TimeMs {
    TimeMs(at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_step_of_the_wall_clock_moves_no_report() {
        let (start, begun) = (Instant::now(), TimeMs(1_790_000_000_000));
        assert_eq!(at_instant((start, begun), start + Duration::from_secs(5)), TimeMs(begun.0 + 5_000));
        // The wall clock was set back an hour since the agent's start: QEMU stopped the guest 200 ms ago all the same.
        let wall = UNIX_EPOCH + Duration::from_millis(begun.0 - 3_600_000);
        let stopped = on_agent_clock(TimeMs(begun.0 + 5_000), wall, wall - Duration::from_millis(200));
        assert_eq!(stopped, TimeMs(begun.0 + 4_800));
        let stopped = on_agent_clock(TimeMs(begun.0 + 5_000), wall, wall + Duration::from_millis(3));
        assert_eq!(stopped, TimeMs(begun.0 + 5_003));
    }
}
