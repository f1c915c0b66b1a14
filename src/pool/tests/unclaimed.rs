//! Leases that no client claims.

use super::*;

/// Lease `n` of `client` is granted on this worker and not claimed in time.
#[track_caller]
fn leave_unclaimed(t: &mut PoolTest, now: u64, (client, peer): (u64, Peer), worker: u16, n: u64) {
    t.handle(now, Client(client, peer), &[offer(worker, n, now)]);
    t.read_slot(now, worker, accepted(n, now), &[grant(client, worker, n, now)]);
    t.read_slot(now + 1049, worker, held(lease(n), Offered, now), &[]);
    t.read_slot(
        now + 1050,
        worker,
        held(lease(n), Offered, now),
        &[note(worker, PoolNote::Unclaimed(lease(n))), Slot(WorkerNumber::of(worker), Revoke(lease(n)))],
    );
    t.read_slot(now + 1050, worker, held(lease(n), Revoked, now), &[Slot(WorkerNumber::of(worker), Release(lease(n)))]);
    t.read_slot(now + 1050, worker, free(), &[]);
}

#[test]
fn peer_with_an_unclaimed_lease_gets_one_worker_at_a_time() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    leave_unclaimed(&mut t, 0, (1, A), 2, 1);
    t.handle(2000, Client(2, A), &[offer(2, 2, 2000)]);
    t.handle(2000, Client(3, A), &[]); // although worker 1 is idle
    t.handle(2001, Client(4, B), &[offer(1, 3, 2001)]); // is not delayed by client 3
    t.read_slot(2002, 1, accepted(3, 2001), &[grant(4, 1, 3, 2001)]);
    t.read_slot(2003, 1, held(lease(3), Claimed, 2001), &[]);
    t.finish(2004, 1, 3, &[]);
    t.read_slot(2005, 2, accepted(2, 2000), &[grant(2, 2, 2, 2000)]);
    // Client 3 gets an offer because the lease of client 2 is claimed.
    t.read_slot(2006, 2, held(lease(2), Claimed, 2000), &[offer(1, 4, 2006)]);
    t.read_slot(2007, 1, accepted(4, 2006), &[grant(3, 1, 4, 2006)]);
    t.read_slot(2008, 1, held(lease(4), Claimed, 2006), &[]);
    t.finish(2009, 1, 4, &[]);
    t.finish(2009, 2, 2, &[]);
    // Ten seconds after the end of the unused lease.
    t.handle(11_049, Client(5, A), &[offer(2, 5, 11_049)]);
    t.handle(11_049, Client(6, A), &[]);
    t.handle(11_050, Tick, &[offer(1, 6, 11_050)]);
}

#[test]
fn client_of_a_worker_that_does_not_serve_is_not_limited() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(0, 2, accepted(1, 0), &[grant(1, 2, 1, 0)]);
    let blocked = |view: SlotView| SlotView { life: Some((ONE, Draining, false)), ..view };
    let unclaimed = [note(2, PoolNote::Unclaimed(lease(1))), Slot(W2, Revoke(lease(1)))];
    t.read_slot(1050, 2, blocked(held(lease(1), Offered, 0)), &unclaimed);
    t.read_slot(1050, 2, blocked(held(lease(1), Revoked, 0)), &[Slot(W2, Release(lease(1)))]);
    t.read_slot(1060, 2, free(), &[]);
    t.handle(2000, Client(2, A), &[offer(2, 2, 2000)]);
    t.handle(2000, Client(3, A), &[offer(1, 3, 2000)]);
}

#[test]
fn unclaimed_lease_limits_no_handoff_client() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 3, ..LIMITS });
    leave_unclaimed(&mut t, 0, (1, A), 3, 1);
    t.handle(2000, Client(2, A), &[offer(3, 2, 2000)]);
    t.handle(2000, Client(3, A), &[]); // although two workers are idle
    for (client, worker, n) in [(4, 2, 3), (5, 1, 4)] {
        let claim_by = at(2050);
        let connection = Some(client);
        let worker = WorkerNumber::of(worker);
        let pass = Slot(worker, Offer { epoch: ONE, lease: lease(n), claim_by, connection });
        t.handle(2000, PoolEvent::Connection(client, A), &[pass]);
    }
}

#[test]
fn first_unclaimed_lease_limits_no_client_before_it_ends() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 3, ..LIMITS });
    t.handle(0, Client(1, A), &[offer(3, 1, 0)]);
    t.read_slot(0, 3, accepted(1, 0), &[grant(1, 3, 1, 0)]);
    t.handle(1, Client(2, A), &[offer(2, 2, 1)]);
    t.handle(1, Client(3, A), &[offer(1, 3, 1)]);
}

#[test]
fn unclaimed_lease_of_a_silent_worker_does_not_count_against_the_peer() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(1, 2, accepted(1, 0), &[grant(1, 2, 1, 0)]);
    t.handle(250, Probe, &[Slot(W1, Question(SlotQuestion::Ping)), Slot(W2, Question(SlotQuestion::Ping))]);
    t.read_slot(251, 1, answered(SlotAnswer::Ack, free()), &[]);
    t.read_slot(
        1050,
        2,
        held(lease(1), Offered, 0),
        &[note(2, PoolNote::Unclaimed(lease(1))), Slot(W2, Revoke(lease(1)))],
    );
    t.read_slot(1050, 2, held(lease(1), Revoked, 0), &[Slot(W2, Release(lease(1)))]);
    t.read_slot(1050, 2, free(), &[]);
    t.handle(1051, Client(2, A), &[offer(2, 2, 1051)]);
    t.handle(1051, Client(3, A), &[offer(1, 3, 1051)]);
}

#[test]
fn unclaimed_lease_of_a_dead_worker_does_not_count_against_the_peer() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(1, 2, accepted(1, 0), &[grant(1, 2, 1, 0)]);
    // Only the next incarnation is seen: the lease names an earlier one, so its end does not count against the peer.
    t.read_slot(
        40,
        2,
        incarnation(2, Ready, held(lease(1), Offered, 0)),
        &[note(2, PoolNote::Down(ONE)), note(2, PoolNote::Up(epoch(2))), Slot(W2, Revoke(lease(1)))],
    );
    t.read_slot(40, 2, incarnation(2, Ready, held(lease(1), Revoked, 0)), &[Slot(W2, Release(lease(1)))]);
    t.read_slot(40, 2, incarnation(2, Ready, free()), &[]);
    let next = Offer { epoch: epoch(2), lease: lease(2), claim_by: at(41 + 1050), connection: None };
    t.handle(41, Client(2, A), &[Slot(W2, next)]);
    t.handle(41, Client(3, A), &[offer(1, 3, 41)]);
}
