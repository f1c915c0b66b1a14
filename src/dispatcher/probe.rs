//! `probe.sock`: the serving loop answers probes itself, which proves that it serves, and executes the commands of
//! operators. Only authorized users may connect.

use std::cell::{Cell, RefCell};
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::{User, geteuid};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, spawn_local, yield_now};
use tokio::time::{Instant, sleep, timeout};

use super::driver::Driver;
use super::places::ConnectionPlaces;
use crate::config::Config;
use crate::descriptors::{SpareDescriptors, is_shortage};
use crate::ids::{ProgramVersion, WorkerId};
use crate::log::{Event, LogThrottle};
use crate::net::ACCEPT_RETRY_DELAY;
use crate::pool::PoolEvent;
use crate::probe::{ConnectionReport, ProbeCommand, ProbeRefusal, ProbeReport, ProbeRequest, REQUEST_MAX, socket_path};

/// A connection that sends no request, or reads no report, for this long is closed. The watchdog probes every
/// `probe_interval`, and connects again.
const IDLE: Duration = Duration::from_secs(60);

/// How long an unauthorized user may take to send the request that is refused.
const REFUSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Concurrent connections of authorized users. A new one takes the place of another.
const CONNECTIONS_MAX: usize = 16;
/// Concurrent refusals. Beyond it, connections of unauthorized users are closed at once.
const REFUSALS_MAX: usize = 4;
/// A connection that brought its first request keeps its place until it is served, for at most this time.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(100);
/// Pause until one of those connections is served.
const GRACE_PAUSE: Duration = Duration::from_millis(1);

/// How long the first probe waits until the watchdog's user is known. Shorter than the least time after which a
/// dispatcher is frozen.
const LOOK_UP_WAIT: Duration = Duration::from_millis(200);

/// How long a command for one worker waits for the new objects of that worker. Longer only if its restart is delayed: then
/// the copy is made later.
const NEW_OBJECTS_WAIT: Duration = Duration::from_secs(1);
/// How often it looks for them.
const NEW_OBJECTS_PAUSE: Duration = Duration::from_millis(10);

/// How long the look for a listening process may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);

/// The user of the watchdog in a set of units.
const WATCHDOG: &str = "patou-watchdog";
/// The first uid of ordinary users (login.defs(5), `UID_MIN`); the users of units are below.
const UID_MIN: u32 = 1000;

/// The authorized users: root, the dispatcher's own, and the watchdog's where that is another.
///
/// The last applies under systemd, where the dispatcher runs as a system user. A set of an ordinary user, or of root,
/// has one user only.
struct AccessList {
    allowed: Rc<RefCell<Vec<u32>>>,
    refused: LogThrottle,
}

impl AccessList {
    fn new() -> Self {
        Self { allowed: Rc::new(RefCell::new(vec![0, geteuid().as_raw()])), refused: LogThrottle::default() }
    }

    /// Adds the watchdog's user, once. A thread looks it up: a name service may not respond.
    async fn add_watchdog(allowed: Rc<RefCell<Vec<u32>>>) {
        if !(1..UID_MIN).contains(&geteuid().as_raw()) {
            return;
        }
        let (sender, user) = oneshot::channel();
        let look_up = move || drop(sender.send(User::from_name(WATCHDOG).ok().flatten()));
        let started = std::thread::Builder::new().name("users".to_owned()).spawn(look_up);
        if started.is_ok()
            && let Ok(Some(user)) = user.await
        {
            allowed.borrow_mut().push(user.uid.as_raw());
        }
    }

    /// Whether this user is authorized; logs refusals. `None`: the kernel does not report the user.
    fn allows(&mut self, uid: Option<u32>) -> bool {
        if uid.is_some_and(|uid| self.allowed.borrow().contains(&uid)) {
            return true;
        }
        if let Some(refused) = self.refused.count() {
            tracing::warn!(uid, refused, "probe.sock: refusing a user that is not authorized");
        }
        false
    }
}

/// Whether no process listens at [`socket_path`].
pub(super) async fn is_unreachable(config: &Config) -> bool {
    let connected = timeout(CONNECT_TIMEOUT, UnixStream::connect(socket_path(config))).await;
    connected.is_ok_and(|result| {
        result.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused))
    })
}

/// Binds the socket in place of one whose file was removed. Any user may connect; [`AccessList`] decides.
pub(super) fn bind_again(config: &Config) -> Option<UnixListener> {
    let path = socket_path(config);
    let _ = fs::remove_file(&path); // one on which no process listens
    let bound = UnixListener::bind(&path);
    let bound = bound.and_then(|socket| fs::set_permissions(&path, Permissions::from_mode(0o666)).map(|()| socket));
    match bound {
        Ok(socket) => {
            tracing::warn!(event = %Event::FilesLost, "probe.sock was removed from outside: bound it again");
            Some(socket)
        }
        Err(error) => {
            tracing::error!(event = %Event::FilesLost,
                "probe.sock was removed from outside and cannot be bound again: {error}");
            None
        }
    }
}

/// Serves `probe.sock`.
pub(super) struct ProbeServer {
    driver: Rc<Driver>,
    places: Rc<ConnectionPlaces>,
    connections: RefCell<Vec<ProbeConnection>>,
    refusals: Cell<usize>,
    /// Clients may use up all descriptors, but the watchdog must be able to connect: a dispatcher that does not answer
    /// it looks frozen.
    spare: RefCell<SpareDescriptors>,
}

struct ProbeConnection {
    accepted: Instant,
    /// Whether its first request had arrived when it was accepted.
    has_request: bool,
    /// The time of the last request that was served.
    last_request: Rc<Cell<Option<Instant>>>,
    task: AbortHandle,
}

impl ProbeConnection {
    /// Whether it is about to be served for the first time.
    fn is_fresh(&self) -> bool {
        self.has_request && self.last_request.get().is_none() && self.accepted.elapsed() < FIRST_REQUEST_GRACE
    }
}

impl ProbeServer {
    pub(super) fn new(driver: Rc<Driver>, places: Rc<ConnectionPlaces>, spare: SpareDescriptors) -> Rc<Self> {
        let (connections, refusals) = (RefCell::default(), Cell::new(0));
        Rc::new(Self { driver, places, connections, refusals, spare: RefCell::new(spare) })
    }

    /// Accepts connections for ever.
    pub(super) async fn run(self: Rc<Self>, socket: UnixListener) {
        let (mut access, mut failures) = (AccessList::new(), LogThrottle::default());
        // The first probe waits for it, because it would be refused.
        let looked_up = spawn_local(AccessList::add_watchdog(access.allowed.clone()));
        let _ = timeout(LOOK_UP_WAIT, looked_up).await;
        loop {
            match socket.accept().await {
                Ok((stream, _)) => {
                    let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                    if access.allows(uid) {
                        self.make_room().await;
                        self.add(stream);
                    } else {
                        self.refuse(stream);
                    }
                    self.spare.borrow_mut().refill();
                }
                // With descriptors that were reserved, or taken from another client of the probe.
                // At once: no other task may take the descriptor.
                Err(error) if is_shortage(&error) && self.spare.borrow_mut().release() => {}
                Err(error) if is_shortage(&error) && self.evict() => yield_now().await,
                Err(error) => {
                    if let Some(count) = failures.count() {
                        tracing::warn!(%error, count, event = %Event::AcceptFailed,
                            "probe.sock: cannot accept a connection, trying again");
                    }
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }

    fn add(self: &Rc<Self>, stream: UnixStream) {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let has_request = recv(stream.as_fd().as_raw_fd(), &mut [0], flags).is_ok_and(|bytes| bytes > 0);
        let last_request = Rc::new(Cell::new(None));
        let task = spawn_local(self.clone().serve_connection(stream, last_request.clone())).abort_handle();
        let connection = ProbeConnection { accepted: Instant::now(), has_request, last_request, task };
        self.connections.borrow_mut().push(connection);
    }

    /// Returns when a connection may be added.
    async fn make_room(&self) {
        self.connections.borrow_mut().retain(|connection| !connection.task.is_finished());
        while self.connections.borrow().len() >= CONNECTIONS_MAX && !self.evict() {
            sleep(GRACE_PAUSE).await;
        }
    }

    /// Ends the oldest connection without a request, or the one that has been idle longest; `false` if each of them is
    /// about to be served. Clients that are silent cannot displace the watchdog, and others only until its next probe.
    fn evict(&self) -> bool {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| !connection.task.is_finished());
        let evictable = (0..connections.len()).filter(|index| !connections[*index].is_fresh());
        let victim =
            evictable.min_by_key(|index| (connections[*index].last_request.get(), connections[*index].accepted));
        victim.map(|index| connections.swap_remove(index).task.abort()).is_some()
    }

    fn refuse(self: &Rc<Self>, stream: UnixStream) {
        if self.refusals.get() >= REFUSALS_MAX {
            return;
        }
        self.refusals.set(self.refusals.get() + 1);
        let server = self.clone();
        spawn_local(async move {
            let _ = timeout(REFUSE_TIMEOUT, refuse(stream)).await;
            server.refusals.set(server.refusals.get() - 1);
        });
    }

    async fn serve_connection(self: Rc<Self>, stream: UnixStream, last_request: Rc<Cell<Option<Instant>>>) {
        let driver = &self.driver;
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        loop {
            let mut line = Vec::new();
            let mut bounded = (&mut read).take(REQUEST_MAX as u64);
            match timeout(IDLE, bounded.read_until(b'\n', &mut line)).await {
                Ok(Ok(n)) if n > 0 && line.last() == Some(&b'\n') => {}
                _ => return, // disconnected, idle, or not a request
            }
            self.spare.borrow_mut().refill();
            let Ok(request) = serde_json::from_slice::<ProbeRequest>(&line) else { return };
            if let Some(ProbeCommand::Drain(id) | ProbeCommand::Resume(id)) = &request.command {
                wait_for_new_objects(driver, id).await;
            }
            // Before the command, so that the questions it opens do not count as silence.
            let pools = driver.report();
            driver.notify_status();
            if request.command == Some(ProbeCommand::Ping) {
                driver.set_failed_pools(&request.failed);
            }
            let refused = request.command.and_then(|command| execute(driver, command));
            let (pid, epoch) = (std::process::id(), driver.epoch().get());
            self.places.follow_limit();
            let (used, places) = self.places.usage();
            let connections = Some(ConnectionReport { used, places });
            let stopping = driver.stops.get();
            let version = Some(ProgramVersion::own().to_string());
            let report =
                ProbeReport { nonce: request.nonce, pid, epoch, pools, connections, refused, stopping, version };
            let Ok(mut answer) = serde_json::to_vec(&report) else { return };
            answer.push(b'\n');
            if !matches!(timeout(IDLE, write.write_all(&answer)).await, Ok(Ok(()))) {
                return;
            }
            last_request.set(Some(Instant::now()));
        }
    }
}

/// Reads the request first: a client that cannot send it would not read the refusal.
async fn refuse(stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let _ = BufReader::new(read).take(REQUEST_MAX as u64).read_until(b'\n', &mut line).await;
    let refused = "only root and the users of the dispatcher and the watchdog may use the probe socket".to_owned();
    if let Ok(mut answer) = serde_json::to_vec(&ProbeRefusal { refused }) {
        answer.push(b'\n');
        let _ = write.write_all(&answer).await; // fails if the peer has disconnected
    }
}

/// A worker that is down and whose objects have lost their names gets new ones, with a copy of the slot. A command that
/// was executed in the old slot meanwhile would be lost with this process.
async fn wait_for_new_objects(driver: &Driver, id: &WorkerId) {
    let give_up = Instant::now() + NEW_OBJECTS_WAIT;
    while driver.is_being_replaced(id) && Instant::now() < give_up {
        sleep(NEW_OBJECTS_PAUSE).await;
    }
}

/// Executes a command; returns the reason if it is refused.
fn execute(driver: &Rc<Driver>, command: ProbeCommand) -> Option<String> {
    match command {
        ProbeCommand::Ping => {
            driver.check_names();
            driver.handle_in_all(PoolEvent::Probe);
        }
        ProbeCommand::Quiesce => {
            driver.stops.set(true);
            driver.handle_in_all(PoolEvent::Quiesce);
        }
        ProbeCommand::Hold => driver.stop_accepting.notify_one(),
        ProbeCommand::Recycle { pool, .. } if !driver.has_pool(&pool) => {
            return Some(format!("the configuration has no pool {pool}"));
        }
        ProbeCommand::Recycle { pool, workers } => {
            tracing::info!(%pool, workers = workers.len(), event = %Event::RecycleRequested,
                "an operator requests that {} workers of pool {pool} are recycled", workers.len());
            workers.into_iter().for_each(|n| driver.handle(&pool, PoolEvent::Recycle(n)));
        }
        ProbeCommand::Drain(id) | ProbeCommand::Resume(id) if !driver.has_worker(&id) => {
            return Some(format!("the configuration has no worker {id}"));
        }
        // Repeated: nothing changes, but the worker may not have read the first question.
        ProbeCommand::Drain(id) if driver.is_drained(&id) => driver.handle(&id.pool, PoolEvent::Drain(id.number)),
        ProbeCommand::Resume(id) if !driver.is_drained(&id) => {}
        ProbeCommand::Drain(id) => {
            tracing::info!(worker = %id, event = %Event::WorkerDrained, "taken out of service by an operator");
            driver.handle(&id.pool, PoolEvent::Drain(id.number));
            let availability = driver.availability(&id.pool);
            if availability.drained == availability.workers {
                tracing::warn!(pool = %id.pool, "every worker of this pool is out of service: refusing its clients");
            }
        }
        ProbeCommand::Resume(id) => {
            tracing::info!(worker = %id, event = %Event::WorkerResumed, "put back into service by an operator");
            driver.handle(&id.pool, PoolEvent::Resume(id.number));
        }
    }
    None
}
