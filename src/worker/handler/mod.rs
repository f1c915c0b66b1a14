//! What a worker does with a request: the built-in handlers, one request at a time.
//!
//! [`Builtin`] is a `tower` service over `http` types, so that the worker serves it with the same code as a
//! user's own service. Around each request the worker does two things more: it puts a [`Context`] into the
//! request's extensions, and when the response body has ended or both it and the future have been
//! dropped, it awaits [`Builtin::end`]. Dropping is how a request is cancelled.
//!
//! The worker is a child subreaper, and with a built-in handler every child of the process is the
//! handler's: what `end` finds and does not know, it kills.

pub mod cgi;
mod cgi_response;
mod child;
mod coprocess;
mod echo;
mod exec;
pub mod framing;
pub mod head;
mod limited_body;
mod log_rate_limit;
mod output_log;
mod stream;
#[cfg(test)]
pub(crate) mod test_process;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;

use crate::ids::WorkerId;
use child::Program;
use coprocess::Coprocess;
use exec::Exec;

pub use child::StartError;
pub use limited_body::{LimitedBody, LimitedBodyError};

/// Any error that can cross a thread.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request or a response. It may hold a [`Failure`] or an [`LimitedBodyError`] as its error.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// What a handler knows about a request besides the request. The caller puts it into the extensions.
#[derive(Clone, Debug)]
pub struct Context {
    /// The client's address; `None` on a Unix socket.
    pub peer: Option<SocketAddr>,
    /// The address the client connected to; `None` on a Unix socket.
    pub server: Option<SocketAddr>,
    /// The worker that serves.
    pub worker: WorkerId,
    /// The lease as text.
    pub lease: String,
    /// The longest silence within the request body.
    pub body_timeout: Duration,
    /// The largest request body in bytes; 0 = unlimited.
    pub max_body: u64,
}

impl Context {
    fn of(extensions: &Extensions) -> Result<Self, Failure> {
        let missing = || Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the request came without its context");
        extensions.get().cloned().ok_or_else(|| missing().not_started())
    }
}

/// A request without a response: the status to answer with, and the reason in a sentence. As the error of a
/// response body it means that the response must be cut, visibly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// What the client is told: 400, 408, 411 or 413 for a request that cannot be served, 500 for a program
    /// that cannot be started, 502 for one that dies or does not keep the protocol; 504 and 505 from outside.
    pub status: StatusCode,
    /// Why, for the client and the log; without a final stop.
    pub reason: String,
    /// Whether a program may have seen something of the request. If not, it is safe to send again.
    pub started: bool,
}

impl Failure {
    fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), started: true }
    }

    fn not_started(self) -> Self {
        Self { started: false, ..self }
    }

    /// The program is broken: 502.
    fn broken(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, reason)
    }
}

/// Which handler a pool has, as its configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// The request body back.
    Echo,
    /// One process per request, CGI/1.1: the program and its arguments.
    Exec(Vec<String>),
    /// One warm process per worker: the program and its arguments.
    Coprocess(Vec<String>),
    /// One process per connection: the program and its arguments.
    Inetd(Vec<String>),
}

/// A built-in handler. A clone is the same handler.
///
/// One request at a time, and [`end`](Self::end) after each; `call`, `clear`, `end`, `recycle`, `watch` and `stop` are
/// never polled side by side. A call that comes nevertheless is served by a process of its own and may be
/// killed by the end of the other.
#[derive(Clone)]
pub enum Builtin {
    /// See [`Spec::Echo`].
    Echo,
    /// See [`Spec::Exec`].
    Exec(Arc<Exec>),
    /// See [`Spec::Coprocess`].
    Coprocess(Arc<Coprocess>),
    /// See [`Spec::Inetd`]: it takes no requests, see [`Builtin::converse`].
    Inetd(Arc<Exec>),
}

impl Builtin {
    /// Makes the handler ready to serve; a co-process is started here, by the calling thread, which must
    /// live as long as the worker and have a tokio runtime. `environment` is the pool's.
    ///
    /// # Errors
    /// When the program is not there or not executable, or the environment cannot be one.
    pub fn start(spec: &Spec, worker: &WorkerId, environment: &BTreeMap<String, String>) -> Result<Self, StartError> {
        Ok(match spec {
            Spec::Echo => Self::Echo,
            Spec::Exec(argv) => Self::Exec(Arc::new(Exec::new(Program::new(argv, environment)?, worker.clone()))),
            Spec::Inetd(argv) => Self::Inetd(Arc::new(Exec::new(Program::new(argv, environment)?, worker.clone()))),
            Spec::Coprocess(argv) => {
                Self::Coprocess(Coprocess::start(Program::new(argv, environment)?, worker.clone())?)
            }
        })
    }

    /// Clears up after a request, finished or cancelled: when this returns, everything that the request
    /// started is dead and reaped, and the co-process is warm (if it keeps dying, after a delay of up to
    /// five seconds). One to three system calls when there is nothing to do.
    pub async fn end(&self) {
        match self {
            Self::Echo => {}
            Self::Exec(exec) | Self::Inetd(exec) => exec.end().await,
            Self::Coprocess(coprocess) => coprocess.end().await,
        }
    }

    /// Gives an `inetd` program a connection, until it ends; how it did, in words, and whether by itself. `None` for any
    /// other handler.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn converse(
        &self,
        connection: OwnedFd,
        addresses: Option<(SocketAddr, SocketAddr)>,
        lease: String,
    ) -> Option<Result<(String, bool), Failure>> {
        let Self::Inetd(exec) = self else { return None };
        let ended = exec.converse(connection, addresses, lease).await;
        Some(ended.map(|ended| (ended.to_string(), ended.by_itself())))
    }

    /// Clears up after a failed request as far as its client is to wait for it: everything that it started is
    /// dead and reaped. [`end`](Self::end) comes after the answer.
    pub async fn clear(&self) {
        match self {
            Self::Echo => {}
            Self::Exec(exec) | Self::Inetd(exec) => exec.end().await,
            Self::Coprocess(coprocess) => coprocess.clear().await,
        }
    }

    /// Watches over the co-process between requests: starts it anew when it dies. Never returns; drop it to
    /// serve a request. Nothing breaks without it, only the next request then pays for the start.
    pub async fn watch(&self) {
        match self {
            Self::Coprocess(coprocess) => coprocess.watch().await,
            Self::Echo | Self::Exec(_) | Self::Inetd(_) => std::future::pending().await,
        }
    }

    /// Changes the co-process for a fresh one between requests: first starts the successor, then closes
    /// descriptor 3 of the old one, waits up to a second for it and kills what is left of it. Nothing for
    /// the other handlers.
    ///
    /// # Errors
    /// When the successor cannot be started: then the old one stays.
    pub async fn recycle(&self) -> Result<(), StartError> {
        match self {
            Self::Coprocess(coprocess) => coprocess.recycle().await,
            Self::Echo | Self::Exec(_) | Self::Inetd(_) => Ok(()),
        }
    }

    /// The memory that the co-process and its descendants have resident, in bytes; `None` without one.
    pub fn memory(&self) -> Option<u64> {
        match self {
            Self::Coprocess(coprocess) => coprocess.memory(),
            Self::Echo | Self::Exec(_) | Self::Inetd(_) => None,
        }
    }

    /// Ends the handler for good: lets the co-process go as `recycle` does, then kills and reaps everything
    /// that is still there.
    pub async fn stop(&self) {
        match self {
            Self::Echo => {}
            Self::Exec(exec) | Self::Inetd(exec) => exec.stop().await,
            Self::Coprocess(coprocess) => coprocess.stop().await,
        }
    }
}

impl tower_service::Service<Request<Body>> for Builtin {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.clone() {
            Self::Echo => Box::pin(echo::call(request)),
            Self::Exec(exec) => Box::pin(async move { exec.call(request).await }),
            Self::Inetd(_) => {
                let reason = "this pool takes connections, and no requests";
                Box::pin(std::future::ready(Err(Failure::new(StatusCode::NOT_FOUND, reason).not_started())))
            }
            Self::Coprocess(coprocess) => Box::pin(async move { coprocess.call(request).await }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full};

    /// A body of known size.
    pub fn full(data: impl Into<Bytes>) -> Body {
        Full::new(data.into()).map_err(|never| match never {}).boxed_unsync()
    }

    /// The context of a request to `default/1`, with limits that no test meets by accident.
    pub fn context() -> Context {
        Context {
            peer: Some("192.0.2.7:4711".parse().unwrap()),
            server: Some("127.0.0.1:7300".parse().unwrap()),
            worker: "default-1".parse().unwrap(),
            lease: "3.1042".to_owned(),
            body_timeout: Duration::from_secs(20),
            max_body: 0,
        }
    }

    /// Sends a request with `context`.
    pub async fn send(
        handler: &Builtin,
        context: Context,
        request: http::request::Builder,
        body: Body,
    ) -> Result<Response<Body>, Failure> {
        let request = request.extension(context).body(body).unwrap();
        tower_service::Service::call(&mut handler.clone(), request).await
    }

    /// The whole body as text, or the error at its end.
    pub async fn text(response: Response<Body>) -> Result<String, BoxError> {
        Ok(String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned())
    }

    fn is_send<T: Send>(_: &T) {}

    #[tokio::test]
    async fn every_future_can_cross_threads() {
        let mut handler = Builtin::Echo;
        is_send(&tower_service::Service::call(&mut handler, Request::new(full(""))));
        is_send(&handler.end());
        is_send(&handler.watch());
        is_send(&handler.recycle());
        is_send(&handler.stop());
    }
}
