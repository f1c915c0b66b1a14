//! The handoff delivery: one connection that the dispatcher handed over, from its claim until it is closed or returned
//! to the dispatcher.
//!
//! The lease is for one request and for what was read with it: a client may have pipelined further requests (RFC 9112,
//! section 9.3.2). Nothing is read after a response, so that the dispatcher finds the next request in the socket.

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use http::header::CONNECTION;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tokio::sync::Mutex;

use super::checked_request::{self, CheckedResponse};
use super::claim::claim_connection;
use super::finish::finish;
use super::handler::{Body, BoxError};
use super::handoff_receiver::HandoffReceiver;
use super::request_io::{read_head, request_head, serve_request};
use super::served_connection::ServedConnection;
use super::service::{HandlerService, RequestRunner, ServiceEnd};
use super::state::WorkerState;
use super::transaction::{EndCause, RequestPhase, RequestResult, Transaction, TransactionEvent};
use super::{fastcgi, http10_response, inetd};
use crate::clock;
use crate::ids::Lifecycle;
use crate::net::WireProtocol;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// How many pipelined requests one lease serves: the response to the last of them closes the connection.
const MAX_PIPELINED: u32 = 64;

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
        let Some(connection) = claim_connection(&state, received).map(Arc::new) else { continue };
        let end = if state.is_inetd() {
            ServiceEnd::By(inetd::serve(&state, &connection).await)
        } else {
            serve(&state, &service, &connection).await
        };
        if let Some(delivery) = finish(&state, connection, end).await {
            tokio::spawn(delivery.run());
        }
    }
}

/// Serves the requests of one lease.
async fn serve<S: HandlerService>(
    state: &Arc<WorkerState>,
    service: &Arc<Mutex<S>>,
    connection: &Arc<ServedConnection>,
) -> ServiceEnd {
    let (state, service, connection) = (state.clone(), service.clone(), connection.clone());
    let head_bytes = state.front.head_bytes;
    let runner = Arc::new(RequestRunner { state, service, connection });
    if let WireProtocol::Fastcgi(request) = runner.connection.transaction.wire() {
        return fastcgi::serve(runner, request).await;
    }
    let connection = &runner.connection;
    let mut received = BytesMut::new();
    loop {
        let served = match read_head(connection, received, head_bytes).await {
            Ok(input) => serve_request(connection, input, head_bytes, |request| respond(runner.clone(), request)).await,
            Err(end) => return end,
        };
        received = match served {
            Ok(received) => received,
            Err(end) => return end,
        };
        // Some clients end a body with an empty line (RFC 9112, section 2.2), which is no request to wait for.
        while received.starts_with(b"\r\n") {
            received.advance(2);
        }
        if received.is_empty() {
            return ServiceEnd::By(EndCause::Idle);
        }
        connection.on(TransactionEvent::NextBegun(clock::now()));
    }
}

/// Checks one request of the connection, and runs the handler for it.
async fn respond<S: HandlerService>(
    runner: Arc<RequestRunner<S>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let RequestRunner { state, connection, .. } = &*runner;
    let (previous, number) = connection.transaction.step(|transaction| {
        let previous = transaction.result();
        transaction.on(TransactionEvent::HeadRead(request_head(&request)));
        (previous, transaction.number())
    });
    if number > 1 {
        // `finish` runs once per lease: it has not cleaned up after the request before.
        if let Some(builtin) = &state.builtin {
            let limit = connection.transaction.get(Transaction::respond_by).since(clock::now());
            builtin.end_request(limit).await;
        }
        if previous != RequestResult::Unused {
            state.count_pipelined(previous == RequestResult::Failed);
        }
    }
    let is_http11 = request.version() >= Version::HTTP_11;
    let CheckedResponse { mut response, is_malformed } = checked_request::respond(&runner, request, None).await?;
    let is_session = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    // After an unread body the start of the next request is unknown. A worker that drains or recycles serves the current
    // request to its end, and no further one.
    let is_closing = is_malformed || number == MAX_PIPELINED || state.lifecycle() != Lifecycle::Ready;
    if is_session {
        // Its `Connection` names the protocol.
    } else if is_closing || connection.transaction.get(Transaction::request) == RequestPhase::Abandoned {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    } else if let Some(keep_alive) = &state.keep_alive
        && connection.transaction.get(Transaction::is_persistent)
        && (http10_response::has_end(&response) || is_http11)
    {
        // Not in HTTP/1.1, but in use (RFC 2068, section 19.7.1.1): the client closes before the dispatcher does.
        response.headers_mut().insert(KEEP_ALIVE, keep_alive.clone());
    }
    Ok(response)
}
