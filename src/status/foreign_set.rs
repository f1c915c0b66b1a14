//! A set in another pid namespace, as a container is to its host: its pids mean nothing here, so its locks and sockets
//! tell which of its processes live.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::ids::WorkerId;
use crate::ipc::{self, ListedWorker, SetLock};

/// The locks of a set at one moment.
pub(super) struct ForeignSet {
    is_set_locked: bool,
    admin: io::Result<()>,
    /// Empty if this user may not open the segments.
    segments: Vec<ListedWorker>,
}

impl ForeignSet {
    /// Those of the set in `dir`. The watchdog may take `timeout` to respond.
    pub(super) fn read(dir: &Path, timeout: Duration) -> Self {
        Self {
            is_set_locked: SetLock::holder(dir).is_some(),
            admin: request_health(&dir.join("admin.sock"), timeout),
            segments: ipc::list(dir).unwrap_or_default(),
        }
    }

    /// The state of the watchdog. `responsive`: whether the dispatcher has answered.
    pub(super) fn watchdog(&self, responsive: bool) -> &'static str {
        match &self.admin {
            Ok(()) => "up",
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => "frozen",
            // Without permission, or without the socket: systemd stops the dispatcher before the watchdog.
            Err(_) if self.is_set_locked || responsive => "up",
            Err(_) => "gone",
        }
    }

    /// Whether a dispatcher holds its role of a segment.
    pub(super) fn has_dispatcher(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment.state, Ok((true, _))))
    }

    /// Whether the process of a worker has ended, as far as this user may know.
    pub(super) fn has_ended(&self, id: &WorkerId) -> bool {
        self.segments.iter().any(|segment| segment.worker == *id && matches!(segment.state, Ok((_, false))))
    }
}

/// Whether the watchdog responds on its socket.
fn request_health(socket: &Path, timeout: Duration) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    stream.read_exact(&mut [0])
}
