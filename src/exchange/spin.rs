//! How long the dispatcher spins on a slot for an answer before it sleeps.
//!
//! A wake-up costs tens of microseconds, an answer of a worker that is awake only a few. But spinning takes the core
//! from a worker that has no other one, and is useless where an answer takes longer than a wake-up.

use std::time::Duration;

/// While answers are too slow for spinning, one wait in so many spins nevertheless: answers may have become faster.
const TRIAL_INTERVAL: u32 = 64;

/// The answer times of a pool's workers, and the spinning that they justify.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpinBudget {
    /// Moving average of the answer times over eight answers, in nanoseconds.
    average: u64,
    /// Waits since the start for which the average was too long to spin.
    slow_waits: u32,
}

impl Default for SpinBudget {
    fn default() -> Self {
        Self { average: Self::MAX.as_nanos() as u64 / 4, slow_waits: 0 }
    }
}

impl SpinBudget {
    /// The longest time to spin.
    pub(crate) const MAX: Duration = Duration::from_micros(50);

    /// How long to spin for the next answer: twice the average, or not at all. `shares_core`: the worker may need the
    /// core of this thread.
    pub(crate) fn next(&mut self, shares_core: bool) -> Duration {
        if shares_core {
            return Duration::ZERO;
        }
        let budget = Duration::from_nanos(self.average * 2);
        if budget <= Self::MAX {
            return budget;
        }
        self.slow_waits += 1;
        if self.slow_waits.is_multiple_of(TRIAL_INTERVAL) { Self::MAX } else { Duration::ZERO }
    }

    /// Records that spinning ended after this time with an answer, or (`None`) without one.
    pub(crate) fn record(&mut self, took: Option<Duration>) {
        let took = took.unwrap_or(Self::MAX * 4).min(Self::MAX * 4).as_nanos() as u64;
        self.average = (self.average * 7 + took) / 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_answers_stop_the_spinning_until_a_trial_finds_fast_ones() {
        let mut budget = SpinBudget::default();
        assert_eq!(budget.next(true), Duration::ZERO);
        assert!(budget.next(false) > Duration::ZERO);
        for _ in 0..20 {
            budget.record(Some(Duration::from_micros(3)));
        }
        let quick = budget.next(false);
        assert!((Duration::from_micros(6)..Duration::from_micros(10)).contains(&quick), "{quick:?}");
        for _ in 0..3 {
            budget.record(None);
        }
        assert_eq!(budget.next(false), Duration::ZERO, "after three waits without an answer");
        let tried = (0..TRIAL_INTERVAL * 4).filter(|_| budget.next(false) > Duration::ZERO).count();
        assert_eq!(tried, 4);
        for _ in 0..20 {
            budget.record(Some(Duration::from_micros(3)));
        }
        assert!(budget.next(false) > Duration::ZERO, "answers have become faster");
    }
}
