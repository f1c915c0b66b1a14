//! The watchdog: starts the set, detects parts that died or froze, replaces them, and stops the set in order.
//!
//! It is one loop ([`run::Watchdog`]): an event goes to the [`plan`], which decides, and its actions are performed in
//! order. What starts and ends the parts is a [`supervisor`]: [`ChildSupervisor`] runs a set of child processes
//! (`patou run`), [`UnitSupervisor`] finds the processes of a set of systemd units.
//!
//! Liveness is probed over a Unix socket that the dispatcher's serving loop answers; the answer includes the workers.
//! Doorbells and heartbeats prove nothing: a frozen process reads no pipe, and a heartbeat may come from another thread.

mod accounts;
mod admin;
mod applied_config;
mod config_reader;
mod error;
mod evidence;
mod file_watch;
pub(crate) mod notify;
mod own_delay;
mod part_log;
pub(crate) mod plan;
mod pool_outcomes;
mod prober;
mod process_sample;
mod reload;
mod restart_stats;
mod run;
mod set_signals;
mod slot_observer;
mod sockets;
mod stale_processes;
mod startup_message;
mod state;
mod supervisor;
mod watched_set;
mod worker_endpoints;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::backoff::StartFile;
use crate::config::Loaded;
use crate::ipc::{self, IpcError, Modes, SetLock};
use crate::status::SavedState;
use crate::{descriptors, inherited, log, process_tree};
pub(crate) use accounts::resolve as resolve_accounts;
pub(crate) use error::WatchdogError;
use error::system;
use part_log::log_killed;
use run::Watchdog;
use set_signals::SetSignals;
use supervisor::children::ChildSupervisor;
use supervisor::systemd::UnitSupervisor;
use worker_endpoints::SegmentNames;

/// Runs a set as child processes in the foreground until SIGTERM or SIGINT; a second signal, or SIGQUIT, stops it at once.
///
/// # Errors
/// See [`WatchdogError`]. Everything that was created is removed.
pub(crate) async fn run(mut loaded: Loaded) -> Result<(), WatchdogError> {
    log::init(log::LogContext::part("watchdog", &loaded.config.set.name));
    log::abort_on_panic();
    descriptors::raise_limit();
    resolve_accounts(&mut loaded.config)?;
    LocalSet::new().run_until(run_set(loaded)).await
}

/// Watches the units of a set until SIGTERM or SIGINT, which stop no other unit.
///
/// # Errors
/// See [`WatchdogError`].
pub(crate) async fn watch(loaded: Loaded) -> Result<(), WatchdogError> {
    log::init(log::LogContext::part("watchdog", &loaded.config.set.name));
    log::abort_on_panic();
    descriptors::raise_limit();
    LocalSet::new().run_until(watch_units(loaded)).await
}

async fn watch_units(loaded: Loaded) -> Result<(), WatchdogError> {
    let signals = SetSignals::catch().map_err(system("signals"))?;
    let state_dir = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    let state_dir = state_dir.ok_or(WatchdogError::Environment(
        "RUNTIME_DIRECTORY is not set: start the watchdog as a unit, with systemctl start patou",
    ))?;
    let starts = StartFile::new(&state_dir);
    if let Some(wait) = starts.record_start(&loaded.config)? {
        tokio::select! {
            () = sleep(wait) => {}
            _ = signals.stop.readable() => {
                starts.clear();
                return Ok(());
            }
        }
    }
    let last_restart = SavedState::read_in(&state_dir).ok().and_then(|state| state.last_restart);
    let (set, supervisor) = UnitSupervisor::open(loaded, state_dir)?;
    starts.note_ready();
    Watchdog::new(set, supervisor, last_restart).run(signals).await?;
    starts.clear();
    Ok(())
}

/// Locks the runtime directory, runs the set, and removes everything that belongs to the set.
async fn run_set(loaded: Loaded) -> Result<(), WatchdogError> {
    // This process has no children yet: see `cli/init.rs`. So all that become its children belong to the set.
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| system("prctl")(e.into()))?;
    let signals = SetSignals::catch().map_err(system("signals"))?;
    inherited::limit_warnings().for_each(|warning| tracing::warn!("{warning}"));
    let runtime_dir = loaded.config.set.runtime_dir.clone();
    let set = loaded.config.set.name.clone();
    if ipc::is_run_by_systemd(&runtime_dir) {
        return Err(IpcError::RunBySystemd(runtime_dir).into());
    }
    ipc::prepare(&loaded.config, &Modes::default())?;
    let lock = Rc::new(stale_processes::lock_set(&runtime_dir).await?);
    let ended = tokio::select! {
        // On an error the processes of the previous set survive, and so does everything they use.
        ended = stale_processes::terminate(&loaded.config) => ended?,
        _ = async { tokio::select! { _ = signals.stop.readable() => {}, _ = signals.stop_now.readable() => {} } } => {
            // They continue to drain; the next start terminates them.
            tracing::info!(%set, event = %log::Event::SetNotStarted,
                "stopped by a signal while the previous set was ending: nothing was started");
            return Ok(());
        }
    };
    let segments = SegmentNames::default();
    let result = async {
        stale_processes::remove_files(&loaded.config, &ended)?;
        let (set, supervisor) = ChildSupervisor::open(loaded, segments.clone(), lock.clone())?;
        Watchdog::new(set, supervisor, None).run(signals).await
    }
    .await;
    let removed = remove_set(&runtime_dir, &lock, &segments).await;
    if result.is_ok() && removed.is_ok() {
        tracing::info!(%set, event = %log::Event::SetStopped, "the set has stopped, and nothing of it is left");
    }
    result.and(removed)
}

/// Kills the remaining processes of the set and removes its files and segments. Performs every step, whichever fails, and
/// returns the first error.
async fn remove_set(runtime_dir: &Path, lock: &SetLock, segments: &SegmentNames) -> Result<(), WatchdogError> {
    let killed = process_tree::kill(|_| true, log_killed).await;
    let killed = killed.map_err(|survivors| WatchdogError::Leftover(survivors.to_string()));
    // If the directory was removed meanwhile, a new one belongs to another set; not if only the lock file was removed.
    let is_own =
        lock.is_in_place(runtime_dir) || (!ipc::is_run_by_systemd(runtime_dir) && lock.renew(runtime_dir).is_ok());
    let mut removed = if is_own { ipc::remove(runtime_dir) } else { Ok(()) };
    for segment in segments.take().values() {
        removed = removed.and(ipc::remove_segment(segment));
    }
    lock.remove(runtime_dir);
    killed.and(removed.map_err(WatchdogError::from))
}
