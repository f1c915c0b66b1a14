//! The few system calls without a safe wrapper.
//!
//! Every `unsafe` block states why it is needed and why it is sound. The functions decide nothing.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, getpid, getppid};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};

/// Passes the descriptors of `map` to the child of `command` under the numbers beside them, which must be above 2.
///
/// Every other descriptor above 2 is closed when the program starts, whatever its flags. The originals are closed in
/// this process when `command` is dropped.
///
/// # Errors
/// When this process has no free descriptor.
pub(crate) fn map_fds(command: &mut Command, map: Vec<(OwnedFd, RawFd)>) -> io::Result<()> {
    let above = map.iter().map(|(_, target)| target + 1).max().unwrap_or(3);
    let mut moved = Vec::with_capacity(map.len());
    // The sources are moved above every target, so that no dup2 below overwrites a later source.
    for (source, target) in map {
        debug_assert!(target > 2);
        moved.push((duplicate_from(source.as_raw_fd(), above)?, target));
    }
    // The standard library reports a failed exec through a pipe that it makes at spawn. That pipe could get the number
    // of a target that is free now, and dup2 would close it: keep the targets occupied.
    let mut occupied = Vec::new();
    if let Some((source, _)) = moved.first() {
        for (_, target) in &moved {
            let filler = duplicate_from(source.as_raw_fd(), *target)?;
            if filler.as_raw_fd() == *target {
                occupied.push(filler);
            }
        }
    }
    let duplicate_all = move || {
        let _keep = &occupied;
        prepare_exec();
        for (source, target) in &moved {
            // SAFETY: needed because nix's dup2 requires an OwnedFd for the target. Both are plain numbers; the source
            // is open (owned by this closure) and differs from the target (it is above all of them), so dup2 creates
            // the target without CLOEXEC.
            Errno::result(unsafe { libc::dup2(source.as_raw_fd(), *target) })?;
        }
        Ok(())
    };
    // SAFETY: needed because code between fork and exec must be async-signal-safe. The closure only makes system calls:
    // it neither allocates nor locks.
    unsafe { command.pre_exec(duplicate_all) };
    Ok(())
}

/// Passes descriptors to the child of `command` under the numbers from 3 on, in ascending order of their numbers here.
/// Returns them in that order. Unlike [`map_fds`], this process needs no duplicates of them: there may be many.
///
/// Every other descriptor above 2 is closed when the program starts, as far as [`map_fds`] says.
///
/// # Errors
/// When this process has no free descriptor.
pub(crate) fn pass_fds<T>(command: &mut Command, mut fds: Vec<(T, Arc<OwnedFd>)>) -> io::Result<Vec<T>> {
    for (_, fd) in fds.iter_mut().filter(|(_, fd)| fd.as_raw_fd() < 3) {
        *fd = Arc::new(duplicate_from(fd.as_raw_fd(), 3)?);
    }
    fds.sort_by_key(|(_, fd)| fd.as_raw_fd());
    let (labels, fds): (Vec<T>, Vec<Arc<OwnedFd>>) = fds.into_iter().unzip();
    // As in `map_fds`: the pipe of the standard library must not get the number of a target.
    let mut occupied = Vec::new();
    if let Some(first) = fds.first() {
        for (_, target) in fds.iter().zip(3..) {
            let filler = duplicate_from(first.as_raw_fd(), target)?;
            if filler.as_raw_fd() == target {
                occupied.push(filler);
            } else if filler.as_raw_fd() >= 3 + fds.len() as RawFd {
                break; // every target is occupied
            }
        }
    }
    let renumber = move || {
        let _keep = &occupied;
        prepare_exec();
        for (source, target) in fds.iter().zip(3..) {
            let source = source.as_raw_fd();
            // The sources ascend from 3 or more, so none that follows has the number of this target or a lower one.
            // SAFETY: needed because nix's dup2 requires an OwnedFd for the target. Both calls take plain numbers; the
            // source is open (owned by this closure). dup2 changes nothing if the numbers are equal, so the flag is
            // cleared separately.
            Errno::result(unsafe {
                if source == target { libc::fcntl(source, libc::F_SETFD, 0) } else { libc::dup2(source, target) }
            })?;
        }
        Ok(())
    };
    // SAFETY: needed because code between fork and exec must be async-signal-safe. The closure only makes system calls:
    // it neither allocates nor locks.
    unsafe { command.pre_exec(renumber) };
    Ok(labels)
}

/// In a child, before it executes its program: it gets no descriptor but those that follow, and the terminal's stop signal
/// and the umask as this process has inherited them. Async-signal-safe.
fn prepare_exec() {
    // The standard library's pipe stays open until then. Where it fails, the descriptors' flags apply, which
    // `close_on_exec_from` has set for inherited ones.
    close_range_on_exec(3);
    restore_terminal_output_stop();
    restore_umask();
}

/// Duplicates `fd` to the lowest free descriptor from `lowest` on, closed on exec.
fn duplicate_from(fd: RawFd, lowest: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: needed to pass a number to nix. The callers own `fd` and keep it open during this call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let copy = fcntl(borrowed, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: needed because fcntl returns a number. It is new, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Makes the kernel kill the child of `command` (SIGKILL) when its parent dies.
///
/// For the kernel the parent is the *thread* that spawned the child, not the process: spawn from a thread that lives at
/// least as long as the child, that is from a runtime's thread and never from its blocking pool.
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    let bind = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // If the parent died before the call, no signal arrives.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: needed because code between fork and exec must be async-signal-safe. The closure makes two system calls
    // and neither allocates nor locks.
    unsafe { command.pre_exec(bind) };
}

/// A descriptor for process `pid`, closed on exec; readable once the process has ended.
///
/// # Errors
/// `ESRCH` when there is no such process; `EMFILE` when this process has no free descriptor.
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: needed because nix has no pidfd_open. It takes no pointers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0u32) })?;
    // SAFETY: the kernel has just created this descriptor for this call, and a descriptor always fits a RawFd.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends `signal` to the process of `pidfd`, never to a later process with the same pid; `None` only checks.
///
/// # Errors
/// `ESRCH` when the process has been reaped; `EPERM` when it belongs to another user.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: impl Into<Option<Signal>>) -> io::Result<()> {
    let number = signal.into().map_or(0, |signal| signal as i32);
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: needed because nix has no pidfd_send_signal. The only pointer is null, which the call treats as kill(2)
    // would.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, no_info, 0u32) })?;
    Ok(())
}

/// The signals, beside SIGTERM, SIGINT, SIGHUP and SIGQUIT, that may come from outside and whose default action ends a
/// process. Not those that report a fault of the process itself (SIGSEGV, SIGABRT, ...).
fn stray_signals() -> impl Iterator<Item = libc::c_int> {
    let named = [
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGSTKFLT,
        libc::SIGXCPU,
        libc::SIGXFSZ,
    ];
    named.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

/// Catches these signals with a handler that does nothing, where they have their default action. Unlike ignored
/// signals, caught ones have their default action again in every program that this process executes (execve(2)).
pub(crate) fn catch_stray_signals() {
    extern "C" fn do_nothing(_: libc::c_int) {}
    for number in stray_signals() {
        replace_action(number, libc::SIG_DFL, do_nothing as *const () as libc::sighandler_t);
    }
}

/// Ignores SIGTTOU, unless this process handles it. Parts are background processes of the terminal that `patou run` was
/// started in: with `stty tostop` their first log line would stop them. [`map_fds`] undoes it for the processes they start.
pub(crate) fn ignore_terminal_output_stop() {
    replace_action(libc::SIGTTOU, libc::SIG_DFL, libc::SIG_IGN);
}

/// The opposite of [`ignore_terminal_output_stop`], before another program is executed in place of this one.
pub(crate) fn restore_terminal_output_stop() {
    replace_action(libc::SIGTTOU, libc::SIG_IGN, libc::SIG_DFL);
}

/// Gives every signal that is ignored its default action, except SIGPIPE: the standard library ignores it in this
/// process, and sets the default action in those that it starts.
pub(crate) fn stop_ignoring_signals() {
    for number in (1..=libc::SIGRTMAX()).filter(|number| *number != libc::SIGPIPE) {
        replace_action(number, libc::SIG_IGN, libc::SIG_DFL);
    }
    // Those that libc reserves and refuses to change: a parent with another libc may have ignored them. The kernel's
    // structure has at most four words; zeros are the default action.
    for number in 32..libc::SIGRTMIN() {
        let (mut old, default, mask_size) = ([0usize; 8], [0usize; 8], 8usize);
        // SAFETY: needed because libc has no other way. Both arrays are larger than the kernel's structure and outlive the
        // calls; the default action runs no handler, and replaces none: only an ignored signal is changed.
        unsafe {
            let none = std::ptr::null::<usize>();
            libc::syscall(libc::SYS_rt_sigaction, number, none, old.as_mut_ptr(), mask_size);
            if old[0] == libc::SIG_IGN {
                libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), none, mask_size);
            }
        }
    }
}

/// Sets the action of a signal to `new` if it is `old`. Does nothing for signals that libc reserves.
fn replace_action(number: libc::c_int, old: libc::sighandler_t, new: libc::sighandler_t) {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: needed because nix knows no real-time signals. Null leaves the action as it is, and the other pointer is to
    // a complete structure, which is valid as zeros and outlives the call.
    let mut action = unsafe {
        if libc::sigaction(number, std::ptr::null(), action.as_mut_ptr()) != 0 {
            return;
        }
        action.assume_init()
    };
    if action.sa_sigaction == old {
        action.sa_sigaction = new;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: needed as above. `new` is SIG_DFL, SIG_IGN or a handler that does nothing, which is async-signal-safe.
        unsafe { libc::sigaction(number, &raw const action, std::ptr::null_mut()) };
    }
}

/// Takes one of these blocked signals if one is pending.
pub(crate) fn take_pending(signals: &SigSet) -> bool {
    let no_time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: needed because nix has no sigtimedwait. Both structures outlive the call; null asks for no details.
    unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), &raw const no_time) > 0 }
}

/// The umask that this process has inherited; [`UNCHANGED`] until [`tighten_umask`].
static INHERITED_UMASK: AtomicU32 = AtomicU32::new(UNCHANGED);
const UNCHANGED: u32 = u32::MAX;

/// Takes write permission for other users from every file that this process creates, and gives its owner all of them,
/// whatever the inherited umask. [`map_fds`] undoes it for other users in the processes that this one starts.
pub(crate) fn tighten_umask() {
    let others = Mode::S_IWGRP | Mode::S_IWOTH;
    let inherited = umask(others).difference(Mode::S_IRWXU);
    INHERITED_UMASK.store(inherited.bits(), Ordering::Relaxed);
    umask(inherited | others);
}

/// Undoes [`tighten_umask`]. Async-signal-safe.
pub(crate) fn restore_umask() {
    let inherited = INHERITED_UMASK.load(Ordering::Relaxed);
    if inherited != UNCHANGED {
        umask(Mode::from_bits_truncate(inherited));
    }
}

/// Stops the timers that a process keeps across execve(2) (setitimer(2)): their signals would arrive here.
pub(crate) fn stop_interval_timers() {
    let off = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: 0 },
    };
    for timer in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        // SAFETY: needed because nix has no setitimer. The structure is complete and outlives the call; null asks for no
        // old value.
        unsafe { libc::setitimer(timer, &raw const off, std::ptr::null_mut()) };
    }
}

/// Has every open descriptor from `first` on closed in programs that this process executes.
pub(crate) fn close_on_exec_from(first: RawFd) {
    if !close_range_on_exec(first) {
        // Kernels before 5.11, or a seccomp filter.
        let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let numbers = open.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
        for number in numbers.filter(|number| *number >= first) {
            // SAFETY: needed because nix requires an owner. F_SETFD takes no pointer, changes a flag of the descriptor
            // alone, and fails for a number that is not open.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// The same by one system call. False if the kernel lacks it or a filter denies it.
fn close_range_on_exec(first: RawFd) -> bool {
    // SAFETY: needed because nix has no close_range. It takes no pointers; with CLOEXEC it closes nothing before exec.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) == 0 }
}

/// Duplicates descriptor `number` of the process of `pidfd`: both refer to one open file description.
///
/// # Errors
/// `EPERM` when this process may not trace the other; `EBADF` when the descriptor is not open.
pub(crate) fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: u32) -> io::Result<OwnedFd> {
    // SAFETY: needed because nix has no pidfd_getfd. It takes no pointers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0u32) })?;
    // SAFETY: the kernel has just created this descriptor for this call, and a descriptor always fits a RawFd.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The soft and hard limit of open files of process `pid`, and sets `new` ones.
///
/// # Errors
/// `EPERM` for processes of other users; `ESRCH` when there is no such process.
pub(crate) fn descriptor_limit(pid: u32, new: Option<(u64, u64)>) -> io::Result<(u64, u64)> {
    let new = new.map(|(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard });
    let pointer = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: needed because nix has no prlimit. Both structures outlive the call; the first may be null.
    Errno::result(unsafe { libc::prlimit(pid as libc::pid_t, libc::RLIMIT_NOFILE, pointer, &raw mut old) })?;
    Ok((old.rlim_cur, old.rlim_max))
}

/// While it exists, SIGTERM and SIGINT have their default action: for the moment before execve(2), which drops the flags
/// that a handler has set.
#[derive(Debug)]
pub(crate) struct DefaultSignalActions(Vec<(Signal, SigAction)>);

impl DefaultSignalActions {
    /// Sets the default actions for all threads until the value is dropped.
    ///
    /// # Errors
    /// Not in practice: both signals may have any action.
    pub(crate) fn set() -> io::Result<Self> {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        let mut before = Self(Vec::new());
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            // SAFETY: needed because a handler must be async-signal-safe. The default action runs no handler.
            before.0.push((signal, unsafe { sigaction(signal, &default) }?));
        }
        Ok(before)
    }
}

impl Drop for DefaultSignalActions {
    fn drop(&mut self) {
        for (signal, action) in &self.0 {
            // SAFETY: needed as above. The handler is the one that was in force before `set`: its installer knows of no
            // change, so everything it relies on is still there.
            let _ = unsafe { sigaction(*signal, action) };
        }
    }
}

/// Registers `fd` with the runtime of this thread, to wait until it is readable.
///
/// # Errors
/// When epoll cannot watch it (a regular file).
///
/// # Panics
/// Outside a tokio runtime.
pub(crate) fn when_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: needed because tokio cannot know what an `AsRawFd` returns. An OwnedFd is open, always the same descriptor,
    // and stays open while the AsyncFd owns it. No caller takes `&mut` to the inner value, which could replace it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// As [`when_readable`], for a shared descriptor and any `interest`.
///
/// # Errors
/// When epoll cannot watch it (a regular file).
///
/// # Panics
/// Outside a tokio runtime.
pub(crate) fn when_ready(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: needed as above, and sound for the same reasons. The descriptor in the Arc stays the same and open while the
    // AsyncFd holds the Arc, and no caller takes `&mut` to it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Reads available bytes of a stream into the unfilled part of `buffer` (recv(2)), which need not be initialized. Returns
/// their number; 0 at the end of the stream.
///
/// # Errors
/// `EAGAIN` when no byte is available.
pub(crate) fn recv_into(fd: BorrowedFd<'_>, buffer: &mut ReadBuf<'_>) -> nix::Result<usize> {
    // SAFETY: needed to write to uninitialized bytes. Nothing below makes an initialized byte uninitialized.
    let free = unsafe { buffer.unfilled_mut() };
    // SAFETY: needed because nix requires initialized bytes. The kernel writes at most `len` bytes from the start of
    // `free`, which is borrowed during the call, and reads none.
    let read = unsafe { libc::recv(fd.as_raw_fd(), free.as_mut_ptr().cast(), free.len(), libc::MSG_DONTWAIT) };
    let read = Errno::result(read)?.unsigned_abs();
    // SAFETY: needed to mark the bytes as initialized. The kernel has written that many.
    unsafe { buffer.assume_init(read) };
    buffer.advance(read);
    Ok(read)
}

/// The descriptors that systemd, or the watchdog in its place, passed (sd_listen_fds(3)), with their names.
///
/// They keep their numbers and get CLOEXEC. Only the first call returns them: they have one owner.
///
/// # Errors
/// When `LISTEN_FDS` or `LISTEN_PID` is not a number, or names descriptors that are not open.
pub(crate) fn listen_fds() -> io::Result<Vec<(OwnedFd, String)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let passed = sd_notify::listen_fds_with_names()?;
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    // SAFETY: needed because the protocol names descriptors by number. They are open (setting CLOEXEC on them has just
    // succeeded), were passed to this process (LISTEN_PID), and the flag above ensures that they are taken once.
    Ok(passed.map(|(fd, name)| (unsafe { OwnedFd::from_raw_fd(fd) }, name)).collect())
}

/// Duplicates of those descriptors, which stay for [`listen_fds`] or for the program that this process executes next.
///
/// # Errors
/// As [`listen_fds`].
pub(crate) fn duplicate_listen_fds() -> io::Result<Vec<(OwnedFd, String)>> {
    let mut duplicates = Vec::new();
    for (fd, name) in sd_notify::listen_fds_with_names()? {
        // SAFETY: needed because the protocol names descriptors by number. It is open, because setting CLOEXEC on it has
        // just succeeded, and this function does not close it.
        let passed = unsafe { BorrowedFd::borrow_raw(fd) };
        duplicates.push((passed.try_clone_to_owned()?, name));
        fcntl(passed, FcntlArg::F_SETFD(FdFlag::empty()))?; // the program that is executed next inherits it
    }
    Ok(duplicates)
}

/// Resets a TCP connection (connect(2) with `AF_UNSPEC`), even while other descriptors refer to it.
///
/// # Errors
/// `EINVAL` for a Unix stream socket.
pub(crate) fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: needed because nix has no address of this family. The pointer is to a complete sockaddr that outlives the
    // call, and `length` is its size.
    Errno::result(unsafe { libc::connect(fd.as_raw_fd(), &unspecified, length) })?;
    Ok(())
}

/// Accepts a connection as a non-blocking descriptor, with the address of its peer (accept(2)).
///
/// # Errors
/// `EAGAIN` when no connection is queued.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> nix::Result<(OwnedFd, Option<SockaddrStorage>)> {
    let mut address = std::mem::MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: needed because nix does not return the peer's address. The address outlives the call, and `length` is its
    // size.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length, flags) };
    let fd = Errno::result(fd)?;
    // SAFETY: needed because the kernel returns a number. It has just created this descriptor for this call.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: needed because an address may be of any family. All of it is initialized, at least with zeros, and `length`
    // is what the kernel has written of it.
    let address = unsafe { SockaddrStorage::from_raw(address.as_ptr().cast(), Some(length)) };
    Ok((fd, address))
}

/// How many sent bytes the peer has not received (SIOCOUTQ, tcp(7) and unix(7)). TCP counts what is not acknowledged,
/// with the FIN as one byte; a Unix socket the memory of what is not read.
pub(crate) fn unreceived(socket: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut queued: libc::c_int = 0;
    // SAFETY: needed because nix has no wrapper. The call writes one int, which outlives it.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
    Errno::result(done)?;
    Ok(usize::try_from(queued).unwrap_or(0))
}

/// Takes ownership of descriptors that the kernel has just created: those of a message (`SCM_RIGHTS`, unix(7)), or an
/// accepted one.
pub(crate) fn own_fds(received: Vec<RawFd>) -> impl Iterator<Item = OwnedFd> {
    // SAFETY: needed because nix returns bare numbers. The kernel has created these descriptors for this process, and the
    // callers pass each list that recvmsg or accept returned exactly once.
    received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::Stdio;

    #[test]
    fn mapped_descriptors_are_passed_and_a_missing_program_is_still_reported() {
        let (input, mut input_writer) = io::pipe().unwrap();
        let (mut output_reader, output) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "cat <&3 >&4"]);
        map_fds(&mut command, vec![(input.into(), 3), (output.into(), 4)]).unwrap();
        die_with_parent(&mut command);
        let mut child = command.spawn().unwrap();
        drop(command);
        input_writer.write_all(b"through").unwrap();
        drop(input_writer);
        let mut text = String::new();
        output_reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(child.wait().unwrap().success());

        let (reader, _writer) = io::pipe().unwrap();
        let mut command = Command::new("/nowhere/at/all");
        map_fds(&mut command, vec![(reader.into(), 3)]).unwrap();
        assert_eq!(command.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn many_descriptors_are_passed_without_duplicates_and_a_missing_program_is_reported() {
        let pipes: Vec<_> = (0..40).map(|_| io::pipe().unwrap()).collect();
        let (readers, writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
        // In an order that is not that of their numbers.
        let writers: Vec<_> =
            writers.into_iter().rev().enumerate().map(|(n, w)| (n, Arc::new(OwnedFd::from(w)))).collect();
        let mut command = Command::new("sh");
        let order = pass_fds(&mut command, writers.clone()).unwrap();
        let script: String = order.iter().zip(3..).map(|(n, fd)| format!("echo {n} >/proc/self/fd/{fd};")).collect();
        command.args(["-c", &script]);
        assert!(command.status().unwrap().success());
        drop((command, writers));
        for (n, mut reader) in readers.into_iter().rev().enumerate() {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, format!("{n}\n"));
        }
        let (reader, _writer) = io::pipe().unwrap();
        let mut command = Command::new("/nowhere/at/all");
        pass_fds(&mut command, vec![((), Arc::new(reader.into()))]).unwrap();
        assert_eq!(command.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_descriptor_that_is_not_mapped_is_closed_whatever_its_flags() {
        let (leak, _writer) = io::pipe().unwrap();
        // systemd passes descriptors without CLOEXEC.
        fcntl(&leak, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("[ -e /proc/self/fd/{} ] && echo leaked || echo closed", leak.as_raw_fd())]);
        map_fds(&mut command, Vec::new()).unwrap();
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "closed\n");
    }
}
