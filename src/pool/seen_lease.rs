//! What the content of a slot means for the lease in it.

use super::messages::SlotView;
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Monotonic, Phase};

/// What a slot shows of its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SeenLease {
    /// The worker is alive, and the slot does not show which lease it serves. `claimed`: the lease in the claim word.
    Corrupt {
        claimed: Option<LeaseId>,
    },
    /// The worker is dead, and the claim word is invalid.
    Invalid,
    /// No lease.
    Free,
    /// `inherited`: when the offer of an earlier dispatcher ends.
    Offered {
        lease: LeaseId,
        worker: BoundTo,
        inherited: Option<Monotonic>,
    },
    Claimed(LeaseId, BoundTo),
    Responding(LeaseId, BoundTo),
    Upgraded(LeaseId, BoundTo),
    Done(LeaseId),
    Revoked(LeaseId),
    Aborted(LeaseId),
}

/// The incarnation that the terms of a lease name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BoundTo {
    /// The one that is alive.
    Living,
    /// An earlier one, or none.
    Gone,
}

impl BoundTo {
    pub(super) fn of(terms: Option<LeaseTerms>, living: Option<Epoch>) -> Self {
        let is_living = terms.is_some_and(|terms| living == Some(terms.worker_epoch));
        if is_living { Self::Living } else { Self::Gone }
    }
}

impl SeenLease {
    /// `own`: the epoch of this dispatcher.
    pub(super) fn of(seen: &SlotView, worker: BoundTo, own: Epoch) -> Self {
        let is_readable = seen.life.is_some() && seen.terms.is_some();
        match seen.claim {
            None if seen.alive => Self::Corrupt { claimed: None },
            None => Self::Invalid,
            Some(Claim::Free) => Self::Free,
            Some(Claim::Held(lease, phase)) => match phase {
                Phase::Claimed | Phase::Responding | Phase::Upgraded if seen.alive && !is_readable => {
                    Self::Corrupt { claimed: Some(lease) }
                }
                Phase::Free => Self::Free,
                Phase::Offered => {
                    let earlier = seen.terms.filter(|terms| terms.dispatcher_epoch != own);
                    Self::Offered { lease, worker, inherited: earlier.map(|terms| terms.claim_by) }
                }
                Phase::Claimed => Self::Claimed(lease, worker),
                Phase::Responding => Self::Responding(lease, worker),
                Phase::Upgraded => Self::Upgraded(lease, worker),
                Phase::Done => Self::Done(lease),
                Phase::Revoked => Self::Revoked(lease),
                Phase::Aborted => Self::Aborted(lease),
            },
        }
    }

    /// The lease that the worker has claimed, whatever became of it then.
    pub(super) fn claimed(self) -> Option<LeaseId> {
        match self {
            Self::Corrupt { claimed } => claimed,
            Self::Claimed(lease, _) | Self::Responding(lease, _) | Self::Upgraded(lease, _) => Some(lease),
            Self::Done(lease) | Self::Aborted(lease) => Some(lease),
            Self::Invalid | Self::Free | Self::Offered { .. } | Self::Revoked(_) => None,
        }
    }
}
