//! Values as they are typed: `30s`, `512M`, `key=value`.

use super::Failure;
use drover_model::{BadName, TenantName};
use std::time::Duration;

/// A tenant's name, where one is given.
pub fn tenant(text: Option<&str>) -> Result<Option<TenantName>, Failure> {
    text.map(|text| text.parse().map_err(|error: BadName| Failure::Usage(error.to_string()))).transpose()
}

/// `90`, `90s`, `15m`, `12h` or `7d`; a bare number is seconds.
pub fn span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time span: write e.g. 90s, 15m, 12h or 7d");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit_s = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let seconds = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit_s)).ok_or_else(wrong)?;
    if seconds == 0 {
        Err(format!("{text:?} is no time at all: write at least 1s"))
    } else {
        Ok(Duration::from_secs(seconds))
    }
}

/// `512M`, `512MiB`, `2G`, `2GiB`; a bare number is MiB. In MiB.
pub fn memory_mib(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not an amount of memory: write e.g. 512M or 2G");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit_mib = match &text[digits.len()..] {
        "" | "M" | "MiB" => 1,
        "G" | "GiB" => 1024,
        "T" | "TiB" => 1 << 20,
        _ => return Err(wrong()),
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit_mib)).ok_or_else(wrong)
}

/// `64k`, `10M`, `1G`, in powers of 1024; a bare number is bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not an amount of data: write e.g. 64k or 10M");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(wrong)
}

/// `0.5`, `2`, `1.25`: in thousandths of a core.
pub fn cores_millis(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no number of cores: write e.g. 0.5 or 2");
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let figures = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !figures(whole) || !figures(part) || part.len() > 3 {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let part: u64 = format!("{part:0<3}").parse().map_err(|_| wrong())?;
    whole.checked_mul(1000).and_then(|millis| millis.checked_add(part)).ok_or_else(wrong)
}

/// `key=value`; the value may hold further equals signs.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_read_with_their_units_and_nothing_else() {
        assert_eq!(span("90"), Ok(Duration::from_secs(90)));
        assert_eq!(span("12h"), Ok(Duration::from_secs(43_200)));
        assert_eq!(memory_mib("96"), Ok(96));
        assert_eq!(memory_mib("2GiB"), Ok(2048));
        assert_eq!((bytes("7"), bytes("10M"), bytes("64k")), (Ok(7), Ok(10 << 20), Ok(64 << 10)));
        assert!(bytes("10Mbit").is_err() && bytes("99999999999G").is_err() && bytes("").is_err());
        for bad in ["", "s", "1.5h", "-1", "5 m", "9999999999999999999d", "0", "5é"] {
            assert!(span(bad).is_err(), "{bad}");
        }
        for bad in ["", "G", "1k", "1.5G", "99999999999999999999"] {
            assert!(memory_mib(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cores_are_counted_in_thousandths() {
        let read = ["0.5", "2", "1.25", "0.001"].map(|text| cores_millis(text).unwrap());
        assert_eq!(read, [500, 2000, 1250, 1]);
        for bad in ["", ".5", "1.", "-1", "1.0001", "1e3", "99999999999999999999"] {
            assert!(cores_millis(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_first_equals_sign_divides() {
        assert_eq!(key_value("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(key_value("=b").is_err());
        assert!(key_value("a").is_err());
    }
}
