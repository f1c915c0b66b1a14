//! The waiting clients, and the unclaimed leases of their addresses.
//!
//! Addresses take turns, and the clients of one address are served in the order of their arrival: an address with many
//! connections delays another one by one turn. Every operation takes a number of steps that is logarithmic in the
//! length of the queue.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::messages::{ClientId, Peer};
use crate::ids::Monotonic;

/// How long a peer that let a lease end unclaimed gets only one unclaimed lease at a time.
pub(crate) const SUSPICION: Duration = Duration::from_secs(10);

/// Position in the order of turns; a smaller one is earlier.
type Turn = u64;

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
    /// The turn of its peer in which it was offered to a worker. It keeps the turn if the offer fails.
    pub turn: Option<Turn>,
}

/// The waiting clients of a peer, and what limits them.
#[derive(Debug, Default)]
struct PeerRecord {
    redirects: BTreeSet<ClientId>,
    handoffs: BTreeSet<ClientId>,
    /// Those of both that have not been offered to a worker: a full queue refuses only these.
    fresh: BTreeSet<ClientId>,
    /// The turn of its next client that has not had one.
    next_turn: Turn,
    /// Its key in [`ClientQueue::turns`]: none while no client of it may be offered to a worker.
    listed: Option<Turn>,
    unclaimed: u32,
    suspect_until: Option<Monotonic>,
}

impl PeerRecord {
    fn is_empty(&self) -> bool {
        self.redirects.is_empty() && self.handoffs.is_empty()
    }

    /// Whether the peer gets no further unclaimed lease: that concerns its redirect clients only, because with handoff
    /// delivery the worker claims.
    fn is_limited(&self) -> bool {
        self.unclaimed > 0 && self.suspect_until.is_some()
    }

    /// Its first client that may be offered to a worker.
    fn next(&self) -> Option<ClientId> {
        let redirect = self.redirects.first().filter(|_| !self.is_limited());
        self.handoffs.first().into_iter().chain(redirect).min().copied()
    }

    fn clients(&mut self, client: &QueuedClient) -> &mut BTreeSet<ClientId> {
        if client.is_handoff { &mut self.handoffs } else { &mut self.redirects }
    }

    fn remove(&mut self, client: &QueuedClient) {
        self.clients(client).remove(&client.id);
        self.fresh.remove(&client.id);
    }
}

#[derive(Debug, Default)]
pub(super) struct ClientQueue {
    clients: BTreeMap<ClientId, QueuedClient>,
    by_due: BTreeSet<(Monotonic, ClientId)>,
    peers: HashMap<Peer, PeerRecord>,
    /// The peers with a client that may be offered to a worker, in the order of their turns.
    turns: BTreeMap<Turn, Peer>,
    last_turn: Turn,
    /// The peers with clients that have not been offered to a worker, by their number.
    by_length: BTreeSet<(usize, Peer)>,
    /// Peers that let a lease end unclaimed, and until when that counts. An earlier entry of a peer is outdated.
    suspects: VecDeque<(Monotonic, Peer)>,
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

    /// When the next client is refused.
    pub(super) fn next_due(&self) -> Option<Monotonic> {
        self.by_due.first().map(|(due, _)| *due)
    }

    /// Removes a client that has waited for too long.
    pub(super) fn pop_overdue(&mut self, now: Monotonic) -> Option<QueuedClient> {
        let (due, id) = *self.by_due.first()?;
        if due <= now { self.remove(id) } else { None }
    }

    /// The client as it is offered to a worker without waiting; `None` if it must be queued.
    pub(super) fn skip(&mut self, client: QueuedClient, now: Monotonic) -> Option<QueuedClient> {
        self.end_suspicions(now);
        let is_limited = !client.is_handoff && self.peers.get(&client.peer).is_some_and(PeerRecord::is_limited);
        let turn = (self.is_empty() && !is_limited).then(|| self.new_turn())?;
        Some(QueuedClient { turn: Some(turn), ..client })
    }

    /// Queues a client behind the others of its peer. One whose offer has failed returns to its place, and to the turn
    /// of its peer.
    pub(super) fn push(&mut self, client: QueuedClient) {
        self.clients.insert(client.id, client);
        self.by_due.insert((client.due, client.id));
        let turn = self.new_turn();
        self.change(client.peer, |record| {
            if record.is_empty() {
                record.next_turn = turn;
            }
            record.clients(&client).insert(client.id);
            if client.turn.is_none() {
                record.fresh.insert(client.id);
            }
        });
    }

    pub(super) fn remove(&mut self, client: ClientId) -> Option<QueuedClient> {
        let client = self.take(client)?;
        self.change(client.peer, |record| record.remove(&client));
        Some(client)
    }

    pub(super) fn remove_oldest(&mut self) -> Option<QueuedClient> {
        self.remove(*self.clients.keys().next()?)
    }

    /// Removes the client to offer to a worker: the first of the peer whose turn it is.
    pub(super) fn pop(&mut self, now: Monotonic) -> Option<QueuedClient> {
        self.end_suspicions(now);
        let (&turn, peer) = self.turns.first_key_value()?;
        let id = self.peers.get(peer)?.next()?;
        let mut client = self.take(id)?;
        let next_turn = self.new_turn();
        self.change(client.peer, |record| {
            record.remove(&client);
            if client.turn.is_none() {
                record.next_turn = next_turn;
            }
        });
        client.turn = Some(turn);
        Some(client)
    }

    /// Removes a client because the queue is too long by `new`: the newest one of the peer with the most waiting
    /// clients, or `new` if no other peer has more than its own with it: among equals, those that wait stay. A client that
    /// has been offered to a worker keeps its place and does not count.
    pub(super) fn remove_surplus(&mut self, new: QueuedClient) -> Option<QueuedClient> {
        let own = self.peers.get(&new.peer).map_or(0, |record| record.fresh.len());
        let largest = self.by_length.iter().rev().find(|(_, other)| *other != new.peer);
        let larger = largest.filter(|(length, _)| *length > own).and_then(|(_, other)| self.peers.get(other));
        self.remove(larger.and_then(|record| record.fresh.last().copied()).unwrap_or(new.id))
    }

    /// The client has one unclaimed lease more (+1) or less (-1).
    pub(super) fn count_unclaimed(&mut self, client: QueuedClient, by: i32) {
        if client.is_handoff {
            return; // the worker claims, not the client
        }
        self.change(client.peer, |record| record.unclaimed = record.unclaimed.saturating_add_signed(by));
    }

    /// The peer has let a lease end unclaimed.
    pub(super) fn suspect(&mut self, peer: Peer, now: Monotonic) {
        self.end_suspicions(now);
        let until = now + SUSPICION;
        self.suspects.push_back((until, peer));
        self.change(peer, |record| record.suspect_until = Some(until));
    }

    fn end_suspicions(&mut self, now: Monotonic) {
        while let Some(&(until, peer)) = self.suspects.front()
            && until <= now
        {
            self.suspects.pop_front();
            self.change(peer, |record| record.suspect_until = record.suspect_until.filter(|last| *last != until));
        }
    }

    fn take(&mut self, client: ClientId) -> Option<QueuedClient> {
        let client = self.clients.remove(&client)?;
        self.by_due.remove(&(client.due, client.id));
        Some(client)
    }

    fn new_turn(&mut self) -> Turn {
        self.last_turn += 1;
        self.last_turn
    }

    /// Changes the record of a peer, and its place among the others.
    fn change(&mut self, peer: Peer, change: impl FnOnce(&mut PeerRecord)) {
        let record = self.peers.entry(peer).or_default();
        let (old_length, old_turn) = (record.fresh.len(), record.listed);
        change(record);
        let length = record.fresh.len();
        let first = record.next().and_then(|id| self.clients.get(&id));
        record.listed = first.map(|client| client.turn.unwrap_or(record.next_turn));
        if record.listed != old_turn {
            if let Some(turn) = old_turn {
                self.turns.remove(&turn);
            }
            if let Some(turn) = record.listed {
                self.turns.insert(turn, peer);
            }
        }
        if record.is_empty() && record.unclaimed == 0 && record.suspect_until.is_none() {
            self.peers.remove(&peer);
        }
        if length != old_length {
            self.by_length.remove(&(old_length, peer));
            if length > 0 {
                self.by_length.insert((length, peer));
            }
        }
    }
}

#[cfg(test)]
mod tests;
