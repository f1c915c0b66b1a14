//! Serves connections with handoff delivery: waits for a request, passes the connection to a worker, takes it back, and
//! closes it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use tokio::time::{Instant, sleep};

use super::connection::{Connection, ConnectionOrigin, HandoffOutcome};
use super::driver::{Driver, WATCH_AFTER};
use super::fdstore::StoredConnection;
use super::keepalive::IdleConnections;
use super::listeners::{BAD_HEADER_LOG, Listener, Listeners};
use super::pending::{PendingConnection, PendingConnections};
use super::places::ConnectionPlaces;
use super::refusal::refusal;
use crate::net::{
    self, ProblemResponse, ProxyHeader, SocketStream, deliver, parse_proxy_header, reset, set_reset_on_close,
};
use crate::pool::{LeaseEnd, PoolEvent, Rejection};
use crate::{clock, log};

/// Shortest and longest pause between two reads of an incomplete proxy header, which stays in the socket until it is
/// complete.
const PROXY_PAUSE: Duration = Duration::from_millis(2);
const PROXY_PAUSE_MAX: Duration = Duration::from_millis(100);

/// Serves the connections of one handoff listener.
pub(super) struct HandoffListener {
    pub driver: Rc<Driver>,
    pub listeners: Rc<Listeners>,
    /// The listener that has accepted the connection. A reload may have changed or removed it since.
    pub accepted_by: Rc<Listener>,
    pub idle: Rc<IdleConnections>,
    pub places: Rc<ConnectionPlaces>,
    pub pending: Rc<PendingConnections>,
}

impl HandoffListener {
    /// Serves a connection to its end.
    pub(super) async fn serve(&self, connection: Rc<Connection>, origin: ConnectionOrigin) {
        let listener = self.listener().unwrap_or_else(|| self.accepted_by.clone());
        if origin == ConnectionOrigin::Accepted
            && listener.config.proxy_protocol
            && let Err(error) = self.read_proxy_header(&connection).await
        {
            // Proxies also connect to see whether the listener accepts, and send nothing.
            if error.kind() == io::ErrorKind::InvalidData {
                self.note_bad_proxy_header();
            }
            return reset(&*connection); // the client is unknown
        }
        let mut served = match origin {
            ConnectionOrigin::Adopted => Some((listener, connection.outcome().await)),
            // Also if the listener has been removed since: the client could not know.
            _ => self.serve_request(&connection, self.listeners.settings().head_timeout, Some(listener)).await,
        };
        while let Some((listener, outcome)) = served {
            connection.set_entry(None);
            let is_kept = matches!(outcome, HandoffOutcome::Ended { end: LeaseEnd::Done, keep: true, .. });
            if !is_kept || !self.driver.speaks_http(&listener.config.pool) {
                let _pending = self.pending.add();
                return self.finish(&connection, &listener, outcome).await;
            }
            served = self.serve_request(&connection, self.listeners.settings().idle_timeout, None).await;
        }
        // The client disconnected, sent no request in time, or the listener is closing.
        let _ = shutdown(connection.as_fd().as_raw_fd(), Shutdown::Both);
    }

    /// Waits at most `bound` for a request, and for its outcome. `removed`: what holds for a
    /// first request if the listener has been removed.
    async fn serve_request(
        &self,
        connection: &Rc<Connection>,
        bound: Duration,
        removed: Option<Rc<Listener>>,
    ) -> Option<(Rc<Listener>, HandoffOutcome)> {
        let listener = || self.listener().or_else(|| removed.clone());
        // In another protocol the server may have to send first.
        if self.driver.speaks_http(&listener()?.config.pool) {
            // The exit of this dispatcher does not cost a client its first request.
            let pending = removed.is_some().then(|| self.pending.add());
            if !self.idle.wait_for_request(connection, bound).await {
                if pending.is_some() && self.idle.is_closing() && connection.is_open() {
                    let listener = listener()?;
                    self.store(connection, &listener).await;
                    if connection.has_entry() {
                        drop(pending);
                        return std::future::pending().await; // the store keeps it only if it is not dropped
                    }
                }
                return None;
            }
        }
        // Read again: a reload may have changed it while the connection was idle.
        let listener = listener()?;
        connection.start_request(listener.clone());
        let outcome = self.wait(connection, &listener, self.pending.add()).await?;
        Some((listener, outcome))
    }

    /// The listener, as configured now.
    fn listener(&self) -> Option<Rc<Listener>> {
        self.listeners.find_handoff(self.accepted_by.key)
    }

    /// Counts a connection without a valid proxy header, and logs the first of many.
    fn note_bad_proxy_header(&self) {
        let Some(listener) = self.listener() else { return };
        self.driver.handle(&listener.config.pool, PoolEvent::Rejected(Rejection::BadProxyHeader));
        if self.listeners.may_log_bad_proxy_header(Instant::now()) {
            tracing::warn!(listener = %listener.config.address, event = %log::Event::BadProxyHeader,
                "a connection to {} does not start with a PROXY header of version 1 or 2: closing it; further ones are \
                 counted as bad_proxy_header and not logged for {} s", listener.config.address, BAD_HEADER_LOG.as_secs());
        }
    }

    async fn read_proxy_header(&self, connection: &Connection) -> io::Result<()> {
        let mut bytes = vec![0; ProxyHeader::MAX];
        let deadline = Instant::now() + self.listeners.settings().head_timeout;
        let (mut known, mut pause) = (0, PROXY_PAUSE);
        loop {
            match net::until(deadline, connection.watched.readable()).await {
                Some(readable) => readable?,
                None if known > 0 => return Err(io::ErrorKind::InvalidData.into()),
                None => return Err(io::ErrorKind::TimedOut.into()),
            };
            let available = connection.peek(&mut bytes)?;
            match parse_proxy_header(&bytes[..available]) {
                ProxyHeader::Complete(length, proxied) => {
                    connection.proxied.set(proxied);
                    let taken = recv(connection.as_fd().as_raw_fd(), &mut bytes[..length], MsgFlags::MSG_DONTWAIT)?;
                    return if taken == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                }
                ProxyHeader::Incomplete if available == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                ProxyHeader::Incomplete if Instant::now() < deadline => {}
                ProxyHeader::Incomplete | ProxyHeader::Invalid => return Err(io::ErrorKind::InvalidData.into()),
            }
            // The bytes stay in the socket, which therefore stays readable.
            pause = if available > known { PROXY_PAUSE } else { (pause * 2).min(PROXY_PAUSE_MAX) };
            known = available;
            sleep(pause).await;
        }
    }

    /// Waits for a worker and for the end of its lease; `None` if the client disconnects before the claim. The
    /// connection is pending until the claim.
    async fn wait(
        &self,
        connection: &Rc<Connection>,
        listener: &Listener,
        pending: PendingConnection,
    ) -> Option<HandoffOutcome> {
        let pool = &listener.config.pool;
        let outcome = self.driver.hand_off(pool, connection.peer(), connection);
        let store = async {
            if !connection.has_entry() {
                tokio::select! {
                    biased;
                    () = connection.claimed() => {}
                    () = sleep(self.listeners.settings().store_after) => {
                        if let Some(at) = connection.lent_to() {
                            self.driver.read_slot(at);
                        }
                        if !connection.is_claimed() {
                            self.store(connection, listener).await;
                        }
                    }
                }
            }
            connection.claimed().await;
            drop(pending);
            if self.driver.store.is_crowded() {
                connection.set_entry(None);
            }
            std::future::pending::<()>().await
        };
        let disconnect = async {
            sleep(WATCH_AFTER).await;
            let watch = connection.watched.hung_up().await;
            if watch.is_err() || connection.is_claimed() {
                std::future::pending::<()>().await // the bound of the wait applies, or the worker notices
            }
        };
        tokio::select! {
            biased;
            outcome = outcome => Some(outcome),
            () = disconnect => None,
            () = store => None,
        }
    }

    /// Stores the connection for the next dispatcher.
    async fn store(&self, connection: &Connection, listener: &Listener) {
        connection.mark_stored();
        let proxied = connection.proxied.get();
        let stored = StoredConnection {
            listener: listener.key,
            peer: proxied.map(|proxied| proxied.client),
            is_https: proxied.is_some_and(|proxied| proxied.is_https),
            port: proxied.and_then(|proxied| proxied.server).map(|server| server.port()),
            mark: connection.mark(),
            is_http: self.driver.speaks_http(&listener.config.pool),
            stored_at: clock::now(),
        };
        connection.set_entry(self.driver.store.add(&connection.watched.socket(), stored.name()).await);
        tracing::debug!(connection = stored.mark, "a connection that waits for a worker is in the descriptor store");
    }

    /// Resets the connection, or sends the last response on it.
    async fn finish(&self, connection: &Connection, listener: &Listener, outcome: HandoffOutcome) {
        let pool = &listener.config.pool;
        let problem = match outcome {
            HandoffOutcome::Ended { end: LeaseEnd::Done, .. } => return, // the worker has closed it
            HandoffOutcome::Ended { worker, end: LeaseEnd::Cut, .. } => {
                tracing::debug!(%worker, "the response was cut: resetting the connection");
                return reset(connection);
            }
            HandoffOutcome::Ended { worker, end: LeaseEnd::NoResponse, .. } => {
                let detail = format!("worker {worker} died before it responded; the request may have started");
                ProblemResponse::started(StatusCode::BAD_GATEWAY, detail)
            }
            HandoffOutcome::Ended { worker, end: LeaseEnd::Overdue, .. } => {
                let detail = format!("worker {worker} did not respond within request_timeout");
                ProblemResponse::started(StatusCode::GATEWAY_TIMEOUT, detail)
            }
            HandoffOutcome::Refused(reason) => refusal(reason, pool.as_str(), &self.driver.availability(pool)),
        };
        if !self.driver.speaks_http(pool) {
            return reset(connection); // the protocol of the connection is unknown
        }
        if listener.config.access_log {
            let client = connection.client_address().map_or("unix".into(), |address| address.ip().to_string());
            tracing::info!(client, status = problem.status.as_u16(), worker = "-", lease = "-",
                event = %log::Event::RequestLogged, "{}", problem.detail);
        }
        let _ = self.send(connection, &problem).await; // fails if the client has disconnected
    }

    async fn send(&self, connection: &Connection, problem: &ProblemResponse) -> io::Result<()> {
        let is_tcp = connection.endpoints.server.is_some();
        let stream = net::SharedStream(Arc::new(SocketStream::new(connection.watched.socket(), is_tcp)));
        set_reset_on_close(&stream, false)?;
        deliver(stream, &problem.raw(), self.places.linger_bounds(&self.listeners.settings())).await;
        Ok(())
    }
}
