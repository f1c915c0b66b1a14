//! How the hold on a worker ends, and where its client goes then.

use super::hold::{Hold, RevokingOffer};
use super::lease_table::{Pool, PoolTimer};
use super::messages::{LeaseEnd, PoolAction, Refusal};
use super::queue::QueuedClient;
use crate::bounds::DISPATCHER_GRACE;
use crate::ids::{Claim, LeaseId, Monotonic, Phase, WorkerNumber};

impl Pool {
    /// Decides where the client of an offer goes: to the worker that has claimed the lease, even if the offer was being
    /// revoked; back into the queue once no worker can claim it any more. Therefore its request never starts twice.
    pub(super) fn settle_offer(&mut self, now: Monotonic, n: WorkerNumber, claim: Option<Claim>) {
        let (offer, is_open) = match (self.worker(n).hold, self.worker(n).revoking) {
            (Hold::Offered { lease, client, claim_by, .. }, _) => (RevokingOffer { lease, client, claim_by }, true),
            (_, Some(offer)) => (offer, false),
            _ => return,
        };
        let RevokingOffer { lease, client, claim_by } = offer;
        match claim {
            Some(Claim::Held(held, Phase::Offered)) if held == lease => return,
            Some(Claim::Held(held, Phase::Claimed | Phase::Responding | Phase::Done | Phase::Aborted))
                if held == lease =>
            {
                self.worker(n).missed_offer = false;
                if client.is_handoff {
                    let abort_at = now + self.limits.request_timeout + DISPATCHER_GRACE;
                    self.worker(n).hold = Hold::Busy { lease, connection: Some((client.id, abort_at)) };
                } else if is_open {
                    self.worker(n).hold = Hold::Granted { lease, client: Some(client), claim_by };
                }
                self.grant(now, n, client, lease, claim_by);
            }
            _ if is_open => return,
            Some(Claim::Held(held, Phase::Revoked)) if held == lease => self.requeue(now, client),
            _ => self.drop_offer(now, n, lease, client),
        }
        self.worker(n).revoking = None;
    }

    /// Ends the hold with one more step on the slot.
    pub(super) fn end_hold(&mut self, now: Monotonic, n: WorkerNumber, step: PoolAction) {
        self.clear_hold(now, n);
        self.worker(n).hold = Hold::Releasing;
        self.actions.push(step);
    }

    /// The worker is held by nothing any more; a client that has not got it returns to the queue.
    pub(super) fn clear_hold(&mut self, now: Monotonic, n: WorkerNumber) {
        let hold = self.worker(n).hold;
        self.uncount_unclaimed(n);
        self.end_connection(n, hold.lease(), LeaseEnd::Cut);
        self.worker(n).hold = Hold::Free;
        if let Hold::Offered { lease, client, .. } = hold {
            self.drop_offer(now, n, lease, client);
        }
    }

    /// The slot no longer shows what became of an offer. A redirect client, which has received nothing, is queued
    /// again; but a connection may have been claimed and read before the slot was corrupted.
    fn drop_offer(&mut self, now: Monotonic, n: WorkerNumber, lease: LeaseId, client: QueuedClient) {
        if client.is_handoff {
            let end = LeaseEnd::Cut;
            self.actions.push(PoolAction::LeaseEnded { client: client.id, worker: n, lease, end });
        } else {
            self.requeue(now, client);
        }
    }

    /// Returns the connection that the worker has claimed, if there is one, to the dispatcher. `seen` is the lease in
    /// the slot.
    pub(super) fn end_connection(&mut self, n: WorkerNumber, seen: Option<LeaseId>, end: LeaseEnd) {
        if let Hold::Busy { lease, connection: Some((client, _)) } = self.worker(n).hold {
            let end = if seen == Some(lease) { end } else { LeaseEnd::Cut };
            self.worker(n).hold = Hold::Busy { lease, connection: None };
            self.actions.push(PoolAction::LeaseEnded { client, worker: n, lease, end });
        }
    }

    /// The pool itself ends this offer or grant.
    pub(super) fn start_release(&mut self, n: WorkerNumber, lease: LeaseId) {
        debug_assert_eq!(self.worker(n).hold.lease(), Some(lease));
        self.uncount_unclaimed(n);
        self.worker(n).hold = Hold::Releasing;
    }

    /// The pool ends this offer; its client gets another worker unless this one has claimed the lease first.
    pub(super) fn revoke_offer(&mut self, n: WorkerNumber) {
        if let Hold::Offered { lease, client, claim_by, .. } = self.worker(n).hold {
            self.start_release(n, lease);
            self.worker(n).revoking = Some(RevokingOffer { lease, client, claim_by });
        }
    }

    /// The lease of the hold no longer counts as unclaimed.
    fn uncount_unclaimed(&mut self, n: WorkerNumber) {
        match self.worker(n).hold {
            Hold::Offered { client, .. } | Hold::Granted { client: Some(client), .. } => {
                self.queue.count_unclaimed(client, -1);
            }
            _ => {}
        }
    }

    pub(super) fn grant(
        &mut self,
        now: Monotonic,
        n: WorkerNumber,
        client: QueuedClient,
        lease: LeaseId,
        claim_by: Monotonic,
    ) {
        self.counters.times.record(now.since(client.since));
        self.actions.push(PoolAction::Grant { client: client.id, worker: n, lease, claim_by });
    }

    /// Queues the client of a failed offer again, within its original time limit.
    fn requeue(&mut self, now: Monotonic, client: QueuedClient) {
        if self.stopping {
            self.actions.push(PoolAction::Refuse(client.id, Refusal::Stopping));
        } else if client.due <= now && self.limits.queue > 0 {
            self.actions.push(PoolAction::Refuse(client.id, Refusal::QueueTimeout(now.since(client.since))));
        } else {
            self.queue.push(client);
            self.timers.insert((client.due, PoolTimer::Client(client.id)));
        }
    }
}
