//! The set as systemd units: what the configuration adds to the unit files of the package, and what a change of it
//! means for the running units.
//!
//! Pure. The unit files hold what is the same for every set; addresses, users, limits and timeouts come from the
//! configuration as drop-ins, which a generator (systemd.generator(7)) writes at every daemon-reload.

mod render;
mod steps;

use std::path::PathBuf;

use crate::config::{Config, Delivery, ListenAddress};
use crate::ids::{PoolName, WorkerId};
pub use render::render;
pub use steps::{Steps, steps};

/// The published configuration: what the running units were rendered from.
pub const APPLIED: &str = "/run/patou-applied/patou.toml";
/// Where `set.runtime_dir` is under systemd: tmpfiles.d(5) makes it.
pub const RUNTIME_DIR: &str = "/run/patou";
/// Where the watchdog writes for `patou status`: `RuntimeDirectory=` of its unit.
pub const WATCHDOG_DIR: &str = "/run/patou-watchdog";
/// Segments and named pipes.
pub const IPC: &str = "patou-ipc.service";
/// The watchdog.
pub const WATCHDOG: &str = "patou-watchdog.service";
/// Where the watchdog tells how the set is.
pub const ADMIN: &str = "patou-admin.socket";
/// The dispatcher.
pub const DISPATCHER: &str = "patou-dispatcher.service";
/// The account that owns segments, named pipes and the dispatcher.
pub const OWNER: &str = "patou";
/// The account of workers whose pool names none.
pub const WORKER_USER: &str = "patou-worker";

/// The drop-in that the configuration makes of each unit.
pub const DROP_IN: &str = "50-patou.conf";

/// Where an operator puts drop-ins for all workers of a pool. A name has no `-`, so no pool means another one's.
pub fn pool_drop_ins(pool: &PoolName) -> PathBuf {
    format!("/etc/systemd/system/patou-worker@{pool}-.service.d").into()
}

/// The service of a worker.
pub fn worker_service(id: &WorkerId) -> String {
    format!("patou-worker@{}.service", id.instance())
}

/// The listening socket of a worker.
pub fn worker_socket(id: &WorkerId) -> String {
    format!("patou-worker@{}.socket", id.instance())
}

fn listener_socket(index: usize) -> String {
    format!("patou-listener@{index}.socket")
}

/// The services of a set, in the order in which they are started.
pub fn services(config: &Config) -> Vec<String> {
    let fixed = [IPC, WATCHDOG, DISPATCHER].map(str::to_owned);
    fixed.into_iter().chain(config.workers().map(|id| worker_service(&id))).collect()
}

/// Why a valid configuration cannot be run by systemd: every reason.
pub fn check(config: &Config) -> Vec<String> {
    let mut faults = Vec::new();
    let dir = config.set.runtime_dir.display();
    if config.set.runtime_dir != std::path::Path::new(RUNTIME_DIR) {
        faults.push(format!("set.runtime_dir is {dir}; under systemd it is {RUNTIME_DIR}, made by tmpfiles.d"));
    }
    let any = |address: &ListenAddress| matches!(address, ListenAddress::Tcp(tcp) if tcp.port() == 0);
    let addresses = config.listeners.iter().map(|l| ("listener", &l.address));
    let admin = config.admin.address.iter().map(|address| ("admin", address));
    for (what, address) in addresses.chain(config.pools.iter().map(|p| ("pool", &p.address))).chain(admin) {
        if any(address) {
            faults.push(format!("{what}.address is {address}; under systemd it needs a port, not 0"));
        }
    }
    // Both sockets of a worker have one owner and one mode, and to one of them the dispatcher has to connect.
    for pool in config.pools.iter().filter(|pool| pool.address.is_unix()) {
        let handed = config.listeners.iter().any(|l| l.pool == pool.name && l.delivery == Delivery::Handoff);
        let Some(like) = render::leads_to(config, pool).filter(|_| handed) else { continue };
        let is_ours = |account: &Option<String>| account.as_deref().is_none_or(|account| account == OWNER);
        let bit = if is_ours(&like.owner) {
            0o200
        } else if is_ours(&like.group) {
            0o020
        } else {
            0o002
        };
        if like.mode & bit == 0 {
            let (name, address) = (&pool.name, &like.address);
            faults.push(format!(
                "listener.owner, group and mode of {address} hold for the workers of pool {name} too, and keep user {OWNER} \
                 from handing connections over to them: give it owner = \"{OWNER}\", or each listener a pool of its own"
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests;
