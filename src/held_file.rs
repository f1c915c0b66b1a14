//! A file that a process reaches by descriptor, also after the file's name was removed.
//!
//! A new file at the same path is another object, and an unlinked one cannot be linked again: only a descriptor leads to
//! it. `/proc/<pid>/fd/<n>` (proc(5)) opens the object behind the descriptor, and connect(2) accepts it as the address of
//! a Unix socket.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::fstat;
use nix::unistd::dup3;

/// Whether an error of a call with a path says that the path leads to nothing: its last part is missing, or a directory
/// before it is missing or something else now.
pub(crate) fn leads_nowhere(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP))
}

/// A descriptor of a file, and the path at which others look for it.
#[derive(Debug)]
pub(crate) struct HeldFile<F: AsFd = OwnedFd> {
    path: PathBuf,
    fd: F,
}

impl HeldFile {
    /// Holds what is at `path` now, whatever it is; links are not followed. The descriptor only refers to the file
    /// (`O_PATH`, open(2)): a holder can neither read it nor change its flags.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
        Ok(Self { path: path.to_owned(), fd: fd.into() })
    }

    /// As [`HeldFile::open`], for a file whose name may be gone: `descriptor` is a path in `/proc` that leads to it.
    pub(crate) fn open_descriptor(path: PathBuf, descriptor: &Path) -> io::Result<Self> {
        let fd = File::options().read(true).custom_flags(libc::O_PATH).open(descriptor)?;
        Ok(Self { path, fd: fd.into() })
    }

    /// Holds another file under the same number: other processes may have been given its [`HeldFile::descriptor_path`].
    pub(crate) fn replace(&mut self, new: HeldFile) {
        if dup3(&new.fd, &mut self.fd, OFlag::O_CLOEXEC).is_err() {
            self.fd = new.fd;
        }
        self.path = new.path;
    }
}

impl<F: AsFd> HeldFile<F> {
    /// `fd`, which was opened or bound at `path`.
    pub(crate) fn of(path: PathBuf, fd: F) -> Self {
        Self { path, fd }
    }

    /// The path at which others look for the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor.
    pub(crate) fn get(&self) -> &F {
        &self.fd
    }

    /// Whether the path still leads to this file.
    pub(crate) fn is_in_place(&self) -> bool {
        let held = fstat(self.fd.as_fd());
        let named = fs::symlink_metadata(&self.path);
        held.is_ok_and(|held| named.is_ok_and(|named| (named.dev(), named.ino()) == (held.st_dev, held.st_ino)))
    }

    /// A path that leads to this file, whatever became of its name, for this process and others of the same user.
    pub(crate) fn descriptor_path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_fd().as_raw_fd()).into()
    }

    /// The same, for this process alone: also where `/proc` shows another pid namespace.
    pub(crate) fn own_descriptor_path(&self) -> PathBuf {
        own_path(&self.fd)
    }

    /// Its own path while that leads to it, otherwise [`Self::descriptor_path`].
    pub(crate) fn reachable_path(&self) -> PathBuf {
        if self.is_in_place() { self.path.clone() } else { self.descriptor_path() }
    }

    /// A descriptor that only refers to the file, for another process.
    pub(crate) fn reference(&self) -> io::Result<OwnedFd> {
        Ok(HeldFile::open_descriptor(self.path.clone(), &self.descriptor_path())?.fd)
    }
}

/// Opens the file behind a descriptor once more, whatever became of its name: locks and flags are not shared with it.
pub(crate) fn reopen(fd: impl AsFd) -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(own_path(fd))?.into())
}

fn own_path(fd: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_removed_file_and_a_removed_socket_are_still_reached() {
        let dir = std::env::temp_dir().join(format!("patou-held-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (file, socket) = (dir.join("file"), dir.join("socket"));
        fs::write(&file, "text").unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        let (mut file, socket) = (HeldFile::open(&file).unwrap(), HeldFile::open(&socket).unwrap());
        assert!(file.is_in_place() && file.reachable_path() == file.path());
        fs::remove_dir_all(&dir).unwrap();
        assert!(!file.is_in_place() && !socket.is_in_place());
        assert_eq!(fs::read_to_string(file.reachable_path()).unwrap(), "text");
        UnixStream::connect(socket.reachable_path()).unwrap();
        // A new file at the path is another one.
        fs::create_dir_all(&dir).unwrap();
        fs::write(file.path(), "other").unwrap();
        assert!(!file.is_in_place());
        assert_eq!(fs::read_to_string(file.reachable_path()).unwrap(), "text");
        // The path to the descriptor leads to what is held there now.
        let given = file.descriptor_path();
        file.replace(HeldFile::open(&dir.join("file")).unwrap());
        assert_eq!((fs::read_to_string(given).unwrap().as_str(), file.is_in_place()), ("other", true));
        fs::remove_dir_all(&dir).unwrap();
    }
}
