//! `patou ipc`: the segments and bells of a set, apart from its processes.

use std::path::Path;

use clap::Subcommand;

use super::{Failure, failed, load};
use crate::clock;
use crate::ipc::{self, IpcError, Modes};

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Action {
    /// Create them, in place of any that a dead set left
    Create,
    /// Remove them
    Remove,
    /// List them and who has them
    List,
}

pub fn run(path: Option<&Path>, action: Action) -> Result<(), Failure> {
    let config = load(path)?.config;
    let dir = &config.set.runtime_dir;
    match action {
        Action::Create => {
            ipc::prepare(&config, &Modes::default()).map_err(failed)?;
            let _lock = ipc::lock_set(dir).map_err(failed)?;
            nobody_left(dir)?;
            ipc::remove(dir).map_err(failed)?;
            let set_epoch = clock::now().0;
            for id in config.workers() {
                ipc::create_worker(&config, &id, set_epoch, &Modes::default()).map_err(failed)?;
            }
        }
        Action::Remove if !dir.exists() => {}
        Action::Remove => {
            let lock = ipc::lock_set(dir).map_err(failed)?;
            nobody_left(dir)?;
            ipc::remove(dir).map_err(failed)?;
            lock.remove(dir);
        }
        Action::List => {
            for listed in ipc::list(dir).map_err(failed)? {
                let state = match listed.state {
                    Ok((true, true)) => "dispatcher and worker have it".to_owned(),
                    Ok((true, false)) => "the dispatcher has it".to_owned(),
                    Ok((false, true)) => "the worker has it".to_owned(),
                    Ok((false, false)) => "nobody has it".to_owned(),
                    Err(why) => why,
                };
                println!("{:<16} {}  {state}", listed.worker, listed.segment);
            }
        }
    }
    Ok(())
}

/// Refuses to take away what a process still uses.
fn nobody_left(dir: &Path) -> Result<(), Failure> {
    match ipc::leftovers(dir).map_err(failed)?.first() {
        Some(left) => Err(failed(IpcError::Live { dir: dir.to_owned(), pid: left.pid })),
        None => Ok(()),
    }
}
