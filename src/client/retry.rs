//! When to retry: a time budget, growing delays with jitter, and `Retry-After`.

use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::RETRY_AFTER;

/// The first delay; each following one is twice as long, up to [`DELAY_MAX`].
const DELAY_FIRST: Duration = Duration::from_millis(10);
const DELAY_MAX: Duration = Duration::from_secs(1);

/// The time in which one call may start attempts.
pub(super) struct RetryBudget {
    ends: Option<Instant>,
    attempts: u32,
}

impl RetryBudget {
    /// A budget of `retry_for` from `now`; zero allows one attempt.
    pub(super) fn new(retry_for: Duration, now: Instant) -> Self {
        // A budget that overflows the clock never ends.
        Self { ends: now.checked_add(retry_for), attempts: 1 }
    }

    /// The number of the current attempt, from 1.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Counts the next attempt and returns the delay before it; `None` when the budget is used up.
    ///
    /// The delay is at least `retry_after` and never exceeds the rest of the budget, so that the last attempt starts at
    /// its end. `jitter` is a random number: clients that were refused together should not retry together.
    pub(super) fn next_delay(&mut self, retry_after: Option<Duration>, now: Instant, jitter: u32) -> Option<Duration> {
        let left = self.ends.map_or(Duration::MAX, |ends| ends.saturating_duration_since(now));
        if left.is_zero() {
            return None;
        }
        let full = DELAY_MAX.min(DELAY_FIRST * 2u32.saturating_pow(self.attempts - 1).min(1000));
        let delay = full.mul_f64(0.5 + 0.5 * f64::from(jitter) / f64::from(u32::MAX));
        self.attempts = self.attempts.saturating_add(1);
        Some(delay.max(retry_after.unwrap_or_default()).min(left))
    }
}

/// The delay in a `Retry-After` of seconds (RFC 9110, 10.2.3). A date is ignored: it depends on two clocks, and patou
/// never sends it.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_stay_within_the_budget() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut budget = RetryBudget::new(ms(2000), start);
        assert_eq!(budget.next_delay(None, start, 0), Some(ms(5)));
        assert_eq!(budget.next_delay(None, start, u32::MAX), Some(ms(20)));
        for _ in 0..20 {
            budget.next_delay(None, start, 0).unwrap();
        }
        assert_eq!(budget.attempts(), 23);
        assert_eq!(budget.next_delay(None, start, u32::MAX), Some(DELAY_MAX));
        assert_eq!(budget.next_delay(Some(ms(1500)), start, 0), Some(ms(1500)));
        assert_eq!(budget.next_delay(Some(ms(1500)), start + ms(1000), 0), Some(ms(1000)));
        assert_eq!(budget.next_delay(None, start + ms(2000), 0), None);
        assert_eq!(RetryBudget::new(Duration::ZERO, start).next_delay(None, start, 0), None);
        assert_eq!(RetryBudget::new(Duration::MAX, start).next_delay(Some(ms(7)), start, 0), Some(ms(7)));
    }

    #[test]
    fn retry_after_is_a_number_of_seconds() {
        let read = |text| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, http::HeaderValue::from_static(text))]));
        assert_eq!(read("3"), Some(Duration::from_secs(3)));
        assert_eq!(read("0"), Some(Duration::ZERO));
        assert_eq!(read("99999999999999999999"), Some(Duration::from_secs(u64::MAX)));
        assert_eq!((read("-1"), read("+1"), read(""), read("Fri, 31 Dec 1999 23:59:59 GMT")), (None, None, None, None));
    }
}
