//! Addresses that would meet: every listener and every worker needs one of its own, and so do the set's own files.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::diagnostics::Record;
use super::validate::place;
use super::write::quote;
use super::{AdminConfig, Config, ListenAddress, ListenerConfig, PoolConfig};
use crate::ids::WorkerNumber;

/// Reports addresses that overflow, are too long, or collide.
pub(super) fn check(config: &Config, record: &mut Record) {
    let listeners = config.listeners.iter().enumerate().map(|(i, l)| Holder::listener(i, l));
    let pools = config.pools.iter().enumerate().map(|(i, p)| Holder::pool(i, p));
    let admin = config.admin.address.iter().map(Holder::admin);
    let holders: Vec<Holder<'_>> = listeners.chain(pools).chain(admin).collect();
    for holder in &holders {
        holder.check(record);
    }
    tcp(&holders, record);
    unix(&holders, record);
    runtime_dir(config, &holders, record);
}

/// Whoever listens: one listener, all workers of a pool, or the watchdog.
struct Holder<'c> {
    key: String,
    /// The key that says how many there are; that of the address itself for the others.
    count_key: String,
    address: &'c ListenAddress,
    pool: Option<&'c PoolConfig>,
}

impl<'c> Holder<'c> {
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

    /// All its addresses.
    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        WorkerNumber::up_to(self.count()).filter_map(|n| {
            match self.pool.map_or(self.address.clone(), |pool| pool.worker_address(n)) {
                ListenAddress::Unix(path) => Some(path),
                ListenAddress::Tcp(_) => None,
            }
        })
    }

    /// What is wrong with this one alone.
    fn check(&self, record: &mut Record) {
        let count = self.count();
        let expected = match self.address {
            ListenAddress::Tcp(first) => {
                let room = u16::MAX - first.port();
                (first.port() != 0 && count - 1 > room)
                    .then(|| format!("a port of at most {}, since {count} workers need one each", u16::MAX - count + 1))
            }
            ListenAddress::Unix(path) => {
                let numbered = path.to_string_lossy().contains("{n}");
                let longest = self.paths().map(|path| path.as_os_str().len()).max().unwrap_or(0);
                match self.pool {
                    None if numbered => Some("a path without {n}: a listener has no number".to_owned()),
                    Some(_) if count > 1 && !numbered => {
                        Some(format!("a path with {{n}}, since {count} workers need one each"))
                    }
                    _ if longest > ListenAddress::UNIX_MAX => {
                        Some(format!("a path of at most {} bytes instead of {longest}", ListenAddress::UNIX_MAX))
                    }
                    _ => None,
                }
            }
        };
        if let Some(expected) = expected {
            record.contradiction(&self.key, &[&self.count_key], quote(&self.address.to_string()), expected);
        }
    }

    /// Reports that this one and the `earlier` both want `shared`.
    fn collides(&self, earlier: &Holder<'_>, shared: &ListenAddress, record: &mut Record) {
        let shared = quote(&shared.to_string());
        let expected = format!("an address of its own: {shared} belongs to {}", place(&earlier.key, record));
        let others = [earlier.key.as_str(), &earlier.count_key, &self.count_key, "listener", "pool"];
        record.contradiction(&self.key, &others, quote(&self.address.to_string()), expected);
    }
}

fn tcp(holders: &[Holder<'_>], record: &mut Record) {
    for (i, later) in holders.iter().enumerate() {
        for earlier in &holders[..i] {
            let (ListenAddress::Tcp(a), ListenAddress::Tcp(b)) = (earlier.address, later.address) else { continue };
            if let Some(port) = shared_port((a, earlier.count()), (b, later.count())) {
                let mut shared = *a;
                shared.set_port(port);
                later.collides(earlier, &ListenAddress::Tcp(shared), record);
            }
        }
    }
}

/// The first port on which both would listen. A wildcard address takes its port from every other address:
/// from all of one family by TCP's own rule, and `[::]` takes IPv4's too unless the system says otherwise.
fn shared_port((a, a_count): (&SocketAddr, u16), (b, b_count): (&SocketAddr, u16)) -> Option<u16> {
    let (ip_a, ip_b) = (a.ip().to_canonical(), b.ip().to_canonical());
    let scope = |address: &SocketAddr| match address {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let same = ip_a == ip_b && scope(a) == scope(b);
    if a.port() == 0 || b.port() == 0 || !(same || ip_a.is_unspecified() || ip_b.is_unspecified()) {
        return None;
    }
    let first = a.port().max(b.port());
    let last = |address: &SocketAddr, count: u16| address.port().saturating_add(count - 1);
    (first <= last(a, a_count).min(last(b, b_count))).then_some(first)
}

fn unix(holders: &[Holder<'_>], record: &mut Record) {
    let mut taken: HashMap<PathBuf, usize> = HashMap::new();
    for (i, holder) in holders.iter().enumerate() {
        let mut told = BTreeSet::new();
        for path in holder.paths() {
            match taken.get(&path).copied() {
                None => drop(taken.insert(path, i)),
                // One pool meeting itself was told already: it lacks its {n}.
                Some(earlier) if earlier != i && told.insert(earlier) => {
                    holder.collides(&holders[earlier], &ListenAddress::Unix(path), record);
                }
                Some(_) => {}
            }
        }
    }
}

/// The set's own sockets must fit into `sun_path`, and nobody else may take their places.
fn runtime_dir(config: &Config, holders: &[Holder<'_>], record: &mut Record) {
    const KEY: &str = "set.runtime_dir";
    let dir = &config.set.runtime_dir;
    let own = ["probe.sock", AdminConfig::SOCKET].map(|name| dir.join(name));
    let workers = config.pools.iter().map(|pool| dir.join(pool.name.as_str()).join(format!("{}.sock", pool.workers)));
    let longest = workers.chain(own.clone()).max_by_key(|path| path.as_os_str().len());
    if let Some(path) = longest.filter(|path| path.as_os_str().len() > ListenAddress::UNIX_MAX) {
        let over = path.as_os_str().len() - ListenAddress::UNIX_MAX;
        let expected = format!("a path {over} bytes shorter: its sockets may have {} in all", ListenAddress::UNIX_MAX);
        record.contradiction(KEY, &[], quote(&dir.to_string_lossy()), expected);
    }
    let reserved = |path: &Path| {
        let in_pool = config.pools.iter().any(|pool| path.starts_with(dir.join(pool.name.as_str())));
        in_pool || own.iter().any(|own| own.as_path() == path)
    };
    for holder in holders {
        if holder.paths().any(|path| reserved(&path)) {
            let dir = quote(&dir.to_string_lossy());
            let expected = format!("a path outside {dir}, where the set keeps its own files");
            record.contradiction(&holder.key, &[KEY], quote(&holder.address.to_string()), expected);
        }
    }
}
