//! Who waits for a worker, and what becomes of them.

use std::os::fd::AsFd;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::Driver;
use crate::config;
use crate::dispatcher::handoff::{Connection, Outcome};
use crate::dispatcher::pool_slots::{Slot, Verdict};
use crate::exchange::{self, DispatcherSide, SlotMemory};
use crate::ids::{Claim, LeaseId, Phase, PoolName};
use crate::pool::{ClientId, Peer, PoolEvent, Refusal};

/// Who waits for a worker.
pub(super) enum Waiter {
    /// To be told which.
    Told(oneshot::Sender<Verdict>),
    /// To be handed over to it.
    StoredConnection(Rc<Connection>),
}

impl Driver {
    /// Passes a connection to the worker it is offered to. What cannot be sent is taken back after `offer_timeout`.
    /// Whether the worker is the one that took the last.
    pub(super) fn pass_on(&self, slot: &mut Slot, client: ClientId, lease: LeaseId) -> bool {
        let clients = self.clients.borrow();
        let Some(Waiter::StoredConnection(connection)) = clients.get(&client) else { return true }; // it is leaving
        slot.lent = Some(client);
        connection.lend(true);
        let message = connection.message(lease, slot.token);
        let sent = slot.post.send(&message.encode(), connection.as_fd());
        if let Err(error) = &sent {
            tracing::debug!(%lease, %error, "the connection cannot be passed on");
        }
        sent.unwrap_or(false)
    }

    /// Where marks may begin.
    pub fn any_mark(&self) -> u32 {
        self.chance.bits() as u32
    }

    /// The mark of a client's connection.
    pub(super) fn mark_of(&self, client: ClientId) -> u32 {
        match self.clients.borrow().get(&client) {
            Some(Waiter::StoredConnection(connection)) => connection.mark(),
            _ => 0,
        }
    }

    /// Learns what has become of the connection that an earlier dispatcher lent with the lease in a slot. What no worker
    /// has taken is taken back.
    pub(super) fn find<M: SlotMemory>(&self, asker: &DispatcherSide<M>) {
        let Some((Claim::Held(lease, phase), terms)) = exchange::terms(asker.memory()) else { return };
        if terms.connection != 0 {
            let free = phase == Phase::Revoked || phase == Phase::Offered && asker.revoke(lease);
            let mut found = self.found.borrow_mut();
            *found.entry(terms.connection).or_insert(true) &= free;
        }
    }

    /// Whether a connection that was lent when the last dispatcher ended is nobody's now.
    pub fn is_found(&self, mark: u32) -> bool {
        self.found.borrow().get(&mark).is_some_and(|free| *free)
    }

    pub(super) fn answer(&self, client: ClientId, verdict: Verdict) {
        match self.clients.borrow_mut().remove(&client) {
            Some(Waiter::Told(waiting)) => drop(waiting.send(verdict)), // it has left in this very moment
            Some(Waiter::StoredConnection(connection)) => verdict.err().into_iter().for_each(|refusal| {
                connection.tell(Outcome::Refused(refusal));
            }),
            None => {}
        }
    }

    /// Hands a connection over to a worker of `pool`, and waits until that is through with it. Dropping the future
    /// gives up the place in the queue.
    pub async fn hand_over(self: &Rc<Self>, pool: &PoolName, peer: Peer, connection: &Rc<Connection>) -> Outcome {
        let place = self.place(pool, Waiter::StoredConnection(connection.clone()));
        self.tell(pool, PoolEvent::Connection(place.id, peer));
        connection.outcome().await
    }

    fn place<'a>(self: &'a Rc<Self>, pool: &'a PoolName, client: Waiter) -> QueueTicket<'a> {
        self.glance();
        let id = self.next_client.get();
        self.next_client.set(id + 1);
        self.clients.borrow_mut().insert(id, client);
        QueueTicket { desk: self, pool, id }
    }

    /// Whether the workers of a pool speak HTTP.
    pub fn speaks_http(&self, pool: &PoolName) -> bool {
        let rooms = self.rooms.borrow();
        let room = rooms.iter().find(|room| room.config.name == *pool);
        !room.is_some_and(|room| matches!(room.config.handler, config::HandlerConfig::Inetd(_)))
    }

    /// Waits for a worker of `pool`. Dropping the future gives up the place in the queue.
    pub async fn lease(self: &Rc<Self>, pool: &PoolName, peer: Peer) -> Verdict {
        let (sender, receiver) = oneshot::channel();
        let place = self.place(pool, Waiter::Told(sender));
        self.tell(pool, PoolEvent::Client(place.id, peer));
        receiver.await.unwrap_or(Err(Refusal::Stopping))
    }
}

/// A client's place: given up when it is dropped without a verdict.
struct QueueTicket<'a> {
    desk: &'a Rc<Driver>,
    pool: &'a PoolName,
    id: ClientId,
}

impl Drop for QueueTicket<'_> {
    fn drop(&mut self) {
        let waiting = self.desk.clients.borrow_mut().remove(&self.id).is_some();
        if waiting {
            self.desk.tell(self.pool, PoolEvent::Disconnected(self.id));
        }
    }
}
