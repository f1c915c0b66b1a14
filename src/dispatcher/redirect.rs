//! A connection with redirect delivery: one request, and a response that sends the client to its worker.

use std::convert::Infallible;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, EXPECT, LOCATION, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep};

use super::connection::client_peer;
use super::driver::{Driver, WATCH_AFTER};
use super::fdstore;
use super::grant::{Grant, GrantResult};
use super::listeners::Listener;
use super::places::ConnectionPlaces;
use super::readiness::{Readiness, WatchedSocket};
use super::refusal::refusal;
use crate::config::{self, ListenAddress, UnknownLength};
use crate::ids::Token;
use crate::net::{
    self, LEASE_PATH, NoRequest, OneRequestIo, ProblemResponse, RequestInput, SocketListener, SocketStream,
    check_request, deliver, lingering_close,
};
use crate::pool::{PoolEvent, Rejection};
use crate::{clock, log};

/// The target of `OPTIONS *`, a URI without a path (RFC 9112, section 3.2.4).
const ASTERISK: &str = "*";

/// The reason for 411.
const UNKNOWN_LENGTH: &str = "the body has no known length: many clients send an empty one after a redirect. Send Content-Length \
    or Expect: 100-continue, get the worker's address from POST /.patou/lease first, or use a listener with \
    delivery = \"handoff\"";

type FullResponse = Response<Full<Bytes>>;

/// One connection, which carries one request.
pub(super) struct RedirectConnection {
    listener: Rc<Listener>,
    settings: Rc<config::FrontConfig>,
    listens_on: Option<IpAddr>,
    stream: net::SharedStream,
    readiness: Rc<Readiness>,
    /// Whether the client knows HTTP/1.1 and has received nothing.
    may_probe: AtomicBool,
    /// Whether the request has passed the check of its head.
    is_served: Arc<AtomicBool>,
}

impl RedirectConnection {
    /// `settings` hold for the connection to its end.
    pub(super) fn new(
        fd: OwnedFd,
        socket: &SocketListener,
        listener: Rc<Listener>,
        settings: Rc<config::FrontConfig>,
        readiness: &Rc<Readiness>,
    ) -> Self {
        Self {
            listener,
            settings,
            listens_on: socket.tcp_address().map(|address| address.ip()),
            stream: net::SharedStream(Arc::new(SocketStream::new(fd, socket.is_tcp()))),
            readiness: readiness.clone(),
            may_probe: AtomicBool::new(false),
            is_served: Arc::default(),
        }
    }

    /// Serves the connection to its end.
    pub(super) async fn serve(&self, driver: &Rc<Driver>, places: &ConnectionPlaces) {
        let end = self.serve_request(driver).await;
        let bounds = places.linger_bounds(&self.settings);
        match end {
            Ok(()) | Err(NoRequest::Closed) => lingering_close(self.stream.clone(), bounds).await,
            Err(NoRequest::Rejected(problem)) => {
                self.count_rejection(driver);
                self.log_access(&problem.detail, problem.status, None, Instant::now());
                deliver(self.stream.clone(), &problem.raw(), bounds).await;
            }
        }
    }

    async fn serve_request(&self, driver: &Rc<Driver>) -> Result<(), NoRequest> {
        let read = RequestInput::read(&self.stream, BytesMut::new(), self.settings.head_bytes);
        let input = net::until(Instant::now() + self.settings.head_timeout, read).await;
        let input = input.unwrap_or_else(|| Err(NoRequest::Rejected(ProblemResponse::late_head("head_timeout"))))?;
        let io = OneRequestIo {
            stream: self.stream.clone(),
            input,
            is_served: self.is_served.clone(),
            is_body_dropped: || true,
        };
        let service = service_fn(|request| async { Ok::<_, Infallible>(self.respond(driver, request).await) });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .half_close(true)
            .max_buf_size(self.settings.head_bytes)
            .serve_connection(TokioIo::new(io), service);
        match pin!(connection).await {
            Err(error) if error.is_parse() && !self.is_served.load(Ordering::Relaxed) => {
                Err(NoRequest::Rejected(ProblemResponse::unparsable(&error)))
            }
            Err(error) => {
                tracing::debug!(%error, "connection ended early");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn count_rejection(&self, driver: &Driver) {
        driver.handle(&self.listener.config.pool, PoolEvent::Rejected(Rejection::BadRequest));
    }

    fn log_access(&self, line: &str, status: StatusCode, grant: Option<&Grant>, since: Instant) {
        if !self.listener.config.access_log {
            return;
        }
        let (worker, lease) = match grant {
            Some(grant) => (grant.worker.to_string(), grant.lease.to_string()),
            None => ("-".into(), "-".into()),
        };
        let client = self.stream.0.peer_address().map_or("unix".into(), |address| address.to_string());
        let wait_ms = format!("{:.1}", since.elapsed().as_secs_f64() * 1e3);
        tracing::info!(client, status = status.as_u16(), worker, lease, wait_ms,
            event = %log::Event::RequestLogged, "{line}");
    }

    async fn respond(&self, driver: &Rc<Driver>, request: Request<Incoming>) -> FullResponse {
        self.is_served.store(true, Ordering::Relaxed);
        let since = Instant::now();
        let (response, grant) = self.response(driver, &request).await;
        if self.listener.config.access_log {
            let line = format!("{} {}", request.method(), request.uri());
            self.log_access(&line, response.status(), grant.as_ref(), since);
        }
        response
    }

    async fn response(&self, driver: &Rc<Driver>, request: &Request<Incoming>) -> (FullResponse, Option<Grant>) {
        let allowed_hosts = &self.listener.config.allowed_hosts;
        let checked = check_request(request, allowed_hosts, self.listens_on, self.settings.max_body);
        let (host, target) = match checked.and_then(check_redirectable) {
            Ok(checked) => checked,
            Err(problem) => {
                self.count_rejection(driver);
                return (rejection(&problem), None);
            }
        };
        let wants_lease = self.listens_on.is_none() || request.uri().path() == LEASE_PATH;
        if !wants_lease && self.listener.config.unknown_length == UnknownLength::Refuse && loses_its_body(request) {
            self.count_rejection(driver);
            return (rejection(&ProblemResponse::not_started(StatusCode::LENGTH_REQUIRED, UNKNOWN_LENGTH)), None);
        }
        let host = host.unwrap_or_else(|| net::fallback_host(&self.stream.0));
        self.may_probe.store(request.version() >= Version::HTTP_11, Ordering::Relaxed);
        let result = self.wait(driver).await;
        self.may_probe.store(false, Ordering::Relaxed);
        match result {
            None => {
                tracing::debug!("client disconnected while it was queued");
                let detail = "the client disconnected";
                (ProblemResponse::not_started(StatusCode::SERVICE_UNAVAILABLE, detail).response(), None)
            }
            Some(Ok(grant)) => {
                let response = if wants_lease { lease(&grant) } else { to_worker(&grant, &host, &target) };
                (response, Some(grant))
            }
            Some(Err(reason)) => {
                let pool = &self.listener.config.pool;
                (refusal(reason, pool.as_str(), &driver.availability(pool)).response(), None)
            }
        }
    }

    /// Waits for a worker; `None` if the client disconnects first.
    async fn wait(&self, driver: &Rc<Driver>) -> Option<GrantResult> {
        let peer = client_peer(self.stream.0.peer_address(), || self.stream.0.peer_user());
        let store = async {
            sleep(self.settings.store_after).await;
            let _stored = driver.store.add(self.stream.0.socket(), fdstore::redirect_name()).await;
            std::future::pending::<()>().await
        };
        let disconnect = async {
            sleep(WATCH_AFTER).await;
            self.disconnected().await;
        };
        tokio::select! {
            result = driver.lease(&self.listener.config.pool, peer) => Some(result),
            () = disconnect => None,
            () = store => None,
        }
    }

    /// As [`net::disconnected`], without a descriptor of its own.
    async fn disconnected(&self) {
        let watched = WatchedSocket::new(self.stream.0.socket().clone(), &self.readiness);
        let mut watch = watched.half_closed().await;
        if watch.is_ok() && !net::has_ended(&self.stream) {
            net::probe_half_closed(&self.stream, self.may_probe.load(Ordering::Relaxed));
            watch = watched.hung_up().await;
        }
        if watch.is_err() {
            std::future::pending().await // the bound of the wait applies
        }
    }
}

/// Rejects a request whose target would be too long for the worker with the token.
fn check_redirectable<H>((host, target): (H, String)) -> Result<(H, String), ProblemResponse> {
    if target.len() > net::TARGET_MAX - net::LEASE_PREFIX_LENGTH {
        let detail = "the target of the request is too long";
        return Err(ProblemResponse::not_started(StatusCode::URI_TOO_LONG, detail));
    }
    Ok((host, target))
}

/// Whether a client may send the body of this request before it reads the redirect, and not be able to send it again: its
/// length is unknown, and it does not wait for 100 (RFC 9110 section 10.1.1).
fn loses_its_body<B>(request: &Request<B>) -> bool {
    let waits = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    request.headers().contains_key(TRANSFER_ENCODING) && !request.headers().get_all(EXPECT).iter().any(waits)
}

/// The response to a request that failed the checks.
fn rejection(problem: &ProblemResponse) -> FullResponse {
    let mut response = problem.response();
    if problem.status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    response
}

/// 307 to the worker. `host` is the host of the request; `target` its original path and query. Falls back to [`lease`]
/// for a worker on a Unix socket, which has no such address.
fn to_worker(grant: &Grant, host: &str, target: &str) -> FullResponse {
    let ListenAddress::Tcp(address) = &grant.address else { return lease(grant) };
    let Some(location) = location(host, address.port(), grant.token, target) else { return lease(grant) };
    let mut response = Response::new(Full::from(format!("redirecting to worker {}\n", grant.worker)));
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    headers.insert(LOCATION, location);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The lease as JSON, for clients that request it and for all clients of a Unix listener.
fn lease(grant: &Grant) -> FullResponse {
    let body = serde_json::json!({
        "worker": grant.worker,
        "address": grant.address.to_string(),
        "token": grant.token.to_string(),
        "expires_ms": grant.claim_by.since(clock::now()).as_millis() as u64,
    });
    let mut response = Response::new(Full::from(format!("{body}\n")));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The URL of the worker with the token and the original target. `None` if it is not a valid header value.
pub(crate) fn location(host: &str, port: u16, token: Token, target: &str) -> Option<HeaderValue> {
    let target = if target == ASTERISK { "" } else { target };
    // From bytes: bytes beyond ASCII in the target are returned unchanged.
    HeaderValue::from_bytes(format!("http://{host}:{port}/.patou/{token}{target}").as_bytes()).ok()
}
