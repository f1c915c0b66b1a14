//! What a set keeps outside its processes: the runtime directory, and a segment and two bells per worker.
//!
//! ```text
//! <runtime_dir>/set.lock           who runs the set: locked, and holds the pid
//! <runtime_dir>/<pool>/<n>.dw      bell, dispatcher to worker
//! <runtime_dir>/<pool>/<n>.wd      bell, worker to dispatcher
//! <runtime_dir>/<pool>/<n>.segment the name of the segment
//! <runtime_dir>/<pool>/<n>.sock    where its connections are handed over; made by the supervisor
//! ```
//!
//! The name of a segment is written down before the segment is made, so that whoever clears up after a
//! process that died in between knows what to look for.

mod directory;
mod leftover;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{Gid, getuid};

use crate::config::Config;
use crate::doorbell::Doorbell;
use crate::ids::{PoolName, WorkerId};
use crate::shm::{Damage, Segment, SegmentError, SegmentIdentity, SegmentRole, SlotSnapshot};
pub use directory::{SetLock, SetOwner, is_units, lock_set};
use directory::{check_directory, owner_of, prepare_directory, read_private};
pub use leftover::{Leftover, leftovers, remove_dead_segments};

/// Who may use what is made. The default is one user and nobody else.
#[derive(Clone, Copy, Debug)]
pub struct Modes {
    /// Of directories.
    pub directory: u32,
    /// Of bells.
    pub bell: u32,
    /// Of segments.
    pub segment: u32,
    /// The group that shares them.
    pub group: Option<Gid>,
}

impl Default for Modes {
    fn default() -> Self {
        Self { directory: 0o700, bell: 0o600, segment: 0o600, group: None }
    }
}

/// Why the parts of a set cannot be made, opened or removed.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// A file or directory.
    #[error("{}: {cause}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The set is in use.
    #[error("a set is running in {} (pid {pid}): stop it first, or give this one another set.runtime_dir", dir.display())]
    Live {
        /// Where.
        dir: PathBuf,
        /// Who.
        pid: u32,
    },
    /// Processes of another version use what is there: what they write cannot be read here.
    #[error("a set of another version of patou (segment layout {layout}) still runs in {}: stop it with that version, or end its processes", dir.display())]
    OtherVersion {
        /// Where.
        dir: PathBuf,
        /// The layout of their segments.
        layout: u64,
    },
    /// The set is a set of units.
    #[error("the set in {} is run by systemd: stop it first (systemctl stop patou), or give this one another set.runtime_dir", .0.display())]
    Units(PathBuf),
    /// Nobody has made this worker's parts.
    #[error("{} has no worker {worker}: is the set running?", dir.display())]
    NoWorker {
        /// Where.
        dir: PathBuf,
        /// Which.
        worker: WorkerId,
    },
}

impl IpcError {
    /// What is wrong with the segment, if that is why.
    pub fn damage(&self) -> Option<Damage> {
        match self {
            IpcError::Segment(SegmentError::Damaged { damage, .. }) => Some(*damage),
            _ => None,
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> IpcError + '_ {
    move |cause| IpcError::Path { path: path.to_owned(), cause }
}

/// Where the parts of one worker are.
#[derive(Debug)]
struct Paths {
    pool: PathBuf,
    to_worker: PathBuf,
    to_dispatcher: PathBuf,
    segment: PathBuf,
    handoff: PathBuf,
}

impl Paths {
    fn new(dir: &Path, id: &WorkerId) -> Self {
        let pool = dir.join(id.pool.as_str());
        let file = |kind| pool.join(format!("{}.{kind}", id.number));
        Self { to_worker: file("dw"), to_dispatcher: file("wd"), segment: file("segment"), handoff: file("sock"), pool }
    }
}

/// The parts of one worker, open.
#[derive(Debug)]
pub struct WorkerIpc {
    /// Its segment.
    pub segment: Arc<Segment>,
    /// Rung by the dispatcher.
    pub to_worker: Doorbell,
    /// Rung by the worker.
    pub to_dispatcher: Doorbell,
}

/// Where connections are handed over to worker `id`.
pub fn handoff_path(dir: &Path, id: &WorkerId) -> PathBuf {
    Paths::new(dir, id).handoff
}

/// Makes the runtime directory, private to this user; one that is there is checked.
pub fn prepare(config: &Config, modes: &Modes) -> Result<(), IpcError> {
    let dir = &config.set.runtime_dir;
    prepare_directory(dir, modes).map_err(at(dir))
}

/// Makes the parts of one worker, in place of any that a dead set left; the name of its segment. The caller holds
/// the set's lock.
pub fn create_worker(config: &Config, id: &WorkerId, set_epoch: u64, modes: &Modes) -> Result<String, IpcError> {
    let dir = &config.set.runtime_dir;
    let paths = Paths::new(dir, id);
    prepare_directory(&paths.pool, modes).map_err(at(&paths.pool))?;
    remove_worker(dir, id)?;

    let random = getrandom::u64().map_err(|e| at(dir)(io::Error::other(e)))?;
    let name = format!("/patou.{}.{}.{}.{random:016x}", getuid(), config.set.name, id.instance());
    write_whole(&paths.segment, &name, modes).map_err(at(&paths.segment))?;
    let identity = SegmentIdentity { set_epoch, digest: config.digest_of(id) };
    Segment::create(&name, modes.segment, modes.group, identity)?;
    for bell in [&paths.to_worker, &paths.to_dispatcher] {
        Doorbell::create(bell, modes.bell, modes.group).map_err(at(bell))?;
    }
    Ok(name)
}

/// Gives the parts of one worker to another group, in place: who has them open keeps them.
pub fn give_worker(dir: &Path, id: &WorkerId, group: Gid) -> Result<(), IpcError> {
    let paths = Paths::new(dir, id);
    let name = read_private(&paths.segment, owner_of(dir)).map_err(at(&paths.segment))?;
    Segment::set_group(&name, group)?;
    for path in [&paths.pool, &paths.segment, &paths.to_worker, &paths.to_dispatcher] {
        nix::unistd::chown(path, None, Some(group)).map_err(|error| at(path)(error.into()))?;
    }
    Ok(())
}

/// Opens the parts of one worker and checks that they are this set's: whoever owns the directory that the
/// configuration names has made them, or root, or this user.
pub fn open(config: &Config, id: &WorkerId) -> Result<WorkerIpc, IpcError> {
    let parts = open_unchecked(config, id)?;
    match parts.segment.damage() {
        None => Ok(parts),
        Some(damage) => Err(SegmentError::Damaged { name: parts.segment.name().to_owned(), damage }.into()),
    }
}

/// As [`open`], whatever the segment holds: for the dispatcher, who can restore it, and whoever asks it to.
pub fn open_unchecked(config: &Config, id: &WorkerId) -> Result<WorkerIpc, IpcError> {
    let dir = &config.set.runtime_dir;
    let paths = Paths::new(dir, id);
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

/// The name of one worker's segment, as it is recorded.
pub fn segment_name(dir: &Path, id: &WorkerId) -> Result<String, IpcError> {
    let path = Paths::new(dir, id).segment;
    read_private(&path, owner_of(dir)).map_err(at(&path))
}

/// What stands in the slot of one worker at this moment, for who may read it and only looks.
pub fn snapshot(dir: &Path, id: &WorkerId) -> Result<SlotSnapshot, IpcError> {
    Ok(SlotSnapshot::read(&segment_name(dir, id)?, owner_of(dir))?)
}

/// Which life of the set made the segments that are there.
pub fn set_epoch(dir: &Path) -> Result<Option<u64>, IpcError> {
    let open = |id: &WorkerId| Segment::open(&segment_name(dir, id).ok()?, None, owner_of(dir)).ok();
    Ok(recorded(dir)?.iter().find_map(open).map(|segment| segment.set_epoch()))
}

/// Whether this program can use every segment in `dir`.
pub fn is_current(dir: &Path) -> bool {
    list(dir).is_ok_and(|listed| listed.iter().all(|listed| listed.state.is_ok()))
}

/// Removes the parts of one worker, whatever there is of them. Where connections are handed over to it stays in a set of
/// units: that is a socket of systemd's, which listens on it and removes it.
pub fn remove_worker(dir: &Path, id: &WorkerId) -> Result<(), IpcError> {
    let paths = Paths::new(dir, id);
    if !is_units(dir) {
        // First, because it alone is no record of a worker.
        remove_file(&paths.handoff)?;
    }
    match read_private(&paths.segment, None) {
        // Only names that this program gives: the file is ours, and yet its word is not enough to unlink.
        Ok(name) if name.starts_with(&format!("/patou.{}.", getuid())) => Segment::unlink(&name)?,
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(&paths.segment)(error)),
    }
    for path in [&paths.to_worker, &paths.to_dispatcher, &paths.segment] {
        remove_file(path)?;
    }
    Ok(())
}

/// Removes a segment whose name is known, wherever that was written down.
pub fn remove_segment(name: &str) -> Result<(), IpcError> {
    Ok(Segment::unlink(name)?)
}

/// Removes the parts of a worker that is not coming back, and its pool's directory after the last of them.
pub fn retire_worker(dir: &Path, id: &WorkerId) -> Result<(), IpcError> {
    remove_worker(dir, id)?;
    let _ = fs::remove_dir(dir.join(id.pool.as_str())); // not empty: others of the pool
    Ok(())
}

/// Removes everything of a set in `dir`: the caller holds its lock. Foreign files stay. What cannot be removed
/// is told, the first of it, after everything else was.
pub fn remove(dir: &Path) -> Result<(), IpcError> {
    let mut result = remove_workers(dir);
    for name in FILES {
        result = result.and(remove_file(&dir.join(name)));
    }
    result
}

/// Removes the parts of all workers, and nothing else.
pub fn remove_workers(dir: &Path) -> Result<(), IpcError> {
    if dir.exists() {
        check_directory(dir).map_err(at(dir))?;
    }
    let mut result = Ok(());
    for id in recorded(dir)? {
        result = result.and(remove_worker(dir, &id));
    }
    for pool in pools(dir)? {
        let _ = fs::remove_dir(dir.join(pool.as_str())); // not empty: somebody else's files
    }
    result
}

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

/// One worker's parts as `patou ipc list` shows them.
#[derive(Debug)]
pub struct Listed {
    /// Whose.
    pub worker: WorkerId,
    /// The segment's name.
    pub segment: String,
    /// Why it cannot be used, or who has it: dispatcher, worker.
    pub state: Result<(bool, bool), String>,
}

/// What is recorded in `dir`.
pub fn list(dir: &Path) -> Result<Vec<Listed>, IpcError> {
    let mut listed = Vec::new();
    for worker in recorded(dir)? {
        let path = Paths::new(dir, &worker).segment;
        let segment = read_private(&path, owner_of(dir)).map_err(at(&path))?;
        let state = match Segment::open(&segment, None, owner_of(dir)) {
            Ok(open) => Ok((open.is_role_locked(SegmentRole::Dispatcher), open.is_role_locked(SegmentRole::Worker))),
            Err(error) => Err(error.to_string()),
        };
        listed.push(Listed { worker, segment, state });
    }
    Ok(listed)
}

/// The workers whose parts are recorded in `dir`, in order.
pub fn recorded(dir: &Path) -> Result<Vec<WorkerId>, IpcError> {
    let mut found = Vec::new();
    for pool in pools(dir)? {
        let path = dir.join(pool.as_str());
        for entry in fs::read_dir(&path).map_err(at(&path))? {
            let name = entry.map_err(at(&path))?.file_name();
            let number = name.to_str().and_then(|name| name.split_once('.'));
            // A socket of systemd's may be there before and after what it is for.
            let number = number.filter(|(_, kind)| *kind != "sock").map(|(number, _)| number);
            if let Some(id) = number.and_then(|number| format!("{pool}/{number}").parse().ok())
                && !found.contains(&id)
            {
                found.push(id);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The directories in `dir` that are named like pools.
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

fn remove_file(path: &Path) -> Result<(), IpcError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// Writes a small file that must not be there yet.
fn write_whole(path: &Path, text: &str, modes: &Modes) -> io::Result<()> {
    use std::io::Write;
    let mut file = fs::File::options().write(true).create_new(true).open(path)?;
    if modes.group.is_some() {
        nix::unistd::fchown(file.as_fd(), None, modes.group)?;
    }
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(modes.bell & 0o644))?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests;
