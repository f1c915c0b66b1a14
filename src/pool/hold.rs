//! What holds a worker - an offer, a lease or a request - as a state machine.
//!
//! [`Hold::step`] is its table: one function per state, each with every event. It knows one worker; the pool schedules.
//!
//! ```text
//!        offer            accept             claim
//! Free --------> Offered --------> Granted --------> Busy         redirect
//!  ^  |             |  '-------------------------> HandedOff      handoff: the claim is the answer
//!  |  |             |              claim               ^
//!  |  '-------------+----------------------------------'  a connection of an earlier dispatcher is adopted
//!  |                '--> Revoking: the slot shows whether the worker has claimed the lease
//!  |
//!  '-- Releasing <-- the end of each lease
//! ```
//!
//! The slot has the last word in every state: a lease in it that the pool does not expect is served or ended as well,
//! and the pool's own lease is over when the slot no longer holds it. A request never starts twice, because its client
//! returns to the queue only when the slot shows that no worker can claim the lease any more.

use std::time::Duration;

use super::messages::{ClientId, LeaseEnd, PoolNote, SlotAction};
use super::queue::QueuedClient;
use super::seen_lease::BoundTo::{self, Gone, Living};
use super::seen_lease::SeenLease;
use crate::bounds::DISPATCHER_GRACE;
use crate::ids::{LeaseId, LeaseTerms, Monotonic};
use HoldEvent::{Accepted, Adopted, ClientLeft, QuestionReplaced, Refused, SlotRead};

/// What holds a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Nothing.
    #[default]
    Free,
    /// An offer that it has not answered.
    Offered {
        /// The offer.
        offer: Offer,
        /// When the worker is late.
        answer_by: Monotonic,
    },
    /// An offer that the pool is revoking.
    Revoking(Offer),
    /// A lease that its client has not claimed.
    Granted(Offer),
    /// The same, granted by an earlier dispatcher.
    Recovered {
        /// The lease.
        lease: LeaseId,
        /// When it ends unclaimed.
        claim_by: Monotonic,
    },
    /// A request on a connection that this dispatcher does not hold: the client has connected to the worker, or an
    /// earlier dispatcher has passed the connection and left no duplicate.
    Busy(LeaseId),
    /// A request on a connection that this dispatcher, or an earlier one, has passed, and that this one holds.
    HandedOff {
        /// Its lease.
        lease: LeaseId,
        /// The client of the connection.
        client: ClientId,
        /// When the dispatcher aborts the request.
        abort_at: Monotonic,
    },
    /// A lease that the pool is ending.
    Releasing,
    /// A living worker whose slot does not show what it is doing. The watchdog kills it.
    Corrupt,
}

/// A lease for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The lease.
    pub lease: LeaseId,
    /// The client it is for.
    pub client: QueuedClient,
    /// When it ends unclaimed.
    pub claim_by: Monotonic,
    /// How long its request may take.
    pub request_timeout: Duration,
}

/// The lease of a connection that an earlier dispatcher has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AdoptedLease {
    lease: LeaseId,
    client: ClientId,
    abort_at: Monotonic,
}

/// What concerns the hold on a worker. Time is no event: at a deadline the slot is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HoldEvent {
    /// The worker accepts this offer.
    Accepted(LeaseId, BoundTo),
    /// It refuses this offer.
    Refused(LeaseId),
    /// Another question replaces the offer in the slot: the worker may not answer it.
    QuestionReplaced,
    /// This client has disconnected.
    ClientLeft(ClientId),
    /// The worker has claimed a connection of an earlier dispatcher.
    Adopted(AdoptedLease),
    /// The slot was read. Its answer, if any, is handled before.
    SlotRead(SeenLease),
}

/// The next state, and what follows from the event, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transition {
    pub hold: Hold,
    /// The client of this offer gets the worker.
    pub grant: Option<Offer>,
    pub note: Option<PoolNote>,
    /// The client leaves the worker.
    pub client: Option<Return>,
    pub slot: Option<SlotAction>,
}

/// Where a client goes from its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Return {
    /// Back into the queue.
    Queue(QueuedClient),
    /// With its connection to the dispatcher.
    Dispatcher(ClientId, LeaseId, LeaseEnd),
}

impl Hold {
    pub(super) fn step(self, now: Monotonic, event: HoldEvent) -> Transition {
        match self {
            Hold::Free => self.free(now, event),
            Hold::Offered { offer, answer_by } => self.offered(now, event, offer, answer_by),
            Hold::Revoking(offer) => self.revoking(now, event, offer),
            Hold::Granted(Offer { lease, claim_by, .. }) | Hold::Recovered { lease, claim_by } => {
                self.granted(now, event, lease, claim_by)
            }
            Hold::HandedOff { lease, client, abort_at } => self.handed_off(now, event, lease, client, abort_at),
            Hold::Busy(_) | Hold::Releasing => self.without_client(event),
            Hold::Corrupt => self.corrupt(event),
        }
    }

    fn free(self, now: Monotonic, event: HoldEvent) -> Transition {
        match event {
            // The client of the earlier dispatcher may be about to claim it.
            SlotRead(SeenLease::Offered { lease, worker: Living, inherited: Some(claim_by) }) if now < claim_by => {
                Transition::to(Hold::Recovered { lease, claim_by })
            }
            SlotRead(seen) => follow_slot(seen),
            Adopted(AdoptedLease { lease, client, abort_at }) => {
                Transition::to(Hold::HandedOff { lease, client, abort_at })
            }
            Accepted(..) | Refused(_) | QuestionReplaced | ClientLeft(_) => Transition::to(self),
        }
    }

    fn offered(self, now: Monotonic, event: HoldEvent, offer: Offer, answer_by: Monotonic) -> Transition {
        match event {
            // Counts only while the worker is alive and the client has time left to claim the lease.
            Accepted(lease, Living) if lease == offer.lease && now < offer.claim_by => {
                if offer.client.is_handoff {
                    Transition::to(self) // from the control loop; the serving task answers with its claim
                } else {
                    Transition::to(Hold::Granted(offer)).granting(offer)
                }
            }
            // The claim word, which is handled next, shows whether there is an offer to revoke.
            Accepted(lease, _) | Refused(lease) if lease == offer.lease => Transition::to(Hold::Revoking(offer)),
            Accepted(..) | Refused(_) => Transition::to(self),
            QuestionReplaced => Transition::to(Hold::Revoking(offer)).then(SlotAction::Revoke(offer.lease)),
            ClientLeft(client) if client == offer.client.id => {
                Transition::to(Hold::Releasing).then(SlotAction::Revoke(offer.lease))
            }
            ClientLeft(_) => Transition::to(self),
            Adopted(other) => self.without(other),
            SlotRead(SeenLease::Offered { lease, worker, .. }) if lease == offer.lease => {
                let revoking = Transition::to(Hold::Revoking(offer)).then(SlotAction::Revoke(lease));
                match worker {
                    Living if now < answer_by => Transition::to(self),
                    Living => revoking.noting(PoolNote::Late(lease)),
                    Gone => revoking,
                }
            }
            SlotRead(seen) if seen.claimed() == Some(offer.lease) => offer.claimed(now, event),
            SlotRead(seen) => follow_slot(seen).returning(offer.lost()),
        }
    }

    fn revoking(self, now: Monotonic, event: HoldEvent, offer: Offer) -> Transition {
        match event {
            ClientLeft(client) if client == offer.client.id => Transition::to(Hold::Releasing),
            Adopted(other) => self.without(other),
            Accepted(..) | Refused(_) | QuestionReplaced | ClientLeft(_) => Transition::to(self),
            SlotRead(SeenLease::Offered { lease, .. }) if lease == offer.lease => {
                Transition::to(self).then(SlotAction::Revoke(lease))
            }
            SlotRead(seen @ SeenLease::Revoked(lease)) if lease == offer.lease => {
                follow_slot(seen).returning(Return::Queue(offer.client))
            }
            SlotRead(seen) if seen.claimed() == Some(offer.lease) => offer.claimed(now, event),
            SlotRead(seen) => follow_slot(seen).returning(offer.lost()),
        }
    }

    fn granted(self, now: Monotonic, event: HoldEvent, own: LeaseId, claim_by: Monotonic) -> Transition {
        match event {
            SlotRead(seen @ SeenLease::Offered { lease, worker: Living, .. }) if lease == own => {
                if now < claim_by {
                    Transition::to(self)
                } else {
                    follow_slot(seen).noting(PoolNote::Unclaimed(lease))
                }
            }
            SlotRead(seen) => follow_slot(seen),
            Adopted(other) => self.without(other),
            Accepted(..) | Refused(_) | QuestionReplaced | ClientLeft(_) => Transition::to(self),
        }
    }

    fn handed_off(
        self,
        now: Monotonic,
        event: HoldEvent,
        own: LeaseId,
        client: ClientId,
        abort_at: Monotonic,
    ) -> Transition {
        let is_overdue = abort_at <= now;
        let ended = |end| Return::Dispatcher(client, own, end);
        match event {
            SlotRead(SeenLease::Claimed(lease, Living)) if lease == own && is_overdue => {
                Transition::to(self).then(SlotAction::Abort(lease))
            }
            // The worker bounds its response by request_timeout, and a session by session_timeout.
            SlotRead(
                SeenLease::Claimed(lease, Living)
                | SeenLease::Responding(lease, Living)
                | SeenLease::Upgraded(lease, Living),
            ) if lease == own => Transition::to(self),
            // The dispatcher responds only once it has won this step: the holder of the connection may be alive,
            // whatever its slot shows.
            SlotRead(seen @ SeenLease::Claimed(lease, Gone)) if lease == own => {
                Transition { hold: self, ..follow_slot(seen) }
            }
            SlotRead(seen @ SeenLease::Done(lease)) if lease == own => {
                follow_slot(seen).returning(ended(LeaseEnd::Done))
            }
            SlotRead(seen @ SeenLease::Aborted(lease)) if lease == own => {
                let end = if is_overdue { LeaseEnd::Overdue } else { LeaseEnd::NoResponse };
                follow_slot(seen).returning(ended(end))
            }
            SlotRead(seen) => follow_slot(seen).returning(ended(LeaseEnd::Cut)),
            Adopted(other) => self.without(other),
            Accepted(..) | Refused(_) | QuestionReplaced | ClientLeft(_) => Transition::to(self),
        }
    }

    fn without_client(self, event: HoldEvent) -> Transition {
        match event {
            SlotRead(seen) => follow_slot(seen),
            Adopted(other) => self.without(other),
            Accepted(..) | Refused(_) | QuestionReplaced | ClientLeft(_) => Transition::to(self),
        }
    }

    fn corrupt(self, event: HoldEvent) -> Transition {
        match event {
            SlotRead(SeenLease::Corrupt { .. }) => Transition::to(self), // noted once
            SlotRead(_) | Accepted(..) | Refused(_) | QuestionReplaced | ClientLeft(_) | Adopted(_) => {
                self.without_client(event)
            }
        }
    }

    /// The slot has been read, and the adopted lease was over or another one's: nothing shows how far its worker is.
    fn without(self, adopted: AdoptedLease) -> Transition {
        Transition::to(self).returning(Return::Dispatcher(adopted.client, adopted.lease, LeaseEnd::Cut))
    }

    /// The offer that its worker may claim.
    pub(super) fn offer(&self) -> Option<&Offer> {
        match self {
            Hold::Offered { offer, .. } | Hold::Revoking(offer) | Hold::Granted(offer) => Some(offer),
            Hold::Free | Hold::Recovered { .. } | Hold::Busy(_) | Hold::HandedOff { .. } => None,
            Hold::Releasing | Hold::Corrupt => None,
        }
    }

    /// The client that has an unclaimed lease.
    pub(super) fn unclaimed_by(&self) -> Option<QueuedClient> {
        match self {
            Hold::Offered { offer, .. } | Hold::Granted(offer) => Some(offer.client),
            Hold::Free | Hold::Revoking(_) | Hold::Recovered { .. } | Hold::Busy(_) => None,
            Hold::HandedOff { .. } | Hold::Releasing | Hold::Corrupt => None,
        }
    }

    /// When the slot is read without a ring. `scan`: the next of the regular reads of a leased slot.
    pub(super) fn read_by(&self, scan: Monotonic) -> Option<Monotonic> {
        match *self {
            Hold::Free => None,
            Hold::Offered { answer_by, .. } => Some(answer_by),
            Hold::Granted(Offer { claim_by, .. }) | Hold::Recovered { claim_by, .. } => Some(scan.min(claim_by)),
            Hold::Revoking(_) | Hold::Busy(_) | Hold::HandedOff { .. } | Hold::Releasing | Hold::Corrupt => Some(scan),
        }
    }
}

/// The slot decides alone: the pool has no client to consider.
fn follow_slot(seen: SeenLease) -> Transition {
    match seen {
        SeenLease::Corrupt { .. } => Transition::to(Hold::Corrupt).noting(PoolNote::Corrupt),
        SeenLease::Invalid => Transition::to(Hold::Free).then(SlotAction::Clear),
        // A lease that has ended, or an offer that could not be written.
        SeenLease::Free => Transition::to(Hold::Free),
        SeenLease::Offered { lease, .. } => Transition::to(Hold::Releasing).then(SlotAction::Revoke(lease)),
        SeenLease::Claimed(lease, Living)
        | SeenLease::Responding(lease, Living)
        | SeenLease::Upgraded(lease, Living) => Transition::to(Hold::Busy(lease)),
        SeenLease::Claimed(lease, Gone) => {
            Transition::to(Hold::Releasing).noting(PoolNote::Lost(lease)).then(SlotAction::Abort(lease))
        }
        SeenLease::Responding(lease, Gone) | SeenLease::Upgraded(lease, Gone) => {
            Transition::to(Hold::Releasing).noting(PoolNote::Lost(lease)).then(SlotAction::Reclaim(lease))
        }
        SeenLease::Done(lease) | SeenLease::Revoked(lease) | SeenLease::Aborted(lease) => {
            Transition::to(Hold::Releasing).then(SlotAction::Release(lease))
        }
    }
}

impl AdoptedLease {
    /// Of a connection that was offered under these terms. The time of the claim is not known: it is before `claim_by`,
    /// and has passed.
    pub(super) fn of(now: Monotonic, client: ClientId, terms: &LeaseTerms) -> Self {
        let abort_at = terms.claim_by.min(now) + terms.request_timeout + DISPATCHER_GRACE;
        Self { lease: terms.lease, client, abort_at }
    }
}

impl Offer {
    /// The worker has claimed the lease, also if the offer was being revoked; `event` shows how far it is.
    fn claimed(self, now: Monotonic, event: HoldEvent) -> Transition {
        let hold = if self.client.is_handoff {
            let abort_at = now + self.request_timeout + DISPATCHER_GRACE;
            Hold::HandedOff { lease: self.lease, client: self.client.id, abort_at }
        } else {
            Hold::Busy(self.lease)
        };
        hold.step(now, event).granting(self)
    }

    /// The slot no longer shows what became of the offer. A redirect client, which has received nothing, is queued
    /// again; but a connection may have been claimed and read before the slot was corrupted.
    fn lost(self) -> Return {
        if self.client.is_handoff {
            Return::Dispatcher(self.client.id, self.lease, LeaseEnd::Cut)
        } else {
            Return::Queue(self.client)
        }
    }
}

impl Transition {
    fn to(hold: Hold) -> Self {
        Self { hold, grant: None, note: None, client: None, slot: None }
    }

    fn granting(self, offer: Offer) -> Self {
        Self { grant: Some(offer), ..self }
    }

    fn noting(self, note: PoolNote) -> Self {
        Self { note: Some(note), ..self }
    }

    fn returning(self, client: Return) -> Self {
        Self { client: Some(client), ..self }
    }

    fn then(self, action: SlotAction) -> Self {
        Self { slot: Some(action), ..self }
    }
}

#[cfg(test)]
mod tests;
