//! How values are written, and read back.

use drover_model::{Bytes, CpuMillis, Millis, TimeMs};

/// Larger ones can't be meant, and sums of them stay far from overflow.
const CORES_MAX: f64 = 1e6;
const SECONDS_MAX: f64 = 1e11;
const BYTES_MAX: f64 = (1_u64 << 54) as f64;

pub(super) const CORES: &str = "cores, e.g. 4 or 0.5";
pub(super) const SIZE: &str = "a size in MiB, or with its unit, e.g. 8192, 512K, 8G or 123B";
pub(super) const SECONDS: &str = "seconds, e.g. 30 or 0.5";
pub(super) const TIME: &str = "a time as 2026-11-21T20:47:44Z";

fn amount(text: &str, most: f64) -> Option<f64> {
    text.parse().ok().filter(|amount| (0.0..=most).contains(amount))
}

/// To the thousandth.
pub(super) fn cores(text: &str) -> Option<CpuMillis> {
    amount(text, CORES_MAX).map(|cores| CpuMillis((cores * 1000.0).round() as u64))
}

pub(super) fn seconds(text: &str) -> Option<Millis> {
    amount(text, SECONDS_MAX).map(|seconds| Millis((seconds * 1000.0).round() as u64))
}

pub(super) fn size(text: &str) -> Option<Bytes> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let bytes = match unit {
        "B" => 1.0,
        "K" => f64::from(1 << 10),
        "" | "M" => f64::from(1 << 20),
        "G" => f64::from(1 << 30),
        "T" => (1_u64 << 40) as f64,
        _ => return None,
    };
    let bytes = amount(&text[..text.len() - unit.len()], BYTES_MAX)? * bytes;
    (bytes <= BYTES_MAX).then(|| Bytes(bytes.round() as u64))
}

fn thousandths(count: u64) -> String {
    let text = format!("{}.{:03}", count / 1000, count % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub(super) fn of_cores(cores: CpuMillis) -> String {
    thousandths(cores.0)
}

pub(super) fn of_seconds(span: Millis) -> String {
    thousandths(span.0)
}

pub(super) fn of_size(size: Bytes) -> String {
    if size.0.is_multiple_of(1 << 20) { (size.0 >> 20).to_string() } else { format!("{}B", size.0) }
}

/// RFC 3339 in UTC, with milliseconds where there are some.
pub(super) fn of_time(at: TimeMs) -> String {
    let (days, ms) = ((at.0 / 86_400_000) as i64, at.0 % 86_400_000);
    let (year, month, day) = civil_of_days(days);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    let fraction = if ms % 1000 == 0 { String::new() } else { format!(".{:03}", ms % 1000) };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// What [`of_time`] writes; from 1970 to 9999.
pub(super) fn time(text: &str) -> Option<TimeMs> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let number = |text: &str, width: usize, most: u64| {
        let digits = text.len() == width && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten().filter(|number| *number <= most)
    };
    let mut date = date.splitn(3, '-');
    let year = number(date.next()?, 4, 9999)? as i64;
    let (month, day) = (number(date.next()?, 2, 12)?, number(date.next()?, 2, 31)?);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "000"));
    let mut clock = clock.splitn(3, ':');
    let (hour, minute) = (number(clock.next()?, 2, 23)?, number(clock.next()?, 2, 59)?);
    let (second, ms) = (number(clock.next()?, 2, 59)?, number(fraction, 3, 999)?);
    let days = days_of_civil(year, month as i64, day as i64);
    // Days that a month does not have come out as another date.
    let real = civil_of_days(days) == (year, month as i64, day as i64);
    (real && days >= 0).then(|| TimeMs(days as u64 * 86_400_000 + ((hour * 60 + minute) * 60 + second) * 1000 + ms))
}

/// Year, month and day of so many days after 1970-01-01, which is at least 0. Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`.
fn civil_of_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

/// The other way; `days_from_civil`.
fn days_of_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, yoe) = (year / 400, year % 400);
    let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}
