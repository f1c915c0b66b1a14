//! How many log lines a handler may print. Pure: takes `now`.
//!
//! A token bucket, stored as the time at which the bucket is full again. Each line moves that time by the cost of one
//! line.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::ids::Monotonic;

/// Lines that the handler of a worker may print at once.
pub(super) const BURST: u32 = 50;
/// Lines per second that it may print after a burst. Far below journald's default for a unit (journald.conf(5),
/// `RateLimitBurst=`), so that journald never drops a record of patou because of the handler.
pub(super) const LINES_PER_SECOND: u32 = 20;
/// Time from the first suppressed line to the report of their number.
pub(super) const REPORT_AFTER: Duration = Duration::from_secs(5);

const LINE_COST: Duration = Duration::from_nanos(1_000_000_000 / LINES_PER_SECOND as u64);

/// What happens to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineVerdict {
    /// It goes to the log.
    Write,
    /// It is suppressed, the first since a report: the next report is due in [`REPORT_AFTER`].
    SuppressFirst,
    /// It is suppressed, and a report is already due.
    Suppress,
}

/// The token bucket of one worker's handler.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RateLimit {
    full_at: Option<Monotonic>,
    suppressed: u64,
}

impl RateLimit {
    /// Decides about a line.
    pub(super) fn check(&mut self, now: Monotonic) -> LineVerdict {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        if full_at.since(now) <= LINE_COST * (BURST - 1) {
            self.full_at = Some(full_at + LINE_COST);
            return LineVerdict::Write;
        }
        self.suppressed += 1;
        if self.suppressed == 1 { LineVerdict::SuppressFirst } else { LineVerdict::Suppress }
    }

    /// The number of lines suppressed since the last call.
    pub(super) fn take_suppressed(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    /// How many of `count` lines at this time are written.
    fn written(limit: &mut RateLimit, ms: u64, count: u32) -> u32 {
        (0..count).filter(|_| limit.check(at(ms)) == LineVerdict::Write).count() as u32
    }

    #[test]
    fn burst_then_steady_rate_and_full_again_after_a_pause() {
        let mut limit = RateLimit::default();
        assert_eq!(written(&mut limit, 1_000, 1_000), BURST);
        assert_eq!(written(&mut limit, 2_000, 1_000), LINES_PER_SECOND);
        assert_eq!(written(&mut limit, 2_049, 1_000), 0);
        assert_eq!(written(&mut limit, 2_050, 1_000), 1);
        // A second in small steps allows as many lines as a second in one step.
        assert_eq!((2_051..=3_050).map(|ms| written(&mut limit, ms, 3)).sum::<u32>(), LINES_PER_SECOND);
        assert_eq!(written(&mut limit, 3_600_000, 1_000), BURST);
    }

    #[test]
    fn no_line_within_the_rate_is_suppressed() {
        let mut limit = RateLimit::default();
        let step = 1_000 / u64::from(LINES_PER_SECOND);
        assert!((0..10_000).all(|n| limit.check(at(n * step)) == LineVerdict::Write));
        assert_eq!(limit.take_suppressed(), 0);
    }

    #[test]
    fn suppressed_lines_are_counted_once_and_the_first_is_marked() {
        let mut limit = RateLimit::default();
        written(&mut limit, 0, BURST);
        assert_eq!([limit.check(at(0)), limit.check(at(0))], [LineVerdict::SuppressFirst, LineVerdict::Suppress]);
        assert_eq!((limit.take_suppressed(), limit.take_suppressed()), (2, 0));
        assert_eq!(limit.check(at(0)), LineVerdict::SuppressFirst);
        // A clock that seems to run backwards does no harm.
        assert_eq!(written(&mut limit, 10_000, 1), 1);
        assert_eq!(written(&mut limit, 9_000, 1), 1);
    }
}
