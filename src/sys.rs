//! The few system calls without a safe wrapper.
//!
//! Every `unsafe` block says why it is needed and why it is sound; nothing here decides anything.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use nix::unistd::{Pid, getpid, getppid};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};

/// Gives the child of `command` the descriptors `map` under the numbers beside them, which must be above 2.
///
/// Every other descriptor above 2 is closed when the program starts, whoever opened it and with
/// whatever flags. The originals are closed in this process when `command` is dropped.
///
/// # Errors
/// When this process has no descriptor left.
pub fn map_fds(command: &mut Command, map: Vec<(OwnedFd, RawFd)>) -> io::Result<()> {
    let above = map.iter().map(|(_, target)| target + 1).max().unwrap_or(3);
    let mut moved = Vec::with_capacity(map.len());
    // The sources go above every target, so that no dup2 below can overwrite one still to come.
    for (source, target) in map {
        debug_assert!(target > 2);
        moved.push((duplicate_from(source.as_raw_fd(), above)?, target));
    }
    // The standard library reports a failed exec through a pipe of its own, made at spawn. A target
    // that is free now could become its number, and dup2 would cut it: keep the targets occupied.
    let mut occupied = Vec::new();
    if let Some((source, _)) = moved.first() {
        for (_, target) in &moved {
            let filler = duplicate_from(source.as_raw_fd(), *target)?;
            if filler.as_raw_fd() == *target {
                occupied.push(filler);
            }
        }
    }
    let place = move || {
        let _keep = &occupied;
        // SAFETY: needed because nix wraps no close_range. It takes no pointers; with CLOEXEC it closes
        // nothing now, so that the standard library's own pipe lives until exec. Kernels before 5.11
        // refuse the flag: then the descriptors' own flags decide, as without this call.
        unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        for (source, target) in &moved {
            // SAFETY: needed because nix's dup2 wants an OwnedFd for the target. Both are plain numbers;
            // the source is open (owned by this closure) and differs from the target (it lies above all
            // of them), so dup2 makes the target and clears its CLOEXEC.
            Errno::result(unsafe { libc::dup2(source.as_raw_fd(), *target) })?;
        }
        Ok(())
    };
    // SAFETY: needed because running code between fork and exec is unsafe in principle. The closure makes
    // system calls only: it neither allocates nor locks.
    unsafe { command.pre_exec(place) };
    Ok(())
}

/// The lowest free descriptor from `lowest` on as a duplicate of `fd`, closed on exec.
fn duplicate_from(fd: RawFd, lowest: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: needed to lend a number to nix. The callers own `fd` and keep it open over this call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let copy = fcntl(borrowed, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: needed because fcntl returns a number. It is new and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Has the child of `command` killed (SIGKILL) when its parent dies.
///
/// The kernel means the *thread* that spawned it, not the process: spawn from a thread that lives as long
/// as the child may, that is from a runtime's thread and never from one of its blocking pool.
pub fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    let bind = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the call: then the signal never comes.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: needed because running code between fork and exec is unsafe in principle. The closure makes
    // two system calls and neither allocates nor locks.
    unsafe { command.pre_exec(bind) };
}

/// A descriptor for process `pid`, closed on exec; readable once the process has ended.
///
/// # Errors
/// `ESRCH` when there is no such process, and when this process has no descriptor left.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: needed because nix wraps no pidfd_open. It takes no pointers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0u32) })?;
    // SAFETY: the kernel just made this descriptor for us, and a descriptor always fits a RawFd.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends `signal` to the process of `pidfd`, which cannot be another one that got its number.
///
/// # Errors
/// `ESRCH` when the process has ended and been reaped; `EPERM` when it belongs to somebody else.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: needed because nix wraps no pidfd_send_signal. The only pointer is null, which the call
    // documents as "as kill would do".
    Errno::result(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as i32, no_info, 0u32)
    })?;
    Ok(())
}

/// While it exists, SIGTERM and SIGINT end the process as if it had never said what to do on them: for the moment
/// before execve(2), which forgets what a handler has noted.
#[derive(Debug)]
pub struct DefaultSignalActions(Vec<(Signal, SigAction)>);

impl DefaultSignalActions {
    /// From now on, for all threads.
    ///
    /// # Errors
    /// Not in practice: both signals may have any action.
    pub fn set() -> io::Result<Self> {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        let mut before = Self(Vec::new());
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            // SAFETY: needed because a handler could do anything. This one is the kernel's own.
            before.0.push((signal, unsafe { sigaction(signal, &default) }?));
        }
        Ok(before)
    }
}

impl Drop for DefaultSignalActions {
    fn drop(&mut self) {
        for (signal, action) in &self.0 {
            // SAFETY: needed as above. The handler is the one that was in force until `begin`, and whoever had
            // installed it has not been told of a change, so that it still is what they mean it to be.
            let _ = unsafe { sigaction(*signal, action) };
        }
    }
}

/// Registers `fd` with the runtime of this thread, to wait until it is readable.
///
/// # Errors
/// When the runtime cannot watch it (a regular file).
///
/// # Panics
/// Outside of a tokio runtime.
pub fn when_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: needed because tokio cannot know what an `AsRawFd` returns. An OwnedFd is open, always the same
    // descriptor, and stays open while the AsyncFd owns it. Nobody here asks for `&mut` to what is in one, with which
    // it could be given another.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// As [`when_readable`], of a descriptor that others have, too, and to wait for what `interest` says.
///
/// # Errors
/// When the runtime cannot watch it (a regular file).
///
/// # Panics
/// Outside of a tokio runtime.
pub fn when_ready(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: needed as above, and sound for the same reasons. What is in an Arc stays what it is, and open, as long as
    // the AsyncFd has it; nobody here asks for `&mut` to that, with which it could be given another.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Reads what there is of a stream into the free part of `buffer` (recv(2)), which nobody has to clear for it. Returns
/// how much that was; 0 at the end.
///
/// # Errors
/// `EAGAIN` when there is nothing.
pub fn recv_into(fd: BorrowedFd<'_>, buffer: &mut ReadBuf<'_>) -> nix::Result<usize> {
    // SAFETY: needed to write where nothing has been written. Nothing below takes an initialized byte back.
    let free = unsafe { buffer.unfilled_mut() };
    // SAFETY: needed because nix wants initialized bytes. The kernel writes at most `len` bytes from the start of
    // `free`, which is borrowed for as long, and reads none.
    let read = unsafe { libc::recv(fd.as_raw_fd(), free.as_mut_ptr().cast(), free.len(), libc::MSG_DONTWAIT) };
    let read = Errno::result(read)?.unsigned_abs();
    // SAFETY: needed to say so. The kernel has written that many.
    unsafe { buffer.assume_init(read) };
    buffer.advance(read);
    Ok(read)
}

/// The descriptors that systemd, or the watchdog in its place, passed (sd_listen_fds(3)), with their names.
///
/// They keep their numbers and are closed on exec from now on. Only the first call gets them: they have one owner.
///
/// # Errors
/// When `LISTEN_FDS` or `LISTEN_PID` is not a number, or names descriptors that are not open.
pub fn listen_fds() -> io::Result<Vec<(OwnedFd, String)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let passed = sd_notify::listen_fds_with_names()?;
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    // SAFETY: needed because the protocol names descriptors by number. They are open (setting CLOEXEC on
    // them succeeded just now), were passed to this very process (LISTEN_PID), and the flag above makes
    // sure that they are taken once.
    Ok(passed.map(|(fd, name)| (unsafe { OwnedFd::from_raw_fd(fd) }, name)).collect())
}

/// Takes a TCP connection apart, which sends a reset (connect(2), `AF_UNSPEC`): also while others hold it.
///
/// # Errors
/// On what is no TCP socket.
pub fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: needed because nix has no address of this family. The pointer is to a whole sockaddr that lives over
    // the call, and its length is the one that is passed.
    Errno::result(unsafe { libc::connect(fd.as_raw_fd(), &nowhere, size_of::<libc::sockaddr>() as libc::socklen_t) })?;
    Ok(())
}

/// Accepts a connection that does not block, and says who has come (accept(2)).
///
/// # Errors
/// `EAGAIN` when nobody has.
pub fn accept(listener: BorrowedFd<'_>) -> nix::Result<(OwnedFd, Option<SockaddrStorage>)> {
    let mut address = std::mem::MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: needed because nix does not say who has come. The address lives longer than the call, and its length is the
    // one that is passed.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length, flags) };
    let fd = Errno::result(fd)?;
    // SAFETY: needed because the kernel hands out numbers. It has just made this one for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: needed because an address may be of any family. All of it is initialized, if with zeros, and `length` is what
    // the kernel has written of it.
    let address = unsafe { SockaddrStorage::from_raw(address.as_ptr().cast(), Some(length)) };
    Ok((fd, address))
}

/// Owns descriptors that the kernel has just made: those of a message (`SCM_RIGHTS`, unix(7)), or an accepted one.
pub fn own_fds(received: Vec<RawFd>) -> impl Iterator<Item = OwnedFd> {
    // SAFETY: needed because nix hands out bare numbers. The kernel made these descriptors for us, and the callers
    // pass each list on as it comes out of recvmsg or accept, once.
    received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::Stdio;

    #[test]
    fn descriptors_arrive_and_a_missing_program_is_still_reported() {
        let (to_read, mut to_write) = io::pipe().unwrap();
        let (mut answer, answer_end) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "cat <&3 >&4"]);
        map_fds(&mut command, vec![(to_read.into(), 3), (answer_end.into(), 4)]).unwrap();
        die_with_parent(&mut command);
        let mut child = command.spawn().unwrap();
        drop(command);
        to_write.write_all(b"through").unwrap();
        drop(to_write);
        let mut text = String::new();
        answer.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(child.wait().unwrap().success());

        let (end, _other) = io::pipe().unwrap();
        let mut command = Command::new("/nowhere/at/all");
        map_fds(&mut command, vec![(end.into(), 3)]).unwrap();
        assert_eq!(command.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_not_mapped_is_closed_whatever_its_flags() {
        let (leak, _end) = io::pipe().unwrap();
        // A descriptor as systemd hands it over: without CLOEXEC.
        fcntl(&leak, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("[ -e /proc/self/fd/{} ] && echo leaked || echo closed", leak.as_raw_fd())]);
        map_fds(&mut command, Vec::new()).unwrap();
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "closed\n");
    }
}
