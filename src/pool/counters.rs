//! What a pool has done, in numbers: counted where it is said, so that no decision has to count itself.

use super::{Action, Note, Refusal};
use crate::stats::Tally;

const GRANTED: &str = "granted";
/// Granted, and not used within `claim_timeout`.
const EXPIRED: &str = "expired";
/// Taken back before that: its worker was late, drained or dead, or its client had gone.
const REVOKED: &str = "revoked";
/// Planned replacements of workers.
pub(super) const RECYCLED: &str = "recycled";

/// Nothing yet, under every name there is.
pub(super) fn zero() -> Tally {
    let (bound, waited) = (0, std::time::Duration::ZERO);
    let refusals = [
        Refusal::QueueFull(bound),
        Refusal::QueueTimeout(waited),
        Refusal::NobodyFree,
        Refusal::OutOfService,
        Refusal::Failed,
        Refusal::Stopping,
    ];
    let names = [GRANTED, EXPIRED, REVOKED, RECYCLED].into_iter().chain(refusals.map(Refusal::counted_as));
    Tally::new(names.map(|name| (name, 0)))
}

/// Counts what a pool has just said.
pub(super) fn take_in(tally: &mut Tally, said: &[Action]) {
    let mut expired = None;
    for action in said {
        match action {
            Action::Grant { .. } => tally.count(GRANTED),
            Action::Refuse(_, refusal) => tally.count(refusal.counted_as()),
            Action::Note(_, Note::Unclaimed(lease)) => {
                tally.count(EXPIRED);
                expired = Some(*lease);
            }
            // What has expired is taken back in the same breath.
            Action::Revoke(_, lease) if expired != Some(*lease) => tally.count(REVOKED),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, LeaseId};

    #[test]
    fn what_has_expired_is_not_revoked_as_well() {
        let lease = |n| LeaseId::of(Epoch::FIRST, n);
        let mut tally = zero();
        take_in(&mut tally, &[Action::Note(1, Note::Unclaimed(lease(1))), Action::Revoke(1, lease(1))]);
        take_in(&mut tally, &[Action::Note(1, Note::Late(lease(2))), Action::Revoke(1, lease(2))]);
        take_in(&mut tally, &[Action::Refuse(7, Refusal::QueueFull(3))]);
        assert_eq!([tally.of(EXPIRED), tally.of(REVOKED), tally.of("refused_queue_full")], [1, 1, 1]);
        assert_eq!(tally.counts.values().sum::<u64>(), 3);
    }
}
