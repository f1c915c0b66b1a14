//! Durations, sizes and limits as text. Each reads what it writes.

use std::time::Duration;

/// The longest duration accepted: one year as humantime counts it (365.25 days). Every sum of deadlines
/// then stays far from the end of a 64-bit count of nanoseconds.
pub(super) const LONGEST: Duration = Duration::from_secs(31_557_600);

/// Reads humantime's syntax (`50ms`, `1m 30s`, `0s`); a bare `0` is refused, as a number without a unit is.
pub(super) fn duration(text: &str) -> Option<Duration> {
    // humantime adds up with a sum that panics just below u64::MAX seconds. Numbers of at most ten digits
    // in a text this short stay below it, whatever their units.
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

/// The suffixes of sizes, each 1024 times the one before, as in systemd.
const SUFFIXES: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// Reads a size in bytes: digits and at most one of K, M, G, T (1024-based). `None` above 2^64 - 1.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let suffix = SUFFIXES.iter().find(|(c, _)| text.ends_with(*c));
    let (number, shift) = suffix.map_or((text, 0), |&(_, shift)| (&text[..text.len() - 1], shift));
    whole(number)?.checked_mul(1 << shift)
}

/// Writes a size with the largest suffix that loses nothing.
pub(super) fn write_bytes(size: u64) -> String {
    let exact = |&&(_, shift): &&(char, u32)| size != 0 && size.is_multiple_of(1 << shift);
    match SUFFIXES.iter().find(exact) {
        Some((c, shift)) => format!("{}{c}", size >> shift),
        None => size.to_string(),
    }
}

/// Whether `text` is a `MemoryMax=` of systemd.resource-control(5): a size above 0, `N%` or `infinity`.
pub(super) fn is_memory_max(text: &str) -> bool {
    text == "infinity" || bytes(text).is_some_and(|n| n > 0) || percent(text).is_some_and(|p| p > 0.0 && p <= 100.0)
}

/// Whether `text` is a `CPUQuota=`: a percentage above 0, where 100% is one core.
pub(super) fn is_cpu_quota(text: &str) -> bool {
    percent(text).is_some_and(|p| p > 0.0)
}

/// Whether `text` is a `TasksMax=`: a number above 0, `N%` or `infinity`.
pub(super) fn is_tasks_max(text: &str) -> bool {
    text == "infinity" || whole(text).is_some_and(|n| n > 0) || percent(text).is_some_and(|p| p > 0.0 && p <= 100.0)
}

/// Whether `text` is a `LimitNOFILE=` of systemd.exec(5): `N` or `SOFT:HARD`, each a number above 0 or `infinity`.
pub(super) fn is_open_files(text: &str) -> bool {
    open_files(text).is_some()
}

/// Reads it: soft and hard limit, the largest number for `infinity`.
pub(super) fn open_files(text: &str) -> Option<(u64, u64)> {
    let one = |part: &str| match part {
        "infinity" => Some(u64::MAX),
        number => whole(number).filter(|&n| n > 0),
    };
    match text.split_once(':') {
        None => one(text).map(|both| (both, both)),
        Some((soft, hard)) => one(soft).zip(one(hard)).filter(|(soft, hard)| soft <= hard),
    }
}

/// Digits only: `parse` alone would take a sign.
fn whole(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// `20%` or `12.5%`, at most two decimals as systemd allows.
fn percent(text: &str) -> Option<f64> {
    let number = text.strip_suffix('%')?;
    let (units, decimals) = number.split_once('.').unwrap_or((number, "0"));
    (whole(units)? <= u64::from(u32::MAX) && decimals.len() <= 2 && whole(decimals).is_some())
        .then(|| number.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_need_a_unit_and_never_panic() {
        assert_eq!(duration("50ms"), Some(Duration::from_millis(50)));
        assert_eq!(duration("1m 30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        assert_eq!(duration("1year"), Some(LONGEST));
        for bad in ["", "0", "5", "5 minuts", "-1s", "s", "1.s", "18446744073709551615s1000ms", "1h, 2s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_count_in_1024() {
        for (text, size) in [("0", 0), ("1", 1), ("1K", 1 << 10), ("512M", 512 << 20), ("1G", 1 << 30), ("3T", 3 << 40)]
        {
            assert_eq!((bytes(text), write_bytes(size).as_str()), (Some(size), text));
        }
        for bad in ["", "K", "1k", "1MB", "1.5G", "-1", "+1", "99999999999T", "1 G", "é"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn limits_follow_systemd() {
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
        fn written_quantities_read_back(size: u64, nanos in 0..=LONGEST.as_nanos() as u64) {
            prop_assert_eq!(bytes(&write_bytes(size)), Some(size));
            let time = Duration::from_nanos(nanos);
            prop_assert_eq!(duration(&humantime::format_duration(time).to_string()), Some(time));
        }

        #[test]
        fn any_text_is_answered(text in "[0-9a-zA-Z.:% µ-]{0,40}") {
            let _ = (duration(&text), bytes(&text), is_memory_max(&text), is_cpu_quota(&text));
            let _ = (is_tasks_max(&text), is_open_files(&text));
        }
    }
}
