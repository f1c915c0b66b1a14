//! The listening sockets of a new configuration: which of them stay, which get another use, and which are bound.
//!
//! A socket that is needed for something else is shared by the old and the new process until the old one ends, so that no
//! client is refused.

use std::collections::BTreeMap;

use crate::config::{Config, ListenAddress, conflict};
use crate::ids::WorkerId;
use crate::watchdog::sockets::{ListeningSocket, SetSockets, SocketError, open_admin_tcp, open_listener, open_worker};

/// What a listening socket is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SocketUse {
    /// The listener at this place in the file.
    Listener(usize),
    Worker(WorkerId),
    Admin,
}

impl SocketUse {
    /// Whether the process that has the socket for `other` keeps it.
    fn is_same(&self, other: &SocketUse) -> bool {
        match (self, other) {
            (SocketUse::Listener(_), SocketUse::Listener(_)) => true,
            _ => self == other,
        }
    }
}

/// The sockets that a new configuration needs and does not have.
pub(super) struct SocketMoves {
    /// For each listener the index of the one whose socket it keeps.
    pub kept: Vec<Option<usize>>,
    pub listeners: BTreeMap<usize, ListeningSocket>,
    pub workers: BTreeMap<WorkerId, ListeningSocket>,
    pub admin: Option<ListeningSocket>,
    /// Workers that leave the set, and whose socket file is another's now.
    pub replaced: Vec<WorkerId>,
}

impl SocketMoves {
    /// Binds or shares what is missing.
    ///
    /// # Errors
    /// Then nothing has changed, but the file of a Unix socket may be missing.
    pub(super) fn open(sockets: &SetSockets, new: &Config) -> Result<Self, SocketError> {
        let now = in_use(sockets);
        let wanted = uses(new);
        let addresses: Vec<_> = now.iter().map(|(used, socket)| (used.clone(), socket.configured.clone())).collect();
        let sources = match_sockets(&addresses, &wanted);
        let mut leaving: Vec<bool> = vec![true; now.len()];
        sources.iter().flatten().for_each(|at| leaving[*at] = false);
        let mut moves = Self {
            kept: vec![None; new.listeners.len()],
            listeners: BTreeMap::new(),
            workers: BTreeMap::new(),
            admin: None,
            replaced: Vec::new(),
        };
        for ((wanted, address), source) in wanted.into_iter().zip(sources) {
            let socket = match source.map(|at| &now[at]) {
                Some((used, _)) if used.is_same(&wanted) => {
                    if let (SocketUse::Listener(index), SocketUse::Listener(at)) = (&wanted, used) {
                        moves.kept[*index] = Some(*at);
                    }
                    continue;
                }
                Some((_, socket)) => socket.share()?,
                None => {
                    let in_the_way = now
                        .iter()
                        .zip(&leaving)
                        .filter(|((_, socket), leaving)| **leaving && conflict(&socket.configured, &address));
                    let in_the_way: Vec<_> = in_the_way.map(|((used, socket), _)| (used, *socket)).collect();
                    let workers = in_the_way.iter().filter_map(|(used, _)| match used {
                        SocketUse::Worker(id) if address.is_unix() => Some(id.clone()),
                        _ => None,
                    });
                    moves.replaced.extend(workers);
                    let old: Vec<_> = in_the_way.iter().map(|(_, socket)| *socket).collect();
                    match &wanted {
                        SocketUse::Listener(index) => open_listener(&new.listeners[*index], &old)?,
                        SocketUse::Worker(id) => open_worker(new, id, &old)?,
                        SocketUse::Admin => open_admin_tcp(&address, &old)?,
                    }
                }
            };
            match wanted {
                SocketUse::Listener(index) => drop(moves.listeners.insert(index, socket)),
                SocketUse::Worker(id) => drop(moves.workers.insert(id, socket)),
                SocketUse::Admin => moves.admin = Some(socket),
            }
        }
        moves.replaced.retain(|id| !new.workers().any(|new| new == *id));
        Ok(moves)
    }
}

fn in_use(sockets: &SetSockets) -> Vec<(SocketUse, &ListeningSocket)> {
    let listeners = sockets.listeners.iter().enumerate().map(|(index, socket)| (SocketUse::Listener(index), socket));
    let workers = sockets.workers.iter().map(|(id, socket)| (SocketUse::Worker(id.clone()), socket));
    let admin = sockets.admin_tcp.iter().map(|socket| (SocketUse::Admin, socket));
    listeners.chain(workers).chain(admin).collect()
}

fn uses(config: &Config) -> Vec<(SocketUse, ListenAddress)> {
    let listeners =
        config.listeners.iter().enumerate().map(|(index, l)| (SocketUse::Listener(index), l.address.clone()));
    let workers = config.workers().filter_map(|id| {
        let address = config.pool(&id.pool)?.worker_address(id.number);
        Some((SocketUse::Worker(id), address))
    });
    let admin = config.admin.address.iter().map(|address| (SocketUse::Admin, address.clone()));
    listeners.chain(workers).chain(admin).collect()
}

/// For each use in `wanted` the index of the socket in `now` that it gets; `None` for one that is bound. Each socket is
/// given once: two listeners may both be configured with port 0. A Unix socket keeps its use, which its file belongs to.
fn match_sockets(now: &[(SocketUse, ListenAddress)], wanted: &[(SocketUse, ListenAddress)]) -> Vec<Option<usize>> {
    let mut free: BTreeMap<&ListenAddress, Vec<usize>> = BTreeMap::new();
    for (at, (_, address)) in now.iter().enumerate() {
        free.entry(address).or_default().push(at);
    }
    let mut sources = vec![None; wanted.len()];
    for must_be_same in [true, false] {
        for ((wanted, address), source) in wanted.iter().zip(&mut sources).filter(|(_, source)| source.is_none()) {
            let is_movable = address.tcp().is_some_and(|tcp| tcp.port() != 0);
            let Some(sockets) = free.get_mut(address).filter(|_| must_be_same || is_movable) else { continue };
            let at = sockets.iter().position(|at| !must_be_same || now[*at].0.is_same(wanted));
            *source = at.map(|at| sockets.remove(at));
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(now: &str, wanted: &str) -> Vec<Option<usize>> {
        let parse = |text: &str| -> Vec<(SocketUse, ListenAddress)> {
            let mut listeners = 0..;
            let mut one = |item: &str| {
                let (name, address) = item.split_once('=').unwrap();
                let used = match name {
                    "l" => SocketUse::Listener(listeners.next().unwrap()),
                    "admin" => SocketUse::Admin,
                    id => SocketUse::Worker(id.parse().unwrap()),
                };
                (
                    used,
                    if address.contains(':') { address.to_owned() } else { format!("127.0.0.1:{address}") }
                        .parse()
                        .unwrap(),
                )
            };
            text.split_whitespace().map(&mut one).collect()
        };
        match_sockets(&parse(now), &parse(wanted))
    }

    #[test]
    fn sockets_follow_their_addresses_from_one_use_to_another() {
        assert_eq!(sources("l=1 l=2 p-1=3", "l=2 l=1 p-1=3"), [Some(1), Some(0), Some(2)]);
        // Ports are shifted by one, a pool is renamed, and a listener and a worker exchange their addresses.
        assert_eq!(sources("p-1=1 p-2=2 p-3=3", "p-1=2 p-2=3 p-3=4"), [Some(1), Some(2), None]);
        assert_eq!(sources("p-1=1 p-2=2", "q-1=1 q-2=2"), [Some(0), Some(1)]);
        assert_eq!(sources("l=1 p-1=2 admin=3", "l=3 p-1=1 admin=2"), [Some(2), Some(0), Some(1)]);
        assert_eq!(sources("l=0.0.0.0:1", "l=127.0.0.1:1"), [None]);
    }

    #[test]
    fn each_socket_is_given_once_and_an_old_use_comes_first() {
        assert_eq!(sources("l=0 l=0", "l=0 l=0 l=0"), [Some(0), Some(1), None]);
        assert_eq!(sources("p-1=0", "l=0"), [None]);
        assert_eq!(sources("p-1=1 q-1=2", "a-1=1 p-1=1"), [None, Some(0)]);
        assert_eq!(sources("p-1=unix:/x", "p-1=unix:/x q-1=unix:/y"), [Some(0), None]);
        assert_eq!(sources("p-1=unix:/x", "q-1=unix:/x"), [None]);
    }
}
