//! The clients that wait, in the order they came, and what is known of their peers.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::messages::{ClientId, Peer};
use crate::ids::Monotonic;

/// How long a peer whose lease ended unused gets only one unclaimed lease at a time.
pub const SUSPICION: Duration = Duration::from_secs(10);

/// A client on its way to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Who.
    pub id: ClientId,
    /// From where.
    pub peer: Peer,
    /// Since when.
    pub since: Monotonic,
    /// Until when at the latest.
    pub due: Monotonic,
    /// Whether its connection is handed over, so that only the worker can leave it waiting.
    pub handed: bool,
}

/// What is remembered of a peer that has leases out or has let one end unused.
#[derive(Debug, Default)]
struct Standing {
    unclaimed: u32,
    suspect_until: Option<Monotonic>,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: BTreeMap<ClientId, Waiting>,
    standing: HashMap<Peer, Standing>,
    suspects: usize,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn contains(&self, client: ClientId) -> bool {
        self.waiting.contains_key(&client)
    }

    pub fn oldest(&self) -> Option<Monotonic> {
        self.waiting.values().next().map(|w| w.since)
    }

    /// Also for a client whose worker failed it, which takes its old place: clients are ordered by their number.
    pub fn push(&mut self, client: Waiting) {
        self.waiting.insert(client.id, client);
    }

    pub fn remove(&mut self, client: ClientId) -> Option<Waiting> {
        self.waiting.remove(&client)
    }

    pub fn take_all(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        std::mem::take(&mut self.waiting).into_values()
    }

    /// The first client whose peer may have another lease.
    pub fn take_next(&mut self, now: Monotonic) -> Option<Waiting> {
        let id = if self.suspects == 0 {
            *self.waiting.keys().next()?
        } else {
            self.waiting.values().find(|w| !self.is_held_back(w.peer, now))?.id
        };
        self.waiting.remove(&id)
    }

    fn is_held_back(&self, peer: Peer, now: Monotonic) -> bool {
        self.standing.get(&peer).is_some_and(|s| s.unclaimed > 0 && s.suspect_until.is_some_and(|until| now < until))
    }

    /// The client has got (+1) or got rid of (-1) a lease that it has not used yet.
    pub fn unclaimed(&mut self, client: Waiting, by: i32) {
        if client.handed {
            return; // not the client's to claim
        }
        let peer = client.peer;
        let standing = self.standing.entry(peer).or_default();
        standing.unclaimed = standing.unclaimed.saturating_add_signed(by);
        if standing.unclaimed == 0 && standing.suspect_until.is_none() {
            self.standing.remove(&peer);
        }
    }

    /// The peer has let a lease end unused.
    pub fn suspect(&mut self, peer: Peer, now: Monotonic) {
        self.standing.retain(|_, s| {
            if s.suspect_until.is_some_and(|until| until <= now) {
                s.suspect_until = None;
            }
            s.unclaimed > 0 || s.suspect_until.is_some()
        });
        self.standing.entry(peer).or_default().suspect_until = Some(now + SUSPICION);
        self.suspects = self.standing.values().filter(|s| s.suspect_until.is_some()).count();
    }
}
