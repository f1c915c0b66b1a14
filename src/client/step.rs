//! The way of a call as its caller can watch it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::address::{Address, Target};
use crate::ids::WorkerId;

/// One thing that happened during a call. After `Retrying` the steps begin again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The dispatcher accepted the connection.
    Connected {
        /// The dispatcher.
        to: Target,
    },
    /// The dispatcher is being asked for a lease.
    Asked,
    /// The dispatcher asked a worker, the worker accepted, the lease is here.
    Leased {
        /// The worker that accepted.
        worker: WorkerId,
        /// Where it is.
        address: Address,
    },
    /// The worker accepted the connection; the request goes out.
    Sending {
        /// Where the worker is.
        address: Address,
        /// Length of the request's body in bytes.
        length: u64,
    },
    /// The worker wants the body (`100 Continue`).
    Continue,
    /// A part of the request's body went to the connection.
    Progress {
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all.
        of: u64,
    },
    /// The head of an answer is here.
    Answered {
        /// Its status.
        status: StatusCode,
        /// The worker that gave it; `None`: the dispatcher, instead of a lease.
        worker: Option<WorkerId>,
    },
    /// The answer's body is complete.
    Finished {
        /// Its length in bytes.
        bytes: u64,
    },
    /// This attempt started nothing; another one follows.
    Retrying {
        /// Why.
        reason: String,
        /// The pause before it.
        after: Duration,
    },
}

/// Called with each step and the time since the call began. It runs on the way of the request: keep it short.
pub type Observer = Arc<dyn Fn(Duration, &Step) + Send + Sync>;

/// An observer and the moment its call began.
#[derive(Clone)]
pub(super) struct Watch {
    observer: Option<Observer>,
    start: Instant,
}

impl Watch {
    pub(super) fn new(observer: Option<Observer>) -> Self {
        Self { observer, start: Instant::now() }
    }

    pub(super) fn tell(&self, step: impl FnOnce() -> Step) {
        if let Some(observer) = &self.observer {
            observer(self.start.elapsed(), &step());
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch(..)")
    }
}
