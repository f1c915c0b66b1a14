//! patou runs pools of worker processes on one Linux machine. A **dispatcher** gives each client one idle **worker**; a
//! **watchdog** detects processes that are frozen as well as processes that are dead, records why, and replaces them.
//!
//! Most of this crate is the program `patou`. As a library it offers three things:
//!
//! - [`worker::serve`] (feature `worker`): turns a program into a worker. It takes any `tower` service over `http` types, such
//!   as an `axum::Router`, and serves one request per lease.
//! - [`client`] (feature `client`): sends a request through a set, with retries where that is safe.
//! - [`config`] (feature `worker`): the configuration file of a set, read and checked.
//!
//! A program worker needs one feature: `patou = { version = "0.1", default-features = false, features = ["worker"] }`. The
//! default feature, `daemon`, is the whole program.
//!
//! The modules below are in dependency order: a module uses only modules above it. `docs/ARCHITECTURE.md` describes them.

#![deny(unsafe_code)]
// The roles share most modules; a build without all roles leaves parts of them unused.
#![cfg_attr(not(feature = "daemon"), allow(dead_code, unreachable_pub, unused_imports))]

#[cfg(feature = "worker")]
mod bounds;
mod ids;
#[cfg(feature = "worker")]
mod stats;
#[cfg(feature = "worker")]
pub mod config;
#[cfg(feature = "worker")]
mod exchange;
#[cfg(feature = "daemon")]
mod pool;
#[cfg(feature = "worker")]
mod liveness;
#[cfg(feature = "worker")]
mod clock;
#[cfg(feature = "worker")]
mod sync;
#[cfg(feature = "worker")]
mod sd_notification;
#[cfg(feature = "worker")]
mod sd_watchdog;
#[cfg(feature = "worker")]
mod signals;
#[cfg(feature = "worker")]
mod log;
#[cfg(feature = "worker")]
mod sys;
#[cfg(feature = "worker")]
mod descriptors;
#[cfg(feature = "daemon")]
mod inherited;
#[cfg(feature = "worker")]
mod procfs;
#[cfg(feature = "daemon")]
mod requirements;
#[cfg(feature = "worker")]
mod held_file;
#[cfg(feature = "worker")]
mod doorbell;
#[cfg(feature = "worker")]
mod process_tree;
#[cfg(feature = "worker")]
mod net;
#[cfg(feature = "worker")]
mod handoff;
#[cfg(feature = "daemon")]
mod probe;
#[cfg(feature = "worker")]
mod executable;
#[cfg(feature = "worker")]
mod shm;
#[cfg(feature = "worker")]
mod ipc;
#[cfg(feature = "daemon")]
mod units;
#[cfg(feature = "daemon")]
mod published;
#[cfg(feature = "daemon")]
mod worker_files;
#[cfg(feature = "daemon")]
mod status;
#[cfg(feature = "worker")]
mod backoff;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "daemon")]
mod dispatcher;
#[cfg(feature = "worker")]
pub mod worker;
#[cfg(feature = "daemon")]
mod watchdog;
#[cfg(feature = "daemon")]
mod cli;

/// The program `patou`: parses the command line, runs the command and returns its exit code.
#[cfg(feature = "daemon")]
pub fn main() -> std::process::ExitCode {
    cli::main()
}

// The parts of the crate that are compiled for its tests, fuzzing and benchmarks only, and kept beside those.

#[cfg(feature = "internals")]
#[doc(hidden)]
#[path = "../benches/operations.rs"]
pub mod benchmarks;
#[cfg(all(feature = "daemon", any(test, fuzzing)))]
#[doc(hidden)]
#[path = "../tests/fuzz/src/targets/mod.rs"]
pub mod fuzz_targets;
#[cfg(test)]
#[path = "../tests/model/mod.rs"]
mod model;
