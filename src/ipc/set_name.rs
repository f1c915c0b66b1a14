//! The abstract Unix socket name of a running set (unix(7)): unlike the lock file it cannot be removed.
//!
//! It exists once per network namespace, and any user can bind it: a free name proves nothing, and a name that another
//! user holds is not a running set. The locks of the segments decide then.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, UnixCredentials, connect, getsockopt, socket, sockopt,
};
use nix::unistd::geteuid;

use super::error::IpcError;
use crate::config::digest;

/// The longest path that is a name itself; longer ones are hashed.
const NAME_MAX: usize = 90;

/// Binds the name of the set in `dir`. `None` if the name is no proof here: another user holds it.
///
/// # Errors
/// [`IpcError::AlreadyRunning`] if a process of this user holds it.
pub(super) fn take(dir: &Path) -> Result<Option<UnixListener>, IpcError> {
    let name = name_of(dir);
    let bound = SocketAddr::from_abstract_name(&name).and_then(|address| UnixListener::bind_addr(&address));
    match bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener)) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match process_at(&name) {
            // A process of another pid namespace has pid 0; its directory is possibly another one.
            Some(holder) if holder.uid() == geteuid().as_raw() && holder.pid() > 0 => {
                Err(IpcError::AlreadyRunning { dir: dir.to_owned(), pid: holder.pid().unsigned_abs() })
            }
            holder => {
                let (pid, uid) = holder.map_or((None, None), |it| (Some(it.pid()), Some(it.uid())));
                tracing::warn!(
                    pid,
                    uid,
                    "another process holds the abstract socket name of the set in {}: it is not taken for a running \
                     set, and this set starts without the name",
                    dir.display()
                );
                Ok(None)
            }
        },
        Err(error) => {
            tracing::warn!("cannot bind the abstract socket name of the set: {error}; starting without the name");
            Ok(None)
        }
    }
}

/// The process that holds the name of the set in `dir`, if it belongs to this user; for root, to any user.
pub(super) fn holder(dir: &Path) -> Option<u32> {
    let own = geteuid();
    let holder = process_at(&name_of(dir)).filter(|holder| own.is_root() || holder.uid() == own.as_raw())?;
    u32::try_from(holder.pid()).ok().filter(|pid| *pid > 0)
}

/// Closes the connections of processes that have looked for the holder.
pub(super) fn discard_connections(name: &UnixListener) {
    while name.accept().is_ok() {}
}

/// The listening process (`SO_PEERCRED`).
fn process_at(name: &[u8]) -> Option<UnixCredentials> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    connect(fd.as_raw_fd(), &UnixAddr::new_abstract(name).ok()?).ok()?;
    getsockopt(&fd, sockopt::PeerCredentials).ok()
}

fn name_of(dir: &Path) -> Vec<u8> {
    let path = canonical(dir);
    let bytes = path.as_os_str().as_encoded_bytes();
    let text = if bytes.len() <= NAME_MAX { bytes.to_vec() } else { format!("{:016x}", digest(&[bytes])).into() };
    [b"patou:", text.as_slice()].concat()
}

/// The path without links, also of a directory that does not exist any more.
fn canonical(dir: &Path) -> PathBuf {
    let parent = |dir: &Path| Some(fs::canonicalize(dir.parent()?).ok()?.join(dir.file_name()?));
    let found = fs::canonicalize(dir).ok().or_else(|| parent(dir));
    found.or_else(|| std::path::absolute(dir).ok()).unwrap_or_else(|| dir.to_owned())
}
