//! One worker as the pool knows it.

use super::hold::Hold;
use super::messages::SlotView;
use crate::ids::{Claim, Epoch, LeaseId, Lifecycle, Monotonic, Phase, Replacements};

/// One worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Worker {
    /// Its last known incarnation.
    pub epoch: Option<Epoch>,
    /// Whether that incarnation is alive.
    pub up: bool,
    /// The state it reports.
    pub state: Option<Lifecycle>,
    /// Whether an operator keeps it out of service.
    pub drained: bool,
    /// What holds it.
    pub hold: Hold,
    /// Since when a question has been open.
    pub silent_since: Option<Monotonic>,
    /// Since when no incarnation has completed its start.
    pub starting_since: Option<Monotonic>,
    /// Whether its slot has been read since the start of this dispatcher.
    was_seen: bool,
    /// The lease that has the permission for a session.
    pub(super) session: Option<LeaseId>,
    pub(super) missed_offer: MissedOffer,
    pub(super) wants_recycle: bool,
    /// Whether an operator has requested that this incarnation is recycled.
    pub recycle_requested: bool,
    pub(super) replacements: Replacements,
    pub(super) in_idle_list: bool,
    pub(super) timer: Option<Monotonic>,
}

/// What a worker has shown since it missed an offer. Its control loop answers, and its serving task claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum MissedOffer {
    /// Both, or it has missed none.
    #[default]
    None,
    /// Nothing.
    Silent,
    /// Its control loop works; its serving task may still hang, which the next claim shows.
    Answered,
    /// Its serving task works.
    Claimed,
}

impl MissedOffer {
    pub(super) fn answered(self) -> Self {
        match self {
            Self::None | Self::Claimed => Self::None,
            Self::Silent | Self::Answered => Self::Answered,
        }
    }

    pub(super) fn claimed(self) -> Self {
        match self {
            Self::None | Self::Answered => Self::None,
            Self::Silent | Self::Claimed => Self::Claimed,
        }
    }
}

impl Worker {
    /// Whether it missed an offer and has not answered since.
    pub(crate) fn is_late(&self) -> bool {
        matches!(self.missed_offer, MissedOffer::Silent | MissedOffer::Claimed)
    }

    /// Whether it missed an offer and has not claimed a lease since.
    pub(super) fn may_hang(&self) -> bool {
        matches!(self.missed_offer, MissedOffer::Silent | MissedOffer::Answered)
    }

    /// Whether it is alive and its slot holds what the protocol does not allow.
    pub(crate) fn is_corrupt(&self) -> bool {
        self.hold == Hold::Corrupt
    }

    /// Whether it may have a session that the dispatcher cannot see.
    pub(super) fn may_have_unknown_session(&self) -> bool {
        !self.was_seen || self.is_corrupt()
    }

    /// Whether a lease holds it.
    pub(crate) fn is_held(&self) -> bool {
        !matches!(self.hold, Hold::Free | Hold::Corrupt)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state == Some(Lifecycle::Ready) && !self.drained && self.is_free()
    }

    fn is_free(&self) -> bool {
        self.up && !self.is_late() && self.hold == Hold::Free
    }

    /// Whether its recycling is wanted, and no request prevents it. A worker that is out of service stays so.
    pub(super) fn is_due_for_recycling(&self) -> bool {
        let is_out_of_service = self.drained && self.state == Some(Lifecycle::Draining) && self.is_free();
        (self.wants_recycle || self.recycle_requested) && (self.is_idle() || is_out_of_service)
    }

    /// The incarnation that is alive.
    pub(super) fn living(&self) -> Option<Epoch> {
        self.epoch.filter(|_| self.up)
    }

    pub(super) fn observe_life(&mut self, now: Monotonic, seen: &SlotView) {
        let epoch = seen.life.map(|(epoch, ..)| epoch);
        let changed = epoch != self.epoch;
        self.was_seen = true;
        self.drained = seen.drained;
        self.up = seen.alive && epoch.is_some();
        self.epoch = epoch;
        self.state = seen.life.map(|(_, state, _)| state);
        self.wants_recycle = seen.life.is_some_and(|(.., wants)| wants);
        self.replacements = seen.replacements;
        // One whose permission was withdrawn counts until its end.
        let is_permitted = |lease: &LeaseId| {
            seen.session.decided == Some((*lease, true)) || seen.claim == Some(Claim::Held(*lease, Phase::Upgraded))
        };
        self.session = seen.claim.and_then(Claim::in_service).filter(is_permitted);
        let serves = self.up && self.state != Some(Lifecycle::Starting);
        // Each incarnation has its own start.
        let known = self.starting_since.filter(|_| !changed);
        self.starting_since = (!serves).then(|| known.unwrap_or(now));
        // It was requested for an incarnation that has ended.
        self.recycle_requested &= !changed;
        if changed || !self.up {
            self.missed_offer = MissedOffer::None;
            self.silent_since = None;
        }
    }
}
