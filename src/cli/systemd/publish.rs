//! The published configuration: the file that the generator and the parts read.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::generate::{group_of, path_error};
use super::systemctl::daemon_reload;
use crate::cli::account::account;
use crate::cli::error::CommandError;
use crate::config::{Config, LoadError, Loaded, Origin};
use crate::units::{self, APPLIED};
use crate::{executable, watchdog};

/// Reads the configuration and checks that systemd can run it.
pub(super) fn load(path: Option<&Path>) -> Result<Loaded, CommandError> {
    let loaded = Config::load(path)?;
    if matches!(loaded.origin, Origin::BuiltIn) {
        // A set whose file has disappeared must not become another set.
        return Err(CommandError::Config("there is no configuration: write /etc/patou/patou.toml".to_owned()));
    }
    loaded.check(executable::missing_program).map_err(LoadError::from)?;
    let faults = refusals(&loaded.config);
    if faults.is_empty() { Ok(loaded) } else { Err(CommandError::Config(faults.join("\n"))) }
}

/// Why `systemctl start patou` refuses a valid configuration: what systemd cannot do, and accounts that are missing.
pub(in crate::cli) fn refusals(config: &Config) -> Vec<String> {
    let users: BTreeSet<&str> = config.pools.iter().map(|pool| pool.user.as_str()).collect();
    let users = users.into_iter().filter_map(|user| account(user).err().map(|error| error.text().to_owned()));
    let owners = watchdog::resolve_accounts(&mut config.clone()).err().map(|error| error.to_string());
    users.chain(owners).chain(units::check(config)).collect()
}

/// The configuration that the running units were rendered from.
pub(super) fn load_published() -> Result<Loaded, LoadError> {
    Config::load(Some(Path::new(APPLIED)))
}

/// Writes a configuration beside the published one and returns its path.
pub(super) fn stage(config: &Config) -> Result<PathBuf, CommandError> {
    let path = Path::new(APPLIED);
    let staged = path.with_extension("toml.new");
    // With every key: defaults that depend on the reading process (its user, its environment) are resolved here.
    let written = fs::create_dir_all(path.parent().unwrap_or(path))
        .and_then(|()| fs::write(&staged, config.to_toml()))
        .and_then(|()| fs::set_permissions(&staged, fs::Permissions::from_mode(0o644)));
    if let Err(error) = written {
        let _ = fs::remove_file(&staged);
        return Err(path_error(path, error));
    }
    Ok(staged)
}

/// Replaces the published configuration.
pub(super) fn publish(config: &Config) -> Result<(), CommandError> {
    let path = Path::new(APPLIED);
    fs::rename(stage(config)?, path).map_err(|error| path_error(path, error))
}

/// Removes the published configuration.
pub(super) fn withdraw() -> Result<(), CommandError> {
    let path = Path::new(APPLIED);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(path_error(path, error)),
        _ => Ok(()),
    }
}

/// Has systemd run the generator on the published configuration, unless its drop-ins are up to date.
pub(super) fn render_drop_ins(config: &Config) -> Result<(), CommandError> {
    let wanted = units::render(config, group_of);
    let dir = Path::new("/run/systemd/generator");
    let is_current =
        |(file, text): (&String, &String)| fs::read_to_string(dir.join(file)).is_ok_and(|found| found == *text);
    if wanted.iter().all(is_current) { Ok(()) } else { daemon_reload() }
}
