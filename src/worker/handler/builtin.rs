//! The built-in handlers behind one type.

use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};

use super::body::Body;
use super::child::{HandlerProgram, HandlerStartError};
use super::coprocess::Coprocess;
use super::echo;
use super::exec::Exec;
use super::failure::RequestFailure;
use super::fastcgi::{FastcgiApplication, ScriptRoot};
use super::http::HttpServer;
use super::inetd::Inetd;
use super::spool::Spool;
use super::warm::{HandlerReadiness, WarmEvent, WarmHandler, WarmSettings};
use crate::config::{HandlerConfig, PoolConfig, Replacing, WatchdogConfig};
use crate::ids::WorkerId;

/// A built-in handler. Clones share it.
///
/// It serves one request at a time, with a call of [`end_request`](Self::end_request) after each: the caller never
/// polls `call`, `kill_request_processes`, `end_request` and `stop` concurrently. [`keep`](Self::keep) runs beside them.
#[derive(Clone)]
pub(crate) enum BuiltinHandler {
    /// Sends the request body back.
    Echo,
    /// One process per request, CGI/1.1: one program, or those of a directory.
    Exec(Arc<Exec>),
    /// One warm process per worker, with framed requests.
    Coprocess(Arc<WarmHandler<Coprocess>>),
    /// One warm HTTP/1.1 server per worker.
    Http(Arc<WarmHandler<HttpServer>>),
    /// One warm FastCGI application per worker.
    Fastcgi(Arc<WarmHandler<FastcgiApplication>>),
    /// One process per connection: it serves connections, not requests; see [`BuiltinHandler::run_inetd`].
    Inetd(Arc<Inetd>),
}

impl BuiltinHandler {
    /// Prepares the handler of a pool; `None` for a `program`, which is none of these. A warm process is started here, and
    /// [`keep`](Self::keep) waits until it is ready; it is killed when the calling thread ends, so that thread must live
    /// as long as the worker and have a tokio runtime. `watchdog` bounds starts and ends; `socket` is the path for its
    /// sockets, to which their numbers are appended.
    ///
    /// # Errors
    /// When the program is missing or not executable, or a variable of the environment is invalid.
    pub(crate) fn start(
        pool: &PoolConfig,
        worker: &WorkerId,
        watchdog: &WatchdogConfig,
        socket: PathBuf,
    ) -> Result<Option<Self>, HandlerStartError> {
        let program = |argv: &[String]| HandlerProgram::new(argv, worker, pool);
        let warm = WarmSettings {
            start_timeout: watchdog.start_timeout,
            ping: Some(pool.ping).filter(|interval| !interval.is_zero()),
            replace: pool.replace,
            ready_path: Some(pool.ready_path.clone()).filter(|path| !path.is_empty()),
            ready_frame: pool.ready_frame,
            socket,
            spool: Spool::new(pool),
            scripts: None,
            exit_status: pool.exit_status,
        };
        let grace = watchdog.abort_grace;
        Ok(Some(match &pool.handler {
            HandlerConfig::Echo => Self::Echo,
            HandlerConfig::Exec(argv) => Self::Exec(Arc::new(Exec::new(program(argv)?, worker.clone(), pool, grace))),
            HandlerConfig::Scripts(scripts) => {
                let program = HandlerProgram::directory(&scripts.dir, worker, pool)?;
                let exec = Exec::new(program, worker.clone(), pool, grace).with_scripts(&scripts.prefix);
                Self::Exec(Arc::new(exec))
            }
            HandlerConfig::Inetd(argv) => Self::Inetd(Arc::new(Inetd::new(program(argv)?, worker.clone(), grace))),
            HandlerConfig::Coprocess(argv) => {
                Self::Coprocess(WarmHandler::start(program(argv)?, worker.clone(), warm)?)
            }
            HandlerConfig::Http(argv) => Self::Http(WarmHandler::start(program(argv)?, worker.clone(), warm)?),
            HandlerConfig::Fastcgi(handler) => {
                let warm = WarmSettings { scripts: ScriptRoot::of(handler), ..warm };
                Self::Fastcgi(WarmHandler::start(program(&handler.fastcgi)?, worker.clone(), warm)?)
            }
            HandlerConfig::Program(_) => return Ok(None),
        }))
    }

    /// Cleans up after a request, completed or cancelled. When this returns, everything that the request started is
    /// dead and reaped. A warm process finishes an interrupted request first, within `limit`. One to three system calls
    /// when there is nothing to do.
    pub(crate) async fn end_request(&self, limit: Duration) {
        match self {
            Self::Echo => {}
            Self::Exec(exec) => exec.end_request().await,
            Self::Inetd(inetd) => inetd.end_connection().await,
            Self::Coprocess(coprocess) => coprocess.end_request(limit).await,
            Self::Http(server) => server.end_request(limit).await,
            Self::Fastcgi(application) => application.end_request(limit).await,
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
            Self::Http(server) => server.kill_request_processes().await,
            Self::Fastcgi(application) => application.kill_request_processes().await,
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

    /// Whether a request would be served at once.
    pub(crate) fn readiness(&self) -> HandlerReadiness {
        match self {
            Self::Coprocess(coprocess) => coprocess.readiness(),
            Self::Http(server) => server.readiness(),
            Self::Fastcgi(application) => application.readiness(),
            Self::Echo | Self::Exec(_) | Self::Inetd(_) => HandlerReadiness::Ready,
        }
    }

    /// Keeps the warm process: waits until it is ready, restarts it when it dies, pings and replaces it. `notify` learns
    /// what has happened. Returns only if a process has not become ready.
    pub(crate) async fn keep(&self, notify: &(dyn Fn(WarmEvent) + Send + Sync)) -> HandlerStartError {
        match self {
            Self::Coprocess(coprocess) => coprocess.keep(notify).await,
            Self::Http(server) => server.keep(notify).await,
            Self::Fastcgi(application) => application.keep(notify).await,
            Self::Echo | Self::Exec(_) | Self::Inetd(_) => std::future::pending().await,
        }
    }

    /// How its warm process is replaced; `None` without one.
    pub(crate) fn replacing(&self) -> Option<Replacing> {
        match self {
            Self::Coprocess(coprocess) => Some(coprocess.replacing()),
            Self::Http(server) => Some(server.replacing()),
            Self::Fastcgi(application) => Some(application.replacing()),
            Self::Echo | Self::Exec(_) | Self::Inetd(_) => None,
        }
    }

    /// Has [`keep`](Self::keep) replace the warm process; it notifies about the result.
    pub(crate) fn request_replacement(&self) {
        match self {
            Self::Coprocess(coprocess) => coprocess.request_replacement(),
            Self::Http(server) => server.request_replacement(),
            Self::Fastcgi(application) => application.request_replacement(),
            Self::Echo | Self::Exec(_) | Self::Inetd(_) => {}
        }
    }

    /// Ends the handler: lets the warm process exit, then kills and reaps everything that remains.
    pub(crate) async fn stop(&self) {
        match self {
            Self::Echo => {}
            Self::Exec(exec) => exec.stop().await,
            Self::Inetd(inetd) => inetd.stop().await,
            Self::Coprocess(coprocess) => coprocess.stop().await,
            Self::Http(server) => server.stop().await,
            Self::Fastcgi(application) => application.stop().await,
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
            Self::Http(server) => Box::pin(async move { server.call(request).await }),
            Self::Fastcgi(application) => Box::pin(async move { application.call(request).await }),
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
        is_send(&handler.end_request(Duration::ZERO));
        is_send(&handler.keep(&|_| {}));
        is_send(&handler.stop());
    }
}
