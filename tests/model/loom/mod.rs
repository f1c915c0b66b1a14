//! The slot protocol under loom: every interleaving and every stale value that the memory model allows.
//!
//! Each model is first run on memory that keeps its word, then, with `should_panic`, on memory that is weaker
//! by just the one guarantee the protocol is said to need there: what loom finds then, it would have found.
//! Three models have too many interleavings to walk through them all; they say how many preemptions they allow.

use std::sync::Arc;
use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release, SeqCst};
use std::time::Duration;

use crate::exchange::{
    self, ClaimError, DispatcherSide, Incarnation, Question, QuestionKind, Reply, RequestNote, SlotMemory, WORDS, Word,
    WorkerSide,
};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Phase, Token};
use loom::sync::atomic::{AtomicU64, fence};
use loom::thread;

/// Which guarantee is missing.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Nothing,
    /// Release stores and acquire loads order nothing.
    LoadAndStoreOrder,
    /// There are no release fences.
    ReleaseFence,
    /// There are no acquire fences.
    AcquireFence,
    /// There are no fences that all sides agree on.
    TotalFence,
    /// A compare-and-swap orders nothing.
    SwapOrder,
    /// A compare-and-swap is a load and a store.
    SwapInOneStep,
}

/// The words in front of the counters, as loom's atomics.
///
/// A relaxed store of the value that a word already has is left out: it could only order more, and loom need
/// not branch on it. Terms therefore differ in three words only.
struct Slot {
    words: Vec<AtomicU64>,
    values: Vec<std::sync::atomic::AtomicU64>,
    missing: Missing,
}

impl Slot {
    fn new(missing: Missing) -> Arc<Self> {
        Self::of(Word::POLLING.index() + 1, missing)
    }

    fn of(count: usize, missing: Missing) -> Arc<Self> {
        let values = (0..count).map(|_| Default::default()).collect();
        Arc::new(Self { words: (0..count).map(|_| AtomicU64::new(0)).collect(), values, missing })
    }

    fn ordered(&self, order: Ordering) -> Ordering {
        if self.missing == Missing::LoadAndStoreOrder { Relaxed } else { order }
    }
}

impl SlotMemory for Slot {
    fn load(&self, word: Word, order: Ordering) -> u64 {
        self.words[word.index()].load(self.ordered(order))
    }

    fn store(&self, word: Word, value: u64, order: Ordering) {
        let before = self.values[word.index()].swap(value, Relaxed);
        if before != value || order != Relaxed {
            self.words[word.index()].store(value, self.ordered(order));
        }
    }

    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        let word = &self.words[word.index()];
        match self.missing {
            Missing::SwapOrder => word.compare_exchange(current, new, Relaxed, Relaxed).map(drop),
            Missing::SwapInOneStep => match word.load(Acquire) {
                found if found == current => {
                    word.store(new, Release);
                    Ok(())
                }
                found => Err(found),
            },
            _ => word.compare_exchange(current, new, Ordering::AcqRel, Acquire).map(drop),
        }
    }

    fn fence(&self, order: Ordering) {
        match (order, self.missing) {
            (Release, Missing::ReleaseFence) | (Acquire, Missing::AcquireFence) | (SeqCst, Missing::TotalFence) => {}
            _ => fence(order),
        }
    }
}

/// The slot as its worker sees it, who alone writes the life line and knows what is in it. The load in front
/// of a new incarnation's stores would keep loom from finding all the orders in which others may see them.
struct Own(Arc<Slot>);

impl SlotMemory for Own {
    fn load(&self, word: Word, order: Ordering) -> u64 {
        const LIFE_LINE: std::ops::Range<usize> = 3 * 8..4 * 8;
        match word.index() {
            own if LIFE_LINE.contains(&own) => self.0.values[own].load(Relaxed),
            _ => self.0.load(word, order),
        }
    }

    fn store(&self, word: Word, value: u64, order: Ordering) {
        self.0.store(word, value, order);
    }

    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        self.0.compare_exchange(word, current, new)
    }

    fn fence(&self, order: Ordering) {
        self.0.fence(order);
    }
}

/// Explores the model with at most so many preemptions.
fn bounded(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn epoch(n: u64) -> Epoch {
    Epoch::new(n).unwrap()
}

fn lease(n: u64) -> LeaseId {
    LeaseId::of(Epoch::FIRST, n)
}

fn token(n: u64) -> Token {
    Token::new(u128::from(n) << 64 | 7)
}

const NOW: Monotonic = Monotonic(5);

/// Terms of which the claim time and half of the token name the lease, as the lease itself does.
fn terms(n: u64, worker_epoch: Epoch) -> LeaseTerms {
    LeaseTerms {
        lease: lease(n),
        worker_epoch,
        dispatcher_epoch: Epoch::FIRST,
        token: token(n),
        claim_by: Monotonic(1000 + n),
        request_timeout: Duration::from_nanos(2000),
        connection: 0,
    }
}

fn assert_whole(terms: &LeaseTerms) {
    let n = terms.lease.get() - lease(1).get() + 1;
    assert!(terms.token.matches(token(n)) && terms.claim_by == Monotonic(1000 + n), "torn terms: {terms:?}");
}

/// Dispatcher and worker of one slot, the worker in its first epoch.
fn pair(missing: Missing) -> (DispatcherSide<Arc<Slot>>, WorkerSide<Arc<Slot>>) {
    let slot = Slot::new(missing);
    let worker = WorkerSide::attach(slot.clone(), 11, 21, Some(31), Monotonic(1));
    worker.set_state(Lifecycle::Ready, false);
    (DispatcherSide::attach(slot, Epoch::FIRST, (1, 1), None), worker)
}

/// As [`pair`], with lease 1 offered, claimed, or being answered.
fn held(missing: Missing, phase: Phase) -> (DispatcherSide<Arc<Slot>>, WorkerSide<Arc<Slot>>) {
    let (mut asker, worker) = pair(missing);
    asker.offer(&terms(1, worker.epoch())).unwrap();
    if phase != Phase::Offered {
        worker.claim(token(1), NOW).unwrap();
    }
    if phase == Phase::Responding {
        assert!(worker.respond(lease(1)));
    }
    (asker, worker)
}

fn phase(slot: &Arc<Slot>) -> Option<Phase> {
    match exchange::claim(slot) {
        Some(Claim::Held(_, phase)) => Some(phase),
        Some(Claim::Free) => Some(Phase::Free),
        None => None,
    }
}

/// A question replaced while it is read is read whole, and an answer belongs to the question it is taken for.
fn question_and_answer(missing: Missing) {
    loom::model(move || {
        let (mut asker, worker) = pair(missing);
        let dispatcher = thread::spawn(move || {
            let check = |asker: &mut DispatcherSide<_>| {
                if let Some((question, reply)) = asker.answer() {
                    let right = if question.kind == QuestionKind::Offer { Reply::Accept } else { Reply::Working };
                    assert_eq!(reply, right, "an answer to another question");
                }
            };
            asker.write_question(QuestionKind::Offer, Some(lease(1)));
            check(&mut asker);
            asker.write_question(QuestionKind::Finished, Some(lease(2)));
            check(&mut asker);
        });
        let mut answered = 0;
        for _ in 0..2 {
            if let Some(question) = worker.question(answered) {
                let Question { sequence, kind, lease: about } = question;
                let first = sequence == 1 && kind == QuestionKind::Offer && about == Some(lease(1));
                let second = sequence == 2 && kind == QuestionKind::Finished && about == Some(lease(2));
                assert!(first || second, "torn question: {question:?}");
                worker.reply(&question, if first { Reply::Accept } else { Reply::Working });
                answered = sequence;
            }
        }
        dispatcher.join().unwrap();
    });
}

#[test]
fn a_question_is_read_whole() {
    question_and_answer(Missing::Nothing);
}

#[test]
#[should_panic(expected = "torn question")]
fn a_question_needs_its_release_and_acquire() {
    question_and_answer(Missing::LoadAndStoreOrder);
}

#[test]
#[should_panic(expected = "torn question")]
fn a_question_needs_its_release_fence() {
    question_and_answer(Missing::ReleaseFence);
}

#[test]
#[should_panic(expected = "torn question")]
fn a_question_needs_its_acquire_fence() {
    question_and_answer(Missing::AcquireFence);
}

/// Whoever reads the lease line while the lease changes reads the terms of the lease in the claim word.
fn lease_line(missing: Missing) {
    bounded(3, move || {
        let (mut asker, worker) = held(missing, Phase::Offered);
        let dispatcher = thread::spawn(move || {
            assert!(asker.revoke(lease(1)) && asker.release(lease(1)));
            asker.offer(&terms(2, Epoch::FIRST)).unwrap();
        });
        if let Some((claim, terms)) = exchange::terms(worker.memory()) {
            assert!(matches!(claim, Claim::Held(lease, _) if lease == terms.lease));
            assert_whole(&terms);
        }
        dispatcher.join().unwrap();
    });
}

#[test]
fn terms_are_those_of_the_lease_in_the_claim_word() {
    lease_line(Missing::Nothing);
}

#[test]
#[should_panic(expected = "torn terms")]
fn terms_need_their_release_fence() {
    lease_line(Missing::ReleaseFence);
}

#[test]
#[should_panic(expected = "torn terms")]
fn terms_need_their_acquire_fence() {
    lease_line(Missing::AcquireFence);
}

#[test]
#[should_panic(expected = "torn terms")]
fn terms_need_an_ordered_swap() {
    lease_line(Missing::SwapOrder);
}

/// A dispatcher that goes to sleep has seen that the lease is over, or is rung for it.
fn end_of_a_watched_lease(missing: Missing) {
    loom::model(move || {
        let (asker, worker) = held(missing, Phase::Responding);
        asker.start_polling();
        let serving = thread::spawn(move || {
            assert!(worker.done(lease(1)));
            worker.needs_doorbell()
        });
        let seen = asker.has_update() || {
            asker.stop_polling();
            asker.has_update()
        };
        let rung = serving.join().unwrap();
        assert!(seen || rung, "nobody has noticed");
    });
}

#[test]
fn no_end_of_a_lease_is_slept_over() {
    end_of_a_watched_lease(Missing::Nothing);
}

#[test]
#[should_panic(expected = "nobody has noticed")]
fn an_end_that_is_watched_for_needs_fences_that_all_agree_on() {
    end_of_a_watched_lease(Missing::TotalFence);
}

/// As [`end_of_a_watched_lease`], of the answer to an offer.
fn answer_to_a_watched_offer(missing: Missing) {
    loom::model(move || {
        let (asker, worker) = held(missing, Phase::Offered);
        asker.start_polling();
        let control = thread::spawn(move || {
            let question = worker.question(0).unwrap();
            worker.reply(&question, Reply::Accept);
            worker.needs_doorbell()
        });
        let seen = asker.has_update() || {
            asker.stop_polling();
            asker.has_update()
        };
        let rung = control.join().unwrap();
        assert!(seen || rung, "nobody has noticed");
    });
}

#[test]
fn no_answer_to_an_offer_is_slept_over() {
    answer_to_a_watched_offer(Missing::Nothing);
}

#[test]
#[should_panic(expected = "nobody has noticed")]
fn an_answer_that_is_watched_for_needs_fences_that_all_agree_on() {
    answer_to_a_watched_offer(Missing::TotalFence);
}

/// Whoever sees the end of a lease knows whether its connection goes on.
fn end_of_a_kept_connection(missing: Missing) {
    loom::model(move || {
        let (asker, worker) = held(missing, Phase::Responding);
        let serving = thread::spawn(move || {
            worker.keep_connection(lease(1));
            assert!(worker.done(lease(1)));
        });
        if phase(asker.memory()) == Some(Phase::Done) {
            assert!(asker.is_connection_kept(lease(1)), "a connection that goes on is taken for ended");
        }
        serving.join().unwrap();
    });
}

#[test]
fn a_connection_that_goes_on_is_known_to() {
    end_of_a_kept_connection(Missing::Nothing);
}

#[test]
#[should_panic(expected = "taken for ended")]
fn a_connection_that_goes_on_needs_an_ordered_swap() {
    end_of_a_kept_connection(Missing::SwapOrder);
}

/// Whoever reads the request of a lease while the next one is written down reads that one whole, or nothing.
fn request_line(missing: Missing) {
    bounded(3, move || {
        let slot = Slot::of(WORDS, missing);
        let worker = WorkerSide::attach(slot.clone(), 11, 21, Some(31), Monotonic(1));
        worker.note_request(lease(1), Monotonic(1001), &[b"one"]);
        let serving = thread::spawn(move || worker.note_request(lease(2), Monotonic(1002), &[b"two"]));
        for (n, text) in [(1, b"one"), (2, b"two")] {
            if let Some(found) = RequestNote::load(&slot, lease(n)) {
                assert!(
                    found == RequestNote { claimed_at: Monotonic(1000 + n), text: text.to_vec() },
                    "torn request: {found:?}"
                );
            }
        }
        serving.join().unwrap();
    });
}

#[test]
fn a_request_is_the_one_of_its_lease() {
    request_line(Missing::Nothing);
}

#[test]
#[should_panic(expected = "torn request")]
fn a_request_needs_its_release_fence() {
    request_line(Missing::ReleaseFence);
}

#[test]
#[should_panic(expected = "torn request")]
fn a_request_needs_its_acquire_fence() {
    request_line(Missing::AcquireFence);
}

#[test]
#[should_panic(expected = "torn request")]
fn a_request_needs_its_release_and_acquire() {
    request_line(Missing::LoadAndStoreOrder);
}

/// A token opens the lease it was made for, while that lease is replaced by another one.
fn claim_by_token(n: u64, missing: Missing) {
    bounded(3, move || {
        let (mut asker, worker) = held(missing, Phase::Offered);
        let client = thread::spawn(move || {
            let claimed = worker.claim(token(n), NOW);
            if let Ok(terms) = &claimed {
                assert_eq!(terms.lease, lease(n), "claimed another lease");
                assert_whole(terms);
            }
            claimed
        });
        let revoked = asker.revoke(lease(1));
        if revoked {
            assert!(asker.release(lease(1)));
            asker.offer(&terms(2, Epoch::FIRST)).unwrap();
        }
        let claimed = client.join().unwrap();
        match n {
            1 => assert_ne!(revoked, claimed.is_ok(), "both or nobody won"),
            _ => assert!(revoked || claimed.is_err()),
        }
        if let Err(refused) = claimed {
            assert!(matches!(refused, ClaimError::Expired | ClaimError::Foreign));
        }
    });
}

#[test]
fn a_token_opens_its_own_lease_or_nothing() {
    claim_by_token(1, Missing::Nothing);
    claim_by_token(2, Missing::Nothing);
}

/// Runs both at once on a slot with lease 1 in `phase`; what they return, and the phase left behind.
fn race<A, B>(missing: Missing, from: Phase, dispatcher: A, worker: B, check: fn(bool, bool, Phase))
where
    A: Fn(&DispatcherSide<Arc<Slot>>) -> bool + Copy + Send + Sync + 'static,
    B: Fn(&WorkerSide<Arc<Slot>>) -> bool + Copy + Send + Sync + 'static,
{
    loom::model(move || {
        let (asker, respondent) = held(missing, from);
        let slot = respondent.memory().clone();
        let other = thread::spawn(move || worker(&respondent));
        let ours = dispatcher(&asker);
        let theirs = other.join().unwrap();
        check(ours, theirs, phase(&slot).unwrap());
    });
}

fn claim_or_revoke(missing: Missing) {
    race(
        missing,
        Phase::Offered,
        |asker| asker.revoke(lease(1)),
        |worker| worker.claim(token(1), NOW).is_ok(),
        |revoked, claimed, phase| {
            assert_ne!(revoked, claimed, "both or nobody won");
            assert_eq!(phase, if claimed { Phase::Claimed } else { Phase::Revoked });
        },
    );
}

fn respond_or_abort(missing: Missing) {
    race(
        missing,
        Phase::Claimed,
        |asker| asker.abort(lease(1)),
        |worker| worker.respond(lease(1)),
        |aborted, responding, phase| {
            assert_ne!(aborted, responding, "both or nobody won");
            assert_eq!(phase, if responding { Phase::Responding } else { Phase::Aborted });
        },
    );
}

fn done_or_abort(missing: Missing) {
    race(
        missing,
        Phase::Claimed,
        |asker| asker.abort(lease(1)),
        |worker| worker.done(lease(1)),
        |aborted, done, phase| {
            assert_ne!(aborted, done, "both or nobody won");
            assert_eq!(phase, if done { Phase::Done } else { Phase::Aborted });
        },
    );
}

#[test]
fn either_the_claim_or_the_revocation_wins() {
    claim_or_revoke(Missing::Nothing);
}

#[test]
#[should_panic(expected = "both or nobody won")]
fn claim_and_revocation_need_one_step() {
    claim_or_revoke(Missing::SwapInOneStep);
}

#[test]
fn either_the_response_or_the_abort_wins() {
    respond_or_abort(Missing::Nothing);
}

#[test]
#[should_panic(expected = "both or nobody won")]
fn response_and_abort_need_one_step() {
    respond_or_abort(Missing::SwapInOneStep);
}

#[test]
fn either_the_end_or_the_abort_wins() {
    done_or_abort(Missing::Nothing);
}

#[test]
#[should_panic(expected = "both or nobody won")]
fn end_and_abort_need_one_step() {
    done_or_abort(Missing::SwapInOneStep);
}

#[test]
fn a_lease_is_released_only_after_its_end() {
    for from in [Phase::Claimed, Phase::Responding] {
        race(
            Missing::Nothing,
            from,
            |asker| asker.release(lease(1)),
            |worker| worker.done(lease(1)),
            |released, done, phase| {
                assert!(done, "the worker ends its own lease");
                assert_eq!(phase, if released { Phase::Free } else { Phase::Done });
            },
        );
    }
}

/// The whole end against the whole abort, with the step to Responding: the slot is free at last, one has won.
#[test]
fn response_end_and_abort_leave_no_lease_behind() {
    race(
        Missing::Nothing,
        Phase::Claimed,
        |asker| asker.abort(lease(1)) && asker.release(lease(1)),
        |worker| worker.respond(lease(1)) && worker.done(lease(1)),
        |aborted, done, phase| {
            assert_ne!(aborted, done, "both or nobody won");
            assert_eq!(phase, if done { Phase::Done } else { Phase::Free });
        },
    );
}

/// Two threads of the worker: one is about to respond while the other gives the request up.
#[test]
fn an_end_is_not_missed_between_claimed_and_responding() {
    loom::model(|| {
        let (_, worker) = held(Missing::Nothing, Phase::Claimed);
        let worker = Arc::new(worker);
        let responding = thread::spawn({
            let worker = worker.clone();
            move || worker.respond(lease(1))
        });
        assert!(worker.done(lease(1)), "the lease is still there and was not ended");
        responding.join().unwrap();
        assert_eq!(phase(worker.memory()), Some(Phase::Done));
    });
}

/// Two requests show the same token.
fn two_claims(missing: Missing) {
    loom::model(move || {
        let (_, worker) = held(missing, Phase::Offered);
        let worker = Arc::new(worker);
        let other = thread::spawn({
            let worker = worker.clone();
            move || worker.claim(token(1), NOW).is_ok()
        });
        let first = worker.claim(token(1), NOW).is_ok();
        assert_ne!(first, other.join().unwrap(), "both or nobody claimed");
    });
}

#[test]
fn a_token_is_used_once() {
    two_claims(Missing::Nothing);
}

#[test]
#[should_panic(expected = "both or nobody claimed")]
fn one_use_needs_one_step() {
    two_claims(Missing::SwapInOneStep);
}

/// A dispatcher's slot until it dies: after so many writes nothing that it does happens any more.
struct Mortal {
    slot: Arc<Slot>,
    left: std::sync::atomic::AtomicUsize,
}

impl Mortal {
    fn lives(&self) -> bool {
        self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

impl SlotMemory for Mortal {
    fn load(&self, word: Word, order: Ordering) -> u64 {
        self.slot.load(word, order)
    }

    fn store(&self, word: Word, value: u64, order: Ordering) {
        if self.lives() {
            self.slot.store(word, value, order);
        }
    }

    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        if self.lives() { self.slot.compare_exchange(word, current, new) } else { Err(current) }
    }

    fn fence(&self, order: Ordering) {
        self.slot.fence(order);
    }
}

/// A dispatcher dies within an offer, after so many writes, and the next one takes what it finds while the worker claims
/// what it sees. Returns whether the offer was made whole.
fn next_dispatcher(writes: usize, missing: Missing) -> bool {
    let whole = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let made = whole.clone();
    bounded(2, move || {
        let (_, worker) = pair(missing);
        let slot = worker.memory().clone();
        let mortal = Mortal { slot: slot.clone(), left: usize::MAX.into() };
        let mut dying = DispatcherSide::attach(mortal, Epoch::FIRST, (1, 1), None);
        dying.memory().left.store(writes, Relaxed);
        let claiming = thread::spawn(move || {
            let claimed = worker.claim(token(1), NOW);
            (worker, claimed)
        });
        let _ = dying.offer(&terms(1, Epoch::FIRST)); // nobody hears of it
        whole.fetch_or(dying.memory().left.load(Relaxed) > 0, Relaxed);
        let mut next = DispatcherSide::attach(slot.clone(), epoch(2), (2, 2), None);
        let revoked = next.revoke(lease(1));
        let (worker, claimed) = claiming.join().unwrap();
        if let Ok(terms) = claimed {
            assert_whole(&terms);
            assert!(!revoked, "both or nobody won");
            assert_eq!(phase(&slot), Some(Phase::Claimed));
            assert_eq!(
                next.offer(&LeaseTerms { dispatcher_epoch: epoch(2), ..terms }).err().map(|found| found.is_some()),
                Some(true)
            );
        } else {
            assert_eq!(phase(&slot), Some(if revoked { Phase::Revoked } else { Phase::Free }));
            assert_eq!(next.release(lease(1)), revoked);
            next.offer(&LeaseTerms { dispatcher_epoch: epoch(2), ..terms(2, Epoch::FIRST) }).unwrap();
            let terms = worker.claim(token(2), NOW).expect("the next dispatcher's offer is as good as any");
            assert_whole(&terms);
        }
    });
    made.load(Relaxed)
}

#[test]
fn an_offer_within_which_its_dispatcher_dies_is_claimed_or_revoked() {
    let whole = (0..).find(|writes| next_dispatcher(*writes, Missing::Nothing));
    assert!(whole > Some(8), "each write of an offer was the last one: {whole:?}");
}

#[test]
#[should_panic(expected = "both or nobody won")]
fn what_a_dead_dispatcher_has_offered_is_revoked_in_one_step() {
    assert!((0..20).any(|writes| next_dispatcher(writes, Missing::SwapInOneStep)), "found nothing");
}

/// The next incarnation begins while the dispatcher reads the life line and offers what it has read.
fn next_incarnation(missing: Missing) {
    bounded(3, move || {
        let (mut asker, old) = pair(missing);
        let slot = old.memory().clone();
        let next = thread::spawn(move || {
            let worker = WorkerSide::attach(Own(slot), 12, 22, Some(31), Monotonic(2));
            assert_eq!(worker.epoch(), epoch(2));
            (worker.has_obligation(NOW), worker.claim(token(1), NOW))
        });
        let life = Incarnation::load(asker.memory()).unwrap();
        if life.epoch == epoch(2) {
            let whole = (life.pid, life.started, life.state) == (12, 22, Lifecycle::Starting);
            assert!(whole, "torn life: {life:?}");
        }
        asker.offer(&terms(1, life.epoch)).unwrap();
        let (owes, claimed) = next.join().unwrap();
        match claimed {
            Ok(terms) => {
                assert_whole(&terms);
                assert_eq!((terms.worker_epoch, life.epoch), (epoch(2), epoch(2)), "claimed a dead worker's lease");
            }
            Err(ClaimError::OtherEpoch) => assert_eq!(life.epoch, Epoch::FIRST),
            Err(refused) => assert_eq!(refused, ClaimError::Foreign, "it has not seen the offer yet"),
        }
        assert!(!owes || life.epoch == epoch(2), "owes for a dead worker");
    });
}

#[test]
fn a_new_incarnation_takes_no_offer_made_to_the_old_one() {
    next_incarnation(Missing::Nothing);
}

#[test]
#[should_panic(expected = "torn life")]
fn a_life_needs_its_release_and_acquire() {
    next_incarnation(Missing::LoadAndStoreOrder);
}
