//! The nemesis: what the injection of every fault uses.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::fault::{DrillFault, DrillPart};
use super::history::PromiseViolation;
use super::traffic::Traffic;
use crate::clock;
use crate::procfs::ProcessStat;
use crate::sync::lock;
use crate::{signals, sys};

pub(super) struct Nemesis<'a> {
    pub traffic: &'a Traffic<'a>,
    /// Processes that were stopped: continued at the end if they still exist.
    stopped: Mutex<Vec<OwnedFd>>,
    /// SIGINT or SIGTERM was received.
    pub interrupted: signals::SignalFlag,
    /// What was found to be wrong during the drill.
    violations: Mutex<Vec<PromiseViolation>>,
}

impl<'a> Nemesis<'a> {
    pub(super) fn new(traffic: &'a Traffic<'a>, interrupted: signals::SignalFlag) -> Self {
        Self { traffic, stopped: Mutex::default(), interrupted, violations: Mutex::default() }
    }

    pub(super) fn report_violation(&self, promise: &'static str, what: String) {
        lock(&self.violations).push(PromiseViolation::new(promise, what));
    }

    pub(super) fn take_violations(&self) -> Vec<PromiseViolation> {
        std::mem::take(&mut *lock(&self.violations))
    }

    /// Sleeps until `time` has passed or the drill is interrupted.
    pub(super) fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.interrupted.is_set() {
            std::thread::sleep(end.saturating_duration_since(Instant::now()).min(Duration::from_millis(20)));
        }
    }

    /// A fault is being injected. Returns its index in the tracker.
    pub(super) fn injected(&self, fault: &DrillFault) -> usize {
        self.traffic.watch.tracker().fault_injected(clock::now(), fault)
    }

    /// The action of a fault is over; what follows can take as long as `settle`.
    pub(super) fn action_ended(&self, index: usize, settle: Duration) {
        self.traffic.watch.tracker().action_ended(clock::now(), index, settle);
    }

    /// The fault could not be injected.
    pub(super) fn abandon(&self, index: usize) {
        self.traffic.watch.tracker().withdraw(clock::now(), index, "it could not be injected");
    }

    /// Sends a signal that ends the part. A process that it stops is continued at the end of the drill.
    pub(super) fn end(&self, process: OwnedFd, signal: Signal) -> Result<(), String> {
        send(&process, signal)?;
        if signal == Signal::SIGSTOP {
            let mut stopped = lock(&self.stopped);
            stopped.retain(|process| !has_ended(process));
            stopped.push(process);
        }
        Ok(())
    }

    /// The process of a part. The descriptor cannot refer to another process that got the same pid.
    pub(super) fn process(&self, part: DrillPart) -> Result<OwnedFd, String> {
        let id = self.traffic.watch.process(part).ok_or("it has no process")?;
        // The start time is compared only after the descriptor was opened.
        let process =
            sys::pidfd_open(Pid::from_raw(id.pid as i32)).map_err(|error| format!("pid {}: {error}", id.pid))?;
        let found = ProcessStat::of_id(id).filter(|found| !found.is_zombie());
        found.is_some().then_some(process).ok_or_else(|| "its process has just ended".into())
    }
}

impl Drop for Nemesis<'_> {
    fn drop(&mut self) {
        for process in lock(&self.stopped).drain(..) {
            let _ = send(&process, Signal::SIGCONT); // most have been replaced long ago
        }
    }
}

pub(super) fn send(process: &OwnedFd, signal: Signal) -> Result<(), String> {
    sys::pidfd_send_signal(process.as_fd(), signal).map_err(|error| format!("{signal}: {error}"))
}

/// A pidfd is readable once its process has ended (pidfd_open(2)).
pub(super) fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
