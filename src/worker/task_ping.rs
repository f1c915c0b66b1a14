//! Whether the serving task runs: the control loop pings it, and the task acknowledges as soon as it runs.
//!
//! A handler that blocks the thread during a request is ended by the request's deadline. Without a request, a blocked
//! thread (a background task of a handler, for example) would leave clients in the listen queue for ever.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;

use crate::ids::{LeaseId, Monotonic};
use crate::sync;

/// The pings of one serving task.
pub(super) struct TaskPing {
    /// How long a ping may stay unacknowledged: `request_timeout`.
    pub limit: Duration,
    locked: Mutex<LastSigns>,
    notify: Notify,
}

/// The last ping, and the last claim, which is a sign of life as well.
struct LastSigns {
    ping: PingState,
    claimed: Option<LeaseId>,
}

#[derive(Clone, Copy, Debug)]
enum PingState {
    /// There was no ping since the last acknowledgement.
    Acknowledged,
    /// A ping has been unacknowledged since then.
    Pending(Monotonic),
    /// The task executes a command, which has bounds of its own: pings are ignored until the next acknowledgement.
    Suspended,
}

impl TaskPing {
    pub(super) fn new(limit: Duration) -> Self {
        let locked = Mutex::new(LastSigns { ping: PingState::Acknowledged, claimed: None });
        Self { limit, locked, notify: Notify::new() }
    }

    /// Pings the serving task, unless a ping is pending.
    pub(super) fn ping(&self, now: Monotonic) {
        let mut locked = sync::lock(&self.locked);
        if matches!(locked.ping, PingState::Acknowledged) {
            locked.ping = PingState::Pending(now);
            drop(locked);
            self.notify.notify_one();
        }
    }

    /// Waits for a ping.
    pub(super) async fn pinged(&self) {
        self.notify.notified().await;
    }

    /// The serving task runs.
    pub(super) fn ack(&self) {
        sync::lock(&self.locked).ping = PingState::Acknowledged;
    }

    /// The serving task executes a command: no ping until its next acknowledgement.
    pub(super) fn suspend(&self) {
        sync::lock(&self.locked).ping = PingState::Suspended;
    }

    /// The serving task has claimed `lease`.
    pub(super) fn note_claim(&self, lease: LeaseId) {
        sync::lock(&self.locked).claimed = Some(lease);
    }

    /// Whether `lease` is the last lease that the serving task has claimed.
    pub(super) fn has_claimed(&self, lease: LeaseId) -> bool {
        sync::lock(&self.locked).claimed == Some(lease)
    }

    /// Since when a ping has been pending.
    pub(super) fn pending_since(&self) -> Option<Monotonic> {
        match sync::lock(&self.locked).ping {
            PingState::Pending(since) => Some(since),
            PingState::Acknowledged | PingState::Suspended => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    #[test]
    fn ping_is_pending_from_the_first_until_the_acknowledgement() {
        let ping = TaskPing::new(Duration::from_secs(1));
        assert_eq!(ping.pending_since(), None);
        ping.ping(Monotonic(10));
        ping.ping(Monotonic(20));
        assert_eq!(ping.pending_since(), Some(Monotonic(10)));
        ping.ack();
        assert_eq!(ping.pending_since(), None);
    }

    #[test]
    fn pings_are_ignored_while_the_task_executes_a_command() {
        let ping = TaskPing::new(Duration::from_secs(1));
        ping.ping(Monotonic(50));
        ping.suspend();
        ping.ping(Monotonic(60));
        assert_eq!(ping.pending_since(), None);
        ping.ack();
        ping.ping(Monotonic(80));
        assert_eq!(ping.pending_since(), Some(Monotonic(80)));
    }

    #[test]
    fn only_the_last_claim_is_kept() {
        let ping = TaskPing::new(Duration::from_secs(1));
        let lease = |n| LeaseId::of(Epoch::FIRST, n);
        ping.note_claim(lease(1));
        assert!(ping.has_claimed(lease(1)) && !ping.has_claimed(lease(2)));
        ping.note_claim(lease(2));
        assert!(ping.has_claimed(lease(2)) && !ping.has_claimed(lease(1)));
    }
}
