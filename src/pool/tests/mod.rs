//! The decisions of a pool: each test reports events at given times and checks the resulting actions.
//!
//! Times are milliseconds. The dispatcher is in its seventh epoch, so that lease `n` is `7.n`; workers are in their
//! first epoch unless a test sets another one. Idle workers are taken last in, first out.

mod connections;
mod offers;
mod operator;
mod probe;
mod queue;
mod recovery;
mod recycling;
mod sessions;
mod unclaimed;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::ids::Lifecycle::{Draining, Ready, Recycling, Starting};
use crate::ids::Phase::{Aborted, Claimed, Done, Offered, Responding, Revoked, Upgraded};
use crate::ids::{
    Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Phase, RefuseReason, Replacements, Token, WorkerNumber,
};
use crate::pool::PoolAction::Slot;
use crate::pool::PoolEvent::{Client, Disconnected, Probe, Quiesce, Tick};
use crate::pool::SlotAction::{Abort, Clear, Offer, Question, Read, Reclaim, Release, Revoke, Ring};
use crate::pool::{
    ClientAction, Hold, LeaseEnd, Peer, Pool, PoolAction, PoolEvent, PoolLimits, PoolNote, Refusal, SlotAnswer,
    SlotQuestion, SlotView,
};

const W1: WorkerNumber = WorkerNumber::of(1);
const W2: WorkerNumber = WorkerNumber::of(2);
const W3: WorkerNumber = WorkerNumber::of(3);
const A: Peer = Peer::Ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
const B: Peer = Peer::User(1000);
const ONE: Epoch = Epoch::FIRST;

const LIMITS: PoolLimits = PoolLimits {
    max_sessions: 1,
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
    let offer = Offer { epoch: ONE, lease: lease(n), claim_by: at(now + 1050), connection: None };
    Slot(WorkerNumber::of(worker), offer)
}

fn grant(client: u64, worker: u16, n: u64, offered: u64) -> PoolAction {
    let grant = ClientAction::Grant { worker: WorkerNumber::of(worker), lease: lease(n), claim_by: at(offered + 1050) };
    PoolAction::Client(client, grant)
}

fn refuse(client: u64, refusal: Refusal) -> PoolAction {
    PoolAction::Client(client, ClientAction::Refuse(refusal))
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
        self.read_slot(now, worker, held(lease(n), Done, now), &[Slot(WorkerNumber::of(worker), Release(lease(n)))]);
        self.read_slot(now, worker, free(), expected);
    }
}
