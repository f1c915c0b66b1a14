//! Processes and segments that a dead set left behind.

use std::fs;
use std::path::Path;

use nix::unistd::getuid;

use super::directory::{owner_of, read_private};
use super::error::{IpcError, at};
use super::set::recorded_workers;
use super::worker_ipc::WorkerPaths;
use crate::config::Config;
use crate::exchange::{self, DispatcherSide, Incarnation};
use crate::ids::{Claim, Phase, ProcessId};
use crate::shm::{Damage, Segment, SegmentRole};

/// The directory in which the kernel shows segments as files (shm_overview(7)).
const SHM: &str = "/dev/shm";

/// A process of a dead set that still holds a role of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leftover {
    /// Its pid.
    pub pid: u32,
    /// Its start time in clock ticks since boot, which tells whether the pid is still that process.
    pub started: u64,
    /// Its part: `dispatcher`, or the worker's name.
    pub what: String,
    /// Whether it serves a request.
    pub busy: bool,
}

/// Removes segments of this set that no process uses and no file names, as after the removal of the directory of a
/// running set. Returns their number. The caller holds the set's lock, or the directory does not exist.
///
/// Segments of a set of the same name in another directory have another digest, and stay.
pub(crate) fn remove_dead_segments(config: &Config) -> Result<usize, IpcError> {
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

/// The processes that still hold a role of a segment recorded in `dir`. If there are none, `dir` can be removed.
///
/// # Errors
/// [`IpcError::OtherVersion`] if such processes belong to another version and cannot be named; `dir` must then stay.
pub(crate) fn leftovers(dir: &Path) -> Result<Vec<Leftover>, IpcError> {
    let mut found: Vec<Leftover> = Vec::new();
    for id in recorded_workers(dir)? {
        let owner = owner_of(dir);
        let name = read_private(&WorkerPaths::new(dir, &id).segment, owner);
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
            && let Some(ProcessId { pid, start_time: started }) = DispatcherSide::last_process(&segment)
            && !found.iter().any(|f| f.pid == pid)
        {
            found.push(Leftover { pid, started, what: "dispatcher".into(), busy: false });
        }
    }
    Ok(found)
}
