//! Serves connections with handoff delivery: waits for a request, passes the connection to a worker, takes it back, and
//! closes it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::StatusCode;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use tokio::time::{Instant, sleep};

use super::connection::{Connection, ConnectionOrigin, HandoffOutcome};
use super::driver::{Driver, WATCH_AFTER};
use super::fdstore::StoredConnection;
use super::keepalive::IdleConnections;
use super::listeners::{BAD_START_LOG, Listener, Listeners};
use super::pending::{PendingConnection, PendingConnections};
use super::places::ConnectionPlaces;
use super::refusal::refusal;
use crate::net::{
    self, PeekedRequest, ProblemResponse, ProxyHeader, SocketStream, WireProtocol, deliver, parse_proxy_header, reset,
    set_reset_on_close,
};
use crate::pool::{LeaseEnd, PoolEvent, Rejection};
use crate::{clock, log};

/// Shortest and longest pause between two looks at what stays in the socket until enough of it has arrived.
const PEEK_PAUSE: Duration = Duration::from_millis(2);
const PEEK_PAUSE_MAX: Duration = Duration::from_millis(100);

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
        if origin == ConnectionOrigin::Accepted && !listener.allows(connection.endpoints.address) {
            self.note_bad_start(Rejection::BadRequest, "comes from an address that is not in its allowed_clients");
            return reset(&*connection);
        }
        if origin == ConnectionOrigin::Accepted
            && listener.config.proxy_protocol
            && let Err(error) = self.read_proxy_header(&connection).await
        {
            // Proxies also connect to see whether the listener accepts, and send nothing.
            if error.kind() == io::ErrorKind::InvalidData {
                let what = "does not start with a PROXY header of version 1 or 2";
                self.note_bad_start(Rejection::BadProxyHeader, what);
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
        connection.wire.set(listener.wire());
        if connection.wire.get().is_fastcgi() {
            self.find_fastcgi_request(connection).await?;
        }
        connection.start_request(listener.clone());
        let outcome = self.wait(connection, &listener, self.pending.add()).await?;
        Some((listener, outcome))
    }

    /// The listener, as configured now.
    fn listener(&self) -> Option<Rc<Listener>> {
        self.listeners.find_handoff(self.accepted_by.key)
    }

    /// Counts a connection that is closed for its start, and logs the first of many.
    fn note_bad_start(&self, rejection: Rejection, what: &str) {
        let Some(listener) = self.listener() else { return };
        self.driver.handle(&listener.config.pool, PoolEvent::Rejected(rejection));
        if self.listeners.may_log_bad_start(Instant::now()) {
            let event = match rejection {
                Rejection::BadProxyHeader => log::Event::BadProxyHeader,
                Rejection::BadRequest => log::Event::BadFastcgiClient,
            };
            tracing::warn!(listener = %listener.config.address, %event,
                "a connection to {} {what}: closing it; further ones are counted and not logged for {} s",
                listener.config.address, BAD_START_LOG.as_secs());
        }
    }

    async fn read_proxy_header(&self, connection: &Connection) -> io::Result<()> {
        let mut bytes = vec![0; ProxyHeader::MAX];
        let parse = |bytes: &[u8]| match parse_proxy_header(bytes) {
            ProxyHeader::Complete(length, proxied) => Poll::Ready(Some((length, proxied))),
            ProxyHeader::Incomplete => Poll::Pending,
            ProxyHeader::Invalid => Poll::Ready(None),
        };
        let (length, proxied) = self.peek_until(connection, &mut bytes, parse).await?;
        connection.proxied.set(proxied);
        let taken = recv(connection.as_fd().as_raw_fd(), &mut bytes[..length], MsgFlags::MSG_DONTWAIT)?;
        if taken == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Notes the id of the request that has begun to arrive: a refusal, and the response in place of a dead worker, need
    /// it. `None` if there is none.
    async fn find_fastcgi_request(&self, connection: &Connection) -> Option<()> {
        let mut bytes = [0; PeekedRequest::BYTES];
        let parse = |bytes: &[u8]| match PeekedRequest::parse(bytes) {
            PeekedRequest::Id(id) => Poll::Ready(Some(id)),
            PeekedRequest::Incomplete => Poll::Pending,
            PeekedRequest::Malformed => Poll::Ready(None),
        };
        match self.peek_until(connection, &mut bytes, parse).await {
            Ok(id) => connection.wire.set(WireProtocol::Fastcgi(id)),
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    self.note_bad_start(Rejection::BadRequest, "does not speak FastCGI");
                }
                return None;
            }
        }
        Some(())
    }

    /// Looks at what has arrived, without reading it, until `parse` finds something, or that there is nothing to find.
    async fn peek_until<T>(
        &self,
        connection: &Connection,
        bytes: &mut [u8],
        parse: impl Fn(&[u8]) -> Poll<Option<T>>,
    ) -> io::Result<T> {
        let deadline = Instant::now() + self.listeners.settings().head_timeout;
        let (mut known, mut pause, mut is_reported) = (0, PEEK_PAUSE, false);
        loop {
            let available = match connection.peek(bytes) {
                Ok(available) => available,
                // Reported, and nothing to read: see `wait_for_request`.
                Err(Errno::EAGAIN) if !is_reported => {
                    is_reported = true;
                    match net::until(deadline, connection.watched.readable()).await {
                        Some(readable) => readable?,
                        None => return Err(io::ErrorKind::TimedOut.into()),
                    };
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            match parse(&bytes[..available]) {
                Poll::Ready(found) => return found.ok_or_else(|| io::ErrorKind::InvalidData.into()),
                Poll::Pending if available == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Poll::Pending if Instant::now() < deadline => {}
                Poll::Pending => return Err(io::ErrorKind::InvalidData.into()),
            }
            // The bytes stay in the socket, which therefore stays readable.
            pause = if available > known { PEEK_PAUSE } else { (pause * 2).min(PEEK_PAUSE_MAX) };
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
            wire: self.driver.speaks_http(&listener.config.pool).then(|| connection.wire.get()),
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
        if !self.driver.speaks_http(pool) || connection.wire.get() == WireProtocol::Fastcgi(0) {
            return reset(connection); // the protocol of the connection is unknown, or there is no request to end
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
        deliver(stream, &problem.framed(connection.wire.get()), self.places.linger_bounds(&self.listeners.settings()))
            .await;
        Ok(())
    }
}
