//! The states that dispatcher and worker tell each other through a slot, each with its number on the wire.

use std::fmt;
use std::time::Duration;

use super::{Epoch, LeaseId, Monotonic, Token};

/// How far a lease has come. Who may make which step is said in [`crate::exchange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody holds the worker.
    Free = 0,
    /// The dispatcher has promised it to a client.
    Offered = 1,
    /// The worker has taken the client's request.
    Claimed = 2,
    /// The worker is about to send, or has sent, the first byte of a response.
    Responding = 3,
    /// The worker has finished.
    Done = 4,
    /// The dispatcher took the offer back in time.
    Revoked = 5,
    /// The dispatcher ended a claimed lease: deadline, or the worker is dead.
    Aborted = 6,
}

impl Phase {
    fn new(raw: u64) -> Option<Self> {
        use Phase::*;
        [Free, Offered, Claimed, Responding, Done, Revoked, Aborted].into_iter().find(|p| *p as u64 == raw)
    }
}

/// The claim word: a lease and its phase in one word, so that one compare-and-swap changes both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// No lease.
    Free,
    /// This lease is in this phase, which is not [`Phase::Free`].
    Held(LeaseId, Phase),
}

impl Claim {
    /// The word: lease id above 8 bits of phase.
    pub fn word(self) -> u64 {
        match self {
            Claim::Free => 0,
            Claim::Held(lease, phase) => lease.get() << 8 | phase as u64,
        }
    }

    /// Reads a word; `None` if it is not one that [`Self::word`] writes.
    pub fn new(word: u64) -> Option<Self> {
        match (LeaseId::new(word >> 8), Phase::new(word & 0xff)?) {
            (None, Phase::Free) => Some(Claim::Free),
            (Some(lease), phase) if phase != Phase::Free => Some(Claim::Held(lease, phase)),
            _ => None,
        }
    }
}

/// What a lease says: which lives it binds, its secret and its bounds.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTerms {
    /// The lease.
    pub lease: LeaseId,
    /// The worker's incarnation it was given on; any other must refuse it.
    pub worker_epoch: Epoch,
    /// The dispatcher's incarnation that gave it.
    pub dispatcher_epoch: Epoch,
    /// The client's proof.
    pub token: Token,
    /// When an unclaimed lease ends.
    pub claim_by: Monotonic,
    /// How long the request may take from the claim on.
    pub request_timeout: Duration,
    /// The mark of the connection that is handed over with it; 0 without one. A dispatcher that finds a connection in
    /// the supervisor's store knows by it which lease that was lent with.
    pub connection: u32,
}

/// What a worker says of itself in its life line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// It has taken the slot but cannot serve yet.
    Starting = 1,
    /// It answers offers.
    Ready = 2,
    /// It finishes what it has and takes nothing new.
    Draining = 3,
    /// It is being replaced by its own next incarnation.
    Recycling = 4,
}

impl Lifecycle {
    /// The state stored as `raw`.
    pub fn new(raw: u64) -> Option<Self> {
        use Lifecycle::*;
        [Starting, Ready, Draining, Recycling].into_iter().find(|s| *s as u64 == raw)
    }
}

/// Why a worker refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefuseReason {
    /// It still works for another lease.
    Busy = 1,
    /// It is not ready yet.
    Starting = 2,
    /// It is being taken out of service.
    Draining = 3,
    /// It is being replaced by its next incarnation.
    Recycling = 4,
    /// The question names a lease or an incarnation that is not in the slot.
    Stale = 5,
}

impl RefuseReason {
    /// The reason stored as `raw`.
    pub fn new(raw: u64) -> Option<Self> {
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

    #[test]
    fn a_claim_reads_what_it_writes_and_refuses_the_rest() {
        let lease = LeaseId::of(Epoch::FIRST, 7);
        for claim in [Claim::Free, Claim::Held(lease, Phase::Offered), Claim::Held(lease, Phase::Aborted)] {
            assert_eq!(Claim::new(claim.word()), Some(claim));
        }
        let no_lease = Phase::Claimed as u64;
        let no_phase = lease.get() << 8;
        let unknown_phase = no_phase | 7;
        for word in [no_lease, no_phase, unknown_phase, u64::from(u8::MAX)] {
            assert_eq!(Claim::new(word), None, "{word:#x}");
        }
    }
}
