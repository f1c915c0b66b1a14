//! A slot in plain memory, with scripted writes of a hostile process between the accesses of other processes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use crate::exchange::{SlotMemory, WORDS, Word};

#[derive(Debug)]
struct Memory {
    words: [Cell<u64>; WORDS],
    /// The next writes: accesses before the write, index, value.
    script: RefCell<VecDeque<(u8, usize, u64)>>,
    /// A word that changes on every access.
    unstable: Cell<Option<usize>>,
    accesses: Cell<u64>,
}

/// A slot. A clone is the same slot.
#[derive(Clone, Debug)]
pub(crate) struct ScriptedSlot(Rc<Memory>);

impl Default for ScriptedSlot {
    fn default() -> Self {
        let words = std::array::from_fn(|_| Cell::new(0));
        let (script, unstable, accesses) = (RefCell::default(), Cell::default(), Cell::default());
        Self(Rc::new(Memory { words, script, unstable, accesses }))
    }
}

impl ScriptedSlot {
    /// The word with this index. Not counted as an access.
    pub(crate) fn word(&self, index: usize) -> &Cell<u64> {
        &self.0.words[index]
    }

    /// Writes `value` after so many accesses, immediately if that is 0.
    pub(crate) fn write_after(&self, accesses: u8, index: usize, value: u64) {
        if accesses == 0 {
            self.word(index).set(value);
        } else {
            self.0.script.borrow_mut().push_back((accesses, index, value));
        }
    }

    /// From now on this word changes on every access; `None`: no word does.
    pub(crate) fn change_on_every_access(&self, index: Option<usize>) {
        self.0.unstable.set(index);
    }

    /// Cancels all scripted writes.
    pub(crate) fn end_script(&self) {
        self.0.script.borrow_mut().clear();
        self.change_on_every_access(None);
    }

    /// The number of accesses.
    pub(crate) fn accesses(&self) -> u64 {
        self.0.accesses.get()
    }

    fn access(&self, index: usize) -> &Cell<u64> {
        self.0.accesses.set(self.accesses() + 1);
        let mut script = self.0.script.borrow_mut();
        if let Some((left, written, value)) = script.front_mut() {
            *left -= 1;
            if *left == 0 {
                self.word(*written).set(*value);
                script.pop_front();
            }
        }
        if self.0.unstable.get() == Some(index) {
            self.word(index).set(self.word(index).get().wrapping_add(1 << 8));
        }
        self.word(index)
    }
}

impl SlotMemory for ScriptedSlot {
    fn load(&self, word: Word, _: Ordering) -> u64 {
        self.access(word.index()).get()
    }
    fn store(&self, word: Word, value: u64, _: Ordering) {
        self.access(word.index()).set(value);
    }
    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        let word = self.access(word.index());
        if word.get() != current {
            return Err(word.get());
        }
        word.set(new);
        Ok(())
    }
    fn fence(&self, _: Ordering) {}
}
