//! The protocol between dispatcher and worker in one slot: questions, answers and the claim word.
//!
//! The slot is an array of 64-bit words in 64-byte lines. Each line has one writing role, so that two roles never
//! compete for a cache line or a value. Only the claim word has two writers, and changes by compare-and-swap:
//!
//! ```text
//! Free -> Offered                   dispatcher
//! Offered -> Claimed                worker
//! Offered -> Revoked                dispatcher
//! Claimed -> Responding             worker, before the first response byte
//! Claimed -> Aborted                dispatcher
//! Responding -> Upgraded            worker, with the dispatcher's permission
//! Claimed | Responding -> Done      worker
//! Upgraded -> Done                  worker
//! Done | Revoked | Aborted -> Free  dispatcher
//! Responding | Upgraded -> Free     dispatcher, once the worker's incarnation is dead
//! ```
//!
//! A side writes the state and then rings the doorbell; the other side reads the state when rung *or at its deadline*.
//! A lost, late or duplicated doorbell therefore corrupts nothing. No ring is needed while the dispatcher polls
//! ([`Word::POLLING`]).
//!
//! The code is generic over [`SlotMemory`]: it runs on a shared segment, on plain atomics and under `loom`. Release and
//! acquire that belong together carry the same letter in a comment. Every value from the slot is untrusted: it passes a
//! checked constructor or counts as absent.

#![forbid(unsafe_code)]

mod claim;
mod dispatcher;
mod incarnation;
mod memory;
mod question;
mod request_note;
mod session;
mod slot_counters;
mod slot_layout;
mod worker;

pub(crate) use claim::{claim, terms};
pub(crate) use dispatcher::DispatcherSide;
pub(crate) use incarnation::{Incarnation, load_start, store_start};
#[cfg(any(test, feature = "internals"))]
pub(crate) use memory::PlainSlot;
pub(crate) use memory::SlotMemory;
pub(crate) use question::{Question, QuestionKind, Reply};
pub(crate) use request_note::RequestNote;
pub(crate) use session::load_session;
pub(crate) use slot_counters::{Counter, SlotCounters};
pub(crate) use slot_layout::{LINES, WORDS, Word};
#[cfg(test)]
pub(crate) use worker::ClaimError;
pub(crate) use worker::{WorkerSide, return_port};
