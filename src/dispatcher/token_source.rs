//! Random bits for tokens, drawn from the kernel for many at a time.

use std::cell::{Cell, RefCell};

/// Tokens' worth of bits in one draw; getrandom(2) gives up to 256 bytes at once.
const DRAW: usize = 16;

/// Bits that nobody has seen. Each is given away once and not kept.
#[derive(Default)]
pub struct TokenSource {
    drawn: RefCell<[[u8; 16]; DRAW]>,
    left: Cell<usize>,
}

impl TokenSource {
    /// The next 128 of them.
    pub fn bits(&self) -> u128 {
        let mut drawn = self.drawn.borrow_mut();
        if self.left.get() == 0 {
            // The kernel blocks until it can, and then never fails (getrandom(2)).
            getrandom::fill(drawn.as_flattened_mut()).expect("the kernel gives random bytes");
            self.left.set(DRAW);
        }
        self.left.set(self.left.get() - 1);
        u128::from_ne_bytes(std::mem::take(&mut drawn[self.left.get()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bits_come_twice() {
        let chance = TokenSource::default();
        let all: std::collections::BTreeSet<u128> = (0..DRAW * 3).map(|_| chance.bits()).collect();
        assert_eq!(all.len(), DRAW * 3);
        assert!(chance.drawn.borrow().iter().all(|bits| *bits == [0; 16]), "what was given away is not kept");
    }
}
