//! A slot on plain memory, with somebody in it who writes when it suits him.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use crate::exchange::{SlotMemory, WORDS, Word};

/// Words in a slot.
pub const COUNT: usize = WORDS;

#[derive(Debug)]
struct Slot {
    words: [Cell<u64>; WORDS],
    /// Writes to come, each after so many accesses of others.
    armed: RefCell<VecDeque<(u8, usize, u64)>>,
    /// A word that changes whenever it is read.
    restless: Cell<Option<usize>>,
    accesses: Cell<u64>,
}

/// The words of one slot. A clone is the same slot.
#[derive(Clone, Debug)]
pub struct Words(Rc<Slot>);

impl Default for Words {
    fn default() -> Self {
        let words = std::array::from_fn(|_| Cell::new(0));
        let (armed, restless, accesses) = (RefCell::default(), Cell::default(), Cell::default());
        Self(Rc::new(Slot { words, armed, restless, accesses }))
    }
}

impl Words {
    /// A word, by its index.
    pub fn word(&self, index: usize) -> &Cell<u64> {
        &self.0.words[index]
    }

    /// Writes `value` after `accesses` accesses of others, at once if that is 0.
    pub fn arm(&self, accesses: u8, index: usize, value: u64) {
        if accesses == 0 {
            self.word(index).set(value);
        } else {
            self.0.armed.borrow_mut().push_back((accesses, index, value));
        }
    }

    /// Has this word change whenever it is read; `None`: none does any more.
    pub fn unsettle(&self, index: Option<usize>) {
        self.0.restless.set(index);
    }

    /// Nobody writes behind the others' backs any more.
    pub fn calm(&self) {
        self.0.armed.borrow_mut().clear();
        self.unsettle(None);
    }

    /// How often it was accessed.
    pub fn accesses(&self) -> u64 {
        self.0.accesses.get()
    }

    fn touch(&self, index: usize) -> &Cell<u64> {
        self.0.accesses.set(self.accesses() + 1);
        let mut armed = self.0.armed.borrow_mut();
        if let Some((left, written, value)) = armed.front_mut() {
            *left -= 1;
            if *left == 0 {
                self.word(*written).set(*value);
                armed.pop_front();
            }
        }
        if self.0.restless.get() == Some(index) {
            self.word(index).set(self.word(index).get().wrapping_add(1 << 8));
        }
        self.word(index)
    }
}

impl SlotMemory for Words {
    fn load(&self, word: Word, _: Ordering) -> u64 {
        self.touch(word.index()).get()
    }
    fn store(&self, word: Word, value: u64, _: Ordering) {
        self.touch(word.index()).set(value);
    }
    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        let word = self.touch(word.index());
        if word.get() != current {
            return Err(word.get());
        }
        word.set(new);
        Ok(())
    }
    fn fence(&self, _: Ordering) {}
}
