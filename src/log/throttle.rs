//! Limits how often one event is logged that may occur many times a second.

use std::time::{Duration, Instant};

/// The shortest time between two log lines about the event.
const INTERVAL: Duration = Duration::from_secs(60);

/// Counts one kind of event.
#[derive(Debug, Default)]
pub(crate) struct LogThrottle {
    unlogged: u64,
    logged_at: Option<Instant>,
}

impl LogThrottle {
    /// Counts the event. Returns how many there were since the last log line, if one is due: at the first event, then at
    /// most once a minute.
    pub(crate) fn count(&mut self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    fn count_at(&mut self, now: Instant) -> Option<u64> {
        self.unlogged += 1;
        if self.logged_at.is_some_and(|at| now.duration_since(at) < INTERVAL) {
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_event_is_logged_and_later_ones_are_counted() {
        let (mut throttle, start) = (LogThrottle::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(throttle.count_at(at(0)), Some(1));
        assert_eq!([1, 30, 59].map(|seconds| throttle.count_at(at(seconds))), [None; 3]);
        assert_eq!(throttle.count_at(at(60)), Some(4));
        assert_eq!(throttle.count_at(at(61)), None);
    }
}
