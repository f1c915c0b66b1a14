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

use bytes::Bytes;
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
use super::handler::{Body, BoxError};
use super::handoff_io::HandoffIo;
use super::handoff_receiver::HandoffReceiver;
use super::inetd;
use super::service::{EarlyEnd, HandlerService, RequestRunner, problem_response};
use super::state::WorkerState;
use super::turn::{AbortCause, Transaction};
use crate::log::Event;
use crate::net::{self, ProblemResponse, reset};

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
    transaction.note_claim(connection.active, false);
    // Whether the connection ended within a request or its response. Read before hyper's connection is dropped: that
    // drops the response body, which looks like the end of the response.
    let mut mid_request;
    let end = {
        let stream = connection.stream.clone();
        let mut aborted = pin!(transaction.clone().aborted(stream.clone()));
        let (state, service, transaction) = (state.clone(), service.clone(), transaction.clone());
        let runner = Arc::new(RequestRunner { state, service, transaction, stream });
        let RequestRunner { state, transaction, .. } = &*runner;
        let mut read_ahead = Bytes::new();
        loop {
            let idle = Arc::new(AtomicBool::new(false));
            let known = connection.requests.load(Ordering::Relaxed);
            let io = HandoffIo {
                connection: connection.clone(),
                state: state.clone(),
                transaction: transaction.clone(),
                read_ahead,
                known,
                idle: idle.clone(),
            };
            let mut http =
                http1::Builder::new().half_close(true).max_buf_size(state.front.head_bytes).serve_connection(
                    TokioIo::new(io),
                    service_fn(|request| respond(runner.clone(), connection.clone(), request)),
                );
            let served = poll_fn(|task| match Pin::new(&mut http).poll(task) {
                Poll::Ready(served) => Poll::Ready(Some(served.map_err(EarlyEnd::Http))),
                Poll::Pending if idle.load(Ordering::Relaxed) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            let served = tokio::select! {
                biased; // no timers for a request that is done at once
                served = served => served,
                cause = &mut aborted => Some(Err(EarlyEnd::Aborted(cause))),
                () = connection.head_timeout(known, state.front.head_timeout) => {
                    Some(Err(EarlyEnd::Aborted(AbortCause::HeadTimeout)))
                }
            };
            mid_request = transaction.is_request_open() || connection.unflushed.load(Ordering::Relaxed);
            match served {
                Some(Ok(())) => break Ok(AfterLease::Close),
                Some(Err(end)) => break Err(end),
                None => read_ahead = http.into_parts().read_buf,
            }
            if read_ahead.is_empty() {
                break Ok(AfterLease::Keep);
            }
        }
    };
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
    // A FIN within a response would make it look complete. Before and after a response it is harmless.
    let fin_allowed = end.is_ok() || !mid_request && !matches!(&end, Err(EarlyEnd::Aborted(AbortCause::ClientGone)));
    if let Err(end) = &end {
        if had_request {
            if !fin_allowed {
                transaction.fail();
            }
            end.log_request(state, active.lease);
        }
        if matches!(end, EarlyEnd::Aborted(AbortCause::HeadTimeout)) && may_write(state, transaction, active.lease) {
            let _ = stream.0.try_write(&ProblemResponse::late_head().raw());
        }
    }
    // Only the holder of the lease may end the connection for all processes that hold it.
    if may_write(state, transaction, active.lease) {
        if fin_allowed {
            connection.set_reset_on_close(false);
            if !kept {
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
    // A kept connection leaves this process's epoll before the dispatcher waits on it.
    let stream = (!kept).then_some(stream);
    drop(connection);
    if kept {
        state.slot.keep_connection(active.lease);
    }
    if had_request {
        state.finish(active.lease, took, transaction.has_failed());
    } else {
        state.release_unused(active.lease);
    }
    if let Some(stream) = stream.filter(|_| needs_drain) {
        state.drain(stream, pending);
    }
}

/// Checks one request of the connection, and runs the handler for it.
async fn respond<S: HandlerService>(
    runner: Arc<RequestRunner<S>>,
    connection: Arc<ClaimedConnection>,
    request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let RequestRunner { state, transaction, .. } = &*runner;
    let ClaimedConnection { active, peer, server, listener, .. } = &*connection;
    let number = connection.requests.fetch_add(1, Ordering::Relaxed) + 1;
    if number > 1 {
        // `finish` runs once per lease: it has not cleaned up after the request before.
        if let Some(builtin) = &state.builtin {
            builtin.end_request().await;
        }
        state.count_pipelined();
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
    let mut response = match checked {
        Ok(target) => runner.run(request, target, *active, *peer, *server).await?,
        Err(problem) => {
            transaction.start_request(request.body().is_end_stream());
            transaction.drop_body();
            if !may_write(state, transaction, active.lease) {
                return Err("the dispatcher has aborted the lease".into());
            }
            transaction.start_response(problem.status);
            transaction.complete_response();
            problem_response(&problem)
        }
    };
    // After an unread body the start of the next request is unknown.
    if transaction.is_body_dropped() || number == MAX_PIPELINED {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(line) = access_line {
        let client = peer.map_or("unix".into(), |address| address.to_string());
        let wait_ms = format!("{:.1}", since.elapsed().as_secs_f64() * 1e3);
        tracing::info!(client, status = response.status().as_u16(), worker = %state.id, lease = %active.lease,
            wait_ms, event = %Event::RequestLogged, "{line}");
    }
    Ok(response)
}
