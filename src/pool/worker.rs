//! One worker as the pool knows it.

use super::hold::{Hold, RevokingOffer};
use super::messages::ClientId;
use crate::ids::{Epoch, Lifecycle, Monotonic};

/// One worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Worker {
    /// Its last known incarnation.
    pub epoch: Option<Epoch>,
    /// Whether that incarnation is alive.
    pub up: bool,
    /// The state it reports.
    pub state: Option<Lifecycle>,
    /// Whether it missed an offer and has not answered since.
    pub late: bool,
    /// Whether an operator keeps it out of service.
    pub drained: bool,
    /// What holds it.
    pub hold: Hold,
    /// Whether it is alive and its slot holds what the protocol does not allow.
    pub corrupt: bool,
    /// Since when a question has been open.
    pub silent_since: Option<Monotonic>,
    /// Since when no incarnation has completed its start.
    pub starting_since: Option<Monotonic>,
    pub(super) revoking: Option<RevokingOffer>,
    pub(super) wants_recycle: bool,
    pub(super) in_idle_list: bool,
    /// Missed an offer and has not claimed a lease since.
    pub(super) missed_offer: bool,
    pub(super) timer: Option<Monotonic>,
}

impl Worker {
    pub(super) fn is_idle(&self) -> bool {
        self.up && self.state == Some(Lifecycle::Ready) && !self.late && !self.drained && self.hold == Hold::Free
    }

    /// A disconnected client needs no other worker when its offer has been revoked.
    pub(super) fn forget_client(&mut self, client: ClientId) {
        self.revoking = self.revoking.filter(|revoking| revoking.client.id != client);
    }
}
