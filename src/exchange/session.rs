//! The permission for a session, a connection that switches to another protocol. The dispatcher decides, because it alone
//! sees all sessions of a pool. Question and decision stay in the slot, so the next dispatcher counts the same sessions.

use std::sync::atomic::Ordering::{Acquire, Release};

use super::memory::SlotMemory;
use super::slot_layout::Word;
use crate::ids::{LeaseId, SessionRequest};

const PERMITTED: u64 = 1;

/// What a slot shows of a session.
pub(crate) fn load_session<M: SlotMemory>(memory: &M) -> SessionRequest {
    let wanted = LeaseId::new(memory.load(Word::SESSION_WANTED, Acquire)); // Acquire S
    SessionRequest { wanted, decided: decision(memory) }
}

/// The worker's request. The caller rings afterwards.
pub(super) fn want<M: SlotMemory>(memory: &M, lease: LeaseId) {
    memory.store(Word::SESSION_WANTED, lease.get(), Release); // Release S
}

/// The dispatcher's decision. The caller rings afterwards.
pub(super) fn decide<M: SlotMemory>(memory: &M, lease: LeaseId, is_permitted: bool) {
    let word = lease.get() << 8 | if is_permitted { PERMITTED } else { 0 };
    memory.store(Word::SESSION_DECISION, word, Release); // Release D
}

/// The last lease that was decided about, and whether it may have a session.
pub(super) fn decision<M: SlotMemory>(memory: &M) -> Option<(LeaseId, bool)> {
    let word = memory.load(Word::SESSION_DECISION, Acquire); // Acquire D
    Some((LeaseId::new(word >> 8)?, word & 0xff == PERMITTED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::PlainSlot;
    use crate::ids::Epoch;

    #[test]
    fn decision_belongs_to_one_lease() {
        let memory = PlainSlot::default();
        let [first, second] = [1, 2].map(|n| LeaseId::of(Epoch::FIRST, n));
        assert_eq!(load_session(&memory), SessionRequest::default());
        want(&memory, first);
        decide(&memory, first, true);
        let decided = SessionRequest { wanted: Some(first), decided: Some((first, true)) };
        assert_eq!(load_session(&memory), decided);
        want(&memory, second);
        assert_eq!(load_session(&memory), SessionRequest { wanted: Some(second), ..decided });
        decide(&memory, second, false);
        assert_eq!(decision(&memory), Some((second, false)));
    }
}
