//! A session: a connection that has switched to another protocol (RFC 9110, section 7.8), as the handler that uses it and
//! the worker that bounds it share it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tokio::sync::Notify;

/// A session. It ends when the handler drops the connection, or when the worker cuts it.
#[derive(Debug, Default)]
pub(crate) struct Session {
    cut: Notify,
    ended: Notify,
    has_failed: AtomicBool,
    received: AtomicU64,
    sent: AtomicU64,
}

impl Session {
    /// The handler must end it now.
    pub(crate) fn cut(&self) {
        self.cut.notify_one();
    }

    /// Completes when the handler must end it. One task waits for it.
    pub(super) async fn is_cut(&self) {
        self.cut.notified().await;
    }

    /// The handler has failed: the session counts as a failed request.
    pub(super) fn fail(&self) {
        self.has_failed.store(true, Relaxed); // ordered by the drop of the connection
    }

    /// Whether [`Self::fail`] was called.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Relaxed)
    }

    /// The handler has dropped the connection.
    pub(crate) fn end(&self) {
        self.ended.notify_one();
    }

    /// Completes after [`Self::end`]. One task waits for it.
    pub(crate) async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Counts bytes of the client.
    pub(crate) fn count_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts bytes to the client.
    pub(crate) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Relaxed);
    }

    /// How many bytes were received and sent.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.received.load(Relaxed), self.sent.load(Relaxed))
    }
}
