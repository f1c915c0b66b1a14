//! What a pool has done, in numbers: counted where it is said, so that no decision has to count itself.

use super::{PoolAction, PoolNote, Refusal};
use crate::stats::Counters;

const GRANTED: &str = "granted";
/// Granted, and not used within `claim_timeout`.
const EXPIRED: &str = "expired";
/// Taken back before that: its worker was late, drained or dead, or its client had gone.
const REVOKED: &str = "revoked";
/// Planned replacements of workers.
pub(super) const RECYCLED: &str = "recycled";

/// Nothing yet, under every name there is.
pub(super) fn zero() -> Counters {
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
    Counters::new(names.map(|name| (name, 0)))
}

/// Counts what a pool has just said.
pub(super) fn take_in(tally: &mut Counters, said: &[PoolAction]) {
    let mut expired = None;
    for action in said {
        match action {
            PoolAction::Grant { .. } => tally.count(GRANTED),
            PoolAction::Refuse(_, refusal) => tally.count(refusal.counted_as()),
            PoolAction::Note(_, PoolNote::Unclaimed(lease)) => {
                tally.count(EXPIRED);
                expired = Some(*lease);
            }
            // What has expired is taken back in the same breath.
            PoolAction::Revoke(_, lease) if expired != Some(*lease) => tally.count(REVOKED),
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
        take_in(&mut tally, &[PoolAction::Note(1, PoolNote::Unclaimed(lease(1))), PoolAction::Revoke(1, lease(1))]);
        take_in(&mut tally, &[PoolAction::Note(1, PoolNote::Late(lease(2))), PoolAction::Revoke(1, lease(2))]);
        take_in(&mut tally, &[PoolAction::Refuse(7, Refusal::QueueFull(3))]);
        assert_eq!([tally.get(EXPIRED), tally.get(REVOKED), tally.get("refused_queue_full")], [1, 1, 1]);
        assert_eq!(tally.counts.values().sum::<u64>(), 3);
    }
}
