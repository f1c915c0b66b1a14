//! A copy of a slot, for readers that do not map the segment.
//!
//! Copying needs no write access and cannot fault: a truncated segment is too short to read. Words that are written at
//! the same time may be inconsistent, which every reader of a slot must expect anyway.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::fcntl::OFlag;
use nix::sys::mman::shm_open;
use nix::sys::stat::Mode;

use super::error::{Damage, SegmentError};
use super::layout::{LAYOUT, MAGIC, SIZE, offset};
use super::segment::check_owner;
use crate::exchange::{SlotMemory, WORDS, Word};

/// The words of a slot at one moment. Writes change only the copy.
#[derive(Debug)]
pub(crate) struct SlotSnapshot {
    words: Vec<AtomicU64>,
}

impl SlotSnapshot {
    /// Copies the slot of the segment `name`. The segment must have the layout of this program and belong to this user,
    /// to root, or to `owner`.
    ///
    /// # Errors
    /// When the segment is missing, not readable, foreign, or damaged.
    pub(crate) fn read(name: &str, owner: Option<u32>) -> Result<Self, SegmentError> {
        Self::of(&Self::open(name, owner)?, name)
    }

    /// Opens the segment `name` for reading.
    ///
    /// # Errors
    /// When the segment is missing, not readable, or foreign.
    pub(crate) fn open(name: &str, owner: Option<u32>) -> Result<File, SegmentError> {
        let system = |call| move |cause| SegmentError::System { name: name.to_owned(), call, cause };
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = File::from(shm_open(name, flags, Mode::empty()).map_err(system("shm_open"))?);
        check_owner(name, &file, owner)?;
        Ok(file)
    }

    /// Copies the slot of an open segment. `name` is for error messages.
    ///
    /// # Errors
    /// When it is damaged.
    pub(crate) fn of(file: &File, name: &str) -> Result<Self, SegmentError> {
        let damaged = |damage| SegmentError::Damaged { name: name.to_owned(), damage };
        let mut bytes = [0; SIZE];
        file.read_exact_at(&mut bytes, 0).map_err(|_| damaged(Damage::Truncated))?;
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

    /// All words, in order.
    pub(crate) fn words(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }
}

impl SlotMemory for SlotSnapshot {
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
    use crate::shm::{Segment, SegmentIdentity};

    #[test]
    fn a_snapshot_is_independent_of_the_segment() {
        let name = format!("/patou-test.{}.snapshot", std::process::id());
        let segment = Segment::create(&name, 0o600, None, SegmentIdentity { set_epoch: 1, digest: 2 }, &[]).unwrap();
        segment.store(Word::CLAIM, 42, Ordering::Relaxed);
        let snapshot = SlotSnapshot::read(&name, None).unwrap();
        segment.store(Word::CLAIM, 43, Ordering::Relaxed);
        assert_eq!(snapshot.load(Word::CLAIM, Ordering::Relaxed), 42);
        snapshot.store(Word::CLAIM, 44, Ordering::Relaxed);
        assert_eq!(segment.load(Word::CLAIM, Ordering::Relaxed), 43);
        Segment::unlink(&name).unwrap();
    }

    #[test]
    fn a_damaged_or_missing_segment_is_rejected() {
        let name = format!("/patou-test.{}.no-snapshot", std::process::id());
        let segment = Segment::create(&name, 0o600, None, SegmentIdentity { set_epoch: 1, digest: 2 }, &[]).unwrap();
        let why = || SlotSnapshot::read(&name, None).unwrap_err().to_string();
        let file = File::options().write(true).open(format!("/dev/shm{name}")).unwrap();
        segment.invalidate();
        assert!(why().contains("magic"), "{}", why());
        file.set_len(100).unwrap();
        assert!(why().contains("truncated"), "{}", why());
        Segment::unlink(&name).unwrap();
        assert!(why().contains("ENOENT"), "{}", why());
    }
}
