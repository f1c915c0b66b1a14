//! Clients that wait for a worker.

use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::oneshot;

use crate::dispatcher::connection::{Connection, HandoffOutcome};
use crate::dispatcher::grant::GrantResult;
use crate::pool::ClientId;

/// A client that waits for a worker, or for the end of its worker's lease.
pub(super) enum Waiter {
    /// It is redirected to the worker.
    Redirect(oneshot::Sender<GrantResult>),
    /// Its connection is passed to the worker.
    Handoff(Rc<Connection>),
}

/// All of them, in all pools.
#[derive(Default)]
pub(super) struct Waiters {
    waiting: HashMap<ClientId, Waiter>,
    /// The number of the last client.
    last: ClientId,
}

impl Waiters {
    pub(super) fn add(&mut self, waiter: Waiter) -> ClientId {
        self.last += 1;
        self.waiting.insert(self.last, waiter);
        self.last
    }

    /// The client waits no longer; whether it did.
    pub(super) fn remove(&mut self, client: ClientId) -> bool {
        self.waiting.remove(&client).is_some()
    }

    /// The connection of a handoff client.
    pub(super) fn connection(&self, client: ClientId) -> Option<&Rc<Connection>> {
        match self.waiting.get(&client) {
            Some(Waiter::Handoff(connection)) => Some(connection),
            _ => None,
        }
    }

    /// Sends the grant or refusal to a client. A handoff client needs no grant: its worker has the connection.
    pub(super) fn resolve(&mut self, client: ClientId, result: GrantResult) {
        match self.waiting.remove(&client) {
            Some(Waiter::Redirect(sender)) => drop(sender.send(result)), // fails if the client has just left the queue
            Some(Waiter::Handoff(connection)) => {
                if let Err(refusal) = result {
                    connection.set_outcome(HandoffOutcome::Refused(refusal));
                }
            }
            None => {}
        }
    }

    /// The worker's lease of a handoff client's connection has ended.
    pub(super) fn end(&mut self, client: ClientId, outcome: HandoffOutcome) {
        if let Some(Waiter::Handoff(connection)) = self.waiting.remove(&client) {
            connection.set_outcome(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Refusal;

    #[test]
    fn client_gets_one_result_or_leaves() {
        let mut waiters = Waiters::default();
        let (sender, mut result) = oneshot::channel();
        let client = waiters.add(Waiter::Redirect(sender));
        assert!(waiters.connection(client).is_none());
        waiters.resolve(client, Err(Refusal::Stopping));
        assert!(matches!(result.try_recv(), Ok(Err(Refusal::Stopping))));
        assert!(!waiters.remove(client), "it has its result");

        let next = waiters.add(Waiter::Redirect(oneshot::channel().0));
        assert!(next > client, "numbers are not used again");
        assert!(waiters.remove(next));
        waiters.resolve(next, Err(Refusal::Stopping)); // it has left
    }
}
