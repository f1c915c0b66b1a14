//! The runtime directory of a set and the workers recorded in it.

use std::fs;
use std::path::Path;

use super::directory::{check_directory, owner_of, prepare_directory, read_private, remove_file};
use super::error::{IpcError, at};
use super::modes::Modes;
use super::worker_ipc::{WorkerPaths, remove_worker, segment_name};
use crate::config::Config;
use crate::ids::{PoolName, WorkerId};
use crate::shm::{Segment, SegmentRole};

/// The files of a set besides those of its workers.
const FILES: [&str; 7] = [
    "probe.sock",
    "notify.sock",
    "admin.sock",
    "watchdog.json",
    "watchdog.json.new",
    "applied.toml",
    "applied.toml.new",
];

/// Creates the runtime directory, or checks the existing one.
pub(crate) fn prepare(config: &Config, modes: &Modes) -> Result<(), IpcError> {
    let dir = &config.set.runtime_dir;
    prepare_directory(dir, modes).map_err(at(dir))
}

/// The epoch of the set that created the existing segments.
pub(crate) fn set_epoch(dir: &Path) -> Result<Option<u64>, IpcError> {
    let open = |id: &WorkerId| Segment::open(&segment_name(dir, id).ok()?, None, owner_of(dir)).ok();
    Ok(recorded_workers(dir)?.iter().find_map(open).map(|segment| segment.set_epoch()))
}

/// Whether this program can use every segment in `dir`.
pub(crate) fn is_current(dir: &Path) -> bool {
    list(dir).is_ok_and(|listed| listed.iter().all(|listed| listed.state.is_ok()))
}

/// Removes the objects of a worker that is not coming back, and its pool's directory after the last worker.
pub(crate) fn retire_worker(dir: &Path, id: &WorkerId) -> Result<(), IpcError> {
    remove_worker(dir, id)?;
    let _ = fs::remove_dir(dir.join(id.pool.as_str())); // not empty: other workers of the pool
    Ok(())
}

/// Removes all objects of the set in `dir`, whose lock the caller holds. Foreign files stay. Continues after an error
/// and returns the first one.
pub(crate) fn remove(dir: &Path) -> Result<(), IpcError> {
    let mut result = remove_workers(dir);
    for name in FILES {
        result = result.and(remove_file(&dir.join(name)));
    }
    result
}

/// Removes the objects of all workers, and nothing else.
pub(crate) fn remove_workers(dir: &Path) -> Result<(), IpcError> {
    if dir.exists() {
        check_directory(dir).map_err(at(dir))?;
    }
    let mut result = Ok(());
    for id in recorded_workers(dir)? {
        result = result.and(remove_worker(dir, &id));
    }
    for pool in pools(dir)? {
        let _ = fs::remove_dir(dir.join(pool.as_str())); // not empty: foreign files
    }
    result
}

/// A worker's objects as `patou ipc list` shows them.
#[derive(Debug)]
pub(crate) struct ListedWorker {
    /// The worker.
    pub worker: WorkerId,
    /// The name of its segment.
    pub segment: String,
    /// Whether a dispatcher and a worker hold their roles of the segment, or why it cannot be used.
    pub state: Result<(bool, bool), String>,
}

/// The recorded workers of `dir` with their segments.
pub(crate) fn list(dir: &Path) -> Result<Vec<ListedWorker>, IpcError> {
    let mut listed = Vec::new();
    for worker in recorded_workers(dir)? {
        let path = WorkerPaths::new(dir, &worker).segment;
        let segment = read_private(&path, owner_of(dir)).map_err(at(&path))?;
        let state = match Segment::open(&segment, None, owner_of(dir)) {
            Ok(open) => Ok((open.is_role_locked(SegmentRole::Dispatcher), open.is_role_locked(SegmentRole::Worker))),
            Err(error) => Err(error.to_string()),
        };
        listed.push(ListedWorker { worker, segment, state });
    }
    Ok(listed)
}

/// The workers of which a file exists in `dir`, in order.
pub(crate) fn recorded_workers(dir: &Path) -> Result<Vec<WorkerId>, IpcError> {
    let mut found = Vec::new();
    for pool in pools(dir)? {
        let path = dir.join(pool.as_str());
        for entry in fs::read_dir(&path).map_err(at(&path))? {
            let name = entry.map_err(at(&path))?.file_name();
            // A socket of systemd may exist before the worker is created and after it is removed.
            let Some((number, _)) =
                name.to_str().and_then(|name| name.split_once('.')).filter(|(_, kind)| *kind != "sock")
            else {
                continue;
            };
            if let Ok(number) = number.parse() {
                let id = WorkerId { pool: pool.clone(), number };
                if !found.contains(&id) {
                    found.push(id);
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The directories in `dir` with the name of a pool.
fn pools(dir: &Path) -> Result<Vec<PoolName>, IpcError> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut pools = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let (true, Some(Ok(pool))) = (is_dir, entry.file_name().to_str().map(PoolName::new)) {
            pools.push(pool);
        }
    }
    pools.sort();
    Ok(pools)
}
