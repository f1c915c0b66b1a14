//! Signals as ordinary events: the handler writes one byte, a loop reads it.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{Pid, getppid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Stop signals that come within this time are one: who stops us may signal our process and our group (timeout(1)), and
/// of a parent that dies each thread tells us (`PR_SET_PDEATHSIG`, prctl(2)).
pub const STOP_DEBOUNCE: Duration = Duration::from_millis(200);

/// Whoever has started this process.
#[derive(Debug)]
pub struct ParentWatch(Option<Pid>);

impl ParentWatch {
    /// The one it has now.
    pub fn now() -> Self {
        Self(Some(getppid()))
    }

    /// Whether it has died; `true` once only.
    pub fn has_just_died(&mut self) -> bool {
        self.0.take_if(|pid| *pid != getppid()).is_some()
    }
}

/// One signal, or several that mean the same.
#[derive(Debug)]
pub struct Signal {
    events: UnixStream,
    came: SignalFlag,
}

/// Whether a signal has ever come: known at once, also before the loop has read of it.
#[derive(Clone, Debug, Default)]
pub struct SignalFlag(Arc<AtomicBool>);

impl SignalFlag {
    /// Whether it has.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Signal {
    /// SIGTERM and, from a terminal, SIGINT: stop.
    pub fn stop() -> io::Result<Self> {
        Self::on(&[SIGTERM, SIGINT])
    }

    /// SIGHUP: read the configuration again. One that came before, held back by [`BlockSighup`], comes now.
    pub fn reload() -> io::Result<Self> {
        let signal = Self::on(&[SIGHUP])?;
        only_reload().thread_unblock()?;
        Ok(signal)
    }

    fn on(signals: &[i32]) -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let came = SignalFlag::default();
        for signal in signals {
            signal_hook::flag::register(*signal, came.0.clone())?;
            signal_hook::low_level::pipe::register(*signal, write.try_clone()?)?;
        }
        Ok(Self { events: read, came })
    }

    /// A view of it that can be shared.
    pub fn came(&self) -> SignalFlag {
        self.came.clone()
    }

    /// How often it has come since the last call.
    pub fn take(&self) -> usize {
        let mut bytes = [0; 64];
        (&self.events).read(&mut bytes).unwrap_or(0)
    }

    /// The same as a stream for a runtime.
    pub fn into_async(self) -> io::Result<tokio::net::UnixStream> {
        tokio::net::UnixStream::from_std(self.events)
    }
}

/// While it exists, SIGHUP waits, also across fork(2) and execve(2): a process that has not yet said what to do
/// on it would die of it.
#[derive(Debug)]
pub struct BlockSighup(SigSet);

impl BlockSighup {
    /// From now on, for this thread and what it starts.
    pub fn new() -> io::Result<Self> {
        Ok(Self(only_reload().thread_swap_mask(SigmaskHow::SIG_BLOCK)?))
    }
}

impl Drop for BlockSighup {
    fn drop(&mut self) {
        let _ = self.0.thread_set_mask(); // a mask that was in force is a valid one
    }
}

fn only_reload() -> SigSet {
    SigSet::from(nix::sys::signal::Signal::SIGHUP)
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}
