//! The connections that delay the exit of the dispatcher: they wait for a worker, or for their last response.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

/// Counts them.
#[derive(Default)]
pub(super) struct PendingConnections {
    count: Cell<usize>,
    /// Notified when `count` changes.
    changed: Notify,
}

/// One of them, until it is dropped.
pub(super) struct PendingConnection(Rc<PendingConnections>);

impl PendingConnections {
    /// One more connection is pending.
    pub(super) fn add(self: &Rc<Self>) -> PendingConnection {
        self.set(self.count.get() + 1);
        PendingConnection(self.clone())
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count.get()
    }

    /// Waits until that number changes.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn set(&self, count: usize) {
        self.count.set(count);
        self.changed.notify_one();
    }
}

impl Drop for PendingConnection {
    fn drop(&mut self) {
        self.0.set(self.0.count() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_is_pending_until_its_guard_is_dropped() {
        let pending = Rc::new(PendingConnections::default());
        let first = pending.add();
        let second = pending.add();
        assert_eq!(pending.count(), 2);
        drop(first);
        assert_eq!(pending.count(), 1);
        drop(second);
        assert_eq!(pending.count(), 0);
    }
}
