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
