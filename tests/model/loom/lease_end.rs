//! The end of a lease.

use std::sync::Arc;

use loom::thread;

use super::race::race;
use super::{Missing, lease, phase, sides_in};
use crate::ids::Phase;

/// A dispatcher that sees the end of a lease knows whether the connection stays open.
fn kept_connection(missing: Missing) {
    loom::model(move || {
        let (dispatcher, worker) = sides_in(missing, Phase::Responding);
        let serving = thread::spawn(move || {
            worker.keep_connection(lease(1));
            assert!(worker.done(lease(1)));
        });
        if phase(dispatcher.memory()) == Some(Phase::Done) {
            assert!(dispatcher.is_connection_kept(lease(1)), "an open connection looks closed");
        }
        serving.join().unwrap();
    });
}

#[test]
fn a_kept_connection_is_known_at_the_end_of_the_lease() {
    kept_connection(Missing::Nothing);
}

#[test]
#[should_panic(expected = "looks closed")]
fn a_kept_connection_needs_an_ordered_swap() {
    kept_connection(Missing::SwapOrder);
}

#[test]
fn a_lease_is_released_only_after_its_end() {
    for from in [Phase::Claimed, Phase::Responding] {
        race(
            Missing::Nothing,
            from,
            |dispatcher| dispatcher.release(lease(1)),
            |worker| worker.done(lease(1)),
            |released, done, phase| {
                assert!(done, "the worker ends its own lease");
                assert_eq!(phase, if released { Phase::Free } else { Phase::Done });
            },
        );
    }
}

/// All steps of the worker against all steps of the abort: one side succeeds, and the slot can be freed.
#[test]
fn response_end_and_abort_leave_no_lease_behind() {
    race(
        Missing::Nothing,
        Phase::Claimed,
        |dispatcher| dispatcher.abort(lease(1)) && dispatcher.release(lease(1)),
        |worker| worker.respond(lease(1)) && worker.done(lease(1)),
        |aborted, done, phase| {
            assert_ne!(aborted, done, "both or neither succeeded");
            assert_eq!(phase, if done { Phase::Done } else { Phase::Free });
        },
    );
}

/// Two threads of the worker: one is about to respond while the other one ends the request.
#[test]
fn an_end_is_not_missed_between_claimed_and_responding() {
    loom::model(|| {
        let (_, worker) = sides_in(Missing::Nothing, Phase::Claimed);
        let worker = Arc::new(worker);
        let responding = thread::spawn({
            let worker = worker.clone();
            move || worker.respond(lease(1))
        });
        assert!(worker.done(lease(1)), "the lease is still held");
        responding.join().unwrap();
        assert_eq!(phase(worker.memory()), Some(Phase::Done));
    });
}
