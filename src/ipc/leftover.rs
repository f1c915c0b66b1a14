//! Processes that a dead watchdog left behind.

use std::path::Path;

use super::{IpcError, Paths, owner_of, read_private, recorded};
use crate::exchange::{self, Asker, Life};
use crate::ids::{Claim, Phase};
use crate::shm::{Role, Segment};

/// A process of an earlier life of the set that still holds one of its segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its pid.
    pub pid: u32,
    /// Its start time in clock ticks since boot: whether the pid is still that process.
    pub started: u64,
    /// What it is: `dispatcher`, or the worker's name.
    pub what: String,
    /// Whether a client is waiting for what it does.
    pub busy: bool,
}

/// Finds them by the locks that they hold. Without any, what is in `dir` is merely to be removed.
pub fn leftovers(dir: &Path) -> Result<Vec<Leftover>, IpcError> {
    let mut found: Vec<Leftover> = Vec::new();
    for id in recorded(dir)? {
        let owner = owner_of(dir);
        let name = read_private(&Paths::new(dir, &id).segment, owner);
        let Some(segment) = name.ok().and_then(|name| Segment::open(&name, None, owner).ok()) else { continue };
        if segment.is_taken(Role::Worker)
            && let Some(life) = Life::load(&segment)
        {
            let busy = matches!(exchange::claim(&segment), Some(Claim::Held(_, Phase::Claimed | Phase::Responding)));
            found.push(Leftover { pid: life.pid, started: life.started, what: format!("worker {id}"), busy });
        }
        if segment.is_taken(Role::Dispatcher)
            && let Some((pid, started)) = Asker::last_process(&segment)
            && !found.iter().any(|f| f.pid == pid)
        {
            found.push(Leftover { pid, started, what: "dispatcher".into(), busy: false });
        }
    }
    Ok(found)
}
