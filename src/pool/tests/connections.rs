//! Leases with a connection that is handed over.

use super::*;

fn pass(worker: u16, client: u64, n: u64, now: u64) -> PoolAction {
    let offer = Offer { epoch: ONE, lease: lease(n), claim_by: at(now + 50), connection: Some(client) };
    Slot(WorkerNumber::of(worker), offer)
}

fn ended(client: u64, worker: u16, n: u64, end: LeaseEnd) -> PoolAction {
    let ended = ClientAction::LeaseEnded { worker: WorkerNumber::of(worker), lease: lease(n), end };
    PoolAction::Client(client, ended)
}

fn claimed(client: u64, worker: u16, n: u64, offered: u64) -> PoolAction {
    let grant = ClientAction::Grant { worker: WorkerNumber::of(worker), lease: lease(n), claim_by: at(offered + 50) };
    PoolAction::Client(client, grant)
}

/// The slot of a living worker with the lease of a passed connection.
fn passed(n: u64, phase: Phase, offered: u64) -> SlotView {
    let view = held(lease(n), phase, offered);
    SlotView { terms: view.terms.map(|terms| LeaseTerms { claim_by: at(offered + 50), ..terms }), ..view }
}

#[test]
fn connection_belongs_to_the_worker_from_claim_to_release() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
    assert_eq!(t.0.workers()[1].silent_since, None, "the claim is the answer to the offer");
    // Accept from the control thread is not the claim.
    t.read_slot(12, 2, answered(SlotAnswer::Accept(lease(1)), passed(1, Offered, 10)), &[]);
    t.read_slot(15, 2, passed(1, Claimed, 10), &[claimed(1, 2, 1, 10)]);
    t.read_slot(20, 2, passed(1, Responding, 10), &[]);
    t.read_slot(30, 2, passed(1, Done, 10), &[ended(1, 2, 1, LeaseEnd::Done), Slot(W2, Release(lease(1)))]);
    t.read_slot(30, 2, free(), &[]);
    // The first read may already find the end.
    t.handle(40, PoolEvent::Connection(2, A), &[pass(2, 2, 2, 40)]);
    let all = [claimed(2, 2, 2, 40), ended(2, 2, 2, LeaseEnd::Done), Slot(W2, Release(lease(2)))];
    t.read_slot(41, 2, passed(2, Done, 40), &all);
}

#[test]
fn unclaimed_connection_is_offered_to_another_worker() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
    t.read_slot(60, 2, passed(1, Offered, 10), &[note(2, PoolNote::Late(lease(1))), Slot(W2, Revoke(lease(1)))]);
    t.read_slot(60, 2, passed(1, Revoked, 10), &[Slot(W2, Release(lease(1))), pass(1, 1, 2, 60)]);
    // The late worker can no longer claim it; the other worker can.
    t.read_slot(61, 1, passed(2, Claimed, 60), &[claimed(1, 1, 2, 60)]);
}

#[test]
fn phase_at_worker_death_decides_what_may_still_be_sent() {
    let claimed_connection = || {
        let mut t = PoolTest::with_idle_workers(LIMITS);
        t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
        t.read_slot(11, 2, passed(1, Claimed, 10), &[claimed(1, 2, 1, 10)]);
        t
    };
    let [down, lost] = [note(2, PoolNote::Down(ONE)), note(2, PoolNote::Lost(lease(1)))];
    let mut t = claimed_connection();
    let cut = [down, lost, ended(1, 2, 1, LeaseEnd::Cut), Slot(W2, Reclaim(lease(1)))];
    t.read_slot(20, 2, dead(passed(1, Responding, 10)), &cut);
    // The dispatcher responds only after the abort, when the worker can no longer respond.
    let mut t = claimed_connection();
    t.read_slot(20, 2, dead(passed(1, Claimed, 10)), &[down, lost, Slot(W2, Abort(lease(1)))]);
    let no_response = [ended(1, 2, 1, LeaseEnd::NoResponse), Slot(W2, Release(lease(1)))];
    t.read_slot(20, 2, dead(passed(1, Aborted, 10)), &no_response);
    // The same for a living worker whose terms name another incarnation; it may start its response before the abort.
    let mut t = claimed_connection();
    let wrong_epoch = |phase| {
        let view = passed(1, phase, 10);
        SlotView { terms: view.terms.map(|terms| LeaseTerms { worker_epoch: ONE.next(), ..terms }), ..view }
    };
    t.read_slot(20, 2, wrong_epoch(Claimed), &[lost, Slot(W2, Abort(lease(1)))]);
    let response_first = [lost, ended(1, 2, 1, LeaseEnd::Cut), Slot(W2, Reclaim(lease(1)))];
    t.read_slot(20, 2, wrong_epoch(Responding), &response_first);
    // Before the claim the connection can be offered to another worker.
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
    let view = dead(passed(1, Offered, 10));
    t.read_slot(20, 2, view, &[note(2, PoolNote::Down(ONE)), Slot(W2, Revoke(lease(1)))]);
}

#[test]
fn connection_with_a_corrupt_slot_is_cut_and_not_offered_again() {
    // The segment was recreated (all zero), or holds a lease that this dispatcher has not issued.
    for view in [free(), passed(9, Done, 10)] {
        let mut t = PoolTest::with_idle_workers(LIMITS);
        t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
        let actions = t.0.handle(at(11), PoolEvent::SlotRead(W2, view));
        assert_eq!(actions[0], ended(1, 2, 1, LeaseEnd::Cut), "{actions:?}");
        assert!(!actions.iter().any(|action| matches!(action, Slot(_, Offer { .. }))), "{actions:?}");
    }
    // The same while the offer is being revoked.
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
    t.read_slot(60, 2, passed(1, Offered, 10), &[note(2, PoolNote::Late(lease(1))), Slot(W2, Revoke(lease(1)))]);
    t.read_slot(60, 2, free(), &[ended(1, 2, 1, LeaseEnd::Cut)]);
}

#[test]
fn overdue_request_is_aborted_so_that_the_dispatcher_responds() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
    t.read_slot(11, 2, passed(1, Claimed, 10), &[claimed(1, 2, 1, 10)]);
    let overdue = 11 + LIMITS.request_timeout.as_millis() as u64 + 2000;
    t.read_slot(overdue - 1, 2, passed(1, Claimed, 10), &[]);
    t.read_slot(overdue, 2, passed(1, Claimed, 10), &[Slot(W2, Abort(lease(1)))]);
    let end = [ended(1, 2, 1, LeaseEnd::Overdue), Slot(W2, Release(lease(1)))];
    t.read_slot(overdue, 2, passed(1, Aborted, 10), &end);
}

#[test]
fn worker_that_missed_an_offer_is_used_last() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
    t.read_slot(60, 2, passed(1, Offered, 10), &[note(2, PoolNote::Late(lease(1))), Slot(W2, Revoke(lease(1)))]);
    t.read_slot(60, 2, passed(1, Revoked, 10), &[Slot(W2, Release(lease(1))), pass(1, 1, 2, 60)]);
    t.read_slot(
        61,
        1,
        passed(2, Done, 60),
        &[claimed(1, 1, 2, 60), ended(1, 1, 2, LeaseEnd::Done), Slot(W1, Release(lease(2)))],
    );
    t.read_slot(61, 1, free(), &[]);
    // An answer of its control thread does not prove that its serving thread works.
    t.read_slot(70, 2, answered(SlotAnswer::Ack, free()), &[note(2, PoolNote::Back)]);
    t.handle(80, PoolEvent::Connection(2, A), &[pass(1, 2, 3, 80)]);
    t.handle(80, PoolEvent::Connection(3, A), &[pass(2, 3, 4, 80)]);
    t.read_slot(
        81,
        2,
        passed(4, Done, 80),
        &[claimed(3, 2, 4, 80), ended(3, 2, 4, LeaseEnd::Done), Slot(W2, Release(lease(4)))],
    );
    t.read_slot(81, 2, free(), &[]);
    t.handle(90, PoolEvent::Connection(4, A), &[pass(2, 4, 5, 90)]);
}
