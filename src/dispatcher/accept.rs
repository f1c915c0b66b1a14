//! Accepts connections and starts a task for each.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::ready;

use nix::sys::stat::fstat;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::connection::{Connection, ConnectionOrigin, Endpoints, is_lent};
use super::driver::Driver;
use super::fdstore::{self, StoredConnection, StoredFd};
use super::handoff::HandoffListener;
use super::keepalive::IdleConnections;
use super::listeners::{Listener, Listeners};
use super::pending::PendingConnections;
use super::places::ConnectionPlaces;
use super::pool_slots::{SlotIndex, WorkerName};
use super::readiness::Readiness;
use super::redirect::RedirectConnection;
use crate::config::{Config, Delivery, ListenAddress};
use crate::ids::LeaseTerms;
use crate::net::{self, ACCEPT_RETRY_DELAY, SocketListener, WireProtocol};

/// All listeners and the connections they have accepted.
pub(super) struct Acceptor {
    state: Rc<AcceptorState>,
}

/// A socket on which a task accepts.
struct Accepting {
    listener: Rc<Listener>,
    socket: Rc<SocketListener>,
    task: AbortHandle,
}

struct AcceptorState {
    /// A socket that is shut down leaves it, which closes the socket.
    accepting: RefCell<Vec<Accepting>>,
    driver: Rc<Driver>,
    readiness: Rc<Readiness>,
    idle: Rc<IdleConnections>,
    listeners: Rc<Listeners>,
    places: Rc<ConnectionPlaces>,
    /// How many handoff connections were accepted, and the secret that makes a mark of that number.
    accepted: Cell<u64>,
    mark_secret: RandomState,
    pending: Rc<PendingConnections>,
}

/// What is needed to adopt a connection that a worker has claimed.
struct ClaimedConnection {
    listener: Rc<Listener>,
    /// The slot of its worker.
    at: SlotIndex,
    terms: LeaseTerms,
    permit: OwnedSemaphorePermit,
}

impl Acceptor {
    /// Starts accepting.
    pub(super) fn open(
        config: &Config,
        sockets: Vec<Rc<SocketListener>>,
        driver: Rc<Driver>,
        places: Rc<ConnectionPlaces>,
    ) -> io::Result<Self> {
        let readiness = Readiness::new()?;
        let (running, polling) = (readiness.clone(), driver.clone());
        tokio::task::spawn_local(async move { running.run(|| polling.poll()).await });
        let state = Rc::new(AcceptorState {
            accepting: RefCell::default(),
            driver,
            readiness,
            idle: Rc::default(),
            listeners: Listeners::new(config),
            places,
            accepted: Cell::default(),
            mark_secret: RandomState::new(),
            pending: Rc::default(),
        });
        let acceptor = Self { state };
        sockets.into_iter().enumerate().for_each(|(index, socket)| acceptor.add(index, socket));
        Ok(acceptor)
    }

    /// Accepts on one more socket of the listener at this place in the file. If it is in place of one that is shut down,
    /// that one ends when its queue is empty, and is closed.
    pub(super) fn add(&self, index: usize, socket: Rc<SocketListener>) {
        let listeners = &self.state.listeners;
        let Some(listener) = listeners.key_at(index).and_then(|key| listeners.find(key)) else { return };
        let accepting = accept(self.state.clone(), listener.clone(), socket.clone());
        let task = tokio::task::spawn_local(accepting).abort_handle();
        self.state.accepting.borrow_mut().push(Accepting { listener, socket, task });
    }

    /// Ends the sockets of listeners that `is_removed`: clients in their queues are served, and later ones are refused,
    /// also by other holders of the socket: its address is free. Returns how many clients there were.
    pub(super) fn release(&self, is_removed: impl Fn(&ListenAddress) -> bool) -> usize {
        let is_released = |accepting: &mut Accepting| is_removed(&accepting.listener.config.address);
        let released: Vec<_> = self.state.accepting.borrow_mut().extract_if(.., is_released).collect();
        let mut clients = 0;
        for Accepting { listener, socket, task } in released {
            task.abort();
            while let (Some(permit), Some((fd, address))) = (self.state.places.try_acquire(), socket.try_accept()) {
                self.state.clone().serve(fd, address, &listener, &socket, permit);
                clients += 1;
            }
            socket.shut_down();
        }
        clients
    }

    /// Serves handoff connections from the store in their old order, adopts those that workers have claimed, and rejects
    /// those of removed listeners and all redirect connections. Before the first read of a slot.
    pub(super) fn restore(&self, handoffs: Vec<(OwnedFd, StoredFd)>, redirects: Vec<(OwnedFd, StoredFd)>) {
        let parsed = |(fd, entry): (_, StoredFd)| Some((StoredConnection::parse(entry.name())?, fd, entry));
        let mut connections: Vec<_> = handoffs.into_iter().filter_map(parsed).collect();
        connections.sort_by_key(|(stored, ..)| stored.stored_at);
        let mut known = BTreeSet::new();
        // If a removal was lost, a connection is in the store under two names.
        connections.retain(|(_, fd, _)| !fstat(fd).is_ok_and(|status| !known.insert(status.st_ino)));
        let redirects = redirects.into_iter().map(|(fd, entry)| (fd, entry, WireProtocol::Http));
        let (mut marks, mut rejected) = (BTreeMap::<u32, usize>::new(), redirects.collect::<Vec<_>>());
        for (stored, ..) in &connections {
            *marks.entry(stored.mark).or_default() += 1;
        }
        for (stored, fd, entry) in connections {
            if is_lent(&fd) && !self.state.driver.is_unclaimed(stored.mark) {
                // A worker holds it, or has held it.
                let is_marked_alone = marks[&stored.mark] == 1;
                let claim = is_marked_alone.then(|| self.state.find_claim(&stored)).flatten();
                match claim {
                    Some(claim) => self.state.clone().adopt((fd, entry), &stored, claim),
                    None => net::close_without_waiting(&fd),
                }
                continue;
            }
            match (self.state.listeners.find_handoff(stored.listener), self.state.places.try_acquire()) {
                (Some(listener), Some(permit)) => {
                    let readiness = &self.state.readiness;
                    let connection = Connection::from_fdstore((fd, entry), &stored, listener.clone(), readiness, None);
                    self.state.clone().serve_handoff(listener, Rc::new(connection), ConnectionOrigin::Stored, permit);
                }
                _ => match stored.wire {
                    Some(wire) => rejected.push((fd, entry, wire)),
                    None => net::reset(&fd), // the protocol of the connection is unknown
                },
            }
        }
        let places = self.state.places.acquire_up_to(rejected.len());
        let bounds = self.state.places.linger_bounds(&self.state.listeners.settings());
        fdstore::reject(rejected, places, bounds);
    }

    /// Applies new settings to connections accepted from now on; the sockets stay the same.
    pub(super) fn reconfigure(&self, config: &Config) {
        self.state.listeners.apply(config);
        self.state.places.apply(config);
    }

    /// Stops accepting and closes idle connections; new clients wait in the kernel's backlog for the next dispatcher.
    pub(super) fn close(&self) {
        self.state.accepting.borrow().iter().for_each(|accepting| accepting.task.abort());
        self.state.idle.close();
    }

    /// The connections that delay the exit of this dispatcher.
    pub(super) fn pending(&self) -> &PendingConnections {
        &self.state.pending
    }
}

impl AcceptorState {
    fn next_mark(&self) -> u32 {
        self.accepted.set(self.accepted.get() + 1);
        (self.mark_secret.hash_one(self.accepted.get()) as u32).max(1)
    }

    /// The worker that had claimed a connection when the previous dispatcher ended, as far as that can be believed: its
    /// slot names the mark of the connection, and it belongs to the pool of the connection's listener.
    fn find_claim(&self, stored: &StoredConnection) -> Option<ClaimedConnection> {
        let listener = self.listeners.find_handoff(stored.listener)?;
        let (at, terms) = self.driver.claim_of(&listener.config.pool, stored.mark)?;
        Some(ClaimedConnection { listener, at, terms, permit: self.places.try_acquire()? })
    }

    /// Takes the place of the previous dispatcher at a connection that a worker has claimed.
    fn adopt(self: Rc<Self>, duplicate: (OwnedFd, StoredFd), stored: &StoredConnection, claim: ClaimedConnection) {
        let ClaimedConnection { listener, at, terms, permit } = claim;
        let (pool, (_, n)) = (listener.config.pool.clone(), at);
        let connection = Connection::from_fdstore(duplicate, stored, listener.clone(), &self.readiness, Some(at));
        let connection = Rc::new(connection);
        tracing::debug!(worker = %WorkerName(&pool, n), lease = %terms.lease,
            "a worker had claimed this connection when the previous dispatcher ended: it is adopted");
        self.driver.adopt(&pool, n, terms, connection.clone());
        self.serve_handoff(listener, connection, ConnectionOrigin::Adopted, permit);
    }

    fn serve_handoff(
        self: Rc<Self>,
        accepted_by: Rc<Listener>,
        connection: Rc<Connection>,
        origin: ConnectionOrigin,
        permit: OwnedSemaphorePermit,
    ) {
        let listener = HandoffListener {
            driver: self.driver.clone(),
            listeners: self.listeners.clone(),
            accepted_by,
            idle: self.idle.clone(),
            places: self.places.clone(),
            pending: self.pending.clone(),
        };
        tokio::task::spawn_local(async move {
            listener.serve(connection, origin).await;
            drop(permit);
        });
    }

    /// Serves a connection that was just accepted.
    fn serve(
        self: Rc<Self>,
        fd: OwnedFd,
        address: Option<SocketAddr>,
        listener: &Rc<Listener>,
        socket: &SocketListener,
        permit: OwnedSemaphorePermit,
    ) {
        if listener.config.delivery == Delivery::Handoff {
            // A listener on all addresses does not know to which of them a client has connected.
            let server = socket.tcp_address().filter(|address| !address.ip().is_unspecified());
            let endpoints = Endpoints::of(&fd, address, server, self.next_mark());
            let connection = Connection::new(fd, endpoints, listener.clone(), &self.readiness);
            self.serve_handoff(listener.clone(), Rc::new(connection), ConnectionOrigin::Accepted, permit);
        } else {
            let settings = self.listeners.settings();
            let connection = RedirectConnection::new(fd, socket, listener.clone(), settings, &self.readiness);
            self.serve_redirect(connection, permit);
        }
    }

    fn serve_redirect(self: Rc<Self>, connection: RedirectConnection, permit: OwnedSemaphorePermit) {
        let pending = self.pending.add();
        tokio::task::spawn_local(async move {
            connection.serve(&self.driver, &self.places).await;
            drop((permit, pending));
        });
    }
}

/// Accepts connections of one listener, until aborted. Handoff connections are not registered with tokio's epoll
/// instance.
async fn accept(state: Rc<AcceptorState>, listener: Rc<Listener>, socket: Rc<SocketListener>) {
    loop {
        let (fd, address, permit) = match next(&state.places, &socket).await {
            Ok(accepted) => accepted,
            // No client can reach it any more, and none waits in it.
            Err(error) if net::is_retired(&error) => {
                return state.accepting.borrow_mut().retain(|other| !Rc::ptr_eq(&other.socket, &socket));
            }
            Err(error) => {
                state.places.accept_failed(&error);
                sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        // As it was, if a restart of this dispatcher is about to change its delivery.
        let present = state.listeners.find(listener.key).unwrap_or_else(|| listener.clone());
        state.clone().serve(fd, address, &present, &socket, permit);
    }
}

/// The next connection, its client's TCP address, and its place. Without a place clients wait in the kernel's backlog; an
/// idle listener holds no place that another could use.
async fn next(
    places: &ConnectionPlaces,
    socket: &SocketListener,
) -> io::Result<(OwnedFd, Option<SocketAddr>, OwnedSemaphorePermit)> {
    let mut acquire = pin!(places.acquire());
    poll_fn(|task| {
        let permit = ready!(acquire.as_mut().poll(task)).map_err(io::Error::other)?;
        let accepted = socket.poll_accept(task);
        if accepted.is_pending() {
            acquire.set(places.acquire());
        }
        accepted.map_ok(|(fd, address)| (fd, address, permit))
    })
    .await
}
