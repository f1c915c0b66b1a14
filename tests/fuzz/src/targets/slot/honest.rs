//! A worker that keeps the rules, and the promises made to its clients.

use patou::exchange::{Kind, Reply, Respondent};
use patou::ids::{LeaseId, Time, Token, WorkerState};

use super::Words;

/// An incarnation.
pub struct Honest {
    respondent: Respondent<Words>,
    answered: u64,
    state: WorkerState,
    request: Option<LeaseId>,
}

impl Honest {
    pub fn begin(memory: Words, now: Time) -> Self {
        let respondent = Respondent::begin(memory, 7, 1, None, now);
        let answered = respondent.answered();
        let mut honest = Self { respondent, answered, state: WorkerState::Starting, request: None };
        honest.settle();
        honest
    }

    fn settle(&mut self) {
        self.state = if self.respondent.drained() { WorkerState::Draining } else { WorkerState::Ready };
        self.respondent.set_state(self.state, false);
    }

    /// One turn of its control loop.
    pub fn turn(&mut self, now: Time) {
        self.respondent.turn(now);
        self.settle();
        if let Some(question) = self.respondent.question(self.answered) {
            let reply = self.respondent.judge(&question, self.state);
            assert!(question.kind != Kind::Recycle, "nobody asked for it");
            self.answered = question.sequence;
            self.respondent.reply(&question, reply);
            assert!(reply != Reply::Accept || question.lease.is_some());
        }
    }

    /// A client shows its token; whether its request starts.
    pub fn claim(&mut self, lease: LeaseId, token: Token, now: Time) -> bool {
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
