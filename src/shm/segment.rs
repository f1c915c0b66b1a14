//! One segment: made, found again, checked, mapped, made anew, removed.
//!
//! No Rust reference to a header or slot is ever formed: another process may write, and may lie. All access
//! is by single 64-bit atomic operations at offsets that the layout proves to be inside the mapping.
//!
//! Another process may also cut the object under our mapping (shared memory objects cannot be sealed), and
//! then an access is a fault: SIGBUS. It is caught, and the missing page replaced by an empty one of our own
//! ([`Segment::is_cut`]), so that a hostile worker harms nobody but itself.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{self, AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{OFlag, posix_fallocate};
use nix::libc;
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Gid, fchown, ftruncate, geteuid};

use super::layout::{Header, LAYOUT, MAGIC, SIZE, line, offset};
use super::lock;
use crate::exchange::{SlotMemory, Word};
use crate::sync;

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
    /// It belongs to somebody else.
    #[error("segment {name} is refused: it belongs to user {uid}")]
    Foreign {
        /// The segment.
        name: String,
        /// Whose it is.
        uid: u32,
    },
    /// It is not, or not any more, what its name promises.
    #[error("segment {name} is refused: {damage}")]
    Damaged {
        /// The segment.
        name: String,
        /// The rule it breaks.
        damage: Damage,
    },
}

/// What is wrong with a segment: somebody wrote where only its maker writes, or cut it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It was cut while it was in use here.
    Cut,
    /// It has so many bytes.
    Size(u64),
    /// The first word is not the magic number.
    Magic,
    /// It has the layout of another version of this program.
    Layout(u64),
    /// Its header names another size.
    Header,
    /// It is another worker's, or another set's.
    Owner,
}

impl Damage {
    /// Whether an honest program may have made it so: another version, or another set.
    pub fn is_well_formed(self) -> bool {
        matches!(self, Damage::Layout(_) | Damage::Owner)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Cut => f.write_str("it was cut while it was in use"),
            Damage::Size(size) => write!(f, "it has {size} bytes, not {SIZE}"),
            Damage::Magic => f.write_str("it has no magic number: half made, spoilt, or not patou's"),
            Damage::Layout(layout) => write!(f, "its layout is version {layout}, this program's is {LAYOUT}"),
            Damage::Header => f.write_str("its header names another size"),
            Damage::Owner => f.write_str("it was made for another set, directory or worker"),
        }
    }
}

/// All bytes, however many there are (fcntl_locking(2)).
const WHOLE: (i64, i64) = (0, 0);

/// A mapped segment. Unmapped when dropped; the object stays until [`Segment::unlink`].
#[derive(Debug)]
pub struct Segment {
    name: String,
    file: File,
    map: MmapRaw,
    page: &'static Page,
    /// Whose it must be.
    digest: Option<u64>,
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
            // A full /dev/shm is an error here and now, and not a fault at the first write.
            posix_fallocate(&fd, 0, SIZE as i64).map_err(system("posix_fallocate"))?;
            if group.is_some() {
                fchown(&fd, None, group).map_err(system("fchown"))?;
            }
            nix::sys::stat::fchmod(&fd, Mode::from_bits_truncate(mode)).map_err(system("fchmod"))?;
            let segment = Self::map(name, File::from(fd), Some(identity.digest))?;
            segment.write_header(identity);
            Ok(segment)
        })();
        if made.is_err() {
            // The first error is the one to tell.
            let _ = shm_unlink(name);
        }
        made
    }

    fn write_header(&self, identity: Identity) {
        for (at, value) in [
            (std::mem::offset_of!(Header, layout), LAYOUT),
            (std::mem::offset_of!(Header, size), SIZE as u64),
            (std::mem::offset_of!(Header, set_epoch), identity.set_epoch),
            (std::mem::offset_of!(Header, digest), identity.digest),
        ] {
            self.word(at).store(value, Ordering::Relaxed);
        }
        // Release H: what is half made cannot be read.
        self.word(std::mem::offset_of!(Header, magic)).store(MAGIC, Ordering::Release);
    }

    /// Opens a segment that somebody made, and checks it: owner, size, magic, layout, identity.
    ///
    /// The owner must be this user, or root, or `owner` where a set is shared between users. Without `digest`
    /// it may be anybody's: for clearing away.
    pub fn open(name: &str, digest: Option<u64>, owner: Option<u32>) -> Result<Self, SegmentError> {
        let segment = Self::open_damaged(name, digest, owner)?;
        match segment.damage() {
            None => Ok(segment),
            Some(damage) => Err(SegmentError::Damaged { name: name.to_owned(), damage }),
        }
    }

    /// As [`Segment::open`], but only the owner is checked: for whoever can [`restore`](Segment::restore) it.
    pub fn open_damaged(name: &str, digest: Option<u64>, owner: Option<u32>) -> Result<Self, SegmentError> {
        let system = |call| move |cause| SegmentError::System { name: name.to_owned(), call, cause };
        let fd = shm_open(name, OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
            .map_err(system("shm_open"))?;
        let file = File::from(fd);
        check_owner(name, &file, owner)?;
        Self::map(name, file, digest)
    }

    fn map(name: &str, file: File, digest: Option<u64>) -> Result<Self, SegmentError> {
        let map = MmapOptions::new().len(SIZE).map_raw(&file).map_err(|e| SegmentError::System {
            name: name.to_owned(),
            call: "mmap",
            cause: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
        })?;
        let page = Page::watch(map.as_ptr() as usize);
        Ok(Self { name: name.to_owned(), file, map, page, digest })
    }

    /// Whether it was cut under our mapping. What we read and write since then is seen by nobody else.
    pub fn is_cut(&self) -> bool {
        self.page.cut.load(Ordering::Relaxed)
    }

    /// What is wrong with it now, if anything. One system call.
    pub fn damage(&self) -> Option<Damage> {
        if self.is_cut() {
            return Some(Damage::Cut);
        }
        // Read before it is touched: cut in between, it is caught and told the next time.
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
        self.digest.is_some_and(|wanted| wanted != digest).then_some(Damage::Owner)
    }

    /// Makes it unusable for whoever opens it next, until it is restored: its content is not to be believed.
    pub fn invalidate(&self) {
        self.word(std::mem::offset_of!(Header, magic)).store(0, Ordering::Release);
    }

    /// Makes it anew in place: right size, all zero, what `fill` writes, and the header. `false` if a worker has
    /// it: a process that lives keeps its segment, whatever it did to it.
    ///
    /// For the dispatcher alone. The worker's lock is held meanwhile, and the magic is written last, so that no
    /// worker takes what is not finished.
    pub fn restore(&self, identity: Identity, fill: impl FnOnce()) -> Result<bool, SegmentError> {
        let system = |call| move |cause| SegmentError::System { name: self.name.clone(), call, cause };
        if !lock::try_lock(&self.file, Role::Worker.bytes()).map_err(system("locking"))? {
            return Ok(false);
        }
        let made = (|| {
            ftruncate(&self.file, SIZE as i64).map_err(system("ftruncate"))?;
            posix_fallocate(&self.file, 0, SIZE as i64).map_err(system("posix_fallocate"))?;
            // Not through the mapping, which may be a page of our own.
            let zero = self.file.write_all_at(&[0; SIZE], 0);
            zero.map_err(|e| system("write")(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
            if self.is_cut() {
                self.map_again().map_err(system("mmap"))?;
            }
            fill();
            self.write_header(identity);
            Ok(())
        })();
        let unlocked = lock::unlock(&self.file, Role::Worker.bytes()).map_err(system("unlocking"));
        made.and(unlocked).map(|()| true)
    }

    /// Puts the object where the handler has put an empty page.
    fn map_again(&self) -> nix::Result<()> {
        let (at, fd) = (self.map.as_mut_ptr().cast::<libc::c_void>(), self.file.as_raw_fd());
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: needed because no wrapper maps over what is mapped. The range is the one that `self.map` owns
        // (mapped with this very length), so nothing else is replaced; nobody holds a reference into it longer
        // than one atomic operation, and such an operation meets either page whole.
        let mapped = unsafe { libc::mmap(at, SIZE, protection, flags, fd, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        self.page.cut.store(false, Ordering::Relaxed);
        Ok(())
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

    /// Whether anybody else has a lock on it, whatever the layout.
    pub fn is_used(&self) -> bool {
        lock::is_locked(&self.file, WHOLE).unwrap_or(false)
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

/// Refuses what belongs neither to this user nor to root nor to `owner`.
pub(super) fn check_owner(name: &str, file: &File, owner: Option<u32>) -> Result<(), SegmentError> {
    let uid = fstat(file).map_err(|cause| SegmentError::System { name: name.to_owned(), call: "fstat", cause })?.st_uid;
    let allowed = uid == geteuid().as_raw() || uid == 0 || Some(uid) == owner;
    if allowed { Ok(()) } else { Err(SegmentError::Foreign { name: name.to_owned(), uid }) }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // Before it is unmapped: whatever comes to lie there next is not ours to replace.
        self.page.release();
    }
}

/// One mapping that the handler of SIGBUS looks after. Never freed, so that the handler may look at any time;
/// used again.
#[derive(Debug)]
struct Page {
    /// Its address, or 0.
    at: AtomicUsize,
    cut: AtomicBool,
    next: OnceLock<&'static Page>,
}

/// The first of the chain, itself never used.
static PAGES: Page = Page::new();

/// The end of the chain, and those of it that are free.
static KEEPER: Mutex<(&Page, Vec<&Page>)> = Mutex::new((&PAGES, Vec::new()));

/// What a SIGBUS did before.
static FORMER: OnceLock<SigAction> = OnceLock::new();

impl Page {
    const fn new() -> Self {
        Self { at: AtomicUsize::new(0), cut: AtomicBool::new(false), next: OnceLock::new() }
    }

    /// Has the page at this address looked after. The first call installs the handler.
    fn watch(at: usize) -> &'static Self {
        let mut keeper = sync::lock(&KEEPER);
        if FORMER.get().is_none() {
            let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
            let action = SigAction::new(SigHandler::SigAction(on_sigbus), flags, SigSet::empty());
            // SAFETY: needed because a handler runs anywhere. This one makes atomic accesses to what is never
            // freed and the system calls mmap, sigaction and raise, all safe there (signal-safety(7)), and
            // leaves errno as it was.
            if let Ok(former) = unsafe { sigaction(Signal::SIGBUS, &action) } {
                let _ = FORMER.set(former); // nobody else sets it: the lock is held
            }
        }
        let page = keeper.1.pop().unwrap_or_else(|| {
            let page: &'static Page = Box::leak(Box::new(Page::new()));
            let _ = keeper.0.next.set(page); // free: only the last one's is
            keeper.0 = page;
            page
        });
        page.cut.store(false, Ordering::Relaxed);
        page.at.store(at, Ordering::Release);
        page
    }

    fn release(&'static self) {
        self.at.store(0, Ordering::Release);
        sync::lock(&KEEPER).1.push(self);
    }

    /// The page that a fault at this address is in. Called by the handler.
    fn find(address: usize) -> Option<&'static Self> {
        let mut next = PAGES.next.get();
        while let Some(page) = next {
            let at = page.at.load(Ordering::Acquire);
            if at != 0 && (at..at + SIZE).contains(&address) {
                return Some(page);
            }
            next = page.next.get();
        }
        None
    }

    /// Puts an empty page of our own there. Called by the handler.
    fn replace(&self) -> bool {
        let at = self.at.load(Ordering::Acquire) as *mut libc::c_void;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
        // SAFETY: needed because the faulting access must find memory. The page belongs to a segment that is
        // still mapped: it is taken out of the chain before it is unmapped, and the thread that faults is using it.
        let mapped = unsafe { libc::mmap(at, SIZE, protection, flags, -1, 0) };
        self.cut.store(true, Ordering::Relaxed);
        mapped != libc::MAP_FAILED
    }
}

/// A page is missing (`BUS_ADRERR`): an empty one takes its place, if it is a segment's. Every other SIGBUS is as
/// fatal as it was.
extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let errno = Errno::last_raw();
    // SAFETY: needed because the kernel hands over pointers. With SA_SIGINFO they point to what it has written,
    // and si_addr is what a SIGBUS of the kernel's carries; of another's it is a number that is not used.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let page = if code == libc::BUS_ADRERR { Page::find(address) } else { None };
    if !page.is_some_and(Page::replace) {
        let fatal = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // Sent by a process it would not come again; a fault does, and meets whoever was here before us.
        let sent = code <= 0;
        let next = if sent { &fatal } else { FORMER.get().unwrap_or(&fatal) };
        // SAFETY: needed to let go of the signal. Both are actions that were, or are by default, in force.
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
        assert!(why(77).contains("version 9, this program's is 3"), "{}", why(77));
        made.word(0).store(0, Ordering::Relaxed);
        assert!(why(77).contains("half made"), "{}", why(77));
        made.file.set_len(100).unwrap();
        assert!(why(77).contains("100 bytes"), "{}", why(77));
        Segment::unlink(&name).unwrap();
        assert!(why(77).contains("ENOENT"), "{}", why(77));
    }

    #[test]
    fn a_segment_that_is_cut_kills_nobody_and_can_be_made_anew() {
        let name = name("cut");
        let ours = Segment::create(&name, 0o600, None, OURS).unwrap();
        let theirs = Segment::open(&name, Some(77), None).unwrap();
        assert!(theirs.take(Role::Worker).unwrap());
        ours.store(Word::CLAIM, 42, Ordering::Release);
        for round in 0..3 {
            theirs.file.set_len(0).unwrap();
            assert!(!ours.is_cut(), "not before it is touched");
            assert_eq!(ours.damage(), Some(Damage::Size(0)));
            assert_eq!(ours.load(Word::CLAIM, Ordering::Acquire), 0, "round {round}");
            assert!(ours.is_cut() && ours.damage() == Some(Damage::Cut));
            ours.store(Word::CLAIM, 7, Ordering::Release);
            assert_eq!(ours.compare_exchange(Word::CLAIM, 7, 8), Ok(()));
            assert_eq!(theirs.load(Word::CLAIM, Ordering::Acquire), 0, "nobody else sees it");
            assert!(Segment::open(&name, Some(77), None).is_err());

            if round == 0 {
                assert!(!ours.restore(OURS, || {}).unwrap(), "its worker lives");
            }
            lock::unlock(&theirs.file, Role::Worker.bytes()).unwrap();
            assert!(ours.restore(OURS, || ours.store(Word::CLAIM, 9, Ordering::Relaxed)).unwrap());
            assert_eq!((ours.damage(), ours.set_epoch()), (None, 5));
            let next = Segment::open(&name, Some(77), None).unwrap();
            assert_eq!(next.load(Word::CLAIM, Ordering::Acquire), 9);
            next.store(Word::CLAIM, 10, Ordering::Release);
            assert_eq!(ours.load(Word::CLAIM, Ordering::Acquire), 10, "it is shared again");
            assert!(next.take(Role::Worker).unwrap());
        }
        // Another size does not fault, and is not what was made.
        for size in [100, 4096, 1 << 30] {
            theirs.file.set_len(size).unwrap();
            ours.load(Word::CLAIM, Ordering::Acquire);
            assert_eq!(ours.damage(), Some(Damage::Size(size)));
            assert!(ours.restore(OURS, || {}).unwrap());
        }
        ours.invalidate();
        assert_eq!(Segment::open(&name, Some(77), None).unwrap_err().to_string().matches("magic").count(), 1);
        Segment::unlink(&name).unwrap();
    }

    #[test]
    fn many_mappings_come_and_go() {
        let name = name("many");
        let ours = Segment::create(&name, 0o600, None, OURS).unwrap();
        for _ in 0..3 {
            let all: Vec<_> = (0..50).map(|_| Segment::open(&name, Some(77), None).unwrap()).collect();
            ours.file.set_len(0).unwrap();
            assert!(all.iter().all(|segment| segment.load(Word::CLAIM, Ordering::Relaxed) == 0 && segment.is_cut()));
            assert!(ours.restore(OURS, || {}).unwrap());
        }
        Segment::unlink(&name).unwrap();
    }

    /// In a process of its own, since it must die of it.
    #[test]
    fn every_other_sigbus_is_as_fatal_as_ever() {
        use std::os::unix::process::ExitStatusExt;
        const INSIDE: &str = "PATOU_TEST_SIGBUS";
        let name = name("fatal");
        match std::env::var(INSIDE).as_deref() {
            Ok("fault") => {
                let _ours = Segment::create(&name, 0o600, None, OURS).unwrap();
                Segment::unlink(&name).unwrap();
                let file =
                    File::from(nix::sys::memfd::memfd_create("empty", nix::sys::memfd::MFdFlags::empty()).unwrap());
                let map = MmapOptions::new().len(SIZE).map_raw(&file).unwrap();
                // SAFETY: needed to fault on purpose, in a mapping that is nobody's segment.
                unsafe { map.as_ptr().read_volatile() };
            }
            Ok(_) => {
                let _ours = Segment::create(&name, 0o600, None, OURS).unwrap();
                Segment::unlink(&name).unwrap();
                nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGBUS).unwrap();
            }
            Err(_) => {
                for how in ["fault", "sent"] {
                    let test = std::thread::current().name().unwrap().to_owned();
                    let mut inside = std::process::Command::new(std::env::current_exe().unwrap());
                    let output = inside.args([&test, "--exact", "--nocapture"]).env(INSIDE, how).output().unwrap();
                    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{how}: {output:?}");
                }
            }
        }
    }
}
