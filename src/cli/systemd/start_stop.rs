//! `patou systemd start` and `stop`.

use std::path::Path;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::publish::{load, publish, stage, withdraw};
use super::show;
use super::systemctl::{are_any_active, daemon_reload, failed_units, is_active, systemctl, systemctl_output};
use crate::cli::error::{CommandError, failed};
use crate::cli::poll::poll_until;
use crate::config::Config;
use crate::probe::{self, ProbeCommand};
use crate::sd_notification::notify;
use crate::status::SavedState;
use crate::units::{self, ADMIN, APPLIED, DISPATCHER, IPC, RUNTIME_DIR, WATCHDOG};

/// How long the watchdog may take to look at the parts, in addition to its interval.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the dispatcher may take to confirm that the set is stopping.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(1);

/// Notifies systemd when the set runs. If it runs already, the process of patou.service has died, and the set stays as it
/// is.
///
/// # Errors
/// Then no unit is left running.
pub(super) fn start(path: Option<&Path>) -> Result<(), CommandError> {
    let is_running = Path::new(APPLIED).exists() && is_active(IPC);
    let started = if is_running { Ok(()) } else { start_units(path) };
    if started.is_err() {
        let _ = stop(); // the error of the start matters
    }
    started?;
    notify(&[NotifyState::Ready, NotifyState::Status(&show::line())]);
    Ok(())
}

fn start_units(path: Option<&Path>) -> Result<(), CommandError> {
    let loaded = load(path)?;
    // Also at boot, where this is the first time: until then systemd knows no drop-in of the set.
    publish(&stage(&loaded.config, &loaded.config.to_copy())?)?;
    // A unit that has reached its start limit may start again.
    systemctl(&["reset-failed"], &["patou-*".to_owned()])?;
    systemctl(&["start"], &units::core_services())?;
    let workers = units::worker_services(&loaded.config);
    // A set with some of its workers serves, and the others are started again; systemctl has printed which ones failed.
    let deadline = Instant::now() + loaded.config.watchdog.start_timeout;
    if systemctl(&["start"], &workers).is_err() && !poll_until(deadline, || are_any_active(&workers)) {
        return Err(failed("no worker could be started: see journalctl -u 'patou-worker@*'"));
    }
    wait_until_seen(&loaded.config);
    Ok(())
}

/// Waits until the watchdog has seen what has been started, so that `/healthz` and `patou status` are right when the
/// start is complete. It looks with each probe; what failed stays down.
fn wait_until_seen(config: &Config) {
    let deadline = Instant::now() + config.watchdog.probe_interval * 2 + LOOK_TIMEOUT;
    poll_until(deadline, || {
        let Ok(state) = SavedState::read(&config.set.runtime_dir) else { return false };
        state.watchdog().is_some()
            && state.dispatcher.state == "up"
            && state.workers.values().all(|part| ["up", "failed"].contains(&&*part.state))
    });
}

/// After the end of the process of patou.service: stops the units, if the end was requested. `ExecStopPost=` also runs
/// when that process has died, with another `SERVICE_RESULT` (systemd.exec(5)), and the units continue.
pub(super) fn stop_if_requested() -> Result<(), CommandError> {
    if std::env::var("SERVICE_RESULT").is_ok_and(|result| result != "success") { Ok(()) } else { stop() }
}

fn stop() -> Result<(), CommandError> {
    // The dispatcher rejects its queued clients while the workers still run. A dispatcher that does not answer is
    // stopped all the same. One that is not running would be started by the connection to its socket.
    if is_active(DISPATCHER) {
        let _ = probe::query(&Path::new(RUNTIME_DIR).join("probe.sock"), Some(ProbeCommand::Quiesce), QUIESCE_TIMEOUT);
    }
    let failed_before = failed_units().unwrap_or_default();
    let all = ["patou-worker@*", "patou-listener@*", "patou-probe.socket", DISPATCHER, ADMIN, WATCHDOG, IPC];
    let stopped = systemctl(&["stop"], &all.map(str::to_owned));
    // A part that was killed while it stopped did not fail: nothing of it is left, and an operator has nothing to do.
    let killed: Vec<_> = failed_units().unwrap_or_default().difference(&failed_before).cloned().collect();
    let _ = systemctl(&["reset-failed"], &killed);
    withdraw()?;
    // The parts are dependencies of a running set only.
    if !is_shutting_down() {
        daemon_reload()?;
    }
    stopped
}

/// Whether systemd stops all units.
fn is_shutting_down() -> bool {
    systemctl_output(&["show", "--value", "--property=SystemState"]).is_ok_and(|state| state.trim() == "stopping")
}
