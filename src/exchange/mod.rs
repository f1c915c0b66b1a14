//! The protocol between dispatcher and worker in one slot: questions, answers, and the claim word.
//!
//! The slot is an array of 64-bit words in 64-byte lines. Each line has one writer, so that no two roles
//! fight over a cache line or a value; the claim word alone is changed by both, by compare-and-swap:
//!
//! ```text
//! Free -> Offered                 dispatcher      Claimed -> Responding         worker, before the first response byte
//! Offered -> Claimed              worker          Claimed | Responding -> Done  worker
//! Offered -> Revoked              dispatcher      Done | Revoked | Aborted -> Free  dispatcher
//! Claimed -> Aborted              dispatcher      Responding -> Free  dispatcher, once the worker's incarnation is dead
//! ```
//!
//! The order is always: write the state, then ring (a worker need not while the dispatcher looks by itself, see
//! [`Word::WATCHED`]); the other side reads the state when rung *or at its deadline*. A bell that is lost, late or doubled
//! therefore corrupts nothing.
//!
//! Everything here is generic over [`SlotMemory`], so that the same code runs on a shared segment, on plain
//! atomics and under `loom`. Release and acquire that belong together carry the same letter in a comment.
//! Every value read is taken for untrusted: it passes a checked constructor or counts as absent.

mod dispatcher;
mod slot_layout;
mod spin;
mod worker;

pub use dispatcher::DispatcherSide;
pub use slot_layout::{Incarnation, LINES, RequestNote, SlotCounters, WORDS, Word};
pub use spin::{LONGEST, SpinBudget};
pub use worker::{ClaimError, Counter, WorkerSide};

use std::sync::atomic::Ordering;

use crate::ids::{Claim, LeaseId, LeaseTerms, Monotonic, RefuseReason};

/// The words of one slot, wherever they are kept.
pub trait SlotMemory {
    /// Reads a word.
    fn load(&self, word: Word, order: Ordering) -> u64;
    /// Writes a word.
    fn store(&self, word: Word, value: u64, order: Ordering);
    /// Replaces `current` by `new` (acquire and release); the value found otherwise.
    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64>;
    /// A memory fence.
    fn fence(&self, order: Ordering);
}

impl<M: SlotMemory + ?Sized> SlotMemory for std::sync::Arc<M> {
    fn load(&self, word: Word, order: Ordering) -> u64 {
        (**self).load(word, order)
    }
    fn store(&self, word: Word, value: u64, order: Ordering) {
        (**self).store(word, value, order);
    }
    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        (**self).compare_exchange(word, current, new)
    }
    fn fence(&self, order: Ordering) {
        (**self).fence(order);
    }
}

/// When a role started last, and how many of its lives had failed before: [`Word::DISPATCHER_START`] or
/// [`Word::WORKER_START`]. `None` after an end that was wanted.
pub fn load_start(memory: &impl SlotMemory, word: Word) -> Option<(Monotonic, u32)> {
    let raw = memory.load(word, Ordering::Relaxed);
    (raw != 0).then_some((Monotonic((raw >> 16).saturating_mul(1_000_000)), (raw & 0xffff) as u32))
}

/// Writes it, to the millisecond. Only the role itself may.
pub fn store_start(memory: &impl SlotMemory, word: Word, start: Option<(Monotonic, u32)>) {
    let raw = start.map_or(0, |(at, failures)| (at.0 / 1_000_000) << 16 | u64::from(failures.min(0xffff)));
    memory.store(word, raw, Ordering::Relaxed);
}

/// What the dispatcher may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuestionKind {
    /// Are you there?
    Ping = 1,
    /// Will you take the lease in the lease line?
    Offer = 2,
    /// Are you through with the lease?
    Finished = 3,
    /// Take nothing new. As any question it may be replaced before it is read; what counts is
    /// [`WorkerSide::drained`], which a worker follows at every turn.
    Drain = 4,
    /// Take offers again; see [`QuestionKind::Drain`].
    Resume = 5,
    /// Now is the time to make room for your next incarnation.
    Recycle = 6,
}

impl QuestionKind {
    fn new(raw: u64) -> Option<Self> {
        use QuestionKind::*;
        [Ping, Offer, Finished, Drain, Resume, Recycle].into_iter().find(|k| *k as u64 == raw)
    }
}

/// One question: its place in the sequence, what it asks and of which lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// 1, 2, 3 ... within a slot's life, across incarnations of the dispatcher.
    pub sequence: u64,
    /// What is asked.
    pub kind: QuestionKind,
    /// The lease it is about, where it is about one.
    pub lease: Option<LeaseId>,
}

/// What the worker may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// I am here.
    Pong,
    /// Yes.
    Accept,
    /// No, because.
    Refuse(RefuseReason),
    /// The lease is over.
    Finished,
    /// The lease is still being worked on.
    Working,
}

impl Reply {
    /// Reply in bits 8..16, reason in bits 0..8.
    fn bits(self) -> u64 {
        match self {
            Reply::Pong => 1 << 8,
            Reply::Accept => 2 << 8,
            Reply::Refuse(reason) => 3 << 8 | reason as u64,
            Reply::Finished => 4 << 8,
            Reply::Working => 5 << 8,
        }
    }

    fn new(bits: u64) -> Option<Self> {
        match (bits >> 8 & 0xff, bits & 0xff) {
            (1, 0) => Some(Reply::Pong),
            (2, 0) => Some(Reply::Accept),
            (3, reason) => RefuseReason::new(reason).map(Reply::Refuse),
            (4, 0) => Some(Reply::Finished),
            (5, 0) => Some(Reply::Working),
            _ => None,
        }
    }
}

/// The claim word as it is now; `None` if it holds what no honest writer writes.
pub fn claim<M: SlotMemory>(memory: &M) -> Option<Claim> {
    // Acquire C: pairs with every compare-and-swap of the claim word, and with nothing else.
    Claim::new(memory.load(Word::CLAIM, Ordering::Acquire))
}

/// Changes the claim word from one state to another, or tells what it found instead.
fn swap<M: SlotMemory>(memory: &M, from: Claim, to: Claim) -> Result<(), Option<Claim>> {
    memory.compare_exchange(Word::CLAIM, from.word(), to.word()).map_err(Claim::new)
}

/// The terms of the lease in the lease line, if that lease is still the one in the claim word: the line is
/// written only while the claim word is free, so an unchanged claim word proves an unchanged line.
pub fn terms<M: SlotMemory>(memory: &M) -> Option<(Claim, LeaseTerms)> {
    let before = claim(memory)?;
    let Claim::Held(lease, _) = before else { return None };
    let terms = slot_layout::load_terms(memory)?;
    // Acquire L: pairs with the release fence before the lease line is written.
    memory.fence(Ordering::Acquire);
    let after = Claim::new(memory.load(Word::CLAIM, Ordering::Relaxed))?;
    let Claim::Held(still, _) = after else { return None };
    (still == lease && terms.lease == lease).then_some((after, terms))
}
