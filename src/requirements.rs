//! What patou needs of the kernel, of a container's seccomp filter and of `/proc`, tested before a part starts: without it
//! a part could neither be watched nor stopped.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::prctl;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid};

use crate::procfs::{self, ProcessStat};
use crate::sys;

/// Why no part of a set can run here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MissingRequirement {
    /// The kernel lacks a system call, or a filter denies it.
    #[error(
        "the system call {call} is not available ({cause}): patou needs Linux {kernel} or newer and, in a container, a \
         seccomp profile that allows it; see CONTAINERS in patou(7)"
    )]
    SystemCall {
        /// Its name, with the operation that was tried.
        call: &'static str,
        /// The first kernel that has it.
        kernel: &'static str,
        /// The error.
        cause: io::Error,
    },
    /// `/proc` does not show this process.
    #[error(
        "/proc does not show this process ({0}): patou needs the proc file system of its own pid namespace there \
         (mount -t proc proc /proc); see CONTAINERS in patou(7)"
    )]
    Proc(String),
}

/// A system call with the first kernel that has it, and an attempt that changes nothing.
type Attempt = (&'static str, &'static str, fn() -> io::Result<()>);

const SYSTEM_CALLS: [Attempt; 6] = [
    ("prctl(PR_GET_PDEATHSIG)", "2.6", || Ok(prctl::get_pdeathsig().map(drop)?)),
    ("prctl(PR_GET_CHILD_SUBREAPER)", "3.4", || Ok(prctl::get_child_subreaper().map(drop)?)),
    ("fcntl(F_OFD_GETLK)", "3.15", test_lock),
    ("pidfd_open", "5.3", || sys::pidfd_open(getpid()).map(drop)),
    ("pidfd_send_signal", "5.1", || sys::pidfd_send_signal(sys::pidfd_open(getpid())?.as_fd(), None)),
    ("waitid", "2.6", || match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
        Err(error @ (Errno::ENOSYS | Errno::EPERM)) => Err(error.into()),
        _ => Ok(()),
    }),
];

/// Tests everything that a part relies on.
///
/// # Errors
/// The first requirement that is not met.
pub(crate) fn check() -> Result<(), MissingRequirement> {
    check_proc()?;
    for (call, kernel, attempt) in SYSTEM_CALLS {
        attempt().map_err(|cause| MissingRequirement::SystemCall { call, kernel, cause })?;
    }
    Ok(())
}

fn check_proc() -> Result<(), MissingRequirement> {
    let own = fs::read_link("/proc/self").map_err(|error| MissingRequirement::Proc(format!("/proc/self: {error}")))?;
    let is_own = own.to_str().and_then(|pid| pid.parse().ok()).map(Pid::from_raw) == Some(getpid());
    if !is_own || ProcessStat::of(std::process::id()).is_none() {
        return Err(MissingRequirement::Proc(format!("/proc/self is {}, this is process {}", own.display(), getpid())));
    }
    match procfs::children(std::path::Path::new("/proc/thread-self")) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(MissingRequirement::Proc(format!("/proc/thread-self/children: {error}")))
        }
        _ => Ok(()),
    }
}

/// A lock of an open file description, on a file that always exists.
fn test_lock() -> io::Result<()> {
    let file = File::open("/proc/self/stat")?;
    let mut region = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut region))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_meets_the_requirements() {
        check().unwrap();
    }

    #[test]
    fn error_names_the_call_the_cause_and_the_kernel() {
        let cause = io::Error::from(Errno::ENOSYS);
        let text = MissingRequirement::SystemCall { call: "pidfd_open", kernel: "5.3", cause }.to_string();
        assert!(
            ["pidfd_open", "Function not implemented", "Linux 5.3"].iter().all(|part| text.contains(part)),
            "{text}"
        );
    }
}
