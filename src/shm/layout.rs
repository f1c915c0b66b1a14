//! Where everything lies in a segment, proved at compile time.

use std::mem::{align_of, offset_of, size_of};

use crate::exchange::{LINES, WORDS, Word};

/// First word of a finished segment: "patou" and a guard byte that no text has.
pub const MAGIC: u64 = u64::from_be_bytes(*b"patou\0\xf0\x7f");

/// Grows with every change of header or slot. Processes of different layouts refuse each other. What an upgrade makes of
/// that is tested with a build that has `PATOU_NEXT_LAYOUT` in its environment.
pub const LAYOUT: u64 = if option_env!("PATOU_NEXT_LAYOUT").is_some() { 4 } else { 3 };

/// The header as it lies in memory. Written once by the creator, the magic last.
#[repr(C, align(64))]
pub struct Header {
    pub magic: u64,
    pub layout: u64,
    /// Bytes of the whole segment.
    pub size: u64,
    /// Which life of the set made it.
    pub set_epoch: u64,
    /// Which set, pool and worker of the configuration it belongs to.
    pub digest: u64,
    reserved: [u64; 3],
}

/// A whole segment.
#[repr(C, align(64))]
pub struct Layout {
    pub header: Header,
    pub slot: [[u64; 8]; LINES],
}

/// Bytes of a segment.
pub const SIZE: usize = size_of::<Layout>();

/// Byte offset of a word of the slot.
pub const fn offset(word: Word) -> usize {
    offset_of!(Layout, slot) + word.index() * size_of::<u64>()
}

/// Bytes that a role locks while it lives: its own line of the slot.
pub const fn line(number: usize) -> (i64, i64) {
    assert!(number < LINES);
    ((offset_of!(Layout, slot) + number * 64) as i64, 64)
}

const _: () = {
    assert!(size_of::<Header>() == 64 && align_of::<Layout>() == 64);
    assert!(offset_of!(Header, magic) == 0 && offset_of!(Header, digest) == 32);
    assert!(offset_of!(Layout, slot) == 64);
    assert!(size_of::<Layout>() == 64 + LINES * 64);
    assert!(WORDS * 8 == LINES * 64);
    // One page: a segment is mapped or it is not.
    assert!(SIZE <= 4096);
    assert!(offset(Word::CLAIM) == 64 + 4 * 64);
    assert!(WORDS * 8 + offset_of!(Layout, slot) == SIZE);
};
