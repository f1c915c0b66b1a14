//! What holds a worker: an offer, a lease or a request.

use super::messages::ClientId;
use super::queue::QueuedClient;
use crate::ids::{LeaseId, Monotonic};

/// What holds a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Nothing.
    #[default]
    Free,
    /// An offer that it has not answered.
    Offered {
        /// The offered lease.
        lease: LeaseId,
        /// The client it is for.
        client: QueuedClient,
        /// When the worker is late.
        answer_by: Monotonic,
        /// When the lease ends unclaimed.
        claim_by: Monotonic,
    },
    /// A lease that its client has not claimed.
    Granted {
        /// The lease.
        lease: LeaseId,
        /// The client; `None` if an earlier dispatcher granted the lease.
        client: Option<QueuedClient>,
        /// When the lease ends unclaimed.
        claim_by: Monotonic,
    },
    /// A request.
    Busy {
        /// Its lease.
        lease: LeaseId,
        /// With handoff delivery: the client of the connection, and when the dispatcher aborts the request.
        connection: Option<(ClientId, Monotonic)>,
    },
    /// A lease that the pool is ending.
    Releasing,
}

impl Hold {
    /// The lease of the offer, grant or request.
    pub(crate) fn lease(&self) -> Option<LeaseId> {
        match self {
            Hold::Offered { lease, .. } | Hold::Granted { lease, .. } | Hold::Busy { lease, .. } => Some(*lease),
            Hold::Free | Hold::Releasing => None,
        }
    }
}

/// An offer that is being revoked. The slot decides where its client goes: the worker may have claimed it already.
#[derive(Clone, Copy, Debug)]
pub(super) struct RevokingOffer {
    pub lease: LeaseId,
    pub client: QueuedClient,
    pub claim_by: Monotonic,
}
