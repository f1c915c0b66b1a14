//! The decisions of a pool: each test reports events at given times and checks the resulting actions.
//!
//! Times are milliseconds. The dispatcher is in its seventh epoch, so that lease `n` is `7.n`; workers are in their
//! first epoch unless a test sets another one. Idle workers are taken last in, first out.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::ids::Lifecycle::{Draining, Ready, Recycling, Starting};
use crate::ids::Phase::{Aborted, Claimed, Done, Offered, Responding, Revoked};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Phase, RefuseReason, Token, WorkerNumber};
use crate::pool::PoolAction::{Abort, Clear, ReadSlot, Reclaim, Refuse, Release, Revoke, Ring};
use crate::pool::PoolEvent::{Client, Disconnected, Probe, Quiesce, Tick};
use crate::pool::{
    Hold, LeaseEnd, Peer, Pool, PoolAction, PoolEvent, PoolLimits, PoolNote, Refusal, SlotAnswer, SlotQuestion,
    SlotView,
};

const W1: WorkerNumber = WorkerNumber::of(1);
const W2: WorkerNumber = WorkerNumber::of(2);
const W3: WorkerNumber = WorkerNumber::of(3);
const A: Peer = Peer::Ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
const B: Peer = Peer::User(1000);
const ONE: Epoch = Epoch::FIRST;

const LIMITS: PoolLimits = PoolLimits {
    workers: 2,
    queue: 2,
    queue_timeout: Duration::from_millis(500),
    offer_timeout: Duration::from_millis(50),
    claim_timeout: Duration::from_millis(1000),
    request_timeout: Duration::from_millis(30_000),
    slot_scan: Duration::from_millis(100),
    recycle_timeout: Duration::from_secs(10),
};

fn at(ms: u64) -> Monotonic {
    Monotonic(ms * 1_000_000)
}

fn epoch(n: u64) -> Epoch {
    Epoch::new(n).unwrap()
}

fn lease(n: u64) -> LeaseId {
    LeaseId::of(epoch(7), n)
}

/// The slot of a living worker, without a lease.
fn free() -> SlotView {
    SlotView { life: Some((ONE, Ready, false)), alive: true, claim: Some(Claim::Free), ..SlotView::default() }
}

/// The slot of a living worker with this lease in this phase; `offered` is the time of the offer.
fn held(lease: LeaseId, phase: Phase, offered: u64) -> SlotView {
    let terms = LeaseTerms {
        lease,
        worker_epoch: ONE,
        dispatcher_epoch: Epoch::new(lease.dispatcher_epoch()).unwrap(),
        token: Token::new(1),
        claim_by: at(offered + 1050),
        request_timeout: LIMITS.request_timeout,
        connection: 0,
    };
    SlotView { claim: Some(Claim::Held(lease, phase)), terms: Some(terms), ..free() }
}

fn answered(answer: SlotAnswer, view: SlotView) -> SlotView {
    SlotView { answer: Some(answer), ..view }
}

fn accepted(n: u64, offered: u64) -> SlotView {
    answered(SlotAnswer::Accept(lease(n)), held(lease(n), Offered, offered))
}

fn dead(view: SlotView) -> SlotView {
    SlotView { alive: false, ..view }
}

/// The same slot after another incarnation has attached.
fn incarnation(number: u64, state: Lifecycle, view: SlotView) -> SlotView {
    SlotView { life: Some((epoch(number), state, false)), ..view }
}

fn in_state(state: Lifecycle, wants_recycle: bool) -> SlotView {
    SlotView { life: Some((ONE, state, wants_recycle)), ..free() }
}

fn offer(worker: u16, n: u64, now: u64) -> PoolAction {
    PoolAction::Offer {
        worker: WorkerNumber::of(worker),
        epoch: ONE,
        lease: lease(n),
        claim_by: at(now + 1050),
        connection: None,
    }
}

fn grant(client: u64, worker: u16, n: u64, offered: u64) -> PoolAction {
    PoolAction::Grant { client, worker: WorkerNumber::of(worker), lease: lease(n), claim_by: at(offered + 1050) }
}

fn note(worker: u16, note: PoolNote) -> PoolAction {
    PoolAction::Note(WorkerNumber::of(worker), note)
}

fn timeout(ms: u64) -> Refusal {
    Refusal::QueueTimeout(Duration::from_millis(ms))
}

struct PoolTest(Pool);

impl PoolTest {
    /// A pool that has not read any slot.
    fn new(limits: PoolLimits) -> Self {
        Self(Pool::new(limits, epoch(7)))
    }

    /// A pool whose workers are all idle; the highest number is taken next.
    fn with_idle_workers(limits: PoolLimits) -> Self {
        let mut test = Self::new(limits);
        for n in 1..=limits.workers {
            test.read_slot(0, n, free(), &[note(n, PoolNote::Up(ONE))]);
        }
        test
    }

    #[track_caller]
    fn handle(&mut self, now: u64, event: PoolEvent, expected: &[PoolAction]) {
        let actions = self.0.handle(at(now), event);
        assert_eq!(actions, expected, "at {now} ms, {event:?}");
    }

    #[track_caller]
    fn read_slot(&mut self, now: u64, n: u16, view: SlotView, expected: &[PoolAction]) {
        self.handle(now, PoolEvent::SlotRead(WorkerNumber::of(n), view), expected);
    }

    #[track_caller]
    fn assert_deadline(&self, ms: impl Into<Option<u64>>) {
        assert_eq!(self.0.deadline(), ms.into().map(at));
    }

    fn hold(&self, n: u16) -> Hold {
        self.0.workers()[usize::from(n) - 1].hold
    }

    /// At `now`, client `id` of `peer` is granted lease `n` on this worker, which claims it.
    #[track_caller]
    fn serve(&mut self, now: u64, (id, peer): (u64, Peer), worker: u16, n: u64) {
        self.handle(now, Client(id, peer), &[offer(worker, n, now)]);
        self.read_slot(now, worker, accepted(n, now), &[grant(id, worker, n, now)]);
        self.read_slot(now, worker, held(lease(n), Claimed, now), &[]);
    }

    /// The worker finishes lease `n`.
    #[track_caller]
    fn finish(&mut self, now: u64, worker: u16, n: u64, expected: &[PoolAction]) {
        self.read_slot(now, worker, held(lease(n), Done, now), &[Release(WorkerNumber::of(worker), lease(n))]);
        self.read_slot(now, worker, free(), expected);
    }
}

#[test]
fn client_gets_the_most_recently_idle_worker() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.assert_deadline(None);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(0, 2, held(lease(1), Offered, 0), &[]);
    t.assert_deadline(50);
    t.read_slot(1, 2, accepted(1, 0), &[grant(1, 2, 1, 0)]);
    t.assert_deadline(101);
    t.handle(101, Tick, &[ReadSlot(W2)]);
    t.read_slot(101, 2, held(lease(1), Responding, 0), &[]);
    t.assert_deadline(201);
    t.read_slot(102, 2, held(lease(1), Done, 0), &[Release(W2, lease(1))]);
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
    t.read_slot(1, 2, answered(refuse, draining), &[Revoke(W2, lease(1))]);
    t.read_slot(
        1,
        2,
        SlotView { claim: Some(Claim::Held(lease(1), Revoked)), ..draining },
        &[Release(W2, lease(1)), offer(1, 2, 1)],
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
    t.handle(50, Tick, &[ReadSlot(W2)]);
    t.read_slot(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Revoke(W2, lease(1))]);
    t.read_slot(50, 2, held(lease(1), Revoked, 0), &[Release(W2, lease(1)), offer(1, 2, 50)]);
    t.read_slot(50, 2, free(), &[]);
    t.read_slot(51, 1, accepted(2, 50), &[grant(1, 1, 2, 50)]);
    t.handle(52, Client(2, A), &[]);
    assert!(t.0.workers()[1].late);
    let late = answered(SlotAnswer::Refuse(lease(1), RefuseReason::Stale), free());
    t.read_slot(60, 2, late, &[note(2, PoolNote::Back), offer(2, 3, 60)]);
}

#[test]
fn answer_found_by_the_read_at_the_deadline_is_not_late() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.handle(70, Tick, &[ReadSlot(W2)]);
    t.read_slot(70, 2, accepted(1, 0), &[grant(1, 2, 1, 0)]);
}

#[test]
fn accept_after_the_claim_deadline_is_revoked() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(1050, 2, accepted(1, 0), &[Revoke(W2, lease(1))]);
    t.read_slot(1050, 2, held(lease(1), Revoked, 0), &[Refuse(1, timeout(1050)), Release(W2, lease(1))]);
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
            actions.contains(&note(2, PoolNote::Down(ONE))) && actions.ends_with(&[Revoke(W2, lease(1))]),
            "{actions:?}"
        );
        assert!(!actions.contains(&grant(1, 2, 1, 0)));
        t.read_slot(1, 2, make_dead(held(lease(1), Revoked, 0)), &[Release(W2, lease(1)), offer(1, 2, 1)]);
    }
}

#[test]
fn claimed_client_is_not_offered_to_another_worker() {
    // The worker was faster than the revocation.
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Revoke(W2, lease(1))]);
    t.read_slot(50, 2, held(lease(1), Claimed, 0), &[grant(1, 2, 1, 0)]);
    assert_eq!(t.hold(2), Hold::Busy { lease: lease(1), connection: None });
    // The worker claimed before its answer was read, and died.
    t.handle(60, Client(2, A), &[offer(1, 2, 60)]);
    t.read_slot(
        61,
        1,
        dead(held(lease(2), Claimed, 60)),
        &[note(1, PoolNote::Down(ONE)), grant(2, 1, 2, 60), note(1, PoolNote::Lost(lease(2))), Abort(W1, lease(2))],
    );
    assert!(t.0.is_quiet() || t.0.waiting().0 == 0);
}

#[test]
fn queue_keeps_its_limit_order_and_timeout() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.serve(0, (1, A), 2, 1);
    t.serve(0, (2, A), 1, 2);
    t.handle(10, Client(3, A), &[]);
    t.handle(20, Client(4, B), &[]);
    t.handle(30, Client(5, A), &[Refuse(5, Refusal::QueueFull(2))]);
    assert_eq!(t.0.waiting(), (2, Some(at(10))));
    t.finish(100, 1, 2, &[offer(1, 3, 100)]); // client 3
    t.handle(110, Client(6, A), &[]);
    // Queued again, client 3 is ahead of 4 and 6, although the queue is full without it.
    t.read_slot(150, 1, held(lease(3), Offered, 100), &[note(1, PoolNote::Late(lease(3))), Revoke(W1, lease(3))]);
    t.read_slot(150, 1, held(lease(3), Revoked, 100), &[Release(W1, lease(3))]);
    assert_eq!(t.0.waiting(), (3, Some(at(10))));
    t.handle(160, Client(7, A), &[Refuse(7, Refusal::QueueFull(2))]);
    t.finish(200, 2, 1, &[offer(2, 4, 200)]);
    t.read_slot(201, 2, accepted(4, 200), &[grant(3, 2, 4, 200)]);
    t.handle(519, Tick, &[ReadSlot(W1), ReadSlot(W2)]);
    t.handle(520, Tick, &[Refuse(4, timeout(500))]);
    t.handle(610, Tick, &[Refuse(6, timeout(500))]);
    assert_eq!(t.0.waiting(), (0, None));
}

#[test]
fn client_past_queue_timeout_is_not_queued_again() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 1, ..LIMITS });
    t.serve(0, (1, A), 1, 1);
    t.handle(0, Client(2, A), &[]);
    t.finish(490, 1, 1, &[offer(1, 2, 490)]);
    t.read_slot(540, 1, held(lease(2), Offered, 490), &[note(1, PoolNote::Late(lease(2))), Revoke(W1, lease(2))]);
    t.read_slot(540, 1, held(lease(2), Revoked, 490), &[Refuse(2, timeout(540)), Release(W1, lease(2))]);
}

#[test]
fn client_may_disconnect_at_any_time() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 1, ..LIMITS });
    // While its offer is pending.
    t.handle(0, Client(1, A), &[offer(1, 1, 0)]);
    t.handle(1, Disconnected(1), &[Revoke(W1, lease(1))]);
    t.read_slot(1, 1, held(lease(1), Revoked, 0), &[Release(W1, lease(1))]);
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
    t.read_slot(56, 1, held(lease(3), Offered, 6), &[note(1, PoolNote::Late(lease(3))), Revoke(W1, lease(3))]);
    t.handle(56, Disconnected(4), &[]);
    t.read_slot(56, 1, held(lease(3), Revoked, 6), &[Release(W1, lease(3))]);
    assert_eq!(t.0.waiting(), (0, None));
    // After the grant: the lease stays until it is claimed or its time is over.
    t.read_slot(57, 1, answered(SlotAnswer::Ack, free()), &[note(1, PoolNote::Back)]);
    t.handle(60, Client(5, A), &[offer(1, 4, 60)]);
    t.read_slot(61, 1, accepted(4, 60), &[grant(5, 1, 4, 60)]);
    t.handle(62, Disconnected(5), &[]);
    assert_eq!(t.hold(1).lease(), Some(lease(4)));
}

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
        &[note(worker, PoolNote::Unclaimed(lease(n))), Revoke(WorkerNumber::of(worker), lease(n))],
    );
    t.read_slot(now + 1050, worker, held(lease(n), Revoked, now), &[Release(WorkerNumber::of(worker), lease(n))]);
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
fn unclaimed_lease_of_a_silent_worker_does_not_count_against_the_peer() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(1, 2, accepted(1, 0), &[grant(1, 2, 1, 0)]);
    t.handle(250, Probe, &[PoolAction::Question(W1, SlotQuestion::Ping), PoolAction::Question(W2, SlotQuestion::Ping)]);
    t.read_slot(251, 1, answered(SlotAnswer::Ack, free()), &[]);
    t.read_slot(1050, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Unclaimed(lease(1))), Revoke(W2, lease(1))]);
    t.read_slot(1050, 2, held(lease(1), Revoked, 0), &[Release(W2, lease(1))]);
    t.read_slot(1050, 2, free(), &[]);
    t.handle(1051, Client(2, A), &[offer(2, 2, 1051)]);
    t.handle(1051, Client(3, A), &[offer(1, 3, 1051)]);
}

#[test]
fn client_of_a_worker_that_dies_before_its_answer_is_offered_to_another() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(10, 2, dead(held(lease(1), Offered, 0)), &[note(2, PoolNote::Down(ONE)), Revoke(W2, lease(1))]);
    t.read_slot(10, 2, dead(held(lease(1), Revoked, 0)), &[Release(W2, lease(1)), offer(1, 2, 10)]);
    t.read_slot(10, 2, dead(free()), &[]);
    t.read_slot(90, 2, incarnation(2, Starting, free()), &[note(2, PoolNote::Up(epoch(2)))]);
    t.handle(91, Client(2, A), &[]);
    let next =
        PoolAction::Offer { worker: W2, epoch: epoch(2), lease: lease(3), claim_by: at(95 + 1050), connection: None };
    t.read_slot(95, 2, incarnation(2, Ready, free()), &[next]);
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
        &[note(2, PoolNote::Down(ONE)), note(2, PoolNote::Up(epoch(2))), Revoke(W2, lease(1))],
    );
    t.read_slot(40, 2, incarnation(2, Ready, held(lease(1), Revoked, 0)), &[Release(W2, lease(1))]);
    t.read_slot(40, 2, incarnation(2, Ready, free()), &[]);
    let next = |n| PoolAction::Offer {
        worker: W2,
        epoch: epoch(2),
        lease: lease(n),
        claim_by: at(41 + 1050),
        connection: None,
    };
    t.handle(41, Client(2, A), &[next(2)]);
    t.handle(41, Client(3, A), &[offer(1, 3, 41)]);
}

#[test]
fn worker_death_with_a_request_ends_the_lease() {
    // (phase at its death, what ends the lease, phase after that)
    for (phase, step, after) in
        [(Claimed, Abort(W2, lease(1)), Some(Aborted)), (Responding, Reclaim(W2, lease(1)), None)]
    {
        for make_dead in [dead as fn(SlotView) -> SlotView, |view| incarnation(2, Ready, view)] {
            let mut t = PoolTest::with_idle_workers(LIMITS);
            t.serve(0, (1, A), 2, 1);
            t.read_slot(1, 2, held(lease(1), phase, 0), &[]);
            let actions = t.0.handle(at(2), PoolEvent::SlotRead(W2, make_dead(held(lease(1), phase, 0))));
            assert_eq!(actions[0], note(2, PoolNote::Down(ONE)));
            assert!(actions.ends_with(&[note(2, PoolNote::Lost(lease(1))), step]), "{actions:?}");
            if let Some(after) = after {
                t.read_slot(2, 2, make_dead(held(lease(1), after, 0)), &[Release(W2, lease(1))]);
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
    assert_eq!(t.hold(1), Hold::Granted { lease: old, client: None, claim_by: at(1050) });
    t.handle(1, Client(1, A), &[]);
    t.read_slot(2, 1, held(old, Claimed, 0), &[]);
    t.read_slot(3, 1, held(old, Responding, 0), &[]);
    t.read_slot(4, 1, held(old, Done, 0), &[Release(W1, old)]);
    t.read_slot(4, 1, free(), &[offer(1, 1, 4)]);

    let mut t = fresh();
    t.read_slot(0, 1, held(old, Offered, 0), &[up]);
    t.read_slot(1050, 1, held(old, Offered, 0), &[note(1, PoolNote::Unclaimed(old)), Revoke(W1, old)]);

    // Offered to a dead worker, or too long ago.
    let mut t = fresh();
    t.read_slot(0, 1, dead(held(old, Offered, 0)), &[Revoke(W1, old)]);
    let mut t = fresh();
    t.read_slot(2000, 1, held(old, Offered, 0), &[up, Revoke(W1, old)]);

    for phase in [Claimed, Responding] {
        let mut t = fresh();
        t.read_slot(0, 1, held(old, phase, 0), &[up]);
        assert_eq!(t.hold(1), Hold::Busy { lease: old, connection: None });
        t.assert_deadline(100);
    }
    for phase in [Done, Revoked, Aborted] {
        for alive in [true, false] {
            let mut t = fresh();
            let actions = t.0.handle(at(0), PoolEvent::SlotRead(W1, SlotView { alive, ..held(old, phase, 0) }));
            assert_eq!(actions.last(), Some(&Release(W1, old)), "{phase:?}");
        }
    }
    let mut t = fresh();
    t.read_slot(0, 1, dead(held(old, Claimed, 0)), &[note(1, PoolNote::Lost(old)), Abort(W1, old)]);
    let mut t = fresh();
    t.read_slot(0, 1, dead(held(old, Responding, 0)), &[note(1, PoolNote::Lost(old)), Reclaim(W1, old)]);
}

#[test]
fn operator_drains_and_resumes_a_worker() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, PoolEvent::Drain(W2), &[PoolAction::Question(W2, SlotQuestion::Drain)]);
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
    t.handle(
        4,
        PoolEvent::Resume(W2),
        &[
            PoolAction::Question(W2, SlotQuestion::Resume),
            PoolAction::Offer {
                worker: W2,
                epoch: epoch(2),
                lease: lease(2),
                claim_by: at(4 + 1050),
                connection: None,
            },
        ],
    );
}

#[test]
fn clients_are_refused_when_every_worker_is_drained() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    let drained = |view| SlotView { drained: true, ..view };
    let out_of_service = |client| Refuse(client, Refusal::OutOfService);
    t.serve(0, (1, A), 2, 1);
    t.handle(2, Client(2, A), &[offer(1, 2, 2)]);
    t.handle(3, Client(3, A), &[]);
    t.handle(4, PoolEvent::Drain(W2), &[PoolAction::Question(W2, SlotQuestion::Drain)]);
    // The last worker is drained: the queued client is refused, and the offered one after its offer is revoked.
    t.handle(
        5,
        PoolEvent::Drain(W1),
        &[Revoke(W1, lease(2)), PoolAction::Question(W1, SlotQuestion::Drain), out_of_service(3)],
    );
    t.read_slot(5, 1, drained(held(lease(2), Revoked, 2)), &[Release(W1, lease(2)), out_of_service(2)]);
    t.handle(6, Client(4, A), &[out_of_service(4)]);
    // A dead drained worker is still out of service; after a resume clients are queued again.
    t.read_slot(7, 1, drained(dead(free())), &[note(1, PoolNote::Down(ONE))]);
    t.handle(8, Client(5, A), &[out_of_service(5)]);
    t.handle(9, PoolEvent::Resume(W1), &[PoolAction::Question(W1, SlotQuestion::Resume)]);
    t.handle(9, Client(6, A), &[]);
}

#[test]
fn clients_are_refused_when_every_worker_has_failed() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    let failed = |client| Refuse(client, Refusal::Failed);
    t.read_slot(0, 1, dead(free()), &[note(1, PoolNote::Down(ONE))]);
    // The report does not apply while a worker is alive.
    t.handle(1, PoolEvent::Failed(true), &[]);
    t.serve(2, (1, A), 2, 1);
    t.handle(3, Client(2, A), &[]);
    t.read_slot(
        4,
        2,
        dead(held(lease(1), Claimed, 2)),
        &[note(2, PoolNote::Down(ONE)), note(2, PoolNote::Lost(lease(1))), Abort(W2, lease(1)), failed(2)],
    );
    t.handle(5, Client(3, A), &[failed(3)]);
    // A worker may attach before the watchdog reports it.
    t.read_slot(6, 1, incarnation(2, Ready, free()), &[note(1, PoolNote::Up(epoch(2)))]);
    let again =
        PoolAction::Offer { worker: W1, epoch: epoch(2), lease: lease(2), claim_by: at(7 + 1050), connection: None };
    t.handle(7, Client(4, A), &[again]);
    t.handle(8, PoolEvent::Failed(false), &[]);
    // Clients are queued for a dead worker that has not failed.
    t.handle(9, Disconnected(4), &[Revoke(W1, lease(2))]);
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
        t.handle(1, event, &[Revoke(W2, lease(1)), PoolAction::Question(W2, question)]);
        t.read_slot(1, 2, held(lease(1), Revoked, 0), &[Release(W2, lease(1)), offer(1, 2, 1)]);
    }
}

#[test]
fn workers_are_recycled_one_at_a_time() {
    let wants_recycle = in_state(Ready, true);
    let recycle = |n| PoolAction::Question(n, SlotQuestion::Recycle);
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.serve(0, (1, A), 2, 1);
    t.read_slot(1, 2, SlotView { life: wants_recycle.life, ..held(lease(1), Done, 0) }, &[Release(W2, lease(1))]);
    t.read_slot(1, 2, wants_recycle, &[recycle(W2)]);
    t.read_slot(2, 1, wants_recycle, &[]);
    t.handle(3, Client(2, A), &[offer(1, 2, 3)]);
    t.read_slot(
        3,
        1,
        answered(SlotAnswer::Accept(lease(2)), SlotView { life: wants_recycle.life, ..held(lease(2), Offered, 3) }),
        &[grant(2, 1, 2, 3)],
    );
    t.read_slot(4, 1, SlotView { life: wants_recycle.life, ..held(lease(2), Done, 3) }, &[Release(W1, lease(2))]);
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
    let recycle = |n| PoolAction::Question(n, SlotQuestion::Recycle);
    let mut t = PoolTest::with_idle_workers(PoolLimits { recycle_timeout: Duration::from_millis(300), ..LIMITS });
    t.read_slot(0, 2, wants_recycle, &[recycle(W2)]);
    t.read_slot(1, 2, answered(SlotAnswer::Recycle(true), in_state(Recycling, true)), &[]);
    t.read_slot(299, 1, wants_recycle, &[]);
    t.read_slot(300, 1, wants_recycle, &[recycle(W1)]);
}

#[test]
fn recycling_survives_a_drain_and_a_new_dispatcher() {
    let wants_recycle = in_state(Ready, true);
    let recycle = |n| PoolAction::Question(n, SlotQuestion::Recycle);
    let mut t = PoolTest::new(LIMITS);
    // The recycling started under an earlier dispatcher; the next incarnation wants another one immediately.
    t.read_slot(0, 1, in_state(Recycling, true), &[note(1, PoolNote::Up(ONE))]);
    t.read_slot(0, 2, wants_recycle, &[note(2, PoolNote::Up(ONE))]);
    let again = SlotView { life: Some((epoch(2), Ready, true)), ..free() };
    t.read_slot(1, 1, again, &[note(1, PoolNote::Down(ONE)), note(1, PoolNote::Up(epoch(2))), recycle(W1)]);
    // Drain overwrites the recycle question, which is therefore repeated later.
    t.handle(2, PoolEvent::Drain(W1), &[PoolAction::Question(W1, SlotQuestion::Drain)]);
    t.handle(3, PoolEvent::Resume(W1), &[PoolAction::Question(W1, SlotQuestion::Resume)]);
    t.read_slot(4, 1, answered(SlotAnswer::Ack, again), &[recycle(W1)]);
}

#[test]
fn stopping_set_refuses_every_client() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 1, ..LIMITS });
    t.handle(0, Client(1, A), &[offer(1, 1, 0)]);
    t.handle(0, Client(2, A), &[]);
    t.handle(1, Quiesce, &[Refuse(2, Refusal::Stopping)]);
    t.handle(1, Client(3, A), &[Refuse(3, Refusal::Stopping)]);
    assert!(!t.0.is_quiet());
    t.read_slot(50, 1, held(lease(1), Offered, 0), &[note(1, PoolNote::Late(lease(1))), Revoke(W1, lease(1))]);
    t.read_slot(50, 1, held(lease(1), Revoked, 0), &[Refuse(1, Refusal::Stopping), Release(W1, lease(1))]);
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
    t.handle(2, Tick, &[ReadSlot(W1), ReadSlot(W2)]);
    t.read_slot(2, 1, held(lease(1), Claimed, 0), &[]);
    t.read_slot(2, 2, SlotView::default(), &[Clear(W2)]);
    t.read_slot(3, 2, free(), &[note(2, PoolNote::Up(ONE)), offer(2, 2, 3)]);
}

#[test]
fn pool_shrinks_and_grows_while_clients_are_queued() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.serve(0, (1, A), 2, 1);
    t.0.reconfigure(PoolLimits { workers: 1, ..LIMITS });
    t.handle(1, Tick, &[ReadSlot(W1), ReadSlot(W2)]);
    t.read_slot(1, 1, free(), &[]);
    t.read_slot(1, 2, held(lease(1), Claimed, 0), &[]);
    t.serve(2, (2, A), 1, 2);
    t.handle(3, Client(3, A), &[]);
    t.finish(4, 2, 1, &[]); // worker 2 is surplus and gets no new client
    assert_eq!(t.0.workers().len(), 2);
    t.0.reconfigure(LIMITS);
    t.assert_deadline(0);
    t.handle(5, Tick, &[ReadSlot(W1), ReadSlot(W2), offer(2, 3, 5)]);
    t.read_slot(6, 2, accepted(3, 5), &[grant(3, 2, 3, 5)]);
    t.0.reconfigure(PoolLimits { workers: 0, ..LIMITS });
    t.read_slot(7, 2, dead(held(lease(3), Offered, 5)), &[note(2, PoolNote::Down(ONE)), Revoke(W2, lease(3))]);
    t.read_slot(7, 2, dead(held(lease(3), Revoked, 5)), &[Release(W2, lease(3))]);
    t.read_slot(7, 2, dead(free()), &[]);
    assert_eq!(t.0.workers().len(), 1, "worker 2 is removed, worker 1 still serves");
    t.read_slot(8, 2, free(), &[]); // worker 2 is unknown
}

#[test]
fn corrupt_slot_gets_no_offer_and_is_cleared_only_after_its_worker_died() {
    let corrupt = SlotView { claim: None, ..free() };
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(1, 2, corrupt, &[note(2, PoolNote::Corrupt), offer(1, 2, 1)]);
    assert!(t.0.workers()[1].corrupt);
    t.assert_deadline(51);
    t.read_slot(101, 2, corrupt, &[]); // reported once
    t.read_slot(102, 2, dead(corrupt), &[note(2, PoolNote::Down(ONE)), Clear(W2)]);
    t.read_slot(102, 2, dead(free()), &[]);
    assert!(!t.0.workers()[1].corrupt);

    // The lease of a living worker is not ended because its incarnation or its terms cannot be read.
    for phase in [Claimed, Responding] {
        let intact = held(lease(1), phase, 0);
        for unreadable in [SlotView { terms: None, ..intact }, SlotView { life: None, ..intact }] {
            let mut t = PoolTest::with_idle_workers(LIMITS);
            t.serve(0, (1, A), 2, 1);
            let actions = t.0.handle(at(1), PoolEvent::SlotRead(W2, unreadable));
            assert_eq!(actions.last(), Some(&note(2, PoolNote::Corrupt)), "{actions:?}");
            assert_eq!(t.hold(2), Hold::Releasing);
        }
    }
}

#[test]
fn pool_without_a_queue_refuses_when_no_worker_is_free() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { queue: 0, ..LIMITS });
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.serve(1, (2, A), 1, 2);
    t.handle(2, Client(3, A), &[Refuse(3, Refusal::NoWorkerFree)]);
    t.read_slot(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Revoke(W2, lease(1))]);
    t.read_slot(50, 2, held(lease(1), Revoked, 0), &[Release(W2, lease(1)), Refuse(1, Refusal::NoWorkerFree)]);
    t.assert_deadline(101);

    // An idle worker that is being recycled is not free.
    let mut t = PoolTest::with_idle_workers(PoolLimits { queue: 0, ..LIMITS });
    t.read_slot(0, 1, in_state(Ready, true), &[PoolAction::Question(W1, SlotQuestion::Recycle)]);
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Revoke(W2, lease(1))]);
    t.read_slot(50, 2, held(lease(1), Revoked, 0), &[Release(W2, lease(1)), Refuse(1, Refusal::NoWorkerFree)]);

    // While another worker is free, a missed offer does not end in a refusal.
    let mut t = PoolTest::with_idle_workers(PoolLimits { queue: 0, queue_timeout: Duration::ZERO, ..LIMITS });
    t.handle(0, Client(1, A), &[offer(2, 1, 0)]);
    t.read_slot(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Revoke(W2, lease(1))]);
    t.read_slot(50, 2, held(lease(1), Revoked, 0), &[Release(W2, lease(1)), offer(1, 2, 50)]);
}

#[test]
fn probe_questions_every_worker_and_recovers_lost_rings() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 3, ..LIMITS });
    t.serve(0, (1, A), 3, 1);
    t.read_slot(0, 1, dead(free()), &[note(1, PoolNote::Down(ONE))]);
    let finished = PoolAction::Question(W3, SlotQuestion::Finished(lease(1)));
    t.handle(250, Probe, &[ReadSlot(W1), PoolAction::Question(W2, SlotQuestion::Ping), finished]);
    t.read_slot(250, 1, dead(free()), &[]);
    t.read_slot(251, 3, answered(SlotAnswer::Ack, held(lease(1), Claimed, 0)), &[]);
    t.handle(500, Probe, &[ReadSlot(W1), Ring(W2), ReadSlot(W2), finished]);
    t.read_slot(500, 1, incarnation(2, Ready, free()), &[note(1, PoolNote::Up(epoch(2)))]);
    t.read_slot(500, 2, answered(SlotAnswer::Ack, free()), &[]);
    t.handle(
        750,
        Probe,
        &[
            PoolAction::Question(W1, SlotQuestion::Ping),
            PoolAction::Question(W2, SlotQuestion::Ping),
            Ring(W3),
            ReadSlot(W3),
        ],
    );
}

// ---- handoff: connections passed to workers ----

fn pass(worker: u16, client: u64, n: u64, now: u64) -> PoolAction {
    PoolAction::Offer {
        worker: WorkerNumber::of(worker),
        epoch: ONE,
        lease: lease(n),
        claim_by: at(now + 50),
        connection: Some(client),
    }
}

fn ended(client: u64, worker: u16, n: u64, end: LeaseEnd) -> PoolAction {
    PoolAction::LeaseEnded { client, worker: WorkerNumber::of(worker), lease: lease(n), end }
}

fn claimed(client: u64, worker: u16, n: u64, offered: u64) -> PoolAction {
    PoolAction::Grant { client, worker: WorkerNumber::of(worker), lease: lease(n), claim_by: at(offered + 50) }
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
    t.read_slot(30, 2, passed(1, Done, 10), &[ended(1, 2, 1, LeaseEnd::Done), PoolAction::Release(W2, lease(1))]);
    t.read_slot(30, 2, free(), &[]);
    // The first read may already find the end.
    t.handle(40, PoolEvent::Connection(2, A), &[pass(2, 2, 2, 40)]);
    let all = [claimed(2, 2, 2, 40), ended(2, 2, 2, LeaseEnd::Done), PoolAction::Release(W2, lease(2))];
    t.read_slot(41, 2, passed(2, Done, 40), &all);
}

#[test]
fn unclaimed_connection_is_offered_to_another_worker() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
    t.read_slot(60, 2, passed(1, Offered, 10), &[note(2, PoolNote::Late(lease(1))), PoolAction::Revoke(W2, lease(1))]);
    t.read_slot(60, 2, passed(1, Revoked, 10), &[PoolAction::Release(W2, lease(1)), pass(1, 1, 2, 60)]);
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
    let cut = [down, lost, ended(1, 2, 1, LeaseEnd::Cut), PoolAction::Reclaim(W2, lease(1))];
    t.read_slot(20, 2, dead(passed(1, Responding, 10)), &cut);
    // The dispatcher responds only after the abort, when the worker can no longer respond.
    let mut t = claimed_connection();
    t.read_slot(20, 2, dead(passed(1, Claimed, 10)), &[down, lost, PoolAction::Abort(W2, lease(1))]);
    let no_response = [ended(1, 2, 1, LeaseEnd::NoResponse), PoolAction::Release(W2, lease(1))];
    t.read_slot(20, 2, dead(passed(1, Aborted, 10)), &no_response);
    // The same for a living worker whose terms name another incarnation; it may start its response before the abort.
    let mut t = claimed_connection();
    let wrong_epoch = |phase| {
        let view = passed(1, phase, 10);
        SlotView { terms: view.terms.map(|terms| LeaseTerms { worker_epoch: ONE.next(), ..terms }), ..view }
    };
    t.read_slot(20, 2, wrong_epoch(Claimed), &[lost, PoolAction::Abort(W2, lease(1))]);
    let response_first = [lost, ended(1, 2, 1, LeaseEnd::Cut), PoolAction::Reclaim(W2, lease(1))];
    t.read_slot(20, 2, wrong_epoch(Responding), &response_first);
    // Before the claim the connection can be offered to another worker.
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
    let view = dead(passed(1, Offered, 10));
    t.read_slot(20, 2, view, &[note(2, PoolNote::Down(ONE)), PoolAction::Revoke(W2, lease(1))]);
}

#[test]
fn connection_with_a_corrupt_slot_is_cut_and_not_offered_again() {
    // The segment was recreated (all zero), or holds a lease that this dispatcher has not issued.
    for view in [free(), passed(9, Done, 10)] {
        let mut t = PoolTest::with_idle_workers(LIMITS);
        t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
        let actions = t.0.handle(at(11), PoolEvent::SlotRead(W2, view));
        assert_eq!(actions[0], ended(1, 2, 1, LeaseEnd::Cut), "{actions:?}");
        assert!(!actions.iter().any(|action| matches!(action, PoolAction::Offer { .. })), "{actions:?}");
    }
    // The same while the offer is being revoked.
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
    t.read_slot(60, 2, passed(1, Offered, 10), &[note(2, PoolNote::Late(lease(1))), PoolAction::Revoke(W2, lease(1))]);
    t.read_slot(60, 2, free(), &[ended(1, 2, 1, LeaseEnd::Cut)]);
}

#[test]
fn overdue_request_is_aborted_so_that_the_dispatcher_responds() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
    t.read_slot(11, 2, passed(1, Claimed, 10), &[claimed(1, 2, 1, 10)]);
    let overdue = 11 + LIMITS.request_timeout.as_millis() as u64 + 2000;
    t.read_slot(overdue - 1, 2, passed(1, Claimed, 10), &[]);
    t.read_slot(overdue, 2, passed(1, Claimed, 10), &[PoolAction::Abort(W2, lease(1))]);
    let end = [ended(1, 2, 1, LeaseEnd::Overdue), PoolAction::Release(W2, lease(1))];
    t.read_slot(overdue, 2, passed(1, Aborted, 10), &end);
}

#[test]
fn probe_pings_many_workers_in_batches() {
    let mut pool = Pool::new(PoolLimits { workers: 100, ..LIMITS }, epoch(7));
    for n in 1..=100 {
        pool.handle(at(1), PoolEvent::SlotRead(WorkerNumber::of(n), free()));
    }
    let ping_count = |actions: Vec<PoolAction>| {
        let ping_count =
            actions.iter().filter(|action| matches!(action, PoolAction::Question(_, SlotQuestion::Ping))).count();
        assert_eq!(ping_count, actions.len(), "{actions:?}");
        ping_count
    };
    assert_eq!(ping_count(pool.handle(at(10), PoolEvent::Probe)), 64);
    assert_eq!((pool.deadline(), ping_count(pool.handle(at(15), PoolEvent::Probe))), (Some(at(20)), 0));
    assert_eq!(ping_count(pool.handle(at(20), PoolEvent::Tick)), 36);
    assert_eq!(pool.deadline(), None);
}

#[test]
fn worker_that_missed_an_offer_is_used_last() {
    let mut t = PoolTest::with_idle_workers(LIMITS);
    t.handle(10, PoolEvent::Connection(1, A), &[pass(2, 1, 1, 10)]);
    t.read_slot(60, 2, passed(1, Offered, 10), &[note(2, PoolNote::Late(lease(1))), PoolAction::Revoke(W2, lease(1))]);
    t.read_slot(60, 2, passed(1, Revoked, 10), &[PoolAction::Release(W2, lease(1)), pass(1, 1, 2, 60)]);
    t.read_slot(
        61,
        1,
        passed(2, Done, 60),
        &[claimed(1, 1, 2, 60), ended(1, 1, 2, LeaseEnd::Done), PoolAction::Release(W1, lease(2))],
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
        &[claimed(3, 2, 4, 80), ended(3, 2, 4, LeaseEnd::Done), PoolAction::Release(W2, lease(4))],
    );
    t.read_slot(81, 2, free(), &[]);
    t.handle(90, PoolEvent::Connection(4, A), &[pass(2, 4, 5, 90)]);
}
