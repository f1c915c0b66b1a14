//! The note of a claimed request, which tells what a frozen worker holds.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::memory::SlotMemory;
use super::slot_layout::Word;
use crate::ids::{LeaseId, Monotonic};

/// The request that a worker has claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestNote {
    /// The time of the claim.
    pub claimed_at: Monotonic,
    /// Method and path, cut at [`RequestNote::TEXT_MAX`] bytes. They come from the client and may hold any byte but
    /// zero.
    pub text: Vec<u8>,
}

impl RequestNote {
    /// Bytes of text that are kept.
    pub(crate) const TEXT_MAX: usize = Word::REQUEST_TEXT_WORDS * size_of::<u64>();

    /// The note of this lease; `None` if the note belongs to another lease or is being written.
    pub(crate) fn load<M: SlotMemory>(memory: &M, lease: LeaseId) -> Option<RequestNote> {
        let is_of_lease = |order| memory.load(Word::REQUEST_LEASE, order) == lease.get();
        if !is_of_lease(Acquire) {
            return None; // Acquire R
        }
        let claimed_at = Monotonic(memory.load(Word::CLAIMED_AT, Relaxed));
        let words = (0..Word::REQUEST_TEXT_WORDS).map(|i| memory.load(Word::request_text(i), Relaxed));
        let text = words.flat_map(u64::to_le_bytes).take_while(|byte| *byte != 0).collect();
        memory.fence(Acquire); // Acquire R
        is_of_lease(Relaxed).then_some(RequestNote { claimed_at, text })
    }
}

/// Writes the note of a lease. The text ends with a zero byte, or with the last word.
pub(super) fn store_note<M: SlotMemory>(memory: &M, lease: LeaseId, claimed_at: Monotonic, text: &[&[u8]]) {
    memory.store(Word::REQUEST_LEASE, 0, Relaxed);
    memory.fence(Release); // Release R: no word of this note is visible under the previous lease
    memory.store(Word::CLAIMED_AT, claimed_at.0, Relaxed);
    let mut bytes = text.iter().flat_map(|piece| piece.iter().copied()).take(RequestNote::TEXT_MAX).peekable();
    for i in 0..Word::REQUEST_TEXT_WORDS {
        let has_more = bytes.peek().is_some();
        let word: [u8; size_of::<u64>()] = std::array::from_fn(|_| bytes.next().unwrap_or(0));
        memory.store(Word::request_text(i), u64::from_le_bytes(word), Relaxed);
        if !has_more {
            break;
        }
    }
    memory.store(Word::REQUEST_LEASE, lease.get(), Release); // Release R
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::PlainSlot;
    use crate::ids::Epoch;

    #[test]
    fn a_note_is_cut_at_its_bound_and_replaces_the_previous_one() {
        let memory = PlainSlot::default();
        (0..Word::REQUEST_TEXT_WORDS).for_each(|i| memory.store(Word::request_text(i), u64::MAX, Relaxed));
        let lease = |n| LeaseId::of(Epoch::FIRST, n);
        let kept = |n, pieces: &[&[u8]]| {
            store_note(&memory, lease(n), Monotonic(n), pieces);
            assert_eq!(RequestNote::load(&memory, lease(n + 1)), None);
            let note = RequestNote::load(&memory, lease(n)).unwrap();
            assert_eq!(note.claimed_at, Monotonic(n));
            String::from_utf8(note.text).unwrap()
        };
        let long = "x".repeat(RequestNote::TEXT_MAX + 1);
        assert_eq!(kept(1, &[b"GET", b" ", b"/"]), "GET /");
        assert_eq!(kept(2, &[long.as_bytes()]), long[1..]);
        assert_eq!(kept(3, &[b"PUT /16"]), "PUT /16");
        assert_eq!(kept(4, &[b"PUT /eig"]), "PUT /eig", "the text fills its last word");
        assert_eq!(kept(5, &[]), "");
    }
}
