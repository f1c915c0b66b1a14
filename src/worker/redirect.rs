//! One connection: token, claim, handler, answer, end.

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, LOCATION};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};
use tower_service::Service;

use super::handler::{Body, BoxError, Context, Failure};
use super::handoff::Claimed;
use super::lease_url;
use super::state::WorkerState;
use super::turn::{AbortCause, ActiveLease, Transaction};
use crate::clock;
use crate::exchange::Counter;
use crate::log::Event;
use crate::net::{self, ProblemResponse, RequestOutcome, lingering_close, set_reset_on_close};

/// A running handler.
pub type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

/// What a worker's service is, whoever wrote it.
pub trait Handler:
    Service<Request<Body>, Response = Response<Body>, Error = Failure, Future = Answering> + Send + 'static
{
}

impl<S> Handler for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Failure, Future = Answering> + Send + 'static
{
}

/// Serves one connection to its end.
pub async fn serve<S: Handler>(shared: Arc<WorkerState>, service: Arc<Mutex<S>>, stream: net::SharedStream) {
    let turn = Arc::new(Transaction::default());
    // `Ok`: whatever was answered has been sent whole.
    let end = {
        let answerer =
            Answerer { shared: shared.clone(), service, turn: turn.clone(), stream: stream.clone(), lent: None };
        let connection = http1::Builder::new()
            .keep_alive(false)
            .half_close(true)
            .timer(TokioTimer::new())
            .header_read_timeout(shared.front.head_timeout)
            .max_buf_size(shared.front.head_bytes)
            .serve_connection(TokioIo::new(stream.clone()), answerer);
        let connection = pin!(connection);
        tokio::select! {
            served = connection => served.map_err(End::Early),
            cut = turn.clone().cut(stream.clone()) => Err(End::AbortCause(cut)),
        }
        // Here the handler's future and bodies are dropped, which cancels it where it is not through.
    };
    if let Err(End::Early(error)) = &end {
        tracing::debug!(worker = %shared.id, %error, "connection ended early");
    }
    // Taken before the lease is given back, and so before anybody may want to recycle this worker.
    let _parting = shared.parting.read().await;
    if let Some(held) = turn.end() {
        finish(&shared, &turn, held, &end, &stream).await;
        if end.is_err() {
            return; // without a FIN, which would make half a response of unknown length look whole
        }
    } else if matches!(&end, Err(End::Early(error)) if error.is_timeout()) {
        let _ = stream.0.try_write(&ProblemResponse::late_head().raw());
    }
    lingering_close(stream, shared.front.linger_timeout).await;
}

/// Why a connection was not served to its regular end.
pub enum End {
    /// What came was no request, or its response could not be finished.
    Early(hyper::Error),
    /// See [`AbortCause`].
    AbortCause(AbortCause),
}

impl End {
    /// Whether the client has gone: found by the watch on it, or by a write that came first.
    pub fn is_client_gone(&self) -> bool {
        match self {
            End::AbortCause(cut) => *cut == AbortCause::Gone,
            End::Early(error) => {
                error.source().and_then(|source| source.downcast_ref::<io::Error>()).is_some_and(|error| {
                    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
                })
            }
        }
    }
}

async fn finish(
    shared: &WorkerState,
    turn: &Transaction,
    held: ActiveLease,
    end: &Result<(), End>,
    stream: &net::SharedStream,
) {
    shared.handled();
    if let Some(builtin) = &shared.builtin {
        builtin.end().await;
    }
    let (worker, lease, epoch) = (&shared.id, held.lease, shared.respondent.epoch());
    match end {
        Ok(()) => {
            let _ = set_reset_on_close(stream, false); // not a socket any more: nothing to reset either
        }
        Err(end) => {
            turn.fail();
            if end.is_client_gone() {
                let event = Event::RequestCancelled;
                tracing::info!(%worker, %lease, %epoch, %event, "the client has gone: its request is cancelled");
            } else if matches!(end, End::AbortCause(AbortCause::Deadline)) {
                let event = Event::RequestDeadline;
                tracing::warn!(%worker, %lease, %epoch, %event,
                    "request_timeout passed within the response: it is cut");
            }
        }
    }
    turn.leave_floor();
    let took = held.since.elapsed();
    tracing::debug!(%worker, %lease, %epoch, status = turn.status(), took_ms = took.as_millis() as u64,
        event = %Event::RequestAnswered, "request is over");
    shared.finish(held.lease, took, turn.has_failed());
}

/// What hyper calls with the request of a connection.
pub struct Answerer<S> {
    pub shared: Arc<WorkerState>,
    pub service: Arc<Mutex<S>>,
    pub turn: Arc<Transaction>,
    pub stream: net::SharedStream,
    /// Who it was handed over with, if it was.
    pub lent: Option<Arc<Claimed>>,
}

impl<S> Clone for Answerer<S> {
    fn clone(&self) -> Self {
        let Self { shared, service, turn, stream, lent } = self;
        Self {
            shared: shared.clone(),
            service: service.clone(),
            turn: turn.clone(),
            stream: stream.clone(),
            lent: lent.clone(),
        }
    }
}

impl<S: Handler> hyper::service::Service<Request<Incoming>> for Answerer<S> {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let answerer = self.clone();
        match self.lent.clone() {
            None => Box::pin(answerer.answer(request)),
            Some(lent) => Box::pin(lent.answer(answerer, request)),
        }
    }
}

impl<S: Handler> Answerer<S> {
    /// Answers one request: claims with its token and runs the handler, or sends it back.
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
        let Self { shared, turn, stream, .. } = &self;
        let Some((token, target)) = lease_url::split(request.method(), request.uri()) else {
            return Ok(send_back(shared, stream, &request, None));
        };
        let now = clock::now();
        let terms = match token.map(|token| shared.respondent.claim(token, now)) {
            Some(Ok(terms)) => terms,
            Some(Err(reason)) => {
                tracing::debug!(worker = %shared.id, ?reason, "a token does not open this worker");
                return Ok(send_back(shared, stream, &request, Some(target)));
            }
            None => return Ok(send_back(shared, stream, &request, Some(target))),
        };
        let since = Instant::now();
        let held = ActiveLease { lease: terms.lease, since, deadline: since + terms.request_timeout };
        shared.begin(&terms, now, stream);
        turn.begin(held, request.version() >= Version::HTTP_11);
        let (worker, lease, epoch) = (&shared.id, terms.lease, shared.respondent.epoch());
        tracing::debug!(%worker, %lease, %epoch, event = %Event::LeaseClaimed, "lease is claimed");
        set_reset_on_close(stream, true)?;
        let ends = (stream.0.peer_address(), stream.0.local_address());
        self.run(request, target, held, ends).await
    }

    /// Runs the handler for a request whose lease is claimed.
    pub async fn run(
        &self,
        mut request: Request<Incoming>,
        target: PathAndQuery,
        held: ActiveLease,
        (peer, server): (Option<SocketAddr>, Option<SocketAddr>),
    ) -> Result<Response<Body>, BoxError> {
        let Self { shared, service, turn, stream, .. } = self;
        // Without the query, which may hold what a log must not.
        let line = [request.method().as_str().as_bytes(), b" ", target.path().as_bytes()];
        shared.respondent.note_request(held.lease, clock::now(), &line);
        if !turn.has_floor() {
            turn.take_floor(shared.floor().await);
        }
        let http11 = request.version() >= Version::HTTP_11;
        *request.uri_mut() = Uri::from(target);
        request.extensions_mut().insert(Context {
            peer,
            server,
            worker: shared.id.clone(),
            lease: held.lease.to_string(),
            body_timeout: shared.front.body_timeout,
            max_body: shared.front.max_body,
        });
        // There no reset tells a cut response from a whole one.
        let must_tell = !http11 && request.method() != Method::HEAD && !stream.0.is_tcp();
        turn.ask(request.body().is_end_stream());
        let received = Counted::new(shared.clone(), Counter::BytesIn, turn.clone());
        let request = request.map(|body| Body::new(received.of(body.map_err(BoxError::from))));

        let outcome = tokio::select! {
            biased; // without a timer for what is through at once
            outcome = call(service, request) => outcome,
            () = sleep_until(held.deadline) => {
                let limit = humantime::format_duration(held.deadline - held.since);
                let reason = format!("the handler of worker {} did not finish within request_timeout, {limit}", shared.id);
                Err(Failure { status: StatusCode::GATEWAY_TIMEOUT, reason, started: true })
            }
        };
        let outcome = outcome.and_then(|response| match must_tell && ends_with_connection(&response) {
            true => {
                let reason = "on a Unix socket an HTTP/1.0 client cannot tell where a response of unknown length ends: \
                              use HTTP/1.1";
                Err(Failure { status: StatusCode::HTTP_VERSION_NOT_SUPPORTED, reason: reason.into(), started: true })
            }
            false => Ok(response),
        });
        if let Err(failure) = &outcome {
            // What failed is cleared away before anybody hears of the failure.
            shared.handled();
            if let Some(builtin) = &shared.builtin {
                builtin.clear().await;
            }
            shared.warn(held.lease, failure);
            turn.fail();
        }
        if !turn.is_responding() && !shared.respondent.respond(held.lease) {
            return Err("the dispatcher has ended the lease".into());
        }
        let response = outcome.unwrap_or_else(|failure| problem(&failure));
        let sent = Counted::new(shared.clone(), Counter::BytesOut, turn.clone());
        turn.respond(response.status());
        Ok(response.map(|body| Body::new(sent.of(body))))
    }
}

/// Runs the handler; a panic in it is a failure of this request and of nothing else.
async fn call<S: Handler>(service: &Mutex<S>, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let run = async {
        let mut service = service.lock().await;
        std::future::poll_fn(|task| service.poll_ready(task)).await?;
        service.call(request).await
    };
    let mut run = pin!(AssertUnwindSafe(run));
    std::future::poll_fn(|task| {
        std::panic::catch_unwind(AssertUnwindSafe(|| run.as_mut().as_mut().poll(task))).unwrap_or_else(|_| {
            let reason = "the handler panicked".to_owned();
            Poll::Ready(Err(Failure { status: StatusCode::INTERNAL_SERVER_ERROR, reason, started: true }))
        })
    })
    .await
}

/// Whether an HTTP/1.0 client could tell the end of this response by the end of the connection only.
fn ends_with_connection(response: &Response<Body>) -> bool {
    let bodiless = matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    !bodiless && !response.headers().contains_key(CONTENT_LENGTH) && response.body().size_hint().exact().is_none()
}

pub fn problem(failure: &Failure) -> Response<Body> {
    let outcome = if failure.started { RequestOutcome::StartedUnknown } else { RequestOutcome::NotStarted };
    let detail = failure.reason.clone();
    let problem = ProblemResponse { status: failure.status, detail, outcome, retry_after: None };
    problem.response().map(boxed)
}

pub fn boxed(body: http_body_util::Full<Bytes>) -> Body {
    Body::new(body.map_err(|never| match never {}))
}

/// Back to the dispatcher with the original target: never a dead end.
fn send_back(
    shared: &WorkerState,
    stream: &net::SharedStream,
    request: &Request<Incoming>,
    target: Option<PathAndQuery>,
) -> Response<Body> {
    shared.respondent.count(Counter::SentBack, 1);
    let location = shared.respondent.return_port().and_then(|port| {
        let host = net::host(request).ok().flatten().unwrap_or_else(|| net::fallback_host(&stream.0));
        lease_url::back(&host, port, target.as_ref().or_else(|| request.uri().path_and_query()))
    });
    let detail = "this lease is over or was never given: ask the dispatcher for another";
    let status = if location.is_some() { StatusCode::TEMPORARY_REDIRECT } else { StatusCode::CONFLICT };
    let mut response = ProblemResponse::not_started(status, detail).response().map(boxed);
    if let Some(location) = location {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// Counts the bytes of a body, and notices when it fails.
struct Counted {
    shared: Arc<WorkerState>,
    counter: Counter,
    turn: Arc<Transaction>,
    bytes: AtomicU64,
    /// It has ended with an error.
    failed: bool,
}

impl Counted {
    fn new(shared: Arc<WorkerState>, counter: Counter, turn: Arc<Transaction>) -> Self {
        Self { shared, counter, turn, bytes: AtomicU64::new(0), failed: false }
    }

    /// The body has come to its end.
    fn end(&self) {
        if self.counter == Counter::BytesIn {
            self.turn.receive();
        }
    }

    fn of<B>(self, body: B) -> CountedBody<B> {
        CountedBody { body, counted: self }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        match self.counter {
            Counter::BytesOut if self.failed => {}
            Counter::BytesOut => self.turn.send(), // hyper lets go of a body when it has taken all of it
            _ => self.turn.let_body_go(),
        }
        self.shared.respondent.count(self.counter, *self.bytes.get_mut());
    }
}

struct CountedBody<B> {
    body: B,
    counted: Counted,
}

impl<B> http_body::Body for CountedBody<B>
where
    B: http_body::Body<Data = Bytes, Error = BoxError> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = AssertUnwindSafe(|| Pin::new(&mut self.body).poll_frame(task));
        // A panic here must not take the lease with it.
        let polled = std::panic::catch_unwind(body)
            .unwrap_or_else(|_| Poll::Ready(Some(Err("the handler panicked within its response".into()))));
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.counted.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Poll::Ready(Some(Err(error))) => {
                if self.counted.counter == Counter::BytesOut {
                    let Counted { shared, turn, .. } = &self.counted;
                    let (worker, lease) = (&shared.id, turn.lease().map(tracing::field::display));
                    tracing::warn!(%worker, lease, event = %Event::ResponseCut, "response cut: {error}");
                }
                self.counted.turn.fail();
                self.counted.failed = true;
            }
            Poll::Ready(None) => self.counted.end(),
            Poll::Pending => {}
        }
        if self.body.is_end_stream() {
            self.counted.end();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
