//! A segment for who only looks: copied, not mapped.
//!
//! It takes no right to write, and no fault can come of it: who has cut the segment has made it too short. A copy
//! may be torn where somebody writes at that moment, which everybody who reads a slot must stand anyway.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::fcntl::OFlag;
use nix::sys::mman::shm_open;
use nix::sys::stat::Mode;

use super::layout::{LAYOUT, MAGIC, SIZE, offset};
use super::segment::check_owner;
use super::{Damage, SegmentError};
use crate::exchange::{SlotMemory, WORDS, Word};

/// The words of a slot as they were when it was taken. What is written to it, nobody else sees.
#[derive(Debug)]
pub struct Snapshot {
    words: Vec<AtomicU64>,
}

impl Snapshot {
    /// Copies the slot of the segment `name`, if that has the layout of this program and belongs to this user, to
    /// root, or to `owner`.
    ///
    /// # Errors
    /// When it is not there, not readable, another's, or damaged.
    pub fn take(name: &str, owner: Option<u32>) -> Result<Self, SegmentError> {
        let system = |call| move |cause| SegmentError::System { name: name.to_owned(), call, cause };
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = File::from(shm_open(name, flags, Mode::empty()).map_err(system("shm_open"))?);
        check_owner(name, &file, owner)?;
        let damaged = |damage| SegmentError::Damaged { name: name.to_owned(), damage };
        let mut bytes = [0; SIZE];
        file.read_exact_at(&mut bytes, 0).map_err(|_| damaged(Damage::Cut))?;
        let word = |at: usize| {
            let mut word = [0; size_of::<u64>()];
            word.copy_from_slice(&bytes[at..at + size_of::<u64>()]);
            u64::from_ne_bytes(word)
        };
        let (magic, layout) = (word(0), word(size_of::<u64>()));
        if magic != MAGIC {
            return Err(damaged(Damage::Magic));
        }
        if layout != LAYOUT {
            return Err(damaged(Damage::Layout(layout)));
        }
        let first = offset(Word::FIRST);
        let words = (0..WORDS).map(|i| AtomicU64::new(word(first + i * size_of::<u64>()))).collect();
        Ok(Self { words })
    }
}

impl SlotMemory for Snapshot {
    fn load(&self, word: Word, order: Ordering) -> u64 {
        self.words[word.index()].load(order)
    }

    fn store(&self, word: Word, value: u64, order: Ordering) {
        self.words[word.index()].store(value, order);
    }

    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        let word = &self.words[word.index()];
        word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }

    fn fence(&self, order: Ordering) {
        fence(order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::{Identity, Segment};

    #[test]
    fn it_shows_what_was_there_and_what_is_none_is_refused() {
        let name = format!("/patou-test.{}.snapshot", std::process::id());
        let made = Segment::create(&name, 0o600, None, Identity { set_epoch: 1, digest: 2 }).unwrap();
        made.store(Word::CLAIM, 42, Ordering::Relaxed);
        let taken = Snapshot::take(&name, None).unwrap();
        made.store(Word::CLAIM, 43, Ordering::Relaxed);
        assert_eq!(taken.load(Word::CLAIM, Ordering::Relaxed), 42);
        taken.store(Word::CLAIM, 44, Ordering::Relaxed);
        assert_eq!(made.load(Word::CLAIM, Ordering::Relaxed), 43);

        let why = || Snapshot::take(&name, None).unwrap_err().to_string();
        let file = File::options().write(true).open(format!("/dev/shm{name}")).unwrap();
        made.invalidate();
        assert!(why().contains("magic"), "{}", why());
        file.set_len(100).unwrap();
        assert!(why().contains("cut"), "{}", why());
        Segment::unlink(&name).unwrap();
        assert!(why().contains("ENOENT"), "{}", why());
    }
}
