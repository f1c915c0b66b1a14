//! The configuration of a set: one TOML file.
//!
//! A file is accepted or rejected as a whole. If every key is valid the result is a [`Config`]; otherwise all errors
//! are reported together ([`ConfigFaults`]), each with file, line, key, the value found and a valid value. Unknown keys
//! and settings that this version does not support are errors.
//!
//! A file may omit:
//! - any key that has a default, and any section;
//! - `[[pool]]` and `[[listener]]` together: the result is the built-in set;
//! - `[[listener]]` alone, if one pool is named `default`: the built-in listeners lead to it. Other pools without
//!   listeners are rejected, and so are listeners without pools;
//! - `pool` of a listener and `address` of a pool, if there is only one pool.
//!
//! `address` of a listener and `name` of a pool are always required.
//!
//! Only `load.rs` reads files, the environment and the user ID.

mod address;
mod address_conflicts;
mod admin;
mod diagnostics;
mod fault;
mod front;
mod listener;
mod load;
mod pool;
mod quantity;
mod read;
mod sections;
mod validate;
mod watchdog;

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

pub use address::{BadListenAddress, ListenAddress};
pub use admin::AdminConfig;
pub use fault::{ConfigFault, ConfigFaults};
pub use front::FrontConfig;
pub use listener::{Delivery, ListenerConfig};
pub use load::{LoadError, Loaded, Origin, default_runtime_dir};
pub use pool::{HandlerConfig, LimitsConfig, PoolConfig, ProcessLimits};
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

/// Descriptors of a part besides its connections and workers.
pub const DESCRIPTORS: usize = 1024;

impl Config {
    /// The annotated default configuration.
    pub const DEFAULT_TOML: &str = include_str!("../../config/patou.toml");

    /// The whole configuration as TOML. Parsing it returns an equal configuration if this one was parsed.
    ///
    /// `mode`, `owner` and `group` of TCP listeners are omitted: they are not allowed there.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field is a TOML value")
    }

    /// The pool of this name.
    pub fn pool(&self, name: &PoolName) -> Option<&PoolConfig> {
        self.pools.iter().find(|pool| pool.name == *name)
    }

    /// Every worker of the set, pool by pool, numbers from 1.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> {
        self.pools.iter().flat_map(|pool| {
            WorkerNumber::up_to(pool.workers).map(|number| WorkerId { pool: pool.name.clone(), number })
        })
    }

    /// How many descriptors the dispatcher may need: two per connection (one is in the descriptor store), and per
    /// worker a segment, two doorbells, a socket and its file. Workers count in large steps: under systemd a different limit
    /// changes the unit, so the dispatcher would have to be restarted.
    pub fn dispatcher_descriptors(&self) -> u64 {
        let workers: usize = self.pools.iter().map(|pool| usize::from(pool.workers)).sum();
        let for_workers = (5 * workers).saturating_sub(DESCRIPTORS / 2).next_multiple_of(DESCRIPTORS);
        (2 * self.front.connections + for_workers + DESCRIPTORS) as u64
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
