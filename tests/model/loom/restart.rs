//! A dispatcher dies in the middle of an offer; a new incarnation of the worker starts.

use std::sync::Arc;
use std::sync::atomic::Ordering::{self, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicUsize};

use loom::thread;

use super::{LoomSlot, Missing, NOW, assert_whole, bounded, epoch, lease, phase, sides, terms_of, token};
use crate::exchange::{ClaimError, DispatcherSide, Incarnation, SlotMemory, Word, WorkerSide};
use crate::ids::{Epoch, LeaseTerms, Lifecycle, Monotonic, Phase, ProcessId};

/// The slot of a dispatcher that dies after so many writes: later writes have no effect.
struct DyingWriter {
    slot: Arc<LoomSlot>,
    writes_left: AtomicUsize,
}

impl DyingWriter {
    fn may_write(&self) -> bool {
        self.writes_left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

impl SlotMemory for DyingWriter {
    fn load(&self, word: Word, order: Ordering) -> u64 {
        self.slot.load(word, order)
    }

    fn store(&self, word: Word, value: u64, order: Ordering) {
        if self.may_write() {
            self.slot.store(word, value, order);
        }
    }

    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        if self.may_write() { self.slot.compare_exchange(word, current, new) } else { Err(current) }
    }

    fn fence(&self, order: Ordering) {
        self.slot.fence(order);
    }
}

/// A dispatcher dies in an offer after so many writes. The next one takes over the slot while the worker claims what it
/// sees. Returns whether the offer was complete.
fn next_dispatcher(writes: usize, missing: Missing) -> bool {
    let is_complete = Arc::new(AtomicBool::new(false));
    let result = is_complete.clone();
    bounded(2, move || {
        let (_, worker) = sides(missing);
        let slot = worker.memory().clone();
        let memory = DyingWriter { slot: slot.clone(), writes_left: usize::MAX.into() };
        let mut dying = DispatcherSide::attach(memory, Epoch::FIRST, ProcessId { pid: 1, start_time: 1 }, None);
        dying.memory().writes_left.store(writes, Relaxed);
        let claiming = thread::spawn(move || {
            let claimed = worker.claim(token(1), NOW);
            (worker, claimed)
        });
        let _ = dying.offer(&terms_of(1, Epoch::FIRST)); // a dead dispatcher uses no result
        is_complete.fetch_or(dying.memory().writes_left.load(Relaxed) > 0, Relaxed);
        let mut next = DispatcherSide::attach(slot.clone(), epoch(2), ProcessId { pid: 2, start_time: 2 }, None);
        let revoked = next.revoke(lease(1));
        let (worker, claimed) = claiming.join().unwrap();
        if let Ok(terms) = claimed {
            assert_whole(&terms);
            assert!(!revoked, "both or neither succeeded");
            assert_eq!(phase(&slot), Some(Phase::Claimed));
            let offer = next.offer(&LeaseTerms { dispatcher_epoch: epoch(2), ..terms });
            assert!(matches!(offer, Err(Some(_))), "a claimed slot is not free");
        } else {
            assert_eq!(phase(&slot), Some(if revoked { Phase::Revoked } else { Phase::Free }));
            assert_eq!(next.release(lease(1)), revoked);
            next.offer(&LeaseTerms { dispatcher_epoch: epoch(2), ..terms_of(2, Epoch::FIRST) }).unwrap();
            let terms = worker.claim(token(2), NOW).expect("the offer of the next dispatcher is valid");
            assert_whole(&terms);
        }
    });
    result.load(Relaxed)
}

#[test]
fn an_offer_of_a_dying_dispatcher_is_claimed_or_revoked() {
    let complete = (0..).find(|writes| next_dispatcher(*writes, Missing::Nothing));
    assert!(complete > Some(8), "an offer has more writes: {complete:?}");
}

#[test]
#[should_panic(expected = "both or neither succeeded")]
fn an_offer_of_a_dying_dispatcher_needs_one_step() {
    assert!((0..20).any(|writes| next_dispatcher(writes, Missing::SwapInOneStep)), "found nothing");
}

/// The slot as its worker sees it. Only the worker writes the life line, and knows its values. Its loads before the
/// stores of a new incarnation would keep loom from finding all orders in which other threads may see the stores.
struct WorkerView(Arc<LoomSlot>);

impl SlotMemory for WorkerView {
    fn load(&self, word: Word, order: Ordering) -> u64 {
        const LIFE_LINE: std::ops::Range<usize> = 3 * 8..4 * 8;
        match word.index() {
            index if LIFE_LINE.contains(&index) => self.0.values[index].load(Relaxed),
            _ => self.0.load(word, order),
        }
    }

    fn store(&self, word: Word, value: u64, order: Ordering) {
        self.0.store(word, value, order);
    }

    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        self.0.compare_exchange(word, current, new)
    }

    fn fence(&self, order: Ordering) {
        self.0.fence(order);
    }
}

/// The next incarnation starts while the dispatcher reads the life line and makes an offer to the incarnation that it
/// read.
fn next_incarnation(missing: Missing) {
    bounded(3, move || {
        let (mut dispatcher, old) = sides(missing);
        let slot = old.memory().clone();
        let next = thread::spawn(move || {
            let worker = WorkerSide::attach(WorkerView(slot), 12, 22, Some(31), Monotonic(2));
            assert_eq!(worker.epoch(), epoch(2));
            (worker.has_obligation(NOW), worker.claim(token(1), NOW))
        });
        let life = Incarnation::load(dispatcher.memory()).unwrap();
        if life.epoch == epoch(2) {
            let is_whole = (life.pid, life.started, life.state) == (12, 22, Lifecycle::Starting);
            assert!(is_whole, "torn life line: {life:?}");
        }
        dispatcher.offer(&terms_of(1, life.epoch)).unwrap();
        let (has_obligation, claimed) = next.join().unwrap();
        match claimed {
            Ok(terms) => {
                assert_whole(&terms);
                assert_eq!(
                    (terms.worker_epoch, life.epoch),
                    (epoch(2), epoch(2)),
                    "claimed the lease of a dead worker"
                );
            }
            Err(ClaimError::OtherEpoch) => assert_eq!(life.epoch, Epoch::FIRST),
            Err(error) => assert_eq!(error, ClaimError::Foreign, "the offer is not visible yet"),
        }
        assert!(!has_obligation || life.epoch == epoch(2), "an obligation of a dead worker");
    });
}

#[test]
fn a_new_incarnation_accepts_no_offer_to_the_old_one() {
    next_incarnation(Missing::Nothing);
}

#[test]
#[should_panic(expected = "torn life line")]
fn a_life_line_needs_its_release_and_acquire() {
    next_incarnation(Missing::LoadAndStoreOrder);
}
