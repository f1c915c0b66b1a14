//! The worker's side of a slot that hostile processes write: a dispatcher, or another worker of the same user.

use std::time::Duration;

use crate::exchange::{
    Counter, Incarnation, QuestionKind, Reply, SlotCounters, WORDS, Word, WorkerSide, load_start, return_port,
    store_start, terms,
};
use crate::ids::{Claim, Epoch, LeaseId, Lifecycle, Monotonic, Phase, Token};

use super::input::Input;
use super::slot::ScriptedSlot;

/// The bound on accesses per step, however often a word changes meanwhile.
const ACCESSES_MAX: u64 = 100;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let slot = ScriptedSlot::default();
    let mut now = Monotonic(1_000_000_000);
    let mut worker = WorkerSide::attach(slot.clone(), 7, 1, Some(7300), now);
    let mut answered = 0;
    while !input.is_empty() {
        let before = slot.accesses();
        match input.below(12) {
            0 => {
                let (after, index) = (input.byte() % 8, input.below(WORDS));
                slot.write_after(after, index, input.word());
            }
            1 => slot.change_on_every_access(Some(input.below(WORDS))),
            2 => slot.end_script(),
            3 => {
                // An offer, as a dispatcher writes it.
                let lease = LeaseId::of(Epoch::FIRST, u64::from(input.byte()) + 1);
                for (index, value) in [(8, lease.get()), (9, worker.epoch().get().into()), (10, 1), (13, u64::MAX)] {
                    slot.word(index).set(value);
                }
                slot.word(Word::CLAIM.index()).set(Claim::Held(lease, Phase::Offered).word());
                slot.word(1).set(lease.get());
                slot.word(0).set((answered + 1) << 8 | u64::from(input.byte() % 8));
            }
            4 => {
                let state = [Lifecycle::Starting, Lifecycle::Ready, Lifecycle::Draining, Lifecycle::Recycling];
                let state = state[input.below(4)];
                worker.set_state(state, input.byte() % 2 == 0);
                if let Some(question) = worker.question(answered) {
                    assert_ne!(question.sequence, answered);
                    let reply = worker.decide(&question, state);
                    // An operator may recycle a worker that is out of service.
                    let is_drained = state == Lifecycle::Draining && worker.drained();
                    let may_accept = state == Lifecycle::Ready || is_drained && question.kind == QuestionKind::Recycle;
                    assert!(reply != Reply::Accept || may_accept);
                    worker.reply(&question, reply);
                    answered = question.sequence;
                }
            }
            5 => {
                let token = Token::from_words([slot.word(11).get(), slot.word(12).get() ^ u64::from(input.byte() % 2)]);
                if let Ok(terms) = worker.claim(token, now) {
                    assert!(terms.token.matches(token) && terms.worker_epoch == worker.epoch());
                    assert!(terms.claim_by >= now);
                    let _ = now + terms.request_timeout;
                    if input.byte() % 2 == 0 {
                        worker.respond(terms.lease);
                    }
                    worker.done(terms.lease);
                    worker.count(Counter::Served, 1);
                    worker.record(Duration::from_micros(input.word()));
                }
            }
            6 => {
                worker.tick(now);
                worker.has_obligation(now);
                let _ = (worker.drained(), return_port(worker.memory()), worker.answered());
            }
            7 => now = now + Duration::from_millis(input.byte().into()),
            8 => {
                let last = worker.epoch();
                slot.word(24).set(last.get().into());
                worker = WorkerSide::attach(slot.clone(), 7, 1, None, now);
            }
            9 => {
                // Readers.
                let _ = (Incarnation::load(&slot), SlotCounters::load(&slot), terms(&slot));
            }
            10 => {
                if let Some((at, failures)) = load_start(&slot, Word::WORKER_LAST_START) {
                    let _ = now.since(at);
                    store_start(&slot, Word::WORKER_LAST_START, Some((at, failures.saturating_add(1))));
                }
            }
            _ => worker.count(Counter::BytesIn, input.word()),
        }
        let took = slot.accesses() - before;
        assert!(took <= ACCESSES_MAX, "{took} accesses in one step");
    }
}
