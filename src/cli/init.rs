//! `patou run` as PID 1 of a container, or in a process that has children already (a shell script that ends with
//! `exec patou run`): two processes. This one is the parent of all processes that do not belong to the set, and the
//! watchdog is its child.
//!
//! The kernel makes orphans children of PID 1, whether a worker has left them or an unrelated `docker exec`, and nothing
//! tells one from the other afterwards. A watchdog with a parent of its own is a child subreaper (prctl(2)): it gets the
//! orphans of its own parts, and no others.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Instant;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getpid};
use sd_notify::NotifyState;

use super::config_source::load;
use super::error::{CommandError, failed};
use super::poll::poll_until;
use crate::sd_notification::notify;
use crate::{ipc, process_tree, sys};

/// Passed on to the watchdog.
const FORWARDED: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];

/// Those that end the set.
const STOP: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];

/// Whether this process has, or may get, children that do not belong to the set.
pub(super) fn is_needed() -> bool {
    getpid().as_raw() == 1 || process_tree::has_children()
}

/// Starts the watchdog as a child, forwards signals to it, reaps every other child, and exits as the watchdog exits.
pub(super) fn run(path: Option<&Path>) -> Result<(), CommandError> {
    let mut signals = SigSet::from_iter(FORWARDED);
    signals.add(Signal::SIGCHLD);
    // Before the start: no signal is lost. The watchdog unblocks them.
    signals.thread_block().map_err(failed)?;
    let mut watchdog = start_watchdog(path)?;
    let pid = Pid::from_raw(watchdog.id() as i32);
    if getpid().as_raw() != 1 {
        // systemd accepts READY=1 and WATCHDOG=1 from the main process of a unit.
        notify(&[NotifyState::MainPid(watchdog.id())]);
    }
    loop {
        match signals.wait().map_err(failed)? {
            Signal::SIGCHLD => {
                if let Some(status) = watchdog.try_wait().map_err(failed)? {
                    if status.code().is_none() && getpid().as_raw() == 1 {
                        await_parts(path);
                    }
                    return exit_as(status);
                }
                process_tree::reap_orphans(|child| child == pid);
            }
            signal => {
                let _ = kill(pid, signal); // not reaped, so it is the watchdog
            }
        }
    }
}

/// Through `patou launch`: the watchdog stops the set when this process dies.
fn start_watchdog(path: Option<&Path>) -> Result<Child, CommandError> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("patou").args(["launch", "--parent", &getpid().to_string(), "--", "run"]);
    if let Some(path) = path {
        command.arg("--config").arg(path);
    }
    // Ctrl-C at the terminal goes to this process alone, which forwards it: the watchdog gets it once.
    command.process_group(0);
    sys::restore_umask();
    command.spawn().map_err(|error| failed(format!("cannot start the watchdog: {error}")))
}

/// After the watchdog was killed: waits until its parts have finished their requests, or a stop signal arrives. With PID 1
/// every process ends.
fn await_parts(path: Option<&Path>) {
    let Ok(config) = load(path).map(|loaded| loaded.config) else { return };
    let drain_timeout = config.pools.iter().map(|pool| pool.drain_timeout).max().unwrap_or_default();
    let stop = SigSet::from_iter(STOP);
    poll_until(Instant::now() + drain_timeout, || {
        process_tree::reap_orphans(|_| false);
        sys::take_pending(&stop) || ipc::leftovers(&config).is_ok_and(|left| left.is_empty())
    });
}

fn exit_as(status: ExitStatus) -> Result<(), CommandError> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        // It has printed why.
        (Some(code), _) => Err(CommandError::Exited(code as u8)),
        (None, signal) => {
            let signal = signal.and_then(|number| Signal::try_from(number).ok()).map_or("a signal", Signal::as_str);
            Err(failed(format!("the watchdog was killed by {signal}: start the set again")))
        }
    }
}
