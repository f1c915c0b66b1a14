//! After the watchdog of the previous set was killed: ends the processes of that set and removes its files.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::error::WatchdogError;
use crate::config::Config;
use crate::ids::ProcessId;
use crate::ipc::{self, Leftover};
use crate::procfs::ProcessStat;
use crate::{log, process_tree, sys};

/// Interval between checks whether the processes have ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// How long a killed process may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Ends the processes: a process that still serves a client may finish within the longest drain_timeout; the others,
/// and those that are stopped, are killed with all their descendants.
///
/// Returns the names of the processes.
pub(super) async fn terminate(config: &Config) -> Result<BTreeSet<String>, WatchdogError> {
    let drain_timeout = config.pools.iter().map(|pool| pool.drain_timeout).max().unwrap_or_default();
    let (mut deadline, mut logged) = (Instant::now() + drain_timeout, false);
    let mut killed = false;
    let mut ended = BTreeSet::new();
    loop {
        let left: Vec<Leftover> = ipc::leftovers(config)?;
        if left.is_empty() {
            return Ok(ended);
        }
        let names: Vec<_> = left.iter().map(|process| format!("{} (pid {})", process.what, process.pid)).collect();
        let late = Instant::now() >= deadline;
        if late && killed {
            return Err(WatchdogError::Leftover(names.join(", ")));
        }
        ended.extend(names);
        for process in &left {
            let stopped = ProcessStat::of(process.pid).is_some_and(|p| p.is_stopped());
            if late || stopped || !process.busy {
                kill(process);
            } else if !logged {
                tracing::info!(
                    pid = process.pid,
                    event = %log::Event::PreviousSetBusy,
                    "{} of the previous set is busy: waiting for its request to finish",
                    process.what
                );
            }
        }
        logged = true;
        if late {
            // A killed process ends soon, unless it is in an uninterruptible wait.
            (killed, deadline) = (true, Instant::now() + KILL_TIMEOUT);
        }
        sleep(CHECK_INTERVAL).await;
    }
}

/// Removes the files and segments of a previous set, and logs what was removed.
pub(super) fn remove_files(config: &Config, ended: &BTreeSet<String>) -> Result<(), WatchdogError> {
    let dir = &config.set.runtime_dir;
    let recorded = ipc::recorded_workers(dir)?.len();
    ipc::remove(dir)?;
    let segments = recorded + ipc::remove_dead_segments(config)?;
    if segments > 0 || !ended.is_empty() {
        let processes = ended.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let processes = if processes.is_empty() { "none" } else { &processes };
        tracing::info!(segments, processes, "removed what a previous set had left behind");
    }
    Ok(())
}

fn kill(process: &Leftover) {
    let descendants = process_tree::descendants(Pid::from_raw(process.pid as i32));
    let first = ProcessId { pid: process.pid, start_time: process.started };
    for id in std::iter::once(first).chain(descendants.iter().map(ProcessStat::id)) {
        // Opened before the identity is checked: the descriptor cannot refer to another process then.
        let Ok(pidfd) = sys::pidfd_open(Pid::from_raw(id.pid as i32)) else { continue };
        if ProcessStat::of_id(id).is_some() && sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL).is_ok() {
            tracing::debug!(pid = id.pid, "killed a process of the previous set's {}", process.what);
        }
    }
}
