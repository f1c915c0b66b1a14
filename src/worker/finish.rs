//! The end of a connection or of its lease, the same for every delivery.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use nix::sys::socket::{Shutdown, shutdown};
use tokio::sync::OwnedRwLockReadGuard;

use super::served_connection::ServedConnection;
use super::service::ServiceEnd;
use super::session;
use super::state::WorkerState;
use super::transaction::{Ending, RequestResult, Transaction, TransactionEvent};
use crate::clock;
use crate::config::FrontConfig;
use crate::exchange::Counter;
use crate::log::Event;
use crate::net::{LingerBounds, ProblemResponse, SharedStream, deliver, discard_until_closed, reset};

/// So many connections wait for their clients for up to `body_timeout`, further ones for `linger_timeout` in all.
const LINGERING_MAX: usize = 256;

/// The rest of a connection that has no request any more: its client may not have received everything.
pub(super) struct ResponseDelivery {
    stream: SharedStream,
    unsent: Vec<u8>,
    bounds: LingerBounds,
    /// Held until the client has the response.
    pending: Option<OwnedRwLockReadGuard<()>>,
}

impl ResponseDelivery {
    /// Sends what is unsent, then reads and discards until the client has the response.
    pub(super) async fn run(self) {
        let Self { stream, unsent, bounds, pending } = self;
        if unsent.is_empty() {
            discard_until_closed(stream, bounds).await;
        } else {
            deliver(stream, &unsent, bounds).await;
        }
        drop(pending);
    }
}

/// Cleans up after the handler, ends the connection unless it is kept, and releases the lease. `connection` is the last
/// duplicate in this process: a kept connection is the dispatcher's.
pub(super) async fn finish(
    state: &Arc<WorkerState>,
    connection: Arc<ServedConnection>,
    end: ServiceEnd,
) -> Option<ResponseDelivery> {
    if let ServiceEnd::Switched(session) = &end {
        session::serve(state, &connection, session).await;
    }
    let transaction = connection.transaction.clone();
    transaction.on(TransactionEvent::Ended(end.cause())); // unless it has ended
    let lease = transaction.get(Transaction::lease);
    if let ServiceEnd::Http(error) = &end {
        tracing::debug!(worker = %state.id, %error, "connection ended early");
    }
    // Before the lease is released, and so before the dispatcher can recycle this worker. A connection without a lease
    // does not wait for a worker that is about to recycle.
    let pending = match lease {
        Some(_) => Some(state.pending_responses.clone().read_owned().await),
        None => state.pending_responses.clone().try_read_owned().ok(),
    };
    if lease.is_some() {
        state.end_request();
        if let Some(builtin) = &state.builtin {
            builtin.end_request(transaction.get(Transaction::respond_by).since(clock::now())).await;
            // Before the lease is released, so that the dispatcher sees both at once.
            state.update_handler();
        }
    }
    // Only the holder of the lease may end the connection for all processes that hold it.
    connection.may_respond(&state.slot);
    let ending = transaction.get(Transaction::ending);
    if transaction.get(Transaction::number) > 0 && lease.is_some() {
        end.log_request(state, &connection);
    }
    let refusal = end.refusal(&transaction);
    let unsent = end_stream(state, &connection, ending, refusal.as_ref());
    // A close with unread bytes sends a reset. Nothing is unread, nor will be, after a client's last request.
    let needs_delivery = match ending {
        Ending::KeepAlive | Ending::Reset | Ending::LeaveOpen => false,
        Ending::CloseWrite => {
            !(transaction.get(Transaction::is_last_request_complete) && connection.has_nothing_to_read())
        }
        Ending::LateHead408(_) | Ending::Reject => true,
    };
    let stream = needs_delivery.then(|| connection.stream.clone());
    // A kept connection leaves this process's epoll before the dispatcher waits on it.
    drop(connection);
    if let Some(lease) = lease {
        let took = clock::now().since(lease.claimed_at);
        let (result, status) = transaction.get(|transaction| (transaction.result(), transaction.status()));
        let status = refusal.map_or(status, |refusal| refusal.status.as_u16());
        tracing::debug!(worker = %state.id, lease = %lease.id, epoch = %state.slot.epoch(), status,
            took_ms = took.as_millis() as u64, event = %Event::RequestAnswered, "request finished");
        if ending == Ending::KeepAlive {
            state.slot.keep_connection(lease.id);
        }
        match result {
            RequestResult::Unused => state.release_unused(lease.id),
            RequestResult::Served => state.finish(lease.id, took, false),
            RequestResult::Failed => state.finish(lease.id, took, true),
        }
    }
    stream.map(|stream| ResponseDelivery { stream, unsent, bounds: linger_bounds(state), pending })
}

/// Ends the connection itself as decided. Returns what could not be sent at once.
fn end_stream(
    state: &WorkerState,
    connection: &ServedConnection,
    ending: Ending,
    refusal: Option<&ProblemResponse>,
) -> Vec<u8> {
    let stream = &connection.stream;
    let mut unsent = Vec::new();
    match ending {
        Ending::LeaveOpen => return unsent,
        Ending::Reset => {
            reset(&*stream.0);
            return unsent;
        }
        Ending::KeepAlive | Ending::CloseWrite | Ending::LateHead408(_) | Ending::Reject => {
            connection.set_reset_on_close(false);
        }
    }
    if let Some(problem) = refusal {
        unsent = problem.framed(connection.transaction.wire());
        let sent = stream.0.try_write(&unsent).unwrap_or(0);
        unsent.drain(..sent);
        connection.log_refusal(&state.id, problem);
        state.slot.count(Counter::Rejected, 1);
    }
    if ending != Ending::KeepAlive && unsent.is_empty() {
        let _ = shutdown(stream.0.as_fd().as_raw_fd(), Shutdown::Write); // fails if the client has gone
    }
    unsent
}

/// The bounds of the delivery of a response after the end of its request.
fn linger_bounds(state: &WorkerState) -> LingerBounds {
    let FrontConfig { linger_timeout: silence, body_timeout, .. } = state.front;
    // Each of these connections holds a reference. Clients that send for ever must not use up the descriptors.
    let is_crowded = Arc::strong_count(&state.pending_responses) > LINGERING_MAX;
    LingerBounds { silence, total: if is_crowded { silence } else { body_timeout } }
}
