//! One worker as the pool sees it.

use super::hold::{Hold, RevokingOffer};
use super::messages::ClientId;
use crate::ids::{Epoch, Lifecycle, Monotonic};

/// One worker.
#[derive(Clone, Debug, Default)]
pub struct Worker {
    /// Its last known incarnation.
    pub epoch: Option<Epoch>,
    /// Whether that incarnation lives.
    pub up: bool,
    /// What it says of itself.
    pub state: Option<Lifecycle>,
    /// Whether it has missed an offer and not answered since.
    pub late: bool,
    /// Whether an operator keeps it out of service.
    pub drained: bool,
    /// What holds it.
    pub hold: Hold,
    /// Whether it lives and its slot holds what no honest writer writes.
    pub corrupt: bool,
    /// Since when a question of ours has had no answer.
    pub silent_since: Option<Monotonic>,
    /// Since when no incarnation has been there that is through with its start.
    pub starting_since: Option<Monotonic>,
    pub(super) taken_back: Option<RevokingOffer>,
    pub(super) wants_recycle: bool,
    pub(super) listed: bool,
    /// Whether nobody has met it since it missed an offer.
    pub(super) shunned: bool,
    pub(super) timer: Option<Monotonic>,
}

impl Worker {
    pub(super) fn is_idle(&self) -> bool {
        self.up && self.state == Some(Lifecycle::Ready) && !self.late && !self.drained && self.hold == Hold::Free
    }

    /// The client does not wait for the end of an offer any more.
    pub(super) fn forget(&mut self, client: ClientId) {
        self.taken_back = self.taken_back.filter(|back| back.client.id != client);
    }
}
