//! Performs the actions of a pool.

use std::os::fd::AsFd;

use super::busy_poll::BusyPoll;
use super::waiters::Waiters;
use crate::dispatcher::connection::HandoffOutcome;
use crate::dispatcher::pool_slots::{PoolSlots, SlotIndex, WorkerName};
use crate::dispatcher::slot;
use crate::dispatcher::token_source::TokenSource;
use crate::dispatcher::worker_slot::WorkerSlot;
use crate::ids::{Epoch, LeaseId, LeaseTerms, Monotonic, Token, WorkerId, WorkerNumber};
use crate::log::Event;
use crate::pool::{ClientAction, ClientId, LeaseEnd, PoolAction, PoolNote, SlotAction};

/// What is needed for them, in all pools.
pub(super) struct ActionPerformer {
    /// The dispatcher's incarnation.
    epoch: Epoch,
    tokens: TokenSource,
    pub waiters: Waiters,
    pub busy_poll: BusyPoll,
}

impl ActionPerformer {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self { epoch, tokens: TokenSource::default(), waiters: Waiters::default(), busy_poll: BusyPoll::default() }
    }

    /// Performs one action of the pool at `index`; returns the worker if its slot must be read afterwards.
    pub(super) fn perform(&mut self, index: usize, pool: &mut PoolSlots, action: PoolAction) -> Option<WorkerNumber> {
        match action {
            PoolAction::Client(client, action) => {
                self.perform_for_client(pool, client, action);
                None
            }
            PoolAction::Slot(n, action) => self.perform_on_slot(pool, (index, n), action).then_some(n),
            PoolAction::Note(n, note) => {
                pool.log_note(n, note);
                if note == PoolNote::Corrupt
                    && let Some(slot) = pool.slot(n)
                {
                    // The next incarnation must not attach before the segment is recreated.
                    slot.segment.invalidate();
                }
                None
            }
        }
    }

    fn perform_for_client(&mut self, pool: &mut PoolSlots, client: ClientId, action: ClientAction) {
        match action {
            ClientAction::Grant { worker, lease, claim_by } => self.grant(pool, client, worker, lease, claim_by),
            ClientAction::LeaseEnded { worker, lease, end } => {
                self.return_connection(pool, client, worker, lease, end);
            }
            ClientAction::Refuse(refusal) => self.waiters.resolve(client, Err(refusal)),
        }
    }

    /// Performs a step on a slot; whether the slot must be read afterwards.
    fn perform_on_slot(&mut self, pool: &mut PoolSlots, at: SlotIndex, action: SlotAction) -> bool {
        let (_, n) = at;
        let Some(slot) = pool.slot_mut(n) else { return false };
        match action {
            SlotAction::Read => true,
            SlotAction::Question(question) => {
                slot::write_question(&mut slot.side, question);
                slot.doorbell.ring();
                false
            }
            SlotAction::Ring => {
                slot.doorbell.ring();
                false
            }
            SlotAction::Offer { epoch, lease, claim_by, connection } => {
                self.offer(pool, at, epoch, lease, claim_by, connection)
            }
            SlotAction::Revoke(lease) => {
                self.revoke(slot, lease);
                true
            }
            SlotAction::Abort(lease) => {
                slot.side.abort(lease);
                true
            }
            SlotAction::DecideSession { lease, is_permitted } => {
                slot.side.decide_session(lease, is_permitted);
                slot.doorbell.ring();
                false
            }
            SlotAction::Reclaim(lease) => {
                slot.side.reclaim(lease);
                true
            }
            SlotAction::Release(lease) => {
                if slot.side.release(lease) {
                    let worker = WorkerName(&pool.config.name, n);
                    tracing::debug!(%worker, %lease, event = %Event::LeaseOver, "lease is released");
                }
                true
            }
            SlotAction::Clear => {
                slot.side.clear();
                true
            }
        }
    }

    fn grant(&mut self, pool: &PoolSlots, client: ClientId, n: WorkerNumber, lease: LeaseId, claim_by: Monotonic) {
        let event = Event::LeaseGranted;
        if let Some(connection) = self.waiters.connection(client) {
            connection.set_claimed();
            let worker = WorkerName(&pool.config.name, n);
            tracing::debug!(%worker, %lease, %event, "worker has claimed the connection");
            return;
        }
        let grant = pool.grant(n, lease, claim_by);
        tracing::debug!(worker = %grant.worker, %lease, %event, "worker is granted to the client");
        self.waiters.resolve(client, Ok(grant));
    }

    /// The worker's lease of a connection has ended.
    fn return_connection(
        &mut self,
        pool: &mut PoolSlots,
        client: ClientId,
        n: WorkerNumber,
        lease: LeaseId,
        end: LeaseEnd,
    ) {
        let worker = WorkerId { pool: pool.config.name.clone(), number: n };
        let Some(slot) = pool.slot_mut(n) else {
            self.waiters.remove(client);
            return;
        };
        slot.lent = None;
        let keep = slot.side.is_connection_kept(lease);
        self.waiters.end(client, HandoffOutcome::Ended { worker, end, keep });
    }

    /// Makes an offer; whether the slot must be read, because it cannot be made or the worker is another incarnation.
    fn offer(
        &mut self,
        pool: &mut PoolSlots,
        at: SlotIndex,
        epoch: Epoch,
        lease: LeaseId,
        claim_by: Monotonic,
        connection: Option<ClientId>,
    ) -> bool {
        let (_, n) = at;
        let event = Event::LeaseOffered;
        tracing::debug!(worker = %WorkerName(&pool.config.name, n), %lease, %epoch, %event, "lease is offered");
        let request_timeout = pool.config.request_timeout;
        let Some(slot) = pool.slot_mut(n) else { return false };
        slot.token = Token::new(self.tokens.bits());
        let mark = connection.and_then(|client| self.waiters.connection(client)).map_or(0, |lent| lent.mark());
        let terms = LeaseTerms {
            lease,
            worker_epoch: epoch,
            dispatcher_epoch: self.epoch,
            token: slot.token,
            claim_by,
            request_timeout,
            connection: mark,
        };
        if connection.is_some() {
            // The offer replaces an open ping without a ring; an answer to the ping that is already there still proves
            // that the worker is alive.
            slot.side.supersede();
        }
        self.busy_poll.add(at, slot);
        if slot.side.offer(&terms).is_err() {
            return true;
        }
        // Otherwise the slot is read when the worker rings, or polled.
        match connection {
            Some(client) => {
                let is_same_incarnation = self.send_connection(slot, at, client, lease);
                if !is_same_incarnation {
                    slot.checked_at = None;
                }
                !is_same_incarnation
            }
            None => {
                slot.doorbell.ring();
                false
            }
        }
    }

    /// Passes a connection to the worker it is offered to; one that cannot be sent is offered to another worker after
    /// `offer_timeout`. Returns whether the worker is the incarnation that received the previous connection.
    fn send_connection(&self, slot: &mut WorkerSlot, at: SlotIndex, client: ClientId, lease: LeaseId) -> bool {
        let Some(connection) = self.waiters.connection(client) else { return true }; // it is leaving the queue
        slot.lent = Some(client);
        connection.mark_lent(Some(at));
        let message = connection.handoff_message(lease, slot.token);
        let sent = slot.handoff_sender.send(&message.encode(), connection.as_fd());
        if let Err(error) = &sent {
            tracing::debug!(%lease, %error, "the connection cannot be passed to the worker");
        }
        sent.unwrap_or(false)
    }

    fn revoke(&self, slot: &mut WorkerSlot, lease: LeaseId) {
        let client = slot.lent.take();
        if slot.side.revoke(lease)
            && let Some(client) = client
            && let Some(connection) = self.waiters.connection(client)
        {
            connection.mark_lent(None);
        }
    }
}
