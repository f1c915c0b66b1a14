//! `patou check` and `patou config`.

use std::io::{self, Write};
use std::path::Path;

use clap::Args;

use super::{Failure, load_to_run, written};
use crate::config::{AdminConfig, Config, Origin};

#[derive(Debug, Args)]
pub struct Defaults {
    /// Print the defaults (there is nothing else to print yet)
    #[arg(long, required = true)]
    defaults: bool,
}

pub fn defaults(_: &Defaults) -> Result<(), Failure> {
    written(io::stdout().write_all(Config::DEFAULT_TOML.as_bytes()))
}

/// Prints what a set of this configuration would create.
pub fn check(path: Option<&Path>) -> Result<(), Failure> {
    let loaded = load_to_run(path)?;
    let config = &loaded.config;
    let mut out = io::stdout().lock();
    let name = match &loaded.origin {
        Origin::File(path) => path.display().to_string(),
        Origin::BuiltIn => "the built-in configuration".into(),
    };
    let dir = config.set.runtime_dir.display();
    let print = |out: &mut dyn Write| -> io::Result<()> {
        writeln!(out, "{name} is valid. Set {} would create:", config.set.name)?;
        for listener in &config.listeners {
            let (address, pool) = (&listener.address, &listener.pool);
            writeln!(out, "  listener   {address}  {} to pool {pool}", listener.delivery.as_str())?;
        }
        for pool in &config.pools {
            let (name, count, handler) = (&pool.name, pool.workers, pool.handler.name());
            let workers = if count == 1 { "worker" } else { "workers" };
            let first = pool.worker_address(1);
            let last = if count > 1 { format!(" to {}", pool.worker_address(count)) } else { String::new() };
            writeln!(out, "  pool       {name}: {count} {handler} {workers} at {first}{last}")?;
        }
        let admin = config.admin.address.as_ref().map_or(String::new(), |address| format!(" and http://{address}"));
        writeln!(out, "  admin      {}{admin}", AdminConfig::socket(&config.set.runtime_dir))?;
        writeln!(out, "  directory  {dir}: {} segments, {0} pairs of named pipes", config.workers().count())?;
        config
            .pools
            .iter()
            .filter_map(|pool| pool.unsupported_by_run())
            .chain(config.admin.exposure_warning())
            .try_for_each(|text| writeln!(out, "  remark     {text}"))
    };
    written(print(&mut out))
}
