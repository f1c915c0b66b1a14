//! How the two ends of a measured exchange wait for each other.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::Pid;

use crate::cli::error::{CommandError, failed, interrupted};
use crate::doorbell::Doorbell;
use crate::exchange::Word;
use crate::signals::Signal;

/// How the two ends wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum WaitMode {
    /// Both ends sleep on the doorbells.
    Sleep,
    /// Both ends poll the slot, each on its own core.
    Spin,
    /// Doorbells without a slot: the baseline of sleeping.
    BarePipes,
    /// One word for each direction without a slot, each end on its own core: the baseline of spinning.
    BareWords,
}

impl WaitMode {
    /// The name that is printed.
    pub(super) fn label(self) -> &'static str {
        match self {
            WaitMode::Sleep => "exchange, both ends asleep",
            WaitMode::Spin => "exchange, both ends spinning",
            WaitMode::BarePipes => "bare named pipes and epoll",
            WaitMode::BareWords => "one bare word each, spinning",
        }
    }

    /// Whether both ends spin, so that no doorbell is rung.
    pub(super) fn spins(self) -> bool {
        matches!(self, WaitMode::Spin | WaitMode::BareWords)
    }
}

/// The words of [`WaitMode::BareWords`], to the peer and back: one in each role's line, unused by the benchmark
/// otherwise.
pub(super) const BARE_WORDS: (Word, Word) = (Word::DISPATCHER_LAST_START, Word::WORKER_LAST_START);

/// How long one end waits for the other before it fails.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

fn peer_silent() -> CommandError {
    failed("the other end does not answer")
}

fn check_stop(stop: Option<&Signal>) -> Result<(), CommandError> {
    if stop.map_or(0, Signal::take_count) == 0 { Ok(()) } else { Err(interrupted()) }
}

/// A named pipe without a slot: epoll_wait(2), then read(2).
pub(super) struct BarePipe<'a> {
    doorbell: &'a Doorbell,
    epoll: Epoll,
}

impl<'a> BarePipe<'a> {
    /// Registers the pipe in its own epoll.
    pub(super) fn new(doorbell: &'a Doorbell) -> Result<Self, CommandError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        epoll.add(doorbell, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(failed)?;
        Ok(Self { doorbell, epoll })
    }

    /// Waits for a byte and reads it.
    pub(super) fn read(&self, stop: Option<&Signal>) -> Result<(), CommandError> {
        let timeout = EpollTimeout::try_from(PEER_TIMEOUT).unwrap_or(EpollTimeout::MAX);
        loop {
            match self.epoll.wait(&mut [EpollEvent::empty()], timeout) {
                Ok(0) => return Err(peer_silent()),
                Ok(_) => return nix::unistd::read(self.doorbell, &mut [0; 1]).map(drop).map_err(failed),
                Err(Errno::EINTR) => check_stop(stop)?,
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// Sleeps until the doorbell rings or this end is stopped. The peer has no `stop`: its parent kills it.
pub(super) fn sleep_until_rung(doorbell: &Doorbell, stop: Option<&Signal>) -> Result<(), CommandError> {
    loop {
        if doorbell.clear() {
            return Ok(());
        }
        check_stop(stop)?;
        let doorbell = PollFd::new(doorbell.as_fd(), PollFlags::POLLIN);
        let stop = stop.map(|stop| PollFd::new(stop.as_fd(), PollFlags::POLLIN));
        let mut fds: Vec<_> = std::iter::once(doorbell).chain(stop).collect();
        let timeout = PollTimeout::try_from(PEER_TIMEOUT).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(peer_silent()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Spins until `done` or this end is stopped.
pub(super) fn spin_until(mut done: impl FnMut() -> bool, stop: Option<&Signal>) -> Result<(), CommandError> {
    // Bounded by a count: reading the clock in each iteration would dominate the measurement.
    let mut iterations = 0u32;
    while !done() {
        std::hint::spin_loop();
        iterations = iterations.wrapping_add(1);
        if iterations.is_multiple_of(1 << 20) {
            check_stop(stop)?;
        }
        if iterations == 0 {
            return Err(peer_silent());
        }
    }
    Ok(())
}

/// Pins a spinning end (0 or 1) to its own core, where there are two. Returns the affinity before.
pub(super) fn pin_to_core(mode: WaitMode, end: usize) -> Option<CpuSet> {
    if !mode.spins() {
        return None;
    }
    let before = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let core = (0..CpuSet::count()).filter(|core| before.is_set(*core).unwrap_or(false)).nth(end)?;
    let mut one = CpuSet::new();
    one.set(core).ok()?;
    sched_setaffinity(Pid::from_raw(0), &one).ok()?;
    Some(before)
}
