//! `patou ipc`: the segments and bells of a set, apart from its processes.

use std::io::{self, Write};
use std::path::Path;

use clap::{Args, Subcommand};
use nix::unistd::{Uid, User};

use super::{Failure, failed, load, written};
use crate::config::Config;
use crate::ids::WorkerId;
use crate::ipc::{self, IpcError, Modes, SetOwner};
use crate::{clock, units};

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Action {
    /// Create them, in place of any that a dead set left
    Create(Shared),
    /// Remove them
    Remove(Shared),
    /// Create those that are new in the configuration, and remove those that are not in it any more; the others get
    /// the group of their pool
    Sync(Shared),
    /// List them and who has them
    List,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Shared {
    /// For a set of systemd units: the segments and pipes of a pool belong to the group of its user
    #[arg(long)]
    shared: bool,
}

impl Shared {
    fn keeper(self) -> SetOwner {
        if self.shared { SetOwner::Systemd } else { SetOwner::Process }
    }

    /// Who may use what is made for a worker.
    fn modes(self, config: &Config, id: &WorkerId) -> Result<Modes, Failure> {
        if !self.shared {
            return Ok(Modes::default());
        }
        let user = account(config.pool(&id.pool).map_or("", |pool| pool.user.as_str()))?;
        Ok(Modes { directory: 0o750, doorbell: 0o660, segment: 0o660, group: Some(user.gid) })
    }
}

/// The account that a pool names for its workers.
pub fn account(name: &str) -> Result<User, Failure> {
    let name = if name.is_empty() { units::WORKER_USER } else { name };
    let user = match name.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(name),
    };
    user.map_err(failed)?.ok_or_else(|| failed(format!("there is no user {name}, which a pool names for its workers")))
}

pub fn run(path: Option<&Path>, action: Action) -> Result<(), Failure> {
    let config = load(path)?.config;
    let dir = &config.set.runtime_dir;
    match action {
        Action::Create(shared) => {
            ipc::prepare(&config, &Modes::default()).map_err(failed)?;
            let lock = ipc::lock_set(dir, shared.keeper()).map_err(failed)?;
            nobody_left(dir)?;
            clear(&config, shared)?;
            let set_epoch = clock::now().0;
            let made = config.workers().try_for_each(|id| {
                let modes = shared.modes(&config, &id)?;
                ipc::create_worker(&config, &id, set_epoch, &modes).map(drop).map_err(failed)
            });
            if made.is_err() {
                // The first error is the one to tell.
                let _ = clear(&config, shared);
                lock.remove(dir);
            }
            made?;
        }
        Action::Remove(_) if !dir.exists() => drop(ipc::remove_dead_segments(&config).map_err(failed)?),
        Action::Remove(shared) => {
            let lock = ipc::lock_set(dir, shared.keeper()).map_err(failed)?;
            nobody_left(dir)?;
            clear(&config, shared)?;
            lock.remove(dir);
        }
        Action::Sync(shared) => {
            let _lock = ipc::lock_set(dir, shared.keeper()).map_err(failed)?;
            let set_epoch = ipc::set_epoch(dir).map_err(failed)?.unwrap_or_else(|| clock::now().0);
            let there = ipc::recorded_workers(dir).map_err(failed)?;
            let wanted: Vec<_> = config.workers().collect();
            for id in &wanted {
                let modes = shared.modes(&config, id)?;
                match modes.group {
                    _ if !there.contains(id) => ipc::create_worker(&config, id, set_epoch, &modes).map(drop),
                    // The pool may have another user.
                    Some(group) => ipc::set_worker_group(dir, id, group),
                    None => Ok(()),
                }
                .map_err(failed)?;
            }
            for id in there.iter().filter(|id| !wanted.contains(id)) {
                ipc::retire_worker(dir, id).map_err(failed)?;
            }
        }
        Action::List => {
            let mut out = io::stdout().lock();
            for listed in ipc::list(dir).map_err(failed)? {
                let state = match listed.state {
                    Ok((true, true)) => "dispatcher and worker have it".to_owned(),
                    Ok((true, false)) => "the dispatcher has it".to_owned(),
                    Ok((false, true)) => "the worker has it".to_owned(),
                    Ok((false, false)) => "nobody has it".to_owned(),
                    Err(why) => why,
                };
                written(writeln!(out, "{:<16} {}  {state}", listed.worker, listed.segment))?;
            }
        }
    }
    Ok(())
}

/// The sockets of units are theirs to remove.
fn clear(config: &Config, shared: Shared) -> Result<(), Failure> {
    let dir = &config.set.runtime_dir;
    if shared.shared { ipc::remove_workers(dir) } else { ipc::remove(dir) }.map_err(failed)?;
    ipc::remove_dead_segments(config).map(drop).map_err(failed)
}

/// Refuses to take away what a process still uses.
fn nobody_left(dir: &Path) -> Result<(), Failure> {
    match ipc::leftovers(dir).map_err(failed)?.first() {
        Some(left) => Err(failed(IpcError::AlreadyRunning { dir: dir.to_owned(), pid: left.pid })),
        None => Ok(()),
    }
}
