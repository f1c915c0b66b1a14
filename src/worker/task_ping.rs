//! Whether the serving task is there: the control loop calls, and the task answers as soon as it runs.
//!
//! A handler that blocks with a request in hand is ended by that request's deadline. What blocks the thread without
//! one - a task that a handler has left behind - would keep clients before a closed door for ever.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;

use crate::ids::{LeaseId, Monotonic};
use crate::sync;

/// The calls to one serving task.
pub struct TaskPing {
    /// How long it may leave a call unanswered: `request_timeout`.
    pub limit: Duration,
    place: Mutex<Place>,
    call: Notify,
    /// The last lease that was claimed.
    begun: Mutex<Option<LeaseId>>,
}

/// Where the serving task is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// It has answered, or has not been called.
    Here,
    /// It owes an answer since then.
    Called(Monotonic),
    /// It obeys an order, which has bounds of its own, and answers no call until then.
    Away,
}

impl TaskPing {
    pub fn new(limit: Duration) -> Self {
        Self { limit, place: Mutex::new(Place::Here), call: Notify::new(), begun: Mutex::default() }
    }

    /// Calls the serving task.
    pub fn call(&self, now: Monotonic) {
        let mut place = sync::lock(&self.place);
        if matches!(*place, Place::Here) {
            *place = Place::Called(now);
            self.call.notify_one();
        }
    }

    /// Waits for a call.
    pub async fn called(&self) {
        self.call.notified().await;
    }

    /// The serving task runs.
    pub fn answer(&self) {
        *sync::lock(&self.place) = Place::Here;
    }

    /// The serving task runs, and is not to be called until it answers again.
    pub fn leave(&self) {
        *sync::lock(&self.place) = Place::Away;
    }

    /// It has claimed this lease.
    pub fn begin(&self, lease: LeaseId) {
        *sync::lock(&self.begun) = Some(lease);
    }

    /// Whether it has claimed this lease, of all the last.
    pub fn has_begun(&self, lease: LeaseId) -> bool {
        *sync::lock(&self.begun) == Some(lease)
    }

    /// Since when a call has had no answer.
    pub fn since(&self) -> Option<Monotonic> {
        match *sync::lock(&self.place) {
            Place::Called(since) => Some(since),
            Place::Here | Place::Away => None,
        }
    }

    /// For how long a call has had no answer.
    pub fn owed(&self, now: Monotonic) -> Option<Duration> {
        self.since().map(|since| now.since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    #[test]
    fn a_call_is_owed_from_the_first_on_until_the_task_answers_and_not_while_it_obeys() {
        let attention = TaskPing::new(Duration::from_secs(1));
        let owed = |at| attention.owed(Monotonic(at)).map(|owed| owed.as_nanos());
        assert_eq!(owed(5), None);
        attention.call(Monotonic(10));
        attention.call(Monotonic(20));
        assert_eq!((attention.since(), owed(30)), (Some(Monotonic(10)), Some(20)));
        attention.answer();
        assert_eq!(owed(40), None);
        attention.call(Monotonic(50));
        attention.leave();
        attention.call(Monotonic(60));
        assert_eq!(owed(70), None);
        attention.answer();
        attention.call(Monotonic(80));
        assert_eq!(owed(90), Some(10));
        let lease = |n| LeaseId::of(Epoch::FIRST, n);
        attention.begin(lease(1));
        assert!(attention.has_begun(lease(1)) && !attention.has_begun(lease(2)));
    }
}
