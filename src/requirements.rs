//! What patou needs of the kernel, of a container's seccomp filter and of `/proc`, tested before a part starts: without it
//! a part could neither be watched nor stopped.

use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::EventFd;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::kill;
use nix::sys::socket::{MsgFlags, SockFlag, accept4, recvmsg, sendmsg};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, getpid, mkfifo, setpgid};

use crate::procfs::{self, ProcessStat};
use crate::sys;

/// Why no part of a set can run here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MissingRequirement {
    /// The kernel lacks a system call, or a filter denies it.
    #[error(
        "the system call {call} is not available ({cause}): patou needs Linux 5.3 or newer and, in a container, a seccomp \
         profile that allows the call; see CONTAINERS in patou(7)"
    )]
    SystemCall {
        /// Its name, with the operation that was tried.
        call: &'static str,
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

/// A system call, and an attempt that changes nothing. A filter denies a call whatever its arguments: some attempts name
/// no object, and their proper result is another error.
type Attempt = (&'static str, fn() -> io::Result<()>);

const SYSTEM_CALLS: &[Attempt] = &[
    ("prctl(PR_GET_PDEATHSIG)", || Ok(prctl::get_pdeathsig().map(drop)?)),
    ("prctl(PR_GET_CHILD_SUBREAPER)", || Ok(prctl::get_child_subreaper().map(drop)?)),
    ("fcntl(F_OFD_GETLK)", test_lock),
    ("pidfd_open", || sys::pidfd_open(getpid()).map(drop)),
    ("pidfd_send_signal", || sys::pidfd_send_signal(sys::pidfd_open(getpid())?.as_fd(), None)),
    ("kill", || Ok(kill(getpid(), None)?)),
    ("setpgid", || Ok(setpgid(getpid(), Pid::from_raw(-1))?)),
    ("wait4", || Ok(waitpid(getpid(), Some(WaitPidFlag::WNOHANG)).map(drop)?)),
    ("waitid", || Ok(waitid(Id::Pid(getpid()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG).map(drop)?)),
    ("prlimit64", || Ok(getrlimit(Resource::RLIMIT_NOFILE).map(drop)?)),
    ("clone or clone3 (to start a thread)", || {
        std::thread::Builder::new().spawn(|| {}).map(|thread| drop(thread.join()))
    }),
    ("epoll_create1", || Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map(drop)?)),
    ("eventfd2", || Ok(EventFd::new().map(drop)?)),
    ("socketpair", || UnixStream::pair().map(drop)),
    ("accept4", || Ok(accept4(-1, SockFlag::SOCK_CLOEXEC).map(drop)?)),
    ("sendmsg or recvmsg", test_message),
    ("mknod (to create a named pipe)", || Ok(mkfifo("", Mode::S_IRUSR)?)),
];

/// Tests everything that a part relies on.
///
/// # Errors
/// The first requirement that is not met.
pub(crate) fn check() -> Result<(), MissingRequirement> {
    check_proc()?;
    for &(call, attempt) in SYSTEM_CALLS {
        if let Err(cause) = attempt()
            && let Some(libc::ENOSYS | libc::EPERM | libc::EACCES) = cause.raw_os_error()
        {
            return Err(MissingRequirement::SystemCall { call, cause });
        }
    }
    Ok(())
}

fn check_proc() -> Result<(), MissingRequirement> {
    let own = fs::read_link("/proc/self").map_err(|error| MissingRequirement::Proc(format!("/proc/self: {error}")))?;
    let is_own = own.to_str().and_then(|pid| pid.parse().ok()).map(Pid::from_raw) == Some(getpid());
    if !is_own || ProcessStat::of(std::process::id()).is_none() {
        return Err(MissingRequirement::Proc(format!("/proc/self is {}, this is process {}", own.display(), getpid())));
    }
    match procfs::children(Path::new("/proc/thread-self")) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(MissingRequirement::Proc(format!("/proc/thread-self/children: {error}")))
        }
        _ => Ok(()),
    }
}

fn test_message() -> io::Result<()> {
    let (sender, receiver) = UnixStream::pair()?;
    sendmsg::<()>(sender.as_raw_fd(), &[IoSlice::new(b"x")], &[], MsgFlags::MSG_DONTWAIT, None)?;
    recvmsg::<()>(receiver.as_raw_fd(), &mut [IoSliceMut::new(&mut [0])], None, MsgFlags::MSG_DONTWAIT)?;
    Ok(())
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
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn this_machine_meets_the_requirements() {
        check().unwrap();
    }

    #[test]
    fn error_names_the_call_the_cause_and_the_kernel() {
        let cause = io::Error::from(Errno::ENOSYS);
        let text = MissingRequirement::SystemCall { call: "pidfd_open", cause }.to_string();
        assert!(
            ["pidfd_open", "Function not implemented", "Linux 5.3"].iter().all(|part| text.contains(part)),
            "{text}"
        );
    }
}
