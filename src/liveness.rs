//! Failure detection and restart delays.
//!
//! Pure: observations and `now` in, a verdict out. Only a process's own silence after a probe counts against it. Time
//! in which the watchdog itself was late extends every deadline (cf. Dadgar et al., "Lifeguard: Local Health Awareness
//! for More Accurate Failure Detection", 2018), and so does time in which the machine did not run the process.

#![forbid(unsafe_code)]

mod silence_timer;

use std::collections::VecDeque;
use std::time::Duration;

use crate::ids::Monotonic;
pub(crate) use silence_timer::{
    HeldBy, LivenessTimeouts, LivenessVerdict, ProcessSample, SchedStat, SilenceTimer, ThreadActivity,
};

/// When a part is restarted and when it is given up, from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RestartLimits {
    /// The part is given up after more restarts than this within `within`.
    pub max: u32,
    /// The time over which restarts are counted.
    pub within: Duration,
    /// Delay of the second restart; each further one is delayed twice as long.
    pub delay: Duration,
    /// Upper bound of the delay.
    pub delay_max: Duration,
}

/// The recent unplanned restarts of one part.
#[derive(Clone, Debug, Default)]
pub(crate) struct RestartHistory {
    recent: VecDeque<Monotonic>,
}

impl RestartHistory {
    /// The part has ended: the delay of its restart, or `None` if it is given up.
    ///
    /// The first restart after a quiet time is not delayed. `jitter` from 0 to 1 varies the others by a quarter up or
    /// down, so that parts that ended together do not restart together for ever.
    pub(crate) fn next_delay(&mut self, now: Monotonic, limits: &RestartLimits, jitter: f64) -> Option<Duration> {
        while self.recent.front().is_some_and(|at| now.since(*at) >= limits.within) {
            self.recent.pop_front();
        }
        let count = self.recent.len() as u32;
        if count >= limits.max {
            return None;
        }
        self.recent.push_back(now);
        Some(limits.delay_after(count, jitter))
    }
}

impl RestartLimits {
    /// The longest delay of a restart.
    pub(crate) fn longest_delay(&self) -> Duration {
        self.delay_max.mul_f64(1.25)
    }

    /// The delay of a restart that follows `count` others.
    fn delay_after(&self, count: u32, jitter: f64) -> Duration {
        let doublings = count.saturating_sub(1).min(31);
        let delay = match count {
            0 => Duration::ZERO,
            _ => self.delay.saturating_mul(1 << doublings).min(self.delay_max),
        };
        delay.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

/// A start of a part under a supervisor without growing restart delays: the part records its starts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StartRecord {
    /// When its delay ended: its lifetime counts from here.
    pub at: Monotonic,
    /// How many consecutive incarnations before it had a short life and an unplanned end.
    pub failures: u32,
}

impl StartRecord {
    /// This start, which follows `last`, and its delay before it becomes ready. A life of at least `limits.within`
    /// clears the failures; so does a planned end, which leaves no `last`.
    pub(crate) fn after(
        last: Option<StartRecord>,
        now: Monotonic,
        limits: &RestartLimits,
        jitter: f64,
    ) -> (StartRecord, Duration) {
        let failures = match last {
            Some(last) if now.since(last.at) < limits.within => last.failures.saturating_add(1),
            _ => 0,
        };
        let delay = failures.checked_sub(1).map_or(Duration::ZERO, |count| limits.delay_after(count, jitter));
        (StartRecord { at: now + delay, failures }, delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RestartLimits = RestartLimits {
        max: 4,
        within: Duration::from_secs(60),
        delay: Duration::from_millis(100),
        delay_max: Duration::from_millis(150),
    };

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    #[test]
    fn start_records_give_the_same_delays_as_the_restart_history() {
        let mut last = None;
        let mut next = |ms| {
            let (start, delay) = StartRecord::after(last, at(ms), &LIMITS, 0.5);
            last = Some(start);
            delay.as_millis()
        };
        assert_eq!([next(0), next(10), next(20), next(130), next(300)], [0, 0, 100, 150, 150]);
        assert_eq!(next(60_449), 150);
        assert_eq!(next(121_000), 0, "a quiet time clears the failures");
        assert_eq!(next(121_001), 0);
    }

    #[test]
    fn restarts_are_delayed_given_up_and_allowed_again() {
        let mut restarts = RestartHistory::default();
        let mut next = |ms| restarts.next_delay(at(ms), &LIMITS, 0.5).map(|delay| delay.as_millis());
        assert_eq!(next(0), Some(0));
        assert_eq!(next(10), Some(100));
        assert_eq!(next(20), Some(150));
        assert_eq!(next(30), Some(150));
        assert_eq!(next(40), None);
        assert_eq!(next(60_000), Some(150), "one of four has expired");
        assert_eq!(next(200_000), Some(0), "a quiet time clears the failures");
        for jitter in [0.0, 1.0] {
            let mut restarts = RestartHistory::default();
            restarts.next_delay(at(0), &LIMITS, jitter);
            let delay = restarts.next_delay(at(1), &LIMITS, jitter).unwrap();
            assert!((75..=125).contains(&delay.as_millis()), "{delay:?}");
        }
    }
}
