//! Processes that a dead watchdog left behind.

use std::fs;
use std::path::Path;

use nix::unistd::getuid;

use super::{IpcError, Paths, at, owner_of, read_private, recorded};
use crate::config::Config;
use crate::exchange::{self, DispatcherSide, Incarnation};
use crate::ids::{Claim, Phase};
use crate::shm::{Damage, Segment, SegmentRole};

/// Where the kernel shows segments as files (shm_overview(7)).
const SHM: &str = "/dev/shm";

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

/// Removes the segments of this set that nobody uses and that no file names any more, as when its directory was
/// removed while it ran; how many there were. The caller holds the set's lock, or nobody can.
///
/// Another set of the same name in another directory is left alone: its segments have another digest.
pub fn remove_dead_segments(config: &Config) -> Result<usize, IpcError> {
    let prefix = format!("patou.{}.{}.", getuid(), config.set.name);
    let mut removed = 0;
    for entry in fs::read_dir(SHM).map_err(at(Path::new(SHM)))?.flatten() {
        let file = entry.file_name();
        let Some(rest) = file.to_str().and_then(|file| file.strip_prefix(&prefix)) else { continue };
        let id = rest.split_once('.').and_then(|(instance, _)| instance.parse().ok());
        let Some(digest) = id.map(|id| config.digest_of(&id)) else { continue };
        let name = format!("/{prefix}{rest}");
        if Segment::open(&name, Some(digest), None).is_ok_and(|segment| {
            !segment.is_role_locked(SegmentRole::Worker) && !segment.is_role_locked(SegmentRole::Dispatcher)
        }) {
            Segment::unlink(&name)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Finds them by the locks that they hold. Without any, what is in `dir` is merely to be removed. An error if there
/// are some that cannot be named, as those of another version: then nothing is to be removed.
pub fn leftovers(dir: &Path) -> Result<Vec<Leftover>, IpcError> {
    let mut found: Vec<Leftover> = Vec::new();
    for id in recorded(dir)? {
        let owner = owner_of(dir);
        let name = read_private(&Paths::new(dir, &id).segment, owner);
        let Some(segment) = name.ok().and_then(|name| Segment::open_unchecked(&name, None, owner).ok()) else {
            continue;
        };
        if let Some(Damage::Layout(layout)) = segment.damage() {
            if segment.is_locked() {
                return Err(IpcError::OtherVersion { dir: dir.to_owned(), layout });
            }
            continue;
        }
        if segment.is_role_locked(SegmentRole::Worker)
            && let Some(life) = Incarnation::load(&segment)
        {
            let busy = matches!(exchange::claim(&segment), Some(Claim::Held(_, Phase::Claimed | Phase::Responding)));
            found.push(Leftover { pid: life.pid, started: life.started, what: format!("worker {id}"), busy });
        }
        if segment.is_role_locked(SegmentRole::Dispatcher)
            && let Some((pid, started)) = DispatcherSide::last_process(&segment)
            && !found.iter().any(|f| f.pid == pid)
        {
            found.push(Leftover { pid, started, what: "dispatcher".into(), busy: false });
        }
    }
    Ok(found)
}
