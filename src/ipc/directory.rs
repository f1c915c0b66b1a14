//! Directories and files that no other user can have changed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc;
use nix::unistd::{Uid, geteuid, getuid};

use super::error::{IpcError, at};
use super::modes::Modes;

/// Creates `dir` with exactly this mode. An existing directory must pass [`check_directory`].
pub(super) fn prepare_directory(dir: &Path, modes: &Modes) -> io::Result<()> {
    if let Some(parent) = dir.parent()
        && !parent.exists()
    {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {
            if modes.group.is_some() {
                nix::unistd::chown(dir, modes.owner, modes.group)?;
            }
            fs::set_permissions(dir, fs::Permissions::from_mode(modes.directory))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_directory_of(dir, modes.owner),
        Err(error) => Err(error),
    }
}

/// Rejects links, files, and directories that belong to another user or are writable for all users.
pub(super) fn check_directory(dir: &Path) -> io::Result<()> {
    check_directory_of(dir, None)
}

fn check_directory_of(dir: &Path, owner: Option<Uid>) -> io::Result<()> {
    let status = fs::symlink_metadata(dir)?;
    if !status.is_dir() {
        return Err(io::Error::other("it is not a directory (links are not followed): remove it, or choose another"));
    }
    if status.uid() != owner.unwrap_or(geteuid()).as_raw() && status.uid() != 0 {
        return Err(io::Error::other(format!("it belongs to user {}: choose another directory", status.uid())));
    }
    if status.mode() & 0o002 != 0 {
        return Err(io::Error::other("every user may write to it: chmod o-w it, or choose another directory"));
    }
    Ok(())
}

/// The owner of a directory.
pub(super) fn owner_of(dir: &Path) -> Option<u32> {
    fs::symlink_metadata(dir).ok().filter(|status| status.is_dir()).map(|status| status.uid())
}

/// Whose segments the workers of `dir` have: this user's, or, where root creates them for units, the directory's owner's.
pub(super) fn segment_owners(dir: &Path) -> BTreeSet<u32> {
    owner_of(dir).into_iter().chain([getuid().as_raw()]).collect()
}

/// Reads a small file (at most 4 KiB of text) of this user, of root or of `owner`. Does not follow links.
pub(super) fn read_private(path: &Path, owner: Option<u32>) -> io::Result<String> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let status = file.metadata()?;
    let uid = status.uid();
    if !status.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    if uid != geteuid().as_raw() && uid != 0 && Some(uid) != owner {
        return Err(io::Error::other(format!("it belongs to user {uid}")));
    }
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text)?;
    Ok(text)
}

/// Creates a small file that must not exist yet.
pub(super) fn create_file(path: &Path, text: &str, modes: &Modes) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    if modes.group.is_some() {
        nix::unistd::fchown(file.as_fd(), None, modes.group)?;
    }
    file.set_permissions(fs::Permissions::from_mode(modes.doorbell & 0o644))?;
    file.write_all(text.as_bytes())
}

/// Removes a file that may be missing.
pub(super) fn remove_file(path: &Path) -> Result<(), IpcError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}
