//! One segment: created, opened, checked, mapped, restored, removed.
//!
//! No Rust reference to a header or slot is ever formed: another process may write at any time, and may be hostile. All
//! access is by single 64-bit atomic operations at offsets that the layout proves to be inside the mapping.
//!
//! Another process may also truncate the object (shared memory objects cannot be sealed); an access then raises SIGBUS.
//! The handler puts an empty private page in the place of the missing one ([`Segment::is_truncated`]), so that a
//! hostile worker damages only its own slot.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{self, AtomicU64, Ordering};
use std::sync::{Once, OnceLock};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{OFlag, posix_fallocate};
use nix::libc;
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Gid, fchown, ftruncate, geteuid};

use super::error::{Damage, SegmentError};
use super::guarded_page::GuardedPage;
use super::layout::{Header, LAYOUT, MAGIC, SIZE, line, offset};
use super::lock;
use crate::exchange::{SlotMemory, Word};

/// The owner of a segment, as the header names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentIdentity {
    /// The epoch of the set that created it.
    pub set_epoch: u64,
    /// [`crate::config::Config::digest_of`] the worker.
    pub digest: u64,
}

/// A writer of some lines. The process that has the role locks one of them as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentRole {
    /// Writes the question and lease lines.
    Dispatcher,
    /// Writes the answer, life, counter and request lines.
    Worker,
    /// Runs the set as its parent, and writes nothing. Its lock is behind the last line.
    Supervisor,
}

impl SegmentRole {
    /// The bytes that it locks (start, length).
    pub(crate) const fn bytes(self) -> (i64, i64) {
        match self {
            SegmentRole::Dispatcher => line(0),
            SegmentRole::Worker => line(3),
            SegmentRole::Supervisor => (SIZE as i64, 64),
        }
    }
}

/// The directory in which the kernel shows segments as files (shm_overview(7)).
const DIRECTORY: &str = "/dev/shm";

/// The file of the segment `name`.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("{DIRECTORY}{name}"))
}

/// All bytes, whatever the size (fcntl_locking(2)).
const WHOLE: (i64, i64) = (0, 0);

/// A mapped segment. It is unmapped when dropped; the object remains until [`Segment::unlink`].
#[derive(Debug)]
pub(crate) struct Segment {
    name: String,
    file: File,
    map: MmapRaw,
    page: &'static GuardedPage,
    /// The digest that the header must have.
    digest: Option<u64>,
}

impl Segment {
    /// Creates a new segment (`O_EXCL`) with its header.
    ///
    /// It gets exactly this mode, whatever the umask, and this group if given.
    ///
    /// `content`: the words of its slot; those of a segment that it replaces, or none.
    pub(crate) fn create(
        name: &str,
        mode: u32,
        group: Option<Gid>,
        identity: SegmentIdentity,
        content: &[u64],
    ) -> Result<Self, SegmentError> {
        let system = |call| move |cause| SegmentError::System { name: name.to_owned(), call, cause };
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let fd = match shm_open(name, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(fd) => fd,
            Err(Errno::EEXIST) => return Err(SegmentError::Exists(name.to_owned())),
            Err(cause) => return Err(system("shm_open")(cause)),
        };
        let created = (|| {
            ftruncate(&fd, SIZE as i64).map_err(system("ftruncate"))?;
            // A full /dev/shm is an error now, and not a SIGBUS at the first write.
            posix_fallocate(&fd, 0, SIZE as i64).map_err(system("posix_fallocate"))?;
            if group.is_some() {
                fchown(&fd, None, group).map_err(system("fchown"))?;
            }
            nix::sys::stat::fchmod(&fd, Mode::from_bits_truncate(mode)).map_err(system("fchmod"))?;
            let segment = Self::map(name, File::from(fd), Some(identity.digest))?;
            for (index, value) in content.iter().enumerate() {
                segment.word(offset(Word::FIRST) + index * size_of::<u64>()).store(*value, Ordering::Relaxed);
            }
            segment.write_header(identity);
            Ok(segment)
        })();
        if created.is_err() {
            let _ = shm_unlink(name); // the first error is the one to report
        }
        created
    }

    fn write_header(&self, identity: SegmentIdentity) {
        for (at, value) in [
            (std::mem::offset_of!(Header, layout), LAYOUT),
            (std::mem::offset_of!(Header, size), SIZE as u64),
            (std::mem::offset_of!(Header, set_epoch), identity.set_epoch),
            (std::mem::offset_of!(Header, digest), identity.digest),
        ] {
            self.word(at).store(value, Ordering::Relaxed);
        }
        // Release H: an incomplete segment cannot be used.
        self.word(std::mem::offset_of!(Header, magic)).store(MAGIC, Ordering::Release);
    }

    /// Opens an existing segment and checks it: owner, size, magic, layout, digest.
    ///
    /// It must belong to this user, to root, or to `owner` if the set is shared between users. Without `digest` a
    /// segment of any worker is accepted, for cleaning up.
    pub(crate) fn open(name: &str, digest: Option<u64>, owner: Option<u32>) -> Result<Self, SegmentError> {
        let segment = Self::open_unchecked(name, digest, owner)?;
        match segment.damage() {
            None => Ok(segment),
            Some(damage) => Err(SegmentError::Damaged { name: name.to_owned(), damage }),
        }
    }

    /// As [`Segment::open`], but checks only the owner. For callers that can [`restore`](Segment::restore) the segment.
    pub(crate) fn open_unchecked(name: &str, digest: Option<u64>, owner: Option<u32>) -> Result<Self, SegmentError> {
        let system = |call| move |cause| SegmentError::System { name: name.to_owned(), call, cause };
        let fd = shm_open(name, OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
            .map_err(system("shm_open"))?;
        let file = File::from(fd);
        check_owner(name, &file, owner)?;
        Self::map(name, file, digest)
    }

    /// As [`Segment::open_unchecked`], by a path in `/proc` to a descriptor of the segment: its name may be gone.
    pub(crate) fn open_descriptor(
        descriptor: &Path,
        digest: Option<u64>,
        owner: Option<u32>,
    ) -> Result<Self, SegmentError> {
        let shown = std::fs::read_link(descriptor).unwrap_or_default();
        let shown = shown.to_string_lossy();
        let name = shown.trim_end_matches(" (deleted)").trim_start_matches(DIRECTORY).to_owned();
        let file = File::options().read(true).write(true).open(descriptor).map_err(|error| SegmentError::System {
            name: name.clone(),
            call: "open",
            cause: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        })?;
        check_owner(&name, &file, owner)?;
        Self::map(&name, file, digest)
    }

    fn map(name: &str, file: File, digest: Option<u64>) -> Result<Self, SegmentError> {
        let map = MmapOptions::new().len(SIZE).map_raw(&file).map_err(|e| SegmentError::System {
            name: name.to_owned(),
            call: "mmap",
            cause: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
        })?;
        install_handler();
        let page = GuardedPage::register(map.as_ptr() as usize);
        Ok(Self { name: name.to_owned(), file, map, page, digest })
    }

    /// Whether the segment was truncated while mapped. Since then reads and writes reach only a private page.
    pub(crate) fn is_truncated(&self) -> bool {
        self.page.is_replaced()
    }

    /// Whether the segment has no name any more.
    pub(crate) fn is_unlinked(&self) -> bool {
        fstat(&self.file).is_ok_and(|status| status.st_nlink == 0)
    }

    /// What is wrong with the segment now, if anything. Makes one system call.
    pub(crate) fn damage(&self) -> Option<Damage> {
        if self.is_truncated() {
            return Some(Damage::Truncated);
        }
        // Before the first access. The next call reports a truncation in between.
        let size = fstat(&self.file).map_or(0, |status| status.st_size as u64);
        if size != SIZE as u64 {
            return Some(Damage::Size(size));
        }
        // Acquire H: pairs with the store of the magic in `write_header`.
        if self.word(std::mem::offset_of!(Header, magic)).load(Ordering::Acquire) != MAGIC {
            return Some(Damage::Magic);
        }
        let layout = self.header(std::mem::offset_of!(Header, layout));
        if layout != LAYOUT {
            return Some(Damage::Layout(layout));
        }
        if self.header(std::mem::offset_of!(Header, size)) != SIZE as u64 {
            return Some(Damage::Header);
        }
        let digest = self.header(std::mem::offset_of!(Header, digest));
        self.digest.is_some_and(|expected| expected != digest).then_some(Damage::Owner)
    }

    /// Makes every later [`open`](Segment::open) fail until the segment is restored: its content is corrupt.
    pub(crate) fn invalidate(&self) {
        self.word(std::mem::offset_of!(Header, magic)).store(0, Ordering::Release);
    }

    /// Restores the segment in place: its size, zeros, what `fill` writes, and the header. `false` if a worker holds
    /// its role: a living process keeps its segment, even a corrupt one.
    ///
    /// Only for the dispatcher. The worker's lock is held meanwhile and the magic is written last, so that no worker
    /// uses an incomplete segment.
    pub(crate) fn restore(&self, identity: SegmentIdentity, fill: impl FnOnce()) -> Result<bool, SegmentError> {
        let system = |call| move |cause| SegmentError::System { name: self.name.clone(), call, cause };
        if !lock::try_lock(&self.file, SegmentRole::Worker.bytes()).map_err(system("locking"))? {
            return Ok(false);
        }
        let restored = (|| {
            ftruncate(&self.file, SIZE as i64).map_err(system("ftruncate"))?;
            posix_fallocate(&self.file, 0, SIZE as i64).map_err(system("posix_fallocate"))?;
            // Not through the mapping, which may be the private page.
            let zero = self.file.write_all_at(&[0; SIZE], 0);
            zero.map_err(|e| system("write")(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
            if self.is_truncated() {
                self.map_again().map_err(system("mmap"))?;
            }
            fill();
            self.write_header(identity);
            Ok(())
        })();
        let unlocked = lock::unlock(&self.file, SegmentRole::Worker.bytes()).map_err(system("unlocking"));
        restored.and(unlocked).map(|()| true)
    }

    /// Maps the object over the private page.
    fn map_again(&self) -> nix::Result<()> {
        let (at, fd) = (self.map.as_mut_ptr().cast::<libc::c_void>(), self.file.as_raw_fd());
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: needed because no wrapper maps over what is mapped. The range is the one that `self.map` owns
        // (mapped with this very length), so nothing else is replaced; no reference into it is held longer
        // than one atomic operation, and such an operation meets either page whole.
        let mapped = unsafe { libc::mmap(at, SIZE, protection, flags, fd, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        self.page.set_replaced(false);
        Ok(())
    }

    /// Its name, with the leading slash.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The epoch of the set that created it.
    pub(crate) fn set_epoch(&self) -> u64 {
        self.header(std::mem::offset_of!(Header, set_epoch))
    }

    /// Takes a role for as long as this segment is open; `false` if another process has the role.
    pub(crate) fn lock_role(&self, role: SegmentRole) -> nix::Result<bool> {
        lock::try_lock(&self.file, role.bytes())
    }

    /// Whether another process has the role.
    pub(crate) fn is_role_locked(&self, role: SegmentRole) -> bool {
        lock::is_locked(&self.file, role.bytes()).unwrap_or(false)
    }

    /// Whether another process has any lock on the segment, in whatever layout.
    pub(crate) fn is_locked(&self) -> bool {
        lock::is_locked(&self.file, WHOLE).unwrap_or(false)
    }

    /// Changes the group of the segment `name`. Processes that have it open keep it.
    pub(crate) fn set_group(name: &str, group: Gid) -> Result<(), SegmentError> {
        let system = |call| move |cause| SegmentError::System { name: name.to_owned(), call, cause };
        let fd = shm_open(name, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(system("shm_open"))?;
        fchown(&fd, None, Some(group)).map_err(system("fchown"))
    }

    /// Removes the name `name`. Processes that have the segment open keep it.
    pub(crate) fn unlink(name: &str) -> Result<(), SegmentError> {
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
        // aligned (asserted above; mappings are page-aligned), the mapping lives as long as `self`, and
        // another process may change an atomic at any time. Nothing but this one word is referred to.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast::<u64>()) }
    }
}

/// Rejects a file that belongs neither to this user nor to root nor to `owner`.
pub(super) fn check_owner(name: &str, file: &File, owner: Option<u32>) -> Result<(), SegmentError> {
    let uid = fstat(file).map_err(|cause| SegmentError::System { name: name.to_owned(), call: "fstat", cause })?.st_uid;
    let allowed = uid == geteuid().as_raw() || uid == 0 || Some(uid) == owner;
    if allowed { Ok(()) } else { Err(SegmentError::Foreign { name: name.to_owned(), uid }) }
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // Before the unmapping: the handler must not replace what is mapped there next.
        self.page.unregister();
    }
}

/// The action on SIGBUS before ours.
static PREVIOUS_ACTION: OnceLock<SigAction> = OnceLock::new();

/// Installs the handler; once per process.
fn install_handler() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
        let action = SigAction::new(SigHandler::SigAction(on_sigbus), flags, SigSet::empty());
        // SAFETY: needed because a handler runs anywhere. This one makes atomic accesses to what is never
        // freed and the system calls mmap, sigaction and raise, all safe there (signal-safety(7)), and
        // leaves errno as it was.
        if let Ok(previous) = unsafe { sigaction(Signal::SIGBUS, &action) } {
            let _ = PREVIOUS_ACTION.set(previous); // unset: this runs once
        }
    });
}

/// Maps an empty private page over the mapping at this address. Called by the handler.
fn replace(page: &GuardedPage, start: usize) -> bool {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
    // SAFETY: needed because the faulting access must find memory. The page belongs to a segment that is
    // still mapped: it is unregistered before it is unmapped, and the thread that faults is using it.
    let mapped = unsafe { libc::mmap(start as *mut libc::c_void, SIZE, protection, flags, -1, 0) };
    page.set_replaced(true);
    mapped != libc::MAP_FAILED
}

/// Replaces a missing page (`BUS_ADRERR`) of a segment by an empty one. Every other SIGBUS keeps its previous action.
extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let errno = Errno::last_raw();
    // SAFETY: needed because the kernel passes pointers. With SA_SIGINFO they point to what it has written,
    // and si_addr is the address if the kernel raised the signal; otherwise it is a number that is not used.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let page = if code == libc::BUS_ADRERR { GuardedPage::find(address) } else { None };
    if !page.is_some_and(|(page, start)| replace(page, start)) {
        let fatal = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // A signal that a process sent is not raised again when this handler returns; a fault is, and meets the
        // previous action.
        let sent = code <= 0;
        let next = if sent { &fatal } else { PREVIOUS_ACTION.get().unwrap_or(&fatal) };
        // SAFETY: needed to restore an action. Both are actions that were, or are by default, in force.
        let _ = unsafe { sigaction(Signal::SIGBUS, next) };
        if sent {
            let _ = nix::sys::signal::raise(Signal::SIGBUS); // delivered when this handler returns
        }
    }
    Errno::set_raw(errno);
}

impl SlotMemory for Segment {
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

    const OURS: SegmentIdentity = SegmentIdentity { set_epoch: 5, digest: 77 };

    #[test]
    fn mappings_share_words_and_roles_are_exclusive() {
        let name = name("share");
        let one = Segment::create(&name, 0o600, None, OURS, &[]).unwrap();
        let two = Segment::open(&name, Some(77), None).unwrap();
        one.store(Word::CLAIM, 42, Ordering::Release);
        assert_eq!(two.load(Word::CLAIM, Ordering::Acquire), 42);
        assert_eq!(two.compare_exchange(Word::CLAIM, 1, 2), Err(42));
        assert_eq!(two.set_epoch(), 5);

        assert!(one.lock_role(SegmentRole::Worker).unwrap());
        assert!(one.lock_role(SegmentRole::Dispatcher).unwrap());
        assert!(two.is_role_locked(SegmentRole::Worker) && !one.is_role_locked(SegmentRole::Worker));
        assert!(!two.lock_role(SegmentRole::Worker).unwrap());
        drop(one);
        assert!(!two.is_role_locked(SegmentRole::Worker));
        assert!(two.lock_role(SegmentRole::Worker).unwrap());
        Segment::unlink(&name).unwrap();
        Segment::unlink(&name).unwrap();
    }

    #[test]
    fn a_foreign_segment_is_rejected_with_the_reason() {
        let name = name("refuse");
        let segment = Segment::create(&name, 0o600, None, OURS, &[]).unwrap();
        assert!(matches!(Segment::create(&name, 0o600, None, OURS, &[]), Err(SegmentError::Exists(_))));
        let why = |digest| Segment::open(&name, Some(digest), None).unwrap_err().to_string();
        assert!(why(78).contains("another set"), "{}", why(78));

        segment.word(std::mem::offset_of!(Header, layout)).store(9, Ordering::Relaxed);
        assert!(why(77).contains("version 9, this program's is 3"), "{}", why(77));
        segment.word(0).store(0, Ordering::Relaxed);
        assert!(why(77).contains("incomplete"), "{}", why(77));
        segment.file.set_len(100).unwrap();
        assert!(why(77).contains("100 bytes"), "{}", why(77));
        Segment::unlink(&name).unwrap();
        assert!(why(77).contains("ENOENT"), "{}", why(77));
    }

    const ALONE: &str = "PATOU_TEST_SIGBUS";

    /// Runs this test again in a separate process.
    fn run_alone(value: &str) -> std::process::Output {
        let test = std::thread::current().name().unwrap().to_owned();
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args([&test, "--exact", "--nocapture"]).env(ALONE, value).output().unwrap()
    }

    /// Runs `test` in a separate process: the coroutines of loom, which other unit tests use, replace the SIGBUS
    /// handler.
    fn alone(test: impl FnOnce()) {
        if std::env::var_os(ALONE).is_some() {
            return test();
        }
        let output = run_alone("1");
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    fn a_truncated_segment_is_survived_and_can_be_restored() {
        alone(|| {
            let name = name("cut");
            let ours = Segment::create(&name, 0o600, None, OURS, &[]).unwrap();
            let theirs = Segment::open(&name, Some(77), None).unwrap();
            assert!(theirs.lock_role(SegmentRole::Worker).unwrap());
            ours.store(Word::CLAIM, 42, Ordering::Release);
            for round in 0..3 {
                theirs.file.set_len(0).unwrap();
                assert!(!ours.is_truncated(), "before the first access");
                assert_eq!(ours.damage(), Some(Damage::Size(0)));
                assert_eq!(ours.load(Word::CLAIM, Ordering::Acquire), 0, "round {round}");
                assert!(ours.is_truncated() && ours.damage() == Some(Damage::Truncated));
                ours.store(Word::CLAIM, 7, Ordering::Release);
                assert_eq!(ours.compare_exchange(Word::CLAIM, 7, 8), Ok(()));
                assert_eq!(theirs.load(Word::CLAIM, Ordering::Acquire), 0, "the write stays in the private page");
                assert!(Segment::open(&name, Some(77), None).is_err());

                if round == 0 {
                    assert!(!ours.restore(OURS, || {}).unwrap(), "its worker is alive");
                }
                lock::unlock(&theirs.file, SegmentRole::Worker.bytes()).unwrap();
                assert!(ours.restore(OURS, || ours.store(Word::CLAIM, 9, Ordering::Relaxed)).unwrap());
                assert_eq!((ours.damage(), ours.set_epoch()), (None, 5));
                let next = Segment::open(&name, Some(77), None).unwrap();
                assert_eq!(next.load(Word::CLAIM, Ordering::Acquire), 9);
                next.store(Word::CLAIM, 10, Ordering::Release);
                assert_eq!(ours.load(Word::CLAIM, Ordering::Acquire), 10, "it is shared again");
                assert!(next.lock_role(SegmentRole::Worker).unwrap());
            }
            // Another size raises no SIGBUS, but is damage.
            for size in [100, 4096, 1 << 30] {
                theirs.file.set_len(size).unwrap();
                ours.load(Word::CLAIM, Ordering::Acquire);
                assert_eq!(ours.damage(), Some(Damage::Size(size)));
                assert!(ours.restore(OURS, || {}).unwrap());
            }
            ours.invalidate();
            assert_eq!(Segment::open(&name, Some(77), None).unwrap_err().to_string().matches("magic").count(), 1);
            Segment::unlink(&name).unwrap();
        });
    }

    #[test]
    fn entries_of_dropped_mappings_are_used_again() {
        alone(|| {
            let name = name("many");
            let ours = Segment::create(&name, 0o600, None, OURS, &[]).unwrap();
            for _ in 0..3 {
                let all: Vec<_> = (0..50).map(|_| Segment::open(&name, Some(77), None).unwrap()).collect();
                ours.file.set_len(0).unwrap();
                assert!(
                    all.iter()
                        .all(|segment| segment.load(Word::CLAIM, Ordering::Relaxed) == 0 && segment.is_truncated())
                );
                assert!(ours.restore(OURS, || {}).unwrap());
            }
            Segment::unlink(&name).unwrap();
        });
    }

    /// In a separate process, because the signal is fatal.
    #[test]
    fn every_other_sigbus_stays_fatal() {
        use std::os::unix::process::ExitStatusExt;
        let name = name("fatal");
        match std::env::var(ALONE).as_deref() {
            Ok("fault") => {
                let _ours = Segment::create(&name, 0o600, None, OURS, &[]).unwrap();
                Segment::unlink(&name).unwrap();
                let file =
                    File::from(nix::sys::memfd::memfd_create("empty", nix::sys::memfd::MFdFlags::empty()).unwrap());
                let map = MmapOptions::new().len(SIZE).map_raw(&file).unwrap();
                // SAFETY: needed to raise SIGBUS on purpose, in a mapping that is no segment.
                unsafe { map.as_ptr().read_volatile() };
            }
            Ok(_) => {
                let _ours = Segment::create(&name, 0o600, None, OURS, &[]).unwrap();
                Segment::unlink(&name).unwrap();
                nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGBUS).unwrap();
            }
            Err(_) => {
                for cause in ["fault", "sent"] {
                    let output = run_alone(cause);
                    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{cause}: {output:?}");
                }
            }
        }
    }
}
