//! What redirect and handoff do alike once the lease is claimed: run the handler within the request's deadline.

use std::error::Error;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use tokio::sync::Mutex;
use tokio::time::sleep;
use tower_service::Service;

use super::counted_body::BodyCounter;
use super::handler::{Body, BoxError, RequestContext, RequestFailure, RequestStart, Session};
use super::http10_response::Framing;
use super::served_connection::{ServedConnection, SharedTransaction};
use super::session;
use super::state::WorkerState;
use super::transaction::{EndCause, Ending, ResponsePhase, Transaction, TransactionEvent};
use crate::clock;
use crate::exchange::Counter;
use crate::ids::LeaseId;
use crate::log::Event;
use crate::net::{ProblemResponse, RequestOrigin, RequestOutcome, WireProtocol, remove_patou_headers};

/// A running handler.
pub(super) type HandlerFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, RequestFailure>> + Send>>;

/// The service of a worker: a built-in handler, or a program's own.
pub(super) trait HandlerService:
    Service<Request<Body>, Response = Response<Body>, Error = RequestFailure, Future = HandlerFuture> + Send + 'static
{
}

impl<S> HandlerService for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = RequestFailure, Future = HandlerFuture>
        + Send
        + 'static
{
}

/// A request body as it arrives.
pub(super) trait ReceivedBody:
    http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static
{
}

impl<B> ReceivedBody for B where B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static {}

/// Why the service of a connection has ended, with what is known about it.
pub(super) enum ServiceEnd {
    /// For this cause, of which nothing more is known.
    By(EndCause),
    /// The connection has switched to another protocol: what follows is a session.
    Switched(Arc<Session>),
    /// The head of a request was rejected.
    BadHead(ProblemResponse),
    /// The request was malformed, or the response could not be sent.
    Http(hyper::Error),
}

impl ServiceEnd {
    pub(super) fn cause(&self) -> EndCause {
        match self {
            Self::By(cause) => *cause,
            Self::Switched(_) => EndCause::Closed,
            Self::BadHead(_) => EndCause::BadHead,
            // The body of the response has failed, or HTTP/1.1 does not allow its head.
            Self::Http(error) if error.is_user() => EndCause::HandlerFault,
            Self::Http(_) => EndCause::Broken,
        }
    }

    /// The response that it requires instead of one to a request.
    pub(super) fn refusal(self, transaction: &SharedTransaction) -> Option<ProblemResponse> {
        match (transaction.get(Transaction::ending), self) {
            (Ending::LateHead408(bound), _) => Some(ProblemResponse::late_head(bound)),
            (Ending::Reject, Self::BadHead(problem)) => Some(problem),
            _ => None,
        }
    }

    /// Whether the client has disconnected: found by the watch on the connection, or by a failed write.
    fn is_client_gone(&self) -> bool {
        let Self::Http(error) = self else { return self.cause() == EndCause::ClientGone };
        error
            .source()
            .and_then(|source| source.downcast_ref::<io::Error>())
            .is_some_and(|error| matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset))
    }

    /// Logs what it means for the last request.
    pub(super) fn log_request(&self, state: &WorkerState, connection: &ServedConnection) {
        let (worker, epoch) = (&state.id, state.slot.epoch());
        let lease = connection.lease().map(tracing::field::display);
        let (response, has_failed) = connection.transaction.get(|it| (it.response(), it.has_failed()));
        if let Self::Http(error) = self
            && self.cause() == EndCause::HandlerFault
            && response != ResponsePhase::None
            && !has_failed
        {
            tracing::warn!(%worker, lease, %epoch, event = %Event::ResponseCut,
                "the response of the handler cannot be sent: {error}");
        } else if self.is_client_gone() {
            tracing::info!(%worker, lease, %epoch, event = %Event::RequestCancelled,
                "the client has disconnected: its request is cancelled");
        } else if self.cause() == EndCause::Deadline {
            tracing::warn!(%worker, lease, %epoch, event = %Event::RequestDeadline,
                "request_timeout passed during the response: the response is cut");
        }
    }
}

/// Runs the handler for the requests of one connection.
pub(super) struct RequestRunner<S> {
    pub state: Arc<WorkerState>,
    pub service: Arc<Mutex<S>>,
    pub connection: Arc<ServedConnection>,
}

impl<S: HandlerService> RequestRunner<S> {
    /// Runs the handler for one request, from which [`crate::net::request_origin`] has removed what is not believed. An
    /// error means that no response may be sent.
    pub(super) async fn run(
        &self,
        mut request: Request<impl ReceivedBody>,
        target: PathAndQuery,
        origin: RequestOrigin,
    ) -> Result<Response<Body>, BoxError> {
        let Self { state, service, connection } = self;
        let transaction = &connection.transaction;
        let lease = transaction.get(Transaction::lease).ok_or("the request has no lease")?;
        // Without the query, which may hold secrets.
        let line = [request.method().as_str().as_bytes(), b" ", target.path().as_bytes()];
        state.slot.note_request(lease.id, clock::now(), &line);
        // A target in absolute form overrides the Host header (RFC 9112, section 3.2.2).
        if let Some(authority) = request.uri().authority() {
            let host = HeaderValue::from_str(authority.as_str())?;
            request.headers_mut().insert(HOST, host);
        }
        *request.uri_mut() = Uri::from(target);
        remove_patou_headers(request.headers_mut());
        if state.drops_authorization {
            request.headers_mut().remove(AUTHORIZATION);
        }
        let session = match state.sessions.filter(|_| session::is_websocket(&request)) {
            Some(bounds) => match session::permission(state, bounds, lease.id).await {
                Ok(session) => {
                    request.extensions_mut().insert(session.clone());
                    Some((session, bounds.timeout))
                }
                Err(problem) => return self.refuse(&problem),
            },
            None => {
                session::remove_upgrade(&mut request);
                None
            }
        };
        request.extensions_mut().insert(RequestContext {
            peer: origin.client,
            is_https: origin.is_https.unwrap_or(connection.is_https),
            port: origin.port,
            user: origin.user,
            server: connection.server,
            worker: state.id.clone(),
            lease: lease.id.to_string(),
            body_timeout: state.front.body_timeout,
            max_body: state.front.max_body,
        });
        let start = RequestStart::default();
        request.extensions_mut().insert(start.clone());
        let framing = match transaction.wire() {
            WireProtocol::Http => Framing::of(&request, connection.stream.0.is_tcp()),
            WireProtocol::Fastcgi(_) => Framing::SelfDelimiting,
        };
        let received = BodyCounter::new(state.clone(), Counter::BytesIn, transaction.clone());
        let request = request.map(|body| Body::new(received.count(body.map_err(Into::into))));

        let outcome = tokio::select! {
            biased; // no timer for a handler that is done at once
            outcome = call(service, request, framing) => outcome,
            late = self.late(lease.timeout, &start) => Err(late),
        };
        let outcome = outcome.and_then(|response| match response.status() {
            StatusCode::SWITCHING_PROTOCOLS if session.is_none() => Err(self.unwanted_switch()),
            _ => Ok(response),
        });
        if let Err(failure) = &outcome {
            // The handler's processes are dead before the client gets the response.
            connection.on(TransactionEvent::HandlerDone);
            if let Some(builtin) = &state.builtin {
                builtin.kill_request_processes().await;
            }
            if failure.is_fault {
                log_failure(state, lease.id, failure);
                connection.on(TransactionEvent::RequestFailed);
            }
        }
        if !connection.may_respond(&state.slot) {
            return Err("the dispatcher has aborted the lease".into());
        }
        let response = match outcome {
            Ok(mut response) => {
                remove_patou_headers(response.headers_mut());
                response
            }
            Err(failure) => failure_response(&failure),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some((session, timeout)) = session
        {
            if !state.slot.upgrade(lease.id) {
                return Err("the dispatcher has reclaimed the lease".into());
            }
            connection.on(TransactionEvent::Upgraded(clock::now(), timeout));
            transaction.start_session(session);
        }
        let sent = BodyCounter::new(state.clone(), Counter::BytesOut, transaction.clone());
        connection.on(TransactionEvent::ResponseStarted(response.status().as_u16(), clock::now()));
        Ok(response.map(|body| Body::new(sent.count(body))))
    }

    /// Refuses the request before its handler sees it. An error means that no response may be sent.
    pub(super) fn refuse(&self, problem: &ProblemResponse) -> Result<Response<Body>, BoxError> {
        let Self { state, connection, .. } = self;
        state.slot.count(Counter::Rejected, 1);
        if !connection.may_respond(&state.slot) {
            return Err("the dispatcher has aborted the lease".into());
        }
        connection.on(TransactionEvent::Refused(problem.status.as_u16()));
        Ok(problem_response(problem))
    }

    /// A response that switches to another protocol, without a session.
    fn unwanted_switch(&self) -> RequestFailure {
        let why = match self.state.sessions {
            None => "which this pool does not allow: see `upgrade` of the pool",
            Some(_) => "which the client has not requested, or not for WebSocket",
        };
        let reason = format!("the handler switched to another protocol (101), {why}");
        RequestFailure::new(StatusCode::BAD_GATEWAY, reason)
    }

    /// Waits until `request_timeout`, `limit`, has passed.
    async fn late(&self, limit: Duration, start: &RequestStart) -> RequestFailure {
        let transaction = &self.connection.transaction;
        sleep(transaction.get(Transaction::respond_by).since(clock::now())).await;
        let (limit, started) = (humantime::format_duration(limit), !start.is_pending());
        let (status, reason) = if transaction.get(Transaction::is_client_late) {
            (StatusCode::REQUEST_TIMEOUT, format!("the request body did not arrive within request_timeout, {limit}"))
        } else {
            let worker = &self.state.id;
            let what = if started { "finish" } else { "get the request" };
            let reason = format!("the handler of worker {worker} did not {what} within request_timeout, {limit}");
            (StatusCode::GATEWAY_TIMEOUT, reason)
        };
        RequestFailure { started, ..RequestFailure::new(status, reason) }
    }
}

/// Runs the handler; a panic in it fails this request and nothing else.
async fn call<S: HandlerService>(
    service: &Mutex<S>,
    request: Request<Body>,
    framing: Framing,
) -> Result<Response<Body>, RequestFailure> {
    let run = async {
        let mut service = service.lock().await;
        std::future::poll_fn(|task| service.poll_ready(task)).await?;
        let response = service.call(request).await?;
        framing.frame(response).await
    };
    let mut run = pin!(AssertUnwindSafe(run));
    std::future::poll_fn(|task| {
        std::panic::catch_unwind(AssertUnwindSafe(|| run.as_mut().as_mut().poll(task))).unwrap_or_else(|_| {
            let reason = "the handler panicked".to_owned();
            Poll::Ready(Err(RequestFailure::new(StatusCode::INTERNAL_SERVER_ERROR, reason)))
        })
    })
    .await
}

fn failure_response(failure: &RequestFailure) -> Response<Body> {
    let outcome = if failure.started { RequestOutcome::StartedUnknown } else { RequestOutcome::NotStarted };
    let detail = failure.reason.clone();
    let retry_after = failure.retry_after();
    problem_response(&ProblemResponse { status: failure.status, detail, outcome, retry_after })
}

/// The whole response.
pub(super) fn problem_response(problem: &ProblemResponse) -> Response<Body> {
    problem.response().map(|body: Full<Bytes>| Body::new(body.map_err(|never| match never {})))
}

/// Logs why a request failed.
pub(super) fn log_failure(state: &WorkerState, lease: LeaseId, failure: &RequestFailure) {
    let event = match failure.status {
        StatusCode::GATEWAY_TIMEOUT => Event::RequestDeadline,
        _ => Event::RequestFailed,
    };
    tracing::warn!(worker = %state.id, %lease, epoch = %state.slot.epoch(),
        status = failure.status.as_u16(), %event, "request failed: {}", failure.for_log());
    // Neither the client's fault nor a lack of resources.
    if matches!(failure.status.as_u16(), 500 | 502 | 504) {
        state.note_fault(&failure.reason);
    }
}
