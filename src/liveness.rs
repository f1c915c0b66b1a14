//! Who is alive, and when what died is started again.
//!
//! Pure: observations and `now` in, a verdict out. A process is accused only by its own silence after it was
//! asked; a watchdog that was late itself extends every deadline by what it lost (cf. Dadgar et al.,
//! "Lifeguard: Local Health Awareness for More Accurate Failure Detection", 2018), and so does a machine that
//! did not run whom it blames.

mod silence_timer;

use std::collections::VecDeque;
use std::time::Duration;

use crate::ids::Monotonic;
pub use silence_timer::{Activity, HeldBy, ProcessSample, SchedStat, SilenceTimer, Timeouts, Verdict};

/// The bounds of [`RestartHistory`], from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct RestartLimits {
    /// More restarts than this within `within` and the part is given up.
    pub max: u32,
    /// The time over which restarts are counted.
    pub within: Duration,
    /// The second restart waits this long, each further one twice as long.
    pub delay: Duration,
    /// But never longer than this.
    pub delay_max: Duration,
}

/// The restarts of one part that were not planned.
#[derive(Clone, Debug, Default)]
pub struct RestartHistory {
    recent: VecDeque<Monotonic>,
}

impl RestartHistory {
    /// The part has died: how long to wait before its next start, or `None` if it is to be given up.
    ///
    /// The first restart after a quiet time comes at once. `chance` from 0 to 1 varies the others by a
    /// quarter up or down, so that parts that died together do not start together for ever.
    pub fn next(&mut self, now: Monotonic, limits: &RestartLimits, chance: f64) -> Option<Duration> {
        while self.recent.front().is_some_and(|at| now.since(*at) >= limits.within) {
            self.recent.pop_front();
        }
        let count = self.recent.len() as u32;
        if count >= limits.max {
            return None;
        }
        self.recent.push_back(now);
        Some(limits.wait(count, chance))
    }
}

impl RestartLimits {
    /// How long a restart may wait at most.
    pub fn longest_wait(&self) -> Duration {
        self.delay_max.mul_f64(1.25)
    }

    /// How long the restart waits that comes after `count` others.
    fn wait(&self, count: u32, chance: f64) -> Duration {
        let doublings = count.saturating_sub(1).min(31);
        let delay = match count {
            0 => Duration::ZERO,
            _ => self.delay.saturating_mul(1 << doublings).min(self.delay_max),
        };
        delay.mul_f64(0.75 + chance.clamp(0.0, 1.0) / 2.0)
    }
}

/// A start of a part that something else starts, which knows no growing delay: the part keeps account itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartRecord {
    /// When it was.
    pub at: Monotonic,
    /// How many lives before it ended unplanned, one soon after the other.
    pub failures: u32,
}

impl StartRecord {
    /// The start that comes now, after `last`, and how long it waits before it is ready. A life of at least
    /// `limits.within` forgives what was before it; so does a planned end, after which there is no `last`.
    pub fn after(
        last: Option<StartRecord>,
        now: Monotonic,
        limits: &RestartLimits,
        chance: f64,
    ) -> (StartRecord, Duration) {
        let failures = match last {
            Some(last) if now.since(last.at) < limits.within => last.failures.saturating_add(1),
            _ => 0,
        };
        let wait = failures.checked_sub(1).map_or(Duration::ZERO, |count| limits.wait(count, chance));
        // The wait is no life.
        (StartRecord { at: now + wait, failures }, wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    #[test]
    fn a_part_that_keeps_account_itself_waits_alike() {
        let limits = RestartLimits {
            max: 4,
            within: Duration::from_secs(60),
            delay: Duration::from_millis(100),
            delay_max: Duration::from_millis(150),
        };
        let mut last = None;
        let mut next = |ms| {
            let (start, wait) = StartRecord::after(last, at(ms), &limits, 0.5);
            last = Some(start);
            wait.as_millis()
        };
        assert_eq!([next(0), next(10), next(20), next(130), next(300)], [0, 0, 100, 150, 150]);
        assert_eq!(next(60_449), 150);
        assert_eq!(next(121_000), 0, "a quiet time forgives everything");
        assert_eq!(next(121_001), 0);
    }

    #[test]
    fn restarts_slow_down_give_up_and_recover() {
        let limits = RestartLimits {
            max: 4,
            within: Duration::from_secs(60),
            delay: Duration::from_millis(100),
            delay_max: Duration::from_millis(150),
        };
        let mut restarts = RestartHistory::default();
        let mut next = |ms| restarts.next(at(ms), &limits, 0.5).map(|delay| delay.as_millis());
        assert_eq!(next(0), Some(0));
        assert_eq!(next(10), Some(100));
        assert_eq!(next(20), Some(150));
        assert_eq!(next(30), Some(150));
        assert_eq!(next(40), None);
        assert_eq!(next(60_000), Some(150), "one of four is forgotten");
        assert_eq!(next(200_000), Some(0), "a quiet time forgives everything");
        for chance in [0.0, 1.0] {
            let mut restarts = RestartHistory::default();
            restarts.next(at(0), &limits, chance);
            let delay = restarts.next(at(1), &limits, chance).unwrap();
            assert!((75..=125).contains(&delay.as_millis()), "{delay:?}");
        }
    }
}
