//! Clears away the processes of a set whose watchdog was killed.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::WatchdogError;
use crate::config::Config;
use crate::ipc::{self, Leftover};
use crate::{log, process_tree, sys};

/// How often it is looked whether they have gone.
const LOOK: Duration = Duration::from_millis(10);

/// Ends what is left: who still works for a client may finish within the longest drain_timeout, the others,
/// and those that are stopped, are killed at once with everything they have started.
///
/// Returns who was there.
pub async fn clear(dir: &Path, config: &Config) -> Result<BTreeSet<String>, WatchdogError> {
    let patience = config.pools.iter().map(|pool| pool.drain_timeout).max().unwrap_or_default();
    let (mut give_up, mut told) = (Instant::now() + patience, false);
    let mut killed = false;
    let mut ended = BTreeSet::new();
    loop {
        let left: Vec<Leftover> = ipc::leftovers(dir)?;
        if left.is_empty() {
            return Ok(ended);
        }
        ended.extend(left.iter().map(|process| format!("{} (pid {})", process.what, process.pid)));
        let late = Instant::now() >= give_up;
        if late && killed {
            let names: Vec<_> = left.iter().map(|l| format!("{} (pid {})", l.what, l.pid)).collect();
            return Err(WatchdogError::Leftover(names.join(", ")));
        }
        for process in &left {
            let stopped = process_tree::read_process(process.pid).is_some_and(|p| p.stopped);
            if late || stopped || !process.busy {
                kill(process);
            } else if !told {
                tracing::info!(
                    pid = process.pid,
                    event = %log::Event::PreviousSetBusy,
                    "waiting for the {} of the former set to finish its request",
                    process.what
                );
            }
        }
        told = true;
        if late {
            // What is killed goes at once, unless the kernel holds it.
            (killed, give_up) = (true, Instant::now() + Duration::from_secs(5));
        }
        sleep(LOOK).await;
    }
}

/// Removes what a former set left besides processes, and says what there was.
pub fn remove(config: &Config, ended: &BTreeSet<String>) -> Result<(), WatchdogError> {
    let dir = &config.set.runtime_dir;
    let recorded = ipc::recorded_workers(dir)?.len();
    ipc::remove(dir)?;
    let segments = recorded + ipc::remove_dead_segments(config)?;
    if segments > 0 || !ended.is_empty() {
        let processes = ended.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let processes = if processes.is_empty() { "none" } else { &processes };
        tracing::info!(segments, processes, "cleared away what a former set had left");
    }
    Ok(())
}

fn kill(process: &Leftover) {
    let is_it = |pid: u32, started: u64| process_tree::read_process(pid).is_some_and(|now| now.started == started);
    let descendants = process_tree::descendants(Pid::from_raw(process.pid as i32));
    let all = descendants.iter().map(|p| (p.pid.as_raw() as u32, p.started));
    for (pid, started) in std::iter::once((process.pid, process.started)).chain(all) {
        // The descriptor is opened before the identity is checked: it cannot become another process then.
        let Ok(pidfd) = sys::pidfd_open(Pid::from_raw(pid as i32)) else { continue };
        if is_it(pid, started) && sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL).is_ok() {
            tracing::debug!(pid, "killed, of the former set's {}", process.what);
        }
    }
}
