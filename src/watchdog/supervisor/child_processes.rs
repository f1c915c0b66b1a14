//! The child processes of the watchdog: started, signalled and reaped.
//!
//! To a part the watchdog behaves like systemd: it passes sockets as `LISTEN_FDS` and receives READY=1 on `NOTIFY_SOCKET`.
//! When the watchdog dies, the kernel sends SIGTERM to its children (prctl(2), PR_SET_PDEATHSIG): they drain and exit.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::mpsc;

use crate::config::ProcessLimits;
use crate::held_file::HeldFile;
use crate::procfs::{self, ProcessStat};
use crate::signals::BlockSighup;
use crate::watchdog::part_log::log_killed;
use crate::watchdog::plan::{KillSignal, Part, PartSignal};
use crate::watchdog::restart_stats::RestartCause;
use crate::{ipc, log, process_tree, sys};

struct PartProcess {
    child: Child,
    pidfd: OwnedFd,
}

/// The running children by part.
pub(super) struct ChildProcesses {
    processes: BTreeMap<Part, PartProcess>,
    /// The pids of all parts.
    pids: Rc<RefCell<BTreeSet<u32>>>,
    /// Where children read the configuration in force.
    config: HeldFile,
    exits: mpsc::UnboundedSender<(Part, u32)>,
}

/// What a new child gets.
pub(super) struct ChildSetup {
    /// Sockets and stored connections by name.
    pub sockets: Vec<(String, Arc<OwnedFd>)>,
    /// References to a worker's segment and doorbells, as [`ipc::PASSED_TO_WORKER`] describes them.
    pub objects: Vec<OwnedFd>,
    pub limits: ProcessLimits,
    pub notify_socket: PathBuf,
}

impl ChildProcesses {
    /// `exits` receives each child that can be reaped.
    pub(super) fn new(config: HeldFile, exits: mpsc::UnboundedSender<(Part, u32)>) -> Self {
        Self { processes: BTreeMap::new(), pids: Rc::default(), config, exits }
    }

    /// The file from which children read the configuration in force.
    pub(super) fn config(&self) -> &HeldFile {
        &self.config
    }

    /// Replaces it, also for the children that know its descriptor alone.
    pub(super) fn set_config(&mut self, config: HeldFile) {
        self.config.replace(config);
    }

    /// Starts a part and returns its pid.
    ///
    /// The child first runs `patou launch`, which knows its pid and so can set `LISTEN_PID`. It applies the resource
    /// limits to itself and then executes the part.
    pub(super) fn start(&mut self, part: &Part, setup: ChildSetup) -> io::Result<u32> {
        let ChildSetup { sockets, objects, limits, notify_socket } = setup;
        let parent = std::process::id().to_string();
        let count = sockets.len();
        let objects: Vec<_> = objects.into_iter().zip(3 + count as i32..).collect();
        let numbers: Vec<_> = objects.iter().map(|(_, number)| number.to_string()).collect();
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("patou")
            .args(["launch", "--parent", &parent])
            .args(limits.open_files.map(|(soft, hard)| format!("--open-files={soft}:{hard}")))
            .args(limits.data.map(|bytes| format!("--data={bytes}")))
            .arg("--")
            .env("PATOU_CONFIG", self.config.reachable_path())
            .env("NOTIFY_SOCKET", notify_socket)
            .env(ipc::RUNTIME_DIR, self.config.path().parent().unwrap_or(Path::new("")))
            .env(ipc::WATCHDOG, ipc::watchdog_mark(procfs::this_process()))
            .env(ipc::PASSED_TO_WORKER, numbers.join(":"))
            .env("LISTEN_FDS", count.to_string())
            // Those of the program that has started this one: a worker of another set, or systemd.
            .env_remove("PATOU_BIN")
            .env_remove("PATOU_WORKER")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            // Ctrl-C at the terminal goes to this process alone, which stops the parts in order.
            .process_group(0);
        match part {
            Part::Dispatcher => command.arg("dispatcher"),
            Part::Worker(id) => command.args(["worker", &id.instance()]),
            Part::StandIn(id) => command.args(["stand-in", &id.instance()]),
        };
        let names = if objects.is_empty() {
            sys::pass_fds(&mut command, sockets)?
        } else {
            let (names, fds): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
            let fds: Vec<_> = fds.iter().map(|fd| fd.try_clone()).collect::<Result<_, _>>()?;
            sys::map_fds(&mut command, fds.into_iter().zip(3..).chain(objects).collect())?;
            names
        };
        command.env("LISTEN_FDNAMES", names.join(":"));
        // A SIGHUP that arrives before the child handles it must wait.
        let sighup_blocked = BlockSighup::new()?;
        let mut child = command.spawn()?;
        drop(sighup_blocked);
        drop(command);
        let pid = child.id();
        let opened = sys::pidfd_open(Pid::from_raw(pid as i32))
            .and_then(|pidfd| Ok((pidfd.try_clone().and_then(sys::when_readable)?, pidfd)));
        let (end, pidfd) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // The end of this child would go unnoticed.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        self.pids.borrow_mut().insert(pid);
        let (exits, of) = (self.exits.clone(), part.clone());
        tokio::task::spawn_local(async move {
            let _ = end.readable().await;
            let _ = exits.send((of, pid)); // fails only while the watchdog itself ends
        });
        self.processes.insert(part.clone(), PartProcess { child, pidfd });
        Ok(pid)
    }

    /// Reaps a part that has ended, and returns how it ended. `None` if the part is no longer process `pid`.
    pub(super) fn reap(&mut self, part: &Part, pid: u32) -> Option<(String, RestartCause)> {
        let process = self.processes.get_mut(part).filter(|process| process.child.id() == pid)?;
        let status = process.child.try_wait();
        self.pids.borrow_mut().remove(&pid);
        self.processes.remove(part);
        Some(match status {
            Ok(Some(status)) => describe(status),
            Ok(None) => ("it ended, but cannot be reaped".into(), RestartCause::Ended),
            Err(error) => (format!("it ended: {error}"), RestartCause::Ended),
        })
    }

    /// Signals a part, if it has a process.
    pub(super) fn signal(&self, part: &Part, signal: PartSignal) {
        self.send(
            part,
            match signal {
                PartSignal::Terminate => &[Signal::SIGTERM, Signal::SIGCONT],
                PartSignal::Reload => &[Signal::SIGHUP],
            },
        );
    }

    /// Ends a part, if it has a process.
    pub(super) fn kill(&self, part: &Part, signal: KillSignal) {
        self.send(
            part,
            match signal {
                KillSignal::Abort => &[Signal::SIGABRT, Signal::SIGCONT],
                KillSignal::Kill => &[Signal::SIGKILL],
            },
        );
    }

    fn send(&self, part: &Part, signals: &[Signal]) {
        let Some(process) = self.processes.get(part) else { return };
        for signal in signals {
            // ESRCH: it has just ended, which is a separate event.
            let _ = sys::pidfd_send_signal(process.pidfd.as_fd(), *signal);
        }
    }

    /// The part that process `pid` is.
    pub(super) fn part(&self, pid: u32) -> Option<&Part> {
        self.processes.iter().find(|(_, process)| process.child.id() == pid).map(|(part, _)| part)
    }

    /// The pid of a part.
    pub(super) fn pid(&self, part: &Part) -> Option<u32> {
        self.processes.get(part).map(|process| process.child.id())
    }

    /// The pid and pidfd of a part.
    pub(super) fn process(&self, part: &Part) -> Option<(u32, BorrowedFd<'_>)> {
        self.processes.get(part).map(|process| (process.child.id(), process.pidfd.as_fd()))
    }

    /// Kills, in the background, the processes that ended parts have left behind. They have become children of this
    /// process (PR_SET_CHILD_SUBREAPER), which has no others: see `cli/init.rs`.
    pub(super) fn kill_orphans(&self) {
        let parts = self.pids.clone();
        tokio::task::spawn_local(async move {
            let is_orphan = |process: &ProcessStat| !parts.borrow().contains(&process.id().pid);
            if let Err(error) = process_tree::kill(is_orphan, log_killed).await {
                tracing::error!(event = %log::Event::ProcessSurvived,
                    "cannot kill the processes that a worker has left behind: {error}");
            }
        });
    }

    /// Reaps the processes that ended parts have left behind and that have ended by themselves.
    pub(super) fn reap_orphans(&self) {
        process_tree::reap_orphans(|pid| self.pids.borrow().contains(&(pid.as_raw() as u32)));
    }
}

fn describe(status: ExitStatus) -> (String, RestartCause) {
    match (status.code(), status.signal()) {
        (Some(code), _) => (format!("exit code {code}"), RestartCause::Exit),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => (format!("killed by {signal}"), RestartCause::Signal),
            Err(_) => (format!("killed by signal {signal}"), RestartCause::Signal),
        },
        (None, None) => (status.to_string(), RestartCause::Ended),
    }
}
