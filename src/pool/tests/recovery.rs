//! Dead workers, earlier dispatchers, corrupt slots.

use super::*;
use crate::bounds::DISPATCHER_GRACE;

#[test]
fn worker_death_with_a_request_ends_the_lease() {
    // (phase at its death, what ends the lease, phase after that)
    for (phase, step, after) in [
        (Claimed, Slot(W2, Abort(lease(1))), Some(Aborted)),
        (Responding, Slot(W2, Reclaim(lease(1))), None),
        (Upgraded, Slot(W2, Reclaim(lease(1))), None),
    ] {
        for make_dead in [dead as fn(SlotView) -> SlotView, |view| incarnation(2, Ready, view)] {
            let mut t = PoolTest::with_idle_workers(LIMITS);
            t.serve(0, (1, A), 2, 1);
            t.read_slot(1, 2, held(lease(1), phase, 0), &[]);
            let actions = t.0.handle(at(2), PoolEvent::SlotRead(W2, make_dead(held(lease(1), phase, 0))));
            assert_eq!(actions[0], note(2, PoolNote::Down(ONE)));
            assert!(actions.ends_with(&[note(2, PoolNote::Lost(lease(1))), step]), "{actions:?}");
            if let Some(after) = after {
                t.read_slot(2, 2, make_dead(held(lease(1), after, 0)), &[Slot(W2, Release(lease(1)))]);
            }
            t.read_slot(2, 2, make_dead(free()), &[]);
            assert!(t.0.is_quiet());
            t.assert_deadline(None);
        }
    }
}

#[test]
fn leases_of_an_earlier_dispatcher_are_recovered_or_ended() {
    let old = LeaseId::of(epoch(6), 99);
    let up = note(1, PoolNote::Up(ONE));
    let fresh = || PoolTest::new(PoolLimits { workers: 1, ..LIMITS });

    // Offered: the client may still claim until the deadline.
    let mut t = fresh();
    t.read_slot(0, 1, held(old, Offered, 0), &[up]);
    assert_eq!(t.hold(1), Hold::Recovered { lease: old, claim_by: at(1050) });
    t.handle(1, Client(1, A), &[]);
    t.read_slot(2, 1, held(old, Claimed, 0), &[]);
    t.read_slot(3, 1, held(old, Responding, 0), &[]);
    t.read_slot(4, 1, held(old, Done, 0), &[Slot(W1, Release(old))]);
    t.read_slot(4, 1, free(), &[offer(1, 1, 4)]);

    let mut t = fresh();
    t.read_slot(0, 1, held(old, Offered, 0), &[up]);
    t.read_slot(1050, 1, held(old, Offered, 0), &[note(1, PoolNote::Unclaimed(old)), Slot(W1, Revoke(old))]);

    // Offered to a dead worker, or too long ago.
    let mut t = fresh();
    t.read_slot(0, 1, dead(held(old, Offered, 0)), &[Slot(W1, Revoke(old))]);
    let mut t = fresh();
    t.read_slot(2000, 1, held(old, Offered, 0), &[up, Slot(W1, Revoke(old))]);

    for phase in [Claimed, Responding, Upgraded] {
        let mut t = fresh();
        t.read_slot(0, 1, held(old, phase, 0), &[up]);
        assert_eq!(t.hold(1), Hold::Busy(old));
        t.assert_deadline(100);
    }
    for phase in [Done, Revoked, Aborted] {
        for alive in [true, false] {
            let mut t = fresh();
            let actions = t.0.handle(at(0), PoolEvent::SlotRead(W1, SlotView { alive, ..held(old, phase, 0) }));
            assert_eq!(actions.last(), Some(&Slot(W1, Release(old))), "{phase:?}");
        }
    }
    let mut t = fresh();
    t.read_slot(0, 1, dead(held(old, Claimed, 0)), &[note(1, PoolNote::Lost(old)), Slot(W1, Abort(old))]);
    let mut t = fresh();
    t.read_slot(0, 1, dead(held(old, Responding, 0)), &[note(1, PoolNote::Lost(old)), Slot(W1, Reclaim(old))]);
}

#[test]
fn corrupt_slot_gets_no_offer_and_is_cleared_only_after_its_worker_died() {
    let corrupt = SlotView { claim: None, ..free() };
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(1, 2, corrupt, &[note(2, PoolNote::Corrupt), offer(1, 2, 1)]);
    assert!(t.0.workers()[1].is_corrupt());
    t.assert_deadline(51);
    t.read_slot(101, 2, corrupt, &[]); // reported once
    t.read_slot(102, 2, dead(corrupt), &[note(2, PoolNote::Down(ONE)), Slot(W2, Clear)]);
    t.read_slot(102, 2, dead(free()), &[]);
    assert!(!t.0.workers()[1].is_corrupt());

    // The lease of a living worker is not ended because its incarnation or its terms cannot be read.
    for phase in [Claimed, Responding] {
        let intact = held(lease(1), phase, 0);
        for unreadable in [SlotView { terms: None, ..intact }, SlotView { life: None, ..intact }] {
            let mut t = PoolTest::with_idle_workers(LIMITS);
            t.serve(0, (1, A), 2, 1);
            let actions = t.0.handle(at(1), PoolEvent::SlotRead(W2, unreadable));
            assert_eq!(actions.last(), Some(&note(2, PoolNote::Corrupt)), "{actions:?}");
            assert_eq!(t.hold(2), Hold::Corrupt);
        }
    }
}

#[test]
fn adopted_connection_gets_the_end_of_its_lease() {
    let old = LeaseId::of(epoch(6), 99);
    let view = |phase| held(old, phase, 0);
    let adopt = || {
        let mut t = PoolTest::new(PoolLimits { workers: 1, ..LIMITS });
        t.handle(500, PoolEvent::Adopted(W1, 7, view(Claimed).terms.unwrap()), &[]);
        t
    };
    let ended = |end| PoolAction::Client(7, ClientAction::LeaseEnded { worker: W1, lease: old, end });
    let (up, lost) = (note(1, PoolNote::Up(ONE)), note(1, PoolNote::Lost(old)));

    // It died while there was no dispatcher, in Claimed or in Responding.
    let mut t = adopt();
    t.read_slot(500, 1, dead(view(Claimed)), &[lost, Slot(W1, Abort(old))]);
    t.read_slot(500, 1, dead(view(Aborted)), &[ended(LeaseEnd::NoResponse), Slot(W1, Release(old))]);
    t.read_slot(500, 1, dead(free()), &[]);
    let mut t = adopt();
    t.read_slot(500, 1, dead(view(Responding)), &[lost, ended(LeaseEnd::Cut), Slot(W1, Reclaim(old))]);

    // It finished, or the previous dispatcher had aborted the lease.
    let mut t = adopt();
    t.read_slot(500, 1, view(Done), &[up, ended(LeaseEnd::Done), Slot(W1, Release(old))]);
    let mut t = adopt();
    t.read_slot(500, 1, view(Aborted), &[up, ended(LeaseEnd::NoResponse), Slot(W1, Release(old))]);

    // The deadline counts from the adoption, because the offer could have been claimed until later.
    let mut t = adopt();
    t.read_slot(500, 1, view(Claimed), &[up]);
    let abort_at = 500 + 30_000 + DISPATCHER_GRACE.as_millis() as u64;
    t.read_slot(abort_at - 1, 1, view(Claimed), &[]);
    t.read_slot(abort_at, 1, view(Claimed), &[Slot(W1, Abort(old))]);
    t.read_slot(abort_at, 1, view(Aborted), &[ended(LeaseEnd::Overdue), Slot(W1, Release(old))]);
    t.read_slot(abort_at, 1, free(), &[]);
    assert!(t.0.is_quiet());

    // Nothing is known of an adopted lease that the slot does not show.
    for shown in [free(), held(lease(1), Claimed, 0)] {
        let mut t = adopt();
        let actions = t.0.handle(at(500), PoolEvent::SlotRead(W1, shown));
        assert!(actions.contains(&ended(LeaseEnd::Cut)), "{actions:?}");
    }
}
