//! Signals as ordinary events: the handler writes one byte to a socket, and a loop reads it.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{Pid, getppid};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// Stop signals within this time count as one: timeout(1) signals both the process and its group, and a dying parent
/// sends one signal per thread (`PR_SET_PDEATHSIG`, prctl(2)).
pub(crate) const STOP_DEBOUNCE: Duration = Duration::from_millis(200);

/// Detects the death of the parent process.
#[derive(Debug)]
pub(crate) struct ParentWatch(Option<Pid>);

impl ParentWatch {
    /// Watches the current parent.
    pub(crate) fn now() -> Self {
        Self(Some(getppid()))
    }

    /// Whether the parent has died; `true` only once.
    pub(crate) fn has_just_died(&mut self) -> bool {
        self.0.take_if(|pid| *pid != getppid()).is_some()
    }
}

/// One signal, or several with the same meaning.
#[derive(Debug)]
pub(crate) struct Signal {
    events: UnixStream,
    flag: SignalFlag,
}

/// Whether a signal has ever arrived. The handler sets it, before the loop reads the event.
#[derive(Clone, Debug, Default)]
pub(crate) struct SignalFlag(Arc<AtomicBool>);

impl SignalFlag {
    /// Whether the signal has arrived.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Signal {
    /// Stop: SIGTERM and, from a terminal, SIGINT.
    pub(crate) fn stop() -> io::Result<Self> {
        Self::on(&[SIGTERM, SIGINT])
    }

    /// Stop at once: SIGQUIT.
    pub(crate) fn stop_now() -> io::Result<Self> {
        Self::on(&[SIGQUIT])
    }

    /// The end of a child: SIGCHLD.
    pub(crate) fn child() -> io::Result<Self> {
        Self::on(&[SIGCHLD])
    }

    /// Reload: SIGHUP. Also delivers a signal that [`BlockSighup`] has held back.
    pub(crate) fn reload() -> io::Result<Self> {
        Self::on(&[SIGHUP])
    }

    /// Catches the signals and unblocks them in this thread: a program that calls the library may have blocked them.
    fn on(signals: &[i32]) -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let flag = SignalFlag::default();
        for signal in signals {
            signal_hook::flag::register(*signal, flag.0.clone())?;
            signal_hook::low_level::pipe::register(*signal, write.try_clone()?)?;
        }
        let caught = signals.iter().filter_map(|signal| nix::sys::signal::Signal::try_from(*signal).ok());
        SigSet::from_iter(caught).thread_unblock()?;
        Ok(Self { events: read, flag })
    }

    /// A flag that other tasks and threads can read.
    pub(crate) fn flag(&self) -> SignalFlag {
        self.flag.clone()
    }

    /// The number of signals since the last call.
    pub(crate) fn take_count(&self) -> usize {
        let mut bytes = [0; 64];
        (&self.events).read(&mut bytes).unwrap_or(0)
    }

    /// The same as a stream with one byte for each signal.
    pub(crate) fn into_async(self) -> io::Result<tokio::net::UnixStream> {
        tokio::net::UnixStream::from_std(self.events)
    }
}

/// Blocks SIGHUP while it exists, also across fork(2) and execve(2): before a process installs a handler, SIGHUP would
/// kill it.
#[derive(Debug)]
pub(crate) struct BlockSighup(SigSet);

impl BlockSighup {
    /// For this thread and the processes that it starts.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(sighup().thread_swap_mask(SigmaskHow::SIG_BLOCK)?))
    }
}

impl Drop for BlockSighup {
    fn drop(&mut self) {
        let _ = self.0.thread_set_mask(); // restores a mask that was valid
    }
}

fn sighup() -> SigSet {
    SigSet::from(nix::sys::signal::Signal::SIGHUP)
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}
