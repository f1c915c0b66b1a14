//! Random bits for tokens, read from the kernel for several tokens at once.

/// Tokens per read; getrandom(2) returns up to 256 bytes at once.
const BATCH: usize = 16;

/// Unused random bits. Each is returned once and then erased.
#[derive(Default)]
pub(super) struct TokenSource {
    unused: [[u8; 16]; BATCH],
    left: usize,
}

impl TokenSource {
    /// The next 128 bits.
    pub(super) fn bits(&mut self) -> u128 {
        if self.left == 0 {
            // The kernel blocks until its generator is seeded, and never fails afterwards (getrandom(2)).
            getrandom::fill(self.unused.as_flattened_mut()).expect("getrandom(2) returns random bytes");
            self.left = BATCH;
        }
        self.left -= 1;
        u128::from_ne_bytes(std::mem::take(&mut self.unused[self.left]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_returned_once_and_erased() {
        let mut source = TokenSource::default();
        let all: std::collections::BTreeSet<u128> = (0..BATCH * 3).map(|_| source.bits()).collect();
        assert_eq!(all.len(), BATCH * 3);
        assert!(source.unused.iter().all(|bits| *bits == [0; 16]), "returned bits are erased");
    }
}
