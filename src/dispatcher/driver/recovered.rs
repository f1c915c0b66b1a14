//! Connections that were lent to workers when the previous dispatcher ended.

use std::collections::HashMap;

use crate::exchange::{self, DispatcherSide, SlotMemory};
use crate::ids::{Claim, Phase};

/// Their marks, and whether no worker has claimed them.
#[derive(Default)]
pub(super) struct RecoveredConnections {
    unclaimed: HashMap<u32, bool>,
}

impl RecoveredConnections {
    /// Determines what became of the connection that was lent with the lease in a slot, and revokes an offer that no
    /// worker has claimed.
    pub(super) fn recover<M: SlotMemory>(&mut self, side: &DispatcherSide<M>) {
        let Some((Claim::Held(lease, phase), terms)) = exchange::terms(side.memory()) else { return };
        if terms.connection != 0 {
            let is_free = phase == Phase::Revoked || phase == Phase::Offered && side.revoke(lease);
            *self.unclaimed.entry(terms.connection).or_insert(true) &= is_free;
        }
    }

    /// Whether the connection was lent, and claimed by no worker.
    pub(super) fn is_unclaimed(&self, mark: u32) -> bool {
        self.unclaimed.get(&mark).is_some_and(|is_free| *is_free)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::exchange::{PlainSlot, WorkerSide};
    use crate::ids::{Epoch, LeaseId, LeaseTerms, Monotonic, ProcessId, Token};

    const PROCESS: ProcessId = ProcessId { pid: 1, start_time: 1 };

    /// A slot in which an earlier dispatcher has offered a connection with this mark.
    fn offered(mark: u32) -> (DispatcherSide<std::sync::Arc<PlainSlot>>, LeaseId, Token) {
        let slot = std::sync::Arc::new(PlainSlot::default());
        let mut side = DispatcherSide::attach(slot, Epoch::FIRST, PROCESS, None);
        let (lease, token) = (LeaseId::of(Epoch::FIRST, u64::from(mark)), Token::new(7));
        let terms = LeaseTerms {
            lease,
            worker_epoch: Epoch::FIRST,
            dispatcher_epoch: Epoch::FIRST,
            token,
            claim_by: Monotonic(1000),
            request_timeout: Duration::from_secs(1),
            connection: mark,
        };
        side.offer(&terms).unwrap();
        (side, lease, token)
    }

    #[test]
    fn connection_is_offered_again_only_if_no_slot_shows_a_claim() {
        let mut recovered = RecoveredConnections::default();
        let (unclaimed, lease, _) = offered(1);
        recovered.recover(&unclaimed);
        assert!(recovered.is_unclaimed(1));
        assert!(!unclaimed.revoke(lease), "it has been revoked");
        assert!(!recovered.is_unclaimed(2), "never lent");

        let (claimed, _, token) = offered(2);
        let worker = WorkerSide::attach(claimed.memory().clone(), 2, 2, None, Monotonic(0));
        worker.claim(token, Monotonic(1)).unwrap();
        recovered.recover(&claimed);
        // The same connection in another slot, from which it was revoked.
        recovered.recover(&offered(2).0);
        assert!(!recovered.is_unclaimed(2));
    }
}
