//! After the watchdog of the previous set was killed: ends the processes of that set and removes its files.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::error::WatchdogError;
use crate::config::Config;
use crate::ids::ProcessId;
use crate::ipc::{self, IpcError, Leftover, SetLock, SetOwner};
use crate::procfs::{self, ProcessStat};
use crate::{log, process_tree, sys};

/// Interval between checks whether the processes have ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// How long a killed process may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a process may hold its role and be missing in `/proc`: one that dies is, for a moment.
const HIDDEN_TIMEOUT: Duration = Duration::from_secs(1);

/// Locks the directory. A process that a killed watchdog was about to start is a copy of it, and holds its lock, until it
/// executes its program.
///
/// # Errors
/// [`IpcError::AlreadyRunning`] if the owner lives, or the lock stays held.
pub(super) async fn lock_set(dir: &Path) -> Result<SetLock, IpcError> {
    let give_up = Instant::now() + HIDDEN_TIMEOUT;
    loop {
        match ipc::lock_set(dir, SetOwner::Process) {
            Err(IpcError::AlreadyRunning { pid, .. })
                if ProcessStat::of(pid).is_none_or(|process| process.is_zombie()) && Instant::now() < give_up =>
            {
                sleep(CHECK_INTERVAL).await;
            }
            result => return result,
        }
    }
}

/// Ends the processes: a process that still serves a client may finish within the longest drain_timeout; the others,
/// and those that are stopped, are killed with all their descendants.
///
/// Returns the names of the processes.
pub(super) async fn terminate(config: &Config) -> Result<BTreeSet<String>, WatchdogError> {
    let dir = &config.set.runtime_dir;
    let drain_timeout = config.pools.iter().map(|pool| pool.drain_timeout).max().unwrap_or_default();
    let (mut deadline, mut logged) = (Instant::now() + drain_timeout, false);
    let mut killed = false;
    let mut ended = BTreeSet::new();
    let mut hidden_since = None;
    loop {
        let left: Vec<Leftover> = ipc::leftovers(config)?;
        if left.is_empty() {
            terminate_strays(dir, &mut ended).await?;
            return Ok(ended);
        }
        if left.iter().all(|process| ProcessStat::of_id(process_id(process)).is_some()) {
            hidden_since = None;
        } else if hidden_since.get_or_insert_with(Instant::now).elapsed() > HIDDEN_TIMEOUT {
            let hidden = left.iter().find(|process| ProcessStat::of_id(process_id(process)).is_none());
            return Err(WatchdogError::Hidden(hidden.map_or_else(String::new, |process| process.what.clone())));
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

fn process_id(process: &Leftover) -> ProcessId {
    ProcessId { pid: process.pid, start_time: process.started }
}

fn kill(process: &Leftover) {
    let mut descendants = process_tree::descendants(Pid::from_raw(process.pid as i32));
    // This process may have been started by the leftover.
    let ancestors = this_process_and_ancestors();
    descendants.retain(|descendant| !ancestors.contains(&descendant.id()));
    for id in std::iter::once(process_id(process)).chain(descendants.iter().map(ProcessStat::id)) {
        if kill_one(id) {
            tracing::info!(pid = id.pid, "killed a process of the previous set's {}", process.what);
        }
    }
}

fn kill_one(id: ProcessId) -> bool {
    // Opened before the identity is checked: the descriptor cannot refer to another process then.
    let Ok(pidfd) = sys::pidfd_open(Pid::from_raw(id.pid as i32)) else { return false };
    ProcessStat::of_id(id).is_some() && sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL).is_ok()
}

/// Kills the processes that a watchdog of this directory has started and that hold no role of a segment: a `program`
/// that is not serving yet, and what it has started. They may hold the set's sockets.
async fn terminate_strays(dir: &Path, ended: &mut BTreeSet<String>) -> Result<(), WatchdogError> {
    let give_up = Instant::now() + KILL_TIMEOUT;
    loop {
        let left = strays(dir)?;
        let names: Vec<_> = left.iter().map(|(id, name)| format!("{name} (pid {})", id.pid)).collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(WatchdogError::Leftover(names.join(", ")));
        }
        for ((id, _), name) in left.iter().zip(names) {
            if ended.insert(name.clone()) {
                tracing::warn!(
                    pid = id.pid,
                    "process {name} of the previous set has outlived its watchdog: killing it"
                );
            }
            kill_one(*id);
        }
        sleep(CHECK_INTERVAL).await;
    }
}

/// Recognised by [`ipc::RUNTIME_DIR`], which each part gets and leaves to its children. This process and its ancestors may
/// have been started by such a process; they are not listed.
///
/// # Errors
/// [`IpcError::AlreadyRunning`] if the watchdog of such a process lives: what names the set was removed, its lock included.
fn strays(dir: &Path) -> Result<Vec<(ProcessId, String)>, IpcError> {
    let ancestors = this_process_and_ancestors();
    let is_stray = |process: &ProcessStat| {
        let of_process = procfs::process_dir(process.id().pid);
        !process.is_zombie()
            && !ancestors.contains(&process.id())
            && procfs::environment_variable(&of_process, ipc::RUNTIME_DIR)
                .is_some_and(|found| found == dir.as_os_str().as_bytes())
            // The same path in a container is another directory.
            && procfs::sees_same_files(&of_process)
    };
    let mut found = Vec::new();
    for id in procfs::processes().into_iter().filter(is_stray).map(|process| process.id()) {
        let of_process = procfs::process_dir(id.pid);
        let watchdog = procfs::environment_variable(&of_process, ipc::WATCHDOG);
        let watchdog = watchdog.and_then(|mark| ProcessStat::of_id(ipc::parse_watchdog_mark(&mark)?));
        if let Some(watchdog) = watchdog.filter(|watchdog| !watchdog.is_zombie()) {
            return Err(IpcError::AlreadyRunning { dir: dir.to_owned(), pid: watchdog.id().pid });
        }
        found.push((id, procfs::name(&of_process)));
    }
    Ok(found)
}

fn this_process_and_ancestors() -> Vec<ProcessId> {
    let parent = |process: &ProcessStat| ProcessStat::of(process.parent.as_raw() as u32);
    std::iter::successors(ProcessStat::of(std::process::id()), parent).map(|process| process.id()).collect()
}
