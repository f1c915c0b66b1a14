//! Who waits for a worker, and what becomes of them.

use std::os::fd::AsFd;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::Desk;
use crate::config;
use crate::dispatcher::handoff::{Connection, Outcome};
use crate::dispatcher::room::{Slot, Verdict};
use crate::handoff::Message;
use crate::ids::{LeaseId, PoolName};
use crate::pool::{ClientId, Event, Peer, Refusal};

/// Who waits for a worker.
pub(super) enum Client {
    /// To be told which.
    Told(oneshot::Sender<Verdict>),
    /// To be handed over to it.
    Handed(Rc<Connection>),
}

impl Desk {
    /// Passes a connection to the worker it is offered to. What cannot be sent is taken back after `offer_timeout`.
    pub(super) fn pass_on(&self, slot: &mut Slot, client: ClientId, lease: LeaseId) {
        let clients = self.clients.borrow();
        let Some(Client::Handed(connection)) = clients.get(&client) else { return }; // it is leaving
        slot.lent = Some(client);
        connection.lend(true);
        let (token, peer) = (slot.token, connection.told_peer());
        let message = Message { lease, token, peer, entrance: (*connection.entrance).clone() };
        if let Err(error) = slot.post.send(&message.encode(), connection.as_fd()) {
            tracing::debug!(%lease, %error, "the connection cannot be passed on");
        }
    }

    pub(super) fn answer(&self, client: ClientId, verdict: Verdict) {
        match self.clients.borrow_mut().remove(&client) {
            Some(Client::Told(waiting)) => drop(waiting.send(verdict)), // it has left in this very moment
            Some(Client::Handed(connection)) => verdict.err().into_iter().for_each(|refusal| {
                connection.tell(Outcome::Refused(refusal));
            }),
            None => {}
        }
    }

    /// Hands a connection over to a worker of `pool`, and waits until that is through with it. Dropping the future
    /// gives up the place in the queue.
    pub async fn hand_over(self: &Rc<Self>, pool: &PoolName, peer: Peer, connection: &Rc<Connection>) -> Outcome {
        let place = self.place(pool, Client::Handed(connection.clone()));
        self.tell(pool, Event::Connection(place.id, peer));
        connection.outcome().await
    }

    fn place<'a>(self: &'a Rc<Self>, pool: &'a PoolName, client: Client) -> Place<'a> {
        let id = self.next_client.get();
        self.next_client.set(id + 1);
        self.clients.borrow_mut().insert(id, client);
        Place { desk: self, pool, id }
    }

    /// Whether the workers of a pool speak HTTP.
    pub fn speaks_http(&self, pool: &PoolName) -> bool {
        let rooms = self.rooms.borrow();
        let room = rooms.iter().find(|room| room.config.name == *pool);
        !room.is_some_and(|room| matches!(room.config.handler, config::Handler::Inetd(_)))
    }

    /// Waits for a worker of `pool`. Dropping the future gives up the place in the queue.
    pub async fn lease(self: &Rc<Self>, pool: &PoolName, peer: Peer) -> Verdict {
        let (sender, receiver) = oneshot::channel();
        let place = self.place(pool, Client::Told(sender));
        self.tell(pool, Event::Client(place.id, peer));
        receiver.await.unwrap_or(Err(Refusal::Stopping))
    }
}

/// A client's place: given up when it is dropped without a verdict.
struct Place<'a> {
    desk: &'a Rc<Desk>,
    pool: &'a PoolName,
    id: ClientId,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let waiting = self.desk.clients.borrow_mut().remove(&self.id).is_some();
        if waiting {
            self.desk.tell(self.pool, Event::Left(self.id));
        }
    }
}
