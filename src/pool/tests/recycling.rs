//! Planned replacement of workers.

use super::*;

#[test]
fn workers_are_recycled_one_at_a_time() {
    let wants_recycle = in_state(Ready, true);
    let recycle = |n| Slot(n, Question(SlotQuestion::Recycle));
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.serve(0, (1, A), 2, 1);
    t.read_slot(1, 2, SlotView { life: wants_recycle.life, ..held(lease(1), Done, 0) }, &[Slot(W2, Release(lease(1)))]);
    t.read_slot(1, 2, wants_recycle, &[recycle(W2)]);
    t.read_slot(2, 1, wants_recycle, &[]);
    t.handle(3, Client(2, A), &[offer(1, 2, 3)]);
    t.read_slot(
        3,
        1,
        answered(SlotAnswer::Accept(lease(2)), SlotView { life: wants_recycle.life, ..held(lease(2), Offered, 3) }),
        &[grant(2, 1, 2, 3)],
    );
    t.read_slot(4, 1, SlotView { life: wants_recycle.life, ..held(lease(2), Done, 3) }, &[Slot(W1, Release(lease(2)))]);
    t.read_slot(4, 1, wants_recycle, &[]);
    t.read_slot(5, 2, answered(SlotAnswer::Recycle(true), in_state(Recycling, true)), &[]);
    t.read_slot(
        6,
        2,
        incarnation(2, Starting, free()),
        &[note(2, PoolNote::Down(ONE)), note(2, PoolNote::Up(epoch(2)))],
    );
    t.read_slot(6, 1, wants_recycle, &[]); // worker 2 is not ready yet
    t.read_slot(7, 2, incarnation(2, Ready, free()), &[]);
    t.read_slot(8, 1, wants_recycle, &[recycle(W1)]);
    // While a recycled worker is down, the next one is not recycled.
    t.read_slot(9, 1, dead(wants_recycle), &[note(1, PoolNote::Down(ONE))]);
    let again = SlotView { life: Some((epoch(2), Ready, true)), ..free() };
    t.read_slot(10, 2, again, &[]);
    t.read_slot(10, 1, incarnation(2, Ready, free()), &[note(1, PoolNote::Up(epoch(2)))]);
    t.read_slot(10, 2, again, &[recycle(W2)]);
    // A refused recycle question is not repeated immediately.
    t.read_slot(11, 2, answered(SlotAnswer::Recycle(false), again), &[]);
    t.read_slot(12, 2, again, &[recycle(W2)]);
}

#[test]
fn next_worker_is_recycled_after_recycle_timeout() {
    let wants_recycle = in_state(Ready, true);
    let recycle = |n| Slot(n, Question(SlotQuestion::Recycle));
    let mut t = PoolTest::with_idle_workers(PoolLimits { recycle_timeout: Duration::from_millis(300), ..LIMITS });
    t.read_slot(0, 2, wants_recycle, &[recycle(W2)]);
    t.read_slot(1, 2, answered(SlotAnswer::Recycle(true), in_state(Recycling, true)), &[]);
    t.read_slot(299, 1, wants_recycle, &[]);
    t.read_slot(300, 1, wants_recycle, &[recycle(W1)]);
}

#[test]
fn recycling_survives_a_drain_and_a_new_dispatcher() {
    let wants_recycle = in_state(Ready, true);
    let recycle = |n| Slot(n, Question(SlotQuestion::Recycle));
    let mut t = PoolTest::new(LIMITS);
    // The recycling started under an earlier dispatcher; the next incarnation wants another one immediately.
    t.read_slot(0, 1, in_state(Recycling, true), &[note(1, PoolNote::Up(ONE))]);
    t.read_slot(0, 2, wants_recycle, &[note(2, PoolNote::Up(ONE))]);
    let again = SlotView { life: Some((epoch(2), Ready, true)), ..free() };
    t.read_slot(1, 1, again, &[note(1, PoolNote::Down(ONE)), note(1, PoolNote::Up(epoch(2))), recycle(W1)]);
    // Drain overwrites the recycle question, which is therefore repeated later.
    t.handle(2, PoolEvent::Drain(W1), &[Slot(W1, Question(SlotQuestion::Drain))]);
    t.handle(3, PoolEvent::Resume(W1), &[Slot(W1, Question(SlotQuestion::Resume))]);
    t.read_slot(4, 1, answered(SlotAnswer::Ack, again), &[recycle(W1)]);
}

fn recycle(n: u16) -> PoolAction {
    Slot(WorkerNumber::of(n), Question(SlotQuestion::Recycle))
}

/// The slot of a worker that has ended this many replacements of its warm process.
fn replaced(ended: u32, last_failed: bool) -> SlotView {
    SlotView { replacements: Replacements { ended, last_failed }, ..free() }
}

/// An operator requests that both workers are recycled.
fn request_both(t: &mut PoolTest) {
    for n in [W1, W2] {
        t.handle(0, PoolEvent::Recycle(n), &[Slot(n, Read)]);
    }
}

#[test]
fn requested_workers_follow_each_other_and_serve_while_their_warm_process_is_replaced() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    request_both(&mut t);
    t.read_slot(0, 1, free(), &[recycle(1)]);
    t.read_slot(0, 2, free(), &[]);
    // Until the worker has accepted it gets no client; this one goes to the other, and the next one waits.
    t.handle(1, Client(1, A), &[offer(2, 1, 1)]);
    t.read_slot(1, 2, accepted(1, 1), &[grant(1, 2, 1, 1)]);
    t.handle(1, Client(2, B), &[]);
    t.read_slot(2, 1, answered(SlotAnswer::Recycle(true), free()), &[offer(1, 2, 2)]);
    t.read_slot(2, 1, accepted(2, 2), &[grant(2, 1, 2, 2)]);
    t.read_slot(3, 1, held(lease(2), Claimed, 2), &[]);
    // The next one follows at the end of the replacement, as soon as it has no request.
    let after = SlotView { replacements: replaced(1, false).replacements, ..held(lease(2), Claimed, 2) };
    t.read_slot(4, 1, after, &[Slot(W2, Read)]);
    t.read_slot(4, 2, held(lease(1), Claimed, 1), &[]);
    t.read_slot(5, 2, held(lease(1), Done, 1), &[Slot(W2, Release(lease(1)))]);
    t.read_slot(5, 2, free(), &[recycle(2)]);
    t.read_slot(6, 2, answered(SlotAnswer::Recycle(true), in_state(Recycling, false)), &[]);
    let next = [note(2, PoolNote::Down(ONE)), note(2, PoolNote::Up(epoch(2)))];
    t.read_slot(7, 2, incarnation(2, Starting, free()), &next);
    t.read_slot(8, 2, incarnation(2, Ready, free()), &[]);
    assert_eq!(t.0.counters().get("recycled"), 2);
    // Each request is for one replacement.
    t.read_slot(9, 2, incarnation(2, Ready, free()), &[]);
    assert!(t.0.workers().iter().all(|worker| !worker.recycle_requested));
}

#[test]
fn failed_replacement_ends_what_was_requested() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    request_both(&mut t);
    t.read_slot(0, 1, free(), &[recycle(1)]);
    t.read_slot(1, 1, answered(SlotAnswer::Recycle(true), free()), &[]);
    t.read_slot(2, 1, replaced(1, true), &[]);
    t.read_slot(3, 2, free(), &[]);
    assert_eq!(t.0.counters().get("recycled"), 0);
    // So does one that takes too long.
    request_both(&mut t);
    t.read_slot(4, 1, replaced(1, true), &[recycle(1)]);
    t.read_slot(5, 1, answered(SlotAnswer::Recycle(true), in_state(Recycling, false)), &[]);
    t.read_slot(6, 1, dead(in_state(Recycling, false)), &[note(1, PoolNote::Down(ONE))]);
    t.read_slot(10_004, 2, free(), &[]);
    assert!(t.0.workers().iter().all(|worker| !worker.recycle_requested));
}

#[test]
fn request_ends_with_the_incarnation_and_not_with_a_refusal() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, PoolEvent::Recycle(W1), &[Slot(W1, Read)]);
    t.read_slot(0, 1, free(), &[recycle(1)]);
    t.read_slot(1, 1, answered(SlotAnswer::Recycle(false), free()), &[]);
    t.read_slot(2, 1, free(), &[recycle(1)]);
    t.read_slot(3, 1, dead(free()), &[note(1, PoolNote::Down(ONE))]);
    t.read_slot(4, 1, incarnation(2, Starting, free()), &[note(1, PoolNote::Up(epoch(2)))]);
    t.read_slot(5, 1, incarnation(2, Ready, free()), &[]);
    t.read_slot(6, 1, incarnation(2, Ready, free()), &[]);
}

#[test]
fn drained_worker_is_recycled_and_gets_no_client() {
    let drained = |view| SlotView { drained: true, ..view };
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, PoolEvent::Drain(W2), &[Slot(W2, Question(SlotQuestion::Drain))]);
    t.read_slot(1, 2, drained(answered(SlotAnswer::Ack, in_state(Draining, false))), &[]);
    t.handle(2, PoolEvent::Recycle(W2), &[Slot(W2, Read)]);
    t.read_slot(2, 2, drained(in_state(Draining, false)), &[recycle(2)]);
    t.read_slot(3, 2, drained(answered(SlotAnswer::Recycle(true), in_state(Draining, false))), &[]);
    t.handle(3, Client(1, A), &[offer(1, 1, 3)]);
    t.handle(4, Client(2, B), &[]);
    let after = SlotView { replacements: replaced(1, false).replacements, ..in_state(Draining, false) };
    t.read_slot(5, 2, drained(after), &[]);
    assert!(t.0.workers().iter().all(|worker| !worker.recycle_requested));
}
