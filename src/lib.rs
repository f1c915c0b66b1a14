//! patou: a pool of worker processes that notices the frozen, not only the dead.

#![deny(unsafe_code)]

pub mod backoff;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod dispatcher;
pub mod doorbell;
pub mod exchange;
pub mod executable;
pub mod handoff;
pub mod ids;
pub mod ipc;
pub mod liveness;
pub mod log;
pub mod net;
pub mod pool;
pub mod probe;
pub mod process_tree;
pub mod shm;
pub mod signals;
pub mod stats;
pub mod status;
pub mod sys;
pub mod units;
pub mod watchdog;
pub mod worker;

// The parts of the crate that are compiled for its tests, fuzzing and benchmarks only, and kept beside those.

#[cfg(feature = "internals")]
#[doc(hidden)]
#[path = "../benches/operations.rs"]
pub mod benchmarks;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[path = "../tests/fuzz/src/targets/mod.rs"]
pub mod fuzz_targets;
#[cfg(test)]
#[path = "../tests/model/mod.rs"]
mod model;
