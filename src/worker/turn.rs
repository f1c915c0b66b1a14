//! One transaction, or the pipelined transactions of one lease: the lease with its deadline, and the progress of
//! request and response.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::{Instant, sleep, sleep_until};

use crate::bounds::HANDLER_ABORT_GRACE;
use crate::ids::{LeaseId, LeaseTerms};
use crate::net::{SharedStream, disconnected};
use crate::sync;

/// A request is not watched for a disconnect before this: the watch costs a descriptor and five system calls.
const DISCONNECT_WATCH_DELAY: Duration = Duration::from_millis(50);

/// A claimed lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct ActiveLease {
    pub lease: LeaseId,
    pub claimed_at: Instant,
    /// The `request_timeout` of its pool.
    pub timeout: Duration,
    /// When the current request must have its response.
    pub deadline: Instant,
}

impl ActiveLease {
    /// The lease with these terms, claimed now.
    pub(super) fn claimed(terms: &LeaseTerms) -> Self {
        let now = Instant::now();
        let timeout = terms.request_timeout;
        Self { lease: terms.lease, claimed_at: now, timeout, deadline: now + timeout }
    }

    /// The same lease for a pipelined request, which starts now.
    pub(super) fn for_next_request(self) -> Self {
        Self { deadline: Instant::now() + self.timeout, ..self }
    }
}

/// Why a connection was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AbortCause {
    /// `request_timeout` passed during the response, or without one.
    Deadline,
    /// The client has disconnected.
    ClientGone,
}

#[derive(Debug, Default)]
pub(super) struct Transaction {
    lease: Mutex<Option<ActiveLease>>,
    claimed: Notify,
    responding: AtomicBool,
    /// The status of the response to the current request; 0 before there is one.
    status: AtomicU16,
    /// Nothing has been sent, and the client speaks HTTP/1.1: an interim response may probe it.
    may_probe: AtomicBool,
    failed: AtomicBool,
    has_request: AtomicBool,
    request_complete: AtomicBool,
    response_complete: AtomicBool,
    /// The handler has dropped the request body before its end.
    body_dropped: AtomicBool,
    handler_permit: Mutex<Option<HandlerPermit>>,
}

/// The right to use the handler: see [`super::state::WorkerState::handler_permit`].
pub(super) type HandlerPermit = OwnedMutexGuard<()>;

impl Transaction {
    fn active_lease(&self) -> Option<ActiveLease> {
        *sync::lock(&self.lease)
    }

    pub(super) fn lease(&self) -> Option<LeaseId> {
        self.active_lease().map(|active| active.lease)
    }

    /// The lease was claimed, or is used for another request. `http11`: the client speaks HTTP/1.1.
    pub(super) fn note_claim(&self, lease: ActiveLease, http11: bool) {
        *sync::lock(&self.lease) = Some(lease);
        self.may_probe.store(http11, Ordering::Relaxed);
        self.claimed.notify_one();
    }

    pub(super) fn take_lease(&self) -> Option<ActiveLease> {
        sync::lock(&self.lease).take()
    }

    /// The response starts with this status; again, for each pipelined request.
    pub(super) fn start_response(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Ordering::Relaxed);
        self.may_probe.store(false, Ordering::Relaxed);
        self.responding.store(true, Ordering::Relaxed);
    }

    /// The client speaks HTTP/1.1.
    pub(super) fn allow_probe(&self) {
        self.may_probe.store(!self.is_responding(), Ordering::Relaxed);
    }

    /// Whether the first byte of a response has been allowed.
    pub(super) fn is_responding(&self) -> bool {
        self.responding.load(Ordering::Relaxed)
    }

    /// The head of a request was received. `complete`: it has no body.
    pub(super) fn start_request(&self, complete: bool) {
        self.status.store(0, Ordering::Relaxed);
        self.response_complete.store(false, Ordering::Relaxed);
        self.request_complete.store(complete, Ordering::Relaxed);
        self.body_dropped.store(false, Ordering::Relaxed);
        self.has_request.store(true, Ordering::Relaxed);
    }

    /// The request body has ended.
    pub(super) fn complete_request(&self) {
        self.request_complete.store(true, Ordering::Relaxed);
    }

    /// The request body is dropped.
    pub(super) fn drop_body(&self) {
        self.body_dropped.store(!self.is_request_complete(), Ordering::Relaxed);
    }

    /// Whether the request body was dropped before its end.
    pub(super) fn is_body_dropped(&self) -> bool {
        self.body_dropped.load(Ordering::Relaxed)
    }

    /// hyper has taken all of the response.
    pub(super) fn complete_response(&self) {
        self.response_complete.store(true, Ordering::Relaxed);
    }

    /// Whether there is a request without a complete response.
    pub(super) fn is_request_open(&self) -> bool {
        self.has_request.load(Ordering::Relaxed) && !self.is_response_complete()
    }

    pub(super) fn is_request_complete(&self) -> bool {
        self.request_complete.load(Ordering::Relaxed)
    }

    pub(super) fn is_response_complete(&self) -> bool {
        self.response_complete.load(Ordering::Relaxed)
    }

    /// The status of the response; 0 if there was none.
    pub(super) fn status(&self) -> u16 {
        self.status.load(Ordering::Relaxed)
    }

    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Whether the request before has failed.
    pub(super) fn take_failed(&self) -> bool {
        self.failed.swap(false, Ordering::Relaxed)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn has_handler_permit(&self) -> bool {
        sync::lock(&self.handler_permit).is_some()
    }

    /// Keeps the permit until [`Self::release_handler`].
    pub(super) fn keep_handler_permit(&self, permit: Option<HandlerPermit>) {
        *sync::lock(&self.handler_permit) = permit;
    }

    pub(super) fn release_handler(&self) {
        self.keep_handler_permit(None);
    }

    /// Returns when the connection must end, whatever happens on it: never before a claim.
    pub(super) async fn aborted(self: Arc<Self>, stream: SharedStream) -> AbortCause {
        self.claimed.notified().await;
        let Some(active) = self.active_lease() else { return std::future::pending().await };
        let client_gone = async {
            sleep(DISCONNECT_WATCH_DELAY).await;
            disconnected(&stream, &self.may_probe).await;
        };
        let deadline = async {
            sleep_until(active.deadline).await;
            if self.status() == 0 {
                sleep(HANDLER_ABORT_GRACE).await;
            }
        };
        tokio::select! {
            () = client_gone => AbortCause::ClientGone,
            () = deadline => AbortCause::Deadline,
        }
    }
}
