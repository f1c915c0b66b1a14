//! A private runtime directory, segment and doorbells for measured exchanges, apart from any running set.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::cli::config_source::load;
use crate::cli::error::{CommandError, failed};
use crate::clock;
use crate::config::Config;
use crate::ids::WorkerId;
use crate::ipc::{self, Modes, SetLock, SetOwner, WorkerIpc};
use crate::signals::Signal;

const CONFIG_FILE: &str = "bench-exchange.toml";

/// What both ends of an exchange need.
pub(super) struct PrivateIpc {
    config: Config,
    /// The same configuration as a file, for the peer.
    pub config_file: PathBuf,
    /// SIGTERM and SIGINT of the measuring end.
    pub stop: Signal,
}

impl PrivateIpc {
    /// Creates a directory beside the runtime directory of the configuration, calls `work`, and removes it.
    pub(super) fn with(
        path: Option<&Path>,
        work: impl FnOnce(&PrivateIpc) -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        let mut config = load(path)?.config;
        let beside = |suffix: &str| config.set.runtime_dir.with_extension(format!("bench-exchange-{suffix}"));
        let (dir, prefix) = (beside(&std::process::id().to_string()), beside(""));
        config.set.runtime_dir = dir.clone();
        let stop = Signal::stop().map_err(failed)?;
        remove_abandoned(&prefix);
        ipc::prepare(&config, &Modes::default()).map_err(failed)?;
        let lock = ipc::lock_set(&dir, SetOwner::Process).map_err(failed)?;
        let config_file = dir.join(CONFIG_FILE);
        let written = fs::write(&config_file, config.to_toml()).map_err(failed);
        let result = written.and_then(|()| work(&PrivateIpc { config, config_file, stop }));
        result.and(remove(&dir, lock))
    }

    /// Creates the segment and the doorbells, in place of those of an earlier measurement.
    pub(super) fn create(&self) -> Result<WorkerIpc, CommandError> {
        ipc::create_worker(&self.config, &peer(), clock::now().0, &Modes::default()).map_err(failed)?;
        open(&self.config)
    }
}

/// Opens the segment and the doorbells of this configuration.
pub(super) fn open(config: &Config) -> Result<WorkerIpc, CommandError> {
    ipc::open(config, &peer()).map_err(failed)
}

fn peer() -> WorkerId {
    "exchange-1".parse().expect("a valid name")
}

fn remove(dir: &Path, lock: SetLock) -> Result<(), CommandError> {
    let removed = ipc::remove(dir).map_err(failed);
    let _ = fs::remove_file(dir.join(CONFIG_FILE));
    lock.remove(dir);
    removed
}

/// Removes the directories of killed benchmarks: names that start like `prefix`, owned by this user, lock not held.
/// Best effort.
fn remove_abandoned(prefix: &Path) {
    let (Some(parent), Some(prefix)) = (prefix.parent(), prefix.file_name().and_then(|name| name.to_str())) else {
        return;
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_own_dir = |status: &fs::Metadata| status.is_dir() && status.uid() == geteuid().as_raw();
        let is_named = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
        // `DirEntry::metadata` does not follow links: a link is not a directory.
        if is_named
            && entry.metadata().is_ok_and(|status| is_own_dir(&status))
            && let Ok(lock) = ipc::lock_set(&entry.path(), SetOwner::Process)
        {
            let _ = remove(&entry.path(), lock);
        }
    }
}
