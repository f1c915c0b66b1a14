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
use crate::net::{self, Problem, Stream, linger};

/// What the names of stored connections begin with.
pub const PREFIX: &str = "waiting-";

/// A message that found the supervisor's queue full is tried again after this time, this often.
const RETRY: (Duration, u32) = (Duration::from_millis(5), 200);

/// How long after the end of its wait a connection is taken out. Its worker, on the same core perhaps, comes first.
const LATER: Duration = Duration::from_millis(2);

/// A connection in the store; taken out when dropped.
pub struct Stored(pub String);

/// What the names of those begin with of which nothing has been read: they can be served.
pub const HANDED: &str = "handed-";

/// A name for a connection whose head has been read.
pub fn waiting() -> String {
    format!("{PREFIX}{}", unique())
}

/// A name for a connection of the listener with this index, with the address that a proxy has told and its mark.
pub fn handed(index: usize, peer: Option<SocketAddr>, mark: u32) -> String {
    // A name has no colons (sd_pid_notify_with_fds(3)).
    let peer = peer.map_or(String::new(), |peer| peer.to_string().replace(':', "_"));
    format!("{HANDED}{index}-{peer}-{mark}-{}", unique())
}

/// What [`handed`] has put into a name.
pub fn of_handed(name: &str) -> Option<(usize, Option<SocketAddr>, u32)> {
    let mut words = name.strip_prefix(HANDED)?.split('-');
    let index = words.next()?.parse().ok()?;
    let peer = match words.next()? {
        "" => None,
        told => Some(told.replace('_', ":").parse().ok()?),
    };
    Some((index, peer, words.next()?.parse().ok()?))
}

fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Puts a connection into the store. `None` where there is no store.
pub async fn put(connection: BorrowedFd<'_>, name: String) -> Option<Stored> {
    let message = format!("FDSTORE=1\nFDNAME={name}");
    send(&message, Some(connection)).await.ok()?;
    Some(Stored(name))
}

impl Drop for Stored {
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

/// Answers the connections that waited when the last dispatcher ended. What they asked was read by it and is
/// lost, so all that can be said is that nothing was started and that they may ask again at once.
pub fn give_back(connections: Vec<(OwnedFd, String)>, linger_timeout: Duration) {
    if !connections.is_empty() {
        tracing::info!(connections = connections.len(), event = %log::Event::ConnectionsReturned,
            "sending back who waited when the last dispatcher ended");
    }
    for (fd, name) in connections {
        let stored = Stored(name);
        tokio::task::spawn_local(async move {
            if let Ok(stream) = Stream::adopt(fd) {
                let stream = net::Shared(Arc::new(stream));
                let detail = "the dispatcher was restarted while the request waited for a worker";
                let answer = Problem::not_started(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(0).raw();
                let _ = timeout(linger_timeout, stream.clone().write_all(&answer)).await;
                linger(stream, linger_timeout).await;
            }
            drop(stored);
        });
    }
}
