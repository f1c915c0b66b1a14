//! The operations that `benches/core.rs` measures. Each function makes the preparations and returns what is measured.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use http::Request;

use crate::dispatcher::redirect::location;
use crate::exchange::{DispatcherSide, PlainSlot, SlotMemory, Word, WorkerSide};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Phase, ProcessId, Token, WorkerNumber};
use crate::net::check_request;
use crate::net::request_head::HeadScanner;
use crate::pool::{ClientAction, Peer, Pool, PoolAction, PoolEvent, PoolLimits, SlotAction, SlotAnswer, SlotView};
use crate::worker::lease_url;

const PEER: Peer = Peer::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
const TIMEOUT: Duration = Duration::from_secs(30);
const TOKEN: u128 = 7;
const TARGET: &str = "/convert/letter.odt?to=pdf";

fn sides(slot: &Arc<PlainSlot>) -> (DispatcherSide<Arc<PlainSlot>>, WorkerSide<Arc<PlainSlot>>) {
    let dispatcher = DispatcherSide::attach(slot.clone(), Epoch::FIRST, ProcessId { pid: 1, start_time: 1 }, None);
    let worker = WorkerSide::attach(slot.clone(), 2, 1, None, Monotonic(0));
    worker.set_state(Lifecycle::Ready, false);
    (dispatcher, worker)
}

fn terms(lease: LeaseId) -> LeaseTerms {
    LeaseTerms {
        lease,
        worker_epoch: Epoch::FIRST,
        dispatcher_epoch: Epoch::FIRST,
        token: Token::new(TOKEN),
        claim_by: Monotonic(u64::MAX),
        request_timeout: TIMEOUT,
        connection: 0,
    }
}

/// A living worker's slot without a lease.
fn free() -> SlotView {
    let life = Some((Epoch::FIRST, Lifecycle::Ready, false));
    SlotView { life, alive: true, claim: Some(Claim::Free), ..SlotView::default() }
}

/// A living worker's slot with this lease in this phase.
fn held(lease: LeaseId, phase: Phase) -> SlotView {
    SlotView { claim: Some(Claim::Held(lease, phase)), terms: Some(terms(lease)), ..free() }
}

/// From a client's arrival to the end of its lease, in a pool of `workers`.
pub fn pool(workers: u16) -> impl FnMut() {
    let limits = PoolLimits {
        max_sessions: 0,
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
    WorkerNumber::up_to(workers).for_each(|n| drop(pool.handle(Monotonic(0), PoolEvent::SlotRead(n, free()))));
    let mut client = 0;
    move || {
        client += 1;
        let now = Monotonic(client * 1000);
        let actions = pool.handle(now, PoolEvent::Client(client, PEER));
        let offer = actions.iter().find_map(|action| match action {
            PoolAction::Slot(n, SlotAction::Offer { lease, .. }) => Some((*n, *lease)),
            _ => None,
        });
        let (n, lease) = offer.expect("a worker is free");
        let accepted = SlotView { answer: Some(SlotAnswer::Accept(lease)), ..held(lease, Phase::Offered) };
        let granted = pool.handle(now, PoolEvent::SlotRead(n, accepted));
        assert!(granted.iter().any(|action| matches!(action, PoolAction::Client(_, ClientAction::Grant { .. }))));
        for seen in [held(lease, Phase::Claimed), held(lease, Phase::Done), free()] {
            black_box(pool.handle(now, PoolEvent::SlotRead(n, seen)));
        }
    }
}

/// An offer and its answer, revoked before the claim: both sides of a slot in one thread.
pub fn exchange_revoked() -> impl FnMut() {
    exchange(|dispatcher, _, lease| assert!(dispatcher.revoke(lease)))
}

/// An offer and its answer, claimed and served: both sides of a slot in one thread.
pub fn exchange_done() -> impl FnMut() {
    exchange(|_, worker, lease| {
        worker.claim(Token::new(TOKEN), Monotonic(1)).expect("the offer stands");
        assert!(worker.respond(lease) && worker.done(lease));
    })
}

fn exchange(
    end: impl Fn(&DispatcherSide<Arc<PlainSlot>>, &WorkerSide<Arc<PlainSlot>>, LeaseId) + 'static,
) -> impl FnMut() {
    let (mut dispatcher, worker) = sides(&Arc::default());
    let mut count = 0;
    move || {
        count += 1;
        let lease = LeaseId::of(Epoch::FIRST, count);
        dispatcher.offer(&terms(lease)).expect("the slot is free");
        let question = worker.question(worker.answered()).expect("the question is new");
        worker.reply(&question, worker.decide(&question, Lifecycle::Ready));
        black_box(dispatcher.answer()).expect("the question is answered");
        end(&dispatcher, &worker, lease);
        assert!(dispatcher.release(lease));
    }
}

/// One compare-and-swap of the claim word, and another one back.
pub fn claim_and_back() -> impl FnMut() {
    let slot = Arc::default();
    let (mut dispatcher, _) = sides(&slot);
    let lease = LeaseId::of(Epoch::FIRST, 1);
    dispatcher.offer(&terms(lease)).expect("the slot is free");
    let [offered, claimed] = [Phase::Offered, Phase::Claimed].map(|phase| Claim::Held(lease, phase).word());
    move || {
        slot.compare_exchange(Word::CLAIM, offered, claimed).expect("no other writer");
        slot.compare_exchange(Word::CLAIM, claimed, offered).expect("no other writer");
    }
}

/// A claim with a token of another lease.
pub fn wrong_token() -> impl FnMut() {
    let (mut dispatcher, worker) = sides(&Arc::default());
    dispatcher.offer(&terms(LeaseId::of(Epoch::FIRST, 1))).expect("the slot is free");
    move || {
        let _ = black_box(worker.claim(Token::new(TOKEN + 1), Monotonic(1)));
    }
}

/// The check of a browser's request head on its bytes.
pub fn scan_head() -> impl FnMut() {
    let head =
        b"GET /a/b?c=d HTTP/1.1\r\nHost: localhost:7286\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0)\r\n\
        Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n\
        Accept-Encoding: gzip, deflate, br, zstd\r\nCookie: session=0123456789abcdef0123456789abcdef\r\n\
        Connection: keep-alive\r\n\r\n";
    move || {
        let _ = black_box(HeadScanner::new(16_384).scan(black_box(head)));
    }
}

/// The dispatcher's checks on a request head that hyper has parsed.
pub fn check_head() -> impl FnMut() {
    let request = Request::post(TARGET)
        .header("Host", "127.0.0.1:7286")
        .header("Content-Type", "application/octet-stream")
        .header("Content-Length", "900000")
        .body(())
        .expect("a valid request");
    let listens_on = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    move || {
        drop(
            black_box(check_request(black_box(&request), &[], listens_on, 0))
                .unwrap_or_else(|_| panic!("a good request")),
        )
    }
}

/// The `Location` of a worker.
pub fn write_location() -> impl FnMut() {
    || drop(black_box(location("127.0.0.1", 7300, Token::new(TOKEN), black_box(TARGET))))
}

/// Token and target at the worker.
pub fn split_target() -> impl FnMut() {
    let uri = format!("/.patou/{}{TARGET}", Token::new(TOKEN)).parse().expect("a valid target");
    move || drop(black_box(lease_url::split(&http::Method::POST, black_box(&uri))))
}
