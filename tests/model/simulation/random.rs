//! Random numbers from a seed.

use std::time::Duration;

/// splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// `true` with this probability in percent.
    pub(crate) fn percent(&mut self, probability: u64) -> bool {
        self.below(100) < probability
    }

    /// Up to `ms` milliseconds.
    pub(crate) fn millis(&mut self, ms: u64) -> Duration {
        Duration::from_micros(self.below(ms * 1000) + 1)
    }
}
