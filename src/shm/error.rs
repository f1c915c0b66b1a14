//! Why a segment cannot be used.

use std::fmt;

use nix::errno::Errno;

use super::layout::{LAYOUT, SIZE};

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
        /// Its error.
        cause: Errno,
    },
    /// A segment of this name already exists.
    #[error("segment {0} already exists")]
    Exists(String),
    /// The segment belongs to another user.
    #[error("segment {name} is rejected: it belongs to user {uid}")]
    Foreign {
        /// The segment.
        name: String,
        /// Its owner.
        uid: u32,
    },
    /// The segment does not have the expected header or size.
    #[error("segment {name} is rejected: {damage}")]
    Damaged {
        /// The segment.
        name: String,
        /// What is wrong.
        damage: Damage,
    },
}

/// What is wrong with a segment: a process has written where only the creator writes, or has truncated it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Truncated while it was mapped here.
    Truncated,
    /// This wrong size in bytes.
    Size(u64),
    /// The first word is not the magic number.
    Magic,
    /// The layout of another version of this program.
    Layout(u64),
    /// The header names another size.
    Header,
    /// It belongs to another worker or set.
    Owner,
}

impl Damage {
    /// Whether a well-behaved program may have created the segment: another version, or another set.
    pub fn is_well_formed(self) -> bool {
        matches!(self, Damage::Layout(_) | Damage::Owner)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Truncated => f.write_str("it was truncated while in use"),
            Damage::Size(size) => write!(f, "it has {size} bytes, not {SIZE}"),
            Damage::Magic => f.write_str("it has no magic number: incomplete, corrupt, or not a segment of patou"),
            Damage::Layout(layout) => write!(f, "its layout is version {layout}, this program's is {LAYOUT}"),
            Damage::Header => f.write_str("its header names another size"),
            Damage::Owner => f.write_str("it was created for another set, directory or worker"),
        }
    }
}
