//! `patou systemd generate`: the drop-ins of the units, in a directory of systemd's (systemd.generator(7)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::cli::account::account;
use crate::cli::error::{CommandError, failed};
use crate::config::Config;
use crate::ids::{WorkerId, WorkerNumber};
use crate::units::{self, APPLIED, worker_service};

/// Renders the published configuration, or the file if none is published, for instance at boot.
pub(super) fn run(path: Option<&Path>, dir: &Path) -> Result<(), CommandError> {
    let published = Path::new(APPLIED);
    let loaded = Config::load(if published.exists() { Some(published) } else { path })?;
    for (file, text) in units::render(&loaded.config, group_of) {
        let file = dir.join(file);
        let parent = file.parent().unwrap_or(dir);
        fs::create_dir_all(parent).and_then(|()| fs::write(&file, text)).map_err(|error| path_error(&file, error))?;
    }
    link_pool_drop_ins(&loaded.config, dir)
}

/// Links the operator's drop-ins for a pool into every worker of the pool. systemd supports drop-ins for one instance
/// and for all instances of a template, not for some of them.
fn link_pool_drop_ins(config: &Config, dir: &Path) -> Result<(), CommandError> {
    for pool in &config.pools {
        let drop_ins = units::pool_drop_ins(&pool.name);
        let Ok(entries) = fs::read_dir(&drop_ins) else { continue };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        // systemd reads `.conf` only, and a file of the same name would replace ours.
        let is_drop_in = |name: &OsString| {
            Path::new(name).extension().is_some_and(|extension| extension == "conf") && name != units::DROP_IN
        };
        for name in names.filter(is_drop_in) {
            for number in WorkerNumber::up_to(pool.workers) {
                let worker = worker_service(&WorkerId { pool: pool.name.clone(), number });
                let link = dir.join(format!("{worker}.d")).join(&name);
                symlink(drop_ins.join(&name), &link).map_err(|error| path_error(&link, error))?;
            }
        }
    }
    Ok(())
}

/// The primary group of a user, which owns the segments of the user's pools. Not root's: the watchdog must not get it.
pub(super) fn group_of(user: &str) -> Option<u32> {
    account(user).ok().map(|user| user.gid.as_raw()).filter(|gid| *gid != 0)
}

/// An error that names the file.
pub(super) fn path_error(path: &Path, error: io::Error) -> CommandError {
    failed(format!("{}: {error}", path.display()))
}
