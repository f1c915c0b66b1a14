//! The states of a slot, each with its number in the segment.

use std::fmt;

use super::LeaseId;

/// The phase of a lease. [`crate::exchange`] lists the steps and the role that makes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The worker has no lease.
    Free = 0,
    /// The dispatcher has offered the worker to a client.
    Offered = 1,
    /// The worker has taken the client's request.
    Claimed = 2,
    /// The worker is about to send, or has sent, the first byte of a response.
    Responding = 3,
    /// The worker has finished.
    Done = 4,
    /// The dispatcher has revoked the offer before a claim.
    Revoked = 5,
    /// The dispatcher has ended a claimed lease: its deadline has passed, or the worker is dead.
    Aborted = 6,
    /// The connection has switched to another protocol: the lease lasts as long as the session. Only after a permission of
    /// the dispatcher, so that one that does not know this phase never sees it.
    Upgraded = 7,
}

impl Phase {
    fn new(raw: u64) -> Option<Self> {
        use Phase::*;
        [Free, Offered, Claimed, Responding, Done, Revoked, Aborted, Upgraded].into_iter().find(|p| *p as u64 == raw)
    }
}

/// The claim word: a lease and its phase in one word, so that one compare-and-swap changes both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// No lease.
    Free,
    /// This lease is in this phase, which is not [`Phase::Free`].
    Held(LeaseId, Phase),
}

impl Claim {
    /// The word: lease id above 8 bits of phase.
    pub(crate) fn word(self) -> u64 {
        match self {
            Claim::Free => 0,
            Claim::Held(lease, phase) => lease.get() << 8 | phase as u64,
        }
    }

    /// Parses a word; `None` if [`Self::word`] never writes it.
    pub(crate) fn new(word: u64) -> Option<Self> {
        match (LeaseId::new(word >> 8), Phase::new(word & 0xff)?) {
            (None, Phase::Free) => Some(Claim::Free),
            (Some(lease), phase) if phase != Phase::Free => Some(Claim::Held(lease, phase)),
            _ => None,
        }
    }

    /// The lease that a worker is serving.
    pub(crate) fn in_service(self) -> Option<LeaseId> {
        match self {
            Claim::Held(lease, Phase::Claimed | Phase::Responding | Phase::Upgraded) => Some(lease),
            Claim::Free | Claim::Held(..) => None,
        }
    }

    /// The lease that a worker is serving, or may still claim.
    pub(crate) fn open(self) -> Option<LeaseId> {
        match self {
            Claim::Held(lease, Phase::Offered) => Some(lease),
            _ => self.in_service(),
        }
    }
}

/// The state that a worker publishes in its life line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// It has attached to the slot but cannot serve yet.
    Starting = 1,
    /// It accepts offers.
    Ready = 2,
    /// It finishes its request and accepts no offer.
    Draining = 3,
    /// Its next incarnation is about to replace it.
    Recycling = 4,
}

impl Lifecycle {
    /// The state stored as `raw`.
    pub(crate) fn new(raw: u64) -> Option<Self> {
        use Lifecycle::*;
        [Starting, Ready, Draining, Recycling].into_iter().find(|s| *s as u64 == raw)
    }
}

/// The planned replacements that have ended within an incarnation: those of its warm process, and failed ones of the
/// process itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Replacements {
    /// Their number over all incarnations. It wraps.
    pub ended: u32,
    /// Whether the last one failed, so that the worker keeps what it had.
    pub last_failed: bool,
}

impl Replacements {
    /// The word: the number above one bit.
    pub(crate) fn word(self) -> u64 {
        u64::from(self.ended) << 1 | u64::from(self.last_failed)
    }

    /// Parses a word; what [`Self::word`] never sets is ignored.
    pub(crate) fn new(word: u64) -> Self {
        Self { ended: (word >> 1) as u32, last_failed: word & 1 != 0 }
    }

    /// How the status of the worker begins (sd_notify(3), `STATUS=`), if the last one failed; the reason follows.
    pub(crate) fn failure_status(self) -> String {
        format!("recycling {} failed: ", self.ended)
    }

    /// After one more.
    pub(crate) fn with(self, failed: bool) -> Self {
        Self { ended: self.ended.wrapping_add(1), last_failed: failed }
    }
}

/// Why a worker refuses an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefuseReason {
    /// It still works for another lease.
    Busy = 1,
    /// It is not ready yet.
    Starting = 2,
    /// It is being taken out of service.
    Draining = 3,
    /// Its next incarnation is about to replace it.
    Recycling = 4,
    /// The question names a lease or an incarnation that is not in the slot.
    Stale = 5,
}

impl RefuseReason {
    /// The reason stored as `raw`.
    pub(crate) fn new(raw: u64) -> Option<Self> {
        use RefuseReason::*;
        [Busy, Starting, Draining, Recycling, Stale].into_iter().find(|r| *r as u64 == raw)
    }
}

impl fmt::Display for RefuseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RefuseReason::Busy => "busy",
            RefuseReason::Starting => "starting",
            RefuseReason::Draining => "draining",
            RefuseReason::Recycling => "recycling",
            RefuseReason::Stale => "stale question",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    #[test]
    fn replacements_parse_their_own_words_and_differ_after_each() {
        for start in [Replacements::default(), Replacements { ended: u32::MAX, last_failed: true }] {
            for failed in [false, true] {
                let next = start.with(failed);
                assert_eq!((Replacements::new(next.word()), next.last_failed), (next, failed));
                assert_ne!(next, start);
            }
        }
        assert_eq!(Replacements::new(u64::MAX), Replacements { ended: u32::MAX, last_failed: true });
    }

    #[test]
    fn a_claim_parses_its_own_words_and_nothing_else() {
        let lease = LeaseId::of(Epoch::FIRST, 7);
        for claim in [
            Claim::Free,
            Claim::Held(lease, Phase::Offered),
            Claim::Held(lease, Phase::Aborted),
            Claim::Held(lease, Phase::Upgraded),
        ] {
            assert_eq!(Claim::new(claim.word()), Some(claim));
        }
        let no_lease = Phase::Claimed as u64;
        let no_phase = lease.get() << 8;
        let unknown_phase = no_phase | 8;
        for word in [no_lease, no_phase, unknown_phase, u64::from(u8::MAX)] {
            assert_eq!(Claim::new(word), None, "{word:#x}");
        }
    }
}
