//! Waiting connections in the supervisor's descriptor store (sd_pid_notify_with_fds(3), `FDSTORE=1`): they
//! outlive this process.
//!
//! The messages are sent without ever blocking: a supervisor that does not read must not stop the dispatcher.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
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

/// What the names of stored connections begin with.
pub const PREFIX: &str = "waiting-";

/// A message that found the supervisor's queue full is tried again after this time, this often.
const RETRY: (Duration, u32) = (Duration::from_millis(5), 200);

/// How long after the end of its wait a connection is taken out. Its worker, on the same core perhaps, comes first.
const LATER: Duration = Duration::from_millis(2);

/// A connection in the store; taken out when dropped.
pub struct StoredFd(pub String);

/// What the names of those begin with of which nothing has been read: they can be served.
pub const HANDED: &str = "handed-";

/// A name for a connection whose head has been read.
pub fn waiting() -> String {
    format!("{PREFIX}{}", unique())
}

/// What the next dispatcher has to know of a connection of which nothing has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredConnection {
    /// Its listener's key.
    pub door: u64,
    /// The client's address as a proxy has told it.
    pub peer: Option<SocketAddr>,
    /// Its mark.
    pub mark: u32,
    /// Whether it may be answered in HTTP.
    pub is_http: bool,
}

impl StoredConnection {
    /// A name for it.
    pub fn name(&self) -> String {
        // A name has no colons (sd_pid_notify_with_fds(3)).
        let peer = self.peer.map_or(String::new(), |peer| peer.to_string().replace(':', "_"));
        let speaks = if self.is_http { "http" } else { "other" };
        format!("{HANDED}{:016x}-{peer}-{}-{speaks}-{}", self.door, self.mark, unique())
    }

    /// What [`StoredConnection::name`] has put into a name.
    pub fn of(name: &str) -> Option<Self> {
        let mut words = name.strip_prefix(HANDED)?.split('-');
        let door = u64::from_str_radix(words.next()?, 16).ok()?;
        let peer = match words.next()? {
            "" => None,
            told => Some(told.replace('_', ":").parse().ok()?),
        };
        let mark = words.next()?.parse().ok()?;
        let is_http = match words.next()? {
            "http" => true,
            "other" => false,
            _ => return None,
        };
        Some(Self { door, peer, mark, is_http })
    }
}

fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Puts a connection into the store. `None` where there is no store.
pub async fn put(connection: BorrowedFd<'_>, name: String) -> Option<StoredFd> {
    let message = format!("FDSTORE=1\nFDNAME={name}");
    send(&message, Some(connection)).await.ok()?;
    Some(StoredFd(name))
}

impl Drop for StoredFd {
    fn drop(&mut self) {
        let message = format!("FDSTOREREMOVE=1\nFDNAME={}", self.0);
        tokio::task::spawn_local(async move {
            sleep(LATER).await;
            // Lost, the copy stays in the store and harms nobody: the connection itself has been shut down.
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
    for _ in 0..RETRY.1 {
        match sendmsg(socket.as_raw_fd(), &[IoSlice::new(message.as_bytes())], control, flags, Some(&address)) {
            Ok(_) => return Ok(()),
            Err(Errno::EAGAIN) => sleep(RETRY.0).await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Answers connections that waited when the last dispatcher ended and cannot be served by this one: what they asked was
/// read by the last one and is lost, or there is no place for them any more. All that can be said is that nothing was
/// started and that they may ask again at once.
pub fn give_back(connections: Vec<(OwnedFd, StoredFd)>, linger_timeout: Duration) {
    if !connections.is_empty() {
        tracing::info!(connections = connections.len(), event = %log::Event::ConnectionsRejected,
            "sending back who waited when the last dispatcher ended");
    }
    for (fd, stored) in connections {
        tokio::task::spawn_local(async move {
            if let Ok(stream) = SocketStream::from_fd(fd) {
                let stream = net::SharedStream(Arc::new(stream));
                let detail = "the dispatcher was restarted while the request waited for a worker";
                let answer = ProblemResponse::not_started(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(0).raw();
                let _ = timeout(linger_timeout, stream.clone().write_all(&answer)).await;
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
    fn a_name_says_what_the_next_dispatcher_has_to_know() {
        for peer in [None, Some("192.0.2.1:80".parse().unwrap()), Some("[2001:db8::1]:80".parse().unwrap())] {
            for is_http in [false, true] {
                let handed = StoredConnection { door: u64::MAX - 1, peer, mark: 7, is_http };
                let name = handed.name();
                assert!(name.len() < 255 && !name.contains(':'), "{name}");
                assert_eq!(StoredConnection::of(&name), Some(handed));
            }
        }
        for other in ["waiting-1-2", "handed-", "handed-0--7", "handed-x--7-http-1", "handed-0--7-words-1"] {
            assert_eq!(StoredConnection::of(other), None, "{other}");
        }
    }
}
