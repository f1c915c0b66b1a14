//! The questions of the dispatcher and the answers of the worker.

use crate::ids::{LeaseId, RefuseReason};

/// What the dispatcher may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuestionKind {
    /// Is the control loop alive?
    Ping = 1,
    /// Does the worker accept the lease in the lease line?
    Offer = 2,
    /// Is the lease over?
    Finished = 3,
    /// Accept no more offers. Like any question it may be replaced before the worker reads it; the worker follows
    /// [`super::WorkerSide::drained`], which it reads in every turn.
    Drain = 4,
    /// Accept offers again; see [`QuestionKind::Drain`].
    Resume = 5,
    /// May the next incarnation replace this one now?
    Recycle = 6,
}

impl QuestionKind {
    pub(super) fn new(raw: u64) -> Option<Self> {
        use QuestionKind::*;
        [Ping, Offer, Finished, Drain, Resume, Recycle].into_iter().find(|k| *k as u64 == raw)
    }
}

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// 1, 2, 3 ... in the lifetime of the slot, across incarnations of the dispatcher.
    pub sequence: u64,
    /// What is asked.
    pub kind: QuestionKind,
    /// The lease that the question is about, if any.
    pub lease: Option<LeaseId>,
}

/// What the worker may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The control loop is alive.
    Pong,
    /// Yes.
    Accept,
    /// No, for this reason.
    Refuse(RefuseReason),
    /// The lease is over.
    Finished,
    /// The worker still works for the lease.
    Working,
}

impl Reply {
    /// Reply in bits 8..16, reason in bits 0..8.
    pub(super) fn bits(self) -> u64 {
        match self {
            Reply::Pong => 1 << 8,
            Reply::Accept => 2 << 8,
            Reply::Refuse(reason) => 3 << 8 | reason as u64,
            Reply::Finished => 4 << 8,
            Reply::Working => 5 << 8,
        }
    }

    pub(super) fn new(bits: u64) -> Option<Self> {
        match (bits >> 8 & 0xff, bits & 0xff) {
            (1, 0) => Some(Reply::Pong),
            (2, 0) => Some(Reply::Accept),
            (3, reason) => RefuseReason::new(reason).map(Reply::Refuse),
            (4, 0) => Some(Reply::Finished),
            (5, 0) => Some(Reply::Working),
            _ => None,
        }
    }
}
