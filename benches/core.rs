//! What the pure parts cost, without a process, a bell or a socket: `cargo bench --bench core`.

#![allow(missing_docs)] // of what criterion's macros make

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use http::Request;
use patou::dispatcher::redirect::location;
use patou::exchange::{DispatcherSide, SlotMemory, WORDS, Word, WorkerSide};
use patou::ids::{Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Phase, Token};
use patou::net::check;
use patou::pool::{Peer, Pool, PoolAction, PoolEvent, PoolLimits, SlotAnswer, SlotView};
use patou::worker::lease_url;

const PEER: Peer = Peer::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
const TIMEOUT: Duration = Duration::from_secs(30);

/// A slot of plain atomics.
#[derive(Debug)]
struct Slot([AtomicU64; WORDS]);

impl SlotMemory for Slot {
    fn load(&self, word: Word, order: Ordering) -> u64 {
        self.0[word.index()].load(order)
    }
    fn store(&self, word: Word, value: u64, order: Ordering) {
        self.0[word.index()].store(value, order);
    }
    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        self.0[word.index()].compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }
    fn fence(&self, order: Ordering) {
        fence(order);
    }
}

fn terms(lease: LeaseId) -> LeaseTerms {
    let claim_by = Monotonic(u64::MAX);
    let (worker_epoch, dispatcher_epoch) = (Epoch::FIRST, Epoch::FIRST);
    LeaseTerms {
        lease,
        worker_epoch,
        dispatcher_epoch,
        token: Token::new(7),
        claim_by,
        request_timeout: TIMEOUT,
        connection: 0,
    }
}

/// A living worker's slot with nothing in it.
fn free() -> SlotView {
    let life = Some((Epoch::FIRST, Lifecycle::Ready, false));
    SlotView { life, alive: true, claim: Some(Claim::Free), ..SlotView::default() }
}

/// The same with a lease.
fn held(lease: LeaseId, phase: Phase) -> SlotView {
    SlotView { claim: Some(Claim::Held(lease, phase)), terms: Some(terms(lease)), ..free() }
}

/// From a client's arrival over the offer and the grant to the end of its lease.
fn pool(criterion: &mut Criterion) {
    for workers in [4, 1000] {
        let limits = PoolLimits {
            workers,
            queue: 128,
            queue_timeout: TIMEOUT,
            offer_timeout: TIMEOUT,
            claim_timeout: TIMEOUT,
            request_timeout: TIMEOUT,
            slot_scan: Duration::from_millis(100),
            recycle_timeout: TIMEOUT,
        };
        let mut pool = Pool::new(limits, Epoch::FIRST);
        (1..=workers).for_each(|n| drop(pool.handle(Monotonic(0), PoolEvent::SlotRead(n, free()))));
        let mut client = 0;
        let mut turn = || {
            client += 1;
            let now = Monotonic(client * 1000);
            let actions = pool.handle(now, PoolEvent::Client(client, PEER));
            let offer = actions.iter().find_map(|action| match action {
                PoolAction::Offer { worker, lease, .. } => Some((*worker, *lease)),
                _ => None,
            });
            let (n, lease) = offer.expect("somebody is free");
            let accepted = SlotView { answer: Some(SlotAnswer::Accept(lease)), ..held(lease, Phase::Offered) };
            let granted = pool.handle(now, PoolEvent::SlotRead(n, accepted));
            assert!(granted.iter().any(|action| matches!(action, PoolAction::Grant { .. })));
            for seen in [held(lease, Phase::Claimed), held(lease, Phase::Done), free()] {
                black_box(pool.handle(now, PoolEvent::SlotRead(n, seen)));
            }
        };
        criterion.bench_function(&format!("pool, one client, {workers} workers"), |bench| bench.iter(&mut turn));
    }
}

/// Both sides of a slot in one thread: what the words themselves cost.
fn exchange(criterion: &mut Criterion) {
    let slot = Arc::new(Slot(std::array::from_fn(|_| AtomicU64::new(0))));
    let mut asker = DispatcherSide::attach(slot.clone(), Epoch::FIRST, (1, 1), None);
    let respondent = WorkerSide::attach(slot, 2, 1, None, Monotonic(0));
    respondent.set_state(Lifecycle::Ready, false);
    let mut count = 0;
    let mut round = |whole: bool| {
        count += 1;
        let lease = LeaseId::of(Epoch::FIRST, count);
        asker.offer(&terms(lease)).expect("the slot is free");
        let question = respondent.question(respondent.answered()).expect("it has been asked");
        respondent.reply(&question, respondent.decide(&question, Lifecycle::Ready));
        black_box(asker.answer()).expect("it has been answered");
        if whole {
            respondent.claim(Token::new(7), Monotonic(1)).expect("the offer stands");
            assert!(respondent.respond(lease) && respondent.done(lease));
        } else {
            assert!(asker.revoke(lease));
        }
        assert!(asker.release(lease));
    };
    criterion.bench_function("exchange, offer to answer, revoked", |bench| bench.iter(|| round(false)));
    criterion.bench_function("exchange, offer to answer, claimed, done", |bench| bench.iter(|| round(true)));
}

/// One compare-and-swap of the claim word there and back, and a token that is not the one.
fn claim(criterion: &mut Criterion) {
    let slot = Arc::new(Slot(std::array::from_fn(|_| AtomicU64::new(0))));
    let mut asker = DispatcherSide::attach(slot.clone(), Epoch::FIRST, (1, 1), None);
    let respondent = WorkerSide::attach(slot.clone(), 2, 1, None, Monotonic(0));
    let lease = LeaseId::of(Epoch::FIRST, 1);
    asker.offer(&terms(lease)).expect("the slot is free");
    let [offered, claimed] = [Phase::Offered, Phase::Claimed].map(|phase| Claim::Held(lease, phase).word());
    criterion.bench_function("claim, compare-and-swap and back", |bench| {
        bench.iter(|| {
            slot.compare_exchange(Word::CLAIM, offered, claimed).expect("nobody else is here");
            slot.compare_exchange(Word::CLAIM, claimed, offered).expect("nobody else is here");
        });
    });
    criterion
        .bench_function("claim, a wrong token", |bench| bench.iter(|| respondent.claim(Token::new(8), Monotonic(1))));
}

/// What dispatcher and worker make of a request once hyper has read it.
fn heads(criterion: &mut Criterion) {
    let request = Request::post("/convert/letter.odt?to=pdf")
        .header("Host", "127.0.0.1:7286")
        .header("Content-Type", "application/octet-stream")
        .header("Content-Length", "900000")
        .body(())
        .expect("a valid request");
    let here = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let check = || check(black_box(&request), &[], here, 0).unwrap_or_else(|_| panic!("a good request"));
    criterion.bench_function("head, checked by the dispatcher", |bench| bench.iter(check));
    let to = || location("127.0.0.1", 7300, Token::new(7), black_box("/convert/letter.odt?to=pdf"));
    criterion.bench_function("head, location of the worker", |bench| bench.iter(to));
    let uri = format!("/.patou/{}/convert/letter.odt?to=pdf", Token::new(7)).parse().expect("a valid target");
    criterion.bench_function("head, token and target at the worker", |bench| {
        bench.iter(|| lease_url::split(&http::Method::POST, black_box(&uri)));
    });
}

criterion_group!(core, pool, exchange, claim, heads);
criterion_main!(core);
