//! A handed-over connection: its claim, and the right to write to it.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use http::header::CONNECTION;
use http::{Request, StatusCode, Version};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::time::Instant;

use super::state::WorkerState;
use super::turn::{ActiveLease, Transaction};
use crate::clock;
use crate::handoff::{HandoffMessage, ListenerInfo};
use crate::ids::{LeaseId, Lifecycle};
use crate::log::Event;
use crate::net::{SharedStream, SocketStream, set_reset_on_close};

/// A handed-over connection that this worker holds the lease for.
pub(super) struct ClaimedConnection {
    pub active: ActiveLease,
    pub stream: SharedStream,
    /// The client's address; `None` on a Unix socket.
    pub peer: Option<SocketAddr>,
    /// The address the client connected to; `None` on a Unix socket.
    pub server: Option<SocketAddr>,
    pub listener: ListenerInfo,
    /// How many requests hyper has read.
    pub requests: AtomicU32,
    reset_on_close: AtomicBool,
    /// Whether the client sends nothing after the current request.
    pub is_last_request: AtomicBool,
    /// Whether the last request was rejected before its start.
    pub is_rejected: AtomicBool,
    /// Whether hyper has written bytes that are not flushed.
    pub unflushed: AtomicBool,
}

/// Claims the lease of a handed-over connection, before a byte of it is read. A connection that cannot be claimed is
/// closed and never shut down: the dispatcher's duplicate may still go to another worker.
pub(super) fn claim(
    state: &WorkerState,
    (message, connection): (HandoffMessage, OwnedFd),
) -> Option<ClaimedConnection> {
    if state.lifecycle() != Lifecycle::Ready {
        // The control loop refuses the offer, so that the dispatcher offers the connection to another worker at once.
        state.wake_control_loop();
        return None;
    }
    let now = clock::now();
    let terms = match state.slot.claim(message.token, now) {
        Ok(terms) if terms.lease == message.lease => terms,
        other => {
            tracing::debug!(worker = %state.id, lease = %message.lease, ?other,
                "a handed-over connection is not claimed: its lease has ended");
            return None;
        }
    };
    let HandoffMessage { peer, server, listener, .. } = message;
    let active = ActiveLease::claimed(&terms);
    let stream = SharedStream(Arc::new(SocketStream::new(connection, server.is_some())));
    state.note_claim(&terms, now, &stream);
    state.slot.note_request(terms.lease, now, &[b"(reading the request head)"]);
    Some(ClaimedConnection {
        active,
        stream,
        peer,
        server,
        listener,
        requests: AtomicU32::new(0),
        reset_on_close: AtomicBool::new(false),
        is_last_request: AtomicBool::new(false),
        is_rejected: AtomicBool::new(false),
        unflushed: AtomicBool::new(false),
    })
}

impl ClaimedConnection {
    /// Whether a close resets the connection: also the close at the death of this process, if no other process holds
    /// the connection, because the dispatcher has been restarted since the claim. On while a request has no complete
    /// response: a FIN would say that nothing was started. A request that the built-in echo serves without waiting is
    /// spared the two system calls.
    pub(super) fn set_reset_on_close(&self, on: bool) {
        if self.reset_on_close.swap(on, Ordering::Relaxed) != on {
            let _ = set_reset_on_close(&self.stream, on); // a failure shows in the next call
        }
    }

    /// Writes a line of the access log, if the listener has one.
    pub(super) fn log_access(&self, state: &WorkerState, line: &str, status: StatusCode, since: Instant) {
        if self.listener.access_log {
            let client = self.peer.map_or("unix".into(), |address| address.to_string());
            let wait_ms = format!("{:.1}", since.elapsed().as_secs_f64() * 1e3);
            tracing::info!(client, status = status.as_u16(), worker = %state.id, lease = %self.active.lease,
                wait_ms, event = %Event::RequestLogged, "{line}");
        }
    }

    /// Whether the socket's receive queue is empty.
    pub(super) fn has_nothing_to_read(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(recv(self.stream.0.as_fd().as_raw_fd(), &mut [0], flags), Ok(0) | Err(Errno::EAGAIN))
    }
}

/// Moves the lease to Responding, if it is not there yet. On `false` the lease is no longer this worker's, and nothing
/// may be written.
pub(super) fn may_write(state: &WorkerState, transaction: &Transaction, lease: LeaseId) -> bool {
    if !transaction.is_responding() && state.slot.respond(lease) {
        transaction.start_response(StatusCode::BAD_REQUEST); // until a request has another status
    }
    transaction.is_responding()
}

/// Whether a client sends no request after this one (RFC 9112, section 9.3).
pub(super) fn is_last_request<B>(request: &Request<B>) -> bool {
    let has_option = |wanted: &str| {
        let values = request.headers().get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case(wanted))
    };
    has_option("close") || request.version() < Version::HTTP_11 && !has_option("keep-alive")
}
