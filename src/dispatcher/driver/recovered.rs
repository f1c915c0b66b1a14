//! Connections that were lent to workers when the previous dispatcher ended.
//!
//! The slots say what became of them, and what a slot says is the word of its worker. The mark of a connection is a
//! secret between the dispatcher and the workers to which the connection was offered, so a worker can name no other one.

use std::collections::HashMap;

use crate::dispatcher::pool_slots::SlotIndex;
use crate::exchange::{self, DispatcherSide, SlotMemory};
use crate::ids::{Claim, LeaseTerms, Phase};

/// What the slots show of them, by their marks.
#[derive(Default)]
pub(super) struct RecoveredConnections(HashMap<u32, RecoveredConnection>);

/// What the slots show of one of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum RecoveredConnection {
    /// No worker has claimed it, and none can any more.
    Unclaimed,
    /// This worker has claimed it under these terms, or says so.
    Claimed(SlotIndex, LeaseTerms),
    /// Several workers say so.
    Disputed,
}

impl RecoveredConnections {
    /// Determines what became of the connection that was lent with the lease in a slot, and revokes an offer that no
    /// worker has claimed.
    pub(super) fn recover<M: SlotMemory>(&mut self, at: SlotIndex, side: &DispatcherSide<M>) {
        use RecoveredConnection::{Claimed, Disputed, Unclaimed};
        let Some((Claim::Held(lease, phase), terms)) = exchange::terms(side.memory()) else { return };
        if terms.connection == 0 {
            return;
        }
        let is_free = phase == Phase::Revoked || phase == Phase::Offered && side.revoke(lease);
        let found = match (self.0.get(&terms.connection), is_free) {
            (Some(Claimed(..) | Disputed), false) => Disputed,
            (None | Some(Unclaimed), false) => Claimed(at, terms),
            (Some(before), true) => *before,
            (None, true) => Unclaimed,
        };
        self.0.insert(terms.connection, found);
    }

    /// The connection with this mark; `None` if no slot shows it.
    pub(super) fn get(&self, mark: u32) -> Option<RecoveredConnection> {
        self.0.get(&mark).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::exchange::{PlainSlot, WorkerSide};
    use crate::ids::{Epoch, LeaseId, Monotonic, ProcessId, Token, WorkerNumber};

    const PROCESS: ProcessId = ProcessId { pid: 1, start_time: 1 };

    const AT: SlotIndex = (0, WorkerNumber::FIRST);

    /// The same, after the worker has claimed it.
    fn claimed(mark: u32) -> (DispatcherSide<std::sync::Arc<PlainSlot>>, LeaseId, Token) {
        let (side, lease, token) = offered(mark);
        let worker = WorkerSide::attach(side.memory().clone(), 2, 2, None, Monotonic(0));
        worker.claim(token, Monotonic(1)).unwrap();
        (side, lease, token)
    }

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
        recovered.recover(AT, &unclaimed);
        assert!(matches!(recovered.get(1), Some(RecoveredConnection::Unclaimed)));
        assert!(!unclaimed.revoke(lease), "it has been revoked");
        assert!(recovered.get(2).is_none(), "never lent");

        // The same connection in another slot, from which it was revoked, before and after.
        recovered.recover(AT, &offered(2).0);
        let (claimed, lease, _) = claimed(2);
        recovered.recover((3, AT.1), &claimed);
        recovered.recover(AT, &offered(2).0);
        match recovered.get(2) {
            Some(RecoveredConnection::Claimed((3, _), terms)) => assert_eq!(terms.lease, lease),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn connection_that_two_slots_claim_belongs_to_neither() {
        let mut recovered = RecoveredConnections::default();
        for _ in 0..3 {
            recovered.recover(AT, &claimed(1).0);
        }
        recovered.recover(AT, &offered(1).0);
        assert!(matches!(recovered.get(1), Some(RecoveredConnection::Disputed)));
    }
}
