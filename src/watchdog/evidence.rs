//! The record that is logged before a part is killed: what its process was doing, what work it held, and the load of the
//! machine.
//!
//! The kill does not wait for its evidence: a file in `/proc` of a stuck process may block its reader for ever. So a
//! thread gathers, and the record is made of what it has found within a bound.

mod findings;
mod format;
mod gather;
mod recorder;

pub(super) use gather::{EvidenceTarget, ProcessScope};
pub(super) use recorder::EvidenceRecorder;
