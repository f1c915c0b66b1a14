//! A worker that keeps the rules, and the promises made to its clients.

use crate::exchange::{QuestionKind, Reply, WorkerSide};
use crate::ids::{LeaseId, Lifecycle, Monotonic, Token};

use super::Words;

/// An incarnation.
pub struct Honest {
    respondent: WorkerSide<Words>,
    answered: u64,
    state: Lifecycle,
    request: Option<LeaseId>,
}

impl Honest {
    pub fn begin(memory: Words, now: Monotonic) -> Self {
        let respondent = WorkerSide::attach(memory, 7, 1, None, now);
        let answered = respondent.answered();
        let mut honest = Self { respondent, answered, state: Lifecycle::Starting, request: None };
        honest.settle();
        honest
    }

    fn settle(&mut self) {
        self.state = if self.respondent.drained() { Lifecycle::Draining } else { Lifecycle::Ready };
        self.respondent.set_state(self.state, false);
    }

    /// One turn of its control loop.
    pub fn turn(&mut self, now: Monotonic) {
        self.respondent.tick(now);
        self.settle();
        if let Some(question) = self.respondent.question(self.answered) {
            let reply = self.respondent.decide(&question, self.state);
            assert!(question.kind != QuestionKind::Recycle, "nobody asked for it");
            self.answered = question.sequence;
            self.respondent.reply(&question, reply);
            assert!(reply != Reply::Accept || question.lease.is_some());
        }
    }

    /// A client shows its token; whether its request starts.
    pub fn claim(&mut self, lease: LeaseId, token: Token, now: Monotonic) -> bool {
        let Ok(terms) = self.respondent.claim(token, now) else { return false };
        assert_eq!((terms.lease, terms.worker_epoch), (lease, self.respondent.epoch()), "another's lease");
        assert!(self.respondent.claim(token, now).is_err(), "lease {lease} opens twice");
        assert!(self.request.replace(lease).is_none(), "two requests at once");
        true
    }

    /// Whether a request of this lease is in its hand.
    pub fn holds(&self, lease: LeaseId) -> bool {
        self.request == Some(lease)
    }

    /// The request in hand is answered.
    pub fn finish(&mut self) {
        if let Some(lease) = self.request.take() {
            assert!(self.respondent.respond(lease), "lease {lease} of a living worker was aborted");
            assert!(self.respondent.done(lease), "lease {lease} of a living worker was ended");
        }
    }
}
