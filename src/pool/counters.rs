//! The counters of a pool, derived from its actions in one place.

use super::messages::{ClientAction, PoolAction, PoolNote, Refusal, Rejection, SlotAction};
use crate::stats::Counters;

const GRANTED: &str = "granted";
/// Granted, and not claimed within `claim_timeout`.
const EXPIRED: &str = "expired";
/// Revoked earlier: the worker was late, drained or dead, or the client disconnected.
const REVOKED: &str = "revoked";
/// Planned replacements of workers.
pub(super) const RECYCLED: &str = "recycled";

/// Every counter, at zero.
pub(super) fn zero() -> Counters {
    let (bound, waited) = (0, std::time::Duration::ZERO);
    let refusals = [
        Refusal::QueueFull(bound),
        Refusal::QueueTimeout(waited),
        Refusal::NoWorkerFree,
        Refusal::OutOfService,
        Refusal::Failed,
        Refusal::Stopping,
    ];
    let rejections = [Rejection::BadRequest, Rejection::BadProxyHeader].map(Rejection::counted_as);
    let names = [GRANTED, EXPIRED, REVOKED, RECYCLED].into_iter().chain(refusals.map(Refusal::counted_as));
    let names = names.chain(rejections);
    Counters::new(names.map(|name| (name, 0)))
}

/// Counts the actions of one event.
pub(super) fn count(counters: &mut Counters, actions: &[PoolAction]) {
    let mut expired = None;
    for action in actions {
        match action {
            PoolAction::Client(_, ClientAction::Grant { .. }) => counters.count(GRANTED),
            PoolAction::Client(_, ClientAction::Refuse(refusal)) => counters.count(refusal.counted_as()),
            PoolAction::Note(_, PoolNote::Unclaimed(lease)) => {
                counters.count(EXPIRED);
                expired = Some(*lease);
            }
            // An expired lease is revoked by the same event.
            PoolAction::Slot(_, SlotAction::Revoke(lease)) if expired != Some(*lease) => counters.count(REVOKED),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, LeaseId, WorkerNumber};

    #[test]
    fn expired_lease_is_not_counted_as_revoked() {
        let lease = |n| LeaseId::of(Epoch::FIRST, n);
        let mut counters = zero();
        count(
            &mut counters,
            &[
                PoolAction::Note(WorkerNumber::of(1), PoolNote::Unclaimed(lease(1))),
                PoolAction::Slot(WorkerNumber::of(1), SlotAction::Revoke(lease(1))),
            ],
        );
        count(
            &mut counters,
            &[
                PoolAction::Note(WorkerNumber::of(1), PoolNote::Late(lease(2))),
                PoolAction::Slot(WorkerNumber::of(1), SlotAction::Revoke(lease(2))),
            ],
        );
        count(&mut counters, &[PoolAction::Client(7, ClientAction::Refuse(Refusal::QueueFull(3)))]);
        assert_eq!([counters.get(EXPIRED), counters.get(REVOKED), counters.get("refused_queue_full")], [1, 1, 1]);
        assert_eq!(counters.counts.values().sum::<u64>(), 3);
    }
}
