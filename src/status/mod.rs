//! The state of a set, from three sources: the watchdog's state file, the slots, and the dispatcher's probe report.
//! Each process may be frozen; the state is complete as far as the others know it.

mod collect;
mod foreign_set;
mod health;
mod state_file;
mod summary;
mod view;

pub(crate) use collect::{PROBE_TIMEOUT, ProbeResult, collect};
pub(crate) use health::{HealthState, health};
pub(crate) use state_file::{LastRestart, SavedPart, SavedReloads, SavedState};
pub(crate) use summary::summary;
pub(crate) use view::{PoolView, StatusView};
