//! Workers out of service: drained by an operator, or failed.

use super::*;

#[test]
fn operator_drains_and_resumes_a_worker() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, PoolEvent::Drain(W2), &[Slot(W2, Question(SlotQuestion::Drain))]);
    let drained = |view| SlotView { drained: true, ..view };
    t.handle(0, Client(1, A), &[offer(1, 1, 0)]);
    t.read_slot(1, 2, drained(answered(SlotAnswer::Ack, in_state(Draining, false))), &[]);
    t.handle(2, Client(2, A), &[]);
    t.read_slot(
        3,
        2,
        drained(incarnation(2, Ready, free())),
        &[note(2, PoolNote::Down(ONE)), note(2, PoolNote::Up(epoch(2)))],
    );
    let next = Offer { epoch: epoch(2), lease: lease(2), claim_by: at(4 + 1050), connection: None };
    t.handle(4, PoolEvent::Resume(W2), &[Slot(W2, Question(SlotQuestion::Resume)), Slot(W2, next)]);
}

#[test]
fn clients_are_refused_when_every_worker_is_drained() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    let drained = |view| SlotView { drained: true, ..view };
    let out_of_service = |client| refuse(client, Refusal::OutOfService);
    t.serve(0, (1, A), 2, 1);
    t.handle(2, Client(2, A), &[offer(1, 2, 2)]);
    t.handle(3, Client(3, A), &[]);
    t.handle(4, PoolEvent::Drain(W2), &[Slot(W2, Question(SlotQuestion::Drain))]);
    // The last worker is drained: the queued client is refused, and the offered one after its offer is revoked.
    t.handle(
        5,
        PoolEvent::Drain(W1),
        &[Slot(W1, Revoke(lease(2))), Slot(W1, Question(SlotQuestion::Drain)), out_of_service(3)],
    );
    t.read_slot(5, 1, drained(held(lease(2), Revoked, 2)), &[Slot(W1, Release(lease(2))), out_of_service(2)]);
    t.handle(6, Client(4, A), &[out_of_service(4)]);
    // A dead drained worker is still out of service; after a resume clients are queued again.
    t.read_slot(7, 1, drained(dead(free())), &[note(1, PoolNote::Down(ONE))]);
    t.handle(8, Client(5, A), &[out_of_service(5)]);
    t.handle(9, PoolEvent::Resume(W1), &[Slot(W1, Question(SlotQuestion::Resume))]);
    t.handle(9, Client(6, A), &[]);
}

#[test]
fn clients_are_refused_when_every_worker_has_failed() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    let failed = |client| refuse(client, Refusal::Failed);
    t.read_slot(0, 1, dead(free()), &[note(1, PoolNote::Down(ONE))]);
    // The report does not apply while a worker is alive.
    t.handle(1, PoolEvent::Failed(true), &[]);
    t.serve(2, (1, A), 2, 1);
    t.handle(3, Client(2, A), &[]);
    t.read_slot(
        4,
        2,
        dead(held(lease(1), Claimed, 2)),
        &[note(2, PoolNote::Down(ONE)), note(2, PoolNote::Lost(lease(1))), Slot(W2, Abort(lease(1))), failed(2)],
    );
    t.handle(5, Client(3, A), &[failed(3)]);
    // A worker may attach before the watchdog reports it.
    t.read_slot(6, 1, incarnation(2, Ready, free()), &[note(1, PoolNote::Up(epoch(2)))]);
    let again = Offer { epoch: epoch(2), lease: lease(2), claim_by: at(7 + 1050), connection: None };
    t.handle(7, Client(4, A), &[Slot(W1, again)]);
    t.handle(8, PoolEvent::Failed(false), &[]);
    // Clients are queued for a dead worker that has not failed.
    t.handle(9, Disconnected(4), &[Slot(W1, Revoke(lease(2)))]);
    t.read_slot(10, 1, dead(free()), &[note(1, PoolNote::Down(epoch(2)))]);
    t.handle(11, Client(5, A), &[]);
}

#[test]
fn drain_or_resume_revokes_a_pending_offer() {
    for (event, question) in
        [(PoolEvent::Drain(W2), SlotQuestion::Drain), (PoolEvent::Resume(W2), SlotQuestion::Resume)]
    {
        let mut t = PoolTest::with_idle_workers(LIMITS);
        t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
        t.handle(1, event, &[Slot(W2, Revoke(lease(1))), Slot(W2, Question(question))]);
        t.read_slot(1, 2, held(lease(1), Revoked, 0), &[Slot(W2, Release(lease(1))), offer(1, 2, 1)]);
    }
}
