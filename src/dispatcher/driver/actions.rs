//! Performs the actions of a pool.

use super::{Driver, Waiter};
use crate::dispatcher::connection::HandoffOutcome;
use crate::dispatcher::pool_slots::{PoolSlots, SlotIndex, WorkerName, WorkerSlot};
use crate::dispatcher::slot;
use crate::ids::{Epoch, LeaseId, LeaseTerms, Monotonic, Token, WorkerId, WorkerNumber};
use crate::log::Event;
use crate::pool::{ClientAction, ClientId, LeaseEnd, PoolAction, SlotAction};

impl Driver {
    /// Performs one action; returns the worker if its slot must be read afterwards.
    pub(super) fn perform(&self, index: usize, pool: &mut PoolSlots, action: PoolAction) -> Option<WorkerNumber> {
        match action {
            PoolAction::Client(client, action) => {
                self.perform_for_client(pool, client, action);
                None
            }
            PoolAction::Slot(n, action) => self.perform_on_slot(pool, (index, n), action).then_some(n),
            PoolAction::Note(n, note) => {
                pool.log_note(n, note);
                None
            }
        }
    }

    fn perform_for_client(&self, pool: &mut PoolSlots, client: ClientId, action: ClientAction) {
        match action {
            ClientAction::Grant { worker, lease, claim_by } => self.grant(pool, client, worker, lease, claim_by),
            ClientAction::LeaseEnded { worker, lease, end } => {
                self.return_connection(pool, client, worker, lease, end);
            }
            ClientAction::Refuse(refusal) => self.resolve(client, Err(refusal)),
        }
    }

    /// Performs a step on a slot; whether the slot must be read afterwards.
    fn perform_on_slot(&self, pool: &mut PoolSlots, at: SlotIndex, action: SlotAction) -> bool {
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

    fn grant(&self, pool: &PoolSlots, client: ClientId, n: WorkerNumber, lease: LeaseId, claim_by: Monotonic) {
        let event = Event::LeaseGranted;
        if let Some(Waiter::Handoff(connection)) = self.waiters.borrow().get(&client) {
            connection.set_claimed();
            let worker = WorkerName(&pool.config.name, n);
            tracing::debug!(%worker, %lease, %event, "worker has claimed the connection");
            return;
        }
        let grant = pool.grant(n, lease, claim_by);
        tracing::debug!(worker = %grant.worker, %lease, %event, "worker is granted to the client");
        self.resolve(client, Ok(grant));
    }

    /// The worker's lease of a connection has ended.
    fn return_connection(
        &self,
        pool: &mut PoolSlots,
        client: ClientId,
        n: WorkerNumber,
        lease: LeaseId,
        end: LeaseEnd,
    ) {
        let waiter = self.waiters.borrow_mut().remove(&client);
        let worker = WorkerId { pool: pool.config.name.clone(), number: n };
        let Some(slot) = pool.slot_mut(n) else { return };
        slot.lent = None;
        if let Some(Waiter::Handoff(connection)) = waiter {
            connection.set_outcome(HandoffOutcome::Ended { worker, end, keep: slot.side.is_connection_kept(lease) });
        }
    }

    fn offer(
        &self,
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
        let terms = LeaseTerms {
            lease,
            worker_epoch: epoch,
            dispatcher_epoch: self.epoch,
            token: slot.token,
            claim_by,
            request_timeout,
            connection: connection.map_or(0, |client| self.mark_of(client)),
        };
        if connection.is_some() {
            // The offer replaces an open ping without a ring; an answer to the ping that is already there still proves
            // that the worker is alive.
            slot.side.supersede();
        }
        self.poll_slot(at, slot);
        if slot.side.offer(&terms).is_ok() {
            let is_same_incarnation = match connection {
                Some(client) => self.send_connection(slot, client, lease),
                None => {
                    slot.doorbell.ring();
                    true
                }
            };
            if is_same_incarnation {
                return false; // the slot is read when the worker rings, or polled
            }
            slot.checked_at = None;
        }
        true
    }

    fn revoke(&self, slot: &mut WorkerSlot, lease: LeaseId) {
        let client = slot.lent.take();
        if slot.side.revoke(lease)
            && let Some(client) = client
            && let Some(Waiter::Handoff(connection)) = self.waiters.borrow().get(&client)
        {
            connection.mark_lent(false);
        }
    }
}
