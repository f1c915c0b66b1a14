//! `patou ipc`: the segments and doorbells of a set, without its processes.

use std::io::{self, Write};
use std::path::Path;

use clap::{Args, Subcommand};

use super::account::account;
use super::config_source::load;
use super::error::{CommandError, failed, ignore_broken_pipe};
use crate::clock;
use crate::config::Config;
use crate::ids::WorkerId;
use crate::ipc::{self, IpcError, Modes, SetOwner};

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum IpcCommand {
    /// Create them, replacing those of a dead set
    Create(OwnershipArgs),
    /// Remove them
    Remove(OwnershipArgs),
    /// Create those that the configuration adds, remove those that it no longer has, and give the others to the group
    /// of their pool's user
    Sync(OwnershipArgs),
    /// List them, and which processes use them
    List,
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct OwnershipArgs {
    /// For a set of systemd units: segments and named pipes of a pool belong to the group of the pool's user
    #[arg(long)]
    shared: bool,
}

impl OwnershipArgs {
    fn set_owner(self) -> SetOwner {
        if self.shared { SetOwner::Systemd } else { SetOwner::Process }
    }

    /// The permissions of a worker's segment and doorbells.
    fn modes(self, config: &Config, id: &WorkerId) -> Result<Modes, CommandError> {
        if !self.shared {
            return Ok(Modes::default());
        }
        let user = account(config.pool(&id.pool).map_or("", |pool| pool.user.as_str()))?;
        Ok(Modes::shared(user.gid))
    }
}

pub(super) fn run(path: Option<&Path>, command: IpcCommand) -> Result<(), CommandError> {
    let config = load(path)?.config;
    match command {
        IpcCommand::Create(ownership) => create(&config, ownership),
        IpcCommand::Remove(ownership) => remove(&config, ownership),
        IpcCommand::Sync(ownership) => sync(&config, ownership),
        IpcCommand::List => list(&config),
    }
}

fn create(config: &Config, ownership: OwnershipArgs) -> Result<(), CommandError> {
    let dir = &config.set.runtime_dir;
    ipc::prepare(config, &Modes::default()).map_err(failed)?;
    let lock = ipc::lock_set(dir, ownership.set_owner()).map_err(failed)?;
    check_unused(config)?;
    remove_all(config, ownership)?;
    let set_epoch = clock::now().0;
    let created = config.workers().try_for_each(|id| {
        let modes = ownership.modes(config, &id)?;
        ipc::create_worker(config, &id, set_epoch, &modes).map(drop).map_err(failed)
    });
    if created.is_err() {
        let _ = remove_all(config, ownership); // the first error is reported
        lock.remove(dir);
    }
    created
}

fn remove(config: &Config, ownership: OwnershipArgs) -> Result<(), CommandError> {
    let dir = &config.set.runtime_dir;
    if !dir.exists() {
        return ipc::remove_dead_segments(config).map(drop).map_err(failed);
    }
    let lock = ipc::lock_set(dir, ownership.set_owner()).map_err(failed)?;
    check_unused(config)?;
    remove_all(config, ownership)?;
    lock.remove(dir);
    Ok(())
}

fn sync(config: &Config, ownership: OwnershipArgs) -> Result<(), CommandError> {
    let dir = &config.set.runtime_dir;
    let _lock = ipc::lock_set(dir, ownership.set_owner()).map_err(failed)?;
    let set_epoch = ipc::set_epoch(dir).map_err(failed)?.unwrap_or_else(|| clock::now().0);
    let existing = ipc::recorded_workers(dir).map_err(failed)?;
    let configured: Vec<_> = config.workers().collect();
    for id in &configured {
        let modes = ownership.modes(config, id)?;
        match modes.group {
            _ if !existing.contains(id) => ipc::create_worker(config, id, set_epoch, &modes).map(drop),
            // The pool may have another user now.
            Some(group) => ipc::set_worker_group(dir, id, group),
            None => Ok(()),
        }
        .map_err(failed)?;
    }
    existing.iter().filter(|id| !configured.contains(id)).try_for_each(|id| ipc::retire_worker(dir, id).map_err(failed))
}

fn list(config: &Config) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    for listed in ipc::list(&config.set.runtime_dir).map_err(failed)? {
        let users = match listed.state {
            Ok((true, true)) => "used by dispatcher and worker".to_owned(),
            Ok((true, false)) => "used by the dispatcher".to_owned(),
            Ok((false, true)) => "used by the worker".to_owned(),
            Ok((false, false)) => "unused".to_owned(),
            Err(error) => error,
        };
        ignore_broken_pipe(writeln!(out, "{:<16} {}  {users}", listed.worker, listed.segment))?;
    }
    Ok(())
}

/// Removes the parts of all workers; the sockets too, unless they belong to units.
fn remove_all(config: &Config, ownership: OwnershipArgs) -> Result<(), CommandError> {
    let dir = &config.set.runtime_dir;
    if ownership.shared { ipc::remove_workers(dir) } else { ipc::remove(dir) }.map_err(failed)?;
    ipc::remove_dead_segments(config).map(drop).map_err(failed)
}

/// Fails if a process still uses a segment.
fn check_unused(config: &Config) -> Result<(), CommandError> {
    match ipc::leftovers(config).map_err(failed)?.first() {
        Some(left) => Err(failed(IpcError::AlreadyRunning { dir: config.set.runtime_dir.clone(), pid: left.pid })),
        None => Ok(()),
    }
}
