//! The thread that serves the admin sockets.
//!
//! Until a client connects it sleeps in poll(2) without a runtime. It creates one to serve, and drops it with the last
//! connection.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use super::respond::respond;
use super::snapshot::SetSnapshot;
use crate::config::admin_connections_within;
use crate::ids::WorkerId;
use crate::log::{Event, LogThrottle};
use crate::net::{
    self, ACCEPT_RETRY_DELAY, LingerBounds, NoRequest, OneRequestIo, ProblemResponse, RequestInput, SocketListener,
    deliver,
};
use crate::stats::CounterTotals;
use crate::sync;
use crate::{descriptors, sys};

/// How long a client may take to send its request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest request head, in bytes: hyper's minimum.
const HEAD_MAX: usize = 8192;
/// How long a client may take until its response is written.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for its client to receive the response.
const LINGER_BOUNDS: LingerBounds =
    LingerBounds { silence: Duration::from_millis(500), total: Duration::from_secs(10) };
/// The thread's stack in bytes. Pages that are not touched cost nothing.
const STACK_SIZE: usize = 512 << 10;

/// What the deciding loop and the admin thread share.
#[derive(Default)]
struct AdminShared {
    /// Locked by each side only to store or copy the pointer.
    snapshot: Mutex<Option<Arc<SetSnapshot>>>,
    /// The workers' counters at the last request for metrics.
    workers: Mutex<CounterTotals<WorkerId, ()>>,
}

/// The deciding loop's handle of the server.
#[derive(Default)]
pub(crate) struct AdminServer {
    shared: Arc<AdminShared>,
    /// Dropping it ends the thread.
    running: Option<io::PipeWriter>,
}

impl AdminServer {
    /// Serves on these listening sockets, in place of those of an earlier call.
    ///
    /// # Errors
    /// When no pipe or thread can be created.
    pub(crate) fn serve(&mut self, sockets: Vec<OwnedFd>) -> io::Result<()> {
        let (stop, running) = io::pipe()?;
        let shared = self.shared.clone();
        let serve = move || serve(&sockets, stop.into(), &shared);
        thread::Builder::new().name("patou-admin".into()).stack_size(STACK_SIZE).spawn(serve)?;
        self.running = Some(running);
        Ok(())
    }

    /// Stores what the next requests are answered from.
    pub(crate) fn publish(&self, snapshot: SetSnapshot) {
        let snapshot = Some(Arc::new(snapshot));
        // The previous snapshot is dropped outside the lock.
        let _previous = std::mem::replace(&mut *sync::lock(&self.shared.snapshot), snapshot);
    }
}

/// The thread: sleeps until a client connects, serves until no connection is left.
fn serve(sockets: &[OwnedFd], stop: OwnedFd, shared: &Arc<AdminShared>) {
    let mut failures = LogThrottle::default();
    loop {
        let fds = sockets.iter().chain([&stop]).map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        let mut fds: Vec<PollFd<'_>> = fds.collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(event = %Event::RuntimeDirError, "admin.sock is not served any more: {error}");
                return;
            }
        }
        if fds.last().and_then(PollFd::any).unwrap_or(false) {
            return;
        }
        if !fds.iter().any(|fd| fd.any().unwrap_or(false)) {
            continue;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let served =
            runtime.and_then(|runtime| LocalSet::new().block_on(&runtime, serve_until_idle(sockets, &stop, shared)));
        if let Err(error) = served {
            if let Some(count) = failures.count() {
                tracing::warn!(%error, count, event = %Event::AcceptFailed,
                    "admin.sock: cannot serve a client, trying again");
            }
            thread::sleep(ACCEPT_RETRY_DELAY);
        }
    }
}

/// Serves until the last connection has ended or the server is stopped.
async fn serve_until_idle(sockets: &[OwnedFd], stop: &OwnedFd, shared: &Arc<AdminShared>) -> io::Result<()> {
    let stop = sys::when_readable(stop.try_clone()?)?;
    let (connections, ended) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
    for socket in sockets {
        let listener = SocketListener::from_fd(socket.try_clone()?)?;
        spawn_local(accept_connections(listener, shared.clone(), connections.clone(), ended.clone()));
    }
    loop {
        tokio::select! {
            _ = stop.readable() => return Ok(()),
            () = ended.notified() => {}
        }
        if connections.get() == 0 {
            return Ok(());
        }
    }
}

async fn accept_connections(
    listener: SocketListener,
    shared: Arc<AdminShared>,
    connections: Rc<Cell<usize>>,
    ended: Rc<Notify>,
) {
    // Of each listener, so that TCP clients cannot exclude those of the Unix socket; more wait in the kernel's backlog.
    let permits = Arc::new(Semaphore::new(admin_connections_within(descriptors::limit())));
    let mut failures = LogThrottle::default();
    let listens_on = listener.tcp_address().map(|address| address.ip());
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok(stream) => {
                connections.set(connections.get() + 1);
                let (shared, connections, ended) = (shared.clone(), connections.clone(), ended.clone());
                spawn_local(async move {
                    let stream = net::SharedStream(Arc::new(stream));
                    let served = timeout(CONNECTION_TIMEOUT, serve_request(&stream, &shared, listens_on)).await;
                    let bytes = served.unwrap_or_default().map_or(Vec::new(), |problem| problem.raw());
                    deliver(stream, &bytes, LINGER_BOUNDS).await;
                    drop(permit);
                    connections.set(connections.get() - 1);
                    ended.notify_one();
                });
            }
            Err(error) => {
                if let Some(count) = failures.count() {
                    tracing::warn!(%error, count, event = %Event::AcceptFailed,
                        "admin.sock: cannot accept a connection, trying again");
                }
                sleep(ACCEPT_RETRY_DELAY).await;
                ended.notify_one();
            }
        }
    }
}

/// Reads one request and responds. Returns the response to a rejected request, which the caller sends.
async fn serve_request(
    stream: &net::SharedStream,
    shared: &AdminShared,
    listens_on: Option<std::net::IpAddr>,
) -> Option<ProblemResponse> {
    let input = match timeout(HEAD_TIMEOUT, RequestInput::read(stream, BytesMut::new(), HEAD_MAX)).await {
        Ok(Ok(input)) => input,
        Ok(Err(NoRequest::Closed)) => return None,
        Ok(Err(NoRequest::Rejected(problem))) => return Some(problem),
        Err(_elapsed) => return Some(ProblemResponse::late_head("the bound of the admin server")),
    };
    let is_served = Arc::<AtomicBool>::default();
    let io = OneRequestIo { stream: stream.clone(), input, is_served: is_served.clone(), is_body_dropped: || true };
    let service = service_fn(|request| {
        is_served.store(true, Ordering::Relaxed);
        async move {
            let snapshot = sync::lock(&shared.snapshot).clone();
            Ok::<_, std::convert::Infallible>(respond(&request, listens_on, snapshot.as_deref(), &shared.workers))
        }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(io), service);
    let error = pin!(connection).await.err()?;
    (error.is_parse() && !is_served.load(Ordering::Relaxed)).then(|| ProblemResponse::unparsable(&error))
}
