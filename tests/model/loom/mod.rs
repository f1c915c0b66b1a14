//! The slot protocol under loom: every interleaving and every stale value that the memory model allows.
//!
//! Each model runs first on correct memory. Then it runs, with `should_panic`, on memory that lacks the one guarantee
//! that the protocol needs there: this proves that loom finds the fault. Some models have too many interleavings to
//! explore all of them; they bound the number of preemptions.

mod lease_end;
mod polling;
mod question;
mod race;
mod request_note;
mod restart;
mod session;
mod terms;

use std::sync::Arc;
use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release, SeqCst};
use std::time::Duration;

use loom::sync::atomic::{AtomicU64, fence};

use crate::exchange::{self, DispatcherSide, SlotMemory, Word, WorkerSide};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Phase, ProcessId, Token};

/// The guarantee that a memory lacks.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Nothing,
    /// Release stores and acquire loads order nothing.
    LoadAndStoreOrder,
    /// There are no release fences.
    ReleaseFence,
    /// There are no acquire fences.
    AcquireFence,
    /// There are no sequentially consistent fences.
    TotalFence,
    /// A compare-and-swap orders nothing.
    SwapOrder,
    /// A compare-and-swap is a load and a store.
    SwapInOneStep,
}

/// The words of a slot as loom's atomics.
///
/// A relaxed store of a word's current value is left out: it could only add ordering, and would cost loom a branch.
/// Terms of different leases therefore differ in three words only.
struct LoomSlot {
    words: Vec<AtomicU64>,
    values: Vec<std::sync::atomic::AtomicU64>,
    missing: Missing,
}

impl LoomSlot {
    /// The words before the counters, of which the decision about a session is the last.
    fn new(missing: Missing) -> Arc<Self> {
        Self::with_words(Word::POLLING.index() + 2, missing)
    }

    fn with_words(count: usize, missing: Missing) -> Arc<Self> {
        let values = (0..count).map(|_| Default::default()).collect();
        Arc::new(Self { words: (0..count).map(|_| AtomicU64::new(0)).collect(), values, missing })
    }

    fn weaken(&self, order: Ordering) -> Ordering {
        if self.missing == Missing::LoadAndStoreOrder { Relaxed } else { order }
    }
}

impl SlotMemory for LoomSlot {
    fn load(&self, word: Word, order: Ordering) -> u64 {
        self.words[word.index()].load(self.weaken(order))
    }

    fn store(&self, word: Word, value: u64, order: Ordering) {
        let before = self.values[word.index()].swap(value, Relaxed);
        if before != value || order != Relaxed {
            self.words[word.index()].store(value, self.weaken(order));
        }
    }

    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        let word = &self.words[word.index()];
        match self.missing {
            Missing::SwapOrder => word.compare_exchange(current, new, Relaxed, Relaxed).map(drop),
            Missing::SwapInOneStep => match word.load(Acquire) {
                found if found == current => {
                    word.store(new, Release);
                    Ok(())
                }
                found => Err(found),
            },
            _ => word.compare_exchange(current, new, Ordering::AcqRel, Acquire).map(drop),
        }
    }

    fn fence(&self, order: Ordering) {
        match (order, self.missing) {
            (Release, Missing::ReleaseFence) | (Acquire, Missing::AcquireFence) | (SeqCst, Missing::TotalFence) => {}
            _ => fence(order),
        }
    }
}

/// Explores the model with at most so many preemptions.
fn bounded(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn epoch(n: u64) -> Epoch {
    Epoch::new(n).unwrap()
}

fn lease(n: u64) -> LeaseId {
    LeaseId::of(Epoch::FIRST, n)
}

fn token(n: u64) -> Token {
    Token::new(u128::from(n) << 64 | 7)
}

const NOW: Monotonic = Monotonic(5);

/// Terms in which the claim deadline and half of the token name the lease.
fn terms_of(n: u64, worker_epoch: Epoch) -> LeaseTerms {
    LeaseTerms {
        lease: lease(n),
        worker_epoch,
        dispatcher_epoch: Epoch::FIRST,
        token: token(n),
        claim_by: Monotonic(1000 + n),
        request_timeout: Duration::from_nanos(2000),
        connection: 0,
    }
}

fn assert_whole(terms: &LeaseTerms) {
    let n = terms.lease.get() - lease(1).get() + 1;
    assert!(terms.token.matches(token(n)) && terms.claim_by == Monotonic(1000 + n), "torn terms: {terms:?}");
}

/// Both sides of one slot, the worker in its first epoch.
fn sides(missing: Missing) -> (DispatcherSide<Arc<LoomSlot>>, WorkerSide<Arc<LoomSlot>>) {
    let slot = LoomSlot::new(missing);
    let worker = WorkerSide::attach(slot.clone(), 11, 21, Some(31), Monotonic(1));
    worker.set_state(Lifecycle::Ready, false);
    (DispatcherSide::attach(slot, Epoch::FIRST, ProcessId { pid: 1, start_time: 1 }, None), worker)
}

/// As [`sides`], with lease 1 in phase Offered, Claimed or Responding.
fn sides_in(missing: Missing, phase: Phase) -> (DispatcherSide<Arc<LoomSlot>>, WorkerSide<Arc<LoomSlot>>) {
    let (mut dispatcher, worker) = sides(missing);
    dispatcher.offer(&terms_of(1, worker.epoch())).unwrap();
    if phase != Phase::Offered {
        worker.claim(token(1), NOW).unwrap();
    }
    if phase == Phase::Responding {
        assert!(worker.respond(lease(1)));
    }
    (dispatcher, worker)
}

fn phase(slot: &Arc<LoomSlot>) -> Option<Phase> {
    match exchange::claim(slot) {
        Some(Claim::Held(_, phase)) => Some(phase),
        Some(Claim::Free) => Some(Phase::Free),
        None => None,
    }
}
