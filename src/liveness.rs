//! Failure detection and restart delays.
//!
//! Pure: observations and `now` in, a verdict out. Only a process's own silence after a probe counts against it. Time
//! in which the watchdog itself was late extends every deadline (cf. Dadgar et al., "Lifeguard: Local Health Awareness
//! for More Accurate Failure Detection", 2018), and so does time in which the machine did not run the process.

#![forbid(unsafe_code)]

mod silence_timer;

use std::time::Duration;

use crate::ids::Monotonic;
pub(crate) use silence_timer::{
    HeldBy, LivenessTimeouts, LivenessVerdict, ProcessSample, SchedStat, SilenceTimer, ThreadActivity,
};

/// When a part is restarted and when it is given up, from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RestartLimits {
    /// The part is given up after this many restarts, once one was delayed by `delay_max`.
    pub max: u32,
    /// A part that is ready for so long has not failed: its next restart is the first one.
    pub within: Duration,
    /// Delay of the second restart; each further one is delayed twice as long.
    pub delay: Duration,
    /// Upper bound of the delay.
    pub delay_max: Duration,
}

/// The failures of one part: unplanned ends without a life of [`RestartLimits::within`] between them.
#[derive(Clone, Debug, Default)]
pub(crate) struct RestartHistory {
    failures: u32,
    /// Since when the part has been ready, until its process ends.
    ready_since: Option<Monotonic>,
}

impl RestartHistory {
    /// The part can serve.
    pub(crate) fn ready(&mut self, now: Monotonic) {
        self.ready_since.get_or_insert(now);
    }

    /// The part's process has ended as planned.
    pub(crate) fn planned_end(&mut self, now: Monotonic, limits: &RestartLimits) {
        if self.ready_since.take().is_some_and(|since| now.since(since) >= limits.within) {
            self.failures = 0;
        }
    }

    /// The part has failed: the delay of its restart, or `None` if it is given up.
    ///
    /// The first restart is not delayed. `jitter` from 0 to 1 varies the others by a quarter up or down, so that parts
    /// that ended together do not restart together for ever.
    pub(crate) fn next_delay(&mut self, now: Monotonic, limits: &RestartLimits, jitter: f64) -> Option<Duration> {
        self.planned_end(now, limits);
        let earlier = self.failures;
        self.failures = earlier.saturating_add(1);
        (!limits.give_up_after(earlier)).then(|| limits.delay_after(earlier, jitter))
    }
}

impl RestartLimits {
    /// The longest delay of a restart.
    pub(crate) fn longest_delay(&self) -> Duration {
        self.delay_max.mul_f64(1.25)
    }

    /// The delay of a restart that follows `count` others.
    fn delay_after(&self, count: u32, jitter: f64) -> Duration {
        self.undisturbed_delay_after(count).mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// The same without the jitter.
    fn undisturbed_delay_after(&self, count: u32) -> Duration {
        let doublings = count.saturating_sub(1).min(31);
        match count {
            0 => Duration::ZERO,
            _ => self.delay.saturating_mul(1 << doublings).min(self.delay_max),
        }
    }

    /// Whether a part that has been restarted `count` times is given up when it fails once more. A delay of zero never
    /// grows.
    fn give_up_after(&self, count: u32) -> bool {
        let longest = if self.delay.is_zero() { Duration::ZERO } else { self.delay_max };
        count >= self.max && self.undisturbed_delay_after(count.saturating_sub(1)) >= longest
    }
}

/// The failures of a part under a supervisor without growing restart delays: the part counts them itself when it starts,
/// and forgets them when it has been ready for [`RestartLimits::within`] and at a planned end.
///
/// Returns the delay of the start after `failures`, before the part becomes ready, or `None` if the part is given up.
pub(crate) fn start_delay(failures: u32, limits: &RestartLimits, jitter: f64) -> Option<Duration> {
    match failures.checked_sub(1) {
        None => Some(Duration::ZERO),
        Some(earlier) => (!limits.give_up_after(earlier)).then(|| limits.delay_after(earlier, jitter)),
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

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn delays_of_starts_are_those_of_the_restart_history() {
        let delays = |limits| (1..20).map_while(|failures| start_delay(failures, &limits, 0.5)).collect::<Vec<_>>();
        for limits in [LIMITS, RestartLimits { max: 0, ..LIMITS }, RestartLimits { delay: ms(0), ..LIMITS }] {
            let mut restarts = RestartHistory::default();
            let expected: Vec<_> = std::iter::from_fn(|| restarts.next_delay(at(0), &limits, 0.5)).collect();
            assert_eq!(delays(limits), expected);
        }
        assert_eq!(start_delay(0, &LIMITS, 0.5), Some(ms(0)));
    }

    #[test]
    fn restarts_are_delayed_and_given_up_once_the_longest_delay_was_not_enough() {
        let delays = |limits: RestartLimits| {
            let mut restarts = RestartHistory::default();
            let next = || restarts.next_delay(at(0), &limits, 0.5).map(|delay| delay.as_millis());
            std::iter::from_fn(next).collect::<Vec<_>>()
        };
        assert_eq!(delays(LIMITS), [0, 100, 150, 150]);
        // With few restarts allowed the delay grows to its maximum all the same.
        assert_eq!(delays(RestartLimits { max: 0, ..LIMITS }), [0, 100, 150]);
        assert_eq!(delays(RestartLimits { max: 1, delay_max: ms(1000), ..LIMITS }), [0, 100, 200, 400, 800, 1000]);
        assert_eq!(delays(RestartLimits { max: 2, delay: ms(0), ..LIMITS }), [0, 0]);
        for jitter in [0.0, 1.0] {
            let mut restarts = RestartHistory::default();
            restarts.next_delay(at(0), &LIMITS, jitter);
            let delay = restarts.next_delay(at(1), &LIMITS, jitter).unwrap();
            assert!((75..=125).contains(&delay.as_millis()), "{delay:?}");
        }
    }

    #[test]
    fn only_a_part_that_was_ready_for_long_has_not_failed() {
        let mut restarts = RestartHistory::default();
        let delay =
            |restarts: &mut RestartHistory, at_ms| restarts.next_delay(at(at_ms), &LIMITS, 0.5).map(|d| d.as_millis());
        assert_eq!(delay(&mut restarts, 0), Some(0));
        // Slow starts that fail, and short lives, however far apart.
        assert_eq!(delay(&mut restarts, 100_000), Some(100));
        restarts.ready(at(200_000));
        assert_eq!(delay(&mut restarts, 259_999), Some(150));
        // A new incarnation in the same process continues the life of the part.
        restarts.ready(at(300_000));
        restarts.ready(at(350_000));
        assert_eq!(delay(&mut restarts, 360_000), Some(0));
        // A planned end does not count, and does not lengthen the life of the next process.
        assert_eq!(delay(&mut restarts, 360_001), Some(100));
        restarts.ready(at(400_000));
        restarts.planned_end(at(401_000), &LIMITS);
        assert_eq!(delay(&mut restarts, 500_000), Some(150));
        restarts.ready(at(600_000));
        restarts.planned_end(at(700_000), &LIMITS);
        assert_eq!(delay(&mut restarts, 700_001), Some(0));
    }
}
