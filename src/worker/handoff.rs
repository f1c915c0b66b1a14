//! The handoff delivery: one connection that the dispatcher handed over, from its claim until it is closed or returned
//! to the dispatcher.
//!
//! The lease is for one request and for what was read with it: a client may have pipelined further requests (RFC 9112,
//! section 9.3.2). Nothing is read after a response, so that the dispatcher finds the next request in the socket.

use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, AsRawFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use bytes::{Buf, BytesMut};
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::claim::{ClaimedConnection, claim, is_last_request, may_write};
use super::handler::{Body, BoxError, BuiltinHandler};
use super::handoff_io::HandoffIo;
use super::handoff_receiver::HandoffReceiver;
use super::inetd;
use super::service::{EarlyEnd, HandlerService, RequestRunner, problem_response};
use super::state::WorkerState;
use super::turn::{AbortCause, ActiveLease, Transaction};
use crate::bounds::head_bound;
use crate::exchange::Counter;
use crate::ids::Lifecycle;
use crate::log::Event;
use crate::net::{self, NoRequest, ProblemResponse, RequestInput, reset};

/// How many pipelined requests one lease serves: the response to the last of them closes the connection.
const MAX_PIPELINED: u32 = 64;

/// What happens to a connection after its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterLease {
    /// The dispatcher waits for its next request.
    Keep,
    Close,
}

/// The worker has no free descriptor to receive connections with.
#[derive(Clone, Copy, Debug)]
pub(super) struct DescriptorsExhausted;

/// Serves one connection after the other, as long as it can receive them.
pub(super) async fn run<S: HandlerService>(
    state: Arc<WorkerState>,
    service: Arc<Mutex<S>>,
    receiver: Option<HandoffReceiver>,
) -> Option<DescriptorsExhausted> {
    let Some(mut receiver) = receiver else { return std::future::pending().await };
    loop {
        let Some(received) = receiver.next().await else { return Some(DescriptorsExhausted) };
        if let Some(connection) = claim(&state, received) {
            if state.is_inetd() {
                inetd::serve(&state, connection).await;
            } else {
                serve(&state, &service, connection).await;
            }
        }
    }
}

async fn serve<S: HandlerService>(state: &Arc<WorkerState>, service: &Arc<Mutex<S>>, connection: ClaimedConnection) {
    let connection = Arc::new(connection);
    let transaction = Arc::new(Transaction::default());
    let (stream, timeout) = (connection.stream.clone(), connection.active.timeout);
    let runner = Arc::new(RequestRunner {
        state: state.clone(),
        service: service.clone(),
        transaction: transaction.clone(),
        stream: stream.clone(),
    });
    let mut active = connection.active;
    let mut received = BytesMut::new();
    // Whether the connection ended within a request or its response. Read before hyper's connection is dropped: that
    // drops the response body, which looks like the end of the response.
    let mut mid_request = false;
    let end = loop {
        let (bound, name) = head_bound(state.front.head_timeout, timeout);
        let read = or_reset(&connection, RequestInput::read(&stream, received, state.front.head_bytes));
        let input = match tokio::time::timeout(bound, read).await {
            Ok(Ok(input)) => input,
            Ok(Err(NoRequest::Closed)) => break Ok(AfterLease::Close),
            Ok(Err(NoRequest::Rejected(problem))) => break Err(EarlyEnd::Rejected(problem)),
            Err(_elapsed) => break Err(EarlyEnd::Rejected(ProblemResponse::late_head(name))),
        };
        transaction.note_claim(active, false);
        let (idle, is_served) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let io = HandoffIo {
            connection: connection.clone(),
            transaction: transaction.clone(),
            input,
            is_served: is_served.clone(),
            idle: idle.clone(),
        };
        let mut http = http1::Builder::new().half_close(true).max_buf_size(state.front.head_bytes).serve_connection(
            TokioIo::new(io),
            service_fn(|request| respond(runner.clone(), connection.clone(), active, is_served.clone(), request)),
        );
        let served = poll_fn(|task| match Pin::new(&mut http).poll(task) {
            Poll::Ready(served) => Poll::Ready(Some(served)),
            Poll::Pending if idle.load(Ordering::Relaxed) => Poll::Ready(None),
            Poll::Pending => {
                connection.set_reset_on_close(true);
                Poll::Pending
            }
        });
        let served = tokio::select! {
            biased; // no timers for a request that is done at once
            served = served => served.map(|served| served.map_err(EarlyEnd::Http)),
            cause = transaction.clone().aborted(stream.clone()) => Some(Err(EarlyEnd::Aborted(cause))),
        };
        mid_request = transaction.is_request_open() || connection.unflushed.load(Ordering::Relaxed);
        match served {
            Some(Ok(())) => break Ok(AfterLease::Close),
            Some(Err(EarlyEnd::Http(error))) if error.is_parse() && !is_served.load(Ordering::Relaxed) => {
                break Err(EarlyEnd::Rejected(ProblemResponse::unparsable(&error)));
            }
            Some(Err(end)) => break Err(end),
            None => received = http.into_parts().io.into_inner().input.into_next(),
        }
        // Some clients end a body with an empty line (RFC 9112, section 2.2), which is no request to wait for.
        while received.starts_with(b"\r\n") {
            received.advance(2);
        }
        if received.is_empty() {
            break Ok(AfterLease::Keep);
        }
        // Each pipelined request has its own request_timeout. The lease is Responding by now, and the dispatcher waits
        // for its end.
        active = active.for_next_request();
        state.note_next_request(active.lease, timeout, &stream);
    };
    // `finish` leaves a kept connection to the dispatcher, so that no duplicate may remain here.
    drop(runner);
    drop(stream);
    finish(state, &transaction, connection, end, mid_request).await;
}

/// Cleans up after the handler, ends the connection unless it is kept, and releases the lease.
async fn finish(
    state: &Arc<WorkerState>,
    transaction: &Transaction,
    connection: Arc<ClaimedConnection>,
    end: Result<AfterLease, EarlyEnd>,
    mid_request: bool,
) {
    if let Err(EarlyEnd::Http(error)) = &end {
        tracing::debug!(worker = %state.id, %error, "connection ended early");
    }
    // Before the lease is released, and so before the dispatcher can recycle this worker.
    let pending = state.pending_responses.clone().read_owned().await;
    state.handler_done();
    if let Some(builtin) = &state.builtin {
        builtin.end_request().await;
    }
    let (active, stream) = (connection.active, connection.stream.clone());
    let had_request = connection.requests.load(Ordering::Relaxed) > 0;
    let kept = matches!(end, Ok(AfterLease::Keep));
    // A FIN within a response would make it look complete, and one in place of a response would mean that the request
    // was not started. After a response it is harmless.
    let fin_allowed = match &end {
        Ok(_) => true,
        Err(EarlyEnd::Aborted(AbortCause::ClientGone)) => false,
        Err(end) => !mid_request && !end.is_handler_fault(),
    };
    if let Err(end) = &end
        && had_request
    {
        end.log_request(state, transaction, active.lease);
        if !fin_allowed {
            transaction.fail();
        }
    }
    let mut unsent = Vec::new();
    if let Err(EarlyEnd::Rejected(problem)) = &end
        && may_write(state, transaction, active.lease)
    {
        transaction.start_response(problem.status);
        unsent = problem.raw();
        let sent = stream.0.try_write(&unsent).unwrap_or(0);
        unsent.drain(..sent);
        connection.log_access(state, &problem.detail, problem.status, active.claimed_at);
        state.slot.count(Counter::Rejected, 1);
    }
    // Only the holder of the lease may end the connection for all processes that hold it.
    if may_write(state, transaction, active.lease) {
        if fin_allowed {
            connection.set_reset_on_close(false);
            if !kept && unsent.is_empty() {
                let _ = shutdown(stream.0.as_fd().as_raw_fd(), Shutdown::Write); // fails if the client has gone
            }
        } else {
            reset(&*stream.0);
        }
    }
    transaction.release_handler();
    let took = active.claimed_at.elapsed();
    tracing::debug!(worker = %state.id, lease = %active.lease, epoch = %state.slot.epoch(),
        status = transaction.status(), took_ms = took.as_millis() as u64,
        event = %Event::RequestAnswered, "request finished");
    // A close with unread bytes sends a reset. Nothing is unread, nor will be, after a client's last request.
    let is_last =
        end.is_ok() && transaction.is_request_complete() && connection.is_last_request.load(Ordering::Relaxed);
    let needs_drain = fin_allowed && !(is_last && connection.has_nothing_to_read());
    let is_rejected = connection.is_rejected.load(Ordering::Relaxed);
    // A kept connection leaves this process's epoll before the dispatcher waits on it.
    let stream = (!kept).then_some(stream);
    drop(connection);
    if kept {
        state.slot.keep_connection(active.lease);
    }
    if had_request && !is_rejected {
        state.finish(active.lease, took, transaction.has_failed());
    } else {
        state.release_unused(active.lease);
    }
    match stream {
        Some(stream) if !unsent.is_empty() => state.deliver(stream, unsent, pending),
        Some(stream) if needs_drain => state.drain(stream, pending),
        _ => {}
    }
}

/// Waits for `future`. A connection of which a request may be waiting for a response is reset by a death from now on.
async fn or_reset<F: Future>(connection: &ClaimedConnection, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|task| {
        let polled = future.as_mut().poll(task);
        if polled.is_pending() {
            connection.set_reset_on_close(true);
        }
        polled
    })
    .await
}

/// Checks one request of the connection, and runs the handler for it.
async fn respond<S: HandlerService>(
    runner: Arc<RequestRunner<S>>,
    connection: Arc<ClaimedConnection>,
    active: ActiveLease,
    is_served: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let RequestRunner { state, transaction, .. } = &*runner;
    let ClaimedConnection { peer, server, listener, .. } = &*connection;
    transaction.start_request(request.body().is_end_stream());
    is_served.store(true, Ordering::Relaxed);
    let number = connection.requests.fetch_add(1, Ordering::Relaxed) + 1;
    if number > 1 {
        // `finish` runs once per lease: it has not cleaned up after the request before.
        if let Some(builtin) = &state.builtin {
            builtin.end_request().await;
        }
        let failed = transaction.take_failed();
        if !connection.is_rejected.load(Ordering::Relaxed) {
            state.count_pipelined(failed);
        }
    }
    if !matches!(state.builtin, Some(BuiltinHandler::Echo)) {
        connection.set_reset_on_close(true);
    }
    if request.version() >= Version::HTTP_11 {
        transaction.allow_probe();
    }
    connection.is_last_request.store(is_last_request(&request), Ordering::Relaxed);
    let access_line = listener.access_log.then(|| format!("{} {}", request.method(), request.uri()));
    let since = Instant::now();
    let checked = net::check_request(&request, &listener.allowed_hosts, listener.listens_on, state.front.max_body);
    let checked = checked.and_then(|(_, target)| {
        let unknown_target =
            || ProblemResponse::not_started(StatusCode::NOT_FOUND, "leases are not available on a handoff listener");
        target.parse().ok().filter(|_| request.uri().path() != net::LEASE_PATH).ok_or_else(unknown_target)
    });
    connection.is_rejected.store(checked.is_err(), Ordering::Relaxed);
    let is_malformed = checked.as_ref().is_err_and(|problem| problem.status == StatusCode::BAD_REQUEST);
    let mut response = match checked {
        Ok(target) => runner.run(request, target, active, *peer, *server).await?,
        Err(problem) => {
            state.slot.count(Counter::Rejected, 1);
            transaction.drop_body();
            if !may_write(state, transaction, active.lease) {
                return Err("the dispatcher has aborted the lease".into());
            }
            transaction.start_response(problem.status);
            transaction.complete_response();
            problem_response(&problem)
        }
    };
    // After an unread body the start of the next request is unknown. A worker that drains or recycles serves the current
    // request to its end, and no further one.
    let is_closing = is_malformed || number == MAX_PIPELINED || state.lifecycle() != Lifecycle::Ready;
    if transaction.is_body_dropped() || is_closing {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(line) = access_line {
        connection.log_access(state, &line, response.status(), since);
    }
    Ok(response)
}
