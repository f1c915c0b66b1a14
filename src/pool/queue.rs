//! The waiting clients in order of arrival, and the leases of their peers.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::messages::{ClientId, Peer};
use crate::ids::Monotonic;

/// How long a peer that let a lease end unclaimed gets only one unclaimed lease at a time.
pub(crate) const SUSPICION: Duration = Duration::from_secs(10);

/// A client without a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueuedClient {
    /// Its number.
    pub id: ClientId,
    /// Its address or user.
    pub peer: Peer,
    /// When it arrived.
    pub since: Monotonic,
    /// When it is refused at the latest.
    pub due: Monotonic,
    /// Whether its connection is passed, so that only the worker can leave the lease unclaimed.
    pub is_handoff: bool,
}

/// The record of a peer that has unclaimed leases or has let one end unclaimed.
#[derive(Debug, Default)]
struct PeerRecord {
    unclaimed: u32,
    suspect_until: Option<Monotonic>,
}

#[derive(Debug, Default)]
pub(super) struct ClientQueue {
    clients: BTreeMap<ClientId, QueuedClient>,
    peers: HashMap<Peer, PeerRecord>,
    suspects: usize,
}

impl ClientQueue {
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    pub(super) fn contains(&self, client: ClientId) -> bool {
        self.clients.contains_key(&client)
    }

    pub(super) fn oldest(&self) -> Option<Monotonic> {
        self.clients.values().next().map(|client| client.since)
    }

    /// Clients are ordered by their number: a client that is queued again returns to its old position.
    pub(super) fn push(&mut self, client: QueuedClient) {
        self.clients.insert(client.id, client);
    }

    pub(super) fn remove(&mut self, client: ClientId) -> Option<QueuedClient> {
        self.clients.remove(&client)
    }

    pub(super) fn remove_all(&mut self) -> impl Iterator<Item = QueuedClient> + use<> {
        std::mem::take(&mut self.clients).into_values()
    }

    /// Removes the first client of a peer that may have another lease.
    pub(super) fn pop(&mut self, now: Monotonic) -> Option<QueuedClient> {
        let id = if self.suspects == 0 {
            *self.clients.keys().next()?
        } else {
            self.clients.values().find(|client| !self.is_limited(client.peer, now))?.id
        };
        self.clients.remove(&id)
    }

    fn is_limited(&self, peer: Peer, now: Monotonic) -> bool {
        self.peers.get(&peer).is_some_and(|p| p.unclaimed > 0 && p.suspect_until.is_some_and(|until| now < until))
    }

    /// The client has one unclaimed lease more (+1) or less (-1).
    pub(super) fn count_unclaimed(&mut self, client: QueuedClient, by: i32) {
        if client.is_handoff {
            return; // the worker claims, not the client
        }
        let peer = client.peer;
        let record = self.peers.entry(peer).or_default();
        record.unclaimed = record.unclaimed.saturating_add_signed(by);
        if record.unclaimed == 0 && record.suspect_until.is_none() {
            self.peers.remove(&peer);
        }
    }

    /// The peer has let a lease end unclaimed.
    pub(super) fn suspect(&mut self, peer: Peer, now: Monotonic) {
        self.peers.retain(|_, record| {
            if record.suspect_until.is_some_and(|until| until <= now) {
                record.suspect_until = None;
            }
            record.unclaimed > 0 || record.suspect_until.is_some()
        });
        self.peers.entry(peer).or_default().suspect_until = Some(now + SUSPICION);
        self.suspects = self.peers.values().filter(|record| record.suspect_until.is_some()).count();
    }
}
