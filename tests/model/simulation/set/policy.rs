//! The restart policy as it is documented, for comparison with the code.

use std::time::Duration;

use crate::ids::Monotonic;
use crate::liveness::RestartLimits;

/// The unexpected ends of one part.
#[derive(Debug, Default)]
pub(crate) struct RestartPolicy {
    ends: Vec<Monotonic>,
    /// The watchdog has given the part up.
    pub(crate) failed: bool,
}

impl RestartPolicy {
    fn recent_ends(&mut self, now: Monotonic, limits: &RestartLimits) -> usize {
        self.ends.retain(|at| now.since(*at) < limits.within);
        self.ends.len()
    }

    /// Checks a restart after this delay.
    pub(crate) fn check_restart(&mut self, now: Monotonic, limits: &RestartLimits, delay: Duration) {
        let before = self.recent_ends(now, limits);
        assert!(before < limits.max as usize, "restart {before} within {:?}", limits.within);
        let expected = match before {
            0 => Duration::ZERO,
            n => (limits.delay * 2u32.pow(n as u32 - 1)).min(limits.delay_max),
        };
        assert!(delay >= expected.mul_f64(0.749) && delay <= expected.mul_f64(1.251), "{delay:?}, not {expected:?}");
        self.ends.push(now);
    }

    /// Checks that the part is given up.
    pub(crate) fn check_failure(&mut self, now: Monotonic, limits: &RestartLimits) {
        let before = self.recent_ends(now, limits);
        assert_eq!(before, limits.max as usize, "given up after {before} restarts");
        self.failed = true;
    }
}
