//! The claim word, and the lease line that belongs to it.

use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use super::memory::SlotMemory;
use super::slot_layout::Word;
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Monotonic, Token};

/// The claim word; `None` if it holds a value that no well-behaved writer stores.
pub(crate) fn claim<M: SlotMemory>(memory: &M) -> Option<Claim> {
    // Acquire C: pairs with every compare-and-swap of the claim word, and with nothing else.
    Claim::new(memory.load(Word::CLAIM, Acquire))
}

/// Changes the claim word from one state to another, or returns the state that it has instead.
pub(super) fn swap<M: SlotMemory>(memory: &M, from: Claim, to: Claim) -> Result<(), Option<Claim>> {
    memory.compare_exchange(Word::CLAIM, from.word(), to.word()).map_err(Claim::new)
}

/// The terms in the lease line, if they belong to the lease in the claim word. The line is written only while the claim
/// word is free, so an unchanged claim word proves an unchanged line.
pub(crate) fn terms<M: SlotMemory>(memory: &M) -> Option<(Claim, LeaseTerms)> {
    let before = claim(memory)?;
    let Claim::Held(lease, _) = before else { return None };
    let terms = load_terms(memory)?;
    // Acquire L: pairs with the release fence before the lease line is written.
    memory.fence(Acquire);
    let after = Claim::new(memory.load(Word::CLAIM, Relaxed))?;
    let Claim::Held(still, _) = after else { return None };
    (still == lease && terms.lease == lease).then_some((after, terms))
}

fn load_terms<M: SlotMemory>(memory: &M) -> Option<LeaseTerms> {
    let dispatcher = memory.load(Word::LEASE_DISPATCHER_EPOCH, Relaxed);
    Some(LeaseTerms {
        lease: LeaseId::new(memory.load(Word::LEASE, Relaxed))?,
        worker_epoch: Epoch::new(memory.load(Word::LEASE_WORKER_EPOCH, Relaxed))?,
        dispatcher_epoch: Epoch::new(dispatcher & u64::from(u32::MAX))?,
        token: Token::from_words([memory.load(Word::TOKEN_HIGH, Relaxed), memory.load(Word::TOKEN_LOW, Relaxed)]),
        claim_by: Monotonic(memory.load(Word::CLAIM_BY, Relaxed)),
        request_timeout: Duration::from_nanos(memory.load(Word::REQUEST_TIMEOUT, Relaxed)),
        connection: (dispatcher >> 32) as u32,
    })
}

pub(super) fn store_terms<M: SlotMemory>(memory: &M, terms: &LeaseTerms) {
    let [high, low] = terms.token.words();
    let timeout = u64::try_from(terms.request_timeout.as_nanos()).unwrap_or(u64::MAX);
    let dispatcher = u64::from(terms.connection) << 32 | u64::from(terms.dispatcher_epoch.get());
    for (word, value) in [
        (Word::LEASE, terms.lease.get()),
        (Word::LEASE_WORKER_EPOCH, terms.worker_epoch.get().into()),
        (Word::LEASE_DISPATCHER_EPOCH, dispatcher),
        (Word::TOKEN_HIGH, high),
        (Word::TOKEN_LOW, low),
        (Word::CLAIM_BY, terms.claim_by.0),
        (Word::REQUEST_TIMEOUT, timeout),
    ] {
        memory.store(word, value, Relaxed);
    }
}
