//! Names and paths of the units.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::{Config, ListenAddress, digest};
use crate::ids::{PoolName, WorkerId};

/// The directory of what `systemctl start patou` and `systemctl reload patou` publish.
pub(crate) const PUBLISHED: &str = "/run/patou-applied";
/// The published configuration, from which the running units were rendered.
pub(crate) const APPLIED: &str = "/run/patou-applied/patou.toml";
/// `set.runtime_dir` under systemd, created by tmpfiles.d(5).
pub(crate) const RUNTIME_DIR: &str = "/run/patou";
/// The whole set.
pub(crate) const SET: &str = "patou.service";
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

/// The exit status of a part that has failed too often: `RestartPreventExitStatus=` of the units.
pub(crate) const GIVEN_UP: u8 = 79;

/// How the last status of a part begins that tells why it exits (`StatusText=` of its unit).
pub(crate) const FAILURE_STATUS: &str = "failed: ";

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

/// The worker of a service; `None` if the service is none of a worker.
pub(crate) fn worker_of_service(unit: &str) -> Option<WorkerId> {
    unit.strip_prefix("patou-worker@")?.strip_suffix(".service")?.parse().ok()
}

/// The listening socket of a worker.
pub(crate) fn worker_socket(id: &WorkerId) -> String {
    format!("patou-worker@{}.socket", id.instance())
}

/// The sockets of listeners. Each is named by a digest of its address, so that it stays when other listeners come and
/// go. A socket that already runs under another name keeps that name: systemd cannot rename a unit, and a second unit
/// cannot bind the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListenerSockets {
    /// The names of the sockets that are published, by their addresses.
    published: BTreeMap<String, String>,
}

impl ListenerSockets {
    /// The names in published drop-ins: path below the directory of the drop-ins, and content.
    pub(crate) fn of_drop_ins<'t>(drop_ins: impl IntoIterator<Item = (&'t str, &'t str)>) -> Self {
        let end = format!(".d/{DROP_IN}");
        let named = drop_ins.into_iter().filter_map(|(path, text)| {
            let unit = path.strip_suffix(end.as_str()).filter(|unit| unit.starts_with(LISTENER))?;
            let address = text.lines().find_map(|line| line.strip_prefix("ListenStream="))?;
            Some((address.to_owned(), unit.to_owned()))
        });
        Self { published: named.collect() }
    }

    /// The socket for an address.
    pub(crate) fn unit(&self, address: &ListenAddress) -> String {
        let published = self.published.get(&listen_value(address)).cloned();
        published.unwrap_or_else(|| format!("{LISTENER}{:016x}.socket", digest(&[address.to_string().as_bytes()])))
    }
}

/// The template of the sockets of listeners.
const LISTENER: &str = "patou-listener@";

/// The value of `ListenStream=` for an address.
pub(super) fn listen_value(address: &ListenAddress) -> String {
    let value = match address {
        ListenAddress::Tcp(address) => address.to_string(),
        ListenAddress::Unix(path) => path.display().to_string(),
    };
    value.replace('%', "%%")
}

/// The services that every set has, in the order in which they start.
pub(crate) fn core_services() -> [String; 3] {
    [IPC, WATCHDOG, DISPATCHER].map(str::to_owned)
}

/// The services of all workers.
pub(crate) fn worker_services(config: &Config) -> Vec<String> {
    config.workers().map(|id| worker_service(&id)).collect()
}
