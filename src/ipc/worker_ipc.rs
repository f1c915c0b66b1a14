//! The objects of one worker: segment, doorbells, and the path of its socket.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{Gid, getuid};

use super::directory::{create_file, owner_of, prepare_directory, read_private, remove_file, segment_owners};
use super::error::{IpcError, at};
use super::modes::Modes;
use super::passed::{PassedObjects, WorkerObject};
use super::set_lock::is_run_by_systemd;
use crate::config::Config;
use crate::doorbell::Doorbell;
use crate::ids::{Epoch, WorkerId};
use crate::shm::{self, Segment, SegmentError, SegmentIdentity, SlotSnapshot};

/// The paths of one worker's objects.
#[derive(Debug)]
pub(super) struct WorkerPaths {
    pub(super) pool: PathBuf,
    pub(super) to_worker: PathBuf,
    pub(super) to_dispatcher: PathBuf,
    pub(super) segment: PathBuf,
    pub(super) handoff: PathBuf,
}

impl WorkerPaths {
    pub(super) fn new(dir: &Path, id: &WorkerId) -> Self {
        let pool = dir.join(id.pool.as_str());
        let file = |kind| pool.join(format!("{}.{kind}", id.number));
        Self { to_worker: file("dw"), to_dispatcher: file("wd"), segment: file("segment"), handoff: file("sock"), pool }
    }
}

/// The objects of one worker, open.
#[derive(Debug)]
pub(crate) struct WorkerIpc {
    /// Its segment.
    pub segment: Arc<Segment>,
    /// Rung by the dispatcher.
    pub to_worker: Doorbell,
    /// Rung by the worker.
    pub to_dispatcher: Doorbell,
}

/// The path of the socket on which worker `id` receives connections.
pub(crate) fn handoff_path(dir: &Path, id: &WorkerId) -> PathBuf {
    WorkerPaths::new(dir, id).handoff
}

/// The base of the digits in the name of a socket. An incarnation has fewer processes at a time: one, its successor, and
/// those that are about to end.
const APP_SOCKET_BASE: u32 = 36;

/// The path of the sockets on which the processes of this incarnation of worker `id` listen, without the digit at its end.
///
/// Each incarnation has names of its own, because a process of the previous one may end late and remove its socket. They
/// are as long as that of the worker's own socket, whose length `check` knows.
pub(crate) fn app_sockets(dir: &Path, id: &WorkerId, epoch: Epoch) -> PathBuf {
    let epoch = u64::from(epoch.get());
    let (high, low) = (digit(epoch / u64::from(APP_SOCKET_BASE)), digit(epoch));
    WorkerPaths::new(dir, id).handoff.with_extension(format!("a{high}{low}"))
}

/// The socket of the process with this number.
pub(crate) fn app_socket(sockets: &Path, number: u64) -> PathBuf {
    let mut path = sockets.as_os_str().to_owned();
    path.push(digit(number).to_string());
    path.into()
}

fn digit(number: u64) -> char {
    let last = number % u64::from(APP_SOCKET_BASE);
    char::from_digit(last as u32, APP_SOCKET_BASE).expect("it is less than the base")
}

/// Removes the sockets that processes of previous incarnations of worker `id` have left.
pub(crate) fn remove_app_sockets(dir: &Path, id: &WorkerId) -> Result<(), IpcError> {
    let pool = WorkerPaths::new(dir, id).pool;
    let prefix = format!("{}.a", id.number);
    let entries = match fs::read_dir(&pool) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(at(&pool))?,
    };
    for entry in entries {
        let entry = entry.map_err(at(&pool))?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// Creates the objects of one worker, in place of those of a dead set, and returns the name of the segment. The caller
/// holds the set's lock.
pub(crate) fn create_worker(config: &Config, id: &WorkerId, set_epoch: u64, modes: &Modes) -> Result<String, IpcError> {
    recreate_worker(config, id, set_epoch, modes, &[])
}

/// As [`create_worker`], in place of objects that were lost; the new slot has these words of the old one. No incarnation
/// of the worker lives.
pub(crate) fn recreate_worker(
    config: &Config,
    id: &WorkerId,
    set_epoch: u64,
    modes: &Modes,
    content: &[u64],
) -> Result<String, IpcError> {
    let dir = &config.set.runtime_dir;
    let paths = WorkerPaths::new(dir, id);
    prepare_directory(&paths.pool, modes).map_err(at(&paths.pool))?;
    remove_worker(dir, id)?;

    let random = getrandom::u64().map_err(|e| at(dir)(io::Error::other(e)))?;
    let owner = modes.owner.unwrap_or(getuid());
    let name = format!("/patou.{owner}.{}.{}.{random:016x}", config.set.name, id.instance());
    create_file(&paths.segment, &name, modes).map_err(at(&paths.segment))?;
    let identity = SegmentIdentity { set_epoch, digest: config.digest_of(id) };
    Segment::create(&name, modes.segment, modes.group, identity, content)?;
    let completed = (|| {
        for doorbell in [&paths.to_worker, &paths.to_dispatcher] {
            Doorbell::create(doorbell, modes.doorbell, modes.group).map_err(at(doorbell))?;
        }
        if modes.owner.is_some() {
            let object = shm::path(&name);
            for path in [&object, &paths.to_worker, &paths.to_dispatcher, &paths.segment] {
                nix::unistd::chown(path, modes.owner, None).map_err(|error| at(path)(error.into()))?;
            }
        }
        Ok(())
    })();
    if completed.is_err() {
        // The file that names it may be lost again already, and no other record exists.
        let _ = Segment::unlink(&name);
    }
    completed.map(|()| name)
}

/// Changes the group of the objects of one worker. Processes that have them open keep them.
pub(crate) fn set_worker_group(dir: &Path, id: &WorkerId, group: Gid) -> Result<(), IpcError> {
    let paths = WorkerPaths::new(dir, id);
    let name = read_private(&paths.segment, owner_of(dir)).map_err(at(&paths.segment))?;
    Segment::set_group(&name, group)?;
    for path in [&paths.pool, &paths.segment, &paths.to_worker, &paths.to_dispatcher] {
        nix::unistd::chown(path, None, Some(group)).map_err(|error| at(path)(error.into()))?;
    }
    Ok(())
}

/// Opens the objects of one worker. They must be this set's, and belong to this user, to root, or to the owner of the
/// runtime directory.
pub(crate) fn open(config: &Config, id: &WorkerId) -> Result<WorkerIpc, IpcError> {
    checked(open_unchecked(config, id, None)?)
}

/// `ipc` if its segment is undamaged.
pub(crate) fn checked(ipc: WorkerIpc) -> Result<WorkerIpc, IpcError> {
    match ipc.segment.damage() {
        None => Ok(ipc),
        Some(damage) => Err(SegmentError::Damaged { name: ipc.segment.name().to_owned(), damage }.into()),
    }
}

/// As [`open`], whatever the segment contains: for the dispatcher, which can restore it, and for a worker that requests
/// this. If they cannot be found by their names, those that a supervisor has `passed` are opened.
pub(crate) fn open_unchecked(
    config: &Config,
    id: &WorkerId,
    passed: Option<&PassedObjects>,
) -> Result<WorkerIpc, IpcError> {
    let found = open_by_name(config, id);
    match passed {
        Some(passed) if found.is_err() => open_passed(passed, config.digest_of(id), owner_of(&config.set.runtime_dir)),
        _ => found,
    }
}

/// Each process opens the objects for itself: flags and locks belong to the open file, not to the descriptor.
fn open_passed(passed: &PassedObjects, digest: u64, owner: Option<u32>) -> Result<WorkerIpc, IpcError> {
    let path = |object| {
        let path = passed.path(object).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        path.map_err(at(Path::new("passed descriptors")))
    };
    let doorbell = |object| {
        let path = path(object)?;
        Doorbell::open_descriptor(path, owner).map_err(at(path))
    };
    Ok(WorkerIpc {
        segment: Arc::new(Segment::open_descriptor(path(WorkerObject::Segment)?, Some(digest), owner)?),
        to_worker: doorbell(WorkerObject::ToWorker)?,
        to_dispatcher: doorbell(WorkerObject::ToDispatcher)?,
    })
}

fn open_by_name(config: &Config, id: &WorkerId) -> Result<WorkerIpc, IpcError> {
    let dir = &config.set.runtime_dir;
    let paths = WorkerPaths::new(dir, id);
    let owner = owner_of(dir);
    let name = match read_private(&paths.segment, owner) {
        Ok(name) => name,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(IpcError::NoWorker { dir: dir.clone(), worker: id.clone() });
        }
        Err(error) => return Err(at(&paths.segment)(error)),
    };
    Ok(WorkerIpc {
        segment: Arc::new(Segment::open_unchecked(&name, Some(config.digest_of(id)), owner)?),
        to_worker: Doorbell::open(&paths.to_worker, owner).map_err(at(&paths.to_worker))?,
        to_dispatcher: Doorbell::open(&paths.to_dispatcher, owner).map_err(at(&paths.to_dispatcher))?,
    })
}

/// The files of one worker's segment and doorbells. The segment's own file is missing if its name is not recorded.
pub(crate) fn object_paths(dir: &Path, id: &WorkerId) -> Vec<PathBuf> {
    let paths = WorkerPaths::new(dir, id);
    let object = read_private(&paths.segment, owner_of(dir)).ok().map(|name| shm::path(&name));
    [paths.segment, paths.to_worker, paths.to_dispatcher].into_iter().chain(object).collect()
}

/// The recorded name of one worker's segment.
pub(crate) fn segment_name(dir: &Path, id: &WorkerId) -> Result<String, IpcError> {
    let path = WorkerPaths::new(dir, id).segment;
    read_private(&path, owner_of(dir)).map_err(at(&path))
}

/// The current content of one worker's slot, for readers.
pub(crate) fn snapshot(dir: &Path, id: &WorkerId) -> Result<SlotSnapshot, IpcError> {
    Ok(SlotSnapshot::read(&segment_name(dir, id)?, owner_of(dir))?)
}

/// As [`snapshot`], by a path in `/proc` to a descriptor of the segment, whose name may be gone.
pub(crate) fn snapshot_at(descriptor: &Path, id: &WorkerId) -> Result<SlotSnapshot, IpcError> {
    let segment = File::open(descriptor).map_err(at(descriptor))?;
    Ok(SlotSnapshot::of(&segment, &id.to_string())?)
}

/// Removes the objects of one worker, as far as they exist. In a set that systemd runs the socket stays: systemd
/// listens on it and removes it.
pub(crate) fn remove_worker(dir: &Path, id: &WorkerId) -> Result<(), IpcError> {
    let paths = WorkerPaths::new(dir, id);
    if !is_run_by_systemd(dir) {
        // First, because the socket alone is no record of a worker.
        remove_file(&paths.handoff)?;
    }
    // Only names that this program creates: a name in a file is not enough to unlink a segment.
    let is_own = |name: &str| segment_owners(dir).iter().any(|uid| name.starts_with(&format!("/patou.{uid}.")));
    match read_private(&paths.segment, owner_of(dir)) {
        Ok(name) if is_own(&name) => Segment::unlink(&name)?,
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(&paths.segment)(error)),
    }
    for path in [paths.to_worker, paths.to_dispatcher, paths.segment] {
        remove_file(&path)?;
    }
    remove_app_sockets(dir, id)?;
    Ok(())
}

/// Removes a segment by its name.
pub(crate) fn remove_segment(name: &str) -> Result<(), IpcError> {
    Ok(Segment::unlink(name)?)
}
