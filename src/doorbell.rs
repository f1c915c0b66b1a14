//! A doorbell: a FIFO that carries no state. A byte in it is a wake-up.
//!
//! Both ends open the FIFO for reading and writing (fifo(7)), so that the first end gets no ENXIO, and a restart of one
//! end is no end of file for the other.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, geteuid, mkfifo};

/// Reads that empty a FIFO of the default size, 64 KiB (pipe(7)).
const CLEAR_READS_MAX: usize = 16;

/// One direction of a pair.
#[derive(Debug)]
pub struct Doorbell(File);

impl Doorbell {
    /// Creates the FIFO with exactly this mode and, if given, this group.
    pub fn create(path: &Path, mode: u32, group: Option<Gid>) -> io::Result<()> {
        mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        if group.is_some() {
            nix::unistd::chown(path, None, group)?;
        }
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
    }

    /// Opens a FIFO that belongs to this user, to root, or to `owner`. Does not follow links.
    pub fn open(path: &Path, owner: Option<u32>) -> io::Result<Self> {
        Self::open_with(path, owner, libc::O_NOFOLLOW)
    }

    /// As [`Doorbell::open`], by a path in `/proc` to a descriptor of the FIFO.
    pub(crate) fn open_descriptor(path: &Path, owner: Option<u32>) -> io::Result<Self> {
        Self::open_with(path, owner, 0)
    }

    fn open_with(path: &Path, owner: Option<u32>, flags: i32) -> io::Result<Self> {
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC | flags;
        let file = File::options().read(true).write(true).custom_flags(flags).open(path)?;
        let status = file.metadata()?;
        if !status.file_type().is_fifo() {
            return Err(io::Error::other("it is not a FIFO"));
        }
        let uid = status.uid();
        if uid != geteuid().as_raw() && uid != 0 && Some(uid) != owner {
            return Err(io::Error::other(format!("it belongs to user {uid}")));
        }
        Ok(Self(file))
    }

    /// Rings. A full FIFO is no error: it is ringing already.
    pub fn ring(&self) {
        // A FIFO that is open in both directions has a reader, so "full" is the only possible error.
        let _ = (&self.0).write(&[1]);
    }

    /// See [`clear`].
    pub fn clear(&self) -> bool {
        clear(self)
    }
}

/// Reads all bytes from a doorbell; whether there was one. The number of reads is bounded, against a writer that never
/// stops; bytes that are left carry no information.
pub(crate) fn clear(doorbell: &impl AsFd) -> bool {
    let mut bytes = [0; 4096];
    let mut rang = false;
    for _ in 0..CLEAR_READS_MAX {
        let Ok(n) = nix::unistd::read(doorbell, &mut bytes) else { break };
        rang |= n > 0;
        if n < bytes.len() {
            break;
        }
    }
    rang
}

impl From<Doorbell> for OwnedFd {
    fn from(doorbell: Doorbell) -> Self {
        doorbell.0.into()
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> std::path::PathBuf {
        let directory = std::env::temp_dir().join(format!("patou-doorbell-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn a_doorbell_rings_until_cleared_and_is_never_too_full() {
        let directory = directory("ring");
        let path = directory.join("doorbell");
        Doorbell::create(&path, 0o600, None).unwrap();
        let (one, two) = (Doorbell::open(&path, None).unwrap(), Doorbell::open(&path, None).unwrap());
        assert!(!two.clear());
        for _ in 0..100_000 {
            one.ring();
        }
        assert!(two.clear());
        assert!(!two.clear());
        drop(one);
        assert!(!two.clear(), "a closed end is no end of file for the other");

        // A peer that enlarges and fills the FIFO does not make `clear` read without a bound.
        nix::fcntl::fcntl(&two, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 18)).unwrap();
        while (&two.0).write(&[1; 4096]).is_ok() {}
        let clears = (0..100).take_while(|_| two.clear()).count();
        assert_eq!(clears, (1 << 18) / (CLEAR_READS_MAX * 4096));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn only_a_fifo_is_opened() {
        let directory = directory("refuse");
        let plain = directory.join("plain");
        std::fs::write(&plain, "").unwrap();
        assert!(Doorbell::open(&plain, None).unwrap_err().to_string().contains("not a FIFO"));
        let fifo = directory.join("fifo");
        Doorbell::create(&fifo, 0o600, None).unwrap();
        let link = directory.join("link");
        std::os::unix::fs::symlink(&fifo, &link).unwrap();
        assert_eq!(Doorbell::open(&link, None).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
