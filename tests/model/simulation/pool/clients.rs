//! The clients.

use std::time::Duration;

use super::{PoolSimEvent, PoolSimulation};
use crate::ids::{LeaseId, Monotonic};
use crate::pool::{ClientId, Peer, PoolEvent};
use crate::worker::transaction::{ReceivedHead, Transaction, TransactionEvent};

const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ClientState {
    Waiting,
    Granted(LeaseId),
    Over,
}

pub(crate) struct Client {
    pub(crate) request: usize,
    pub(crate) peer: Peer,
    pub(crate) since: Monotonic,
    pub(crate) state: ClientState,
    pub(crate) offered: bool,
    /// It is a handoff connection.
    pub(crate) by_handoff: bool,
    /// A worker may have the connection.
    pub(crate) is_lent: bool,
}

impl PoolSimulation {
    /// A client with a new request.
    pub(super) fn new_client(&mut self) {
        self.started.push(0);
        let peer = Peer::User(self.random.below(6) as u32);
        let by_handoff = self.random.percent(50);
        self.arrive(self.started.len() - 1, peer, by_handoff);
    }

    pub(super) fn arrive(&mut self, request: usize, peer: Peer, by_handoff: bool) {
        self.last_client += 1;
        let id = self.last_client;
        let state = ClientState::Waiting;
        let client = Client { request, peer, since: self.serving, state, offered: false, by_handoff, is_lent: false };
        self.clients.insert(id, client);
        self.waiting.insert(id);
        self.handle(if by_handoff { PoolEvent::Connection(id, peer) } else { PoolEvent::Client(id, peer) });
    }

    /// A random waiting client leaves.
    pub(super) fn leave(&mut self) {
        let waiting: Vec<_> = self.waiting.iter().copied().collect();
        if !waiting.is_empty() {
            let id = waiting[self.random.below(waiting.len() as u64) as usize];
            self.decide(id, ClientState::Over);
            self.handle(PoolEvent::Disconnected(id));
        }
    }

    /// The request of a granted client has not started: the client gives up or retries.
    pub(super) fn not_started(&mut self, id: ClientId) {
        let Client { request, peer, .. } = self.clients[&id];
        self.clients.get_mut(&id).unwrap().state = ClientState::Over;
        assert_eq!(self.started[request], 0);
        if self.random.percent(30) {
            self.within(5, PoolSimEvent::ClientRetries(request, peer));
        }
    }

    /// The token of this lease reaches the worker.
    pub(super) fn claim(&mut self, w: usize, id: ClientId, lease: LeaseId) {
        let token = self.leases[&lease].0;
        let by_handoff = self.clients[&id].by_handoff;
        let worker = &mut self.workers[w];
        let Some(side) = &worker.side else {
            if !by_handoff {
                self.not_started(id);
            }
            return;
        };
        let terms = match side.claim(token, self.now) {
            Ok(terms) => terms,
            Err(_) if self.claims_at_once || by_handoff => return,
            Err(_) => return self.not_started(id),
        };
        assert_eq!((terms.lease, terms.worker_epoch), (lease, side.epoch()), "another lease was claimed");
        assert!(side.claim(token, self.now).is_err(), "lease {lease} was claimed twice");
        let is_free = worker.lease().is_none_or(|held| self.aborted.contains(&held));
        assert!(is_free, "worker {w} has two live leases");
        let mut transaction = Transaction::claimed(self.now, HEAD_TIMEOUT, &terms);
        let head = ReceivedHead { has_body: self.random.percent(30), is_http11: true, is_last: false };
        transaction.on(TransactionEvent::HeadRead(head));
        worker.request = Some(transaction);
        let epoch = side.epoch();
        let request = self.clients[&id].request;
        self.started[request] += 1;
        assert_eq!(self.started[request], 1, "request {request} of client {id} was started twice");
        let (responds, is_slow) = (self.random.percent(70), self.random.percent(10));
        let duration = self.random.millis(if is_slow { 480 } else { 20 });
        if responds {
            self.after(duration / 2, PoolSimEvent::Respond(w, epoch, lease));
        }
        self.after(duration, PoolSimEvent::Finish(w, epoch, lease));
    }
}
