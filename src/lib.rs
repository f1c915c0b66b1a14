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
mod sd_watchdog;
pub mod shm;
pub mod signals;
pub mod stats;
pub mod status;
mod sync;
pub mod sys;
pub mod units;
pub mod watchdog;
pub mod worker;
