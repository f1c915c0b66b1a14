//! The limit of open files (`RLIMIT_NOFILE`, getrlimit(2)), and errors that say that the machine or a limit has nothing left.

use std::io;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The soft and the hard limit that this process was started with.
static INHERITED: OnceLock<(u64, u64)> = OnceLock::new();

/// The soft limit, which the kernel enforces.
pub(crate) fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// Raises the soft limit to the hard limit, and returns it. The soft limit of 1024 is a precaution for select(2), which
/// patou does not use; handlers may, so they get the [`inherited`] limits.
pub(crate) fn raise_limit() -> u64 {
    let (soft, hard) = inherited();
    if soft < hard {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard); // else the soft limit stays in force
    }
    limit()
}

/// The soft and the hard limit before [`raise_limit`].
pub(crate) fn inherited() -> (u64, u64) {
    *INHERITED.get_or_init(|| getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX)))
}

/// Sets both limits, as far as the hard limit of this process permits.
///
/// # Errors
/// Not in practice: every process may lower its limits.
pub(crate) fn set_limits(soft: u64, hard: u64) -> io::Result<()> {
    match setrlimit(Resource::RLIMIT_NOFILE, soft, hard) {
        // Beyond the hard limit without CAP_SYS_RESOURCE, or beyond fs.nr_open.
        Err(Errno::EPERM) => {
            let (_, highest) = getrlimit(Resource::RLIMIT_NOFILE)?;
            Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.min(highest), hard.min(highest))?)
        }
        result => Ok(result?),
    }
}

/// Whether an error says that this process, its user or the machine has used up a resource: descriptors, memory or
/// processes. It says nothing about a peer, and trying again later may succeed.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    let shortages = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS, Errno::EAGAIN, Errno::ENOSPC];
    code.is_some_and(|code| shortages.contains(&code))
}

/// Whether this process has used up its limit of open files.
pub(crate) fn is_exhausted() -> bool {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).is_err_and(|error| error == Errno::EMFILE)
}

/// A descriptor in reserve: released, it makes room for one that must be opened although nothing is left.
///
/// It is an open file of its own, so that it also helps where the machine's table of open files is full (ENFILE).
#[derive(Debug)]
pub(crate) struct SpareDescriptor(Option<EventFd>);

impl SpareDescriptor {
    /// Opened early it has a low number, which stays usable when the limit is lowered (prlimit(2)).
    pub(crate) fn new() -> Self {
        let mut spare = Self(None);
        spare.refill();
        spare
    }

    /// Closes it; `false` if it was closed before.
    pub(crate) fn release(&mut self) -> bool {
        self.0.take().is_some()
    }

    /// Opens it again, if a descriptor is free.
    pub(crate) fn refill(&mut self) {
        if self.0.is_none() {
            self.0 = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_descriptor_is_released_once_and_refilled() {
        let mut spare = SpareDescriptor::new();
        assert!(spare.release() && !spare.release());
        spare.refill();
        assert!(spare.release());
    }

    #[test]
    fn shortages_are_told_apart_from_faults_of_a_peer() {
        let error = |code: Errno| io::Error::from_raw_os_error(code as i32);
        assert!([Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EAGAIN].map(error).iter().all(is_shortage));
        assert!(![Errno::ECONNREFUSED, Errno::ENOENT, Errno::EPIPE].map(error).iter().any(is_shortage));
        assert!(!is_shortage(&io::ErrorKind::TimedOut.into()));
    }
}
