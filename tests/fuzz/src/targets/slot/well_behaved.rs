//! A worker that keeps the protocol, and the promises to its clients.

use super::ScriptedSlot;
use crate::exchange::{QuestionKind, Reply, WorkerSide};
use crate::ids::{LeaseId, Lifecycle, Monotonic, Token};

/// One incarnation.
pub(crate) struct WellBehavedWorker {
    side: WorkerSide<ScriptedSlot>,
    answered: u64,
    state: Lifecycle,
    request: Option<LeaseId>,
}

impl WellBehavedWorker {
    pub(crate) fn start(slot: ScriptedSlot, now: Monotonic) -> Self {
        let side = WorkerSide::attach(slot, 7, 1, None, now);
        let answered = side.answered();
        let mut worker = Self { side, answered, state: Lifecycle::Starting, request: None };
        worker.publish_state();
        worker
    }

    fn publish_state(&mut self) {
        self.state = if self.side.drained() { Lifecycle::Draining } else { Lifecycle::Ready };
        self.side.set_state(self.state, false);
    }

    /// One turn of its control loop.
    pub(crate) fn turn(&mut self, now: Monotonic) {
        self.side.tick(now);
        self.publish_state();
        if let Some(question) = self.side.question(self.answered) {
            let reply = self.side.decide(&question, self.state);
            assert!(question.kind != QuestionKind::Recycle, "this worker never wants to be recycled");
            self.answered = question.sequence;
            self.side.reply(&question, reply);
            assert!(reply != Reply::Accept || question.lease.is_some());
        }
    }

    /// A client shows its token; whether its request starts.
    pub(crate) fn claim(&mut self, lease: LeaseId, token: Token, now: Monotonic) -> bool {
        let Ok(terms) = self.side.claim(token, now) else { return false };
        assert_eq!((terms.lease, terms.worker_epoch), (lease, self.side.epoch()), "another lease");
        assert!(self.side.claim(token, now).is_err(), "lease {lease} is claimed twice");
        assert!(self.request.replace(lease).is_none(), "two requests at once");
        true
    }

    /// Whether it serves a request of this lease.
    pub(crate) fn serves(&self, lease: LeaseId) -> bool {
        self.request == Some(lease)
    }

    /// It responds to its request, if it has one.
    pub(crate) fn finish(&mut self) {
        if let Some(lease) = self.request.take() {
            assert!(self.side.respond(lease), "lease {lease} of a living worker was aborted");
            assert!(self.side.done(lease), "lease {lease} of a living worker was ended");
        }
    }
}
