//! Open file description locks (fcntl(2), `F_OFD_SETLK`), held as long as the opening process lives.
//!
//! The kernel releases them however a process ends, so "is it locked" answers "is its owner alive", without a pid that
//! may have been reused.

use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

fn region((start, len): (i64, i64)) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// Locks these bytes (start, length) of `file`; `false` if another process holds the lock.
pub(crate) fn try_lock(file: impl AsFd, bytes: (i64, i64)) -> nix::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&region(bytes))) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Releases the lock on these bytes.
pub(super) fn unlock(file: impl AsFd, bytes: (i64, i64)) -> nix::Result<()> {
    let mut free = region(bytes);
    free.l_type = libc::F_UNLCK as libc::c_short;
    fcntl(file, FcntlArg::F_OFD_SETLK(&free)).map(drop)
}

/// Whether another process holds a lock on these bytes.
pub(crate) fn is_locked(file: impl AsFd, bytes: (i64, i64)) -> nix::Result<bool> {
    let mut found = region(bytes);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(found.l_type != libc::F_UNLCK as libc::c_short)
}
