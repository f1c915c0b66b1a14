//! What holds a worker: an offer, a lease, a request.

use super::messages::ClientId;
use super::queue::Waiting;
use crate::ids::{LeaseId, Monotonic};

/// What a worker is held by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// Nothing.
    #[default]
    Free,
    /// An offer it has not answered.
    Asked {
        /// The offered lease.
        lease: LeaseId,
        /// For whom.
        client: Waiting,
        /// When it is late.
        until: Monotonic,
        /// When the lease ends unclaimed.
        claim_by: Monotonic,
    },
    /// A lease its client has not used. Without a client it was given by an earlier dispatcher.
    Granted {
        /// The lease.
        lease: LeaseId,
        /// For whom.
        client: Option<Waiting>,
        /// When it ends unclaimed.
        claim_by: Monotonic,
    },
    /// A request.
    Busy {
        /// By which lease.
        lease: LeaseId,
        /// On whose connection, if that was handed over, and when it is answered in the worker's place.
        connection: Option<(ClientId, Monotonic)>,
    },
    /// A lease that the pool is ending.
    Ending,
}

impl Hold {
    /// The lease it is held by.
    pub fn lease(&self) -> Option<LeaseId> {
        match self {
            Hold::Asked { lease, .. } | Hold::Granted { lease, .. } | Hold::Busy { lease, .. } => Some(*lease),
            Hold::Free | Hold::Ending => None,
        }
    }
}

/// An offer that is being taken back. Where its client belongs is known once the slot says who was faster.
#[derive(Clone, Copy, Debug)]
pub struct RevokingOffer {
    pub lease: LeaseId,
    pub client: Waiting,
    pub claim_by: Monotonic,
}
