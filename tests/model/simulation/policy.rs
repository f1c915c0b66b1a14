//! The restart policy as its documentation says it, for comparison.

use std::time::Duration;

use crate::ids::Monotonic;
use crate::liveness::RestartLimits;

/// Unplanned ends of one part.
#[derive(Debug, Default)]
pub struct Policy {
    ends: Vec<Monotonic>,
    /// It is given up.
    pub failed: bool,
}

impl Policy {
    fn recent(&mut self, now: Monotonic, limits: &RestartLimits) -> usize {
        self.ends.retain(|at| now.since(*at) < limits.within);
        self.ends.len()
    }

    /// It is started again after this delay.
    pub fn restarted(&mut self, now: Monotonic, limits: &RestartLimits, delay: Duration) {
        let before = self.recent(now, limits);
        assert!(before < limits.max as usize, "restart {before} within {:?}", limits.within);
        let expected = match before {
            0 => Duration::ZERO,
            n => (limits.delay * 2u32.pow(n as u32 - 1)).min(limits.delay_max),
        };
        assert!(delay >= expected.mul_f64(0.749) && delay <= expected.mul_f64(1.251), "{delay:?}, not {expected:?}");
        self.ends.push(now);
    }

    /// It is given up.
    pub fn given_up(&mut self, now: Monotonic, limits: &RestartLimits) {
        let before = self.recent(now, limits);
        assert_eq!(before, limits.max as usize, "given up after {before} restarts");
        self.failed = true;
    }
}
