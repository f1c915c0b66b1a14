//! The redirect delivery: one connection to the worker's own listener, with one request that carries its token.

use std::pin::pin;
use std::sync::Arc;

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Mutex;

use super::handler::{Body, BoxError};
use super::lease_url;
use super::send_back::send_back;
use super::service::{EarlyEnd, HandlerService, RequestRunner};
use super::state::WorkerState;
use super::turn::{ActiveLease, Transaction};
use crate::clock;
use crate::config::FrontConfig;
use crate::exchange::{self, Counter};
use crate::log::Event;
use crate::net::{ProblemResponse, SharedStream, lingering_close, set_reset_on_close};

/// Serves one connection until it is closed.
pub(super) async fn serve<S: HandlerService>(state: Arc<WorkerState>, service: Arc<Mutex<S>>, stream: SharedStream) {
    let transaction = Arc::new(Transaction::default());
    // `Ok`: the response, if there is one, has been sent whole.
    let end = {
        let runner = Arc::new(RequestRunner {
            state: state.clone(),
            service,
            transaction: transaction.clone(),
            stream: stream.clone(),
        });
        let connection = http1_server(&state.front)
            .serve_connection(TokioIo::new(stream.clone()), service_fn(|request| respond(runner.clone(), request)));
        let connection = pin!(connection);
        tokio::select! {
            served = connection => served.map_err(EarlyEnd::Http),
            cause = transaction.clone().aborted(stream.clone()) => Err(EarlyEnd::Aborted(cause)),
        }
        // The handler's future and the bodies are dropped here, which cancels a request that is not done.
    };
    if let Err(EarlyEnd::Http(error)) = &end {
        tracing::debug!(worker = %state.id, %error, "connection ended early");
    }
    // Before the lease is released, and so before the dispatcher can recycle this worker.
    let _pending = state.pending_responses.read().await;
    if let Some(active) = transaction.take_lease() {
        finish(&state, &transaction, active, &end, &stream).await;
        if end.is_err() {
            return; // without a FIN, with which half a response of unknown length would look complete
        }
    } else if matches!(&end, Err(EarlyEnd::Http(error)) if error.is_timeout()) {
        let _ = stream.0.try_write(&ProblemResponse::late_head().raw());
    }
    lingering_close(stream, state.front.linger_timeout).await;
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
            transaction.fail();
            end.log_request(state, active.lease);
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

/// A server of one request per connection, with the bounds of the configuration.
pub(super) fn http1_server(front: &FrontConfig) -> http1::Builder {
    let mut server = http1::Builder::new();
    server
        .keep_alive(false)
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(front.head_timeout)
        .max_buf_size(front.head_bytes);
    server
}
