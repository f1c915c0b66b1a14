//! The restart policy as it is documented, for comparison with the code.

use std::time::Duration;

use crate::ids::Monotonic;
use crate::liveness::RestartLimits;

/// The unplanned ends of one part.
#[derive(Debug, Default)]
pub(crate) struct RestartPolicy {
    /// Since the part was last ready for long.
    restarts: u32,
    ready_at: Option<Monotonic>,
    /// The watchdog has given the part up.
    pub(crate) failed: bool,
}

impl RestartPolicy {
    /// The part is ready.
    pub(crate) fn ready(&mut self, now: Monotonic) {
        self.ready_at.get_or_insert(now);
    }

    /// The process has ended, as planned or not.
    pub(crate) fn ended(&mut self, now: Monotonic, limits: &RestartLimits) {
        if self.ready_at.take().is_some_and(|at| now.since(at) >= limits.within) {
            self.restarts = 0;
        }
    }

    /// The delay of a restart after so many others.
    fn delay(restarts: u32, limits: &RestartLimits) -> Duration {
        match restarts {
            0 => Duration::ZERO,
            n => (limits.delay * 2u32.pow(n - 1)).min(limits.delay_max),
        }
    }

    /// Whether there were enough restarts, and the last one had the longest delay.
    fn is_over(&self, limits: &RestartLimits) -> bool {
        self.restarts >= limits.max && self.restarts > 0 && Self::delay(self.restarts - 1, limits) == limits.delay_max
    }

    /// Checks a restart after this delay.
    pub(crate) fn check_restart(&mut self, now: Monotonic, limits: &RestartLimits, delay: Duration) {
        self.ended(now, limits);
        let expected = Self::delay(self.restarts, limits);
        assert!(!self.is_over(limits), "restart {} of {} after {delay:?}", self.restarts + 1, limits.max);
        assert!(delay >= expected.mul_f64(0.749) && delay <= expected.mul_f64(1.251), "{delay:?}, not {expected:?}");
        self.restarts += 1;
    }

    /// Checks that the part is given up.
    pub(crate) fn check_failure(&mut self, now: Monotonic, limits: &RestartLimits) {
        self.ended(now, limits);
        assert!(self.is_over(limits), "given up after {} restarts", self.restarts);
        self.failed = true;
    }
}
