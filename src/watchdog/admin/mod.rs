//! `admin.sock`, and a TCP address if there is one: how the set is, over HTTP, for monitors and load balancers.
//!
//! The watchdog answers, because everybody else may be frozen, and a thread of its own does it, because nobody who
//! asks may keep the watchdog from its decisions: the loop leaves a [`Snapshot`] at each of its turns and waits for
//! nothing. Until somebody comes the thread sleeps in poll(2) and has nothing; what it needs to serve it lets go
//! with the last connection.

mod answer;
mod metrics;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use super::prober::Prober;
use super::restart_stats::RestartStats;
use crate::config::Config;
use crate::ids::{Monotonic, PoolName, WorkerId};
use crate::log;
use crate::net::{self, ACCEPT_RETRY_DELAY, ProblemResponse, SocketListener, lingering_close};
use crate::probe::ProbeReport;
use crate::stats::CounterTotals;
use crate::status::SavedState;

/// Connections at a time on each listener, so that strangers on TCP take no place of the socket's; the next ones wait
/// in the kernel's backlog.
const CONNECTIONS: usize = 64;
/// How long a client may take to send the head of its request.
const HEAD: Duration = Duration::from_secs(2);
/// The largest head, in bytes: the least that hyper allows.
const HEAD_BYTES: usize = 8192;
/// How long a client may take for everything.
const WHOLE: Duration = Duration::from_secs(10);
/// How long an answer waits for its client to stop sending.
const LINGER: Duration = Duration::from_millis(500);
/// Bytes of the thread's stack; what is not used costs nothing.
const STACK: usize = 512 << 10;

/// What the deciding loop knows at one of its turns.
pub struct Snapshot {
    /// When that was.
    pub at: Monotonic,
    /// The configuration in force.
    pub config: Arc<Config>,
    /// How the parts are.
    pub state: Arc<SavedState>,
    /// The dispatcher's last report, and when it came.
    pub report: Option<(Monotonic, Arc<ProbeReport>)>,
    /// Since when it owes the next.
    pub asked: Option<Monotonic>,
    /// What the dispatchers have counted.
    pub pools: CounterTotals<PoolName, u32>,
    /// What the watchdog has.
    pub account: RestartStats,
}

impl Snapshot {
    /// What a loop with these parts knows.
    pub fn new(
        now: Monotonic,
        config: &Arc<Config>,
        state: Arc<SavedState>,
        prober: &Prober,
        account: &RestartStats,
    ) -> Self {
        Self {
            at: now,
            config: config.clone(),
            state,
            report: prober.last_report().cloned(),
            asked: prober.pending_since(),
            pools: prober.pool_counters().clone(),
            account: account.clone(),
        }
    }
}

/// What loop and thread share.
#[derive(Default)]
struct Shared {
    /// Held for a moment by each side: to put a pointer in, to copy it out.
    snapshot: Mutex<Option<Arc<Snapshot>>>,
    /// What the workers have counted, as it was when somebody asked.
    workers: Mutex<CounterTotals<WorkerId, ()>>,
}

/// The server, as the deciding loop sees it.
#[derive(Default)]
pub struct Admin {
    shared: Arc<Shared>,
    /// Dropped, it ends the thread.
    running: Option<io::PipeWriter>,
}

impl Admin {
    /// Serves on these listening sockets from now on, and on no others any more.
    ///
    /// # Errors
    /// No pipe or no thread can be had.
    pub fn serve(&mut self, sockets: Vec<OwnedFd>) -> io::Result<()> {
        let (stop, running) = io::pipe()?;
        let shared = self.shared.clone();
        let serve = move || serve(&sockets, stop.into(), &shared);
        thread::Builder::new().name("patou-admin".into()).stack_size(STACK).spawn(serve)?;
        self.running = Some(running);
        Ok(())
    }

    /// Leaves what is known now for whoever asks.
    pub fn publish(&self, snapshot: Snapshot) {
        let snapshot = Some(Arc::new(snapshot));
        // The one before is dropped outside of the lock.
        let _before = std::mem::replace(&mut *locked(&self.shared.snapshot), snapshot);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread: sleeps until somebody comes, serves until nobody is left.
fn serve(sockets: &[OwnedFd], stop: OwnedFd, shared: &Arc<Shared>) {
    loop {
        let all = sockets.iter().chain([&stop]).map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        let mut all: Vec<PollFd<'_>> = all.collect();
        match poll(&mut all, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return give_up(error.into()),
        }
        if all.last().and_then(PollFd::any).unwrap_or(false) {
            return;
        }
        if !all.iter().any(|fd| fd.any().unwrap_or(false)) {
            continue;
        }
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::warn!(%error, event = %log::Event::AcceptFailed, "admin.sock: nobody can be served");
                thread::sleep(ACCEPT_RETRY_DELAY);
                continue;
            }
        };
        if let Err(error) = LocalSet::new().block_on(&runtime, attend(sockets, &stop, shared)) {
            tracing::warn!(%error, event = %log::Event::AcceptFailed, "admin.sock: nobody can be served");
            thread::sleep(ACCEPT_RETRY_DELAY);
        }
    }
}

fn give_up(error: io::Error) {
    tracing::error!(event = %log::Event::RuntimeDirError, "admin.sock is not served any more: {error}");
}

/// Serves until the last connection has ended, or it is time to stop.
async fn attend(sockets: &[OwnedFd], stop: &OwnedFd, shared: &Arc<Shared>) -> io::Result<()> {
    let stop = crate::sys::when_readable(stop.try_clone()?)?;
    let (here, ended) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
    for socket in sockets {
        let listener = SocketListener::from_fd(socket.try_clone()?)?;
        spawn_local(accept(listener, shared.clone(), here.clone(), ended.clone()));
    }
    loop {
        tokio::select! {
            _ = stop.readable() => return Ok(()),
            () = ended.notified() => {}
        }
        if here.get() == 0 {
            return Ok(());
        }
    }
}

async fn accept(listener: SocketListener, shared: Arc<Shared>, here: Rc<Cell<usize>>, ended: Rc<Notify>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let listens_on = listener.tcp_address().map(|address| address.ip());
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok(stream) => {
                here.set(here.get() + 1);
                let (shared, here, ended) = (shared.clone(), here.clone(), ended.clone());
                spawn_local(async move {
                    let _ = timeout(WHOLE, converse(net::SharedStream(Arc::new(stream)), &shared, listens_on)).await;
                    drop(place);
                    here.set(here.get() - 1);
                    ended.notify_one();
                });
            }
            Err(error) => {
                tracing::warn!(%error, event = %log::Event::AcceptFailed, "admin.sock: accept");
                sleep(ACCEPT_RETRY_DELAY).await;
                ended.notify_one();
            }
        }
    }
}

/// One connection, which is one request.
async fn converse(stream: net::SharedStream, shared: &Shared, listens_on: Option<std::net::IpAddr>) {
    {
        let service = service_fn(|request| async move {
            let snapshot = locked(&shared.snapshot).clone();
            Ok::<_, std::convert::Infallible>(answer::answer(&request, listens_on, snapshot, &shared.workers))
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .half_close(true)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream.clone()), service);
        if let Err(error) = pin!(connection).await
            && error.is_timeout()
        {
            let _ = stream.0.try_write(&ProblemResponse::late_head().raw());
        }
    }
    lingering_close(stream, LINGER).await;
}
