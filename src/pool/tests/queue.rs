//! Queued clients: limit, order, timeout, refusal.

use super::*;

#[test]
fn queue_keeps_its_limit_order_and_timeout() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.serve(0, (1, A), 2, 1);
    t.serve(0, (2, A), 1, 2);
    t.handle(10, Client(3, A), &[]);
    t.handle(20, Client(4, B), &[]);
    t.handle(30, Client(5, A), &[refuse(5, Refusal::QueueFull(2))]);
    assert_eq!(t.0.waiting(), (2, Some(at(10))));
    t.finish(100, 1, 2, &[offer(1, 3, 100)]); // client 3
    t.handle(110, Client(6, A), &[]);
    // Queued again, client 3 is ahead of 4 and 6, although the queue is full without it.
    t.read_slot(150, 1, held(lease(3), Offered, 100), &[note(1, PoolNote::Late(lease(3))), Slot(W1, Revoke(lease(3)))]);
    t.read_slot(150, 1, held(lease(3), Revoked, 100), &[Slot(W1, Release(lease(3)))]);
    assert_eq!(t.0.waiting(), (3, Some(at(10))));
    t.handle(160, Client(7, A), &[refuse(7, Refusal::QueueFull(2))]);
    t.finish(200, 2, 1, &[offer(2, 4, 200)]);
    t.read_slot(201, 2, accepted(4, 200), &[grant(3, 2, 4, 200)]);
    t.handle(519, Tick, &[Slot(W1, Read), Slot(W2, Read)]);
    t.handle(520, Tick, &[refuse(4, timeout(500))]);
    t.handle(610, Tick, &[refuse(6, timeout(500))]);
    assert_eq!(t.0.waiting(), (0, None));
}

#[test]
fn full_queue_loses_the_newest_client_of_the_largest_address() {
    let c = Peer::User(1001);
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 1, queue: 3, ..LIMITS });
    t.serve(0, (1, A), 1, 1);
    for id in 2..=4 {
        t.handle(id, Client(id, A), &[]);
    }
    t.handle(5, Client(5, A), &[refuse(5, Refusal::QueueFull(3))]);
    t.handle(6, Client(6, B), &[refuse(4, Refusal::QueueFull(3))]);
    t.handle(7, PoolEvent::Connection(7, c), &[refuse(3, Refusal::QueueFull(3))]);
    t.handle(8, Client(8, c), &[refuse(8, Refusal::QueueFull(3))]);
    // The refused clients have left nothing behind: no timer, no turn.
    t.handle(502, Tick, &[Slot(W1, Read), refuse(2, timeout(500))]);
    t.handle(505, Tick, &[]);
    t.assert_deadline(506);
    t.finish(505, 1, 1, &[offer(1, 2, 505)]);
    assert_eq!(t.0.waiting(), (1, Some(at(7))));
}

#[test]
fn full_queue_refuses_the_new_client_among_addresses_with_equally_many() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 1, ..LIMITS });
    t.serve(0, (1, A), 1, 1);
    t.handle(1, Client(2, A), &[]);
    t.handle(2, Client(3, B), &[]);
    for (id, peer) in [(4, Peer::User(1)), (5, Peer::User(u32::MAX)), (6, A), (7, B)] {
        t.handle(id, Client(id, peer), &[refuse(id, Refusal::QueueFull(2))]);
    }
    assert_eq!(t.0.waiting(), (2, Some(at(1))));
}

#[test]
fn addresses_take_turns_across_deliveries_and_failed_offers() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 1, queue: 9, ..LIMITS });
    t.serve(0, (1, A), 1, 1);
    for id in 2..=4 {
        t.handle(1, Client(id, A), &[]);
    }
    t.handle(2, Client(5, B), &[]);
    t.finish(3, 1, 1, &[offer(1, 2, 3)]);
    // The worker refuses the offer: client 2 is the next one all the same.
    let refused = answered(SlotAnswer::Refuse(lease(2), RefuseReason::Busy), held(lease(2), Offered, 3));
    t.read_slot(4, 1, refused, &[Slot(W1, Revoke(lease(2)))]);
    t.read_slot(4, 1, held(lease(2), Revoked, 3), &[Slot(W1, Release(lease(2)))]);
    t.read_slot(4, 1, free(), &[offer(1, 3, 4)]);
    for (n, client) in [(3, 2), (4, 5), (5, 3)] {
        t.read_slot(5, 1, accepted(n, 4), &[grant(client, 1, n, 4)]);
        t.read_slot(5, 1, held(lease(n), Claimed, 4), &[]);
        t.finish(4, 1, n, &[offer(1, n + 1, 4)]);
    }
}

#[test]
fn client_past_queue_timeout_is_not_queued_again() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 1, ..LIMITS });
    t.serve(0, (1, A), 1, 1);
    t.handle(0, Client(2, A), &[]);
    t.finish(490, 1, 1, &[offer(1, 2, 490)]);
    t.read_slot(540, 1, held(lease(2), Offered, 490), &[note(1, PoolNote::Late(lease(2))), Slot(W1, Revoke(lease(2)))]);
    t.read_slot(540, 1, held(lease(2), Revoked, 490), &[refuse(2, timeout(540)), Slot(W1, Release(lease(2)))]);
}

#[test]
fn client_may_disconnect_at_any_time() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 1, ..LIMITS });
    // While its offer is pending.
    t.handle(0, Client(1, A), &[offer(1, 1, 0)]);
    t.handle(1, Disconnected(1), &[Slot(W1, Revoke(lease(1)))]);
    t.read_slot(1, 1, held(lease(1), Revoked, 0), &[Slot(W1, Release(lease(1)))]);
    t.read_slot(1, 1, free(), &[]);
    // While it is queued.
    t.serve(2, (2, A), 1, 2);
    t.handle(3, Client(3, A), &[]);
    t.handle(4, Disconnected(3), &[]);
    assert_eq!(t.0.waiting(), (0, None));
    t.finish(5, 1, 2, &[]);
    t.assert_deadline(None);
    // While its offer is being revoked.
    t.handle(6, Client(4, A), &[offer(1, 3, 6)]);
    t.read_slot(56, 1, held(lease(3), Offered, 6), &[note(1, PoolNote::Late(lease(3))), Slot(W1, Revoke(lease(3)))]);
    t.handle(56, Disconnected(4), &[]);
    t.read_slot(56, 1, held(lease(3), Revoked, 6), &[Slot(W1, Release(lease(3)))]);
    assert_eq!(t.0.waiting(), (0, None));
    // After the grant: the lease stays until it is claimed or its time is over.
    t.read_slot(57, 1, answered(SlotAnswer::Ack, free()), &[note(1, PoolNote::Back)]);
    t.handle(60, Client(5, A), &[offer(1, 4, 60)]);
    t.read_slot(61, 1, accepted(4, 60), &[grant(5, 1, 4, 60)]);
    t.handle(62, Disconnected(5), &[]);
    assert!(matches!(t.hold(1), Hold::Granted(offer) if offer.lease == lease(4)));
}

#[test]
fn stopping_set_refuses_every_client() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 1, ..LIMITS });
    t.handle(0, Client(1, A), &[offer(1, 1, 0)]);
    t.handle(0, Client(2, A), &[]);
    t.handle(1, Quiesce, &[refuse(2, Refusal::Stopping)]);
    t.handle(1, Client(3, A), &[refuse(3, Refusal::Stopping)]);
    assert!(!t.0.is_quiet());
    t.read_slot(50, 1, held(lease(1), Offered, 0), &[note(1, PoolNote::Late(lease(1))), Slot(W1, Revoke(lease(1)))]);
    t.read_slot(50, 1, held(lease(1), Revoked, 0), &[refuse(1, Refusal::Stopping), Slot(W1, Release(lease(1)))]);
    t.read_slot(50, 1, free(), &[]);
    assert!(t.0.is_quiet());
    t.assert_deadline(None);
}

#[test]
fn added_worker_serves_queued_clients() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 1, ..LIMITS });
    t.serve(0, (1, A), 1, 1);
    t.handle(1, Client(2, A), &[]);
    t.0.reconfigure(LIMITS);
    t.assert_deadline(0);
    t.handle(2, Tick, &[Slot(W1, Read), Slot(W2, Read)]);
    t.read_slot(2, 1, held(lease(1), Claimed, 0), &[]);
    t.read_slot(2, 2, SlotView::default(), &[Slot(W2, Clear)]);
    t.read_slot(3, 2, free(), &[note(2, PoolNote::Up(ONE)), offer(2, 2, 3)]);
}

#[test]
fn pool_shrinks_and_grows_while_clients_are_queued() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.serve(0, (1, A), 2, 1);
    t.0.reconfigure(PoolLimits { workers: 1, ..LIMITS });
    t.handle(1, Tick, &[Slot(W1, Read), Slot(W2, Read)]);
    t.read_slot(1, 1, free(), &[]);
    t.read_slot(1, 2, held(lease(1), Claimed, 0), &[]);
    t.serve(2, (2, A), 1, 2);
    t.handle(3, Client(3, A), &[]);
    t.finish(4, 2, 1, &[]); // worker 2 is surplus and gets no new client
    assert_eq!(t.0.workers().len(), 2);
    t.0.reconfigure(LIMITS);
    t.assert_deadline(0);
    t.handle(5, Tick, &[Slot(W1, Read), Slot(W2, Read), offer(2, 3, 5)]);
    t.read_slot(6, 2, accepted(3, 5), &[grant(3, 2, 3, 5)]);
    t.0.reconfigure(PoolLimits { workers: 0, ..LIMITS });
    t.read_slot(7, 2, dead(held(lease(3), Offered, 5)), &[note(2, PoolNote::Down(ONE)), Slot(W2, Revoke(lease(3)))]);
    t.read_slot(7, 2, dead(held(lease(3), Revoked, 5)), &[Slot(W2, Release(lease(3)))]);
    t.read_slot(7, 2, dead(free()), &[]);
    assert_eq!(t.0.workers().len(), 1, "worker 2 is removed, worker 1 still serves");
    t.read_slot(8, 2, free(), &[]); // worker 2 is unknown
}

#[test]
fn pool_without_a_queue_refuses_when_no_worker_is_free() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { queue: 0, ..LIMITS });
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.serve(1, (2, A), 1, 2);
    t.handle(2, Client(3, A), &[refuse(3, Refusal::NoWorkerFree)]);
    t.read_slot(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Slot(W2, Revoke(lease(1)))]);
    t.read_slot(50, 2, held(lease(1), Revoked, 0), &[Slot(W2, Release(lease(1))), refuse(1, Refusal::NoWorkerFree)]);
    t.assert_deadline(101);

    // An idle worker that is being recycled is not free.
    let mut t = PoolTest::with_idle_workers(PoolLimits { queue: 0, ..LIMITS });
    t.read_slot(0, 1, in_state(Ready, true), &[Slot(W1, Question(SlotQuestion::Recycle))]);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Slot(W2, Revoke(lease(1)))]);
    t.read_slot(50, 2, held(lease(1), Revoked, 0), &[Slot(W2, Release(lease(1))), refuse(1, Refusal::NoWorkerFree)]);

    // While another worker is free, a missed offer does not end in a refusal.
    let mut t = PoolTest::with_idle_workers(PoolLimits { queue: 0, queue_timeout: Duration::ZERO, ..LIMITS });
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Slot(W2, Revoke(lease(1)))]);
    t.read_slot(50, 2, held(lease(1), Revoked, 0), &[Slot(W2, Release(lease(1))), offer(1, 2, 50)]);
}
