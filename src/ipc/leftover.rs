//! Processes and segments that a dead set left behind.

use std::fs;
use std::path::Path;

use super::directory::{owner_of, read_private, segment_owners};
use super::error::{IpcError, at};
use super::set::recorded_workers;
use super::worker_ipc::WorkerPaths;
use crate::config::Config;
use crate::exchange::{self, DispatcherSide, Incarnation};
use crate::ids::{Claim, ProcessId, WorkerId};
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
pub(crate) fn remove_dead_segments(config: &Config) -> Result<usize, IpcError> {
    let (mut removed, owner) = (0, owner_of(&config.set.runtime_dir));
    for (name, id) in existing_segments(config)? {
        // A lock of any role proves that the set lives, however few of its files are left.
        if Segment::open(&name, Some(config.digest_of(&id)), owner).is_ok_and(|segment| !segment.is_locked()) {
            Segment::unlink(&name)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes the segments of a worker without a process whose record was lost. A dispatcher keeps what it has open.
pub(crate) fn remove_unrecorded_segments(config: &Config, id: &WorkerId) -> Result<(), IpcError> {
    let owner = owner_of(&config.set.runtime_dir);
    let of_worker = existing_segments(config)?.into_iter().filter(|(_, of)| of == id);
    for (name, _) in of_worker {
        if Segment::open(&name, Some(config.digest_of(id)), owner).is_ok() {
            Segment::unlink(&name)?;
        }
    }
    Ok(())
}

/// The segments in [`SHM`] with the names of this set's. Those of a set of the same name in another directory have
/// another digest.
fn existing_segments(config: &Config) -> Result<Vec<(String, WorkerId)>, IpcError> {
    let owners = segment_owners(&config.set.runtime_dir);
    let prefixes: Vec<_> = owners.iter().map(|uid| format!("patou.{uid}.{}.", config.set.name)).collect();
    let mut found = Vec::new();
    for entry in fs::read_dir(SHM).map_err(at(Path::new(SHM)))?.flatten() {
        let file = entry.file_name();
        let Some(name) = file.to_str() else { continue };
        let Some(rest) = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)) else { continue };
        if let Some(id) = rest.split_once('.').and_then(|(instance, _)| instance.parse().ok()) {
            found.push((format!("/{name}"), id));
        }
    }
    Ok(found)
}

/// The processes that still hold a role of a segment of this set, recorded in its directory or not. If there are none,
/// the directory can be removed.
///
/// # Errors
/// [`IpcError::AlreadyRunning`] if the supervisor of the set lives, whatever became of its lock file;
/// [`IpcError::OtherVersion`] if such processes belong to another version and cannot be named. The directory must then
/// stay.
pub(crate) fn leftovers(config: &Config) -> Result<Vec<Leftover>, IpcError> {
    let dir = &config.set.runtime_dir;
    let owner = owner_of(dir);
    let mut segments = Vec::new();
    for id in recorded_workers(dir)? {
        let name = read_private(&WorkerPaths::new(dir, &id).segment, owner);
        segments.extend(name.ok().map(|name| (name, id)));
    }
    let recorded = segments.len();
    segments.extend(existing_segments(config)?);
    let mut found: Vec<Leftover> = Vec::new();
    for (index, (name, id)) in segments.iter().enumerate() {
        let digest = (index >= recorded).then(|| config.digest_of(id));
        let Ok(segment) = Segment::open_unchecked(name, digest, owner) else { continue };
        match segment.damage() {
            Some(Damage::Owner) if digest.is_some() => continue, // of a set in another directory
            Some(Damage::Layout(layout)) if segment.is_locked() => {
                return Err(IpcError::OtherVersion { dir: dir.to_owned(), layout });
            }
            Some(Damage::Layout(_)) => continue,
            _ => {}
        }
        if segment.is_role_locked(SegmentRole::Supervisor) {
            return Err(IpcError::AlreadyRunning { dir: dir.to_owned(), pid: 0 });
        }
        let is_known = |found: &[Leftover], pid| found.iter().any(|f| f.pid == pid);
        if segment.is_role_locked(SegmentRole::Worker)
            && let Some(life) = Incarnation::load(&segment)
            && !is_known(&found, life.pid)
        {
            let busy = exchange::claim(&segment).and_then(Claim::in_service).is_some();
            found.push(Leftover { pid: life.pid, started: life.started, what: format!("worker {id}"), busy });
        }
        if segment.is_role_locked(SegmentRole::Dispatcher)
            && let Some(ProcessId { pid, start_time: started }) = DispatcherSide::last_process(&segment)
            && !is_known(&found, pid)
        {
            found.push(Leftover { pid, started, what: "dispatcher".into(), busy: false });
        }
    }
    Ok(found)
}
