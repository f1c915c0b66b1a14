//! The decisions of the dispatcher for one pool: which worker gets an offer, which client waits, which worker is late.
//!
//! Pure: no I/O, no clock, no random numbers. The dispatcher reports what happened ([`PoolEvent`]) and when, performs
//! the returned [`PoolAction`]s in order, and reports the content of the slots ([`PoolEvent::SlotRead`]). Only the
//! state read from a slot is proof: after each action on a slot the dispatcher reads it again, and the pool decides on
//! that.
//!
//! Idle workers are taken last in, first out, so that caches stay warm and surplus workers stay asleep; a worker that
//! missed an offer comes last.

#![forbid(unsafe_code)]

mod counters;
mod hold;
mod lease_table;
mod messages;
mod observe;
mod queue;
mod recycling;
mod schedule;
mod seen_lease;
mod worker;

#[cfg(any(test, fuzzing))]
pub(crate) use hold::{Hold, Offer};
pub(crate) use lease_table::Pool;
pub(crate) use messages::{
    ClientAction, ClientId, LeaseEnd, Peer, PoolAction, PoolEvent, PoolLimits, PoolNote, Refusal, Rejection,
    SlotAction, SlotAnswer, SlotQuestion, SlotView,
};
#[cfg(test)]
pub(crate) use queue::SUSPICION;
pub(crate) use worker::Worker;

#[cfg(test)]
mod tests;
