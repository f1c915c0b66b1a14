//! The objects of a set outside its processes: the runtime directory, and for each worker a segment and two doorbells.
//!
//! ```text
//! <runtime_dir>/set.lock           locked by the owner of the set; holds its pid
//! <runtime_dir>/<pool>/<n>.dw      doorbell, dispatcher to worker
//! <runtime_dir>/<pool>/<n>.wd      doorbell, worker to dispatcher
//! <runtime_dir>/<pool>/<n>.segment the name of the segment
//! <runtime_dir>/<pool>/<n>.sock    socket on which the worker receives connections; created by the supervisor
//! ```
//!
//! The name of a segment is recorded before the segment is created: after a crash in between, a cleanup finds it.

mod directory;
mod error;
mod held_worker;
mod leftover;
mod modes;
mod observed_worker;
mod passed;
mod set;
mod set_lock;
mod set_name;
mod worker_ipc;

pub(crate) use error::IpcError;
pub(crate) use held_worker::HeldWorker;
pub(crate) use leftover::{Leftover, leftovers, remove_dead_segments, remove_unrecorded_segments};
pub(crate) use modes::Modes;
pub(crate) use observed_worker::ObservedWorker;
pub(crate) use passed::{
    PASSED_TO_WORKER, PassedObjects, RUNTIME_DIR, WATCHDOG, WorkerObject, parse_watchdog_mark, watchdog_mark,
};
pub(crate) use set::{
    ListedWorker, is_current, list, prepare, recorded_workers, remove, remove_workers, retire_worker, set_epoch,
};
pub(crate) use set_lock::{SetLock, SetOwner, WATCHDOG_DIR, is_directory_of_units, is_run_by_systemd, lock_set};
pub(crate) use worker_ipc::{
    WorkerIpc, app_socket, app_sockets, checked, create_worker, handoff_path, object_paths, open, open_unchecked,
    recreate_worker, remove_app_sockets, remove_segment, segment_name, set_worker_group, snapshot, snapshot_at,
};

#[cfg(test)]
mod tests;
