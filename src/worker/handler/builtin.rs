//! The built-in handlers behind one type.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use http::{Request, Response, StatusCode};

use super::body::Body;
use super::child::{HandlerProgram, HandlerStartError};
use super::coprocess::Coprocess;
use super::echo;
use super::exec::Exec;
use super::failure::RequestFailure;
use super::inetd::Inetd;
use crate::ids::WorkerId;

/// The handler that the configuration of a pool names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BuiltinSpec {
    /// Sends the request body back.
    Echo,
    /// One process per request, CGI/1.1: the program and its arguments.
    Exec(Vec<String>),
    /// One warm process per worker: the program and its arguments.
    Coprocess(Vec<String>),
    /// One process per connection: the program and its arguments.
    Inetd(Vec<String>),
}

/// A built-in handler. Clones share it.
///
/// It serves one request at a time, with a call of [`end_request`](Self::end_request) after each: the caller never
/// polls `call`, `kill_request_processes`, `end_request`, `recycle`, `watch` and `stop` concurrently. A concurrent
/// request gets a separate process, which the end of the other request may kill.
#[derive(Clone)]
pub(crate) enum BuiltinHandler {
    /// See [`BuiltinSpec::Echo`].
    Echo,
    /// See [`BuiltinSpec::Exec`].
    Exec(Arc<Exec>),
    /// See [`BuiltinSpec::Coprocess`].
    Coprocess(Arc<Coprocess>),
    /// See [`BuiltinSpec::Inetd`]: it serves connections, not requests; see [`BuiltinHandler::run_inetd`].
    Inetd(Arc<Inetd>),
}

impl BuiltinHandler {
    /// Prepares the handler. A co-process is started here; it is killed when the calling thread ends, so that thread
    /// must live as long as the worker and have a tokio runtime. `environment` is that of the pool.
    ///
    /// # Errors
    /// When the program is missing or not executable, or a variable of the environment is invalid.
    pub(crate) fn start(
        spec: &BuiltinSpec,
        worker: &WorkerId,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, HandlerStartError> {
        let program = |argv: &[String]| HandlerProgram::new(argv, environment);
        Ok(match spec {
            BuiltinSpec::Echo => Self::Echo,
            BuiltinSpec::Exec(argv) => Self::Exec(Arc::new(Exec::new(program(argv)?, worker.clone()))),
            BuiltinSpec::Inetd(argv) => Self::Inetd(Arc::new(Inetd::new(program(argv)?, worker.clone()))),
            BuiltinSpec::Coprocess(argv) => Self::Coprocess(Coprocess::start(program(argv)?, worker.clone())?),
        })
    }

    /// Cleans up after a request, completed or cancelled. When this returns, everything that the request started is
    /// dead and reaped, and the co-process is ready (one that keeps dying is restarted after a delay of up to five
    /// seconds). One to three system calls when there is nothing to do.
    pub(crate) async fn end_request(&self) {
        match self {
            Self::Echo => {}
            Self::Exec(exec) => exec.end_request().await,
            Self::Inetd(inetd) => inetd.end_connection().await,
            Self::Coprocess(coprocess) => coprocess.end_request().await,
        }
    }

    /// Kills and reaps everything that a failed request has started. The worker awaits this before the response, and
    /// [`end_request`](Self::end_request) after it.
    pub(crate) async fn kill_request_processes(&self) {
        match self {
            Self::Echo => {}
            Self::Exec(exec) => exec.end_request().await,
            Self::Inetd(inetd) => inetd.end_connection().await,
            Self::Coprocess(coprocess) => coprocess.kill_request_processes().await,
        }
    }

    /// Runs an `inetd` program with a connection until the process ends. Returns how it ended, as text, and whether
    /// it exited by itself; `None` for any other handler.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) async fn run_inetd(
        &self,
        connection: OwnedFd,
        addresses: Option<(SocketAddr, SocketAddr)>,
        lease: String,
    ) -> Option<Result<(String, bool), RequestFailure>> {
        let Self::Inetd(inetd) = self else { return None };
        let exit = inetd.run(connection, addresses, lease).await;
        Some(exit.map(|exit| (exit.to_string(), exit.exited())))
    }

    /// Restarts the co-process when it dies between requests. Never returns; the caller drops the future before a
    /// request. Without this call the next request waits for the restart.
    pub(crate) async fn watch(&self) {
        match self {
            Self::Coprocess(coprocess) => coprocess.watch().await,
            Self::Echo | Self::Exec(_) | Self::Inetd(_) => std::future::pending().await,
        }
    }

    /// Replaces the co-process between requests: starts the successor, closes descriptor 3 of the old process, waits
    /// up to a second for its exit, and kills what remains of it. Does nothing for the other handlers.
    ///
    /// # Errors
    /// When the successor cannot be started; the old process then stays.
    pub(crate) async fn recycle(&self) -> Result<(), HandlerStartError> {
        match self {
            Self::Coprocess(coprocess) => coprocess.recycle().await,
            Self::Echo | Self::Exec(_) | Self::Inetd(_) => Ok(()),
        }
    }

    /// Ends the handler: lets the co-process exit as in [`recycle`](Self::recycle), then kills and reaps everything
    /// that remains.
    pub(crate) async fn stop(&self) {
        match self {
            Self::Echo => {}
            Self::Exec(exec) => exec.stop().await,
            Self::Inetd(inetd) => inetd.stop().await,
            Self::Coprocess(coprocess) => coprocess.stop().await,
        }
    }
}

impl tower_service::Service<Request<Body>> for BuiltinHandler {
    type Response = Response<Body>;
    type Error = RequestFailure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, RequestFailure>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), RequestFailure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.clone() {
            Self::Echo => Box::pin(echo::call(request)),
            Self::Exec(exec) => Box::pin(async move { exec.call(request).await }),
            Self::Inetd(_) => {
                let reason = "the handler of this pool (inetd) serves connections, not HTTP requests";
                Box::pin(std::future::ready(Err(RequestFailure::new(StatusCode::NOT_FOUND, reason).not_started())))
            }
            Self::Coprocess(coprocess) => Box::pin(async move { coprocess.call(request).await }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_request::full_body;
    use super::*;

    fn is_send<T: Send>(_: &T) {}

    #[tokio::test]
    async fn every_future_is_send() {
        let mut handler = BuiltinHandler::Echo;
        is_send(&tower_service::Service::call(&mut handler, Request::new(full_body(""))));
        is_send(&handler.end_request());
        is_send(&handler.watch());
        is_send(&handler.recycle());
        is_send(&handler.stop());
    }
}
