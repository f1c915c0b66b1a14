//! When a co-process that died is restarted. Pure.
//!
//! At once the first time, so that a single death costs little. After a growing delay if the new process dies within a
//! second as well, so that a program that cannot run does not keep a processor busy.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// A process that runs for a shorter time counts as one that cannot run.
const SHORT_RUN: Duration = Duration::from_secs(1);
/// The first delay; it doubles with each further short run.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(5);

/// The recent failures.
#[derive(Debug, Default)]
pub(super) struct RestartBackoff {
    short_runs: u32,
    not_before: Option<Instant>,
}

impl RestartBackoff {
    /// Records the failure of a process that was started at `started`.
    pub(super) fn record_failure(&mut self, now: Instant, started: Instant) {
        self.short_runs = if now - started < SHORT_RUN { self.short_runs + 1 } else { 0 };
        let delay = match self.short_runs {
            0 | 1 => Duration::ZERO,
            runs => FIRST_DELAY.saturating_mul(1 << (runs - 2).min(16)).min(MAX_DELAY),
        };
        self.not_before = Some(now + delay);
    }

    /// The earliest time of the next start.
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_grows_while_runs_are_short() {
        let mut backoff = RestartBackoff::default();
        let start = Instant::now();
        let mut delay = |now, started| {
            backoff.record_failure(now, started);
            (backoff.not_before().unwrap() - now).as_millis()
        };
        let expected = [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000];
        assert_eq!(expected.map(|_| delay(start, start)), expected);
        for _ in 0..100 {
            assert_eq!(delay(start, start), 5000);
        }
        assert_eq!(delay(start + SHORT_RUN, start), 0);
        assert_eq!(delay(start, start), 0);
        assert_eq!(delay(start, start), 100);
    }
}
