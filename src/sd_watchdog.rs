//! `WATCHDOG=1` to systemd, at half the interval that the unit requests (sd_watchdog_enabled(3)).

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::sleep;

use crate::clock;
use crate::ids::Monotonic;
use crate::sd_notification::notify;

/// The notifications of one process; none are due where systemd requests none.
pub(crate) struct WatchdogTicker {
    interval: Duration,
    due_at: Option<Monotonic>,
}

impl WatchdogTicker {
    /// The first notification is due at once: a re-executed process may be close to the timeout already.
    pub(crate) fn start() -> Self {
        let timeout = sd_notify::watchdog_enabled();
        Self { interval: timeout.unwrap_or_default() / 2, due_at: timeout.map(|_| clock::now()) }
    }

    /// When the next notification is due.
    pub(crate) fn due_at(&self) -> Option<Monotonic> {
        self.due_at
    }

    /// Waits until a notification is due. Cancel-safe.
    pub(crate) async fn due(&self) {
        match self.due_at {
            Some(at) => sleep(at.since(clock::now())).await,
            None => std::future::pending().await,
        }
    }

    /// Sends a notification if one is due.
    pub(crate) fn tick(&mut self, now: Monotonic) {
        if self.due_at.is_some_and(|at| at <= now) {
            notify(&[NotifyState::Watchdog]);
            self.due_at = Some(now + self.interval);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_notification_is_due_one_interval_after_the_last() {
        let mut ticker = WatchdogTicker { interval: Duration::from_nanos(5), due_at: Some(Monotonic(10)) };
        ticker.tick(Monotonic(9));
        assert_eq!(ticker.due_at(), Some(Monotonic(10)));
        ticker.tick(Monotonic(12));
        assert_eq!(ticker.due_at(), Some(Monotonic(17)));
    }

    #[test]
    fn nothing_is_due_where_systemd_requests_no_notifications() {
        let mut ticker = WatchdogTicker { interval: Duration::ZERO, due_at: None };
        ticker.tick(Monotonic(1));
        assert_eq!(ticker.due_at(), None);
    }
}
