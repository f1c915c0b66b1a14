//! The configuration: one TOML file is the only truth about a set.
//!
//! A file is read whole: either every key is right and a [`Config`] comes out, or all that is wrong is told at
//! once ([`ConfigFaults`]), each with file, line, key, what was found and what would be right. Nothing unknown is
//! skipped, and what this version cannot do is refused rather than ignored.
//!
//! What a file may leave out:
//! - any key that has a default, and any whole section;
//! - `[[pool]]` and `[[listener]]` together: that is the built-in set;
//! - `[[listener]]` alone, if there is a pool named `default`: the built-in listener leads there. A set whose
//!   pools nobody can reach is refused, and so are listeners without any pool;
//! - `pool` of a listener and `address` of a pool, if there is only one pool.
//!
//! `address` of a listener and `name` of a pool are always needed.

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
mod write;

use std::path::{Component, Path, PathBuf};

pub use address::{BadListenAddress, ListenAddress};
pub use admin::AdminConfig;
pub use fault::{ConfigFault, ConfigFaults};
pub use front::FrontConfig;
pub use listener::{Delivery, ListenerConfig};
pub use load::{LoadError, Loaded, Origin};
pub use pool::{HandlerConfig, LimitsConfig, PoolConfig, ProcessLimits};
pub use watchdog::{RestartConfig, WatchdogConfig};

use crate::ids::{PoolName, WorkerId, WorkerNumber};

/// Everything one set is told: the content of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The set itself.
    pub set: SetConfig,
    /// Where clients arrive, in the order of the file; at least one.
    pub listeners: Vec<ListenerConfig>,
    /// The pools in the order of the file; at least one.
    pub pools: Vec<PoolConfig>,
    /// Bounds of the dispatcher towards clients.
    pub front: FrontConfig,
    /// Bounds of the watchdog.
    pub watchdog: WatchdogConfig,
    /// Where the watchdog tells how the set is.
    pub admin: AdminConfig,
}

/// One running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetConfig {
    /// Its name: 1 to 32 characters of `[a-z0-9_]`.
    pub name: String,
    /// The folder of its sockets and FIFOs; absolute, without `..`.
    pub runtime_dir: PathBuf,
}

impl Default for SetConfig {
    fn default() -> Self {
        Self { name: "patou".into(), runtime_dir: default_runtime_dir() }
    }
}

/// The built-in set: a redirect and a handoff listener, one pool of two echo workers. Equal to [`Config::DEFAULT_TOML`].
impl Default for Config {
    fn default() -> Self {
        Self {
            set: SetConfig::default(),
            listeners: ListenerConfig::built_in(),
            pools: vec![PoolConfig::default()],
            front: FrontConfig::default(),
            watchdog: WatchdogConfig::default(),
            admin: AdminConfig::default(),
        }
    }
}

/// Descriptors of a part besides its connections and workers.
pub const DESCRIPTORS: usize = 1024;

impl Config {
    /// The annotated default configuration.
    pub const DEFAULT_TOML: &str = include_str!("../../config/patou.toml");

    /// Reads a configuration; `file` is the name that the faults carry.
    ///
    /// Depends on the caller's identity only where `set.runtime_dir` is absent ([`default_runtime_dir`]).
    ///
    /// # Errors
    /// All faults at once. Only while the text is not TOML, what depends on several keys is left for later:
    /// a key that could not be read would make it wrong.
    pub fn parse(text: &str, file: &str) -> Result<Config, ConfigFaults> {
        sections::read(text, file, &|_| None)
    }

    /// Where the set of a file that is wrong keeps its files, as far as one can tell from it.
    pub fn runtime_dir_in(text: &str) -> PathBuf {
        let value = |line: &str| {
            let value = line.trim().strip_prefix("runtime_dir")?.trim_start().strip_prefix('=')?.trim_start();
            let quote = value.chars().next().filter(|c| "\"'".contains(*c))?;
            Some(PathBuf::from(value[1..].split(quote).next()?))
        };
        text.lines().find_map(value).filter(|dir| dir.is_absolute()).unwrap_or_else(default_runtime_dir)
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

    /// How many descriptors the dispatcher may need: a connection in the store is open twice, and a worker is a segment,
    /// two bells and a socket. For these in large steps: under systemd another limit is another dispatcher.
    pub fn dispatcher_descriptors(&self) -> u64 {
        let workers: usize = self.pools.iter().map(|pool| usize::from(pool.workers)).sum();
        let for_workers = (4 * workers).saturating_sub(DESCRIPTORS / 2).next_multiple_of(DESCRIPTORS);
        (2 * self.front.connections + for_workers + DESCRIPTORS) as u64
    }

    /// Whose segment it is: 64-bit FNV-1a over set name, runtime folder, pool name and number.
    ///
    /// It tells sets and workers apart by mistake, not by malice: it is no secret and no signature.
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

/// 64-bit FNV-1a over a list of parts: the same for every build.
pub fn digest(parts: &[&[u8]]) -> u64 {
    // The length goes before each part, so that no two lists of parts are the same bytes.
    let bytes = parts.iter().flat_map(|part| {
        let length = (part.len() as u64).to_le_bytes();
        length.into_iter().chain(part.iter().copied())
    });
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Where a set keeps its files unless it is told: `/run/patou` for root, else `$XDG_RUNTIME_DIR/patou`, else
/// `/tmp/patou-<uid>`. The last lies in a folder open to all: whoever creates it must check its owner.
pub fn default_runtime_dir() -> PathBuf {
    let xdg = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    runtime_dir_of(nix::unistd::getuid().as_raw(), xdg.as_deref())
}

/// The rule of [`default_runtime_dir`]. A relative `$XDG_RUNTIME_DIR` counts as unset, as the XDG Base Directory
/// Specification asks, and so does one with `..` or not in UTF-8, which could not be written to a file.
fn runtime_dir_of(uid: u32, xdg: Option<&Path>) -> PathBuf {
    let usable = |dir: &&Path| {
        let up = dir.components().any(|part| matches!(part, Component::ParentDir));
        dir.is_absolute() && dir.to_str().is_some() && !up
    };
    match xdg.filter(usable) {
        _ if uid == 0 => "/run/patou".into(),
        Some(dir) => dir.join("patou"),
        None => format!("/tmp/patou-{uid}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_dir_follows_the_user() {
        let of = |uid, xdg: Option<&str>| runtime_dir_of(uid, xdg.map(Path::new)).to_str().unwrap().to_owned();
        assert_eq!(of(0, Some("/run/user/0")), "/run/patou");
        assert_eq!(of(1000, Some("/run/user/1000")), "/run/user/1000/patou");
        for unusable in [None, Some(""), Some("run"), Some("/run/../etc")] {
            assert_eq!(of(1000, unusable), "/tmp/patou-1000");
        }
    }

    #[test]
    fn a_wrong_file_still_says_where() {
        let of = |text: &str| Config::runtime_dir_in(text).to_str().unwrap().to_owned();
        assert_eq!(of("[set\nruntime_dir = \"/run/x\" # here\n[[pool"), "/run/x");
        assert_eq!(of("runtime_dir='/run/y'"), "/run/y");
        for none in ["", "runtime_dir = 7", "runtime_dir = \"x\"", "# runtime_dir = \"/run/x\""] {
            assert_eq!(of(none), default_runtime_dir().to_str().unwrap());
        }
    }

    #[test]
    fn digests_tell_sets_and_workers_apart() {
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
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(all[0], config("a", "/run/a").digest_of(&id("default/1")));
    }
}
