//! The dispatcher: performs the actions of the pool on real slots.

use std::collections::BTreeSet;

use super::clients::{Client, ClientState};
use super::{PoolSimEvent, PoolSimulation, WORKERS};
use crate::dispatcher::slot;
use crate::exchange::{self, DispatcherSide};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Monotonic, Phase, ProcessId, Token, WorkerNumber};
use crate::pool::{
    ClientAction, ClientId, Hold, LeaseEnd, Offer, Peer, Pool, PoolAction, PoolEvent, PoolNote, SUSPICION, SlotAction,
};
use crate::worker::transaction::Ending;

impl PoolSimulation {
    /// Attaches to the slots. Returns the clients whose connection was offered and not claimed, and the claimed ones.
    pub(super) fn attach(&mut self) -> (BTreeSet<ClientId>, Vec<(WorkerNumber, ClientId, LeaseTerms)>) {
        let attach = |slot| DispatcherSide::attach(slot, self.epoch, ProcessId { pid: 1, start_time: 1 }, None);
        self.sides = self.workers.iter().map(|worker| attach(worker.slot.clone())).collect();
        let (mut unclaimed, mut claimed) = (BTreeSet::new(), Vec::new());
        for (side, n) in self.sides.iter().zip(WorkerNumber::up_to(WORKERS)) {
            let Some((Claim::Held(lease, phase), terms)) = exchange::terms(side.memory()) else { continue };
            let Some(&(_, Some(client))) = self.leases.get(&lease) else { continue };
            let is_free =
                |side: &DispatcherSide<_>| phase == Phase::Revoked || phase == Phase::Offered && side.revoke(lease);
            if !self.clients[&client].by_handoff {
                continue;
            }
            if is_free(side) {
                unclaimed.insert(client);
            } else {
                claimed.push((n, client, terms));
            }
        }
        (unclaimed, claimed)
    }

    pub(super) fn read_all_slots(&mut self) {
        self.slots_to_read = WorkerNumber::up_to(WORKERS).collect();
        self.read_slots();
    }

    /// Passes an event to the pool and performs its actions.
    pub(crate) fn handle(&mut self, event: PoolEvent) {
        let actions = self.pool.handle(self.now, event);
        for action in actions {
            self.perform(action);
            self.interleave();
        }
        if !matches!(event, PoolEvent::SlotRead(..)) {
            self.read_slots();
        }
    }

    pub(crate) fn read_slots(&mut self) {
        while let Some(n) = self.slots_to_read.pop_front() {
            let w = n.index();
            let view = slot::read_slot(&mut self.sides[w], self.workers[w].is_alive());
            self.handle(PoolEvent::SlotRead(n, view));
        }
    }

    /// Sometimes executes the next event of a worker between two actions of the dispatcher.
    fn interleave(&mut self) {
        if self.random.percent(25)
            && let Some((&key, &event)) = self.events.iter().find(|(_, event)| event.worker().is_some())
        {
            self.events.remove(&key);
            self.execute(event);
        }
    }

    fn perform(&mut self, action: PoolAction) {
        match action {
            PoolAction::Client(client, action) => self.perform_for_client(client, action),
            PoolAction::Slot(n, action) => {
                self.perform_on_slot(n, action);
                let is_read = !matches!(action, SlotAction::Question(_) | SlotAction::Ring);
                if is_read && !self.slots_to_read.contains(&n) {
                    self.slots_to_read.push_back(n);
                }
            }
            PoolAction::Note(_, PoolNote::Corrupt) => panic!("no slot is corrupt here: {action:?}"),
            PoolAction::Note(_, PoolNote::Unclaimed(lease)) => {
                if let Some(&(_, Some(client))) = self.leases.get(&lease) {
                    self.suspects.insert(self.clients[&client].peer, self.now + SUSPICION);
                }
            }
            PoolAction::Note(..) => {}
        }
    }

    fn perform_for_client(&mut self, client: ClientId, action: ClientAction) {
        match action {
            ClientAction::Grant { worker, lease, .. } => self.grant(client, worker, lease),
            ClientAction::LeaseEnded { worker, lease, end } => self.end_connection(client, worker, lease, end),
            ClientAction::Refuse(_) => self.decide(client, ClientState::Over),
        }
    }

    fn perform_on_slot(&mut self, n: WorkerNumber, action: SlotAction) {
        let side = &mut self.sides[n.index()];
        match action {
            SlotAction::Read => {}
            SlotAction::Question(question) => {
                slot::write_question(side, question);
                self.ring(PoolSimEvent::WorkerTurn(n.index()));
            }
            SlotAction::Ring => self.ring(PoolSimEvent::WorkerTurn(n.index())),
            SlotAction::Offer { epoch, lease, claim_by, connection } => {
                self.offer(n, epoch, lease, claim_by, connection);
            }
            SlotAction::Revoke(lease) => {
                if side.revoke(lease)
                    && let Some(&(_, Some(client))) = self.leases.get(&lease)
                {
                    self.clients.get_mut(&client).unwrap().is_lent = false;
                }
            }
            SlotAction::Abort(lease) => {
                if side.abort(lease) {
                    self.aborted.insert(lease);
                }
            }
            SlotAction::DecideSession { lease, is_permitted } => side.decide_session(lease, is_permitted),
            SlotAction::Reclaim(lease) => drop(side.reclaim(lease)),
            SlotAction::Release(lease) => drop(side.release(lease)),
            SlotAction::Clear => panic!("no claim word is corrupt here"),
        }
    }

    fn offer(
        &mut self,
        worker: WorkerNumber,
        epoch: Epoch,
        lease: LeaseId,
        claim_by: Monotonic,
        connection: Option<ClientId>,
    ) {
        let w = worker.index();
        let terms = LeaseTerms {
            lease,
            worker_epoch: epoch,
            dispatcher_epoch: self.epoch,
            token: Token::new(u128::from(self.random.next()) << 64 | u128::from(self.random.next())),
            claim_by,
            request_timeout: self.limits.request_timeout,
            connection: 0,
        };
        let Hold::Offered { offer: Offer { client, lease: offered, .. }, .. } = self.pool.workers()[w].hold else {
            panic!("an offer without a client: {:?}", self.pool.workers()[w])
        };
        assert_eq!(offered, lease);
        self.check_turn(client.id, client.peer);
        let client = client.id;
        let entry = self.clients.get_mut(&client).unwrap();
        assert_eq!(connection, entry.by_handoff.then_some(client));
        assert!(!entry.is_lent, "client {client} is offered to two workers");
        self.offered_again += u64::from(entry.by_handoff && entry.offered);
        (entry.offered, entry.is_lent) = (true, entry.by_handoff);
        let known = self.leases.insert(lease, (terms.token, Some(client)));
        assert!(known.is_none(), "lease {lease} was granted twice");
        if self.sides[w].offer(&terms).is_ok() {
            match connection {
                // The worker receives it, or dies before.
                Some(client) => self.within(2, PoolSimEvent::ReceiveConnection(w, client, lease)),
                None => self.ring(PoolSimEvent::WorkerTurn(w)),
            }
        }
    }

    /// Checks the order of the queue: a client that has not been offered before takes the turn of its peer.
    fn check_turn(&mut self, client: ClientId, peer: Peer) {
        if self.clients[&client].offered {
            return; // it keeps the turn of its first offer
        }
        let is_unsuspected = |peer| self.suspects.get(&peer).is_none_or(|until| *until <= self.now);
        let mut seen = BTreeSet::new();
        for &id in &self.waiting {
            let other = &self.clients[&id];
            if other.offered || !is_unsuspected(other.peer) || !seen.insert(other.peer) {
                continue;
            }
            if other.peer == peer {
                assert!(id >= client, "client {client} overtook {id}");
            } else {
                let turns = self.turns.entry((id, peer)).or_default();
                *turns += 1;
                assert!(*turns <= 1, "client {id} waits for {turns} turns of {peer:?}");
            }
        }
    }

    /// The lease of a connection has ended.
    fn end_connection(&mut self, id: ClientId, worker: WorkerNumber, lease: LeaseId, end: LeaseEnd) {
        let state = std::mem::replace(&mut self.clients.get_mut(&id).unwrap().state, ClientState::Over);
        assert_eq!(state, ClientState::Granted(lease), "client {id} of worker {worker}: {end:?}");
        let is_served = self.workers[worker.index()].lease() == Some(lease);
        match end {
            LeaseEnd::Done | LeaseEnd::NoResponse | LeaseEnd::Cut => {
                assert!(!is_served, "{end:?} of lease {lease}, which its worker still serves")
            }
            LeaseEnd::Overdue => {}
        }
        // One side ends a connection: the worker, or the dispatcher after the worker has left it.
        let ending = self.endings.get(&lease).copied();
        match end {
            LeaseEnd::Done => {
                assert!(ending.is_some_and(|ending| ending != Ending::LeaveOpen), "{ending:?} of {lease}")
            }
            LeaseEnd::NoResponse | LeaseEnd::Overdue => {
                assert!(ending.is_none_or(|ending| ending == Ending::LeaveOpen), "{end:?}, {ending:?} of {lease}");
            }
            LeaseEnd::Cut => {}
        }
        assert_eq!(
            matches!(end, LeaseEnd::Overdue | LeaseEnd::NoResponse),
            self.aborted.contains(&lease),
            "{end:?} of {lease}"
        );
        if self.adopted.remove(&id) {
            *self.ends_of_adopted.entry(format!("{end:?}")).or_default() += 1;
        }
    }

    /// A waiting client gets its verdict.
    pub(super) fn decide(&mut self, client: ClientId, state: ClientState) {
        let client_state = &mut self.clients.get_mut(&client).unwrap().state;
        assert_eq!(*client_state, ClientState::Waiting, "client {client} gets a second verdict: {state:?}");
        *client_state = state;
        self.waiting.remove(&client);
    }

    fn grant(&mut self, client: ClientId, worker: WorkerNumber, lease: LeaseId) {
        self.decide(client, ClientState::Granted(lease));
        self.granted += 1;
        if self.clients[&client].by_handoff {
            assert_eq!(self.started[self.clients[&client].request], 1, "lease {lease} was not claimed");
            return;
        }
        if self.claims_at_once {
            return;
        }
        let w = worker.index();
        match self.random.below(100) {
            0..4 if !self.recovering => {}
            4..10 if !self.recovering => self.within(600, PoolSimEvent::Claim(w, client)),
            _ => self.within(3, PoolSimEvent::Claim(w, client)),
        }
    }

    /// Replaces the dispatcher. Waiting clients come back from the descriptor store, and some that were claimed. Any other
    /// connection of an offered client is closed, because its worker may have it, unless the offer was not claimed.
    pub(crate) fn restart_dispatcher(&mut self) {
        self.epoch = self.epoch.next();
        self.pool = Pool::new(self.limits, self.epoch);
        self.slots_to_read.clear();
        let waiting: Vec<_> = self.waiting.iter().copied().collect();
        for id in &waiting {
            self.decide(*id, ClientState::Over);
        }
        let (unclaimed, claimed) = self.attach();
        self.adopted.clear();
        for (n, client, terms) in claimed {
            if n.index() < self.pool.workers().len() && self.random.percent(50) {
                self.adopt(n, client, terms);
            }
        }
        self.read_all_slots();
        for id in waiting {
            let Client { request, peer, by_handoff, offered, is_lent, .. } = self.clients[&id];
            let comes_back = if by_handoff { !is_lent || unclaimed.contains(&id) } else { !offered };
            if comes_back {
                self.offered_again += u64::from(is_lent);
                self.arrive(request, peer, by_handoff);
            }
        }
    }

    /// The connection of a client comes back from the descriptor store, with its worker.
    fn adopt(&mut self, n: WorkerNumber, client: ClientId, terms: LeaseTerms) {
        self.last_client += 1;
        let id = self.last_client;
        let old = self.clients.get_mut(&client).unwrap();
        old.state = ClientState::Over;
        let adopted = Client { state: ClientState::Granted(terms.lease), ..*old };
        self.clients.insert(id, adopted);
        self.leases.get_mut(&terms.lease).unwrap().1 = Some(id);
        self.adopted.insert(id);
        self.handle(PoolEvent::Adopted(n, id, terms));
    }
}
