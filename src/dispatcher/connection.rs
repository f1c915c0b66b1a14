//! A connection with handoff delivery, as the dispatcher holds it.
//!
//! While a worker holds the connection, this is a duplicate. Nothing is read from it except a proxy header.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, recv, setsockopt, sockopt};
use tokio::sync::Notify;

use super::fdstore::{StoredConnection, StoredFd};
use super::listeners::Listener;
use super::pool_slots::SlotIndex;
use super::readiness::{Readiness, WatchedSocket};
use crate::handoff::HandoffMessage;
use crate::ids::{LeaseId, Token, WorkerId};
use crate::net::{self, ProxiedAddresses, WireProtocol};
use crate::pool::{LeaseEnd, Peer, Refusal};

/// A connection.
pub(super) struct Connection {
    pub watched: WatchedSocket,
    pub endpoints: Endpoints,
    /// What a proxy header says, if there was one with addresses.
    pub proxied: Cell<Option<ProxiedAddresses>>,
    /// What the client speaks, as seen at the start of the present request.
    pub wire: Cell<WireProtocol>,
    /// Its listener, as configured when the present request arrived.
    listener: RefCell<Rc<Listener>>,
    /// The worker that may hold it.
    lent_to: Cell<Option<SlotIndex>>,
    /// Whether a duplicate is, or has been, in the descriptor store.
    stored: Cell<bool>,
    /// Its entry in the store, from its wait until the end of its lease: if the worker dies, the next dispatcher needs it
    /// to respond.
    entry: RefCell<Option<StoredFd>>,
    outcome: RefCell<Option<HandoffOutcome>>,
    claimed: Cell<bool>,
    /// Notified when `outcome` or `claimed` is set.
    changed: Notify,
}

/// Client and server of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endpoints {
    /// The client, as the pool identifies it.
    pub peer: Peer,
    /// The client's TCP address.
    pub address: Option<SocketAddr>,
    /// The TCP address that it has connected to.
    pub server: Option<SocketAddr>,
    /// Tells connections apart, also for the next dispatcher. Not 0. Random: a worker can name only a connection that was
    /// offered to it.
    pub mark: u32,
}

impl Endpoints {
    /// `address` is the client's TCP address; `server` is given if it is already known.
    pub(super) fn of(fd: &OwnedFd, address: Option<SocketAddr>, server: Option<SocketAddr>, mark: u32) -> Self {
        let peer = client_peer(address, || net::peer_user(fd));
        Self { peer, address, server: server.or_else(|| address.and_then(|_| net::local_address(fd))), mark }
    }
}

/// Identifies a client by its TCP address, or by its user on a Unix socket.
pub(super) fn client_peer(address: Option<SocketAddr>, user: impl FnOnce() -> Option<u32>) -> Peer {
    match address {
        Some(address) => Peer::at(address.ip()),
        None => Peer::User(user().unwrap_or(u32::MAX)),
    }
}

/// How this dispatcher came to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionOrigin {
    /// It was accepted.
    Accepted,
    /// It was in the descriptor store, and no worker holds it.
    Stored,
    /// It was in the descriptor store, and a worker has claimed it: its outcome follows.
    Adopted,
}

/// What became of a connection that was queued for a worker.
pub(super) enum HandoffOutcome {
    /// The worker's lease has ended.
    Ended {
        worker: WorkerId,
        end: LeaseEnd,
        /// Whether the worker returned the connection for another request.
        keep: bool,
    },
    /// There was no worker for it.
    Refused(Refusal),
}

impl Connection {
    pub(super) fn new(fd: OwnedFd, endpoints: Endpoints, listener: Rc<Listener>, readiness: &Rc<Readiness>) -> Self {
        Self {
            watched: WatchedSocket::new(fd, readiness),
            endpoints,
            proxied: Cell::new(None),
            wire: Cell::new(listener.wire()),
            listener: RefCell::new(listener),
            lent_to: Cell::new(None),
            stored: Cell::new(false),
            entry: RefCell::default(),
            outcome: RefCell::new(None),
            claimed: Cell::new(false),
            changed: Notify::new(),
        }
    }

    /// A connection from the store, where its proxy header has been read. `lent_to`: the worker that has claimed it.
    pub(super) fn from_fdstore(
        (fd, entry): (OwnedFd, StoredFd),
        stored: &StoredConnection,
        listener: Rc<Listener>,
        readiness: &Rc<Readiness>,
        lent_to: Option<SlotIndex>,
    ) -> Self {
        let endpoints = Endpoints::of(&fd, net::peer_address(&fd), None, stored.mark);
        let connection = Self::new(fd, endpoints, listener, readiness);
        // Only the port of the proxy's address has been stored.
        let server = endpoints.server.zip(stored.port).map(|(local, port)| SocketAddr::new(local.ip(), port));
        connection.proxied.set(stored.peer.map(|client| ProxiedAddresses {
            client,
            server,
            is_https: stored.is_https,
        }));
        connection.wire.set(stored.wire.unwrap_or_default());
        connection.set_entry(Some(entry));
        connection.lent_to.set(lent_to);
        connection.mark_stored(); // the previous dispatcher may have lent it to a worker that has not claimed it
        connection
    }

    /// This worker may hold the connection from now on, or none any more. A dispatcher that finds it in the store must know
    /// that, because it must not offer a connection that a worker may hold: see [`is_lent`].
    pub(super) fn mark_lent(&self, lent_to: Option<SlotIndex>) {
        self.lent_to.set(lent_to);
        if self.stored.get() {
            self.write_lent_mark();
        }
    }

    /// The connection is, or is about to be, in the store.
    pub(super) fn mark_stored(&self) {
        self.stored.set(true);
        self.write_lent_mark();
    }

    fn write_lent_mark(&self) {
        let _ = setsockopt(&self.watched, LENT_MARK, &self.lent_to.get().is_some());
    }

    /// The worker that may hold it.
    pub(super) fn lent_to(&self) -> Option<SlotIndex> {
        self.lent_to.get()
    }

    pub(super) fn has_entry(&self) -> bool {
        self.entry.borrow().is_some()
    }

    /// Its entry in the store; the previous one is removed.
    pub(super) fn set_entry(&self, entry: Option<StoredFd>) {
        drop(self.entry.replace(entry));
    }

    /// The message that passes it to a worker.
    pub(super) fn handoff_message(&self, lease: LeaseId, token: Token) -> HandoffMessage {
        let listener = self.listener.borrow().info.clone();
        let is_https = self.proxied.get().is_some_and(|proxied| proxied.is_https);
        let (peer, server, wire) = (self.client_address(), self.server_address(), self.wire.get());
        HandoffMessage { lease, token, peer, server, is_https, wire, listener }
    }

    pub(super) fn mark(&self) -> u32 {
        self.endpoints.mark
    }

    /// A request has arrived, for which the present configuration of the listener holds.
    pub(super) fn start_request(&self, listener: Rc<Listener>) {
        *self.listener.borrow_mut() = listener;
        self.claimed.set(false);
    }

    /// A worker has claimed the connection.
    pub(super) fn set_claimed(&self) {
        self.claimed.set(true);
        self.changed.notify_waiters();
    }

    pub(super) fn is_claimed(&self) -> bool {
        self.claimed.get()
    }

    /// The connection belongs to the dispatcher alone again.
    pub(super) fn set_outcome(&self, outcome: HandoffOutcome) {
        // After any other end, the connection must not be offered again.
        if matches!(outcome, HandoffOutcome::Ended { end: LeaseEnd::Done, keep: true, .. }) {
            self.mark_lent(None);
        }
        *self.outcome.borrow_mut() = Some(outcome);
        self.changed.notify_waiters();
    }

    /// Waits for [`Connection::set_outcome`].
    pub(super) async fn outcome(&self) -> HandoffOutcome {
        loop {
            let changed = self.changed.notified();
            if let Some(outcome) = self.outcome.borrow_mut().take() {
                return outcome;
            }
            changed.await;
        }
    }

    /// Waits for [`Connection::set_claimed`].
    pub(super) async fn claimed(&self) {
        loop {
            let changed = self.changed.notified();
            if self.claimed.get() {
                return;
            }
            changed.await;
        }
    }

    /// The client's address: that of the proxy header, if there was one; `None` on a Unix socket.
    pub(super) fn client_address(&self) -> Option<SocketAddr> {
        self.proxied.get().map(|proxied| proxied.client).or(self.endpoints.address)
    }

    /// The address to which the client has connected: that of the proxy, if there was a proxy header.
    fn server_address(&self) -> Option<SocketAddr> {
        self.proxied.get().and_then(|proxied| proxied.server).or(self.endpoints.server)
    }

    /// The client, as the pool identifies it.
    pub(super) fn peer(&self) -> Peer {
        self.proxied.get().map_or(self.endpoints.peer, |proxied| client_peer(Some(proxied.client), || None))
    }

    /// Whether the client may still send a request.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.peek(&mut [0]), Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR))
    }

    /// Copies what can be read, without consuming it.
    pub(super) fn peek(&self, bytes: &mut [u8]) -> nix::Result<usize> {
        recv(self.as_fd().as_raw_fd(), bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.endpoints.server.is_some() {
            net::close_without_waiting(self);
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.as_fd()
    }
}

/// The socket option that marks a lent connection. All duplicates of a socket share its options; this one has no effect on
/// stream sockets (socket(7)), needs no privilege, exists on TCP and Unix sockets, and no program sets it on one.
/// SO_PRIORITY would not do: it selects a band of pfifo_fast, and an inetd program that sets IP_TOS overwrites it.
const LENT_MARK: sockopt::Broadcast = sockopt::Broadcast;

/// Whether a worker may hold this connection from the store; see [`Connection::mark_lent`].
pub(super) fn is_lent(fd: &OwnedFd) -> bool {
    getsockopt(fd, LENT_MARK).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn lent_mark_is_shared_by_duplicates_and_survives_ip_tos() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let tcp = OwnedFd::from(tcp.accept().unwrap().0);
        let unix = OwnedFd::from(UnixStream::pair().unwrap().0);
        for socket in [tcp, unix] {
            let stored = socket.try_clone().unwrap();
            assert!(!is_lent(&stored));
            setsockopt(&socket, LENT_MARK, &true).unwrap();
            // An inetd program such as sshd sets the type of service of its connection (an error on a Unix socket).
            let _ = setsockopt(&socket, sockopt::Ipv4Tos, &0);
            assert!(is_lent(&stored));
            setsockopt(&socket, LENT_MARK, &false).unwrap();
            let _ = setsockopt(&socket, sockopt::Ipv4Tos, &0x10);
            assert!(!is_lent(&stored));
        }
    }

    #[test]
    fn lent_mark_leaves_the_traffic_class_alone() {
        let socket = OwnedFd::from(UnixStream::pair().unwrap().0);
        setsockopt(&socket, LENT_MARK, &true).unwrap();
        assert_eq!(getsockopt(&socket, sockopt::Priority).unwrap(), 0);
    }
}
