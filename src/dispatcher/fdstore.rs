//! Queued connections in the supervisor's descriptor store (sd_pid_notify_with_fds(3), `FDSTORE=1`), which outlives
//! this process. One that had to wait for its worker stays there until the end of its lease.
//!
//! Messages are sent without blocking: a supervisor that does not read must not stop the dispatcher. They wait in one
//! queue until they are sent, so that none is lost: a connection would not survive the dispatcher, or a duplicate would
//! stay in the store. The queue is bounded: each connection that waits for a worker has one message in it, each stored
//! one another.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::StatusCode;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::sleep;

use crate::ids::Monotonic;
use crate::log;
use crate::net::{self, LingerBounds, ProblemResponse, SocketStream, WireProtocol, deliver};

/// Prefix of names of redirect connections. Their head has been read: the next dispatcher can only reject them.
pub(super) const REDIRECT_PREFIX: &str = "waiting-";

/// Prefix of names of handoff connections. Nothing has been read from them: the next dispatcher serves them.
pub(super) const HANDOFF_PREFIX: &str = "handed-";

/// Stands before the request id in names of FastCGI connections.
const FASTCGI: &str = "f";

/// The pause before a message is sent again, while the supervisor's queue is full or another resource is used up. It
/// doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(5);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(100);

/// How long after the end of its wait a connection is removed: its worker, possibly on the same core, runs first.
const REMOVE_DELAY: Duration = Duration::from_millis(2);

/// With more entries than these, a quarter of the largest store, a claimed connection leaves the store: it
/// would take the place of one that waits.
const CROWDED: usize = 256;

/// The way to the supervisor's store.
#[derive(Clone)]
pub(super) struct DescriptorStore {
    /// None without `NOTIFY_SOCKET`.
    queue: Option<Rc<RefCell<StoreQueue>>>,
    /// The number of entries.
    entries: Rc<Cell<usize>>,
}

/// What is on the way.
struct StoreQueue {
    socket: UnixDatagram,
    address: UnixAddr,
    messages: VecDeque<StoreMessage>,
    is_sending: bool,
    /// The status that was last sent.
    status: String,
}

enum StoreMessage {
    /// Sent only if the connection still waits for a worker.
    Store {
        name: String,
        connection: Weak<OwnedFd>,
        stored: oneshot::Sender<StoredFd>,
    },
    Remove(String),
}

/// A descriptor in the store; removed from it when dropped.
pub(super) struct StoredFd {
    name: String,
    store: DescriptorStore,
}

/// A name for a redirect connection.
pub(super) fn redirect_name() -> String {
    format!("{REDIRECT_PREFIX}{}", unique())
}

/// What the next dispatcher must know of a handoff connection; its name in the store contains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredConnection {
    /// The key of its listener.
    pub listener: u64,
    /// The client's address, if a proxy header named it.
    pub peer: Option<SocketAddr>,
    /// The port to which that client has connected. Not in names of older versions.
    pub port: Option<u16>,
    /// Whether it has used TLS. Only with a port.
    pub is_https: bool,
    /// The mark of the connection.
    pub mark: u32,
    /// How a response is sent on it; `None` in an unknown protocol.
    pub wire: Option<WireProtocol>,
    /// The next dispatcher queues connections in this order. 0 in names of older versions.
    pub stored_at: Monotonic,
}

impl StoredConnection {
    pub(super) fn name(&self) -> String {
        // Names must not contain colons (sd_pid_notify_with_fds(3)).
        let peer = self.peer.map_or(String::new(), |peer| peer.to_string().replace(':', "_"));
        let tls = if self.is_https { "-tls" } else { "" };
        let port = self.port.map_or(String::new(), |port| format!("-{port}{tls}"));
        let protocol = match self.wire {
            Some(WireProtocol::Http) => "http".to_owned(),
            Some(WireProtocol::Fastcgi(request)) => format!("{FASTCGI}{request}"),
            None => "other".to_owned(),
        };
        let (listener, mark, stored_at) = (self.listener, self.mark, self.stored_at.0);
        format!("{HANDOFF_PREFIX}{listener:016x}-{peer}-{mark}-{protocol}-{}-{stored_at}{port}", unique())
    }

    /// Parses a [`StoredConnection::name`].
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut fields = name.strip_prefix(HANDOFF_PREFIX)?.split('-');
        let listener = u64::from_str_radix(fields.next()?, 16).ok()?;
        let peer = match fields.next()? {
            "" => None,
            address => Some(address.replace('_', ":").parse().ok()?),
        };
        let mark = fields.next()?.parse().ok()?;
        let wire = match fields.next()? {
            "http" => Some(WireProtocol::Http),
            "other" => None,
            fastcgi => Some(WireProtocol::Fastcgi(fastcgi.strip_prefix(FASTCGI)?.parse().ok()?)),
        };
        let stored_at = Monotonic(fields.nth(2).and_then(|at| at.parse().ok()).unwrap_or(0)); // after `unique`
        let port = fields.next().and_then(|port| port.parse().ok());
        let is_https = fields.next() == Some("tls");
        Some(Self { listener, peer, port, is_https, mark, wire, stored_at })
    }
}

fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl DescriptorStore {
    /// Opens the way to the supervisor, before clients can use up the descriptors.
    pub(super) fn open() -> io::Result<Self> {
        let entries = Rc::default();
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(Self { queue: None, entries }) };
        let path = path.as_encoded_bytes();
        let address = match path.strip_prefix(b"@") {
            Some(name) => UnixAddr::new_abstract(name)?,
            None => UnixAddr::new(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        let (messages, is_sending, status) = (VecDeque::new(), false, String::new());
        let queue = StoreQueue { socket, address, messages, is_sending, status };
        Ok(Self { queue: Some(Rc::new(RefCell::new(queue))), entries })
    }

    /// Sends `STATUS=` (sd_notify(3)), if it has changed, without waiting for the supervisor: if there is no room for it
    /// now, the next call sends it.
    pub(super) fn send_status(&self, status: String) {
        let Some(queue) = &self.queue else { return };
        let mut queue = queue.borrow_mut();
        if queue.status != status
            && queue.messages.is_empty()
            && queue.send_one(&format!("STATUS={status}"), None).is_ok()
        {
            queue.status = status;
        }
    }

    /// The descriptor that the store has under this name.
    pub(super) fn entry(&self, name: String) -> StoredFd {
        self.entries.set(self.entries.get() + 1);
        StoredFd { name, store: self.clone() }
    }

    /// Whether the places are for connections that wait.
    pub(super) fn is_crowded(&self) -> bool {
        self.entries.get() > CROWDED
    }

    /// Stores a duplicate of a connection. `None` if there is no store.
    pub(super) async fn add(&self, connection: &Arc<OwnedFd>, name: String) -> Option<StoredFd> {
        let (stored, result) = oneshot::channel();
        self.enqueue(StoreMessage::Store { name, connection: Arc::downgrade(connection), stored });
        result.await.ok()
    }

    /// Stores an object of a worker whose name was removed, for the next dispatcher.
    pub(super) fn add_object(&self, object: OwnedFd, name: String) {
        let store = self.clone();
        tokio::task::spawn_local(async move {
            if let Some(stored) = store.add(&Arc::new(object), name).await {
                std::mem::forget(stored); // it stays in the store
            }
        });
    }

    /// Sends a message now, or after those that wait.
    fn enqueue(&self, message: StoreMessage) {
        let Some(shared) = &self.queue else { return };
        let mut queue = shared.borrow_mut();
        queue.messages.push_back(message);
        if queue.is_sending || queue.send(self) {
            return;
        }
        queue.is_sending = true;
        let (store, shared) = (self.clone(), shared.clone());
        tokio::task::spawn_local(async move {
            let mut pause = RETRY_PAUSE;
            loop {
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
                let mut queue = shared.borrow_mut();
                queue.messages.retain(StoreMessage::is_needed);
                if queue.send(&store) {
                    return queue.is_sending = false;
                }
            }
        });
    }
}

impl StoredFd {
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for StoredFd {
    fn drop(&mut self) {
        let (name, store) = (std::mem::take(&mut self.name), self.store.clone());
        store.entries.set(store.entries.get() - 1);
        tokio::task::spawn_local(async move {
            sleep(REMOVE_DELAY).await;
            store.enqueue(StoreMessage::Remove(name));
        });
    }
}

impl StoreMessage {
    /// Not if the connection no longer waits.
    fn is_needed(&self) -> bool {
        !matches!(self, StoreMessage::Store { stored, .. } if stored.is_closed())
    }
}

impl StoreQueue {
    /// Sends as many messages as the supervisor takes; whether these were all. `store` is the owner of the queue.
    fn send(&mut self, store: &DescriptorStore) -> bool {
        while let Some(message) = self.messages.pop_front() {
            let sent = match &message {
                StoreMessage::Remove(name) => self.send_one(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None),
                StoreMessage::Store { name, connection, .. } => match connection.upgrade() {
                    Some(connection) if message.is_needed() => {
                        self.send_one(&format!("FDSTORE=1\nFDNAME={name}"), Some(&connection))
                    }
                    _ => continue,
                },
            };
            match (sent, message) {
                (Ok(()), StoreMessage::Store { name, stored, .. }) => drop(stored.send(store.entry(name))),
                (Ok(()), StoreMessage::Remove(_)) => {}
                (Err(error), message) if may_succeed_later(error) => {
                    self.messages.push_front(message);
                    return false;
                }
                (Err(error), _) => tracing::debug!(%error, "the descriptor store refuses a message"),
            }
        }
        true
    }

    fn send_one(&self, message: &str, fd: Option<&Arc<OwnedFd>>) -> nix::Result<()> {
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
        let control = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &control[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let socket = self.socket.as_raw_fd();
        sendmsg(socket, &[IoSlice::new(message.as_bytes())], control, flags, Some(&self.address)).map(drop)
    }
}

/// The supervisor does not read, a resource is used up (ETOOMANYREFS: descriptors on the way), or the socket is being
/// replaced.
fn may_succeed_later(error: Errno) -> bool {
    use Errno::{EAGAIN, ECONNREFUSED, EINTR, ELOOP, ENOBUFS, ENOENT, ENOMEM, ENOTDIR, ETOOMANYREFS};
    [EAGAIN, EINTR, ENOBUFS, ENOMEM, ETOOMANYREFS, ECONNREFUSED, ENOENT, ENOTDIR, ELOOP].contains(&error)
}

/// Responds with 503 to connections that the previous dispatcher stored and this one cannot serve: their head was read
/// and is lost, or their listener has been removed. Nothing was started, and the client may retry at once.
/// `places` are those that they occupy.
pub(super) fn reject(
    connections: Vec<(OwnedFd, StoredFd, WireProtocol)>,
    places: Option<OwnedSemaphorePermit>,
    bounds: LingerBounds,
) {
    let places = Rc::new(places);
    if !connections.is_empty() {
        let count = connections.len();
        tracing::info!(connections = count, event = %log::Event::ConnectionsRejected,
            "{count} connections were queued when the previous dispatcher ended: responding with 503");
    }
    for (fd, stored, wire) in connections {
        let places = places.clone();
        tokio::task::spawn_local(async move {
            let _places = places;
            if let Ok(stream) = SocketStream::from_fd(fd) {
                let stream = net::SharedStream(Arc::new(stream));
                let detail = "the dispatcher was restarted while the request waited for a worker";
                let problem = ProblemResponse::not_started(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(0);
                deliver(stream, &problem.framed(wire), bounds).await;
            }
            drop(stored);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn store_is_crowded_while_it_has_too_many_entries() {
        let store = DescriptorStore { queue: None, entries: Rc::default() };
        let added = async {
            let mut entries: Vec<_> = (0..=CROWDED).map(|n| store.entry(n.to_string())).collect();
            assert!(store.is_crowded());
            entries.pop();
            assert!(!store.is_crowded());
        };
        tokio::task::LocalSet::new().run_until(added).await;
        assert_eq!(store.entries.get(), 0);
    }

    #[test]
    fn name_of_a_stored_connection_can_be_parsed() {
        for peer in [None, Some("192.0.2.1:80".parse().unwrap()), Some("[2001:db8::1]:80".parse().unwrap())] {
            for wire in [None, Some(WireProtocol::Http), Some(WireProtocol::Fastcgi(u16::MAX))] {
                let stored_at = Monotonic(u64::MAX);
                let port = peer.map(|_| 65535);
                let is_https = port.is_some() && wire.is_some();
                let listener = u64::MAX - 1;
                let stored = StoredConnection { listener, peer, port, is_https, mark: 7, wire, stored_at };
                let name = stored.name();
                // systemd passes 1024 names in one variable, see FDSTORE_MAX of src/units/render.rs.
                assert!(name.len() < 110 && !name.contains(':'), "{name}");
                assert_eq!(StoredConnection::parse(&name), Some(stored));
            }
        }
        let older = StoredConnection::parse("handed-0--7-http-12-34").unwrap();
        assert_eq!((older.mark, older.stored_at), (7, Monotonic(0)));
        for other in
            ["waiting-1-2", "handed-", "handed-0--7", "handed-x--7-http-1", "handed-0--7-words-1", "handed-0--7-f-1"]
        {
            assert_eq!(StoredConnection::parse(other), None, "{other}");
        }
    }
}
