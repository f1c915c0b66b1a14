//! The dispatcher's side of a slot: it asks, offers, revokes, aborts and releases.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use super::claim::{claim, store_terms, swap};
use super::memory::SlotMemory;
use super::question::{Question, QuestionKind, Reply};
use super::session;
use super::slot_layout::Word;
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Phase, ProcessId};

/// The largest sequence: it shares the answer word with 16 bits of reply.
const SEQUENCE_MAX: u64 = (1 << 48) - 1;

/// The dispatcher's access to one slot. At most one exists per slot: its process holds the lock of the question line.
#[derive(Debug)]
pub(crate) struct DispatcherSide<M> {
    memory: M,
    epoch: Epoch,
    process: ProcessId,
    return_port: Option<u16>,
    /// Loaded once, when this process attaches; after that it is the only writer.
    drained: bool,
    sequence: u64,
    outstanding: Option<Question>,
    /// Whether a question was answered before an offer superseded it.
    superseded_answer: bool,
}

impl<M: SlotMemory> DispatcherSide<M> {
    /// The epoch of the last dispatcher of this slot.
    pub(crate) fn last_epoch(memory: &M) -> Option<Epoch> {
        Epoch::new(memory.load(Word::DISPATCHER_EPOCH, Acquire))
    }

    /// The process of the last dispatcher of this slot.
    pub(crate) fn last_process(memory: &M) -> Option<ProcessId> {
        let pid = u32::try_from(memory.load(Word::DISPATCHER_PID, Relaxed)).ok().filter(|pid| *pid > 0)?;
        Some(ProcessId { pid, start_time: memory.load(Word::DISPATCHER_PROCESS_START, Relaxed) })
    }

    /// [`Self::drained`] as stored in the slot, for readers of a slot.
    pub(crate) fn was_drained(memory: &M) -> bool {
        memory.load(Word::DRAINED, Relaxed) == 1
    }

    /// Attaches the dispatcher of this epoch and process. `return_port`: the TCP port that leads to it.
    pub(crate) fn attach(memory: M, epoch: Epoch, process: ProcessId, return_port: Option<u16>) -> Self {
        let sequence = memory.load(Word::LAST_SEQUENCE, Relaxed) & SEQUENCE_MAX;
        let drained = Self::was_drained(&memory);
        let side = Self {
            memory,
            epoch,
            process,
            return_port,
            drained,
            sequence,
            outstanding: None,
            superseded_answer: false,
        };
        side.write_identity();
        side.stop_polling();
        side
    }

    /// Whether an operator keeps the worker out of service; outlives dispatchers and workers.
    pub(crate) fn drained(&self) -> bool {
        self.drained
    }

    /// Sets the port to which the worker sends clients with an invalid token. The worker loads it for each of them.
    pub(crate) fn set_return_port(&mut self, return_port: Option<u16>) {
        self.return_port = return_port;
        self.memory.store(Word::RETURN_PORT, return_port.unwrap_or(0).into(), Relaxed);
    }

    /// The slot is a copy of one that this process has held until now. It has settled the lease there, and may have
    /// taken the worker out of service or back since the copy was made.
    pub(crate) fn continue_copy(&mut self, drained: bool) {
        let word = self.memory.load(Word::CLAIM, Acquire);
        // No worker can claim a lease of an earlier incarnation, so the word does not change in between.
        let _ = self.memory.compare_exchange(Word::CLAIM, word, Claim::Free.word());
        if self.drained != drained {
            self.write_question(if drained { QuestionKind::Drain } else { QuestionKind::Resume }, None);
        }
    }

    /// Ignores the state that the previous dispatcher left in a corrupt slot: the worker is in service.
    pub(crate) fn discard_inherited(&mut self) {
        self.drained = false;
        self.write_identity();
    }

    /// Writes the words of the question line that stay the same while this process lives.
    fn write_identity(&self) {
        for (word, value) in self.identity() {
            self.memory.store(word, value, Relaxed);
        }
        self.memory.store(Word::DISPATCHER_EPOCH, self.epoch.get().into(), Release);
    }

    fn identity(&self) -> [(Word, u64); 5] {
        let ProcessId { pid, start_time } = self.process;
        [
            (Word::DISPATCHER_PID, pid.into()),
            (Word::DISPATCHER_PROCESS_START, start_time),
            (Word::RETURN_PORT, self.return_port.unwrap_or(0).into()),
            (Word::DRAINED, self.drained.into()),
            (Word::LAST_SEQUENCE, self.sequence),
        ]
    }

    /// Whether the question line holds the values that this process, its only writer, has stored.
    pub(crate) fn is_intact(&self) -> bool {
        self.memory.load(Word::DISPATCHER_EPOCH, Relaxed) == u64::from(self.epoch.get())
            && self.identity().into_iter().all(|(word, value)| self.memory.load(word, Relaxed) == value)
    }

    /// Fills a slot that was restored with zeros. `worker`: the last incarnation; it is written as one that has ended,
    /// with a pid that cannot exist.
    pub(crate) fn reinitialize(&mut self, worker: Option<Epoch>) {
        self.outstanding = None;
        if let Some(epoch) = worker {
            self.memory.store(Word::PID, u32::MAX.into(), Relaxed);
            self.memory.store(Word::STATE, Lifecycle::Starting as u64, Relaxed);
            self.memory.store(Word::EPOCH, epoch.get().into(), Release); // Release E
        }
        self.write_identity();
    }

    /// The slot's words.
    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    /// Writes a question, which replaces an earlier one without answer. The caller rings afterwards.
    pub(crate) fn write_question(&mut self, kind: QuestionKind, lease: Option<LeaseId>) {
        self.sequence = self.sequence % SEQUENCE_MAX + 1;
        if matches!(kind, QuestionKind::Drain | QuestionKind::Resume) {
            self.drained = kind == QuestionKind::Drain;
            self.memory.store(Word::DRAINED, self.drained.into(), Relaxed);
        }
        // A sequence lock (cf. Boehm, "Can seqlocks get along with programming language memory models?", MSPC 2012):
        // a reader that was interrupted by a write sees the word change and reads again.
        self.memory.store(Word::QUESTION, 0, Relaxed);
        self.memory.fence(Release); // Release Q
        self.memory.store(Word::QUESTION_LEASE, lease.map_or(0, LeaseId::get), Relaxed);
        self.memory.store(Word::LAST_SEQUENCE, self.sequence, Relaxed);
        self.memory.store(Word::QUESTION, self.sequence << 8 | kind as u64, Release); // Release Q
        self.outstanding = Some(Question { sequence: self.sequence, kind, lease });
    }

    /// The answer to the open question, once. Answers to earlier questions are ignored.
    pub(crate) fn answer(&mut self) -> Option<(Question, Reply)> {
        let question = self.outstanding?;
        let word = self.memory.load(Word::ANSWER, Acquire); // Acquire A
        if word >> 16 != question.sequence {
            return None;
        }
        let reply = Reply::new(word & 0xffff)?;
        self.outstanding = None;
        Some((question, reply))
    }

    /// From the next offer until [`Self::stop_polling`] this side polls the slot: the worker need not ring.
    pub(crate) fn start_polling(&self) {
        self.memory.store(Word::POLLING, 1, Relaxed);
    }

    /// This side is about to sleep: the worker must ring again. [`Self::has_update`] then sees what the worker did
    /// before it read this store (store buffering: one of the two sees the other, as in Dekker's algorithm).
    pub(crate) fn stop_polling(&self) {
        self.memory.store(Word::POLLING, 0, Relaxed);
        self.memory.fence(SeqCst); // W
    }

    /// Whether the open offer is answered, or the claim has ended: the events for which the worker rings.
    pub(crate) fn has_update(&self) -> bool {
        let offer = self.outstanding.filter(|question| question.kind == QuestionKind::Offer);
        let is_answered = |question: Question| self.memory.load(Word::ANSWER, Relaxed) >> 16 == question.sequence;
        let is_held = claim(&self.memory).and_then(Claim::open).is_some();
        !is_held || offer.is_some_and(is_answered)
    }

    /// Remembers whether the open question is answered, before the caller replaces it by another one.
    pub(crate) fn supersede(&mut self) {
        self.superseded_answer |= self.answer().is_some();
    }

    /// Whether a superseded question was answered; once.
    pub(crate) fn take_superseded_answer(&mut self) -> bool {
        std::mem::take(&mut self.superseded_answer)
    }

    /// `Free -> Offered`, then the question. The state of the claim word if it was not free.
    pub(crate) fn offer(&mut self, terms: &LeaseTerms) -> Result<(), Option<Claim>> {
        match claim(&self.memory) {
            Some(Claim::Free) => {}
            found => return Err(found),
        }
        // Release L: a reader that sees a word of the new line, and then fences, sees a claim word that no longer names
        // the old lease.
        self.memory.fence(Release);
        store_terms(&self.memory, terms);
        swap(&self.memory, Claim::Free, Claim::Held(terms.lease, Phase::Offered))?;
        self.write_question(QuestionKind::Offer, Some(terms.lease));
        Ok(())
    }

    /// `Offered -> Revoked`; `false` if the worker was faster.
    pub(crate) fn revoke(&self, lease: LeaseId) -> bool {
        swap(&self.memory, Claim::Held(lease, Phase::Offered), Claim::Held(lease, Phase::Revoked)).is_ok()
    }

    /// `Claimed -> Aborted`; afterwards the worker's step to Responding fails.
    pub(crate) fn abort(&self, lease: LeaseId) -> bool {
        swap(&self.memory, Claim::Held(lease, Phase::Claimed), Claim::Held(lease, Phase::Aborted)).is_ok()
    }

    /// Whether the connection of a lease that is `Done` stays open.
    pub(crate) fn is_connection_kept(&self, lease: LeaseId) -> bool {
        self.memory.load(Word::KEPT_CONNECTION, Relaxed) == lease.get()
    }

    /// `Done | Revoked | Aborted -> Free`.
    pub(crate) fn release(&self, lease: LeaseId) -> bool {
        [Phase::Done, Phase::Revoked, Phase::Aborted]
            .into_iter()
            .any(|phase| swap(&self.memory, Claim::Held(lease, phase), Claim::Free).is_ok())
    }

    /// `Responding | Upgraded -> Free`. Only if the worker's incarnation is known to be dead.
    pub(crate) fn reclaim(&self, lease: LeaseId) -> bool {
        [Phase::Responding, Phase::Upgraded]
            .into_iter()
            .any(|phase| swap(&self.memory, Claim::Held(lease, phase), Claim::Free).is_ok())
    }

    /// Decides whether the lease may have a session. The caller rings afterwards.
    pub(crate) fn decide_session(&self, lease: LeaseId, is_permitted: bool) {
        session::decide(&self.memory, lease, is_permitted);
    }

    /// Frees a corrupt claim word. Only for a dead incarnation.
    pub(crate) fn clear(&self) {
        let word = self.memory.load(Word::CLAIM, Acquire);
        if Claim::new(word).is_none() {
            // Fails only if the word has changed; the caller reads the slot again in any case.
            let _ = self.memory.compare_exchange(Word::CLAIM, word, Claim::Free.word());
        }
    }
}
