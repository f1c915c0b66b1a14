//! The layout of a segment, checked at compile time.

use std::mem::{align_of, offset_of, size_of};

use crate::exchange::{LINES, WORDS, Word};

/// First word of a complete segment: "patou" and bytes that no text contains.
pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"patou\0\xf0\x7f");

/// Layout version, incremented with every change of header or slot. Processes of different layouts reject each other's
/// segments. A build with `PATOU_NEXT_LAYOUT` in its environment tests an upgrade.
pub(super) const LAYOUT: u64 = if option_env!("PATOU_NEXT_LAYOUT").is_some() { 4 } else { 3 };

/// The header. Written once by the creator, the magic last.
#[repr(C, align(64))]
pub(super) struct Header {
    pub magic: u64,
    pub layout: u64,
    /// Bytes of the whole segment.
    pub size: u64,
    /// The epoch of the set that created it.
    pub set_epoch: u64,
    /// The digest of set, pool and worker.
    pub digest: u64,
    reserved: [u64; 3],
}

/// A whole segment.
#[repr(C, align(64))]
pub(super) struct Layout {
    pub header: Header,
    pub slot: [[u64; 8]; LINES],
}

/// Bytes of a segment.
pub(super) const SIZE: usize = size_of::<Layout>();

/// Byte offset of a word of the slot.
pub(super) const fn offset(word: Word) -> usize {
    offset_of!(Layout, slot) + word.index() * size_of::<u64>()
}

/// The bytes (start, length) of a line of the slot, which its role locks while it lives.
pub(super) const fn line(index: usize) -> (i64, i64) {
    assert!(index < LINES);
    ((offset_of!(Layout, slot) + index * 64) as i64, 64)
}

const _: () = {
    assert!(size_of::<Header>() == 64 && align_of::<Layout>() == 64);
    assert!(offset_of!(Header, magic) == 0 && offset_of!(Header, digest) == 32);
    assert!(offset_of!(Layout, slot) == 64);
    assert!(size_of::<Layout>() == 64 + LINES * 64);
    assert!(WORDS * 8 == LINES * 64);
    // One page: a segment is mapped whole, or not at all.
    assert!(SIZE <= 4096);
    assert!(offset(Word::CLAIM) == 64 + 4 * 64);
    assert!(WORDS * 8 + offset_of!(Layout, slot) == SIZE);
};
