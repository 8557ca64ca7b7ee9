//! The host's clock; the only place that reads it.

use drover_model::TimeMs;
use std::time::{SystemTime, UNIX_EPOCH};

pub fn now_ms() -> TimeMs {
    time_ms(SystemTime::now())
}

/// A clock before 1970 counts as 1970.
pub fn time_ms(at: SystemTime) -> TimeMs {
    TimeMs(at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
}
