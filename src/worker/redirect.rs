//! The redirect delivery: one connection to the worker's own listener, with one request that carries its token.

use std::sync::Arc;

use bytes::BytesMut;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::Mutex;

use super::claim::claim_with_token;
use super::finish::finish;
use super::handler::{Body, BoxError};
use super::lease_url;
use super::request_io::{read_head, request_head, serve_request};
use super::send_back::send_back;
use super::served_connection::{ServedConnection, SharedTransaction};
use super::service::{HandlerService, RequestRunner, ServiceEnd, problem_response};
use super::state::WorkerState;
use super::transaction::{EndCause, Transaction, TransactionEvent};
use crate::clock;
use crate::config::{FrontConfig, ProxyTrust};
use crate::exchange::{self, Counter};
use crate::net::{self, LEASE_PREFIX_LENGTH, SharedStream, WireProtocol};

/// Serves one connection until it is closed.
pub(super) async fn serve<S: HandlerService>(state: Arc<WorkerState>, service: Arc<Mutex<S>>, stream: SharedStream) {
    let (peer, server) = (stream.0.peer_address(), stream.0.local_address());
    let head_timeout = state.front.head_timeout;
    let transaction = SharedTransaction::new(
        Transaction::new(clock::now(), head_timeout, state.request_timeout()),
        WireProtocol::Http,
    );
    let connection = Arc::new(ServedConnection { stream, peer, server, is_https: false, listener: None, transaction });
    let runner = Arc::new(RequestRunner { state: state.clone(), service, connection: connection.clone() });
    let end = serve_one_request(&connection, &state.front, |request| respond(runner.clone(), request)).await;
    drop(runner);
    if let Some(delivery) = finish(&state, connection, end).await {
        delivery.run().await;
    }
}

/// Reads one request at a worker's address and responds to it.
pub(super) async fn serve_one_request<R>(
    connection: &Arc<ServedConnection>,
    front: &FrontConfig,
    respond: impl Fn(Request<Incoming>) -> R,
) -> ServiceEnd
where
    R: Future<Output = Result<Response<Body>, BoxError>>,
{
    let head_bytes = front.head_bytes + LEASE_PREFIX_LENGTH;
    let served = match read_head(connection, BytesMut::new(), head_bytes).await {
        Ok(input) => serve_request(connection, input, head_bytes, respond).await,
        Err(end) => Err(end),
    };
    let end = served.err().unwrap_or(ServiceEnd::By(EndCause::Closed));
    if !matches!(end, ServiceEnd::Switched(_)) {
        connection.on(TransactionEvent::Ended(end.cause())); // unless it has ended
    }
    end
}

/// The response that closes the connection, unless it switches to another protocol: a further request would need a lease
/// of its own.
pub(super) fn closing(mut response: Response<Body>) -> Response<Body> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Claims the lease with the request's token and runs the handler, or sends the client back to the dispatcher.
async fn respond<S: HandlerService>(
    runner: Arc<RequestRunner<S>>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let RequestRunner { state, connection, .. } = &*runner;
    connection.on(TransactionEvent::HeadRead(request_head(&request)));
    // Clients come here by themselves: there is no proxy to believe.
    let origin = net::request_origin(&mut request, connection.peer, &ProxyTrust::default());
    let origin = match origin.and_then(|origin| net::check_host(&request).map(|_| origin)) {
        Ok(origin) => origin,
        Err(problem) => {
            state.slot.count(Counter::Rejected, 1);
            connection.on(TransactionEvent::Refused(problem.status.as_u16()));
            return Ok(closing(problem_response(&problem)));
        }
    };
    if let Some((Some(token), target)) = lease_url::split(request.method(), request.uri())
        && claim_with_token(state, token, connection)
    {
        return runner.run(request, target, origin).await.map(closing);
    }
    state.slot.count(Counter::SentBack, 1);
    let response = send_back(exchange::return_port(state.slot.memory()), &connection.stream, &request);
    connection.on(TransactionEvent::Refused(response.status().as_u16()));
    Ok(closing(response))
}
