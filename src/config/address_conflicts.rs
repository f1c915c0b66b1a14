//! Address conflicts: listeners, workers and the set's own sockets must all have different addresses.

#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::diagnostics::Diagnostics;
use super::fault::quote;
use super::{AdminConfig, Config, ListenAddress, ListenerConfig, PoolConfig};
use crate::ids::WorkerNumber;

/// Reports addresses that overflow, are too long, or conflict.
pub(super) fn check(config: &Config, diagnostics: &mut Diagnostics) {
    let listeners = config.listeners.iter().enumerate().map(|(i, l)| Binder::listener(i, l));
    let pools = config.pools.iter().enumerate().map(|(i, p)| Binder::pool(i, p));
    let admin = config.admin.address.iter().map(Binder::admin);
    let binders: Vec<Binder<'_>> = listeners.chain(pools).chain(admin).collect();
    for binder in &binders {
        binder.check(diagnostics);
    }
    tcp(&binders, diagnostics);
    unix(&binders, diagnostics);
    runtime_dir(config, &binders, diagnostics);
}

/// What binds the addresses of one key: a listener, the workers of a pool, or the watchdog.
struct Binder<'c> {
    key: String,
    /// The key for the number of addresses; `key` itself if it is always one.
    count_key: String,
    address: &'c ListenAddress,
    pool: Option<&'c PoolConfig>,
}

impl<'c> Binder<'c> {
    fn listener(i: usize, listener: &'c ListenerConfig) -> Self {
        let key = format!("listener[{}].address", i + 1);
        Self { count_key: key.clone(), key, address: &listener.address, pool: None }
    }

    fn admin(address: &'c ListenAddress) -> Self {
        let key = "admin.address".to_owned();
        Self { count_key: key.clone(), key, address, pool: None }
    }

    fn pool(i: usize, pool: &'c PoolConfig) -> Self {
        let key = format!("pool[{}].address", i + 1);
        Self { count_key: format!("pool[{}].workers", i + 1), key, address: &pool.address, pool: Some(pool) }
    }

    fn count(&self) -> u16 {
        self.pool.map_or(1, |pool| pool.workers)
    }

    /// Its Unix socket paths; none on TCP.
    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        WorkerNumber::up_to(self.count()).filter_map(|n| {
            match self.pool.map_or(self.address.clone(), |pool| pool.worker_address(n)) {
                ListenAddress::Unix(path) => Some(path),
                ListenAddress::Tcp(_) => None,
            }
        })
    }

    /// Reports an address that is invalid by itself.
    fn check(&self, diagnostics: &mut Diagnostics) {
        let count = self.count();
        let expected = match self.address {
            ListenAddress::Tcp(first) => {
                let ports_above = u16::MAX - first.port();
                (first.port() != 0 && count - 1 > ports_above).then(|| {
                    format!(
                        "a port of at most {}: each of the {count} workers needs its own port",
                        u16::MAX - count + 1
                    )
                })
            }
            ListenAddress::Unix(path) => {
                let is_numbered = path.to_string_lossy().contains("{n}");
                let longest = self.paths().map(|path| path.as_os_str().len()).max().unwrap_or(0);
                match self.pool {
                    None if is_numbered => Some("a path without {n}, which stands for a worker's number".to_owned()),
                    Some(_) if count > 1 && !is_numbered => {
                        Some(format!("a path with {{n}}: each of the {count} workers needs its own path"))
                    }
                    _ if longest > ListenAddress::UNIX_MAX => {
                        Some(format!("a path of at most {} bytes instead of {longest}", ListenAddress::UNIX_MAX))
                    }
                    _ => None,
                }
            }
        };
        if let Some(expected) = expected {
            diagnostics.contradiction(&self.key, &[&self.count_key], quote(&self.address.to_string()), expected);
        }
    }

    /// Reports that this binder and an `earlier` one use the same address `shared`.
    fn report_conflict(&self, earlier: &Binder<'_>, shared: &ListenAddress, diagnostics: &mut Diagnostics) {
        let shared = quote(&shared.to_string());
        let expected = format!("a different address: {shared} is used by {}", diagnostics.place(&earlier.key));
        let others = [earlier.key.as_str(), &earlier.count_key, &self.count_key, "listener", "pool"];
        diagnostics.contradiction(&self.key, &others, quote(&self.address.to_string()), expected);
    }
}

fn tcp(binders: &[Binder<'_>], diagnostics: &mut Diagnostics) {
    for (i, later) in binders.iter().enumerate() {
        for earlier in &binders[..i] {
            let (ListenAddress::Tcp(a), ListenAddress::Tcp(b)) = (earlier.address, later.address) else { continue };
            if let Some(port) = shared_port((a, earlier.count()), (b, later.count())) {
                let mut shared = *a;
                shared.set_port(port);
                later.report_conflict(earlier, &ListenAddress::Tcp(shared), diagnostics);
            }
        }
    }
}

/// The first port on which both would listen. A wildcard address conflicts with every address of its family on the same
/// port, and `[::]` also with IPv4 unless the system is configured otherwise (ipv6(7), bindv6only).
fn shared_port((a, a_count): (&SocketAddr, u16), (b, b_count): (&SocketAddr, u16)) -> Option<u16> {
    let (ip_a, ip_b) = (a.ip().to_canonical(), b.ip().to_canonical());
    let scope = |address: &SocketAddr| match address {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let same_ip = ip_a == ip_b && scope(a) == scope(b);
    if a.port() == 0 || b.port() == 0 || !(same_ip || ip_a.is_unspecified() || ip_b.is_unspecified()) {
        return None;
    }
    let first = a.port().max(b.port());
    let last = |address: &SocketAddr, count: u16| address.port().saturating_add(count - 1);
    (first <= last(a, a_count).min(last(b, b_count))).then_some(first)
}

/// Whether two sockets on one machine cannot have these addresses at the same time.
pub(crate) fn conflict(a: &ListenAddress, b: &ListenAddress) -> bool {
    match (a, b) {
        (ListenAddress::Tcp(a), ListenAddress::Tcp(b)) => shared_port((a, 1), (b, 1)).is_some(),
        _ => a == b,
    }
}

fn unix(binders: &[Binder<'_>], diagnostics: &mut Diagnostics) {
    let mut used: HashMap<PathBuf, usize> = HashMap::new();
    for (i, binder) in binders.iter().enumerate() {
        let mut reported = BTreeSet::new();
        for path in binder.paths() {
            match used.get(&path).copied() {
                None => drop(used.insert(path, i)),
                // A conflict within one pool is reported as a missing {n}.
                Some(earlier) if earlier != i && reported.insert(earlier) => {
                    binder.report_conflict(&binders[earlier], &ListenAddress::Unix(path), diagnostics);
                }
                Some(_) => {}
            }
        }
    }
}

/// The set's own sockets must fit into `sun_path`, and no configured socket may use their paths.
fn runtime_dir(config: &Config, binders: &[Binder<'_>], diagnostics: &mut Diagnostics) {
    const KEY: &str = "set.runtime_dir";
    let dir = &config.set.runtime_dir;
    let own = ["probe.sock", "notify.sock", AdminConfig::SOCKET].map(|name| dir.join(name));
    let workers = config.pools.iter().map(|pool| dir.join(pool.name.as_str()).join(format!("{}.sock", pool.workers)));
    let longest = workers.chain(own.clone()).max_by_key(|path| path.as_os_str().len());
    if let Some(path) = longest.filter(|path| path.as_os_str().len() > ListenAddress::UNIX_MAX) {
        let excess = path.as_os_str().len() - ListenAddress::UNIX_MAX;
        let most = ListenAddress::UNIX_MAX;
        let expected = format!("a path {excess} bytes shorter: a socket path has at most {most} bytes");
        diagnostics.contradiction(KEY, &[], quote(&dir.to_string_lossy()), expected);
    }
    let is_reserved = |path: &Path| {
        let in_pool = config.pools.iter().any(|pool| path.starts_with(dir.join(pool.name.as_str())));
        in_pool || own.iter().any(|own| own.as_path() == path)
    };
    for binder in binders {
        if binder.paths().any(|path| is_reserved(&path)) {
            let dir = quote(&dir.to_string_lossy());
            let expected = format!("a path outside {dir}, where the set creates its own files");
            diagnostics.contradiction(&binder.key, &[KEY], quote(&binder.address.to_string()), expected);
        }
    }
}
