//! How values read for people: sizes, times, words. Never used for `-o json` and `-o yaml`.

use drover_api::v1::{HostView, ProgressView};
use drover_model::Bytes;
use jiff::Timestamp;
use serde::Serialize;

/// For what is not known or not there.
pub const NOTHING: &str = "-";

pub fn or_nothing(value: Option<impl ToString>) -> String {
    value.map_or(NOTHING.to_owned(), |value| value.to_string())
}

/// The word an enum has on the wire.
pub fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => NOTHING.to_owned(),
    }
}

fn timestamp(at_ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(at_ms).ok()?).ok()
}

/// RFC 3339, UTC, to the second.
pub fn time(at_ms: u64) -> String {
    timestamp(at_ms).map_or(NOTHING.to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Time of day, UTC.
pub fn clock(at_ms: u64) -> String {
    timestamp(at_ms).map_or(NOTHING.to_owned(), |at| at.strftime("%H:%M:%S").to_string())
}

/// How long ago, in its largest unit; the clocks of two machines may disagree by a little.
pub fn ago(now_ms: u64, at_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(at_ms) / 1000;
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

pub fn millis(ms: u64) -> String {
    drover_model::Millis(ms).to_string()
}

pub fn bytes(count: u64) -> String {
    Bytes(count).to_string()
}

pub fn cores(millis: u64) -> String {
    format!("{:.2}", millis as f64 / 1000.0)
}

/// A share of a whole.
pub fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// Millionths of the currency unit.
pub fn money(micro: i64) -> String {
    drover_model::MicroMoney(micro).to_string()
}

/// One word: maintenance matters more than that the host is up.
pub fn host_state(host: &HostView) -> String {
    let state = word(&host.state);
    match (host.maintenance, host.power) {
        (true, _) if state == "up" => "maintenance".to_owned(),
        (_, drover_model::intent::PowerIntent::Off) if matches!(state.as_str(), "down" | "asleep" | "unknown") => {
            "off".to_owned()
        }
        _ => state,
    }
}

/// At most `max` characters, the last one a mark where something is missing.
pub fn shortened(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// How much of the guest's memory has been sent, 0 to 1. Falls back when the guest writes faster than the link.
pub fn migration_share(progress: &ProgressView) -> f64 {
    match progress.total_bytes {
        0 => 0.0,
        total => 1.0 - progress.remaining_bytes.min(total) as f64 / total as f64,
    }
}

pub fn progress(progress: &ProgressView) -> String {
    format!(
        "{} of {}, round {}, {}/s, guest writes {}/s",
        bytes(progress.total_bytes.saturating_sub(progress.remaining_bytes)),
        bytes(progress.total_bytes),
        progress.rounds,
        bytes(progress.throughput_bytes_s),
        bytes(progress.dirty_bytes_s),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_rfc_3339_and_as_age() {
        assert_eq!(time(1_795_294_064_999), "2026-11-21T20:47:44Z");
        assert_eq!(clock(1_795_294_064_999), "20:47:44");
        let ages = [5, 65, 3700, 200_000].map(|s| ago(1_000_000_000, 1_000_000_000 - s * 1000));
        assert_eq!(ages, ["5 s ago", "1 min ago", "1 h ago", "2 days ago"]);
        assert_eq!(ago(5, 9), "0 s ago");
    }

    #[test]
    fn long_names_are_cut_with_a_mark() {
        assert_eq!(shortened("web-1", 5), "web-1");
        assert_eq!(shortened("web-10", 5), "web-…");
    }
}
