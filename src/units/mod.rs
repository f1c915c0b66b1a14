//! The set as systemd units: what the configuration adds to the packaged unit files, and which running units a changed
//! configuration affects.
//!
//! Pure. The unit files contain what is the same for every set; addresses, users, limits and timeouts come from the
//! configuration as drop-ins. They are rendered when the set starts and reloads; a generator (systemd.generator(7)) only
//! copies them at every daemon-reload.

#![forbid(unsafe_code)]

mod batches;
mod check;
mod names;
mod reload_steps;
mod render;
mod sandbox;

pub(crate) use batches::{restart_batches, restart_bound};
pub(crate) use check::check;
pub(crate) use names::{
    ADMIN, APPLIED, DISPATCHER, DROP_IN, FAILURE_STATUS, GIVEN_UP, IPC, ListenerSockets, OWNER, PUBLISHED, RUNTIME_DIR,
    SET, WATCHDOG, WORKER_USER, core_services, pool_drop_ins, worker_of_service, worker_service, worker_services,
    worker_socket,
};
pub(crate) use reload_steps::{ReloadSteps, reload_steps};
pub(crate) use render::render;
pub(crate) use sandbox::Sandbox;

#[cfg(test)]
mod tests;
