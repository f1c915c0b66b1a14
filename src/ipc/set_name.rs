//! The abstract Unix socket name of a running set (unix(7)): unlike the lock file it cannot be removed.
//!
//! It exists once per network namespace, and any user can bind it: a free name proves nothing, and a name that another
//! user holds is not a running set. The locks of the segments decide then.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, UnixCredentials, connect, getsockopt, socket, sockopt,
};
use nix::unistd::{getegid, geteuid};

use super::error::IpcError;
use crate::config::digest;
use crate::procfs;

/// The longest path that is a name itself; longer ones are hashed.
const NAME_MAX: usize = 90;

/// How many connections are closed at once.
const DISCARDED_MAX: usize = 128;

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
            Some(holder)
                if holder.uid() == geteuid().as_raw() && holder.pid() > 0 && has_same_directory(&holder, dir) =>
            {
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
    u32::try_from(holder.pid()).ok().filter(|pid| *pid > 0 && has_same_directory(&holder, dir))
}

/// Closes connections of processes that have looked for the holder. Any process may connect, also without a pause: the
/// number is bounded.
pub(super) fn discard_connections(name: &UnixListener) {
    for _ in 0..DISCARDED_MAX {
        if name.accept().is_err() {
            return;
        }
    }
}

/// The listening process (`SO_PEERCRED`). Where others have filled its queue, it is looked for among those of this user.
fn process_at(name: &[u8]) -> Option<UnixCredentials> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    match connect(fd.as_raw_fd(), &UnixAddr::new_abstract(name).ok()?) {
        Ok(()) => getsockopt(&fd, sockopt::PeerCredentials).ok(),
        Err(Errno::EAGAIN) => own_process_at(name),
        Err(_) => None,
    }
}

/// The process of this user that listens at an abstract name.
fn own_process_at(name: &[u8]) -> Option<UnixCredentials> {
    let inode = procfs::listening_socket(&[b"@", name].concat())?;
    let (socket, uid) = (PathBuf::from(format!("socket:[{inode}]")), geteuid().as_raw());
    let holds = |process: &PathBuf| {
        let descriptors = procfs::descriptor_numbers(process).into_iter();
        let mut targets = descriptors.map(|number| fs::read_link(process.join(format!("fd/{number}"))));
        targets.any(|target| target.is_ok_and(|target| target == socket))
    };
    let ids = procfs::processes().into_iter().map(|process| process.id().pid);
    let own = |pid: &u32| fs::metadata(procfs::process_dir(*pid)).is_ok_and(|process| process.uid() == uid);
    let pid = ids.filter(own).find(|pid| holds(&procfs::process_dir(*pid)))?;
    Some(libc::ucred { pid: pid as i32, uid, gid: getegid().as_raw() }.into())
}

/// Whether the path is the same directory for the holder: a container can share the network and not the files. The parent
/// is compared, as the directory itself may be gone. True if that cannot be determined.
fn has_same_directory(holder: &UnixCredentials, dir: &Path) -> bool {
    let path = canonical(dir);
    let Some(parent) = path.parent() else { return true };
    let seen =
        procfs::process_dir(holder.pid().unsigned_abs()).join("root").join(parent.strip_prefix("/").unwrap_or(parent));
    match (fs::metadata(parent), fs::metadata(seen)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => true,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    /// Connects until the queue is full.
    fn fill(address: &SocketAddr) -> Vec<UnixStream> {
        let connect = |_| {
            let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
            let name = UnixAddr::new_abstract(address.as_abstract_name().unwrap()).unwrap();
            connect(fd.as_raw_fd(), &name).ok().map(|()| UnixStream::from(fd))
        };
        (0..).map_while(connect).collect()
    }

    #[test]
    fn a_name_whose_queue_is_full_is_still_held_and_its_connections_are_closed_in_portions() {
        let dir = std::env::temp_dir().join(format!("patou-name-{}", std::process::id()));
        let address = SocketAddr::from_abstract_name(name_of(&dir)).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        // A short queue: listen(2) again changes its length.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(200).unwrap()).unwrap();
        assert_eq!(holder(&dir), Some(std::process::id()));
        let clients = fill(&address);
        assert!(clients.len() > DISCARDED_MAX, "{}", clients.len());
        assert!(
            matches!(take(&dir), Err(IpcError::AlreadyRunning { pid, .. }) if pid == std::process::id()),
            "the queue is full"
        );
        discard_connections(&listener);
        assert!(listener.accept().is_ok(), "the others wait for the next call");
    }

    #[test]
    fn a_holder_in_a_container_has_another_directory() {
        let parent = std::env::temp_dir().join(format!("patou-holder-{}", std::process::id()));
        fs::create_dir_all(&parent).unwrap();
        let dir = parent.join("run");
        let is_same = |pid: u32| has_same_directory(&libc::ucred { pid: pid as i32, uid: 0, gid: 0 }.into(), &dir);
        assert!(is_same(std::process::id()));
        let user: &[&str] = if geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
        let script = "mount -t tmpfs none \"$0\" && echo ready && read _";
        let mut container = Command::new("unshare")
            .args(user)
            .args(["--mount", "sh", "-c", script])
            .arg(&parent)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(container.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let is_permitted = line == "ready\n";
        assert!(is_permitted || std::env::var("CI").as_deref() != Ok("true"), "unshare(1) is not permitted");
        if is_permitted {
            assert!(!is_same(container.id()));
        } else {
            let _ = writeln!(io::stderr(), "SKIPPED, unshare(1) is not permitted");
        }
        drop(container.stdin.take());
        container.wait().unwrap();
        fs::remove_dir_all(&parent).unwrap();
    }
}
