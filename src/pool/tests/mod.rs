//! The decisions of a pool as conversations: what happens when, and what it wants done.
//!
//! Times are milliseconds. The pool is the dispatcher's seventh epoch, so that lease `n` is `7.n`; workers are
//! in their first epoch unless something else is said, and idle ones are taken last in, first out.

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

/// A living worker's slot with nothing in it.
fn free() -> SlotView {
    SlotView { life: Some((ONE, Ready, false)), alive: true, claim: Some(Claim::Free), ..SlotView::default() }
}

/// A living worker's slot with this lease in this phase; `offered` is when.
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

fn answered(answer: SlotAnswer, seen: SlotView) -> SlotView {
    SlotView { answer: Some(answer), ..seen }
}

fn accepted(n: u64, offered: u64) -> SlotView {
    answered(SlotAnswer::Accept(lease(n)), held(lease(n), Offered, offered))
}

fn dead(seen: SlotView) -> SlotView {
    SlotView { alive: false, ..seen }
}

/// The same slot, when a later incarnation has taken it.
fn reborn(number: u64, state: Lifecycle, seen: SlotView) -> SlotView {
    SlotView { life: Some((epoch(number), state, false)), ..seen }
}

fn living(state: Lifecycle, wants_recycle: bool) -> SlotView {
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

struct Talk(Pool);

impl Talk {
    /// Nothing is known of the workers yet.
    fn new(limits: PoolLimits) -> Self {
        Self(Pool::new(limits, epoch(7)))
    }

    /// Both workers are idle; 2 is the next to be taken.
    fn up(limits: PoolLimits) -> Self {
        let mut talk = Self::new(limits);
        for n in 1..=limits.workers {
            talk.sees(0, n, free(), &[note(n, PoolNote::Up(ONE))]);
        }
        talk
    }

    #[track_caller]
    fn hears(&mut self, now: u64, event: PoolEvent, want: &[PoolAction]) {
        let said = self.0.handle(at(now), event);
        assert_eq!(said, want, "at {now} ms, {event:?}");
    }

    #[track_caller]
    fn sees(&mut self, now: u64, n: u16, seen: SlotView, want: &[PoolAction]) {
        self.hears(now, PoolEvent::SlotRead(WorkerNumber::of(n), seen), want);
    }

    #[track_caller]
    fn is_due(&self, ms: impl Into<Option<u64>>) {
        assert_eq!(self.0.deadline(), ms.into().map(at));
    }

    fn hold(&self, n: u16) -> Hold {
        self.0.workers()[usize::from(n) - 1].hold
    }

    /// Client `id` of `peer` has lease `n` on this worker at `now` and is being served.
    #[track_caller]
    fn serves(&mut self, now: u64, (id, peer): (u64, Peer), worker: u16, n: u64) {
        self.hears(now, Client(id, peer), &[offer(worker, n, now)]);
        self.sees(now, worker, accepted(n, now), &[grant(id, worker, n, now)]);
        self.sees(now, worker, held(lease(n), Claimed, now), &[]);
    }

    /// The worker is done with lease `n`.
    #[track_caller]
    fn ends(&mut self, now: u64, worker: u16, n: u64, then: &[PoolAction]) {
        self.sees(now, worker, held(lease(n), Done, now), &[Release(WorkerNumber::of(worker), lease(n))]);
        self.sees(now, worker, free(), then);
    }
}

#[test]
fn a_client_is_granted_the_warmest_worker_that_accepts() {
    let mut t = Talk::up(LIMITS);
    t.is_due(None);
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    t.sees(0, 2, held(lease(1), Offered, 0), &[]);
    t.is_due(50);
    t.sees(1, 2, accepted(1, 0), &[grant(1, 2, 1, 0)]);
    t.is_due(101);
    t.hears(101, Tick, &[ReadSlot(W2)]);
    t.sees(101, 2, held(lease(1), Responding, 0), &[]);
    t.is_due(201);
    t.sees(102, 2, held(lease(1), Done, 0), &[Release(W2, lease(1))]);
    t.sees(102, 2, free(), &[]);
    t.is_due(None);
    assert!(t.0.is_quiet());
    t.hears(103, Client(2, A), &[offer(2, 2, 103)]);
}

#[test]
fn a_refusal_goes_on_with_the_next_worker() {
    let mut t = Talk::up(LIMITS);
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    let refuse = SlotAnswer::Refuse(lease(1), RefuseReason::Draining);
    let draining = SlotView { life: Some((ONE, Draining, false)), ..held(lease(1), Offered, 0) };
    t.sees(1, 2, answered(refuse, draining), &[Revoke(W2, lease(1))]);
    t.sees(
        1,
        2,
        SlotView { claim: Some(Claim::Held(lease(1), Revoked)), ..draining },
        &[Release(W2, lease(1)), offer(1, 2, 1)],
    );
    t.sees(1, 2, living(Draining, false), &[]);
    t.sees(2, 1, accepted(2, 1), &[grant(1, 1, 2, 1)]);
    t.hears(3, Client(2, B), &[]); // a draining worker gets nothing
}

#[test]
fn a_late_worker_is_passed_over_until_it_answers() {
    let mut t = Talk::up(LIMITS);
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    t.sees(49, 2, held(lease(1), Offered, 0), &[]);
    t.hears(50, Tick, &[ReadSlot(W2)]);
    t.sees(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Revoke(W2, lease(1))]);
    t.sees(50, 2, held(lease(1), Revoked, 0), &[Release(W2, lease(1)), offer(1, 2, 50)]);
    t.sees(50, 2, free(), &[]);
    t.sees(51, 1, accepted(2, 50), &[grant(1, 1, 2, 50)]);
    t.hears(52, Client(2, A), &[]);
    assert!(t.0.workers()[1].late);
    let late = answered(SlotAnswer::Refuse(lease(1), RefuseReason::Stale), free());
    t.sees(60, 2, late, &[note(2, PoolNote::Back), offer(2, 3, 60)]);
}

#[test]
fn an_answer_in_the_last_look_is_not_late() {
    let mut t = Talk::up(LIMITS);
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    t.hears(70, Tick, &[ReadSlot(W2)]);
    t.sees(70, 2, accepted(1, 0), &[grant(1, 2, 1, 0)]);
}

#[test]
fn a_yes_that_leaves_no_time_to_claim_is_no_grant() {
    let mut t = Talk::up(LIMITS);
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    t.sees(1050, 2, accepted(1, 0), &[Revoke(W2, lease(1))]);
    t.sees(1050, 2, held(lease(1), Revoked, 0), &[Refuse(1, timeout(1050)), Release(W2, lease(1))]);
    t.sees(1050, 2, free(), &[]);
    t.hears(1051, Client(2, A), &[offer(2, 2, 1051)]); // neither late nor is the peer a suspect
    t.hears(1052, Client(3, A), &[offer(1, 3, 1052)]);
}

#[test]
fn a_yes_of_a_worker_that_has_died_since_is_no_grant() {
    for gone in [dead as fn(SlotView) -> SlotView, |seen| reborn(2, Starting, seen)] {
        let mut t = Talk::up(LIMITS);
        t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
        let said = t.0.handle(at(1), PoolEvent::SlotRead(W2, gone(accepted(1, 0))));
        assert!(said.contains(&note(2, PoolNote::Down(ONE))) && said.ends_with(&[Revoke(W2, lease(1))]), "{said:?}");
        assert!(!said.contains(&grant(1, 2, 1, 0)));
        t.sees(1, 2, gone(held(lease(1), Revoked, 0)), &[Release(W2, lease(1)), offer(1, 2, 1)]);
    }
}

#[test]
fn a_client_that_was_claimed_meanwhile_is_not_given_to_another() {
    // The worker was faster than the revocation.
    let mut t = Talk::up(LIMITS);
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    t.sees(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Revoke(W2, lease(1))]);
    t.sees(50, 2, held(lease(1), Claimed, 0), &[grant(1, 2, 1, 0)]);
    assert_eq!(t.hold(2), Hold::Busy { lease: lease(1), connection: None });
    // It has claimed before its answer was read, and died.
    t.hears(60, Client(2, A), &[offer(1, 2, 60)]);
    t.sees(
        61,
        1,
        dead(held(lease(2), Claimed, 60)),
        &[note(1, PoolNote::Down(ONE)), grant(2, 1, 2, 60), note(1, PoolNote::Lost(lease(2))), Abort(W1, lease(2))],
    );
    assert!(t.0.is_quiet() || t.0.waiting().0 == 0);
}

#[test]
fn the_queue_keeps_its_bound_its_order_and_its_budget() {
    let mut t = Talk::up(LIMITS);
    t.serves(0, (1, A), 2, 1);
    t.serves(0, (2, A), 1, 2);
    t.hears(10, Client(3, A), &[]);
    t.hears(20, Client(4, B), &[]);
    t.hears(30, Client(5, A), &[Refuse(5, Refusal::QueueFull(2))]);
    assert_eq!(t.0.waiting(), (2, Some(at(10))));
    t.ends(100, 1, 2, &[offer(1, 3, 100)]); // client 3
    t.hears(110, Client(6, A), &[]);
    // Sent back, 3 is before 4 and 6 again, though the queue is full without it.
    t.sees(150, 1, held(lease(3), Offered, 100), &[note(1, PoolNote::Late(lease(3))), Revoke(W1, lease(3))]);
    t.sees(150, 1, held(lease(3), Revoked, 100), &[Release(W1, lease(3))]);
    assert_eq!(t.0.waiting(), (3, Some(at(10))));
    t.hears(160, Client(7, A), &[Refuse(7, Refusal::QueueFull(2))]);
    t.ends(200, 2, 1, &[offer(2, 4, 200)]);
    t.sees(201, 2, accepted(4, 200), &[grant(3, 2, 4, 200)]);
    t.hears(519, Tick, &[ReadSlot(W1), ReadSlot(W2)]);
    t.hears(520, Tick, &[Refuse(4, timeout(500))]);
    t.hears(610, Tick, &[Refuse(6, timeout(500))]);
    assert_eq!(t.0.waiting(), (0, None));
}

#[test]
fn nobody_goes_back_into_the_queue_after_its_time() {
    let mut t = Talk::up(PoolLimits { workers: 1, ..LIMITS });
    t.serves(0, (1, A), 1, 1);
    t.hears(0, Client(2, A), &[]);
    t.ends(490, 1, 1, &[offer(1, 2, 490)]);
    t.sees(540, 1, held(lease(2), Offered, 490), &[note(1, PoolNote::Late(lease(2))), Revoke(W1, lease(2))]);
    t.sees(540, 1, held(lease(2), Revoked, 490), &[Refuse(2, timeout(540)), Release(W1, lease(2))]);
}

#[test]
fn a_client_may_leave_at_any_time() {
    let mut t = Talk::up(PoolLimits { workers: 1, ..LIMITS });
    // While its offer is out.
    t.hears(0, Client(1, A), &[offer(1, 1, 0)]);
    t.hears(1, Disconnected(1), &[Revoke(W1, lease(1))]);
    t.sees(1, 1, held(lease(1), Revoked, 0), &[Release(W1, lease(1))]);
    t.sees(1, 1, free(), &[]);
    // While it waits.
    t.serves(2, (2, A), 1, 2);
    t.hears(3, Client(3, A), &[]);
    t.hears(4, Disconnected(3), &[]);
    assert_eq!(t.0.waiting(), (0, None));
    t.ends(5, 1, 2, &[]);
    t.is_due(None);
    // While its offer is being taken back.
    t.hears(6, Client(4, A), &[offer(1, 3, 6)]);
    t.sees(56, 1, held(lease(3), Offered, 6), &[note(1, PoolNote::Late(lease(3))), Revoke(W1, lease(3))]);
    t.hears(56, Disconnected(4), &[]);
    t.sees(56, 1, held(lease(3), Revoked, 6), &[Release(W1, lease(3))]);
    assert_eq!(t.0.waiting(), (0, None));
    // When it has been granted a worker, leaving is not claiming.
    t.sees(57, 1, answered(SlotAnswer::Ack, free()), &[note(1, PoolNote::Back)]);
    t.hears(60, Client(5, A), &[offer(1, 4, 60)]);
    t.sees(61, 1, accepted(4, 60), &[grant(5, 1, 4, 60)]);
    t.hears(62, Disconnected(5), &[]);
    assert_eq!(t.hold(1).lease(), Some(lease(4)));
}

/// Lease `n` of `client` is granted on this worker and not claimed in time.
#[track_caller]
fn let_lapse(t: &mut Talk, now: u64, (client, peer): (u64, Peer), worker: u16, n: u64) {
    t.hears(now, Client(client, peer), &[offer(worker, n, now)]);
    t.sees(now, worker, accepted(n, now), &[grant(client, worker, n, now)]);
    t.sees(now + 1049, worker, held(lease(n), Offered, now), &[]);
    t.sees(
        now + 1050,
        worker,
        held(lease(n), Offered, now),
        &[note(worker, PoolNote::Unclaimed(lease(n))), Revoke(WorkerNumber::of(worker), lease(n))],
    );
    t.sees(now + 1050, worker, held(lease(n), Revoked, now), &[Release(WorkerNumber::of(worker), lease(n))]);
    t.sees(now + 1050, worker, free(), &[]);
}

#[test]
fn a_peer_that_does_not_claim_gets_one_worker_at_a_time_for_a_while() {
    let mut t = Talk::up(LIMITS);
    let_lapse(&mut t, 0, (1, A), 2, 1);
    t.hears(2000, Client(2, A), &[offer(2, 2, 2000)]);
    t.hears(2000, Client(3, A), &[]); // though worker 1 is idle
    t.hears(2001, Client(4, B), &[offer(1, 3, 2001)]); // overtakes
    t.sees(2002, 1, accepted(3, 2001), &[grant(4, 1, 3, 2001)]);
    t.sees(2003, 1, held(lease(3), Claimed, 2001), &[]);
    t.ends(2004, 1, 3, &[]);
    t.sees(2005, 2, accepted(2, 2000), &[grant(2, 2, 2, 2000)]);
    t.sees(2006, 2, held(lease(2), Claimed, 2000), &[offer(1, 4, 2006)]); // client 3: 2 has claimed
    t.sees(2007, 1, accepted(4, 2006), &[grant(3, 1, 4, 2006)]);
    t.sees(2008, 1, held(lease(4), Claimed, 2006), &[]);
    t.ends(2009, 1, 4, &[]);
    t.ends(2009, 2, 2, &[]);
    // Ten seconds after the end of the unused lease.
    t.hears(11_049, Client(5, A), &[offer(2, 5, 11_049)]);
    t.hears(11_049, Client(6, A), &[]);
    t.hears(11_050, Tick, &[offer(1, 6, 11_050)]);
}

#[test]
fn a_client_cannot_claim_from_a_silent_worker_and_is_not_blamed() {
    let mut t = Talk::up(LIMITS);
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    t.sees(1, 2, accepted(1, 0), &[grant(1, 2, 1, 0)]);
    t.hears(250, Probe, &[PoolAction::Question(W1, SlotQuestion::Ping), PoolAction::Question(W2, SlotQuestion::Ping)]);
    t.sees(251, 1, answered(SlotAnswer::Ack, free()), &[]);
    t.sees(1050, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Unclaimed(lease(1))), Revoke(W2, lease(1))]);
    t.sees(1050, 2, held(lease(1), Revoked, 0), &[Release(W2, lease(1))]);
    t.sees(1050, 2, free(), &[]);
    t.hears(1051, Client(2, A), &[offer(2, 2, 1051)]);
    t.hears(1051, Client(3, A), &[offer(1, 3, 1051)]);
}

#[test]
fn a_worker_dies_before_its_answer() {
    let mut t = Talk::up(LIMITS);
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    t.sees(10, 2, dead(held(lease(1), Offered, 0)), &[note(2, PoolNote::Down(ONE)), Revoke(W2, lease(1))]);
    t.sees(10, 2, dead(held(lease(1), Revoked, 0)), &[Release(W2, lease(1)), offer(1, 2, 10)]);
    t.sees(10, 2, dead(free()), &[]);
    t.sees(90, 2, reborn(2, Starting, free()), &[note(2, PoolNote::Up(epoch(2)))]);
    t.hears(91, Client(2, A), &[]);
    let next =
        PoolAction::Offer { worker: W2, epoch: epoch(2), lease: lease(3), claim_by: at(95 + 1050), connection: None };
    t.sees(95, 2, reborn(2, Ready, free()), &[next]);
}

#[test]
fn a_worker_dies_with_a_grant_nobody_has_used() {
    let mut t = Talk::up(LIMITS);
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    t.sees(1, 2, accepted(1, 0), &[grant(1, 2, 1, 0)]);
    // Only the next life is seen: the lease is another's, the peer is not to blame.
    t.sees(
        40,
        2,
        reborn(2, Ready, held(lease(1), Offered, 0)),
        &[note(2, PoolNote::Down(ONE)), note(2, PoolNote::Up(epoch(2))), Revoke(W2, lease(1))],
    );
    t.sees(40, 2, reborn(2, Ready, held(lease(1), Revoked, 0)), &[Release(W2, lease(1))]);
    t.sees(40, 2, reborn(2, Ready, free()), &[]);
    let next = |n| PoolAction::Offer {
        worker: W2,
        epoch: epoch(2),
        lease: lease(n),
        claim_by: at(41 + 1050),
        connection: None,
    };
    t.hears(41, Client(2, A), &[next(2)]);
    t.hears(41, Client(3, A), &[offer(1, 3, 41)]);
}

#[test]
fn a_worker_dies_with_a_request() {
    // (phase at its death, what ends the lease, phase after that)
    for (phase, step, after) in
        [(Claimed, Abort(W2, lease(1)), Some(Aborted)), (Responding, Reclaim(W2, lease(1)), None)]
    {
        for gone in [dead as fn(SlotView) -> SlotView, |seen| reborn(2, Ready, seen)] {
            let mut t = Talk::up(LIMITS);
            t.serves(0, (1, A), 2, 1);
            t.sees(1, 2, held(lease(1), phase, 0), &[]);
            let said = t.0.handle(at(2), PoolEvent::SlotRead(W2, gone(held(lease(1), phase, 0))));
            assert_eq!(said[0], note(2, PoolNote::Down(ONE)));
            assert!(said.ends_with(&[note(2, PoolNote::Lost(lease(1))), step]), "{said:?}");
            if let Some(after) = after {
                t.sees(2, 2, gone(held(lease(1), after, 0)), &[Release(W2, lease(1))]);
            }
            t.sees(2, 2, gone(free()), &[]);
            assert!(t.0.is_quiet());
            t.is_due(None);
        }
    }
}

#[test]
fn the_leases_of_an_earlier_dispatcher_are_adopted_or_ended() {
    let old = LeaseId::of(epoch(6), 99);
    let up = note(1, PoolNote::Up(ONE));
    let fresh = || Talk::new(PoolLimits { workers: 1, ..LIMITS });

    // Offered: its client may be on the way, until its time is over.
    let mut t = fresh();
    t.sees(0, 1, held(old, Offered, 0), &[up]);
    assert_eq!(t.hold(1), Hold::Granted { lease: old, client: None, claim_by: at(1050) });
    t.hears(1, Client(1, A), &[]);
    t.sees(2, 1, held(old, Claimed, 0), &[]);
    t.sees(3, 1, held(old, Responding, 0), &[]);
    t.sees(4, 1, held(old, Done, 0), &[Release(W1, old)]);
    t.sees(4, 1, free(), &[offer(1, 1, 4)]);

    let mut t = fresh();
    t.sees(0, 1, held(old, Offered, 0), &[up]);
    t.sees(1050, 1, held(old, Offered, 0), &[note(1, PoolNote::Unclaimed(old)), Revoke(W1, old)]);

    // Offered to a dead worker, or too long ago.
    let mut t = fresh();
    t.sees(0, 1, dead(held(old, Offered, 0)), &[Revoke(W1, old)]);
    let mut t = fresh();
    t.sees(2000, 1, held(old, Offered, 0), &[up, Revoke(W1, old)]);

    for phase in [Claimed, Responding] {
        let mut t = fresh();
        t.sees(0, 1, held(old, phase, 0), &[up]);
        assert_eq!(t.hold(1), Hold::Busy { lease: old, connection: None });
        t.is_due(100);
    }
    for phase in [Done, Revoked, Aborted] {
        for alive in [true, false] {
            let mut t = fresh();
            let said = t.0.handle(at(0), PoolEvent::SlotRead(W1, SlotView { alive, ..held(old, phase, 0) }));
            assert_eq!(said.last(), Some(&Release(W1, old)), "{phase:?}");
        }
    }
    let mut t = fresh();
    t.sees(0, 1, dead(held(old, Claimed, 0)), &[note(1, PoolNote::Lost(old)), Abort(W1, old)]);
    let mut t = fresh();
    t.sees(0, 1, dead(held(old, Responding, 0)), &[note(1, PoolNote::Lost(old)), Reclaim(W1, old)]);
}

#[test]
fn an_operator_takes_a_worker_out_and_puts_it_back() {
    let mut t = Talk::up(LIMITS);
    t.hears(0, PoolEvent::Drain(W2), &[PoolAction::Question(W2, SlotQuestion::Drain)]);
    let drained = |seen| SlotView { drained: true, ..seen };
    t.hears(0, Client(1, A), &[offer(1, 1, 0)]);
    t.sees(1, 2, drained(answered(SlotAnswer::Ack, living(Draining, false))), &[]);
    t.hears(2, Client(2, A), &[]);
    t.sees(3, 2, drained(reborn(2, Ready, free())), &[note(2, PoolNote::Down(ONE)), note(2, PoolNote::Up(epoch(2)))]);
    t.hears(
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
fn nobody_waits_for_workers_that_are_all_taken_out() {
    let mut t = Talk::up(LIMITS);
    let drained = |seen| SlotView { drained: true, ..seen };
    let out = |client| Refuse(client, Refusal::OutOfService);
    t.serves(0, (1, A), 2, 1);
    t.hears(2, Client(2, A), &[offer(1, 2, 2)]);
    t.hears(3, Client(3, A), &[]);
    t.hears(4, PoolEvent::Drain(W2), &[PoolAction::Question(W2, SlotQuestion::Drain)]);
    // The last one: who waits is refused, and who was offered it as soon as that has been taken back.
    t.hears(5, PoolEvent::Drain(W1), &[Revoke(W1, lease(2)), PoolAction::Question(W1, SlotQuestion::Drain), out(3)]);
    t.sees(5, 1, drained(held(lease(2), Revoked, 2)), &[Release(W1, lease(2)), out(2)]);
    t.hears(6, Client(4, A), &[out(4)]);
    // One that has died is not in service either; one that is put back is worth waiting for.
    t.sees(7, 1, drained(dead(free())), &[note(1, PoolNote::Down(ONE))]);
    t.hears(8, Client(5, A), &[out(5)]);
    t.hears(9, PoolEvent::Resume(W1), &[PoolAction::Question(W1, SlotQuestion::Resume)]);
    t.hears(9, Client(6, A), &[]);
}

#[test]
fn nobody_waits_for_workers_that_are_all_given_up() {
    let mut t = Talk::up(LIMITS);
    let failed = |client| Refuse(client, Refusal::Failed);
    t.sees(0, 1, dead(free()), &[note(1, PoolNote::Down(ONE))]);
    // One is there: then it is not true any more, or not yet.
    t.hears(1, PoolEvent::Failed(true), &[]);
    t.serves(2, (1, A), 2, 1);
    t.hears(3, Client(2, A), &[]);
    t.sees(
        4,
        2,
        dead(held(lease(1), Claimed, 2)),
        &[note(2, PoolNote::Down(ONE)), note(2, PoolNote::Lost(lease(1))), Abort(W2, lease(1)), failed(2)],
    );
    t.hears(5, Client(3, A), &[failed(3)]);
    // One is back before the watchdog says so.
    t.sees(6, 1, reborn(2, Ready, free()), &[note(1, PoolNote::Up(epoch(2)))]);
    let again =
        PoolAction::Offer { worker: W1, epoch: epoch(2), lease: lease(2), claim_by: at(7 + 1050), connection: None };
    t.hears(7, Client(4, A), &[again]);
    t.hears(8, PoolEvent::Failed(false), &[]);
    // Who dies without being given up is waited for.
    t.hears(9, Disconnected(4), &[Revoke(W1, lease(2))]);
    t.sees(10, 1, dead(free()), &[note(1, PoolNote::Down(epoch(2)))]);
    t.hears(11, Client(5, A), &[]);
}

#[test]
fn an_order_takes_the_place_of_an_offer() {
    for (event, ask) in [(PoolEvent::Drain(W2), SlotQuestion::Drain), (PoolEvent::Resume(W2), SlotQuestion::Resume)] {
        let mut t = Talk::up(LIMITS);
        t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
        t.hears(1, event, &[Revoke(W2, lease(1)), PoolAction::Question(W2, ask)]);
        t.sees(1, 2, held(lease(1), Revoked, 0), &[Release(W2, lease(1)), offer(1, 2, 1)]);
    }
}

#[test]
fn workers_are_recycled_one_at_a_time() {
    let wants = living(Ready, true);
    let recycle = |n| PoolAction::Question(n, SlotQuestion::Recycle);
    let mut t = Talk::up(LIMITS);
    t.serves(0, (1, A), 2, 1);
    t.sees(1, 2, SlotView { life: wants.life, ..held(lease(1), Done, 0) }, &[Release(W2, lease(1))]);
    t.sees(1, 2, wants, &[recycle(W2)]);
    t.sees(2, 1, wants, &[]);
    t.hears(3, Client(2, A), &[offer(1, 2, 3)]);
    t.sees(
        3,
        1,
        answered(SlotAnswer::Accept(lease(2)), SlotView { life: wants.life, ..held(lease(2), Offered, 3) }),
        &[grant(2, 1, 2, 3)],
    );
    t.sees(4, 1, SlotView { life: wants.life, ..held(lease(2), Done, 3) }, &[Release(W1, lease(2))]);
    t.sees(4, 1, wants, &[]);
    t.sees(5, 2, answered(SlotAnswer::Recycle(true), living(Recycling, true)), &[]);
    t.sees(6, 2, reborn(2, Starting, free()), &[note(2, PoolNote::Down(ONE)), note(2, PoolNote::Up(epoch(2)))]);
    t.sees(6, 1, wants, &[]); // 2 does not serve yet
    t.sees(7, 2, reborn(2, Ready, free()), &[]);
    t.sees(8, 1, wants, &[recycle(W1)]);
    // Gone, as between two images or for good: the others wait until it serves again.
    t.sees(9, 1, dead(wants), &[note(1, PoolNote::Down(ONE))]);
    let again = SlotView { life: Some((epoch(2), Ready, true)), ..free() };
    t.sees(10, 2, again, &[]);
    t.sees(10, 1, reborn(2, Ready, free()), &[note(1, PoolNote::Up(epoch(2)))]);
    t.sees(10, 2, again, &[recycle(W2)]);
    // A no is not asked again at once.
    t.sees(11, 2, answered(SlotAnswer::Recycle(false), again), &[]);
    t.sees(12, 2, again, &[recycle(W2)]);
}

#[test]
fn who_does_not_come_back_is_waited_for_no_longer_than_making_room() {
    let wants = living(Ready, true);
    let recycle = |n| PoolAction::Question(n, SlotQuestion::Recycle);
    let mut t = Talk::up(PoolLimits { recycle_timeout: Duration::from_millis(300), ..LIMITS });
    t.sees(0, 2, wants, &[recycle(W2)]);
    t.sees(1, 2, answered(SlotAnswer::Recycle(true), living(Recycling, true)), &[]);
    t.sees(299, 1, wants, &[]);
    t.sees(300, 1, wants, &[recycle(W1)]);
}

#[test]
fn recycling_survives_an_order_and_a_new_dispatcher() {
    let wants = living(Ready, true);
    let recycle = |n| PoolAction::Question(n, SlotQuestion::Recycle);
    let mut t = Talk::new(LIMITS);
    // Begun under an earlier dispatcher; the next incarnation wants it again at once.
    t.sees(0, 1, living(Recycling, true), &[note(1, PoolNote::Up(ONE))]);
    t.sees(0, 2, wants, &[note(2, PoolNote::Up(ONE))]);
    let again = SlotView { life: Some((epoch(2), Ready, true)), ..free() };
    t.sees(1, 1, again, &[note(1, PoolNote::Down(ONE)), note(1, PoolNote::Up(epoch(2))), recycle(W1)]);
    // The order overwrites the question, which is therefore asked again later.
    t.hears(2, PoolEvent::Drain(W1), &[PoolAction::Question(W1, SlotQuestion::Drain)]);
    t.hears(3, PoolEvent::Resume(W1), &[PoolAction::Question(W1, SlotQuestion::Resume)]);
    t.sees(4, 1, answered(SlotAnswer::Ack, again), &[recycle(W1)]);
}

#[test]
fn a_stopping_set_refuses_everybody() {
    let mut t = Talk::up(PoolLimits { workers: 1, ..LIMITS });
    t.hears(0, Client(1, A), &[offer(1, 1, 0)]);
    t.hears(0, Client(2, A), &[]);
    t.hears(1, Quiesce, &[Refuse(2, Refusal::Stopping)]);
    t.hears(1, Client(3, A), &[Refuse(3, Refusal::Stopping)]);
    assert!(!t.0.is_quiet());
    t.sees(50, 1, held(lease(1), Offered, 0), &[note(1, PoolNote::Late(lease(1))), Revoke(W1, lease(1))]);
    t.sees(50, 1, held(lease(1), Revoked, 0), &[Refuse(1, Refusal::Stopping), Release(W1, lease(1))]);
    t.sees(50, 1, free(), &[]);
    assert!(t.0.is_quiet());
    t.is_due(None);
}

#[test]
fn a_pool_grows() {
    let mut t = Talk::up(PoolLimits { workers: 1, ..LIMITS });
    t.serves(0, (1, A), 1, 1);
    t.hears(1, Client(2, A), &[]);
    t.0.reconfigure(LIMITS);
    t.is_due(0);
    t.hears(2, Tick, &[ReadSlot(W1), ReadSlot(W2)]);
    t.sees(2, 1, held(lease(1), Claimed, 0), &[]);
    t.sees(2, 2, SlotView::default(), &[Clear(W2)]);
    t.sees(3, 2, free(), &[note(2, PoolNote::Up(ONE)), offer(2, 2, 3)]);
}

#[test]
fn a_pool_shrinks_and_grows_back_with_clients_waiting() {
    let mut t = Talk::up(LIMITS);
    t.serves(0, (1, A), 2, 1);
    t.0.reconfigure(PoolLimits { workers: 1, ..LIMITS });
    t.hears(1, Tick, &[ReadSlot(W1), ReadSlot(W2)]);
    t.sees(1, 1, free(), &[]);
    t.sees(1, 2, held(lease(1), Claimed, 0), &[]);
    t.serves(2, (2, A), 1, 2);
    t.hears(3, Client(3, A), &[]);
    t.ends(4, 2, 1, &[]); // surplus: no new client
    assert_eq!(t.0.workers().len(), 2);
    t.0.reconfigure(LIMITS);
    t.is_due(0);
    t.hears(5, Tick, &[ReadSlot(W1), ReadSlot(W2), offer(2, 3, 5)]);
    t.sees(6, 2, accepted(3, 5), &[grant(3, 2, 3, 5)]);
    t.0.reconfigure(PoolLimits { workers: 0, ..LIMITS });
    t.sees(7, 2, dead(held(lease(3), Offered, 5)), &[note(2, PoolNote::Down(ONE)), Revoke(W2, lease(3))]);
    t.sees(7, 2, dead(held(lease(3), Revoked, 5)), &[Release(W2, lease(3))]);
    t.sees(7, 2, dead(free()), &[]);
    assert_eq!(t.0.workers().len(), 1, "2 has left, 1 still serves");
    t.sees(8, 2, free(), &[]); // nobody is there any more
}

#[test]
fn nobody_trusts_a_garbled_slot() {
    let corrupt = SlotView { claim: None, ..free() };
    let mut t = Talk::up(LIMITS);
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    t.sees(1, 2, corrupt, &[note(2, PoolNote::Corrupt), offer(1, 2, 1)]);
    assert!(t.0.workers()[1].corrupt);
    t.is_due(51);
    t.sees(101, 2, corrupt, &[]); // said once
    t.sees(102, 2, dead(corrupt), &[note(2, PoolNote::Down(ONE)), Clear(W2)]);
    t.sees(102, 2, dead(free()), &[]);
    assert!(!t.0.workers()[1].corrupt);

    // Nothing of a living worker is buried because its life or its terms cannot be read.
    for phase in [Claimed, Responding] {
        let whole = held(lease(1), phase, 0);
        for torn in [SlotView { terms: None, ..whole }, SlotView { life: None, ..whole }] {
            let mut t = Talk::up(LIMITS);
            t.serves(0, (1, A), 2, 1);
            let said = t.0.handle(at(1), PoolEvent::SlotRead(W2, torn));
            assert_eq!(said.last(), Some(&note(2, PoolNote::Corrupt)), "{said:?}");
            assert_eq!(t.hold(2), Hold::Releasing);
        }
    }
}

#[test]
fn a_pool_without_a_queue_lets_nobody_wait() {
    let mut t = Talk::up(PoolLimits { queue: 0, ..LIMITS });
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    t.serves(1, (2, A), 1, 2);
    t.hears(2, Client(3, A), &[Refuse(3, Refusal::NoWorkerFree)]);
    t.sees(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Revoke(W2, lease(1))]);
    t.sees(50, 2, held(lease(1), Revoked, 0), &[Release(W2, lease(1)), Refuse(1, Refusal::NoWorkerFree)]);
    t.is_due(101);

    // Nor for a worker that is idle but not to be had.
    let mut t = Talk::up(PoolLimits { queue: 0, ..LIMITS });
    t.sees(0, 1, living(Ready, true), &[PoolAction::Question(W1, SlotQuestion::Recycle)]);
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    t.sees(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Revoke(W2, lease(1))]);
    t.sees(50, 2, held(lease(1), Revoked, 0), &[Release(W2, lease(1)), Refuse(1, Refusal::NoWorkerFree)]);

    // With somebody else free, a failed offer costs nothing but time.
    let mut t = Talk::up(PoolLimits { queue: 0, queue_timeout: Duration::ZERO, ..LIMITS });
    t.hears(0, Client(1, A), &[offer(2, 1, 0)]);
    t.sees(50, 2, held(lease(1), Offered, 0), &[note(2, PoolNote::Late(lease(1))), Revoke(W2, lease(1))]);
    t.sees(50, 2, held(lease(1), Revoked, 0), &[Release(W2, lease(1)), offer(1, 2, 50)]);
}

#[test]
fn a_probe_asks_everybody_and_finds_what_a_lost_ring_had_to_say() {
    let mut t = Talk::up(PoolLimits { workers: 3, ..LIMITS });
    t.serves(0, (1, A), 3, 1);
    t.sees(0, 1, dead(free()), &[note(1, PoolNote::Down(ONE))]);
    let finished = PoolAction::Question(W3, SlotQuestion::Finished(lease(1)));
    t.hears(250, Probe, &[ReadSlot(W1), PoolAction::Question(W2, SlotQuestion::Ping), finished]);
    t.sees(250, 1, dead(free()), &[]);
    t.sees(251, 3, answered(SlotAnswer::Ack, held(lease(1), Claimed, 0)), &[]);
    t.hears(500, Probe, &[ReadSlot(W1), Ring(W2), ReadSlot(W2), finished]);
    t.sees(500, 1, reborn(2, Ready, free()), &[note(1, PoolNote::Up(epoch(2)))]);
    t.sees(500, 2, answered(SlotAnswer::Ack, free()), &[]);
    t.hears(
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

// ---- connections that are handed over ----

fn hand(worker: u16, client: u64, n: u64, now: u64) -> PoolAction {
    PoolAction::Offer {
        worker: WorkerNumber::of(worker),
        epoch: ONE,
        lease: lease(n),
        claim_by: at(now + 50),
        connection: Some(client),
    }
}

fn over(client: u64, worker: u16, n: u64, end: LeaseEnd) -> PoolAction {
    PoolAction::LeaseEnded { client, worker: WorkerNumber::of(worker), lease: lease(n), end }
}

fn taken(client: u64, worker: u16, n: u64, offered: u64) -> PoolAction {
    PoolAction::Grant { client, worker: WorkerNumber::of(worker), lease: lease(n), claim_by: at(offered + 50) }
}

/// What the slot says of a lease that is the worker's to claim.
fn handed(n: u64, phase: Phase, offered: u64) -> SlotView {
    let seen = held(lease(n), phase, offered);
    SlotView { terms: seen.terms.map(|terms| LeaseTerms { claim_by: at(offered + 50), ..terms }), ..seen }
}

#[test]
fn a_connection_is_the_workers_from_its_claim_to_the_end() {
    let mut t = Talk::up(LIMITS);
    t.hears(10, PoolEvent::Connection(1, A), &[hand(2, 1, 1, 10)]);
    assert_eq!(t.0.workers()[1].silent_since, None, "its claim is its answer");
    // A yes of the control loop is not the claim.
    t.sees(12, 2, answered(SlotAnswer::Accept(lease(1)), handed(1, Offered, 10)), &[]);
    t.sees(15, 2, handed(1, Claimed, 10), &[taken(1, 2, 1, 10)]);
    t.sees(20, 2, handed(1, Responding, 10), &[]);
    t.sees(30, 2, handed(1, Done, 10), &[over(1, 2, 1, LeaseEnd::Done), PoolAction::Release(W2, lease(1))]);
    t.sees(30, 2, free(), &[]);
    // The end may be the first that is seen of it.
    t.hears(40, PoolEvent::Connection(2, A), &[hand(2, 2, 2, 40)]);
    let all = [taken(2, 2, 2, 40), over(2, 2, 2, LeaseEnd::Done), PoolAction::Release(W2, lease(2))];
    t.sees(41, 2, handed(2, Done, 40), &all);
}

#[test]
fn a_connection_that_is_not_claimed_in_time_goes_to_another() {
    let mut t = Talk::up(LIMITS);
    t.hears(10, PoolEvent::Connection(1, A), &[hand(2, 1, 1, 10)]);
    t.sees(60, 2, handed(1, Offered, 10), &[note(2, PoolNote::Late(lease(1))), PoolAction::Revoke(W2, lease(1))]);
    t.sees(60, 2, handed(1, Revoked, 10), &[PoolAction::Release(W2, lease(1)), hand(1, 1, 2, 60)]);
    // The one that was late may not have it any more, and the other may.
    t.sees(61, 1, handed(2, Claimed, 60), &[taken(1, 1, 2, 60)]);
}

#[test]
fn what_dies_with_a_connection_says_what_may_still_be_sent() {
    let claimed = || {
        let mut t = Talk::up(LIMITS);
        t.hears(10, PoolEvent::Connection(1, A), &[hand(2, 1, 1, 10)]);
        t.sees(11, 2, handed(1, Claimed, 10), &[taken(1, 2, 1, 10)]);
        t
    };
    let gone = [note(2, PoolNote::Down(ONE)), note(2, PoolNote::Lost(lease(1)))];
    let mut t = claimed();
    let cut = [gone[0], gone[1], over(1, 2, 1, LeaseEnd::Cut), PoolAction::Reclaim(W2, lease(1))];
    t.sees(20, 2, dead(handed(1, Responding, 10)), &cut);
    // Nothing is said in a worker's place before it cannot say anything itself.
    let mut t = claimed();
    t.sees(20, 2, dead(handed(1, Claimed, 10)), &[gone[0], gone[1], PoolAction::Abort(W2, lease(1))]);
    let answered = [over(1, 2, 1, LeaseEnd::NoResponse), PoolAction::Release(W2, lease(1))];
    t.sees(20, 2, dead(handed(1, Aborted, 10)), &answered);
    // That holds for one whose slot names another life, and which lives and is quicker.
    let mut t = claimed();
    let scrambled = |phase| {
        let seen = handed(1, phase, 10);
        SlotView { terms: seen.terms.map(|terms| LeaseTerms { worker_epoch: ONE.next(), ..terms }), ..seen }
    };
    t.sees(20, 2, scrambled(Claimed), &[gone[1], PoolAction::Abort(W2, lease(1))]);
    let quicker = [gone[1], over(1, 2, 1, LeaseEnd::Cut), PoolAction::Reclaim(W2, lease(1))];
    t.sees(20, 2, scrambled(Responding), &quicker);
    // Before the claim nothing is lost.
    let mut t = Talk::up(LIMITS);
    t.hears(10, PoolEvent::Connection(1, A), &[hand(2, 1, 1, 10)]);
    let seen = dead(handed(1, Offered, 10));
    t.sees(20, 2, seen, &[note(2, PoolNote::Down(ONE)), PoolAction::Revoke(W2, lease(1))]);
}

#[test]
fn a_connection_whose_slot_is_spoilt_may_have_been_read_and_is_offered_to_nobody_else() {
    // Cut and mended, all zero; or overtaken by what is no lease of ours.
    for seen in [free(), handed(9, Done, 10)] {
        let mut t = Talk::up(LIMITS);
        t.hears(10, PoolEvent::Connection(1, A), &[hand(2, 1, 1, 10)]);
        let actions = t.0.handle(at(11), PoolEvent::SlotRead(W2, seen));
        assert_eq!(actions[0], over(1, 2, 1, LeaseEnd::Cut), "{actions:?}");
        assert!(!actions.iter().any(|action| matches!(action, PoolAction::Offer { .. })), "{actions:?}");
    }
    // The same while the offer is being taken back.
    let mut t = Talk::up(LIMITS);
    t.hears(10, PoolEvent::Connection(1, A), &[hand(2, 1, 1, 10)]);
    t.sees(60, 2, handed(1, Offered, 10), &[note(2, PoolNote::Late(lease(1))), PoolAction::Revoke(W2, lease(1))]);
    t.sees(60, 2, free(), &[over(1, 2, 1, LeaseEnd::Cut)]);
}

#[test]
fn an_answer_that_does_not_come_is_given_in_the_workers_place() {
    let mut t = Talk::up(LIMITS);
    t.hears(10, PoolEvent::Connection(1, A), &[hand(2, 1, 1, 10)]);
    t.sees(11, 2, handed(1, Claimed, 10), &[taken(1, 2, 1, 10)]);
    let overdue = 11 + LIMITS.request_timeout.as_millis() as u64 + 2000;
    t.sees(overdue - 1, 2, handed(1, Claimed, 10), &[]);
    t.sees(overdue, 2, handed(1, Claimed, 10), &[PoolAction::Abort(W2, lease(1))]);
    let end = [over(1, 2, 1, LeaseEnd::Overdue), PoolAction::Release(W2, lease(1))];
    t.sees(overdue, 2, handed(1, Aborted, 10), &end);
}

#[test]
fn many_workers_are_not_all_woken_at_once_for_a_sign_of_life() {
    let mut pool = Pool::new(PoolLimits { workers: 100, ..LIMITS }, epoch(7));
    for n in 1..=100 {
        pool.handle(at(1), PoolEvent::SlotRead(WorkerNumber::of(n), free()));
    }
    let asked = |actions: Vec<PoolAction>| {
        let asked =
            actions.iter().filter(|action| matches!(action, PoolAction::Question(_, SlotQuestion::Ping))).count();
        assert_eq!(asked, actions.len(), "{actions:?}");
        asked
    };
    assert_eq!(asked(pool.handle(at(10), PoolEvent::Probe)), 64);
    assert_eq!((pool.deadline(), asked(pool.handle(at(15), PoolEvent::Probe))), (Some(at(20)), 0));
    assert_eq!(asked(pool.handle(at(20), PoolEvent::Tick)), 36);
    assert_eq!(pool.deadline(), None);
}

#[test]
fn who_missed_an_offer_is_taken_after_the_others() {
    let mut t = Talk::up(LIMITS);
    t.hears(10, PoolEvent::Connection(1, A), &[hand(2, 1, 1, 10)]);
    t.sees(60, 2, handed(1, Offered, 10), &[note(2, PoolNote::Late(lease(1))), PoolAction::Revoke(W2, lease(1))]);
    t.sees(60, 2, handed(1, Revoked, 10), &[PoolAction::Release(W2, lease(1)), hand(1, 1, 2, 60)]);
    t.sees(
        61,
        1,
        handed(2, Done, 60),
        &[taken(1, 1, 2, 60), over(1, 1, 2, LeaseEnd::Done), PoolAction::Release(W1, lease(2))],
    );
    t.sees(61, 1, free(), &[]);
    // Its control loop answers: that it meets anybody is not said with that.
    t.sees(70, 2, answered(SlotAnswer::Ack, free()), &[note(2, PoolNote::Back)]);
    t.hears(80, PoolEvent::Connection(2, A), &[hand(1, 2, 3, 80)]);
    t.hears(80, PoolEvent::Connection(3, A), &[hand(2, 3, 4, 80)]);
    t.sees(
        81,
        2,
        handed(4, Done, 80),
        &[taken(3, 2, 4, 80), over(3, 2, 4, LeaseEnd::Done), PoolAction::Release(W2, lease(4))],
    );
    t.sees(81, 2, free(), &[]);
    t.hears(90, PoolEvent::Connection(4, A), &[hand(2, 4, 5, 90)]);
}
