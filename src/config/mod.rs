//! The configuration of a set: one TOML file.
//!
//! A file is accepted or rejected as a whole. If every key is valid the result is a [`Config`]; otherwise all errors
//! are reported together ([`ConfigFaults`]), each with file, line, key, the value found and a valid value. Unknown keys
//! and settings that this version does not support are errors.
//!
//! A file may omit:
//! - any key that has a default, and any section;
//! - `[[listener]]` alone, if one pool is named `default`: the built-in listeners lead to it. Other pools without
//!   listeners are rejected, and so are listeners without pools;
//! - `pool` of a listener and `address` of a pool, if there is only one pool.
//!
//! `address` of a listener and `name` of a pool are always required. A file without pools and listeners is rejected; the
//! built-in set is used without a file only.
//!
//! Only `load.rs` reads files, the environment and the user ID.

mod address;
mod address_conflicts;
mod admin;
mod config_text;
mod descriptor_needs;
mod diagnostics;
mod fastcgi;
mod fastcgi_rules;
mod fault;
mod front;
mod handler_keys;
mod listener;
mod load;
pub(crate) mod placeholder;
mod pool;
mod pool_section;
mod proxies;
mod quantity;
mod read;
mod section_values;
mod sections;
mod session_rules;
mod validate;
mod watchdog;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Serialize, Serializer};

pub use address::{BadListenAddress, ListenAddress};
pub(crate) use address_conflicts::conflict;
pub use admin::AdminConfig;
pub use config_text::ConfigText;
pub(crate) use descriptor_needs::{DescriptorNeeds, admin_connections_within, worker_connections_within};
pub(crate) use fault::nearest;
pub use fault::{ConfigFault, ConfigFaults, UnusableFile};
pub use front::FrontConfig;
pub use listener::{Delivery, ListenerConfig, ListenerProtocol, UnknownLength};
pub(crate) use load::read_text;
pub use load::{LoadError, Loaded, Origin, default_runtime_dir};
pub(crate) use pool::SessionBounds;
pub use pool::{
    AuthorizationMode, BackgroundMode, ExitStatusMode, FastcgiHandler, HandlerConfig, LimitsConfig, PoolConfig,
    ProcessLimits, Replacing, RequestBodyMode, ScriptsConfig, UpgradeProtocol,
};
pub use proxies::{ForwardedHeaders, IpNetwork, ProxyTrust, TrustedProxies};
pub use watchdog::{RestartConfig, WatchdogConfig};

pub use crate::ids::{PoolName, WorkerId, WorkerNumber};

/// The configuration of one set: the content of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// The set itself.
    pub set: SetConfig,
    /// The listeners in the order of the file; at least one.
    #[serde(rename = "listener")]
    pub listeners: Vec<ListenerConfig>,
    /// The pools in the order of the file; at least one.
    #[serde(rename = "pool")]
    pub pools: Vec<PoolConfig>,
    /// Limits of the dispatcher towards clients.
    pub front: FrontConfig,
    /// Timeouts of the watchdog.
    pub watchdog: WatchdogConfig,
    /// The admin endpoint of the watchdog.
    pub admin: AdminConfig,
}

/// Name and runtime directory of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SetConfig {
    /// Its name: 1 to 32 characters of `[a-z0-9_]`.
    pub name: String,
    /// The directory of its sockets and FIFOs; absolute, without `..`.
    #[serde(serialize_with = "lossy")]
    pub runtime_dir: PathBuf,
}

/// A parsed path is UTF-8; [`Config::to_toml`] must not fail for another one.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// Workers of a set at most, in at most [`POOLS_MAX`] pools: the dispatcher reports on all of them in one line of
/// `probe.sock`.
pub const WORKERS_MAX: usize = 20_000;

/// Pools of a set at most.
pub const POOLS_MAX: usize = 1000;

/// Listeners of a set at most: the supervisor names all of them in one variable of the environment (`LISTEN_FDNAMES`).
pub const LISTENERS_MAX: usize = 1000;

/// Descriptors of a part besides its connections and workers, as far as its limit of open files is set for it.
pub const DESCRIPTORS: usize = 1024;

/// The first line of a copy that patou has written; see [`Config::to_copy`].
pub(crate) const COPY_HEAD: &str = "# The configuration in force: a copy that patou has written.\n";

impl Config {
    /// The annotated default configuration.
    pub const DEFAULT_TOML: &str = include_str!("../../config/patou.toml");

    /// The whole configuration as TOML. Parsing it returns an equal configuration if this one was parsed.
    ///
    /// `mode`, `owner` and `group` of TCP listeners are omitted: they are not allowed there.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field is a TOML value")
    }

    /// The whole configuration as TOML, for the parts of a running set. A part of another version, after an upgrade or a
    /// downgrade, ignores the keys of such a copy that it does not know: the version that wrote it has checked them.
    pub fn to_copy(&self) -> String {
        format!("{COPY_HEAD}{}", self.to_toml())
    }

    /// The addresses of all listeners, workers and the admin endpoint.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = ListenAddress> {
        let listeners = self.listeners.iter().map(|listener| listener.address.clone());
        let workers = self.workers().filter_map(|id| Some(self.pool(&id.pool)?.worker_address(id.number)));
        listeners.chain(workers).chain(self.admin.address.clone())
    }

    /// The pool of this name.
    pub fn pool(&self, name: &PoolName) -> Option<&PoolConfig> {
        self.pools.iter().find(|pool| pool.name == *name)
    }

    /// What is valid and may surprise, for `patou check` and for the log at each start and reload.
    pub fn warnings(&self) -> Vec<String> {
        let is_inetd =
            |pool: &PoolName| self.pool(pool).is_some_and(|pool| matches!(pool.handler, HandlerConfig::Inetd(_)));
        let unix = |listener: &&ListenerConfig| matches!(listener.address, ListenAddress::Unix(_));
        let uncuttable = self.listeners.iter().filter(unix).filter(|listener| is_inetd(&listener.pool));
        let uncuttable = uncuttable.map(|listener| {
            let ListenerConfig { address, pool, .. } = listener;
            format!(
                "listener {address}: a Unix socket cannot be reset, so clients of pool {pool} (inetd) see output that was \
                 cut by a death or by request_timeout as complete, unless their protocol marks its end; on a TCP listener \
                 they see a reset"
            )
        });
        uncuttable.chain(self.admin.exposure_warning()).collect()
    }

    /// Every worker of the set, pool by pool, numbers from 1.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> {
        self.pools.iter().flat_map(|pool| {
            WorkerNumber::up_to(pool.workers).map(|number| WorkerId { pool: pool.name.clone(), number })
        })
    }

    /// The limit of open files of the dispatcher's unit: one descriptor per connection, and per worker a segment, two
    /// doorbells, a socket and its file. Workers count in large steps: under systemd a different limit changes the
    /// unit, so the dispatcher would have to be restarted.
    pub fn dispatcher_descriptors(&self) -> u64 {
        let for_workers = (5 * self.workers().count()).saturating_sub(DESCRIPTORS / 2).next_multiple_of(DESCRIPTORS);
        (self.front.connections + for_workers + DESCRIPTORS) as u64
    }

    /// How long a worker of this pool may take to be replaced, from the moment at which it is free: it delivers its last
    /// responses, the next process becomes ready, and the old one finishes a request that it serves meanwhile.
    pub(crate) fn recycle_timeout(&self, pool: &PoolConfig) -> Duration {
        self.front.body_timeout.max(self.front.linger_timeout) + self.watchdog.start_timeout + pool.request_timeout
    }

    /// What the dispatcher needs descriptors for.
    pub(crate) fn descriptor_needs(&self) -> DescriptorNeeds {
        DescriptorNeeds::new(self.front.connections, self.listeners.len(), self.workers().count())
    }

    /// Identifies a worker's segment: 64-bit FNV-1a over set name, runtime directory, pool name and worker number.
    ///
    /// It detects mix-ups between sets and workers, not attacks: it is neither a secret nor a signature.
    pub fn digest_of(&self, id: &WorkerId) -> u64 {
        let number = id.number.get().to_le_bytes();
        let parts: [&[u8]; 4] = [
            self.set.name.as_bytes(),
            self.set.runtime_dir.as_os_str().as_encoded_bytes(),
            id.pool.as_str().as_bytes(),
            &number,
        ];
        digest(&parts)
    }
}

/// 64-bit FNV-1a over a list of parts, the same in every build.
pub fn digest(parts: &[&[u8]]) -> u64 {
    // Each part is preceded by its length, so that different lists never have the same bytes.
    let bytes = parts.iter().flat_map(|part| {
        let length = (part.len() as u64).to_le_bytes();
        length.into_iter().chain(part.iter().copied())
    });
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_differ_between_sets_and_workers() {
        let config = |name: &str, dir: &str| Config {
            set: SetConfig { name: name.into(), runtime_dir: dir.into() },
            ..Config::default()
        };
        let id = |id: &str| id.parse::<WorkerId>().unwrap();
        let all = [
            config("a", "/run/a").digest_of(&id("default-1")),
            config("a", "/run/a").digest_of(&id("default-2")),
            config("a", "/run/a").digest_of(&id("default-257")),
            config("a", "/run/a").digest_of(&id("defaul-1")),
            config("a", "/run/b").digest_of(&id("default-1")),
            config("b", "/run/a").digest_of(&id("default-1")),
            config("a/", "run/a").digest_of(&id("default-1")),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(all[0], config("a", "/run/a").digest_of(&id("default/1")));
    }
}
