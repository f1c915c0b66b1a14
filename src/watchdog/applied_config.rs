//! The configuration in force, as the parts and the plan need it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{WatchdogError, system};
use super::plan::PlanLimits;
use crate::backoff;
use crate::config::Config;
use crate::held_file::HeldFile;
use crate::ids::WorkerId;

/// The file in the runtime directory from which the parts read the configuration.
fn path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("applied.toml")
}

/// Writes that file, and holds it: parts that start after it was removed still read it. The operator's file may change at
/// any time.
pub(super) fn write(config: &Config, runtime_dir: &Path) -> Result<HeldFile, WatchdogError> {
    let path = path(runtime_dir);
    let new = runtime_dir.join("applied.toml.new");
    let written = fs::write(&new, config.to_copy()).and_then(|()| fs::rename(&new, &path));
    written.and_then(|()| HeldFile::open(&path)).map_err(system(path.display().to_string()))
}

/// All workers with their drain_timeout.
pub(super) fn drain_timeouts(config: &Config) -> BTreeMap<WorkerId, Duration> {
    let drain_timeout = |id: &WorkerId| config.pool(&id.pool).map_or(Duration::ZERO, |pool| pool.drain_timeout);
    config.workers().map(|id| (id.clone(), drain_timeout(&id))).collect()
}

/// The limits that the plan decides by.
pub(super) fn plan_limits(config: &Config) -> PlanLimits {
    let watchdog = &config.watchdog;
    PlanLimits {
        worker_timeout: watchdog.worker_timeout,
        dispatcher_timeout: watchdog.dispatcher_timeout,
        start_timeout: watchdog.start_timeout,
        abort_grace: watchdog.abort_grace,
        // The last responses linger, and a co-process has a second to exit.
        exit_grace: config.front.linger_timeout + Duration::from_secs(1),
        restarts: backoff::limits(config),
    }
}
