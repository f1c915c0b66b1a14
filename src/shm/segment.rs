//! One segment: made, found again, checked, mapped, removed.
//!
//! No Rust reference to a header or slot is ever formed: another process may write, and may lie. All access
//! is by single 64-bit atomic operations at offsets that the layout proves to be inside the mapping.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{self, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{OFlag, posix_fallocate};
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, fchown, ftruncate, geteuid};

use super::layout::{Header, LAYOUT, MAGIC, SIZE, line, offset};
use super::lock;
use crate::exchange::{Memory, Word};

/// Whose segment it is; part of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which life of the set made it.
    pub set_epoch: u64,
    /// [`crate::config::Config::digest_of`] the worker.
    pub digest: u64,
}

/// Who writes which lines; each role locks its first line as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Question and lease lines.
    Dispatcher,
    /// Answer, life and counter lines.
    Worker,
}

impl Role {
    const fn bytes(self) -> (i64, i64) {
        match self {
            Role::Dispatcher => line(0),
            Role::Worker => line(3),
        }
    }
}

/// Why a segment cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// A system call failed.
    #[error("segment {name}: {call}: {cause}")]
    System {
        /// The segment.
        name: String,
        /// The call.
        call: &'static str,
        /// What it said.
        cause: Errno,
    },
    /// The name must be new and is not.
    #[error("segment {0} exists already")]
    Exists(String),
    /// It is not what its name promises.
    #[error("segment {name} is refused: {why}")]
    Refused {
        /// The segment.
        name: String,
        /// The rule it breaks.
        why: String,
    },
}

/// A mapped segment. Unmapped when dropped; the object stays until [`Segment::unlink`].
#[derive(Debug)]
pub struct Segment {
    name: String,
    file: File,
    map: MmapRaw,
}

impl Segment {
    /// Makes a new segment (`O_EXCL`), complete with its header.
    ///
    /// The mode is set exactly, whatever the umask; `group` is changed where given.
    pub fn create(name: &str, mode: u32, group: Option<Gid>, identity: Identity) -> Result<Self, SegmentError> {
        let system = |call| move |cause| SegmentError::System { name: name.to_owned(), call, cause };
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let fd = match shm_open(name, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(fd) => fd,
            Err(Errno::EEXIST) => return Err(SegmentError::Exists(name.to_owned())),
            Err(cause) => return Err(system("shm_open")(cause)),
        };
        let made = (|| {
            ftruncate(&fd, SIZE as i64).map_err(system("ftruncate"))?;
            // Its pages, now: later, a full file system would be a SIGBUS.
            posix_fallocate(&fd, 0, SIZE as i64).map_err(system("posix_fallocate"))?;
            if group.is_some() {
                fchown(&fd, None, group).map_err(system("fchown"))?;
            }
            nix::sys::stat::fchmod(&fd, Mode::from_bits_truncate(mode)).map_err(system("fchmod"))?;
            let segment = Self::map(name, File::from(fd))?;
            for (at, value) in [
                (std::mem::offset_of!(Header, layout), LAYOUT),
                (std::mem::offset_of!(Header, size), SIZE as u64),
                (std::mem::offset_of!(Header, set_epoch), identity.set_epoch),
                (std::mem::offset_of!(Header, digest), identity.digest),
            ] {
                segment.word(at).store(value, Ordering::Relaxed);
            }
            // Release H: what is half made cannot be read.
            segment.word(std::mem::offset_of!(Header, magic)).store(MAGIC, Ordering::Release);
            Ok(segment)
        })();
        if made.is_err() {
            // The first error is the one to tell.
            let _ = shm_unlink(name);
        }
        made
    }

    /// Opens a segment that somebody made, and checks it: owner, size, magic, layout, identity.
    ///
    /// The owner must be this user, or root, or `owner` where a set is shared between users. Without `digest`
    /// it may be anybody's: for clearing away.
    pub fn open(name: &str, digest: Option<u64>, owner: Option<u32>) -> Result<Self, SegmentError> {
        let refused = |why: String| SegmentError::Refused { name: name.to_owned(), why };
        let system = |call| move |cause| SegmentError::System { name: name.to_owned(), call, cause };
        let fd = shm_open(name, OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
            .map_err(system("shm_open"))?;
        let file = File::from(fd);
        let status = file.metadata().map_err(|e| system("fstat")(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        let uid = status.uid();
        if uid != geteuid().as_raw() && uid != 0 && Some(uid) != owner {
            return Err(refused(format!("it belongs to user {uid}")));
        }
        if status.size() != SIZE as u64 {
            return Err(refused(format!("it has {} bytes, not {SIZE}", status.size())));
        }
        let segment = Self::map(name, file)?;
        // Acquire H: pairs with the store of the magic in `create`.
        if segment.word(std::mem::offset_of!(Header, magic)).load(Ordering::Acquire) != MAGIC {
            return Err(refused("it has no magic number: half made, or not patou's".into()));
        }
        let layout = segment.header(std::mem::offset_of!(Header, layout));
        if layout != LAYOUT {
            return Err(refused(format!("its layout is version {layout}, this program's is {LAYOUT}")));
        }
        if segment.header(std::mem::offset_of!(Header, size)) != SIZE as u64 {
            return Err(refused("its header names another size".into()));
        }
        if digest.is_some_and(|digest| segment.header(std::mem::offset_of!(Header, digest)) != digest) {
            return Err(refused("it was made for another set, directory or worker".into()));
        }
        Ok(segment)
    }

    fn map(name: &str, file: File) -> Result<Self, SegmentError> {
        let map = MmapOptions::new().len(SIZE).map_raw(&file).map_err(|e| SegmentError::System {
            name: name.to_owned(),
            call: "mmap",
            cause: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
        })?;
        Ok(Self { name: name.to_owned(), file, map })
    }

    /// Its name, with the leading slash.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which life of the set made it.
    pub fn set_epoch(&self) -> u64 {
        self.header(std::mem::offset_of!(Header, set_epoch))
    }

    /// Takes a role for as long as this segment is open; `false` if another process has it.
    pub fn take(&self, role: Role) -> nix::Result<bool> {
        lock::try_lock(&self.file, role.bytes())
    }

    /// Whether another process has the role.
    pub fn is_taken(&self, role: Role) -> bool {
        lock::is_locked(&self.file, role.bytes()).unwrap_or(false)
    }

    /// Gives the segment `name` to another group. Who has it open keeps it.
    pub fn give(name: &str, group: Gid) -> Result<(), SegmentError> {
        let system = |call| move |cause| SegmentError::System { name: name.to_owned(), call, cause };
        let fd = shm_open(name, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(system("shm_open"))?;
        fchown(&fd, None, Some(group)).map_err(system("fchown"))
    }

    /// Removes the name `name`; who has the segment open keeps it.
    pub fn unlink(name: &str) -> Result<(), SegmentError> {
        match shm_unlink(name) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(cause) => Err(SegmentError::System { name: name.to_owned(), call: "shm_unlink", cause }),
        }
    }

    fn header(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::Relaxed)
    }

    /// The word at byte `at` of the segment.
    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= SIZE);
        // SAFETY: needed because the memory belongs to no Rust object. The pointer is inside the mapping and
        // aligned (asserted above; mappings are page-aligned), the mapping lives as long as `self`, and an
        // atomic may be changed by anybody at any time. Nothing but this one word is referred to.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast::<u64>()) }
    }
}

impl Memory for Segment {
    fn load(&self, word: Word, order: Ordering) -> u64 {
        self.word(offset(word)).load(order)
    }

    fn store(&self, word: Word, value: u64, order: Ordering) {
        self.word(offset(word)).store(value, order);
    }

    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        self.word(offset(word)).compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }

    fn fence(&self, order: Ordering) {
        atomic::fence(order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(what: &str) -> String {
        format!("/patou-test.{}.{what}", std::process::id())
    }

    const OURS: Identity = Identity { set_epoch: 5, digest: 77 };

    #[test]
    fn what_one_maps_another_sees_and_roles_are_exclusive() {
        let name = name("share");
        let one = Segment::create(&name, 0o600, None, OURS).unwrap();
        let two = Segment::open(&name, Some(77), None).unwrap();
        one.store(Word::CLAIM, 42, Ordering::Release);
        assert_eq!(two.load(Word::CLAIM, Ordering::Acquire), 42);
        assert_eq!(two.compare_exchange(Word::CLAIM, 1, 2), Err(42));
        assert_eq!(two.set_epoch(), 5);

        assert!(one.take(Role::Worker).unwrap());
        assert!(one.take(Role::Dispatcher).unwrap());
        assert!(two.is_taken(Role::Worker) && !one.is_taken(Role::Worker));
        assert!(!two.take(Role::Worker).unwrap());
        drop(one);
        assert!(!two.is_taken(Role::Worker));
        assert!(two.take(Role::Worker).unwrap());
        Segment::unlink(&name).unwrap();
        Segment::unlink(&name).unwrap();
    }

    #[test]
    fn a_segment_that_is_not_ours_is_refused_with_the_rule_it_breaks() {
        let name = name("refuse");
        let made = Segment::create(&name, 0o600, None, OURS).unwrap();
        assert!(matches!(Segment::create(&name, 0o600, None, OURS), Err(SegmentError::Exists(_))));
        let why = |digest| Segment::open(&name, Some(digest), None).unwrap_err().to_string();
        assert!(why(78).contains("another set"), "{}", why(78));

        made.word(std::mem::offset_of!(Header, layout)).store(9, Ordering::Relaxed);
        assert!(why(77).contains("version 9, this program's is 1"), "{}", why(77));
        made.word(0).store(0, Ordering::Relaxed);
        assert!(why(77).contains("half made"), "{}", why(77));
        made.file.set_len(100).unwrap();
        assert!(why(77).contains("100 bytes"), "{}", why(77));
        Segment::unlink(&name).unwrap();
        assert!(why(77).contains("ENOENT"), "{}", why(77));
    }
}
