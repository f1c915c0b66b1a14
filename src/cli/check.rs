//! `patou check` and `patou config`.

use std::io::{self, Write};
use std::path::Path;

use clap::Args;

use super::config_source::load_to_run;
use super::error::{CommandError, ignore_broken_pipe};
use crate::config::{AdminConfig, Config, Loaded, Origin};
use crate::descriptors;
use crate::ids::WorkerNumber;

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
    let loaded = load_to_run(path)?;
    ignore_broken_pipe(print_set(&mut io::stdout().lock(), &loaded))
}

fn print_set(out: &mut impl Write, loaded: &Loaded) -> io::Result<()> {
    let config = &loaded.config;
    let file = match &loaded.origin {
        Origin::File(path) => path.display().to_string(),
        Origin::BuiltIn => "the built-in configuration".into(),
    };
    writeln!(out, "{file} is valid. Set {} would create:", config.set.name)?;
    for listener in &config.listeners {
        let (address, pool) = (&listener.address, &listener.pool);
        writeln!(out, "  listener   {address}  {} to pool {pool}", listener.delivery.as_str())?;
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
    Ok(())
}
