//! Serves the address of a worker that is down, and sends every client back to the dispatcher.
//!
//! Under `patou run` this is a process of its own, the stand-in, which the watchdog starts and stops; under systemd it is
//! the process of the next incarnation, while that waits for the end of its restart delay. Neither has the worker's role:
//! they take no lock and no epoch, so that the dispatcher continues to see the worker as gone. They accept nothing
//! while a worker serves, so a stand-in may overlap with one.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use nix::sys::prctl;
use nix::sys::signal::Signal::SIGKILL;
use sd_notify::NotifyState;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::error::{ServeError, system};
use super::handler::{Body, BoxError};
use super::handoff_receiver::WorkerListeners;
use super::redirect;
use super::request_io::request_head;
use super::send_back::send_back;
use super::served_connection::{ServedConnection, SharedTransaction};
use super::transaction::{Transaction, TransactionEvent};
use crate::config::{Config, FrontConfig};
use crate::exchange::{self, Incarnation, Word};
use crate::ids::{Lifecycle, WorkerId};
use crate::ipc::{self, PassedObjects};
use crate::net::{ACCEPT_RETRY_DELAY, LingerBounds, SharedStream, SocketListener, SocketStream, WireProtocol, deliver};
use crate::sd_notification::notify;
use crate::shm::{Segment, SegmentRole};
use crate::signals::Signal;
use crate::{backoff, clock};
use crate::{log, sys};

/// How often a stand-in checks whether the worker still serves.
const RECHECK: Duration = Duration::from_millis(20);
/// Signs of life within one `worker_timeout`.
const SIGNS_OF_LIFE: u32 = 4;

/// `patou stand-in`: serves the address of worker `id` until SIGTERM.
///
/// # Errors
/// See [`ServeError`].
pub(crate) async fn run(config: &Config, id: &WorkerId) -> Result<(), ServeError> {
    log::init(log::LogContext::worker(id, &config.set.name));
    // It holds nothing that is worth a drain, and a frozen one would keep the address.
    prctl::set_pdeathsig(SIGKILL).map_err(|e| system("prctl")(e.into()))?;
    let stop = Signal::stop().and_then(Signal::into_async).map_err(system("signals"))?;
    let listeners = WorkerListeners::from_passed(sys::listen_fds().map_err(system("LISTEN_FDS"))?)?;
    let mut address = HeldAddress::of_absent(config, id, listeners);
    let mut signs_of_life = interval((config.watchdog.worker_timeout / SIGNS_OF_LIFE).max(Duration::from_millis(1)));
    signs_of_life.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let sign = || notify(&[NotifyState::Ready]);
    loop {
        tokio::select! {
            _ = stop.readable() => break,
            _ = signs_of_life.tick() => sign(),
            () = address.serve() => {}
        }
    }
    let mut finished = pin!(address.finish());
    loop {
        tokio::select! {
            () = &mut finished => return Ok(()),
            _ = signs_of_life.tick() => sign(),
        }
    }
}

/// Under systemd, before an incarnation that follows repeated failures starts: serves its address during the delay.
///
/// # Errors
/// See [`ServeError`].
pub(crate) async fn hold_back(config: &Config, id: &WorkerId) -> Result<(), ServeError> {
    if !backoff::is_started_by_systemd() {
        return Ok(()); // the watchdog delays the start
    }
    let Ok(ipc) = ipc::open(config, id) else { return Ok(()) }; // its start will show the error
    // A worker that re-executes itself has not failed.
    if Incarnation::load(&*ipc.segment).is_some_and(|previous| previous.pid == std::process::id()) {
        return Ok(());
    }
    log::init(log::LogContext::worker(id, &config.set.name));
    let wait = backoff::record_start(&[&ipc.segment], Word::WORKER_LAST_START, config);
    let Some(wait) = wait.map_err(|error| ServeError::GivenUp(error.to_string()))? else { return Ok(()) };
    let stop = Signal::stop().and_then(Signal::into_async).map_err(system("signals"))?;
    let until = Instant::now() + wait;
    let listeners = sys::duplicate_listen_fds().map_err(system("LISTEN_FDS"))?;
    let mut address = HeldAddress::of_absent(config, id, WorkerListeners::from_passed(listeners)?);
    let is_stopped = tokio::select! {
        _ = stop.readable() => true,
        () = sleep_until(until) => false,
        () = address.serve() => false,
    };
    address.finish().await;
    if is_stopped {
        backoff::clear_failures(&ipc.segment, Word::WORKER_LAST_START);
        log::exit(0);
    }
    Ok(())
}

/// In a worker whose serving thread is blocked: starts a thread that serves `listener` as long as `is_blocked`. Until the
/// thread responds, or the worker exits, the clients would wait.
pub(super) fn serve_blocked(
    listener: OwnedFd,
    segment: Arc<Segment>,
    front: FrontConfig,
    is_blocked: impl Fn() -> bool + Clone + Send + 'static,
) -> io::Result<()> {
    let serve = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listeners = WorkerListeners { redirect: SocketListener::from_fd(listener)?, handoff: None };
            let mut address = HeldAddress::new(listeners, Some(segment), front, is_blocked.clone());
            while is_blocked() {
                let _ = timeout(RECHECK, address.serve()).await;
            }
            address.finish().await;
            Ok::<_, io::Error>(())
        })
    };
    std::thread::Builder::new().name("send-back".into()).spawn(serve).map(drop)
}

/// The address of a worker that does not serve it itself.
struct HeldAddress {
    listeners: WorkerListeners,
    segment: Option<Arc<Segment>>,
    front: FrontConfig,
    limit: Arc<Semaphore>,
    connections: JoinSet<()>,
    /// Whether the worker leaves the address to this process.
    accepts: Box<dyn Fn() -> bool + Send>,
}

impl HeldAddress {
    /// The address of a worker without a process, or with one that has not finished its start.
    fn of_absent(config: &Config, id: &WorkerId, listeners: WorkerListeners) -> Self {
        // Without it no client can be sent to the dispatcher's port; each still gets a response.
        let segment =
            ipc::open_unchecked(config, id, PassedObjects::of_this_worker().as_ref()).ok().map(|ipc| ipc.segment);
        let slot = segment.clone();
        let serves = move || {
            let slot = slot.as_ref().filter(|slot| slot.is_role_locked(SegmentRole::Worker));
            slot.and_then(|slot| Incarnation::load(&**slot)).is_some_and(|life| life.state != Lifecycle::Starting)
        };
        Self::new(listeners, segment, config.front.clone(), move || !serves())
    }

    fn new(
        listeners: WorkerListeners,
        segment: Option<Arc<Segment>>,
        front: FrontConfig,
        accepts: impl Fn() -> bool + Send + 'static,
    ) -> Self {
        let limit = Arc::new(Semaphore::new(front.connections));
        Self { listeners, segment, front, limit, connections: JoinSet::new(), accepts: Box::new(accepts) }
    }

    /// Serves for ever. Cancel-safe.
    async fn serve(&mut self) {
        loop {
            match self.accept().await {
                Some(Ok((stream, permit))) => {
                    let return_port = self.segment.as_ref().and_then(|segment| exchange::return_port(&**segment));
                    let front = self.front.clone();
                    self.connections.spawn(async move {
                        respond(stream, return_port, &front).await;
                        drop(permit);
                    });
                }
                Some(Err(_)) => sleep(ACCEPT_RETRY_DELAY).await, // no descriptor is free
                None => sleep(RECHECK).await,
            }
            while self.connections.try_join_next().is_some() {}
        }
    }

    /// The next client; `None` while the worker serves.
    async fn accept(&mut self) -> Option<io::Result<(SharedStream, OwnedSemaphorePermit)>> {
        let permit = self.limit.clone().acquire_owned().await.ok()?;
        let Self { listeners: WorkerListeners { redirect, handoff }, accepts, .. } = self;
        let accepted = poll_fn(|task| {
            // Right before each accept: a client that comes later may have a lease of the new incarnation.
            if !accepts() {
                return Poll::Ready(None);
            }
            // Connections that were passed to the ended incarnation: the dispatcher still has them, and revokes.
            while let Some(handoff) = handoff.as_mut()
                && let Poll::Ready(Ok(_)) = handoff.poll_next(task)
            {
                handoff.disconnect();
            }
            redirect.poll_accept(task).map(Some)
        });
        let accepted = accepted.await?;
        Some(accepted.map(|(fd, _)| (SharedStream(Arc::new(SocketStream::new(fd, redirect.is_tcp()))), permit)))
    }

    /// Closes the address, and gives the accepted clients time for their responses.
    async fn finish(self) {
        let Self { listeners, front, mut connections, .. } = self;
        drop(listeners);
        let delivered = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(front.linger_timeout, delivered).await;
    }
}

async fn respond_to(
    connection: Arc<ServedConnection>,
    return_port: Option<u16>,
    request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    connection.on(TransactionEvent::HeadRead(request_head(&request)));
    let response = send_back(return_port, &connection.stream, &request);
    connection.on(TransactionEvent::Refused(response.status().as_u16()));
    Ok(redirect::closing(response))
}

/// Serves one connection.
async fn respond(stream: SharedStream, return_port: Option<u16>, front: &FrontConfig) {
    // Without a lease the head has one bound.
    let transaction = SharedTransaction::new(
        Transaction::new(clock::now(), front.head_timeout, front.head_timeout),
        WireProtocol::Http,
    );
    let connection = Arc::new(ServedConnection {
        stream: stream.clone(),
        peer: None,
        server: None,
        is_https: false,
        listener: None,
        transaction,
    });
    let respond = |request| respond_to(connection.clone(), return_port, request);
    let end = redirect::serve_one_request(&connection, front, respond).await;
    let bounds = LingerBounds { silence: front.linger_timeout, total: front.body_timeout };
    let refusal = end.refusal(&connection.transaction).map(|problem| problem.raw());
    deliver(stream, &refusal.unwrap_or_default(), bounds).await;
}
