//! `patou check` and `patou config`.

use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use nix::unistd::Uid;

use super::config_source::load;
use super::error::{CommandError, ignore_broken_pipe};
use super::systemd::{refusals, unusable_files};
use crate::config::{AdminConfig, Config, ListenAddress, ListenerProtocol, LoadError, Loaded, Origin};
use crate::descriptors;
use crate::ids::WorkerNumber;
use crate::{units, watchdog, worker_files};

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// Print the defaults (required: there is nothing else to print)
    #[arg(long, required = true)]
    defaults: bool,
}

/// `patou config --defaults`
pub(super) fn print_defaults(_: &ConfigArgs) -> Result<(), CommandError> {
    ignore_broken_pipe(io::stdout().write_all(Config::DEFAULT_TOML.as_bytes()))
}

/// Validates the configuration and prints what a set of it would create.
pub(super) fn check(path: Option<&Path>) -> Result<(), CommandError> {
    let loaded = load(path)?;
    let has_systemd = sd_notify::booted().unwrap_or(false);
    let is_for_units = is_read_by_units(&loaded) && has_systemd;
    if !is_for_units {
        loaded.check(worker_files::unusable_files).map_err(LoadError::from)?;
        check_socket_directories(&loaded.config)?;
    }
    // Every start sets the owners of the sockets.
    watchdog::resolve_accounts(&mut loaded.config.clone()).map_err(|error| CommandError::Config(error.to_string()))?;
    let notes = match (is_read_by_units(&loaded), has_systemd) {
        _ if loaded.origin == Origin::BuiltIn => Vec::new(),
        (true, true) => {
            let refusals = refusals_of_units(&loaded);
            if !refusals.is_empty() {
                return Err(CommandError::Config(refusals.join("\n")));
            }
            refusals
        }
        // It may be a candidate for the units, or a file of `patou run`.
        (false, true) => refusals_of_units(&loaded),
        // A container, or another machine: the accounts of the units may be missing here only.
        (true, false) => units::check(&loaded.config),
        (false, false) => Vec::new(),
    };
    ignore_broken_pipe(print_set(&mut io::stdout().lock(), &loaded, &notes))?;
    if is_for_units && !Uid::effective().is_root() {
        let unchecked = "  note       not checked: whether the users of the pools may execute their programs and enter the \
                         directories; run patou check as root";
        ignore_broken_pipe(writeln!(io::stdout(), "{unchecked}"))?;
    }
    Ok(())
}

/// Why `systemctl start patou` refuses a valid configuration, files of its pools included.
fn refusals_of_units(loaded: &Loaded) -> Vec<String> {
    let files = loaded.check(unusable_files).err().map(|faults| faults.to_string());
    refusals(&loaded.config).into_iter().chain(files).collect()
}

/// Unix sockets need a directory; systemd makes those of its units.
fn check_socket_directories(config: &Config) -> Result<(), CommandError> {
    let addresses = config.listeners.iter().map(|listener| ("listener", &listener.address));
    for (section, address) in addresses.chain(config.pools.iter().map(|pool| ("pool", &pool.address))) {
        if let ListenAddress::Unix(socket) = address
            && let Some(dir) = worker_files::missing_directory(socket, &config.set.runtime_dir)
        {
            let dir = dir.display();
            return Err(CommandError::Config(format!(
                "{section}.address is {address}, and there is no directory {dir}"
            )));
        }
    }
    Ok(())
}

/// Whether `systemctl start patou` reads this configuration: the units read one file.
fn is_read_by_units(loaded: &Loaded) -> bool {
    matches!(&loaded.origin, Origin::File(path) if path == Path::new(Config::DEFAULT_PATH))
}

/// `refusals`: what `patou run` accepts, and the units do not.
fn print_set(out: &mut impl Write, loaded: &Loaded, refusals: &[String]) -> io::Result<()> {
    let config = &loaded.config;
    let file = match &loaded.origin {
        Origin::File(path) => path.display().to_string(),
        Origin::BuiltIn => "the built-in configuration".into(),
    };
    writeln!(out, "{file} is valid. Set {} would create:", config.set.name)?;
    for listener in &config.listeners {
        let (address, pool) = (&listener.address, &listener.pool);
        let fastcgi = if listener.protocol == ListenerProtocol::Fastcgi { ", FastCGI" } else { "" };
        writeln!(out, "  listener   {address}  {}{fastcgi} to pool {pool}", listener.delivery.as_str())?;
    }
    for pool in &config.pools {
        let (name, count, handler) = (&pool.name, pool.workers, pool.handler.name());
        let workers = if count == 1 { "worker" } else { "workers" };
        let first = pool.worker_address(WorkerNumber::FIRST);
        let last =
            if count > 1 { format!(" to {}", pool.worker_address(WorkerNumber::of(count))) } else { String::new() };
        writeln!(out, "  pool       {name}: {count} {handler} {workers} at {first}{last}")?;
    }
    let admin = config.admin.address.as_ref().map_or(String::new(), |address| format!(" and http://{address}"));
    writeln!(out, "  admin      {}{admin}", AdminConfig::socket(&config.set.runtime_dir))?;
    let (dir, workers) = (config.set.runtime_dir.display(), config.workers().count());
    writeln!(out, "  directory  {dir}: {workers} segments, {workers} pairs of named pipes")?;
    let limit = descriptors::raise_limit(); // as `patou run` does
    let notes = config.pools.iter().filter_map(|pool| pool.unsupported_by_run()).chain(config.warnings());
    let notes = notes.chain(config.descriptor_needs().limitation(limit));
    for note in notes {
        writeln!(out, "  note       {note}")?;
    }
    for refusal in refusals {
        writeln!(out, "  note       systemctl start patou would refuse this file: {refusal}")?;
    }
    Ok(())
}
