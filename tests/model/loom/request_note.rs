//! The request note.

use loom::thread;

use super::{LoomSlot, Missing, bounded, lease};
use crate::exchange::{RequestNote, WORDS, WorkerSide};
use crate::ids::Monotonic;

/// A note that is replaced while it is read is read whole, or not at all.
fn note_of_lease(missing: Missing) {
    bounded(3, move || {
        let slot = LoomSlot::with_words(WORDS, missing);
        let worker = WorkerSide::attach(slot.clone(), 11, 21, Some(31), Monotonic(1));
        worker.note_request(lease(1), Monotonic(1001), &[b"one"]);
        let serving = thread::spawn(move || worker.note_request(lease(2), Monotonic(1002), &[b"two"]));
        for (n, text) in [(1, b"one"), (2, b"two")] {
            if let Some(note) = RequestNote::load(&slot, lease(n)) {
                let whole = RequestNote { claimed_at: Monotonic(1000 + n), text: text.to_vec() };
                assert!(note == whole, "torn note: {note:?}");
            }
        }
        serving.join().unwrap();
    });
}

#[test]
fn a_note_belongs_to_its_lease() {
    note_of_lease(Missing::Nothing);
}

#[test]
#[should_panic(expected = "torn note")]
fn a_note_needs_its_release_fence() {
    note_of_lease(Missing::ReleaseFence);
}

#[test]
#[should_panic(expected = "torn note")]
fn a_note_needs_its_acquire_fence() {
    note_of_lease(Missing::AcquireFence);
}

#[test]
#[should_panic(expected = "torn note")]
fn a_note_needs_its_release_and_acquire() {
    note_of_lease(Missing::LoadAndStoreOrder);
}
