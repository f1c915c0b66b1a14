//! The result of a client's request for a worker.

use crate::config::ListenAddress;
use crate::ids::{LeaseId, Monotonic, Token, WorkerId};
use crate::pool::Refusal;

/// A worker granted to a redirect client.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub worker: WorkerId,
    pub lease: LeaseId,
    pub token: Token,
    /// Where the worker listens.
    pub address: ListenAddress,
    /// When the lease ends unclaimed.
    pub claim_by: Monotonic,
}

/// A grant, or why there is none.
pub(super) type GrantResult = Result<Grant, Refusal>;
