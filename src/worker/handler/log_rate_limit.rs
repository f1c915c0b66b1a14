//! How much of the log a handler may fill. Pure: takes `now`, never asks for it.
//!
//! A token bucket, kept as the time at which it is full again: empty buckets are far from it, and each line
//! moves it by what a line costs.

use std::time::Duration;

use crate::ids::Monotonic;

/// Lines that a worker's handler may print at once.
pub const BURST: u32 = 50;
/// Lines per second that it may go on printing. Far below what journald allows a unit of its own accord
/// (journald.conf(5), `RateLimitBurst=`), so that it is never journald that has to choose.
pub const RATE: u32 = 20;
/// How long after the first line that was left out it is said how many were.
pub const REPORT: Duration = Duration::from_secs(5);

const COST: Duration = Duration::from_nanos(1_000_000_000 / RATE as u64);

/// What is to become of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the log.
    Say,
    /// It is left out, the first since a report: the next is due [`REPORT`] from now.
    First,
    /// It is left out like the one before.
    Drop,
}

/// The lines of one worker's handler.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateLimit {
    full_at: Option<Monotonic>,
    suppressed: u64,
}

impl RateLimit {
    /// A line has come.
    pub fn admit(&mut self, now: Monotonic) -> Verdict {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        if full_at.since(now) <= COST * (BURST - 1) {
            self.full_at = Some(full_at + COST);
            return Verdict::Say;
        }
        self.suppressed += 1;
        if self.suppressed == 1 { Verdict::First } else { Verdict::Drop }
    }

    /// How many lines have been left out since this was last asked.
    pub fn report(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    /// How many of `count` lines at this time are said.
    fn said(quota: &mut RateLimit, ms: u64, count: u32) -> u32 {
        (0..count).filter(|_| quota.admit(at(ms)) == Verdict::Say).count() as u32
    }

    #[test]
    fn a_burst_then_so_many_per_second_and_full_again_after_a_rest() {
        let mut quota = RateLimit::default();
        assert_eq!(said(&mut quota, 1_000, 1_000), BURST);
        assert_eq!(said(&mut quota, 2_000, 1_000), RATE);
        assert_eq!(said(&mut quota, 2_049, 1_000), 0);
        assert_eq!(said(&mut quota, 2_050, 1_000), 1);
        // A second in pieces gives as much as a second at once.
        assert_eq!((2_051..=3_050).map(|ms| said(&mut quota, ms, 3)).sum::<u32>(), RATE);
        assert_eq!(said(&mut quota, 3_600_000, 1_000), BURST);
    }

    #[test]
    fn nothing_is_left_out_of_what_keeps_within_the_rate() {
        let mut quota = RateLimit::default();
        let step = 1_000 / u64::from(RATE);
        assert!((0..10_000).all(|n| quota.admit(at(n * step)) == Verdict::Say));
        assert_eq!(quota.report(), 0);
    }

    #[test]
    fn what_is_left_out_is_counted_once_and_its_first_line_known() {
        let mut quota = RateLimit::default();
        said(&mut quota, 0, BURST);
        assert_eq!([quota.admit(at(0)), quota.admit(at(0))], [Verdict::First, Verdict::Drop]);
        assert_eq!((quota.report(), quota.report()), (2, 0));
        assert_eq!(quota.admit(at(0)), Verdict::First);
        // A clock that seems to go back does no harm.
        assert_eq!(said(&mut quota, 10_000, 1), 1);
        assert_eq!(said(&mut quota, 9_000, 1), 1);
    }
}
