//! The worker's side of a slot: it answers, claims and finishes.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::time::Duration;

use super::slot_layout::{WANTS_RECYCLE, store_request};
use super::{Question, QuestionKind, Reply, SlotMemory, Word, claim, swap, terms};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Phase, RefuseReason, Token};
use crate::stats::Histogram;

/// How often a question that changes meanwhile is read: an honest dispatcher asks no faster than that.
const READS: u32 = 8;

/// Why a token does not open the worker. All of them send the client back to the dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// There is no offer in the slot, or it is another one's.
    Foreign,
    /// The offer was made to another incarnation.
    OtherEpoch,
    /// It has been revoked, used, or its time is over.
    Late,
}

/// The counters a worker keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// A request answered.
    Served,
    /// A request that failed.
    Failed,
    /// Body bytes received.
    BytesIn,
    /// Body bytes sent.
    BytesOut,
    /// A request sent back to the dispatcher.
    SentBack,
}

/// The worker's hold on its slot. Its control loop answers through it while its serving task claims: the
/// words that both could touch are changed by compare-and-swap only, and each counter has one thread.
#[derive(Debug)]
pub struct WorkerSide<M> {
    memory: M,
    epoch: Epoch,
    /// What of the life line does not change: only another can have written anything else.
    identity: [(Word, u64); 4],
}

impl<M: SlotMemory> WorkerSide<M> {
    /// Starts a new incarnation: everything of the life line, the epoch last.
    pub fn attach(memory: M, pid: u32, started: u64, port: Option<u16>, now: Monotonic) -> Self {
        let epoch = Epoch::new(memory.load(Word::EPOCH, Relaxed)).map_or(Epoch::FIRST, Epoch::next);
        let identity = [
            (Word::PID, pid.into()),
            (Word::STARTED, started),
            (Word::PORT, port.unwrap_or(0).into()),
            (Word::EPOCH, epoch.get().into()),
        ];
        memory.store(Word::STATE, Lifecycle::Starting as u64, Relaxed);
        memory.store(Word::LAST_TICK, now.0, Relaxed);
        for (word, value) in identity {
            memory.store(word, value, Release); // Release E: the epoch comes last
        }
        Self { memory, epoch, identity }
    }

    /// This incarnation.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The slot's words.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The TCP port that leads back to the dispatcher.
    pub fn return_port(&self) -> Option<u16> {
        u16::try_from(self.memory.load(Word::RETURN_PORT, Relaxed)).ok().filter(|port| *port > 0)
    }

    /// Whether an operator keeps this worker out of service. To be looked at whenever the worker is rung: the
    /// question that announced it may have been replaced.
    pub fn drained(&self) -> bool {
        self.memory.load(Word::DRAINED, Relaxed) != 0
    }

    /// Says what the worker is doing, and whether it asks to be recycled.
    pub fn set_state(&self, state: Lifecycle, wants_recycle: bool) {
        let flag = if wants_recycle { WANTS_RECYCLE } else { 0 };
        self.memory.store(Word::STATE, state as u64 | flag, Release);
    }

    /// Whether the life line still says who this is.
    pub fn is_intact(&self) -> bool {
        self.identity.into_iter().all(|(word, value)| self.memory.load(word, Relaxed) == value)
    }

    /// One turn of the control loop.
    pub fn tick(&self, now: Monotonic) {
        self.memory.store(Word::TICKS, self.memory.load(Word::TICKS, Relaxed).wrapping_add(1), Relaxed);
        self.memory.store(Word::LAST_TICK, now.0, Relaxed);
    }

    /// Says on which core this side runs.
    pub fn set_core(&self, core: usize) {
        self.memory.store(Word::CORE, core as u64 + 1, Relaxed);
    }

    /// Whether the dispatcher has to be rung for an answer to an offer, or for a claim that has ended: it may be looking
    /// by itself. To be asked afterwards.
    pub fn must_ring(&self) -> bool {
        self.memory.fence(SeqCst); // W
        self.memory.load(Word::WATCHED, Relaxed) != 1
    }

    /// The question in the slot, if it is not the one with sequence `answered`.
    pub fn question(&self, answered: u64) -> Option<Question> {
        for _ in 0..READS {
            let word = self.memory.load(Word::QUESTION, Acquire); // Acquire Q
            let (sequence, kind) = (word >> 8, word & 0xff);
            if word == 0 || sequence == answered {
                return None; // being written: the ring is still to come
            }
            let lease = self.memory.load(Word::QUESTION_LEASE, Relaxed);
            self.memory.fence(Acquire); // Acquire Q
            if self.memory.load(Word::QUESTION, Relaxed) == word {
                return Some(Question { sequence, kind: QuestionKind::new(kind)?, lease: LeaseId::new(lease) });
            }
        }
        None // whoever changes it rings for that
    }

    /// Sequence of the last question answered, by whichever incarnation.
    pub fn answered(&self) -> u64 {
        self.memory.load(Word::ANSWER, Relaxed) >> 16
    }

    /// The answer that is true now: what to say to `question` in `state`.
    pub fn decide(&self, question: &Question, state: Lifecycle) -> Reply {
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
                    Some((Claim::Held(_, Phase::Claimed | Phase::Responding), _)) => Reply::Refuse(RefuseReason::Busy),
                    _ => Reply::Refuse(RefuseReason::Stale),
                },
            },
            QuestionKind::Finished => match held {
                Some(Claim::Held(lease, Phase::Offered | Phase::Claimed | Phase::Responding))
                    if Some(lease) == question.lease =>
                {
                    Reply::Working
                }
                _ => Reply::Finished,
            },
            QuestionKind::Recycle => match held {
                Some(Claim::Held(_, Phase::Offered | Phase::Claimed | Phase::Responding)) => {
                    Reply::Refuse(RefuseReason::Busy)
                }
                _ => match state {
                    Lifecycle::Ready => Reply::Accept,
                    Lifecycle::Starting => Reply::Refuse(RefuseReason::Starting),
                    Lifecycle::Draining => Reply::Refuse(RefuseReason::Draining),
                    Lifecycle::Recycling => Reply::Refuse(RefuseReason::Recycling),
                },
            },
        }
    }

    /// Publishes the answer. The caller rings afterwards.
    pub fn reply(&self, question: &Question, reply: Reply) {
        self.memory.store(Word::ANSWER, question.sequence << 16 | reply.bits(), Release); // Release A
    }

    /// `Offered -> Claimed`, for whoever shows the token: at most one wins.
    pub fn claim(&self, token: Token, now: Monotonic) -> Result<LeaseTerms, ClaimError> {
        let (held, terms) = terms(&self.memory).ok_or(ClaimError::Foreign)?;
        if !terms.token.matches(token) {
            return Err(ClaimError::Foreign);
        }
        if terms.worker_epoch != self.epoch {
            return Err(ClaimError::OtherEpoch);
        }
        if held != Claim::Held(terms.lease, Phase::Offered) || now > terms.claim_by {
            return Err(ClaimError::Late);
        }
        swap(&self.memory, held, Claim::Held(terms.lease, Phase::Claimed)).map_err(|_| ClaimError::Late)?;
        Ok(terms)
    }

    /// Writes down what was claimed, for [`super::RequestNote::load`]: pieces of text that belong together.
    pub fn note_request(&self, lease: LeaseId, now: Monotonic, text: &[&[u8]]) {
        store_request(&self.memory, lease, now, text);
    }

    /// `Claimed -> Responding`. On `false` not one byte may be sent: the dispatcher has ended the lease.
    pub fn respond(&self, lease: LeaseId) -> bool {
        swap(&self.memory, Claim::Held(lease, Phase::Claimed), Claim::Held(lease, Phase::Responding)).is_ok()
    }

    /// The connection of this lease, which was handed over, goes on after it. To be said before [`Self::done`].
    pub fn mark_kept(&self, lease: LeaseId) {
        self.memory.store(Word::KEPT, lease.get(), Relaxed); // seen by whoever sees the step to Done
    }

    /// `Claimed | Responding -> Done`. The caller rings afterwards, if [`Self::must_ring`].
    pub fn done(&self, lease: LeaseId) -> bool {
        // In the order the phases come, so that a step to Responding in between is not missed.
        [Phase::Claimed, Phase::Responding]
            .into_iter()
            .any(|phase| swap(&self.memory, Claim::Held(lease, phase), Claim::Held(lease, Phase::Done)).is_ok())
    }

    /// Whether this incarnation owes anything: an offer that its client may still use, or a claimed lease.
    pub fn has_obligation(&self, now: Monotonic) -> bool {
        match terms(&self.memory) {
            Some((_, terms)) if terms.worker_epoch != self.epoch => false,
            Some((Claim::Held(_, Phase::Offered), terms)) => now <= terms.claim_by,
            Some((Claim::Held(_, Phase::Claimed | Phase::Responding), _)) => true,
            _ => false,
        }
    }

    /// Adds to a counter.
    pub fn count(&self, counter: Counter, by: u64) {
        let word = match counter {
            Counter::Served => Word::SERVED,
            Counter::Failed => Word::FAILED,
            Counter::BytesIn => Word::BYTES_IN,
            Counter::BytesOut => Word::BYTES_OUT,
            Counter::SentBack => Word::SENT_BACK,
        };
        self.add(word, by);
    }

    /// Counts one request that took this long from claim to end.
    pub fn record(&self, took: Duration) {
        self.add(Word::bucket(Histogram::bucket(took)), 1);
        self.add(Word::RUN_MICROS, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    fn add(&self, word: Word, by: u64) {
        self.memory.store(word, self.memory.load(word, Relaxed).wrapping_add(by), Relaxed);
    }
}
