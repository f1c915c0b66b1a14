//! A bell: a FIFO that carries no state. A byte in it says "look".
//!
//! Both ends open it for reading and writing (fifo(7)), so that neither gets ENXIO before the other is
//! there, or an end of file when the other is restarted.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, geteuid, mkfifo};

/// Reads that empty a FIFO of the default size, 64 KiB (pipe(7)).
const HUSH_READS: usize = 16;

/// One direction of a pair.
#[derive(Debug)]
pub struct Doorbell(File);

impl Doorbell {
    /// Makes the FIFO with exactly this mode, and this group where given.
    pub fn create(path: &Path, mode: u32, group: Option<Gid>) -> io::Result<()> {
        mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        if group.is_some() {
            nix::unistd::chown(path, None, group)?;
        }
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
    }

    /// Opens a FIFO that belongs to this user, to root, or to `owner`. Links are not followed.
    pub fn open(path: &Path, owner: Option<u32>) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(path)?;
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
        // A FIFO opened for both directions has a reader, so nothing but "full" can be reported.
        let _ = (&self.0).write(&[1]);
    }

    /// See [`clear`].
    pub fn clear(&self) -> bool {
        clear(self)
    }
}

/// Takes every byte out of a bell; whether there was one. Whoever writes without end does not keep us here: what is
/// then left says nothing new.
pub fn clear(bell: &impl AsFd) -> bool {
    let mut bytes = [0; 4096];
    let mut rang = false;
    for _ in 0..HUSH_READS {
        let Ok(n) = nix::unistd::read(bell, &mut bytes) else { break };
        rang |= n > 0;
        if n < bytes.len() {
            break;
        }
    }
    rang
}

impl From<Doorbell> for OwnedFd {
    fn from(bell: Doorbell) -> Self {
        bell.0.into()
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

    #[test]
    fn a_bell_rings_until_hushed_and_is_never_too_full() {
        let dir = std::env::temp_dir().join(format!("patou-bell-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("bell");
        Doorbell::create(&path, 0o600, None).unwrap();
        let (one, two) = (Doorbell::open(&path, None).unwrap(), Doorbell::open(&path, None).unwrap());
        assert!(!two.clear());
        for _ in 0..100_000 {
            one.ring();
        }
        assert!(two.clear());
        assert!(!two.clear());
        drop(one);
        assert!(!two.clear(), "no end of file when the other end leaves");

        // Made larger by its other end and filled, it is not emptied in one go.
        nix::fcntl::fcntl(&two, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 18)).unwrap();
        while (&two.0).write(&[1; 4096]).is_ok() {}
        let goes = (0..100).take_while(|_| two.clear()).count();
        assert_eq!(goes, (1 << 18) / (HUSH_READS * 4096));

        let plain = dir.join("plain");
        std::fs::write(&plain, "").unwrap();
        assert!(Doorbell::open(&plain, None).unwrap_err().to_string().contains("not a FIFO"));
        let link = dir.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(Doorbell::open(&link, None).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
