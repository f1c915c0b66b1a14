//! The configuration that a command works on: the file, or the one that a running set has applied.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Once;
use std::time::{Duration, Instant};

use super::error::CommandError;
use super::patou_run::POLL_INTERVAL;
use crate::config::{Config, LoadError, Loaded, read_text};
use crate::held_file::leads_nowhere;
use crate::{ipc, units, worker_files};

/// Longer than the watchdog waits for the end of a removal of many files.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads the configuration file, or the built-in configuration if there is none.
pub(super) fn load(path: Option<&Path>) -> Result<Loaded, CommandError> {
    Ok(Config::load(path)?)
}

/// As [`load`], for a part. The watchdog of `patou run` restores the file if it was removed just now.
pub(super) fn load_as_part(path: Option<&Path>) -> Result<Loaded, CommandError> {
    let deadline = Instant::now() + RESTORE_TIMEOUT;
    let is_restored = std::env::var_os(ipc::RUNTIME_DIR).is_some();
    loop {
        match Config::load(path) {
            Err(LoadError::Unreadable { cause, .. })
                if leads_nowhere(&cause) && is_restored && Instant::now() < deadline =>
            {
                std::thread::sleep(POLL_INTERVAL);
            }
            result => return Ok(result?),
        }
    }
}

/// As [`load`], and also checks that the programs of the handlers exist.
pub(super) fn load_to_run(path: Option<&Path>) -> Result<Loaded, CommandError> {
    let loaded = load(path)?;
    loaded.check(worker_files::unusable_files).map_err(LoadError::from)?;
    Ok(loaded)
}

/// The configuration that the running set has applied, which can differ from the file; the file if no set is running.
pub(super) fn load_applied(path: Option<&Path>) -> Result<Config, CommandError> {
    match Config::load(path) {
        Ok(Loaded { config, .. }) => applied_in(&config.set.runtime_dir).unwrap_or(Ok(config)),
        // The file may be half-edited while the set is running.
        Err(LoadError::Faults(faults)) => {
            let dir = Config::runtime_dir_in(&read_text(&Config::file(path)).unwrap_or_default());
            let config = applied_in(&dir).ok_or_else(|| LoadError::Faults(faults.clone()))?;
            // `status --wait` reads the configuration many times.
            static WARN_ONCE: Once = Once::new();
            let dir = dir.display();
            WARN_ONCE.call_once(|| {
                let _ = writeln!(
                    io::stderr(),
                    "{faults}\npatou: using the configuration that the set in {dir} has applied, not this file"
                );
            });
            config
        }
        Err(error) => Err(error.into()),
    }
}

/// As [`load_applied`] without a named file, if it is valid. Prints nothing.
pub(super) fn applied_or_file() -> Option<Config> {
    let config = Config::load(None).ok()?.config;
    Some(applied_in(&config.set.runtime_dir).and_then(Result::ok).unwrap_or(config))
}

/// The applied configuration in a runtime directory, if there is one.
fn applied_in(dir: &Path) -> Option<Result<Config, CommandError>> {
    let applied = if ipc::is_run_by_systemd(dir) { units::APPLIED.into() } else { dir.join("applied.toml") };
    let text = read_text(&applied).ok()?;
    Some(Config::parse(&text, &applied.display().to_string()).map_err(|error| CommandError::Config(error.to_string())))
}
