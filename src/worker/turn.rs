//! One connection's turn: what it holds, until when, and how far its answer has come.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::{Instant, sleep, sleep_until};

use crate::ids::LeaseId;
use crate::net::{self, disconnected};
use crate::sync;

/// Requests shorter than this are not worth a watch on their client: it costs a descriptor and five calls.
const WATCH_AFTER: Duration = Duration::from_millis(50);

/// How long after its deadline a request may take to send its 504.
const PARTING: Duration = Duration::from_secs(1);

/// The lease of a turn.
#[derive(Clone, Copy, Debug)]
pub struct ActiveLease {
    pub lease: LeaseId,
    pub since: Instant,
    pub deadline: Instant,
}

/// Why a turn was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortCause {
    /// `request_timeout` passed while the response was being sent.
    Deadline,
    /// The head of a request did not come within `head_timeout`.
    Head,
    /// The client has gone.
    Gone,
}

#[derive(Debug, Default)]
pub struct Transaction {
    held: Mutex<Option<ActiveLease>>,
    claimed: Notify,
    responding: AtomicBool,
    /// The status of the answer; 0 before there is one.
    status: AtomicU16,
    /// Nothing has been sent to a client that knows HTTP/1.1.
    may_probe: AtomicBool,
    failed: AtomicBool,
    /// Whether a request is in hand, whether all of its body has come, and whether all of its response is on its way.
    asked: AtomicBool,
    received: AtomicBool,
    sent: AtomicBool,
    /// Whether the handler has let go of a body before its end.
    unread: AtomicBool,
    floor: Mutex<Option<HandlerPermit>>,
}

/// The right to use the handler: see [`super::state::WorkerState::floor`].
pub type HandlerPermit = OwnedMutexGuard<()>;

impl Transaction {
    fn held(&self) -> Option<ActiveLease> {
        *sync::lock(&self.held)
    }

    /// The lease it holds.
    pub fn lease(&self) -> Option<LeaseId> {
        self.held().map(|held| held.lease)
    }

    pub fn begin(&self, held: ActiveLease, http11: bool) {
        *sync::lock(&self.held) = Some(held);
        self.may_probe.store(http11, Ordering::Relaxed);
        self.claimed.notify_one();
    }

    pub fn end(&self) -> Option<ActiveLease> {
        sync::lock(&self.held).take()
    }

    pub fn respond(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Ordering::Relaxed);
        self.may_probe.store(false, Ordering::Relaxed);
        self.responding.store(true, Ordering::Relaxed);
    }

    /// The client speaks HTTP/1.1, and nothing has been sent to it.
    pub fn allow_probe(&self) {
        self.may_probe.store(!self.is_responding(), Ordering::Relaxed);
    }

    /// Whether the first byte of a response has been allowed.
    pub fn is_responding(&self) -> bool {
        self.responding.load(Ordering::Relaxed)
    }

    /// A request has come. `whole`: it has no body.
    pub fn ask(&self, whole: bool) {
        self.sent.store(false, Ordering::Relaxed);
        self.received.store(whole, Ordering::Relaxed);
        self.unread.store(false, Ordering::Relaxed);
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Its body has come to its end.
    pub fn receive(&self) {
        self.received.store(true, Ordering::Relaxed);
    }

    /// Nobody reads its body any more.
    pub fn let_body_go(&self) {
        self.unread.store(!self.has_received(), Ordering::Relaxed);
    }

    /// Whether something of its body is left that nobody will read.
    pub fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Its response has come to its end.
    pub fn send(&self) {
        self.sent.store(true, Ordering::Relaxed);
    }

    /// Whether a request is in hand, or has ended amid its response.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) && !self.sent.load(Ordering::Relaxed)
    }

    /// Whether all of the request has come.
    pub fn has_received(&self) -> bool {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether all of a response has been handed on.
    pub fn has_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether its handler is in use already.
    pub fn has_floor(&self) -> bool {
        sync::lock(&self.floor).is_some()
    }

    /// The status it has been answered with; 0 if it has not.
    pub fn status(&self) -> u16 {
        self.status.load(Ordering::Relaxed)
    }

    pub fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Keeps the right to use the handler until the turn is over.
    pub fn take_floor(&self, floor: Option<HandlerPermit>) {
        *sync::lock(&self.floor) = floor;
    }

    pub fn leave_floor(&self) {
        self.take_floor(None);
    }

    /// Returns when the connection must end whatever is being done on it: never before a claim.
    pub async fn cut(self: Arc<Self>, stream: net::SharedStream) -> AbortCause {
        self.claimed.notified().await;
        let Some(held) = self.held() else { return std::future::pending().await };
        let client = async {
            sleep(WATCH_AFTER).await;
            disconnected(&stream, &self.may_probe).await;
        };
        let deadline = async {
            sleep_until(held.deadline).await;
            if !self.responding.load(Ordering::Relaxed) {
                sleep(PARTING).await; // the 504 is on its way
            }
        };
        tokio::select! {
            () = client => AbortCause::Gone,
            () = deadline => AbortCause::Deadline,
        }
    }
}
