//! The steps of a call, for an observer.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::address::{Address, Target};
use crate::ids::WorkerId;

/// One step of a call. After `Retrying` the steps start again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The dispatcher accepted the connection.
    Connected {
        /// The dispatcher.
        to: Target,
    },
    /// A lease is requested from the dispatcher.
    Requesting,
    /// The lease has arrived: the dispatcher offered the request to a worker and the worker accepted.
    Leased {
        /// The worker that accepted.
        worker: WorkerId,
        /// Its address.
        address: Address,
    },
    /// The worker accepted the connection; the request is being sent.
    Sending {
        /// The worker's address.
        address: Address,
        /// Length of the request body in bytes.
        length: u64,
    },
    /// The worker requested the body (`100 Continue`).
    Continue,
    /// A part of the request body was written to the connection.
    Progress {
        /// Bytes written so far.
        bytes: u64,
        /// Length of the body in bytes.
        of: u64,
    },
    /// The response head has arrived.
    Responded {
        /// Its status.
        status: StatusCode,
        /// The worker that sent it; `None`: the dispatcher, instead of a lease.
        worker: Option<WorkerId>,
    },
    /// The response body is complete.
    Finished {
        /// Its length in bytes.
        bytes: u64,
    },
    /// No worker has started the request; another attempt follows.
    Retrying {
        /// The reason.
        reason: String,
        /// The delay before the next attempt.
        after: Duration,
    },
}

/// Called with each step and the time since the start of the call. It delays the request while it runs.
pub type Observer = Arc<dyn Fn(Duration, &Step) + Send + Sync>;

/// Reports the steps of one call to an optional observer.
#[derive(Clone)]
pub(super) struct StepReporter {
    observer: Option<Observer>,
    start: Instant,
}

impl StepReporter {
    pub(super) fn new(observer: Option<Observer>) -> Self {
        Self { observer, start: Instant::now() }
    }

    pub(super) fn report(&self, step: impl FnOnce() -> Step) {
        if let Some(observer) = &self.observer {
            observer(self.start.elapsed(), &step());
        }
    }
}

impl fmt::Debug for StepReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StepReporter(..)")
    }
}
