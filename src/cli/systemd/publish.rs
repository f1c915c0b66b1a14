//! Publishing a configuration: the copy that the parts read, and the drop-ins that the generator copies.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::pool_files::unusable_files;
use super::systemctl::daemon_reload;
use crate::cli::account::account;
use crate::cli::error::{CommandError, failed};
use crate::config::{Config, LoadError, Loaded, Origin};
use crate::published::{Publication, PublishedSet};
use crate::units::{self, APPLIED};
use crate::watchdog;

/// Where systemd has the generators write their units (systemd.generator(7)).
const GENERATOR_DIR: &str = "/run/systemd/generator";

/// Reads the configuration and checks that systemd can run it.
pub(super) fn load(path: Option<&Path>) -> Result<Loaded, CommandError> {
    let loaded = Config::load(path)?;
    if matches!(loaded.origin, Origin::BuiltIn) {
        // A set whose file has disappeared must not become another set.
        return Err(CommandError::Config("there is no configuration: write /etc/patou/patou.toml".to_owned()));
    }
    loaded.check(unusable_files).map_err(LoadError::from)?;
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

/// The configuration that the running units were rendered from; `None` if the set does not run.
///
/// # Errors
/// When it cannot be read or is not valid for this version.
pub(super) fn load_published() -> Result<Option<Loaded>, LoadError> {
    match Config::load(Some(Path::new(APPLIED))) {
        Err(LoadError::Unreadable { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        loaded => loaded.map(Some),
    }
}

/// Writes a configuration, of which `text` is the copy for the parts, and its drop-ins beside what is published.
pub(super) fn stage(config: &Config, text: &str) -> Result<Publication, CommandError> {
    let published = PublishedSet::of_machine();
    let drop_ins = units::render(config, &published.listener_sockets(), group_of);
    published.stage(text, &drop_ins).map_err(|error| path_error(Path::new(APPLIED), error))
}

/// Publishes what was staged, and has systemd run the generator, unless its drop-ins are up to date.
pub(super) fn publish(new: &Publication) -> Result<(), CommandError> {
    let published = PublishedSet::of_machine();
    published.publish(new).map_err(|error| path_error(Path::new(APPLIED), error))?;
    if published.is_generated_in(Path::new(GENERATOR_DIR)) { Ok(()) } else { daemon_reload() }
}

/// Removes what is published.
pub(super) fn withdraw() -> Result<(), CommandError> {
    PublishedSet::of_machine().withdraw().map_err(|error| path_error(Path::new(APPLIED), error))
}

/// The primary group of a user, which owns the segments of the user's pools. Not root's: the watchdog must not get it.
fn group_of(user: &str) -> Option<u32> {
    account(user).ok().map(|user| user.gid.as_raw()).filter(|gid| *gid != 0)
}

/// An error that names the file.
pub(super) fn path_error(path: &Path, error: io::Error) -> CommandError {
    failed(format!("{}: {error}", path.display()))
}
