//! The supervisor of `patou run`: the parts are children of this process, started and signalled by it.
//!
//! To them it looks like systemd: sockets come as `LISTEN_FDS`, READY goes to `NOTIFY_SOCKET`. When this
//! process dies, the kernel sends them SIGTERM (prctl(2), PR_SET_PDEATHSIG), and they drain and stop.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::mpsc;

use crate::config::ProcessLimits;
use crate::signals::BlockSighup;
use crate::sys;
use crate::watchdog::plan::{Part, PartSignal};
use crate::watchdog::restart_stats::RestartCause;

/// A part's process.
struct Process {
    child: Child,
    pidfd: OwnedFd,
}

/// The children.
pub struct Children {
    processes: BTreeMap<Part, Process>,
    pids: Rc<RefCell<BTreeSet<u32>>>,
    /// Where children find the configuration in force.
    config: PathBuf,
    notify: PathBuf,
    exits: mpsc::UnboundedSender<(Part, u32)>,
}

impl Children {
    /// `exits` is told whenever a child can be reaped.
    pub fn new(dir: &Path, exits: mpsc::UnboundedSender<(Part, u32)>) -> Self {
        let (config, notify) = (dir.join("applied.toml"), dir.join("notify.sock"));
        Self { processes: BTreeMap::new(), pids: Rc::default(), config, notify, exits }
    }

    /// Starts a part with these sockets; its pid.
    ///
    /// The child first runs `patou launch`, which knows its own pid and so can set `LISTEN_PID`, takes its limits
    /// on itself, and then becomes the part.
    pub fn start(&mut self, part: &Part, sockets: Vec<(String, OwnedFd)>, limits: ProcessLimits) -> io::Result<u32> {
        let parent = std::process::id().to_string();
        let names: Vec<_> = sockets.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("patou")
            .args(["launch", "--parent", &parent])
            .args(limits.open_files.map(|(soft, hard)| format!("--open-files={soft}:{hard}")))
            .args(limits.data.map(|bytes| format!("--data={bytes}")))
            .arg("--")
            .env("PATOU_CONFIG", &self.config)
            .env("NOTIFY_SOCKET", &self.notify)
            .env("LISTEN_FDS", sockets.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            // A Ctrl-C at the terminal is for this process, which stops the others in their order.
            .process_group(0);
        match part {
            Part::Dispatcher => command.arg("dispatcher"),
            Part::Worker(id) => command.args(["worker", &id.instance()]),
        };
        let numbered = sockets.into_iter().zip(3..).map(|((_, fd), number)| (fd, number));
        sys::map_fds(&mut command, numbered.collect())?;
        // It may be told to reload before it knows what that is.
        let held = BlockSighup::new()?;
        let mut child = command.spawn()?;
        drop(held);
        drop(command);
        let pid = child.id();
        let watched = sys::pidfd_open(Pid::from_raw(pid as i32))
            .and_then(|pidfd| Ok((pidfd.try_clone().and_then(sys::when_readable)?, pidfd)));
        let (watch, pidfd) = match watched {
            Ok(watched) => watched,
            Err(error) => {
                // Whose end nobody would see must not live.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        self.pids.borrow_mut().insert(pid);
        let (exits, ended) = (self.exits.clone(), part.clone());
        tokio::task::spawn_local(async move {
            let _ = watch.readable().await;
            let _ = exits.send((ended, pid)); // the watchdog itself is ending
        });
        self.processes.insert(part.clone(), Process { child, pidfd });
        Ok(pid)
    }

    /// Reaps a part that has ended; how it ended, in words and for the account. `None` if it is not (any more) that process.
    pub fn reap(&mut self, part: &Part, pid: u32) -> Option<(String, RestartCause)> {
        let process = self.processes.get_mut(part).filter(|process| process.child.id() == pid)?;
        let status = process.child.try_wait();
        self.pids.borrow_mut().remove(&pid);
        self.processes.remove(part);
        Some(match status {
            Ok(Some(status)) => describe(status),
            Ok(None) => ("it ended, and yet cannot be reaped".into(), RestartCause::Ended),
            Err(error) => (format!("it ended: {error}"), RestartCause::Ended),
        })
    }

    /// Signals a part; nothing if it has no process.
    pub fn order(&self, part: &Part, order: PartSignal) {
        let Some(process) = self.processes.get(part) else { return };
        let signals: &[Signal] = match order {
            PartSignal::Terminate => &[Signal::SIGTERM, Signal::SIGCONT],
            PartSignal::Reload => &[Signal::SIGHUP],
            PartSignal::Abort => &[Signal::SIGABRT, Signal::SIGCONT],
            PartSignal::Kill => &[Signal::SIGKILL],
        };
        for signal in signals {
            // ESRCH: it has just ended, which is told in its own time.
            let _ = sys::pidfd_send_signal(process.pidfd.as_fd(), *signal);
        }
    }

    /// Which part a process is.
    pub fn part(&self, pid: u32) -> Option<&Part> {
        self.processes.iter().find(|(_, process)| process.child.id() == pid).map(|(part, _)| part)
    }

    /// The process of a part.
    pub fn pid(&self, part: &Part) -> Option<u32> {
        self.processes.get(part).map(|process| process.child.id())
    }

    /// The same with its descriptor.
    pub fn process(&self, part: &Part) -> Option<(u32, BorrowedFd<'_>)> {
        self.processes.get(part).map(|process| (process.child.id(), process.pidfd.as_fd()))
    }

    /// The pids of all parts, as they are whenever one looks.
    pub fn pids(&self) -> Rc<RefCell<BTreeSet<u32>>> {
        self.pids.clone()
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
