//! The front: accepts clients, reads their heads, and tells them where to go.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use http::header::ALLOW;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::stat::fstat;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::driver::Driver;
use super::fdstore::{StoredConnection, StoredFd};
use super::handoff::{self, Connection, Endpoints, HandoffListener};
use super::listeners::{Listener, Listeners};
use super::readiness::Readiness;
use super::{fdstore, redirect, request};
use crate::config::{self, Config};
use crate::log;
use crate::net::{self, ProblemResponse, SocketListener, SocketStream, disconnected, lingering_close};
use crate::pool::Peer;

/// Pause after a failed accept: out of descriptors, most likely, which only time mends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A wait shorter than this is not worth a watch on the client: it costs a descriptor and five calls.
const WATCH_AFTER: Duration = Duration::from_millis(20);

/// All listeners and the connections they have accepted.
pub struct Acceptor {
    shared: Rc<AcceptorState>,
    accepting: Vec<AbortHandle>,
}

struct AcceptorState {
    desk: Rc<Driver>,
    readiness: Rc<Readiness>,
    closing: Rc<Notify>,
    is_closing: Rc<Cell<bool>>,
    doors: Rc<Listeners>,
    places: Arc<Semaphore>,
    /// The last mark given to a connection.
    mark: Cell<u32>,
    connections: Cell<usize>,
    ended: Notify,
}

impl Acceptor {
    /// Starts accepting.
    pub fn open(config: &Config, sockets: Vec<Rc<SocketListener>>, desk: Rc<Driver>) -> io::Result<Self> {
        let readiness = Readiness::new()?;
        let watching = readiness.clone();
        let at = desk.clone();
        tokio::task::spawn_local(async move { watching.run(|| at.glance()).await });
        let mark = desk.any_mark();
        let shared = Rc::new(AcceptorState {
            desk,
            readiness,
            closing: Rc::default(),
            is_closing: Rc::default(),
            doors: Listeners::new(config),
            places: Arc::new(Semaphore::new(config.front.connections)),
            // Not where the last dispatcher began: its connections may still be with workers.
            mark: Cell::new(mark),
            connections: Cell::new(0),
            ended: Notify::new(),
        });
        let accept = |(index, socket)| tokio::task::spawn_local(accept(shared.clone(), index, socket)).abort_handle();
        let accepting = sockets.into_iter().enumerate().map(accept).collect();
        Ok(Self { shared, accepting })
    }

    /// Goes on with connections from the store of which nothing has been read. Whose listener is gone is sent away.
    pub fn take_back(&self, stored: Vec<(OwnedFd, StoredFd)>) {
        let (mut known, mut astray) = (BTreeSet::new(), Vec::new());
        for (fd, stored) in stored {
            let Some(handed) = StoredConnection::of(&stored.0) else { continue };
            // One whose removal got lost may be there under two names.
            if fstat(&fd).is_ok_and(|status| !known.insert(status.st_ino)) {
                continue;
            }
            if handoff::is_lent(&fd) && !self.shared.desk.is_found(handed.mark) {
                continue; // a worker has it, or has had it
            }
            let place = self.shared.places.clone().try_acquire_owned();
            match (self.shared.doors.find(handed.door), place) {
                (Some((index, door)), Ok(place)) => {
                    let ends = Endpoints::of(&fd, net::peer_address(&fd), None, handed.mark);
                    let connection = Connection::new(fd, ends, door, &self.shared.readiness);
                    let connection = connection.adopted(handed.peer, stored);
                    self.shared.clone().serve_handed(index, connection, false, place);
                }
                _ if handed.is_http => astray.push((fd, stored)),
                _ => net::reset(&fd), // whatever it speaks, there is no word of it here
            }
        }
        fdstore::give_back(astray, self.shared.doors.settings().linger_timeout);
    }

    /// Takes new settings for connections from now on; the sockets stay what they are.
    pub fn reconfigure(&self, config: &Config) {
        let before = self.shared.doors.apply(config).connections;
        let (places, wanted) = (self.shared.places.clone(), config.front.connections);
        places.add_permits(wanted.saturating_sub(before));
        let surplus = before.saturating_sub(wanted);
        let in_use = surplus - places.forget_permits(surplus);
        if in_use > 0 {
            tokio::task::spawn_local(async move {
                // All at once: nobody is accepted before that many have been given up.
                if let Ok(places) = places.acquire_many(u32::try_from(in_use).unwrap_or(u32::MAX)).await {
                    places.forget();
                }
            });
        }
    }

    /// Accepts nobody any more; who comes waits in the kernel's backlog for the next dispatcher.
    pub fn close(&self) {
        self.accepting.iter().for_each(AbortHandle::abort);
        self.shared.is_closing.set(true);
        self.shared.closing.notify_waiters();
    }

    /// Connections that have not ended.
    pub fn connections(&self) -> usize {
        self.shared.connections.get()
    }

    /// Waits until one of them has.
    pub async fn one_less(&self) {
        self.shared.ended.notified().await;
    }
}

impl AcceptorState {
    fn next_mark(&self) -> u32 {
        self.mark.set(self.mark.get().wrapping_add(1).max(1));
        self.mark.get()
    }

    fn serve_handed(self: Rc<Self>, index: usize, connection: Connection, is_new: bool, place: OwnedSemaphorePermit) {
        let hall = HandoffListener {
            desk: self.desk.clone(),
            doors: self.doors.clone(),
            index,
            closing: self.closing.clone(),
            is_closing: self.is_closing.clone(),
        };
        tokio::task::spawn_local(async move {
            // Only who waits for a worker, or for a last word, is to be waited for at the end of this dispatcher.
            let counted = Cell::new(false);
            let waits = |waits: bool| {
                if counted.replace(waits) != waits {
                    let by = if waits { 1 } else { usize::MAX };
                    self.connections.set(self.connections.get().wrapping_add(by));
                    self.ended.notify_one();
                }
            };
            hall.serve(Rc::new(connection), is_new, &waits).await;
            drop(place);
        });
    }
}

/// Accepts connections to be handed over, until aborted: without tokio's own watch on each of them.
async fn accept_handed(shared: Rc<AcceptorState>, index: usize, socket: Rc<SocketListener>) {
    // One that listens on all addresses does not know which of them a client has come to.
    let server = socket.tcp_address().filter(|address| !address.ip().is_unspecified());
    loop {
        match next(&shared.places, &socket).await {
            Ok((fd, address, place)) => {
                let Some(door) = shared.doors.handing(index) else { return };
                let ends = Endpoints::of(&fd, address, server, shared.next_mark());
                let connection = Connection::new(fd, ends, door, &shared.readiness);
                shared.clone().serve_handed(index, connection, true, place);
            }
            Err(error) => {
                tracing::warn!(%error, event = %log::Event::AcceptFailed, "accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(shared: Rc<AcceptorState>, index: usize, socket: Rc<SocketListener>) {
    if shared.doors.handing(index).is_some() {
        return accept_handed(shared, index, socket).await;
    }
    loop {
        match next(&shared.places, &socket).await {
            Ok((fd, _, place)) => {
                let Some(door) = shared.doors.at(index) else { return };
                shared.connections.set(shared.connections.get() + 1);
                let client = ClientConnection {
                    door,
                    settings: shared.doors.settings(),
                    listens_on: socket.tcp_address().map(|address| address.ip()),
                    stream: net::SharedStream(Arc::new(SocketStream::new(fd, socket.is_tcp()))),
                    may_probe: AtomicBool::new(false),
                    answered: Cell::new(false),
                };
                let shared = shared.clone();
                tokio::task::spawn_local(async move {
                    client.serve(&shared.desk).await;
                    drop(place);
                    shared.connections.set(shared.connections.get() - 1);
                    shared.ended.notify_one();
                });
            }
            Err(error) => {
                tracing::warn!(%error, event = %log::Event::AcceptFailed, "accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The next connection, its client's TCP address, and its place. Beyond `front.connections` the kernel's backlog is the queue; a listener
/// on which nobody waits holds no place that another could use.
async fn next(
    places: &Arc<Semaphore>,
    socket: &SocketListener,
) -> io::Result<(OwnedFd, Option<SocketAddr>, OwnedSemaphorePermit)> {
    let mut acquire = pin!(places.clone().acquire_owned());
    poll_fn(|task| {
        let place = ready!(acquire.as_mut().poll(task)).map_err(io::Error::other)?;
        let accepted = socket.poll_accept(task);
        if accepted.is_pending() {
            acquire.set(places.clone().acquire_owned());
        }
        accepted.map_ok(|(fd, address)| (fd, address, place))
    })
    .await
}

/// One connection, which is one request.
struct ClientConnection {
    door: Rc<Listener>,
    settings: Rc<config::FrontConfig>,
    listens_on: Option<IpAddr>,
    stream: net::SharedStream,
    /// Nothing has been sent to a client that knows HTTP/1.1 and is waiting.
    may_probe: AtomicBool,
    answered: Cell<bool>,
}

type Answer = Response<Full<Bytes>>;

fn told(problem: &ProblemResponse) -> Answer {
    let mut answer = problem.response();
    if problem.status == StatusCode::METHOD_NOT_ALLOWED {
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    answer
}

impl ClientConnection {
    async fn serve(&self, desk: &Rc<Driver>) {
        {
            let service =
                service_fn(|request| async { Ok::<_, std::convert::Infallible>(self.answer(desk, request).await) });
            let connection = http1::Builder::new()
                .keep_alive(false)
                .half_close(true)
                .timer(TokioTimer::new())
                .header_read_timeout(self.settings.head_timeout)
                .max_buf_size(self.settings.head_bytes)
                .serve_connection(TokioIo::new(self.stream.clone()), service);
            if let Err(error) = pin!(connection).await {
                tracing::debug!(%error, "connection ended early");
                if error.is_timeout() && !self.answered.get() {
                    let _ = self.stream.0.try_write(&ProblemResponse::late_head().raw());
                }
            }
        }
        lingering_close(self.stream.clone(), self.settings.linger_timeout).await;
    }

    async fn answer(&self, desk: &Rc<Driver>, request: Request<Incoming>) -> Answer {
        let since = Instant::now();
        let checked = request::check_request(
            &request,
            &self.door.listener.allowed_hosts,
            self.listens_on,
            self.settings.max_body,
        );
        let (answer, worker) = match checked {
            Err(problem) => (told(&problem), None),
            Ok((host, target)) => {
                let host = host.unwrap_or_else(|| net::fallback_host(&self.stream.0));
                self.may_probe.store(request.version() >= Version::HTTP_11, Ordering::Relaxed);
                let verdict = self.wait(desk).await;
                self.may_probe.store(false, Ordering::Relaxed);
                match verdict {
                    None => (self.client_left(), None),
                    Some(Ok(grant)) => {
                        let wants_lease = self.listens_on.is_none() || request.uri().path() == request::LEASE_PATH;
                        let told = match wants_lease {
                            true => redirect::lease(&grant),
                            false => redirect::to_worker(&grant, &host, &target),
                        };
                        (told, Some(grant))
                    }
                    Some(Err(refusal)) => {
                        let pool = &self.door.listener.pool;
                        (redirect::refusal(refusal, pool.as_str(), &desk.staff(pool)).response(), None)
                    }
                }
            }
        };
        self.answered.set(true);
        if self.door.listener.access_log {
            let (worker, lease) = match &worker {
                Some(grant) => (grant.worker.to_string(), grant.lease.to_string()),
                None => ("-".into(), "-".into()),
            };
            let client = self.stream.0.peer_address().map_or("unix".into(), |address| address.to_string());
            let ms = since.elapsed().as_secs_f64() * 1e3;
            tracing::info!(
                client,
                status = answer.status().as_u16(),
                worker,
                lease,
                wait_ms = format!("{ms:.1}"),
                event = %log::Event::RequestLogged,
                "{} {}",
                request.method(),
                request.uri()
            );
        }
        answer
    }

    /// Waits for a worker; `None` if the client has gone before there was one.
    async fn wait(&self, desk: &Rc<Driver>) -> Option<super::driver::Verdict> {
        let peer = match self.stream.0.peer_address() {
            Some(address) => Peer::Ip(address.ip().to_canonical()),
            None => Peer::User(self.stream.0.peer_user().unwrap_or(u32::MAX)),
        };
        let store = async {
            sleep(self.settings.store_after).await;
            let _stored = fdstore::put(self.stream.0.as_fd(), fdstore::waiting()).await;
            std::future::pending::<()>().await
        };
        let left = async {
            sleep(WATCH_AFTER).await;
            disconnected(&self.stream, &self.may_probe).await;
        };
        tokio::select! {
            verdict = desk.lease(&self.door.listener.pool, peer) => Some(verdict),
            () = left => None,
            () = store => None,
        }
    }

    /// Nobody will read it.
    fn client_left(&self) -> Answer {
        tracing::debug!("a client left the queue");
        ProblemResponse::not_started(StatusCode::SERVICE_UNAVAILABLE, "the client has left").response()
    }
}
