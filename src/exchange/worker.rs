//! The worker's side of a slot: it answers, claims, responds and finishes.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::time::Duration;

use super::claim::{claim, swap, terms};
use super::incarnation::WANTS_RECYCLE;
use super::memory::SlotMemory;
use super::question::{Question, QuestionKind, Reply};
use super::request_note::store_note;
use super::session;
use super::slot_counters::{self, Counter};
use super::slot_layout::Word;
use crate::ids::{
    Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Phase, ProgramVersion, RefuseReason, Replacements, Token,
};

/// How often a question is read that changes meanwhile. A well-behaved dispatcher writes no faster.
const READS_MAX: u32 = 8;

/// Why a token does not claim the lease. The worker sends such a client back to the dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClaimError {
    /// The slot holds no lease with this token.
    Foreign,
    /// The lease was offered to another incarnation.
    OtherEpoch,
    /// The offer has been claimed or revoked, or has expired.
    Expired,
}

/// The TCP port that leads to the dispatcher.
pub(crate) fn return_port(memory: &impl SlotMemory) -> Option<u16> {
    u16::try_from(memory.load(Word::RETURN_PORT, Relaxed)).ok().filter(|port| *port > 0)
}

/// The worker's access to its slot. The control loop answers while the serving task claims: words that both may write
/// change by compare-and-swap only, and each counter belongs to one thread.
#[derive(Debug)]
pub(crate) struct WorkerSide<M> {
    memory: M,
    epoch: Epoch,
    /// The words of the life line that stay the same while this incarnation lives.
    identity: [(Word, u64); 4],
}

impl<M: SlotMemory> WorkerSide<M> {
    /// Starts a new incarnation: writes the life line, the epoch last.
    pub(crate) fn attach(memory: M, pid: u32, started: u64, port: Option<u16>, now: Monotonic) -> Self {
        let epoch = Epoch::new(memory.load(Word::EPOCH, Relaxed)).map_or(Epoch::FIRST, Epoch::next);
        let identity = [
            (Word::PID, pid.into()),
            (Word::PROCESS_START, started),
            (Word::PORT, port.unwrap_or(0).into()),
            (Word::EPOCH, epoch.get().into()),
        ];
        memory.store(Word::STATE, Lifecycle::Starting as u64, Relaxed);
        memory.store(Word::LAST_TICK, now.0, Relaxed);
        memory.store(Word::VERSION, ProgramVersion::own().word(epoch.get()), Relaxed);
        for (word, value) in identity {
            memory.store(word, value, Release); // Release E: the epoch comes last
        }
        Self { memory, epoch, identity }
    }

    /// This incarnation.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The slot's words.
    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    /// Whether an operator keeps this worker out of service. The worker loads this at each ring: the question that
    /// announced it may have been replaced.
    pub(crate) fn drained(&self) -> bool {
        self.memory.load(Word::DRAINED, Relaxed) != 0
    }

    /// Publishes the worker's state, and whether it wants to be recycled.
    pub(crate) fn set_state(&self, state: Lifecycle, wants_recycle: bool) {
        let flag = if wants_recycle { WANTS_RECYCLE } else { 0 };
        self.memory.store(Word::STATE, state as u64 | flag, Release);
    }

    /// The planned replacements so far.
    pub(crate) fn replacements(&self) -> Replacements {
        Replacements::new(self.memory.load(Word::REPLACEMENTS, Relaxed))
    }

    /// Publishes the planned replacements. To call before [`Self::set_state`].
    pub(crate) fn set_replacements(&self, replacements: Replacements) {
        self.memory.store(Word::REPLACEMENTS, replacements.word(), Relaxed);
    }

    /// Whether the life line still describes this incarnation.
    pub(crate) fn is_intact(&self) -> bool {
        self.identity.into_iter().all(|(word, value)| self.memory.load(word, Relaxed) == value)
    }

    /// Counts one turn of the control loop.
    pub(crate) fn tick(&self, now: Monotonic) {
        self.memory.store(Word::TICKS, self.memory.load(Word::TICKS, Relaxed).wrapping_add(1), Relaxed);
        self.memory.store(Word::LAST_TICK, now.0, Relaxed);
    }

    /// Whether an answer to an offer, or the end of a claim, needs the doorbell: the dispatcher may be polling. To call
    /// after the change.
    pub(crate) fn needs_doorbell(&self) -> bool {
        self.memory.fence(SeqCst); // W
        self.memory.load(Word::POLLING, Relaxed) != 1
    }

    /// The question in the slot, unless it has the sequence `answered`.
    pub(crate) fn question(&self, answered: u64) -> Option<Question> {
        for _ in 0..READS_MAX {
            let word = self.memory.load(Word::QUESTION, Acquire); // Acquire Q
            let (sequence, kind) = (word >> 8, word & 0xff);
            if word == 0 || sequence == answered {
                return None; // being written: the doorbell follows
            }
            let lease = self.memory.load(Word::QUESTION_LEASE, Relaxed);
            self.memory.fence(Acquire); // Acquire Q
            if self.memory.load(Word::QUESTION, Relaxed) == word {
                return Some(Question { sequence, kind: QuestionKind::new(kind)?, lease: LeaseId::new(lease) });
            }
        }
        None // each change is followed by a doorbell
    }

    /// Sequence of the last answered question, of any incarnation.
    pub(crate) fn answered(&self) -> u64 {
        self.memory.load(Word::ANSWER, Relaxed) >> 16
    }

    /// The answer to `question` in this state of the slot and the worker.
    pub(crate) fn decide(&self, question: &Question, state: Lifecycle) -> Reply {
        let held = claim(&self.memory);
        match question.kind {
            QuestionKind::Ping | QuestionKind::Drain | QuestionKind::Resume => Reply::Pong,
            QuestionKind::Offer => match state {
                Lifecycle::Starting => Reply::Refuse(RefuseReason::Starting),
                Lifecycle::Draining => Reply::Refuse(RefuseReason::Draining),
                Lifecycle::Recycling => Reply::Refuse(RefuseReason::Recycling),
                Lifecycle::Ready => match terms(&self.memory) {
                    Some((Claim::Held(lease, Phase::Offered), terms))
                        if Some(lease) == question.lease && terms.worker_epoch == self.epoch =>
                    {
                        Reply::Accept
                    }
                    Some((held, _)) if held.in_service().is_some() => Reply::Refuse(RefuseReason::Busy),
                    _ => Reply::Refuse(RefuseReason::Stale),
                },
            },
            QuestionKind::Finished => match held.and_then(Claim::open) {
                Some(lease) if Some(lease) == question.lease => Reply::Working,
                _ => Reply::Finished,
            },
            QuestionKind::Recycle => match held.and_then(Claim::open) {
                Some(_) => Reply::Refuse(RefuseReason::Busy),
                None => match state {
                    Lifecycle::Ready => Reply::Accept,
                    // It stays out of service, and has the new process when it returns.
                    Lifecycle::Draining if self.drained() => Reply::Accept,
                    Lifecycle::Starting => Reply::Refuse(RefuseReason::Starting),
                    Lifecycle::Draining => Reply::Refuse(RefuseReason::Draining),
                    Lifecycle::Recycling => Reply::Refuse(RefuseReason::Recycling),
                },
            },
        }
    }

    /// Publishes the answer. The caller rings afterwards.
    pub(crate) fn reply(&self, question: &Question, reply: Reply) {
        self.memory.store(Word::ANSWER, question.sequence << 16 | reply.bits(), Release); // Release A
    }

    /// `Offered -> Claimed`, with the token. At most one claim succeeds.
    pub(crate) fn claim(&self, token: Token, now: Monotonic) -> Result<LeaseTerms, ClaimError> {
        let (held, terms) = terms(&self.memory).ok_or(ClaimError::Foreign)?;
        if !terms.token.matches(token) {
            return Err(ClaimError::Foreign);
        }
        if terms.worker_epoch != self.epoch {
            return Err(ClaimError::OtherEpoch);
        }
        if held != Claim::Held(terms.lease, Phase::Offered) || now > terms.claim_by {
            return Err(ClaimError::Expired);
        }
        swap(&self.memory, held, Claim::Held(terms.lease, Phase::Claimed)).map_err(|_| ClaimError::Expired)?;
        Ok(terms)
    }

    /// Stores the note of a claimed request, for [`super::RequestNote::load`]. The pieces of `text` are joined.
    pub(crate) fn note_request(&self, lease: LeaseId, now: Monotonic, text: &[&[u8]]) {
        store_note(&self.memory, lease, now, text);
    }

    /// `Claimed -> Responding`. After `false` the worker must not send a byte: the dispatcher has aborted the lease.
    pub(crate) fn respond(&self, lease: LeaseId) -> bool {
        swap(&self.memory, Claim::Held(lease, Phase::Claimed), Claim::Held(lease, Phase::Responding)).is_ok()
    }

    /// Requests the permission for a session on the connection of a claimed lease. The caller rings afterwards.
    pub(crate) fn want_session(&self, lease: LeaseId) {
        session::want(&self.memory, lease);
    }

    /// Whether the lease may have a session; `None` until the dispatcher has decided.
    pub(crate) fn session_decision(&self, lease: LeaseId) -> Option<bool> {
        session::decision(&self.memory).and_then(|(decided, is_permitted)| (decided == lease).then_some(is_permitted))
    }

    /// `Responding -> Upgraded`, with the permission.
    pub(crate) fn upgrade(&self, lease: LeaseId) -> bool {
        swap(&self.memory, Claim::Held(lease, Phase::Responding), Claim::Held(lease, Phase::Upgraded)).is_ok()
    }

    /// The connection that was handed over with this lease stays open after it. To call before [`Self::done`].
    pub(crate) fn keep_connection(&self, lease: LeaseId) {
        self.memory.store(Word::KEPT_CONNECTION, lease.get(), Relaxed); // ordered by the step to Done
    }

    /// `Claimed | Responding | Upgraded -> Done`. The caller rings afterwards if [`Self::needs_doorbell`].
    pub(crate) fn done(&self, lease: LeaseId) -> bool {
        // In the order of the phases, so that a concurrent step to Responding is not missed.
        [Phase::Claimed, Phase::Responding, Phase::Upgraded]
            .into_iter()
            .any(|phase| swap(&self.memory, Claim::Held(lease, phase), Claim::Held(lease, Phase::Done)).is_ok())
    }

    /// Whether this incarnation has an open obligation: an offer that its client may still claim, or a claimed lease.
    pub(crate) fn has_obligation(&self, now: Monotonic) -> bool {
        match terms(&self.memory) {
            Some((_, terms)) if terms.worker_epoch != self.epoch => false,
            Some((Claim::Held(_, Phase::Offered), terms)) => now <= terms.claim_by,
            Some((held, _)) => held.in_service().is_some(),
            None => false,
        }
    }

    /// Adds to a counter.
    pub(crate) fn count(&self, counter: Counter, by: u64) {
        slot_counters::add(&self.memory, counter, by);
    }

    /// Counts one request that took this long from claim to end.
    pub(crate) fn record(&self, took: Duration) {
        slot_counters::record(&self.memory, took);
    }
}
