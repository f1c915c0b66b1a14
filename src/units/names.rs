//! Names and paths of the units.

use std::path::PathBuf;

use crate::config::Config;
use crate::ids::{PoolName, WorkerId};

/// The published configuration, from which the running units were rendered.
pub(crate) const APPLIED: &str = "/run/patou-applied/patou.toml";
/// `set.runtime_dir` under systemd, created by tmpfiles.d(5).
pub(crate) const RUNTIME_DIR: &str = "/run/patou";
/// The directory of the watchdog's state file: `RuntimeDirectory=` of its unit.
pub(crate) const WATCHDOG_DIR: &str = "/run/patou-watchdog";
/// Creates segments and named pipes.
pub(crate) const IPC: &str = "patou-ipc.service";
/// The watchdog.
pub(crate) const WATCHDOG: &str = "patou-watchdog.service";
/// The watchdog's HTTP listener for `/healthz`, `/status` and `/metrics`.
pub(crate) const ADMIN: &str = "patou-admin.socket";
/// The dispatcher.
pub(crate) const DISPATCHER: &str = "patou-dispatcher.service";
/// The account of the dispatcher, which owns segments and named pipes.
pub(crate) const OWNER: &str = "patou";
/// The account of workers whose pool names none.
pub(crate) const WORKER_USER: &str = "patou-worker";

/// The file name of the drop-in that each unit gets from the configuration.
pub(crate) const DROP_IN: &str = "50-patou.conf";

/// The directory of an operator's drop-ins for all workers of a pool. Pool names contain no `-`, so the directories of
/// two pools never overlap.
pub(crate) fn pool_drop_ins(pool: &PoolName) -> PathBuf {
    format!("/etc/systemd/system/patou-worker@{pool}-.service.d").into()
}

/// The service of a worker.
pub(crate) fn worker_service(id: &WorkerId) -> String {
    format!("patou-worker@{}.service", id.instance())
}

/// The listening socket of a worker.
pub(crate) fn worker_socket(id: &WorkerId) -> String {
    format!("patou-worker@{}.socket", id.instance())
}

/// The socket of a listener, by its index in the configuration.
pub(crate) fn listener_socket(index: usize) -> String {
    format!("patou-listener@{index}.socket")
}

/// The services that every set has, in the order in which they start.
pub(crate) fn core_services() -> [String; 3] {
    [IPC, WATCHDOG, DISPATCHER].map(str::to_owned)
}

/// The services of all workers.
pub(crate) fn worker_services(config: &Config) -> Vec<String> {
    config.workers().map(|id| worker_service(&id)).collect()
}
