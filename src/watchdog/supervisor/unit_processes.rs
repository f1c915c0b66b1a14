//! The main processes of the units: found by control group, their end seen through pidfds.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::Signal;
use tokio::sync::mpsc;

use super::cgroup::{MainProcess, UnitCgroups};
use crate::watchdog::evidence::ProcessScope;
use crate::watchdog::plan::{KillSignal, Part};
use crate::{log, sys, units};

/// The unit of a part.
pub(super) fn unit_of(part: &Part) -> String {
    match part {
        Part::Dispatcher => units::DISPATCHER.to_owned(),
        // A set of units has no stand-ins.
        Part::Worker(id) | Part::StandIn(id) => units::worker_service(id),
    }
}

/// The known main processes.
pub(super) struct UnitProcesses {
    cgroups: UnitCgroups,
    processes: BTreeMap<Part, (u32, OwnedFd)>,
    exit_sender: mpsc::UnboundedSender<(Part, u32)>,
    exits: mpsc::UnboundedReceiver<(Part, u32)>,
}

impl UnitProcesses {
    /// No process is known yet.
    pub(super) fn new(cgroups: UnitCgroups) -> Self {
        let (exit_sender, exits) = mpsc::unbounded_channel();
        Self { cgroups, processes: BTreeMap::new(), exit_sender, exits }
    }

    /// Searches for the main process of a part, watches it, and returns its pid.
    pub(super) fn find(&mut self, part: &Part) -> Option<u32> {
        let MainProcess { pid, pidfd } = self.cgroups.main_process(&unit_of(part))?;
        let end = pidfd.try_clone().and_then(sys::when_readable);
        let (exits, of) = (self.exit_sender.clone(), part.clone());
        tokio::task::spawn_local(async move {
            if let Ok(end) = end {
                let _ = end.readable().await;
            }
            let _ = exits.send((of, pid)); // fails only while the watchdog itself ends
        });
        self.processes.insert(part.clone(), (pid, pidfd));
        Some(pid)
    }

    /// Waits for the next process that ends.
    pub(super) async fn next_exit(&mut self) -> Option<(Part, u32)> {
        self.exits.recv().await
    }

    /// Forgets process `pid` of a part. False if the part is not that process.
    pub(super) fn remove(&mut self, part: &Part, pid: u32) -> bool {
        let is_current = self.pid(part) == Some(pid);
        if is_current {
            self.processes.remove(part);
        }
        is_current
    }

    /// Forgets the parts that `keep` does not select.
    pub(super) fn retain(&mut self, keep: impl Fn(&Part) -> bool) {
        self.processes.retain(|part, _| keep(part));
    }

    /// The pid of a part.
    pub(super) fn pid(&self, part: &Part) -> Option<u32> {
        self.processes.get(part).map(|(pid, _)| *pid)
    }

    /// The pid and pidfd of a part.
    pub(super) fn process(&self, part: &Part) -> Option<(u32, BorrowedFd<'_>)> {
        self.processes.get(part).map(|(pid, pidfd)| (*pid, pidfd.as_fd()))
    }

    /// Where the processes that a part has started can be found.
    pub(super) fn scope(&self, part: &Part) -> ProcessScope {
        ProcessScope::Unit(self.cgroups.clone(), unit_of(part))
    }

    /// Sends SIGABRT to a part, or SIGKILL to its whole unit.
    pub(super) fn kill(&self, part: &Part, signal: KillSignal) {
        let Some((_, pidfd)) = self.process(part) else { return };
        match signal {
            KillSignal::Abort => {
                for signal in [Signal::SIGABRT, Signal::SIGCONT] {
                    if let Err(error) = sys::pidfd_send_signal(pidfd, signal)
                        && error.raw_os_error() != Some(nix::libc::ESRCH)
                    {
                        tracing::error!(%part, event = %log::Event::ProcessSurvived,
                            "cannot kill {part}: {error} (the watchdog needs CAP_KILL)");
                    }
                }
            }
            KillSignal::Kill => self.cgroups.kill(&unit_of(part)),
        }
    }
}
