//! How long to watch a slot for an answer before going to sleep over it.
//!
//! A wake-up costs tens of microseconds, an answer from a worker that is awake a few. But watching is in the worker's way
//! where it has no other core to run on, and in vain where the answer takes longer than a wake-up would.

use std::time::Duration;

/// The longest watch.
pub const LONGEST: Duration = Duration::from_micros(50);

/// One of so many waits is watched although the last ones were in vain: answers may have become faster.
const TRIAL: u32 = 64;

/// What is known of the answers of a pool.
#[derive(Clone, Copy, Debug)]
pub struct SpinBudget {
    /// How long they take, in nanoseconds: a moving average over eight.
    typical: u64,
    in_vain: u32,
}

impl Default for SpinBudget {
    fn default() -> Self {
        Self { typical: LONGEST.as_nanos() as u64 / 4, in_vain: 0 }
    }
}

impl SpinBudget {
    /// How long to watch for the next one: twice as long as they take, or not at all. `shared`: whether the worker may need
    /// the core that this side would watch on.
    pub fn watch(&mut self, shared: bool) -> Duration {
        if shared {
            return Duration::ZERO;
        }
        let watch = Duration::from_nanos(self.typical * 2);
        if watch <= LONGEST {
            return watch;
        }
        self.in_vain += 1;
        if self.in_vain.is_multiple_of(TRIAL) { LONGEST } else { Duration::ZERO }
    }

    /// A watch was over after this time, with an answer or (`None`) without.
    pub fn learn(&mut self, took: Option<Duration>) {
        let took = took.unwrap_or(LONGEST * 4).min(LONGEST * 4).as_nanos() as u64;
        self.typical = (self.typical * 7 + took) / 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_while_that_pays_and_tries_again_later() {
        let mut patience = SpinBudget::default();
        assert_eq!(patience.watch(true), Duration::ZERO);
        assert!(patience.watch(false) > Duration::ZERO);
        for _ in 0..20 {
            patience.learn(Some(Duration::from_micros(3)));
        }
        let quick = patience.watch(false);
        assert!((Duration::from_micros(6)..Duration::from_micros(10)).contains(&quick), "{quick:?}");
        for _ in 0..3 {
            patience.learn(None);
        }
        assert_eq!(patience.watch(false), Duration::ZERO, "three in vain are enough");
        let tried = (0..TRIAL * 4).filter(|_| patience.watch(false) > Duration::ZERO).count();
        assert_eq!(tried, 4);
        for _ in 0..20 {
            patience.learn(Some(Duration::from_micros(3)));
        }
        assert!(patience.watch(false) > Duration::ZERO, "answers have become faster");
    }
}
