//! The lock of a set: at most one owner runs a set in a directory.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use super::directory::{owner_of, read_private};
use super::error::{IpcError, at};
use super::set_name;
use crate::shm;

const WHOLE: (i64, i64) = (0, 0);
const LOCK: &str = "set.lock";
/// The content of the lock file, instead of a pid, if systemd runs the set: no unit of a set outlives the others.
const SYSTEMD: &str = "systemd";
/// The directory of the units, and the configuration that is published there while they run.
const SYSTEMD_DIR: &str = "/run/patou";
/// The directory of the watchdog's state file under systemd: `RuntimeDirectory=` of its unit.
pub(crate) const WATCHDOG_DIR: &str = "/run/patou-watchdog";
const SYSTEMD_CONFIG: &str = "/run/patou-applied/patou.toml";

/// The lock of a set. Released when dropped, or when the process ends.
#[derive(Debug)]
pub(crate) struct SetLock {
    name: Option<UnixListener>,
    held: RefCell<HeldLock>,
}

/// The parts of the lock that can be removed.
#[derive(Debug)]
struct HeldLock {
    file: File,
    /// The directory: systemd-tmpfiles skips one that is locked.
    directory: Option<Flock<File>>,
}

impl HeldLock {
    fn new(file: File, dir: &Path) -> Self {
        // Not locked if systemd-tmpfiles is at work there: `SetLock::renew` tries again.
        let lock = |dir| Flock::lock(dir, FlockArg::LockExclusiveNonblock).ok();
        Self { file, directory: File::open(dir).ok().and_then(lock) }
    }
}

/// The owner of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetOwner {
    /// This process, while it lives.
    Process,
    /// systemd, until the set is removed.
    Systemd,
}

/// Whether `dir` is that of the units.
pub(crate) fn is_directory_of_units(dir: &Path) -> bool {
    dir == Path::new(SYSTEMD_DIR)
}

/// Whether systemd runs the set in `dir`: the lock file says so or, if it was removed, the published configuration.
pub(crate) fn is_run_by_systemd(dir: &Path) -> bool {
    match read_private(&dir.join(LOCK), owner_of(dir)) {
        Ok(text) => text.starts_with(SYSTEMD),
        Err(_) => is_directory_of_units(dir) && Path::new(SYSTEMD_CONFIG).exists(),
    }
}

/// Locks the set in `dir` and writes its owner, this process or systemd, into the lock file.
///
/// # Errors
/// [`IpcError::AlreadyRunning`] with the pid of the owner; [`IpcError::RunBySystemd`] for a process if systemd runs the
/// set.
pub(crate) fn lock_set(dir: &Path, owner: SetOwner) -> Result<SetLock, IpcError> {
    if owner == SetOwner::Process && is_run_by_systemd(dir) {
        return Err(IpcError::RunBySystemd(dir.to_owned()));
    }
    let name = set_name::take(dir)?;
    let file = lock_file(dir, owner)?;
    Ok(SetLock { name, held: RefCell::new(HeldLock::new(file, dir)) })
}

/// Creates the lock file of `dir`, locks it, and writes its owner.
fn lock_file(dir: &Path, owner: SetOwner) -> Result<File, IpcError> {
    let path = dir.join(LOCK);
    loop {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(if owner == SetOwner::Systemd { 0o644 } else { 0o600 })
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(at(&path))?;
        if !shm::try_lock(&file, WHOLE).map_err(|e| at(&path)(e.into()))? {
            // The owner writes its pid right after it has locked the file.
            for _ in 0..100 {
                let mut pid = String::new();
                let _ = file.rewind().and_then(|()| file.read_to_string(&mut pid));
                if let (true, Ok(pid)) = (pid.ends_with('\n'), pid.trim().parse()) {
                    return Err(IpcError::AlreadyRunning { dir: dir.to_owned(), pid });
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            return Err(IpcError::AlreadyRunning { dir: dir.to_owned(), pid: 0 });
        }
        // The last owner may have removed the file between our open and our lock; then another file has this name.
        let locked = file.metadata().map_err(at(&path))?;
        if fs::metadata(&path).is_ok_and(|named| is_same(&named, &locked)) {
            let text = match owner {
                SetOwner::Process => std::process::id().to_string(),
                SetOwner::Systemd => SYSTEMD.to_owned(),
            };
            let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{text}"));
            written.map_err(at(&path))?;
            return Ok(file);
        }
    }
}

fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

impl SetLock {
    /// The pid of the process that runs the set in `dir`, if one does.
    pub(crate) fn holder(dir: &Path) -> Option<u32> {
        Self::file_holder(dir).or_else(|| set_name::holder(dir))
    }

    fn file_holder(dir: &Path) -> Option<u32> {
        let path = dir.join(LOCK);
        let file = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path).ok()?;
        if !shm::is_locked(&file, WHOLE).ok()? {
            return None;
        }
        let mut pid = String::new();
        file.take(32).read_to_string(&mut pid).ok()?;
        pid.trim().parse().ok()
    }

    /// Whether `dir` is still the directory that holds the locked file.
    pub(crate) fn is_in_place(&self, dir: &Path) -> bool {
        let locked = self.held.borrow().file.metadata();
        locked.is_ok_and(|locked| fs::metadata(dir.join(LOCK)).is_ok_and(|named| is_same(&named, &locked)))
    }

    /// Locks the set in `dir` again, after the lock file or the directory was removed or replaced.
    ///
    /// # Errors
    /// When the file cannot be created, or when another set has locked it meanwhile.
    pub(crate) fn renew(&self, dir: &Path) -> Result<(), IpcError> {
        let file = lock_file(dir, SetOwner::Process)?;
        *self.held.borrow_mut() = HeldLock::new(file, dir);
        Ok(())
    }

    /// What keeps the lock effective while the set runs.
    pub(crate) fn maintain(&self, dir: &Path) {
        self.name.iter().for_each(set_name::discard_connections);
        let mut held = self.held.borrow_mut();
        if held.directory.is_none()
            && let Ok(file) = held.file.try_clone()
        {
            *held = HeldLock::new(file, dir);
        }
    }

    /// Removes the lock file, and the directory if it is empty.
    pub(crate) fn remove(&self, dir: &Path) {
        if !self.is_in_place(dir) {
            return;
        }
        let _ = fs::remove_file(dir.join(LOCK));
        let _ = fs::remove_dir(dir); // not empty: foreign files
    }
}
