//! Offers, their deadlines, and the choice of the next worker.

use super::*;

#[test]
fn client_gets_the_most_recently_idle_worker() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.assert_deadline(None);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(0, 2, held(lease(1), Offered, 0), &[]);
    t.assert_deadline(50);
    t.read_slot(1, 2, accepted(1, 0), &[grant(1, 2, 1, 0)]);
    t.assert_deadline(101);
    t.handle(101, Tick, &[Slot(W2, Read)]);
    t.read_slot(101, 2, held(lease(1), Responding, 0), &[]);
    t.assert_deadline(201);
    t.read_slot(102, 2, held(lease(1), Done, 0), &[Slot(W2, Release(lease(1)))]);
    t.read_slot(102, 2, free(), &[]);
    t.assert_deadline(None);
    assert!(t.0.is_quiet());
    t.handle(103, Client(2, A), &[offer(2, 2, 103)]);
}

#[test]
fn refused_offer_goes_to_the_next_worker() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    let refuse = SlotAnswer::Refuse(lease(1), RefuseReason::Draining);
    let draining = SlotView { life: Some((ONE, Draining, false)), ..held(lease(1), Offered, 0) };
    t.read_slot(1, 2, answered(refuse, draining), &[Slot(W2, Revoke(lease(1)))]);
    t.read_slot(
        1,
        2,
        SlotView { claim: Some(Claim::Held(lease(1), Revoked)), ..draining },
        &[Slot(W2, Release(lease(1))), offer(1, 2, 1)],
    );
    t.read_slot(1, 2, in_state(Draining, false), &[]);
    t.read_slot(2, 1, accepted(2, 1), &[grant(1, 1, 2, 1)]);
    t.handle(3, Client(2, B), &[]); // a draining worker gets nothing
}

#[test]
fn late_worker_gets_no_offer_until_it_answers() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(49, 2, held(lease(1), Offered, 0), &[]);
    t.handle(50, Tick, &[Slot(W2, Read)]);
    t.read_slot(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Slot(W2, Revoke(lease(1)))]);
    t.read_slot(50, 2, held(lease(1), Revoked, 0), &[Slot(W2, Release(lease(1))), offer(1, 2, 50)]);
    t.read_slot(50, 2, free(), &[]);
    t.read_slot(51, 1, accepted(2, 50), &[grant(1, 1, 2, 50)]);
    t.handle(52, Client(2, A), &[]);
    assert!(t.0.workers()[1].is_late());
    let late = answered(SlotAnswer::Refuse(lease(1), RefuseReason::Stale), free());
    t.read_slot(60, 2, late, &[note(2, PoolNote::Back), offer(2, 3, 60)]);
}

#[test]
fn worker_that_missed_an_offer_is_used_last_until_it_has_served() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Slot(W2, Revoke(lease(1)))]);
    t.read_slot(50, 2, held(lease(1), Revoked, 0), &[Slot(W2, Release(lease(1))), offer(1, 2, 50)]);
    t.read_slot(50, 2, answered(SlotAnswer::Ack, free()), &[note(2, PoolNote::Back)]);
    t.handle(60, Client(2, B), &[offer(2, 3, 60)]);
    t.read_slot(60, 2, accepted(3, 60), &[grant(2, 2, 3, 60)]);
    t.read_slot(61, 1, accepted(2, 50), &[grant(1, 1, 2, 50)]);
    t.read_slot(61, 1, held(lease(2), Claimed, 50), &[]);
    t.finish(62, 1, 2, &[]);
    t.read_slot(63, 2, held(lease(3), Claimed, 60), &[]);
    t.finish(64, 2, 3, &[]);
    t.handle(65, Client(3, A), &[offer(2, 4, 65)]);
}

#[test]
fn answer_found_by_the_read_at_the_deadline_is_not_late() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.handle(70, Tick, &[Slot(W2, Read)]);
    t.read_slot(70, 2, accepted(1, 0), &[grant(1, 2, 1, 0)]);
}

#[test]
fn accept_after_the_claim_deadline_is_revoked() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(1050, 2, accepted(1, 0), &[Slot(W2, Revoke(lease(1)))]);
    t.read_slot(1050, 2, held(lease(1), Revoked, 0), &[refuse(1, timeout(1050)), Slot(W2, Release(lease(1)))]);
    t.read_slot(1050, 2, free(), &[]);
    t.handle(1051, Client(2, A), &[offer(2, 2, 1051)]); // the worker is not late, and the peer is not limited
    t.handle(1052, Client(3, A), &[offer(1, 3, 1052)]);
}

#[test]
fn accept_of_a_dead_worker_is_revoked() {
    for make_dead in [dead as fn(SlotView) -> SlotView, |view| incarnation(2, Starting, view)] {
        let mut t = PoolTest::with_idle_workers(LIMITS);
        t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
        let actions = t.0.handle(at(1), PoolEvent::SlotRead(W2, make_dead(accepted(1, 0))));
        assert!(
            actions.contains(&note(2, PoolNote::Down(ONE))) && actions.ends_with(&[Slot(W2, Revoke(lease(1)))]),
            "{actions:?}"
        );
        assert!(!actions.contains(&grant(1, 2, 1, 0)));
        t.read_slot(1, 2, make_dead(held(lease(1), Revoked, 0)), &[Slot(W2, Release(lease(1))), offer(1, 2, 1)]);
    }
}

#[test]
fn claimed_client_is_not_offered_to_another_worker() {
    // The worker was faster than the revocation.
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Slot(W2, Revoke(lease(1)))]);
    t.read_slot(50, 2, held(lease(1), Claimed, 0), &[grant(1, 2, 1, 0)]);
    assert_eq!(t.hold(2), Hold::Busy(lease(1)));
    // The worker claimed before its answer was read, and died.
    t.handle(60, Client(2, A), &[offer(1, 2, 60)]);
    t.read_slot(
        61,
        1,
        dead(held(lease(2), Claimed, 60)),
        &[
            note(1, PoolNote::Down(ONE)),
            grant(2, 1, 2, 60),
            note(1, PoolNote::Lost(lease(2))),
            Slot(W1, Abort(lease(2))),
        ],
    );
    assert!(t.0.is_quiet() || t.0.waiting().0 == 0);
}

#[test]
fn client_of_a_worker_that_dies_before_its_answer_is_offered_to_another() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(10, 2, dead(held(lease(1), Offered, 0)), &[note(2, PoolNote::Down(ONE)), Slot(W2, Revoke(lease(1)))]);
    t.read_slot(10, 2, dead(held(lease(1), Revoked, 0)), &[Slot(W2, Release(lease(1))), offer(1, 2, 10)]);
    t.read_slot(10, 2, dead(free()), &[]);
    t.read_slot(90, 2, incarnation(2, Starting, free()), &[note(2, PoolNote::Up(epoch(2)))]);
    t.handle(91, Client(2, A), &[]);
    let next = Offer { epoch: epoch(2), lease: lease(3), claim_by: at(95 + 1050), connection: None };
    t.read_slot(95, 2, incarnation(2, Ready, free()), &[Slot(W2, next)]);
}
