//! The dispatcher's side of a slot: it asks, offers, takes back and clears away.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::words::store_terms;
use super::{Kind, Memory, Question, Reply, Word, claim, swap};
use crate::ids::{Claim, Epoch, LeaseId, Phase, Terms};

/// Largest sequence: it shares the answer word with 16 bits of reply.
const SEQUENCE_MAX: u64 = (1 << 48) - 1;

/// The only asker of one slot. There is one per slot at a time: its process holds the lock of the question line.
#[derive(Debug)]
pub struct Asker<M> {
    memory: M,
    sequence: u64,
    outstanding: Option<Question>,
}

impl<M: Memory> Asker<M> {
    /// The epoch the last dispatcher left in this slot.
    pub fn last_epoch(memory: &M) -> Option<Epoch> {
        Epoch::new(memory.load(Word::DISPATCHER_EPOCH, Acquire))
    }

    /// Whether an operator keeps the worker out of service; outlives dispatchers and workers.
    pub fn drained(memory: &M) -> bool {
        memory.load(Word::DRAINED, Relaxed) != 0
    }

    /// Process and start time of the last dispatcher of this slot.
    pub fn last_process(memory: &M) -> Option<(u32, u64)> {
        let pid = u32::try_from(memory.load(Word::DISPATCHER_PID, Relaxed)).ok().filter(|pid| *pid > 0)?;
        Some((pid, memory.load(Word::DISPATCHER_STARTED, Relaxed)))
    }

    /// Takes the slot for the dispatcher of this epoch, pid and start time; `return_port` is the TCP port
    /// that leads to it.
    pub fn attach(memory: M, epoch: Epoch, (pid, started): (u32, u64), return_port: Option<u16>) -> Self {
        let sequence = memory.load(Word::SEQUENCE, Relaxed) & SEQUENCE_MAX;
        memory.store(Word::DISPATCHER_PID, pid.into(), Relaxed);
        memory.store(Word::DISPATCHER_STARTED, started, Relaxed);
        let asker = Self { memory, sequence, outstanding: None };
        asker.lead_back(return_port);
        asker.memory.store(Word::DISPATCHER_EPOCH, epoch.get().into(), Release);
        asker
    }

    /// Where the worker sends those whose token opens nothing; read at each of them.
    pub fn lead_back(&self, return_port: Option<u16>) {
        self.memory.store(Word::RETURN_PORT, return_port.unwrap_or(0).into(), Relaxed);
    }

    /// The slot's words.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Puts a question, in place of any earlier one that was not answered. The caller rings afterwards.
    pub fn ask(&mut self, kind: Kind, lease: Option<LeaseId>) {
        self.sequence = self.sequence % SEQUENCE_MAX + 1;
        match kind {
            Kind::Drain => self.memory.store(Word::DRAINED, 1, Relaxed),
            Kind::Resume => self.memory.store(Word::DRAINED, 0, Relaxed),
            _ => {}
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

    /// `Free -> Offered`, then the question. What was found in the claim word if it was not free.
    pub fn offer(&mut self, terms: &Terms) -> Result<(), Option<Claim>> {
        match claim(&self.memory) {
            Some(Claim::Free) => {}
            found => return Err(found),
        }
        // Release L: whoever reads a word of the new line and then fences reads a claim word that is
        // no longer the old lease's.
        self.memory.fence(Release);
        store_terms(&self.memory, terms);
        swap(&self.memory, Claim::Free, Claim::Held(terms.lease, Phase::Offered))?;
        self.ask(Kind::Offer, Some(terms.lease));
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

    /// `Done | Revoked | Aborted -> Free`.
    pub fn release(&self, lease: LeaseId) -> bool {
        [Phase::Done, Phase::Revoked, Phase::Aborted]
            .into_iter()
            .any(|phase| swap(&self.memory, Claim::Held(lease, phase), Claim::Free).is_ok())
    }

    /// `Responding -> Free`: only for a worker whose incarnation is known to be dead.
    pub fn bury(&self, lease: LeaseId) -> bool {
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
