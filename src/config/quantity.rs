//! Durations, sizes, limits and permissions as text. What is formatted here is parsed to the same value.

#![forbid(unsafe_code)]

use std::time::Duration;

use serde::Serializer;

/// The longest valid duration: one year as humantime counts it (365.25 days). Sums of durations then stay far below
/// 2^64 nanoseconds.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(31_557_600);

/// Parses humantime's syntax (`50ms`, `1m 30s`, `0s`). Every number needs a unit, also `0`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    // humantime adds without overflow checks and panics near u64::MAX seconds. Numbers of at most ten digits in a text
    // this short stay below that, whatever their units.
    let mut digits = 0;
    for c in text.chars() {
        digits = match c {
            '0'..='9' => digits + 1,
            c if c.is_alphabetic() => 0,
            _ => digits,
        };
        if digits > 10 {
            return None;
        }
    }
    let has_unit = text.contains(char::is_alphabetic);
    (text.len() <= 64 && has_unit).then(|| humantime::parse_duration(text).ok()).flatten()
}

/// The suffixes of sizes, factors of 1024 as in systemd, and their shifts.
const SUFFIXES: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// Parses a size in bytes: digits and at most one suffix K, M, G or T (1024-based). `None` above 2^64 - 1.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let suffix = SUFFIXES.iter().find(|(c, _)| text.ends_with(*c));
    let (number, shift) = suffix.map_or((text, 0), |&(_, shift)| (&text[..text.len() - 1], shift));
    parse_digits(number)?.checked_mul(1 << shift)
}

/// A size with the largest suffix that divides it.
fn format_bytes(size: u64) -> String {
    let exact = |&&(_, shift): &&(char, u32)| size != 0 && size.is_multiple_of(1 << shift);
    match SUFFIXES.iter().find(exact) {
        Some((c, shift)) => format!("{}{c}", size >> shift),
        None => size.to_string(),
    }
}

/// Whether `text` is a `MemoryMax=` of systemd.resource-control(5): a size above 0, `N%` or `infinity`.
pub(super) fn is_memory_max(text: &str) -> bool {
    text == "infinity"
        || parse_bytes(text).is_some_and(|n| n > 0)
        || parse_percent(text).is_some_and(|p| p > 0.0 && p <= 100.0)
}

/// Whether `text` is a `CPUQuota=`: a percentage above 0, where 100% is one core.
pub(super) fn is_cpu_quota(text: &str) -> bool {
    parse_percent(text).is_some_and(|p| p > 0.0)
}

/// Whether `text` is a `TasksMax=`: a number above 0, `N%` or `infinity`.
pub(super) fn is_tasks_max(text: &str) -> bool {
    text == "infinity"
        || parse_digits(text).is_some_and(|n| n > 0)
        || parse_percent(text).is_some_and(|p| p > 0.0 && p <= 100.0)
}

/// Whether `text` is a `LimitNOFILE=` of systemd.exec(5): `N` or `SOFT:HARD`, each a number above 0 or `infinity`.
pub(super) fn is_open_files(text: &str) -> bool {
    parse_open_files(text).is_some()
}

/// Parses a `LimitNOFILE=`: soft and hard limit, `u64::MAX` for `infinity`.
pub(super) fn parse_open_files(text: &str) -> Option<(u64, u64)> {
    let one = |part: &str| match part {
        "infinity" => Some(u64::MAX),
        number => parse_digits(number).filter(|&n| n > 0),
    };
    match text.split_once(':') {
        None => one(text).map(|both| (both, both)),
        Some((soft, hard)) => one(soft).zip(one(hard)).filter(|(soft, hard)| soft <= hard),
    }
}

/// Digits only: `str::parse` would accept a sign.
fn parse_digits(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Parses `20%` or `12.5%`; systemd allows at most two decimals.
fn parse_percent(text: &str) -> Option<f64> {
    let number = text.strip_suffix('%')?;
    let (units, decimals) = number.split_once('.').unwrap_or((number, "0"));
    (parse_digits(units)? <= u64::from(u32::MAX) && decimals.len() <= 2 && parse_digits(decimals).is_some())
        .then(|| number.parse().ok())
        .flatten()
}

/// Permissions in octal: `0660`.
pub(super) fn octal(mode: u32) -> String {
    format!("{mode:04o}")
}

/// Serializes a duration as [`parse_duration`] reads it.
pub(super) fn serialize_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// Serializes a size as [`parse_bytes`] reads it.
pub(super) fn serialize_bytes<S: Serializer>(size: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_bytes(*size))
}

/// Serializes permissions in octal: a decimal number would be rejected.
pub(super) fn serialize_mode<S: Serializer>(mode: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&octal(*mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_need_a_unit_and_do_not_overflow() {
        assert_eq!(parse_duration("50ms"), Some(Duration::from_millis(50)));
        assert_eq!(parse_duration("1m 30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("0s"), Some(Duration::ZERO));
        assert_eq!(parse_duration("1year"), Some(DURATION_MAX));
        for bad in ["", "0", "5", "5 minuts", "-1s", "s", "1.s", "18446744073709551615s1000ms", "1h, 2s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_are_multiples_of_1024() {
        for (text, size) in [("0", 0), ("1", 1), ("1K", 1 << 10), ("512M", 512 << 20), ("1G", 1 << 30), ("3T", 3 << 40)]
        {
            assert_eq!((parse_bytes(text), format_bytes(size).as_str()), (Some(size), text));
        }
        for bad in ["", "K", "1k", "1MB", "1.5G", "-1", "+1", "99999999999T", "1 G", "é"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn limits_have_the_syntax_of_systemd() {
        type Case = (fn(&str) -> bool, &'static [&'static str], &'static [&'static str]);
        let table: [Case; 4] = [
            (is_memory_max, &["512M", "50%", "infinity", "1"], &["", "0", "101%", "0%", "much", "512MB"]),
            (is_cpu_quota, &["20%", "250%", "12.5%"], &["", "20", "0%", "%", "1.234%", "1e3%", "infinity"]),
            (is_tasks_max, &["64", "10%", "infinity"], &["", "0", "-1", "64M"]),
            (is_open_files, &["1024", "1024:4096", "1024:infinity"], &["", "0", "4096:1024", "1024:", "a:b", "1:2:3"]),
        ];
        for (accepts, good, bad) in table {
            good.iter().for_each(|text| assert!(accepts(text), "{text}"));
            bad.iter().for_each(|text| assert!(!accepts(text), "{text}"));
        }
    }

    proptest! {
        #[test]
        fn formatted_quantities_parse_to_the_same_value(size: u64, nanos in 0..=DURATION_MAX.as_nanos() as u64) {
            prop_assert_eq!(parse_bytes(&format_bytes(size)), Some(size));
            let time = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&humantime::format_duration(time).to_string()), Some(time));
        }

        #[test]
        fn no_text_causes_a_panic(text in "[0-9a-zA-Z.:% µ-]{0,40}") {
            let _ = (parse_duration(&text), parse_bytes(&text), is_memory_max(&text), is_cpu_quota(&text));
            let _ = (is_tasks_max(&text), is_open_files(&text));
        }
    }
}
