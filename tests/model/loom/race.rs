//! Two steps from the same phase: exactly one succeeds.

use std::sync::Arc;

use loom::thread;

use super::{LoomSlot, Missing, NOW, lease, phase, sides_in, token};
use crate::exchange::{DispatcherSide, WorkerSide};
use crate::ids::Phase;

/// Runs both steps concurrently on a slot with lease 1 in phase `from`. `check` gets their results and the last phase.
pub(super) fn race<D, W>(
    missing: Missing,
    from: Phase,
    dispatcher_step: D,
    worker_step: W,
    check: fn(bool, bool, Phase),
) where
    D: Fn(&DispatcherSide<Arc<LoomSlot>>) -> bool + Copy + Send + Sync + 'static,
    W: Fn(&WorkerSide<Arc<LoomSlot>>) -> bool + Copy + Send + Sync + 'static,
{
    loom::model(move || {
        let (dispatcher, worker) = sides_in(missing, from);
        let slot = worker.memory().clone();
        let working = thread::spawn(move || worker_step(&worker));
        let dispatcher_result = dispatcher_step(&dispatcher);
        let worker_result = working.join().unwrap();
        check(dispatcher_result, worker_result, phase(&slot).unwrap());
    });
}

fn claim_or_revoke(missing: Missing) {
    race(
        missing,
        Phase::Offered,
        |dispatcher| dispatcher.revoke(lease(1)),
        |worker| worker.claim(token(1), NOW).is_ok(),
        |revoked, claimed, phase| {
            assert_ne!(revoked, claimed, "both or neither succeeded");
            assert_eq!(phase, if claimed { Phase::Claimed } else { Phase::Revoked });
        },
    );
}

#[test]
fn either_the_claim_or_the_revocation_succeeds() {
    claim_or_revoke(Missing::Nothing);
}

#[test]
#[should_panic(expected = "both or neither succeeded")]
fn claim_and_revocation_need_one_step() {
    claim_or_revoke(Missing::SwapInOneStep);
}

fn respond_or_abort(missing: Missing) {
    race(
        missing,
        Phase::Claimed,
        |dispatcher| dispatcher.abort(lease(1)),
        |worker| worker.respond(lease(1)),
        |aborted, responding, phase| {
            assert_ne!(aborted, responding, "both or neither succeeded");
            assert_eq!(phase, if responding { Phase::Responding } else { Phase::Aborted });
        },
    );
}

#[test]
fn either_the_response_or_the_abort_succeeds() {
    respond_or_abort(Missing::Nothing);
}

#[test]
#[should_panic(expected = "both or neither succeeded")]
fn response_and_abort_need_one_step() {
    respond_or_abort(Missing::SwapInOneStep);
}

fn done_or_abort(missing: Missing) {
    race(
        missing,
        Phase::Claimed,
        |dispatcher| dispatcher.abort(lease(1)),
        |worker| worker.done(lease(1)),
        |aborted, done, phase| {
            assert_ne!(aborted, done, "both or neither succeeded");
            assert_eq!(phase, if done { Phase::Done } else { Phase::Aborted });
        },
    );
}

#[test]
fn either_the_end_or_the_abort_succeeds() {
    done_or_abort(Missing::Nothing);
}

#[test]
#[should_panic(expected = "both or neither succeeded")]
fn end_and_abort_need_one_step() {
    done_or_abort(Missing::SwapInOneStep);
}

/// Two requests carry the same token.
fn two_claims(missing: Missing) {
    loom::model(move || {
        let (_, worker) = sides_in(missing, Phase::Offered);
        let worker = Arc::new(worker);
        let other = thread::spawn({
            let worker = worker.clone();
            move || worker.claim(token(1), NOW).is_ok()
        });
        let first = worker.claim(token(1), NOW).is_ok();
        assert_ne!(first, other.join().unwrap(), "both or neither succeeded");
    });
}

#[test]
fn a_token_is_used_once() {
    two_claims(Missing::Nothing);
}

#[test]
#[should_panic(expected = "both or neither succeeded")]
fn a_single_use_needs_one_step() {
    two_claims(Missing::SwapInOneStep);
}
