//! The worker's side over a slot that others write: a hostile dispatcher, another worker of the same user.

use std::time::Duration;

use crate::exchange::{Counter, Incarnation, Reply, SlotCounters, Word, WorkerSide, load_start, store_start, terms};
use crate::ids::{Claim, LeaseId};
use crate::ids::{Epoch, Lifecycle, Monotonic, Phase, Token};

use super::input::Input;
use super::slot::Words;

/// More than any step needs, however often a word changes under its eyes.
const ACCESSES: u64 = 100;

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let memory = Words::default();
    let mut now = Monotonic(1_000_000_000);
    let mut respondent = WorkerSide::attach(memory.clone(), 7, 1, Some(7300), now);
    let mut answered = 0;
    while !input.is_empty() {
        let before = memory.accesses();
        match input.below(12) {
            0 => {
                let (after, index) = (input.byte() % 8, input.below(crate::exchange::WORDS));
                memory.arm(after, index, input.word());
            }
            1 => memory.unsettle(Some(input.below(crate::exchange::WORDS))),
            2 => memory.calm(),
            3 => {
                // An offer as a dispatcher writes it.
                let lease = LeaseId::of(Epoch::FIRST, u64::from(input.byte()) + 1);
                for (index, value) in [(8, lease.get()), (9, respondent.epoch().get().into()), (10, 1), (13, u64::MAX)]
                {
                    memory.word(index).set(value);
                }
                memory.word(Word::CLAIM.index()).set(Claim::Held(lease, Phase::Offered).word());
                memory.word(1).set(lease.get());
                memory.word(0).set((answered + 1) << 8 | u64::from(input.byte() % 8));
            }
            4 => {
                let state = [Lifecycle::Starting, Lifecycle::Ready, Lifecycle::Draining, Lifecycle::Recycling];
                let state = state[input.below(4)];
                respondent.set_state(state, input.byte() % 2 == 0);
                if let Some(question) = respondent.question(answered) {
                    assert_ne!(question.sequence, answered);
                    let reply = respondent.decide(&question, state);
                    assert!(reply != Reply::Accept || state == Lifecycle::Ready);
                    respondent.reply(&question, reply);
                    answered = question.sequence;
                }
            }
            5 => {
                let token =
                    Token::from_words([memory.word(11).get(), memory.word(12).get() ^ u64::from(input.byte() % 2)]);
                if let Ok(terms) = respondent.claim(token, now) {
                    assert!(terms.token.matches(token) && terms.worker_epoch == respondent.epoch());
                    assert!(terms.claim_by >= now);
                    let _ = now + terms.request_timeout;
                    if input.byte() % 2 == 0 {
                        respondent.respond(terms.lease);
                    }
                    respondent.done(terms.lease);
                    respondent.count(Counter::Served, 1);
                    respondent.record(Duration::from_micros(input.word()));
                }
            }
            6 => {
                respondent.tick(now);
                respondent.has_obligation(now);
                let _ = (respondent.drained(), respondent.return_port(), respondent.answered());
            }
            7 => now = now + Duration::from_millis(input.byte().into()),
            8 => {
                let last = respondent.epoch();
                memory.word(24).set(last.get().into());
                respondent = WorkerSide::attach(memory.clone(), 7, 1, None, now);
            }
            9 => {
                // Whoever only looks.
                let _ = (Incarnation::load(&memory), SlotCounters::load(&memory), terms(&memory));
            }
            10 => {
                if let Some((at, failures)) = load_start(&memory, Word::WORKER_LAST_START) {
                    let _ = now.since(at);
                    store_start(&memory, Word::WORKER_LAST_START, Some((at, failures.saturating_add(1))));
                }
            }
            _ => respondent.count(Counter::BytesIn, input.word()),
        }
        let took = memory.accesses() - before;
        assert!(took <= ACCESSES, "{took} accesses in one step");
    }
}
