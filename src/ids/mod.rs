//! Identifiers and the other values that cross a process boundary: pools, workers, leases, epochs, tokens, points in
//! time and the states of a slot.
//!
//! Each is a type with a checked constructor: a value from a segment or a command line is rejected here, or is valid
//! everywhere else.

#![forbid(unsafe_code)]

mod lease;
mod monotonic;
mod names;
mod process;
mod slot_state;
mod version;

pub(crate) use lease::{Epoch, LeaseId, LeaseTerms, SessionRequest, Token};
pub(crate) use monotonic::Monotonic;
pub(crate) use names::BadWorkerId;
pub use names::{PoolName, WorkerId, WorkerNumber};
pub(crate) use process::ProcessId;
pub(crate) use slot_state::{Claim, Lifecycle, Phase, RefuseReason, Replacements};
pub(crate) use version::ProgramVersion;
