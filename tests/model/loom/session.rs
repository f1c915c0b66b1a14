//! The two words of a session: the worker's question and the dispatcher's decision.

use std::sync::Arc;

use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;

use super::{LoomSlot, Missing, NOW, epoch, lease, phase, sides, sides_in, terms_of, token};
use crate::exchange::{self, DispatcherSide, SlotMemory, WorkerSide};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Monotonic, Phase, ProcessId};

/// Decides, as the pool does, when a slot shows a lease in service that wants a session and is not decided about.
fn decide<M: SlotMemory>(dispatcher: &DispatcherSide<M>, is_permitted: bool) -> Option<LeaseId> {
    let in_service = exchange::claim(dispatcher.memory()).and_then(Claim::in_service);
    let seen = exchange::load_session(dispatcher.memory());
    let wanted = seen.wanted.filter(|wanted| in_service == Some(*wanted))?;
    if seen.decided.is_some_and(|(decided, _)| decided == wanted) {
        return None;
    }
    dispatcher.decide_session(wanted, is_permitted);
    Some(wanted)
}

/// A session ends, and the dispatcher gives its place to the lease of another worker.
fn place_of_an_ended_session(missing: Missing) {
    loom::model(move || {
        let is_open = Arc::new(AtomicBool::new(true));
        let (first, ending) = sides_in(missing, Phase::Responding);
        assert!(ending.upgrade(lease(1)));
        let (second, asking) = sides_in(missing, Phase::Claimed);
        asking.want_session(lease(1));
        let at_end = {
            let is_open = is_open.clone();
            thread::spawn(move || {
                is_open.store(false, Relaxed);
                assert!(ending.done(lease(1)));
            })
        };
        let asked = thread::spawn(move || {
            if asking.session_decision(lease(1)) == Some(true) {
                assert!(!is_open.load(Relaxed), "two sessions in one place");
            }
        });
        if phase(first.memory()) == Some(Phase::Done) {
            assert_eq!(decide(&second, true), Some(lease(1)));
        }
        at_end.join().unwrap();
        asked.join().unwrap();
    });
}

#[test]
fn place_of_a_session_is_given_after_its_end() {
    place_of_an_ended_session(Missing::Nothing);
}

#[test]
#[should_panic(expected = "two sessions in one place")]
fn decision_needs_its_release_and_acquire() {
    place_of_an_ended_session(Missing::LoadAndStoreOrder);
}

#[test]
#[should_panic(expected = "two sessions in one place")]
fn end_of_a_session_needs_an_ordered_swap() {
    place_of_an_ended_session(Missing::SwapOrder);
}

/// A question is asked before, while and after the dispatcher dies, and the next one decides exactly what is open.
#[test]
fn next_dispatcher_continues_with_the_decisions_of_the_last_one() {
    loom::model(|| {
        let (last, worker) = sides_in(Missing::Nothing, Phase::Claimed);
        let slot = worker.memory().clone();
        let asking = thread::spawn(move || {
            worker.want_session(lease(1));
            let before = worker.session_decision(lease(1));
            (worker.session_decision(lease(1)), before, worker)
        });
        let by_last = decide(&last, false);
        drop(last);
        let next = DispatcherSide::attach(slot, epoch(2), ProcessId { pid: 2, start_time: 2 }, None);
        let by_next = decide(&next, true);
        assert!(by_last.is_none() || by_next.is_none(), "decided twice");
        let (after, before, worker) = asking.join().unwrap();
        assert!(before.is_none() || before == after, "a decision has changed");
        let by_next = by_next.or_else(|| decide(&next, true));
        let expected = Some(by_next.is_some());
        assert_eq!(worker.session_decision(lease(1)), expected, "the question has no decision");
        assert!(after.is_none() || after == expected);
        assert_eq!(exchange::load_session(next.memory()).decided, Some((lease(1), by_next.is_some())));
    });
}

/// The asker dies. A decision about its lease may come late, and is none about the lease of the next incarnation.
#[test]
fn decision_for_a_dead_worker_is_none_for_its_successor() {
    loom::model(|| {
        let (mut dispatcher, dead) = sides(Missing::Nothing);
        dispatcher.offer(&terms_of(1, dead.epoch())).unwrap();
        dead.claim(token(1), NOW).unwrap();
        dead.want_session(lease(1));
        let slot: Arc<LoomSlot> = dead.memory().clone();
        drop(dead);
        let started = thread::spawn(move || WorkerSide::attach(slot, 12, 22, Some(31), Monotonic(2)));
        // It sees the death only later.
        assert_eq!(decide(&dispatcher, true), Some(lease(1)));
        let worker = started.join().unwrap();
        assert!(dispatcher.reclaim(lease(1)) || dispatcher.abort(lease(1)) && dispatcher.release(lease(1)));
        let terms = LeaseTerms { dispatcher_epoch: Epoch::FIRST, ..terms_of(2, worker.epoch()) };
        dispatcher.offer(&terms).unwrap();
        let asking = thread::spawn(move || {
            worker.claim(token(2), NOW).unwrap();
            assert_eq!(worker.session_decision(lease(2)), None);
            worker.want_session(lease(2));
            let decision = worker.session_decision(lease(2));
            assert!(decision != Some(true), "the permission of a dead worker");
            worker
        });
        let decided = decide(&dispatcher, false);
        assert!(decided.is_none_or(|about| about == lease(2)), "a decision about a lease that has ended");
        let worker = asking.join().unwrap();
        if decided.is_none() {
            assert_eq!(decide(&dispatcher, false), Some(lease(2)));
        }
        assert_eq!(worker.session_decision(lease(2)), Some(false));
    });
}
