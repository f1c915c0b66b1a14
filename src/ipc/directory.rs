//! Directories and files that only their owner may have touched.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::libc;
use nix::unistd::geteuid;

use super::{IpcError, Modes, at};
use crate::shm;

/// Makes `dir` with exactly this mode; one that is there must be a directory of ours that others cannot write.
pub(super) fn prepare_directory(dir: &Path, modes: &Modes) -> io::Result<()> {
    if let Some(parent) = dir.parent()
        && !parent.exists()
    {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {
            if modes.group.is_some() {
                nix::unistd::chown(dir, None, modes.group)?;
            }
            fs::set_permissions(dir, fs::Permissions::from_mode(modes.directory))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_directory(dir),
        Err(error) => Err(error),
    }
}

/// Refuses links, files, and directories that somebody else owns or may write.
pub(super) fn check_directory(dir: &Path) -> io::Result<()> {
    let status = fs::symlink_metadata(dir)?;
    if !status.is_dir() {
        return Err(io::Error::other("it is not a directory (links are not followed): remove it, or choose another"));
    }
    if status.uid() != geteuid().as_raw() && status.uid() != 0 {
        return Err(io::Error::other(format!("it belongs to user {}: choose another directory", status.uid())));
    }
    if status.mode() & 0o002 != 0 {
        return Err(io::Error::other("everybody may write to it: chmod o-w it, or choose another directory"));
    }
    Ok(())
}

/// Who owns a directory.
pub(super) fn owner_of(dir: &Path) -> Option<u32> {
    fs::symlink_metadata(dir).ok().filter(|status| status.is_dir()).map(|status| status.uid())
}

/// Reads a small file (at most 4 KiB of text) of ours, of root or of `owner`; links are not followed.
pub(super) fn read_private(path: &Path, owner: Option<u32>) -> io::Result<String> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let status = file.metadata()?;
    let uid = status.uid();
    if !status.is_file() || (uid != geteuid().as_raw() && uid != 0 && Some(uid) != owner) {
        return Err(io::Error::other("it is not a file of ours"));
    }
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text)?;
    Ok(text)
}

/// The right to run the set in a directory. Given up when dropped, or at death.
#[derive(Debug)]
pub struct SetLock {
    file: File,
}

const WHOLE: (i64, i64) = (0, 0);
const LOCK: &str = "set.lock";
/// What the lock's file holds instead of a pid when the set is a set of units, of which none outlives the others.
const UNITS: &str = "systemd";

/// Who keeps a set running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOwner {
    /// This process, while it lives.
    Process,
    /// systemd, until the set is removed.
    Units,
}

/// Whether the set in `dir` is a set of units.
pub fn is_units(dir: &Path) -> bool {
    read_private(&dir.join(LOCK), owner_of(dir)).is_ok_and(|text| text.starts_with(UNITS))
}

/// Takes the lock of the set in `dir` and writes down who keeps it: our pid, or systemd.
///
/// # Errors
/// [`IpcError::Live`] with the pid of whoever has it; [`IpcError::Units`] for a process where units are.
pub fn lock_set(dir: &Path, keeper: SetOwner) -> Result<SetLock, IpcError> {
    let path = dir.join(LOCK);
    if keeper == SetOwner::Process && is_units(dir) {
        return Err(IpcError::Units(dir.to_owned()));
    }
    loop {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(if keeper == SetOwner::Units { 0o644 } else { 0o600 })
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(at(&path))?;
        if !shm::try_lock(&file, WHOLE).map_err(|e| at(&path)(e.into()))? {
            // Whoever has it writes down his pid next.
            for _ in 0..100 {
                let mut pid = String::new();
                let _ = file.rewind().and_then(|()| file.read_to_string(&mut pid));
                if let (true, Ok(pid)) = (pid.ends_with('\n'), pid.trim().parse()) {
                    return Err(IpcError::Live { dir: dir.to_owned(), pid });
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            return Err(IpcError::Live { dir: dir.to_owned(), pid: 0 });
        }
        // Its last owner may have removed it between our open and our lock: then this file is nobody's.
        let ours = file.metadata().map_err(at(&path))?;
        if fs::metadata(&path).is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
            let who = match keeper {
                SetOwner::Process => std::process::id().to_string(),
                SetOwner::Units => UNITS.to_owned(),
            };
            let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{who}"));
            written.map_err(at(&path))?;
            return Ok(SetLock { file });
        }
    }
}

impl SetLock {
    /// The pid of whoever runs the set in `dir`, if somebody does.
    pub fn holder(dir: &Path) -> Option<u32> {
        let path = dir.join(LOCK);
        let file = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path).ok()?;
        if !shm::is_locked(&file, WHOLE).ok()? {
            return None;
        }
        let mut pid = String::new();
        file.take(32).read_to_string(&mut pid).ok()?;
        pid.trim().parse().ok()
    }

    /// Whether `dir` is still the directory in which it was taken.
    pub fn is_in_place(&self, dir: &Path) -> bool {
        let same = |ours: fs::Metadata, named: fs::Metadata| (ours.dev(), ours.ino()) == (named.dev(), named.ino());
        self.file.metadata().is_ok_and(|ours| fs::metadata(dir.join(LOCK)).is_ok_and(|named| same(ours, named)))
    }

    /// Ends the set: removes the lock's file, and the directory if nothing else is in it.
    pub fn remove(self, dir: &Path) {
        if !self.is_in_place(dir) {
            return;
        }
        let _ = fs::remove_file(dir.join(LOCK));
        let _ = fs::remove_dir(dir); // not empty: somebody else's files
    }
}
