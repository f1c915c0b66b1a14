//! A background task that writes a request to a process.

use std::future::Future;

use tokio::task::{JoinError, JoinHandle};

/// The task; dropping this aborts it. The request needs a task because a response body is polled only while the
/// client reads.
#[derive(Debug)]
pub(super) struct BodyFeed<T>(JoinHandle<T>);

impl<T: Send + 'static> BodyFeed<T> {
    /// Starts the task.
    pub(super) fn spawn(write: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(write))
    }

    /// Whether the task has ended.
    pub(super) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for the end of the task. May be dropped and called again, but not after it has returned.
    ///
    /// # Errors
    /// When the task has panicked.
    pub(super) async fn join(&mut self) -> Result<T, JoinError> {
        (&mut self.0).await
    }
}

impl<T> Drop for BodyFeed<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
