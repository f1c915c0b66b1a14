//! The dispatcher's side of a slot: it asks, offers, takes back and clears away.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use super::slot_layout::store_terms;
use super::{Question, QuestionKind, Reply, SlotMemory, Word, claim, swap};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Phase, ProcessId};

/// Largest sequence: it shares the answer word with 16 bits of reply.
const SEQUENCE_MAX: u64 = (1 << 48) - 1;

/// The only asker of one slot. There is one per slot at a time: its process holds the lock of the question line.
#[derive(Debug)]
pub struct DispatcherSide<M> {
    memory: M,
    epoch: Epoch,
    process: ProcessId,
    return_port: Option<u16>,
    /// Read from the slot once: from then on this process is its only writer.
    drained: bool,
    sequence: u64,
    outstanding: Option<Question>,
    /// A question that was overtaken by an offer had been answered.
    superseded_answer: bool,
}

impl<M: SlotMemory> DispatcherSide<M> {
    /// The epoch the last dispatcher left in this slot.
    pub fn last_epoch(memory: &M) -> Option<Epoch> {
        Epoch::new(memory.load(Word::DISPATCHER_EPOCH, Acquire))
    }

    /// Whether an operator keeps the worker out of service; outlives dispatchers and workers.
    pub fn drained(&self) -> bool {
        self.drained
    }

    /// Process and start time of the last dispatcher of this slot.
    pub fn last_process(memory: &M) -> Option<ProcessId> {
        let pid = u32::try_from(memory.load(Word::DISPATCHER_PID, Relaxed)).ok().filter(|pid| *pid > 0)?;
        Some(ProcessId { pid, start_time: memory.load(Word::DISPATCHER_STARTED, Relaxed) })
    }

    /// The same as it stands in the slot, for who only looks.
    pub fn was_drained(memory: &M) -> bool {
        memory.load(Word::DRAINED, Relaxed) == 1
    }

    /// Takes the slot for the dispatcher of this epoch, pid and start time; `return_port` is the TCP port
    /// that leads to it.
    pub fn attach(memory: M, epoch: Epoch, process: ProcessId, return_port: Option<u16>) -> Self {
        let sequence = memory.load(Word::SEQUENCE, Relaxed) & SEQUENCE_MAX;
        let drained = Self::was_drained(&memory);
        let asker = Self {
            memory,
            epoch,
            process,
            return_port,
            drained,
            sequence,
            outstanding: None,
            superseded_answer: false,
        };
        asker.write_identity();
        asker.stop_polling();
        asker
    }

    /// Where the worker sends those whose token opens nothing; read at each of them.
    pub fn set_return_port(&mut self, return_port: Option<u16>) {
        self.return_port = return_port;
        self.memory.store(Word::RETURN_PORT, return_port.unwrap_or(0).into(), Relaxed);
    }

    /// What the dispatcher before has left is not to be believed: the worker is in service.
    pub fn discard_inherited(&mut self) {
        self.drained = false;
        self.write_identity();
    }

    /// Writes what of the question line does not change while this process lives.
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
            (Word::DISPATCHER_STARTED, start_time),
            (Word::RETURN_PORT, self.return_port.unwrap_or(0).into()),
            (Word::DRAINED, self.drained.into()),
            (Word::SEQUENCE, self.sequence),
        ]
    }

    /// Whether the question line holds what this process, its only writer, has written. If not, another has.
    pub fn is_intact(&self) -> bool {
        self.memory.load(Word::DISPATCHER_EPOCH, Relaxed) == u64::from(self.epoch.get())
            && self.identity().into_iter().all(|(word, value)| self.memory.load(word, Relaxed) == value)
    }

    /// Fills a slot that has been made anew, all zero: what this side knows, and the worker's last life as one that
    /// is over, of a process that there cannot be.
    pub fn reinitialize(&mut self, worker: Option<Epoch>) {
        self.outstanding = None;
        if let Some(epoch) = worker {
            self.memory.store(Word::PID, u32::MAX.into(), Relaxed);
            self.memory.store(Word::STATE, Lifecycle::Starting as u64, Relaxed);
            self.memory.store(Word::EPOCH, epoch.get().into(), Release); // Release E
        }
        self.write_identity();
    }

    /// The slot's words.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Puts a question, in place of any earlier one that was not answered. The caller rings afterwards.
    pub fn ask(&mut self, kind: QuestionKind, lease: Option<LeaseId>) {
        self.sequence = self.sequence % SEQUENCE_MAX + 1;
        if matches!(kind, QuestionKind::Drain | QuestionKind::Resume) {
            self.drained = kind == QuestionKind::Drain;
            self.memory.store(Word::DRAINED, self.drained.into(), Relaxed);
        }
        // A sequence lock (cf. Boehm, "Can seqlocks get along with programming language memory models?",
        // MSPC 2012): a reader that was overtaken in the middle sees the word change and reads again.
        self.memory.store(Word::QUESTION, 0, Relaxed);
        self.memory.fence(Release); // Release Q
        self.memory.store(Word::QUESTION_LEASE, lease.map_or(0, LeaseId::get), Relaxed);
        self.memory.store(Word::SEQUENCE, self.sequence, Relaxed);
        self.memory.store(Word::QUESTION, self.sequence << 8 | kind as u64, Release); // Release Q
        self.outstanding = Some(Question { sequence: self.sequence, kind, lease });
    }

    /// The answer to the question now open, once. Answers to earlier questions are nobody's any more.
    pub fn answer(&mut self) -> Option<(Question, Reply)> {
        let question = self.outstanding?;
        let word = self.memory.load(Word::ANSWER, Acquire); // Acquire A
        if word >> 16 != question.sequence {
            return None;
        }
        let reply = Reply::new(word & 0xffff)?;
        self.outstanding = None;
        Some((question, reply))
    }

    /// From the next offer on, until [`Self::stop_polling`], this side looks by itself: its news needs no ring.
    pub fn watch(&self) {
        self.memory.store(Word::WATCHED, 1, Relaxed);
    }

    /// This side is about to sleep: from now on it has to be rung for. What the worker did before it knew is seen by
    /// [`Self::has_update`] afterwards (store buffering: one of the two sees the other, as in Dekker's algorithm).
    pub fn stop_polling(&self) {
        self.memory.store(Word::WATCHED, 0, Relaxed);
        self.memory.fence(SeqCst); // W
    }

    /// Whether an offer is answered that was not, or a claim has ended: what the worker would ring for.
    pub fn has_update(&self) -> bool {
        let question = self.outstanding.filter(|question| question.kind == QuestionKind::Offer);
        let answered = |question: Question| self.memory.load(Word::ANSWER, Relaxed) >> 16 == question.sequence;
        let open =
            matches!(claim(&self.memory), Some(Claim::Held(_, Phase::Offered | Phase::Claimed | Phase::Responding)));
        !open || question.is_some_and(answered)
    }

    /// The core that the worker was last seen on.
    pub fn core(&self) -> Option<u64> {
        self.memory.load(Word::CORE, Relaxed).checked_sub(1)
    }

    /// Another question is about to overtake the one that is open: should that have been answered, it is remembered.
    pub fn supersede(&mut self) {
        self.superseded_answer |= self.answer().is_some();
    }

    /// Whether that was so; once.
    pub fn take_superseded_answer(&mut self) -> bool {
        std::mem::take(&mut self.superseded_answer)
    }

    /// `Free -> Offered`, then the question. What was found in the claim word if it was not free.
    pub fn offer(&mut self, terms: &LeaseTerms) -> Result<(), Option<Claim>> {
        match claim(&self.memory) {
            Some(Claim::Free) => {}
            found => return Err(found),
        }
        // Release L: whoever reads a word of the new line and then fences reads a claim word that is
        // no longer the old lease's.
        self.memory.fence(Release);
        store_terms(&self.memory, terms);
        swap(&self.memory, Claim::Free, Claim::Held(terms.lease, Phase::Offered))?;
        self.ask(QuestionKind::Offer, Some(terms.lease));
        Ok(())
    }

    /// `Offered -> Revoked`: the offer is taken back, unless the worker was faster.
    pub fn revoke(&self, lease: LeaseId) -> bool {
        swap(&self.memory, Claim::Held(lease, Phase::Offered), Claim::Held(lease, Phase::Revoked)).is_ok()
    }

    /// `Claimed -> Aborted`: after this the worker's step to Responding fails.
    pub fn abort(&self, lease: LeaseId) -> bool {
        swap(&self.memory, Claim::Held(lease, Phase::Claimed), Claim::Held(lease, Phase::Aborted)).is_ok()
    }

    /// Whether the connection of a lease that is `Done` goes on.
    pub fn kept(&self, lease: LeaseId) -> bool {
        self.memory.load(Word::KEPT, Relaxed) == lease.get()
    }

    /// `Done | Revoked | Aborted -> Free`.
    pub fn release(&self, lease: LeaseId) -> bool {
        [Phase::Done, Phase::Revoked, Phase::Aborted]
            .into_iter()
            .any(|phase| swap(&self.memory, Claim::Held(lease, phase), Claim::Free).is_ok())
    }

    /// `Responding -> Free`: only for a worker whose incarnation is known to be dead.
    pub fn reclaim(&self, lease: LeaseId) -> bool {
        swap(&self.memory, Claim::Held(lease, Phase::Responding), Claim::Free).is_ok()
    }

    /// Frees a claim word that holds what no honest writer writes. Only for a dead incarnation.
    pub fn clear(&self) {
        let word = self.memory.load(Word::CLAIM, Acquire);
        if Claim::new(word).is_none() {
            // Lost to another writer only if the word has changed: then it is looked at again.
            let _ = self.memory.compare_exchange(Word::CLAIM, word, Claim::Free.word());
        }
    }
}
