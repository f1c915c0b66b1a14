//! What every log record of a process carries.

use std::sync::atomic::{AtomicU32, Ordering};

/// The part that this process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogContext {
    /// As in every line: `watchdog`, `dispatcher`, `worker web/1`.
    pub part: String,
    /// Name of the set; empty while it is unknown.
    pub set: String,
    /// `pool/number`, if the part is a worker.
    pub worker: Option<String>,
}

impl LogContext {
    /// A part other than a worker.
    pub(crate) fn part(part: &str, set: &str) -> Self {
        Self { part: part.to_owned(), set: set.to_owned(), worker: None }
    }

    /// The worker `id`.
    pub(crate) fn worker(id: impl ToString, set: &str) -> Self {
        let id = id.to_string();
        Self { part: format!("worker {id}"), set: set.to_owned(), worker: Some(id) }
    }
}

/// 0 while this process has no epoch.
static EPOCH: AtomicU32 = AtomicU32::new(0);

/// Sets the epoch that every later record of this process carries.
pub(crate) fn set_epoch(epoch: u32) {
    EPOCH.store(epoch, Ordering::Relaxed);
}

/// The epoch of this process, if it has one.
pub(super) fn epoch() -> Option<u32> {
    Some(EPOCH.load(Ordering::Relaxed)).filter(|epoch| *epoch > 0)
}
