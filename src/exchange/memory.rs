//! Access to the words of a slot.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::slot_layout::Word;

/// The words of one slot, in whatever memory.
pub(crate) trait SlotMemory {
    /// Reads a word.
    fn load(&self, word: Word, order: Ordering) -> u64;
    /// Writes a word.
    fn store(&self, word: Word, value: u64, order: Ordering);
    /// Replaces `current` by `new` (acquire and release), or returns the different value that the word has.
    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64>;
    /// A memory fence.
    fn fence(&self, order: Ordering);
}

impl<M: SlotMemory + ?Sized> SlotMemory for Arc<M> {
    fn load(&self, word: Word, order: Ordering) -> u64 {
        (**self).load(word, order)
    }
    fn store(&self, word: Word, value: u64, order: Ordering) {
        (**self).store(word, value, order);
    }
    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        (**self).compare_exchange(word, current, new)
    }
    fn fence(&self, order: Ordering) {
        (**self).fence(order);
    }
}

#[cfg(any(test, feature = "internals"))]
mod plain {
    use std::sync::atomic::{AtomicU64, Ordering, fence};

    use super::{SlotMemory, Word};
    use crate::exchange::slot_layout::WORDS;

    /// A slot of plain atomics, for tests and benchmarks.
    #[derive(Debug)]
    pub(crate) struct PlainSlot([AtomicU64; WORDS]);

    impl Default for PlainSlot {
        fn default() -> Self {
            Self(std::array::from_fn(|_| AtomicU64::new(0)))
        }
    }

    impl SlotMemory for PlainSlot {
        fn load(&self, word: Word, order: Ordering) -> u64 {
            self.0[word.index()].load(order)
        }
        fn store(&self, word: Word, value: u64, order: Ordering) {
            self.0[word.index()].store(value, order);
        }
        fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
            self.0[word.index()].compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
        }
        fn fence(&self, order: Ordering) {
            fence(order);
        }
    }
}

#[cfg(any(test, feature = "internals"))]
pub(crate) use plain::PlainSlot;
