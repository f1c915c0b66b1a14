//! The decisions of the dispatcher for one pool: whom to ask, who waits, who is late, whose turn it is.
//!
//! Pure: no I/O, no clock, no chance. The shell tells it what happened ([`PoolEvent`]) and when, performs the
//! [`PoolAction`]s it returns in order, and tells it what the slot says afterwards ([`PoolEvent::SlotView`]). A state
//! read from a slot is the only proof of anything: after an action on a slot the shell always looks again,
//! and a decision is only taken on what was seen.
//!
//! Idle workers are taken last in, first out, so that caches stay warm and surplus workers stay asleep; one that missed
//! an offer comes last.

mod counters;
mod hold;
mod lease_table;
mod messages;
mod observe;
mod queue;
mod release;
mod schedule;
mod worker;

pub use hold::Hold;
pub use lease_table::Pool;
pub use messages::{
    ClientId, LeaseEnd, Peer, PoolAction, PoolEvent, PoolLimits, PoolNote, Refusal, SlotAnswer, SlotQuestion, SlotView,
};
pub use queue::SUSPICION;
pub use worker::Worker;
