//! The redirect delivery: one connection to the worker's own listener, with one request that carries its token.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::handler::{Body, BoxError};
use super::lease_url;
use super::send_back::send_back;
use super::service::{EarlyEnd, HandlerService, RequestRunner, problem_response};
use super::state::WorkerState;
use super::turn::{ActiveLease, Transaction};
use crate::bounds::head_bound;
use crate::clock;
use crate::config::FrontConfig;
use crate::exchange::{self, Counter};
use crate::log::Event;
use crate::net::{
    LEASE_PREFIX_LENGTH, NoRequest, OneRequestIo, ProblemResponse, RequestInput, SharedStream, deliver,
    lingering_close, set_reset_on_close,
};

/// Serves one connection until it is closed.
pub(super) async fn serve<S: HandlerService>(state: Arc<WorkerState>, service: Arc<Mutex<S>>, stream: SharedStream) {
    let transaction = Arc::new(Transaction::default());
    let runner = Arc::new(RequestRunner {
        state: state.clone(),
        service,
        transaction: transaction.clone(),
        stream: stream.clone(),
    });
    // `Ok`: the response, if there is one, has been sent whole.
    // The handler's future and the bodies are dropped in it, which cancels a request that is not done.
    let end = serve_request(&runner).await;
    if let Err(EarlyEnd::Http(error)) = &end {
        tracing::debug!(worker = %state.id, %error, "connection ended early");
    }
    let active = transaction.take_lease();
    // Before the lease is released, and so before the dispatcher can recycle this worker. A connection without a lease
    // does not wait for a worker that is about to recycle.
    let _pending = match active {
        Some(_) => Some(state.pending_responses.clone().read_owned().await),
        None => state.pending_responses.clone().try_read_owned().ok(),
    };
    if let Some(active) = active {
        finish(&state, &transaction, active, &end, &stream).await;
        if end.is_err() {
            return; // without a FIN, with which half a response of unknown length would look complete
        }
    }
    match &end {
        Err(EarlyEnd::Rejected(problem)) => {
            state.slot.count(Counter::Rejected, 1);
            deliver(stream, &problem.raw(), state.linger_bounds()).await;
        }
        _ => lingering_close(stream, state.linger_bounds()).await,
    }
}

async fn serve_request<S: HandlerService>(runner: &Arc<RequestRunner<S>>) -> Result<(), EarlyEnd> {
    let RequestRunner { state, transaction, stream, .. } = &**runner;
    let body_dropped = transaction.clone();
    let served = serve_one_request(
        stream,
        &state.front,
        head_bound(state.front.head_timeout, state.request_timeout()),
        move || body_dropped.is_body_dropped(),
        |request| respond(runner.clone(), request),
    );
    tokio::select! {
        served = served => served,
        cause = transaction.clone().aborted(stream.clone()) => Err(EarlyEnd::Aborted(cause)),
    }
}

/// Reads one request at a worker's address and responds to it. `head_bound`: how long its head may take, and the key that
/// says so.
pub(super) async fn serve_one_request<R, E>(
    stream: &SharedStream,
    front: &FrontConfig,
    (head_bound, bound_key): (Duration, &str),
    is_body_dropped: impl Fn() -> bool + Unpin,
    respond: impl Fn(Request<Incoming>) -> R,
) -> Result<(), EarlyEnd>
where
    R: Future<Output = Result<Response<Body>, E>>,
    E: Into<BoxError>,
{
    let head_bytes = front.head_bytes + LEASE_PREFIX_LENGTH;
    let read = RequestInput::read(stream, BytesMut::new(), head_bytes);
    let input = match timeout(head_bound, read).await {
        Ok(Ok(input)) => input,
        Ok(Err(NoRequest::Closed)) => return Ok(()),
        Ok(Err(NoRequest::Rejected(problem))) => return Err(EarlyEnd::Rejected(problem)),
        Err(_elapsed) => return Err(EarlyEnd::Rejected(ProblemResponse::late_head(bound_key))),
    };
    let is_served = Arc::<AtomicBool>::default();
    let io = OneRequestIo { stream: stream.clone(), input, is_served: is_served.clone(), is_body_dropped };
    let service = service_fn(|request| {
        is_served.store(true, Ordering::Relaxed);
        respond(request)
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .max_buf_size(head_bytes)
        .serve_connection(TokioIo::new(io), service)
        .await;
    match served {
        Err(error) if error.is_parse() && !is_served.load(Ordering::Relaxed) => {
            Err(EarlyEnd::Rejected(ProblemResponse::unparsable(&error)))
        }
        served => served.map_err(EarlyEnd::Http),
    }
}

/// Cleans up after the handler, and releases the lease.
async fn finish(
    state: &WorkerState,
    transaction: &Transaction,
    active: ActiveLease,
    end: &Result<(), EarlyEnd>,
    stream: &SharedStream,
) {
    state.handler_done();
    if let Some(builtin) = &state.builtin {
        builtin.end_request().await;
    }
    match end {
        Ok(()) => {
            let _ = set_reset_on_close(stream, false); // fails on a dead socket, which sends no reset
        }
        Err(end) => {
            end.log_request(state, transaction, active.lease);
            transaction.fail();
        }
    }
    transaction.release_handler();
    let took = active.claimed_at.elapsed();
    tracing::debug!(worker = %state.id, lease = %active.lease, epoch = %state.slot.epoch(),
        status = transaction.status(), took_ms = took.as_millis() as u64,
        event = %Event::RequestAnswered, "request finished");
    state.finish(active.lease, took, transaction.has_failed());
}

/// Claims the lease with the request's token and runs the handler, or sends the client back to the dispatcher.
async fn respond<S: HandlerService>(
    runner: Arc<RequestRunner<S>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let RequestRunner { state, transaction, stream, .. } = &*runner;
    if let Err(problem) = crate::net::check_host(&request) {
        state.slot.count(Counter::Rejected, 1);
        return Ok(problem_response(&problem));
    }
    let Some((token, target)) = lease_url::split(request.method(), request.uri()) else {
        return Ok(to_dispatcher(state, stream, &request));
    };
    let now = clock::now();
    let terms = match token.map(|token| state.slot.claim(token, now)) {
        Some(Ok(terms)) => terms,
        Some(Err(reason)) => {
            tracing::debug!(worker = %state.id, ?reason, "token rejected");
            return Ok(to_dispatcher(state, stream, &request));
        }
        None => return Ok(to_dispatcher(state, stream, &request)),
    };
    let active = ActiveLease::claimed(&terms);
    state.note_claim(&terms, now, stream);
    transaction.note_claim(active, request.version() >= Version::HTTP_11);
    set_reset_on_close(stream, true)?;
    let (peer, server) = (stream.0.peer_address(), stream.0.local_address());
    runner.run(request, target, active, peer, server).await
}

/// 307 to the dispatcher.
fn to_dispatcher(state: &WorkerState, stream: &SharedStream, request: &Request<Incoming>) -> Response<Body> {
    state.slot.count(Counter::SentBack, 1);
    send_back(exchange::return_port(state.slot.memory()), stream, request)
}
