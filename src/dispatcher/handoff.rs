//! Connections that are handed over: waited for, lent to a worker for one request, taken back, and ended.
//!
//! Nothing is ever read from one, but for the header of a proxy. While a worker has it, only its duplicate is here.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, setsockopt, shutdown, sockopt};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::driver::Driver;
use super::fdstore::StoredConnection;
use super::listeners::{Listener, Listeners};
use super::readiness::{Readiness, Watched};
use super::{fdstore, redirect};
use crate::handoff::HandoffMessage;
use crate::ids::{LeaseId, Token, WorkerId};
use crate::net::{
    self, ProblemResponse, ProxyHeader, SocketStream, lingering_close, parse_proxy_header, reset, set_reset_on_close,
};
use crate::pool::{LeaseEnd, Peer, Refusal};

/// A wait shorter than this is not worth a watch on the client.
const WATCH_AFTER: Duration = Duration::from_millis(20);
/// After what time a header that has not come whole is looked at again, and at most while nothing more of it comes: nothing
/// is read before it is there.
const HEADER_LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// A connection.
pub struct Connection {
    watched: Watched,
    ends: Endpoints,
    /// The client's address as a proxy has told it.
    proxied: Cell<Option<SocketAddr>>,
    /// Where it has come in, as that was when it last asked.
    door: RefCell<Rc<Listener>>,
    /// Whether a worker may have it.
    lent: Cell<bool>,
    /// Whether the store has, or has had, a duplicate.
    stored: Cell<bool>,
    /// The one that it came back as, until it is claimed: this dispatcher may die as soon as the last.
    adopted: Cell<Option<fdstore::StoredFd>>,
    /// What has come of the present request.
    outcome: RefCell<Option<Outcome>>,
    claimed: Cell<bool>,
    told: Notify,
}

/// Who a connection connects.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    /// The client, as the pool knows it.
    pub peer: Peer,
    /// The client's TCP address.
    pub address: Option<SocketAddr>,
    /// The TCP address that it has connected to.
    pub server: Option<SocketAddr>,
    /// Tells the connections of a listener from each other, also for the next dispatcher. Not 0.
    pub mark: u32,
}

impl Endpoints {
    /// `address` is the client's, on TCP; `server` is the other one where it is known.
    pub fn of(fd: &OwnedFd, address: Option<SocketAddr>, server: Option<SocketAddr>, mark: u32) -> Self {
        let user = || Peer::User(net::peer_user(fd).unwrap_or(u32::MAX));
        let peer = address.map_or_else(user, |address| Peer::Ip(address.ip().to_canonical()));
        Self { peer, address, server: server.or_else(|| address.and_then(|_| net::local_address(fd))), mark }
    }
}

/// What became of a connection that wanted a worker.
pub enum Outcome {
    /// A worker had it; whether it goes on.
    Over(WorkerId, LeaseEnd, bool),
    /// None was to be had.
    Refused(Refusal),
}

impl Connection {
    pub fn new(fd: OwnedFd, ends: Endpoints, door: Rc<Listener>, readiness: &Rc<Readiness>) -> Self {
        Self {
            watched: Watched::new(fd, readiness),
            ends,
            proxied: Cell::new(None),
            door: RefCell::new(door),
            lent: Cell::new(false),
            stored: Cell::new(false),
            adopted: Cell::new(None),
            outcome: RefCell::new(None),
            claimed: Cell::new(false),
            told: Notify::new(),
        }
    }

    /// A worker is about to get it, or cannot have it any more. Who finds it in the store afterwards has to know: what
    /// a worker may have is never offered to another. The mark is one that all holders of a socket share, means
    /// nothing to a connection, and needs no privilege: its priority (socket(7)).
    pub fn lend(&self, lent: bool) {
        self.lent.set(lent);
        if self.stored.get() {
            self.show_lent();
        }
    }

    fn show_lent(&self) {
        let _ = setsockopt(&self.watched, sockopt::Priority, &i32::from(self.lent.get()));
    }

    /// It comes from the store, where its header was read already.
    pub fn adopted(self, proxied: Option<SocketAddr>, stored: fdstore::StoredFd) -> Self {
        self.proxied.set(proxied);
        self.stored.set(true);
        self.adopted.set(Some(stored));
        self.show_lent(); // it may have been lent by the last dispatcher
        self
    }

    /// What its worker is to know of it.
    pub fn message(&self, lease: LeaseId, token: Token) -> HandoffMessage {
        let Endpoints { address, server, .. } = self.ends;
        let entrance = self.door.borrow().entrance.clone();
        HandoffMessage { lease, token, peer: self.proxied.get().or(address), server, listener: entrance }
    }

    /// Its mark.
    pub fn mark(&self) -> u32 {
        self.ends.mark
    }

    /// It has been claimed.
    pub fn claim(&self) {
        self.claimed.set(true);
        self.told.notify_waiters();
    }

    /// It is nobody's but ours again.
    pub fn tell(&self, outcome: Outcome) {
        // Of one that ends otherwise nothing may be done a second time.
        if matches!(outcome, Outcome::Over(_, LeaseEnd::Done, true)) {
            self.lend(false);
        }
        *self.outcome.borrow_mut() = Some(outcome);
        self.told.notify_waiters();
    }

    /// Waits for [`Connection::tell`].
    pub async fn outcome(&self) -> Outcome {
        loop {
            let told = self.told.notified();
            if let Some(outcome) = self.outcome.borrow_mut().take() {
                return outcome;
            }
            told.await;
        }
    }

    async fn claimed(&self) {
        loop {
            let told = self.told.notified();
            if self.claimed.get() {
                return;
            }
            told.await;
        }
    }

    /// As the pool knows its client.
    fn peer(&self) -> Peer {
        self.proxied.get().map_or(self.ends.peer, |address| Peer::Ip(address.ip().to_canonical()))
    }

    /// What can be read, without taking it.
    fn peek(&self, bytes: &mut [u8]) -> nix::Result<usize> {
        recv(self.watched.as_fd().as_raw_fd(), bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.as_fd()
    }
}

/// Whether a connection from the store may be with a worker, whose alone it then is; see [`Connection::lend`].
pub fn is_lent(fd: &OwnedFd) -> bool {
    nix::sys::socket::getsockopt(fd, sockopt::Priority).is_ok_and(|mark| mark != 0)
}

/// What a connection of one listener needs to know.
pub struct HandoffListener {
    pub desk: Rc<Driver>,
    pub doors: Rc<Listeners>,
    /// The place of its listener in the configuration.
    pub index: usize,
    /// Told when nobody is to be waited for any more.
    pub closing: Rc<Notify>,
    pub is_closing: Rc<Cell<bool>>,
}

impl HandoffListener {
    /// Serves a connection to its end.
    pub async fn serve(&self, connection: Rc<Connection>, is_new: bool, waits: &dyn Fn(bool)) {
        let is_behind_proxy = self.door().is_some_and(|door| door.listener.proxy_protocol);
        if is_new && is_behind_proxy && self.read_proxy(&connection).await.is_err() {
            return reset(&*connection); // who it is cannot be told, and so nothing is done for it
        }
        let is_http = |door: &Listener| self.desk.speaks_http(&door.listener.pool);
        let mut bound = self.doors.settings().head_timeout;
        loop {
            // Of another protocol nobody here knows who speaks first.
            if self.door().is_some_and(|door| is_http(&door)) && !self.is_asking(&connection, bound).await {
                break;
            }
            // A reload may have come while it was silent.
            let Some(door) = self.door() else { break };
            *connection.door.borrow_mut() = door.clone();
            waits(true);
            let outcome = self.hand_over(&connection, &door, waits).await;
            waits(false);
            match outcome {
                Some(Outcome::Over(_, LeaseEnd::Done, true)) if is_http(&door) => {
                    bound = self.doors.settings().idle_timeout;
                }
                Some(outcome) => {
                    waits(true);
                    self.end(&connection, &door, outcome).await;
                    return waits(false);
                }
                None => break,
            }
        }
        let _ = shutdown(connection.as_fd().as_raw_fd(), Shutdown::Both); // it has gone by itself
    }

    /// Its listener, as it is now.
    fn door(&self) -> Option<Rc<Listener>> {
        self.doors.handing(self.index)
    }

    /// Waits for the first byte of a request; `false` if it does not come.
    async fn is_asking(&self, connection: &Connection, bound: Duration) -> bool {
        let give_up = Instant::now() + bound;
        loop {
            match connection.peek(&mut [0]) {
                Ok(1..) => return true,
                Err(Errno::EAGAIN | Errno::EINTR) if !self.is_closing.get() => {}
                Ok(0) | Err(_) => return false,
            }
            let closing = self.closing.notified();
            tokio::select! {
                readable = timeout_at(give_up, connection.watched.readable()) => match readable {
                    Ok(Ok(true)) => return true,
                    Ok(Ok(false)) => {}
                    Ok(Err(_)) | Err(_) => return false,
                },
                () = closing => {}
            }
        }
    }

    async fn read_proxy(&self, connection: &Connection) -> io::Result<()> {
        let mut bytes = [0; ProxyHeader::MAX];
        let give_up = Instant::now() + self.doors.settings().head_timeout;
        let (mut known, mut pause) = (0, HEADER_LOOK.0);
        loop {
            timeout_at(give_up, connection.watched.readable()).await??;
            let there = connection.peek(&mut bytes)?;
            match parse_proxy_header(&bytes[..there]) {
                ProxyHeader::Complete(length, address) => {
                    connection.proxied.set(address);
                    let taken = recv(connection.as_fd().as_raw_fd(), &mut bytes[..length], MsgFlags::MSG_DONTWAIT)?;
                    return if taken == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                }
                ProxyHeader::Incomplete if there > 0 && Instant::now() < give_up => {}
                ProxyHeader::Incomplete | ProxyHeader::Invalid => return Err(io::ErrorKind::InvalidData.into()),
            }
            // What is there is not taken, and so stays readable.
            pause = if there > known { HEADER_LOOK.0 } else { (pause * 2).min(HEADER_LOOK.1) };
            known = there;
            sleep(pause).await;
        }
    }

    /// Gets it a worker, and waits until that is through; `None` if the client has gone before.
    async fn hand_over(&self, connection: &Rc<Connection>, door: &Listener, waits: &dyn Fn(bool)) -> Option<Outcome> {
        connection.claimed.set(false);
        let pool = &door.listener.pool;
        let lease = self.desk.hand_over(pool, connection.peer(), connection);
        let store = async {
            let stored = match connection.adopted.take() {
                Some(stored) => Some(stored),
                None => {
                    sleep(self.doors.settings().store_after).await;
                    connection.stored.set(true);
                    connection.show_lent();
                    let (peer, mark, is_http) =
                        (connection.proxied.get(), connection.mark(), self.desk.speaks_http(pool));
                    fdstore::put(connection.as_fd(), StoredConnection { door: door.key, peer, mark, is_http }.name())
                        .await
                }
            };
            connection.claimed().await;
            drop(stored);
            waits(false);
            std::future::pending::<()>().await
        };
        let left = async {
            sleep(WATCH_AFTER).await;
            let _ = connection.watched.hung_up().await;
            if connection.claimed.get() {
                std::future::pending::<()>().await // its worker finds out
            }
        };
        tokio::select! {
            biased;
            outcome = lease => Some(outcome),
            () = left => None,
            () = store => None,
        }
    }

    /// The last that can be done for it.
    async fn end(&self, connection: &Connection, door: &Listener, outcome: Outcome) {
        let pool = &door.listener.pool;
        let problem = match outcome {
            Outcome::Over(_, LeaseEnd::Done, _) => return, // its worker has ended it
            Outcome::Over(worker, LeaseEnd::Cut, _) => {
                tracing::debug!(%worker, "a response that was cut ends with a reset");
                return reset(connection);
            }
            Outcome::Over(worker, LeaseEnd::Unanswered, _) => {
                let detail = format!("worker {worker} died before it answered: the request may have begun");
                ProblemResponse::started(StatusCode::BAD_GATEWAY, detail)
            }
            Outcome::Over(worker, LeaseEnd::Overdue, _) => {
                let detail = format!("worker {worker} did not answer within request_timeout");
                ProblemResponse::started(StatusCode::GATEWAY_TIMEOUT, detail)
            }
            Outcome::Refused(refusal) => redirect::refusal(refusal, pool.as_str(), &self.desk.staff(pool)),
        };
        if !self.desk.speaks_http(pool) {
            return reset(connection); // whatever it speaks, this is no word of it
        }
        if door.listener.access_log {
            let client = match connection.peer() {
                Peer::Ip(ip) => ip.to_string(),
                Peer::User(_) => "unix".into(),
            };
            tracing::info!(client, status = problem.status.as_u16(), worker = "-", lease = "-",
                event = %crate::log::Event::RequestLogged, "{}", problem.detail);
        }
        let _ = self.answer(connection, &problem).await; // the client has gone: so has the need
    }

    async fn answer(&self, connection: &Connection, problem: &ProblemResponse) -> io::Result<()> {
        let stream = net::SharedStream(Arc::new(SocketStream::new(
            connection.watched.socket(),
            connection.ends.server.is_some(),
        )));
        set_reset_on_close(&stream, false)?;
        let bound = self.doors.settings().linger_timeout;
        timeout(bound, stream.clone().write_all(&problem.raw())).await??;
        lingering_close(stream, bound).await;
        Ok(())
    }
}
