//! Queued connections in the supervisor's descriptor store (sd_pid_notify_with_fds(3), `FDSTORE=1`), which outlives
//! this process.
//!
//! Messages are sent without blocking: a supervisor that does not read must not stop the dispatcher.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use crate::log;
use crate::net::{self, ProblemResponse, SocketStream, lingering_close};

/// Prefix of names of redirect connections. Their head has been read: the next dispatcher can only reject them.
pub(super) const REDIRECT_PREFIX: &str = "waiting-";

/// Prefix of names of handoff connections. Nothing has been read from them: the next dispatcher serves them.
pub(super) const HANDOFF_PREFIX: &str = "handed-";

/// A message is sent again after this pause, this often, while the supervisor's queue is full.
const RETRY_PAUSE: Duration = Duration::from_millis(5);
const RETRIES: u32 = 200;

/// How long after the end of its wait a connection is removed: its worker, possibly on the same core, runs first.
const REMOVE_DELAY: Duration = Duration::from_millis(2);

/// The name of a descriptor in the store; removed from the store when dropped.
pub(super) struct StoredFd(pub String);

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
    /// The mark of the connection.
    pub mark: u32,
    /// Whether an HTTP response may be sent on it.
    pub is_http: bool,
}

impl StoredConnection {
    pub(super) fn name(&self) -> String {
        // Names must not contain colons (sd_pid_notify_with_fds(3)).
        let peer = self.peer.map_or(String::new(), |peer| peer.to_string().replace(':', "_"));
        let protocol = if self.is_http { "http" } else { "other" };
        format!("{HANDOFF_PREFIX}{:016x}-{peer}-{}-{protocol}-{}", self.listener, self.mark, unique())
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
        let is_http = match fields.next()? {
            "http" => true,
            "other" => false,
            _ => return None,
        };
        Some(Self { listener, peer, mark, is_http })
    }
}

fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Stores a duplicate of a connection. `None` if there is no store.
pub(super) async fn store(connection: BorrowedFd<'_>, name: String) -> Option<StoredFd> {
    let message = format!("FDSTORE=1\nFDNAME={name}");
    send(&message, Some(connection)).await.ok()?;
    Some(StoredFd(name))
}

/// Stores an object of a worker whose name was removed, for the next dispatcher.
pub(super) fn store_object(object: OwnedFd, name: String) {
    tokio::task::spawn_local(async move {
        let message = format!("FDSTORE=1\nFDNAME={name}");
        if let Err(error) = send(&message, Some(object.as_fd())).await {
            tracing::error!(event = %log::Event::FilesLost,
                "cannot store the descriptor {name}: {error}; the next dispatcher will not find this object");
        }
    });
}

impl Drop for StoredFd {
    fn drop(&mut self) {
        let message = format!("FDSTOREREMOVE=1\nFDNAME={}", self.0);
        tokio::task::spawn_local(async move {
            sleep(REMOVE_DELAY).await;
            // If the message is lost, a harmless duplicate stays in the store: the connection itself has been shut
            // down.
            let _ = send(&message, None).await;
        });
    }
}

async fn send(message: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let path = std::env::var_os("NOTIFY_SOCKET").ok_or(io::ErrorKind::NotFound)?;
    let path = path.as_encoded_bytes();
    let address = match path.strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name)?,
        None => UnixAddr::new(path)?,
    };
    static SOCKET: OnceLock<UnixDatagram> = OnceLock::new();
    let socket = match SOCKET.get() {
        Some(socket) => socket,
        None => {
            let new = UnixDatagram::unbound()?;
            SOCKET.get_or_init(|| new)
        }
    };
    let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &control[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    for _ in 0..RETRIES {
        match sendmsg(socket.as_raw_fd(), &[IoSlice::new(message.as_bytes())], control, flags, Some(&address)) {
            Ok(_) => return Ok(()),
            Err(Errno::EAGAIN) => sleep(RETRY_PAUSE).await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Responds with 503 to connections that the previous dispatcher stored and this one cannot serve: their head was read
/// and is lost, or their listener has been removed. Nothing was started, and the client may retry at once.
pub(super) fn reject(connections: Vec<(OwnedFd, StoredFd)>, linger_timeout: Duration) {
    if !connections.is_empty() {
        let count = connections.len();
        tracing::info!(connections = count, event = %log::Event::ConnectionsRejected,
            "{count} connections were queued when the previous dispatcher ended: responding with 503");
    }
    for (fd, stored) in connections {
        tokio::task::spawn_local(async move {
            if let Ok(stream) = SocketStream::from_fd(fd) {
                let stream = net::SharedStream(Arc::new(stream));
                let detail = "the dispatcher was restarted while the request waited for a worker";
                let problem = ProblemResponse::not_started(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(0);
                let _ = timeout(linger_timeout, stream.clone().write_all(&problem.raw())).await;
                lingering_close(stream, linger_timeout).await;
            }
            drop(stored);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_a_stored_connection_can_be_parsed() {
        for peer in [None, Some("192.0.2.1:80".parse().unwrap()), Some("[2001:db8::1]:80".parse().unwrap())] {
            for is_http in [false, true] {
                let stored = StoredConnection { listener: u64::MAX - 1, peer, mark: 7, is_http };
                let name = stored.name();
                assert!(name.len() < 255 && !name.contains(':'), "{name}");
                assert_eq!(StoredConnection::parse(&name), Some(stored));
            }
        }
        for other in ["waiting-1-2", "handed-", "handed-0--7", "handed-x--7-http-1", "handed-0--7-words-1"] {
            assert_eq!(StoredConnection::parse(other), None, "{other}");
        }
    }
}
