//! When the next deadline of a pool is reached.

use std::cell::Cell;
use std::future;

use tokio::sync::Notify;

use crate::clock;
use crate::ids::Monotonic;

/// The timer of the task that sends the pools their ticks.
#[derive(Default)]
pub(super) struct Timers {
    /// The deadline that the task sleeps for.
    armed: Cell<Option<Monotonic>>,
    rearm: Notify,
}

impl Timers {
    /// The earliest deadline may have changed to this one.
    pub(super) fn set(&self, deadline: Option<Monotonic>) {
        if deadline.is_some_and(|at| self.armed.get().is_none_or(|armed| at < armed)) {
            self.rearm.notify_one();
        }
    }

    /// Waits for this deadline; `false` if an earlier one was set meanwhile.
    pub(super) async fn reach(&self, deadline: Option<Monotonic>) -> bool {
        self.armed.set(deadline);
        let sleep = async {
            match deadline {
                Some(at) => tokio::time::sleep(at.since(clock::now())).await,
                None => future::pending().await,
            }
        };
        let is_reached = tokio::select! {
            () = sleep => true,
            () = self.rearm.notified() => false,
        };
        self.armed.set(None);
        is_reached
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn earlier_deadline_ends_the_wait_and_a_later_one_does_not() {
        let timers = Timers::default();
        let at = |ms| Some(clock::now() + Duration::from_millis(ms));
        assert!(timers.reach(at(0)).await);
        let (is_reached, ()) = tokio::join!(timers.reach(at(60_000)), async { timers.set(at(30_000)) });
        assert!(!is_reached);
        let (is_reached, ()) = tokio::join!(timers.reach(at(1)), async { timers.set(at(60_000)) });
        assert!(is_reached);
        // Without a deadline, the first one counts.
        let (is_reached, ()) = tokio::join!(timers.reach(None), async { timers.set(at(60_000)) });
        assert!(!is_reached);
    }
}
