//! Clients that wait for a worker.

use std::os::fd::AsFd;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::{Driver, Waiter};
use crate::config;
use crate::dispatcher::connection::{Connection, HandoffOutcome};
use crate::dispatcher::grant::GrantResult;
use crate::dispatcher::pool_slots::WorkerSlot;
use crate::exchange::{self, DispatcherSide, SlotMemory};
use crate::ids::{Claim, LeaseId, Phase, PoolName};
use crate::pool::{ClientId, Peer, PoolEvent, Refusal};

impl Driver {
    /// Waits for a worker of `pool`. Dropping the future leaves the queue.
    pub(crate) async fn lease(self: &Rc<Self>, pool: &PoolName, peer: Peer) -> GrantResult {
        let (sender, receiver) = oneshot::channel();
        let ticket = self.enqueue(pool, Waiter::Redirect(sender));
        self.handle(pool, PoolEvent::Client(ticket.id, peer));
        receiver.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Passes a connection to a worker of `pool`, and waits for the end of its lease. Dropping the future leaves the
    /// queue.
    pub(crate) async fn hand_off(
        self: &Rc<Self>,
        pool: &PoolName,
        peer: Peer,
        connection: &Rc<Connection>,
    ) -> HandoffOutcome {
        let ticket = self.enqueue(pool, Waiter::Handoff(connection.clone()));
        self.handle(pool, PoolEvent::Connection(ticket.id, peer));
        connection.outcome().await
    }

    fn enqueue<'a>(self: &'a Rc<Self>, pool: &'a PoolName, waiter: Waiter) -> QueueTicket<'a> {
        self.poll_now();
        let id = self.next_client.get();
        self.next_client.set(id + 1);
        self.waiters.borrow_mut().insert(id, waiter);
        QueueTicket { driver: self, pool, id }
    }

    /// Sends the grant or refusal to a waiting client. A handoff client needs no grant: its worker has the connection.
    pub(super) fn resolve(&self, client: ClientId, result: GrantResult) {
        match self.waiters.borrow_mut().remove(&client) {
            Some(Waiter::Redirect(sender)) => drop(sender.send(result)), // fails if the client has just left the queue
            Some(Waiter::Handoff(connection)) => {
                if let Err(refusal) = result {
                    connection.set_outcome(HandoffOutcome::Refused(refusal));
                }
            }
            None => {}
        }
    }

    /// Passes a connection to the worker it is offered to; one that cannot be sent is offered to another worker after
    /// `offer_timeout`. Returns whether the worker is the incarnation that received the previous connection.
    pub(super) fn send_connection(&self, slot: &mut WorkerSlot, client: ClientId, lease: LeaseId) -> bool {
        let waiters = self.waiters.borrow();
        let Some(Waiter::Handoff(connection)) = waiters.get(&client) else { return true }; // it is leaving the queue
        slot.lent = Some(client);
        connection.mark_lent(true);
        let message = connection.handoff_message(lease, slot.token);
        let sent = slot.handoff_sender.send(&message.encode(), connection.as_fd());
        if let Err(error) = &sent {
            tracing::debug!(%lease, %error, "the connection cannot be passed to the worker");
        }
        sent.unwrap_or(false)
    }

    /// A random start for the marks of connections.
    pub(crate) fn random_mark(&self) -> u32 {
        self.tokens.bits() as u32
    }

    /// The mark of a client's connection.
    pub(super) fn mark_of(&self, client: ClientId) -> u32 {
        match self.waiters.borrow().get(&client) {
            Some(Waiter::Handoff(connection)) => connection.mark(),
            _ => 0,
        }
    }

    /// Determines what became of the connection that an earlier dispatcher lent with the lease in a slot, and revokes
    /// an offer that no worker has claimed.
    pub(super) fn recover_connection<M: SlotMemory>(&self, side: &DispatcherSide<M>) {
        let Some((Claim::Held(lease, phase), terms)) = exchange::terms(side.memory()) else { return };
        if terms.connection != 0 {
            let free = phase == Phase::Revoked || phase == Phase::Offered && side.revoke(lease);
            let mut recovered = self.recovered.borrow_mut();
            *recovered.entry(terms.connection).or_insert(true) &= free;
        }
    }

    /// Whether a connection that was lent when the previous dispatcher ended was claimed by no worker.
    pub(crate) fn is_recovered(&self, mark: u32) -> bool {
        self.recovered.borrow().get(&mark).is_some_and(|free| *free)
    }

    /// Whether the workers of a pool speak HTTP.
    pub(crate) fn speaks_http(&self, pool: &PoolName) -> bool {
        let pools = self.pools.borrow();
        let slots = pools.iter().find(|slots| slots.config.name == *pool);
        !slots.is_some_and(|slots| matches!(slots.config.handler, config::HandlerConfig::Inetd(_)))
    }
}

/// The position of a client in the queue; dropped without a result, the client leaves the queue.
struct QueueTicket<'a> {
    driver: &'a Rc<Driver>,
    pool: &'a PoolName,
    id: ClientId,
}

impl Drop for QueueTicket<'_> {
    fn drop(&mut self) {
        let is_waiting = self.driver.waiters.borrow_mut().remove(&self.id).is_some();
        if is_waiting {
            self.driver.handle(self.pool, PoolEvent::Disconnected(self.id));
        }
    }
}
