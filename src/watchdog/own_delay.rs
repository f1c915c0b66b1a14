//! Times in which the watchdog itself did not run. No part is blamed for its silence in them.

use std::time::Duration;

use crate::{clock, log};

/// A loop that wakes up this much after its deadline was not run by the machine.
pub(super) const LATE: Duration = Duration::from_millis(20);
/// A shorter suspend is ignored.
const SUSPEND_MIN: Duration = Duration::from_secs(1);

/// Notices that the machine was suspended: `CLOCK_BOOTTIME` has advanced against `CLOCK_MONOTONIC`.
pub(super) struct SuspendDetector {
    /// The time spent suspended since boot that has been reported.
    reported: Duration,
}

impl SuspendDetector {
    pub(super) fn new() -> Self {
        Self { reported: clock::suspended_for() }
    }

    /// Whether the machine was suspended since the last call.
    pub(super) fn was_suspended(&mut self) -> bool {
        self.has_grown(clock::suspended_for())
    }

    fn has_grown(&mut self, suspended_for: Duration) -> bool {
        let suspend = suspended_for.saturating_sub(self.reported);
        if suspend < SUSPEND_MIN {
            return false;
        }
        self.reported = suspended_for;
        let suspend = humantime::format_duration(Duration::from_millis(suspend.as_millis() as u64)).to_string();
        tracing::warn!(event = %log::Event::MachineSuspended,
            "the machine was suspended for {suspend}: all liveness deadlines were reset");
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspend_is_noticed_once() {
        let mut suspends = SuspendDetector { reported: Duration::from_secs(5) };
        assert!(!suspends.has_grown(Duration::from_millis(5900)));
        assert!(suspends.has_grown(Duration::from_secs(65)));
        assert!(!suspends.has_grown(Duration::from_secs(65)));
        assert!(!SuspendDetector::new().was_suspended());
    }
}
