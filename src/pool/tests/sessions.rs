//! The permission for sessions.

use super::*;
use crate::ids::SessionRequest;
use crate::pool::SlotAction;

/// The same slot, whose worker wants a session for the lease in it.
fn wanted(view: SlotView) -> SlotView {
    let lease = view.claim.and_then(Claim::in_service);
    SlotView { session: SessionRequest { wanted: lease, decided: view.session.decided }, ..view }
}

/// The same slot after a decision about this lease.
fn decided(lease: LeaseId, is_permitted: bool, view: SlotView) -> SlotView {
    SlotView { session: SessionRequest { wanted: Some(lease), decided: Some((lease, is_permitted)) }, ..view }
}

fn decide(worker: u16, n: u64, is_permitted: bool) -> PoolAction {
    Slot(WorkerNumber::of(worker), SlotAction::DecideSession { lease: lease(n), is_permitted })
}

#[test]
fn sessions_are_permitted_up_to_the_limit_and_again_after_the_end_of_one() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.serve(0, (1, A), 2, 1);
    t.serve(0, (2, A), 1, 2);
    t.read_slot(1, 2, wanted(held(lease(1), Claimed, 0)), &[decide(2, 1, true)]);
    t.read_slot(1, 2, decided(lease(1), true, held(lease(1), Claimed, 0)), &[]);
    // In the same moment, before the first worker has made a step.
    t.read_slot(1, 1, wanted(held(lease(2), Claimed, 0)), &[decide(1, 2, false)]);
    t.read_slot(1, 1, decided(lease(2), false, held(lease(2), Done, 0)), &[Slot(W1, Release(lease(2)))]);
    for phase in [Responding, Upgraded] {
        t.read_slot(2, 2, decided(lease(1), true, held(lease(1), phase, 0)), &[]);
    }
    t.read_slot(2, 1, decided(lease(2), false, free()), &[]);
    t.serve(3, (3, A), 1, 3);
    t.read_slot(3, 1, wanted(held(lease(3), Claimed, 3)), &[decide(1, 3, false)]);
    t.read_slot(4, 2, decided(lease(1), true, held(lease(1), Done, 0)), &[Slot(W2, Release(lease(1)))]);
    t.read_slot(4, 2, decided(lease(1), true, free()), &[]);
    t.read_slot(5, 1, decided(lease(3), false, held(lease(3), Done, 3)), &[Slot(W1, Release(lease(3)))]);
    t.read_slot(5, 1, decided(lease(3), false, free()), &[]);
    t.serve(6, (4, A), 1, 4);
    t.read_slot(6, 1, wanted(decided(lease(3), false, held(lease(4), Claimed, 6))), &[decide(1, 4, true)]);
}

#[test]
fn next_dispatcher_counts_the_sessions_that_the_slots_show() {
    let old = LeaseId::of(epoch(6), 99);
    let mut t = PoolTest::new(LIMITS);
    t.read_slot(0, 1, decided(old, true, held(old, Upgraded, 0)), &[note(1, PoolNote::Up(ONE))]);
    t.read_slot(0, 2, free(), &[note(2, PoolNote::Up(ONE))]);
    t.serve(1, (1, A), 2, 1);
    t.read_slot(2, 2, wanted(held(lease(1), Claimed, 1)), &[decide(2, 1, false)]);
}

#[test]
fn next_dispatcher_permits_nothing_before_it_knows_all_sessions() {
    let old = LeaseId::of(epoch(6), 99);
    let other = LeaseId::of(epoch(6), 98);
    let up = |worker| note(worker, PoolNote::Up(ONE));
    for (first, permitted) in [(decided(old, true, held(old, Upgraded, 0)), false), (free(), true)] {
        let mut t = PoolTest::new(LIMITS);
        t.read_slot(0, 2, wanted(held(other, Claimed, 0)), &[up(2)]);
        t.read_slot(1, 1, first, &[up(1)]);
        let decision = SlotAction::DecideSession { lease: other, is_permitted: permitted };
        t.read_slot(2, 2, wanted(held(other, Claimed, 0)), &[Slot(W2, decision)]);
    }
    // As long as the slot of a living worker is corrupt, its session is not known either.
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.serve(0, (1, A), 2, 1);
    t.0.handle(at(1), PoolEvent::SlotRead(W1, SlotView { claim: None, ..free() }));
    t.read_slot(1, 2, wanted(held(lease(1), Claimed, 0)), &[]);
}

#[test]
fn recycling_withdraws_the_permission_and_the_session_counts_until_its_end() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.serve(0, (1, A), 2, 1);
    t.read_slot(1, 2, decided(lease(1), true, held(lease(1), Upgraded, 0)), &[]);
    t.handle(2, PoolEvent::Recycle(W2), &[decide(2, 1, false), Slot(W2, Read)]);
    t.read_slot(2, 2, decided(lease(1), false, held(lease(1), Upgraded, 0)), &[]);
    t.serve(3, (2, A), 1, 2);
    t.read_slot(3, 1, wanted(held(lease(2), Claimed, 3)), &[decide(1, 2, false)]);
}

#[test]
fn dead_worker_has_its_session_until_the_lease_is_reclaimed() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.serve(0, (1, A), 2, 1);
    let session = |phase| decided(lease(1), true, held(lease(1), phase, 0));
    t.read_slot(1, 2, session(Upgraded), &[]);
    let lost = [note(2, PoolNote::Down(ONE)), note(2, PoolNote::Lost(lease(1))), Slot(W2, Reclaim(lease(1)))];
    t.read_slot(2, 2, dead(session(Upgraded)), &lost);
    t.serve(3, (2, A), 1, 2);
    t.read_slot(3, 1, wanted(held(lease(2), Claimed, 3)), &[decide(1, 2, false)]);
    t.read_slot(4, 2, dead(decided(lease(1), true, free())), &[]);
    t.read_slot(5, 1, decided(lease(2), false, held(lease(2), Done, 3)), &[Slot(W1, Release(lease(2)))]);
    t.read_slot(5, 1, free(), &[]);
    t.serve(6, (3, A), 1, 3);
    t.read_slot(6, 1, wanted(held(lease(3), Claimed, 6)), &[decide(1, 3, true)]);
}

#[test]
fn nothing_is_decided_for_a_lease_that_no_living_worker_serves() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.serve(0, (1, A), 2, 1);
    let other =
        SlotView { session: SessionRequest { wanted: Some(lease(9)), decided: None }, ..held(lease(1), Claimed, 0) };
    t.read_slot(1, 2, other, &[]);
    let gone = wanted(incarnation(2, Ready, held(lease(1), Claimed, 0)));
    let actions = t.0.handle(at(2), PoolEvent::SlotRead(W2, gone));
    assert!(!actions.iter().any(|action| matches!(action, Slot(_, SlotAction::DecideSession { .. }))), "{actions:?}");
}
