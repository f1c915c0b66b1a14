//! The version of the program that a part runs.

use std::fmt;

/// A version, at most 255.4095.4095.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProgramVersion(u32);

impl ProgramVersion {
    /// The version of this program. A worker with a program of its own has that of the library.
    pub(crate) fn own() -> Self {
        let number = |text: &str| text.parse().unwrap_or(0);
        let [major, minor, patch]: [u32; 3] = [
            number(env!("CARGO_PKG_VERSION_MAJOR")),
            number(env!("CARGO_PKG_VERSION_MINOR")),
            number(env!("CARGO_PKG_VERSION_PATCH")),
        ];
        Self(major.min(0xff) << 24 | minor.min(0xfff) << 12 | patch.min(0xfff))
    }

    /// A version as [`Self::word`] stores it; `None` for a word of another incarnation than `epoch`: a part of an earlier
    /// version leaves the word as it is.
    pub(crate) fn of_word(word: u64, epoch: u32) -> Option<Self> {
        (word != 0 && (word >> 32) as u32 == epoch).then_some(Self(word as u32))
    }

    /// The version and the incarnation that has it, in one word.
    pub(crate) fn word(self, epoch: u32) -> u64 {
        u64::from(epoch) << 32 | u64::from(self.0)
    }
}

impl fmt::Display for ProgramVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0 >> 24, self.0 >> 12 & 0xfff, self.0 & 0xfff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_belongs_to_one_incarnation() {
        let own = ProgramVersion::own();
        assert_eq!(own.to_string(), env!("CARGO_PKG_VERSION"));
        assert_eq!(ProgramVersion::of_word(own.word(7), 7), Some(own));
        assert_eq!(ProgramVersion::of_word(own.word(7), 8), None);
        assert_eq!(ProgramVersion::of_word(0, 0), None);
    }
}
