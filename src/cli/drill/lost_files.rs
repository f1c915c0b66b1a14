//! Removes files of a running set, as logind, systemd-tmpfiles and operators do.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::fault::{DrillFault, FaultKind, FaultTarget};
use super::set::DrillSet;
use crate::config::{AdminConfig, ListenAddress};
use crate::ids::WorkerId;
use crate::ipc;

/// How often the removal of a directory is repeated while the set creates files in it.
const DIRECTORY_RETRIES: usize = 10;

/// Removes what the kind of fault names. Returns the files that the set must create again without a restart of any part.
///
/// # Errors
/// A file cannot be removed.
pub(super) fn remove(set: &DrillSet, fault: &DrillFault) -> Result<Vec<PathBuf>, String> {
    let dir = set.dir();
    let state = || vec![dir.join("applied.toml"), dir.join("watchdog.json")];
    let (probe, admin) = (dir.join("probe.sock"), dir.join(AdminConfig::SOCKET));
    let worker = match fault.target {
        FaultTarget::Slot(index) => Some(&set.workers[index]),
        _ => None,
    };
    let files = match (fault.kind, worker) {
        (FaultKind::RemoveSegment, Some(worker)) => segments(set, &[worker]),
        (FaultKind::RemoveDoorbells, Some(worker)) => doorbells(dir, worker).to_vec(),
        (FaultKind::RemoveHandoffSocket, Some(worker)) => vec![ipc::handoff_path(dir, worker)],
        (FaultKind::RemoveProbeSocket, _) => vec![probe],
        (FaultKind::RemoveAdminSocket, _) => vec![admin],
        (FaultKind::RemoveListenerSockets, _) => unix_addresses(set),
        (FaultKind::RemoveState, _) => state(),
        (FaultKind::RemoveLock, _) => vec![dir.join("set.lock")],
        _ => {
            let mut files: Vec<_> = state().into_iter().chain([probe, admin]).collect();
            let mut others = Vec::new();
            if fault.kind == FaultKind::RemoveAll {
                files.extend(unix_addresses(set));
                others = segments(set, &set.workers.iter().collect::<Vec<_>>());
            }
            let existing = existing(files);
            remove_directory(dir, fault).map_err(|error| format!("{}: {error}", dir.display()))?;
            remove_files(existing.iter().chain(&others))?;
            return Ok(existing);
        }
    };
    let existing = existing(files);
    remove_files(existing.iter())?;
    Ok(if fault.kind.is_repaired() { existing } else { Vec::new() })
}

fn existing(mut files: Vec<PathBuf>) -> Vec<PathBuf> {
    files.retain(|file| file.exists());
    files
}

fn remove_files<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<(), String> {
    for file in files {
        match fs::remove_file(file) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(format!("{}: {error}", file.display())),
            _ => {}
        }
    }
    Ok(())
}

/// The segments of these workers that still have a name.
fn segments(set: &DrillSet, workers: &[&WorkerId]) -> Vec<PathBuf> {
    let path = |worker: &&WorkerId| {
        let name = ipc::segment_name(set.dir(), worker).ok()?;
        Some(Path::new("/dev/shm").join(name.trim_start_matches('/')))
    };
    workers.iter().filter_map(path).collect()
}

/// The paths of a worker's doorbells.
pub(super) fn doorbells(dir: &Path, worker: &WorkerId) -> [PathBuf; 2] {
    ["dw", "wd"].map(|kind| dir.join(worker.pool.as_str()).join(format!("{}.{kind}", worker.number)))
}

/// The socket files of all Unix listeners and of all workers with a Unix address.
fn unix_addresses(set: &DrillSet) -> Vec<PathBuf> {
    let listeners = set.config.listeners.iter().map(|listener| listener.address.clone());
    let address = |id: &WorkerId| Some(set.config.pool(&id.pool)?.worker_address(id.number));
    let addresses = listeners.chain(set.workers.iter().filter_map(address));
    let paths = addresses.filter_map(|address| match address {
        ListenAddress::Unix(path) => Some(path),
        ListenAddress::Tcp(_) => None,
    });
    paths.collect()
}

/// Moves the directory away and removes it there, or removes it in place.
fn remove_directory(dir: &Path, fault: &DrillFault) -> io::Result<()> {
    let moved = dir.with_extension(format!("gone{}", fault.number));
    if fault.seed & 1 == 0 && fs::rename(dir, &moved).is_ok() {
        return fs::remove_dir_all(&moved);
    }
    for _ in 0..DIRECTORY_RETRIES {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => break,
        }
    }
    Ok(()) // or the set has already repaired it
}
