//! The doorbell while the dispatcher polls: an event is seen, or rung for.

use std::sync::Arc;

use loom::thread;

use super::{LoomSlot, Missing, lease, sides_in};
use crate::exchange::{Reply, WorkerSide};
use crate::ids::Phase;

/// A dispatcher that stops polling has seen the worker's event, or the worker rings for it.
fn event_while_polling(missing: Missing, phase: Phase, event: fn(&WorkerSide<Arc<LoomSlot>>)) {
    loom::model(move || {
        let (dispatcher, worker) = sides_in(missing, phase);
        dispatcher.start_polling();
        let working = thread::spawn(move || {
            event(&worker);
            worker.needs_doorbell()
        });
        let seen = dispatcher.has_update() || {
            dispatcher.stop_polling();
            dispatcher.has_update()
        };
        let rung = working.join().unwrap();
        assert!(seen || rung, "the event was missed");
    });
}

fn end_of_lease(worker: &WorkerSide<Arc<LoomSlot>>) {
    assert!(worker.done(lease(1)));
}

fn answer_to_offer(worker: &WorkerSide<Arc<LoomSlot>>) {
    let question = worker.question(0).unwrap();
    worker.reply(&question, Reply::Accept);
}

#[test]
fn the_end_of_a_lease_is_never_missed() {
    event_while_polling(Missing::Nothing, Phase::Responding, end_of_lease);
}

#[test]
#[should_panic(expected = "the event was missed")]
fn the_end_of_a_lease_needs_total_fences() {
    event_while_polling(Missing::TotalFence, Phase::Responding, end_of_lease);
}

#[test]
fn the_answer_to_an_offer_is_never_missed() {
    event_while_polling(Missing::Nothing, Phase::Offered, answer_to_offer);
}

#[test]
#[should_panic(expected = "the event was missed")]
fn the_answer_to_an_offer_needs_total_fences() {
    event_while_polling(Missing::TotalFence, Phase::Offered, answer_to_offer);
}
