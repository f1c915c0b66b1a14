//! The limit of open files (`RLIMIT_NOFILE`, getrlimit(2)), and errors that say that the machine or a limit has nothing left.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
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

/// Descriptors in reserve: each that is released makes room for one that must be opened although nothing is left.
///
/// They are open files of their own, so that they also help where the machine's table of open files is full (ENFILE).
/// They keep the lowest numbers that are free, because a limit that is lowered below the numbers in use (prlimit(2)) makes
/// all above it useless.
#[derive(Debug)]
pub(crate) struct SpareDescriptors {
    held: Vec<EventFd>,
    count: usize,
}

impl SpareDescriptors {
    /// Opens them. The earlier the better: the numbers are lower.
    pub(crate) fn new(count: usize) -> Self {
        let mut spare = Self { held: Vec::new(), count };
        spare.refill();
        spare
    }

    /// Closes one; `false` if none is left.
    pub(crate) fn release(&mut self) -> bool {
        self.held.pop().is_some()
    }

    /// Opens those again that were released, as far as descriptors are free, and moves the others to lower numbers that
    /// have become free.
    pub(crate) fn refill(&mut self) {
        let number = |descriptor: &EventFd| descriptor.as_fd().as_raw_fd();
        while let Ok(descriptor) = EventFd::from_flags(EfdFlags::EFD_CLOEXEC) {
            let is_short = self.held.len() < self.count;
            match self.held.iter_mut().max_by_key(|held| number(held)) {
                _ if is_short => self.held.push(descriptor),
                Some(highest) if number(&descriptor) < number(highest) => *highest = descriptor,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_descriptors_are_released_and_refilled() {
        let mut spare = SpareDescriptors::new(2);
        for _ in 0..2 {
            assert!(spare.release() && spare.release() && !spare.release());
            spare.refill();
        }
    }

    #[test]
    fn shortages_are_told_apart_from_faults_of_a_peer() {
        let error = |code: Errno| io::Error::from_raw_os_error(code as i32);
        assert!([Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EAGAIN].map(error).iter().all(is_shortage));
        assert!(![Errno::ECONNREFUSED, Errno::ENOENT, Errno::EPIPE].map(error).iter().any(is_shortage));
        assert!(!is_shortage(&io::ErrorKind::TimedOut.into()));
    }
}
