//! Waiting for a state of the set that can only be polled.

use std::thread;
use std::time::{Duration, Instant};

/// The pause between two polls.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Polls until `done`, at least once. Returns false if the deadline passes first.
pub(super) fn poll_until(deadline: Instant, mut done: impl FnMut() -> bool) -> bool {
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL_INTERVAL);
    }
}
