//! Which word lies where, and the lines that are read as a whole.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::SlotMemory;
use crate::ids::{Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Token};
use crate::stats::{Counters, Histogram};

/// 64-bit words in a 64-byte line.
const PER_LINE: usize = 8;
/// Lines of the counters: one of plain counters and four of the histogram.
const COUNTER_LINES: usize = 1 + Word::BUCKETS / PER_LINE;
/// The first line of the request.
const REQUEST_LINE: usize = 5 + COUNTER_LINES;
/// Lines of the request.
const REQUEST_LINES: usize = 3;
/// Lines in a slot.
pub const LINES: usize = REQUEST_LINE + REQUEST_LINES;
/// Words in a slot.
pub const WORDS: usize = LINES * PER_LINE;

/// The place of one 64-bit word in the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(usize);

impl Word {
    const fn at(line: usize, word: usize) -> Self {
        assert!(word < PER_LINE && line < LINES);
        Self(line * PER_LINE + word)
    }

    /// The first word of the slot.
    pub const FIRST: Word = Word::at(0, 0);

    // Line 0, written by the dispatcher: the question.
    /// Sequence (56 bits) above the kind (8 bits); 0 while it is being written.
    pub(super) const QUESTION: Word = Word::at(0, 0);
    /// The lease the question is about, or 0.
    pub(super) const QUESTION_LEASE: Word = Word::at(0, 1);
    /// Epoch of the dispatcher.
    pub(super) const DISPATCHER_EPOCH: Word = Word::at(0, 2);
    /// 1 while an operator keeps the worker out of service.
    pub(super) const DRAINED: Word = Word::at(0, 3);
    /// TCP port that leads back to the dispatcher, or 0.
    pub(super) const RETURN_PORT: Word = Word::at(0, 4);
    /// Last sequence used: what a new dispatcher continues.
    pub(super) const SEQUENCE: Word = Word::at(0, 5);
    /// The dispatcher's process and its start time, as in the life line.
    pub(super) const DISPATCHER_PID: Word = Word::at(0, 6);
    pub(super) const DISPATCHER_STARTED: Word = Word::at(0, 7);

    // Line 1, written by the dispatcher while the claim word is free: the terms of the lease.
    pub(super) const LEASE: Word = Word::at(1, 0);
    pub(super) const LEASE_WORKER: Word = Word::at(1, 1);
    /// The dispatcher's epoch in the lower half, the mark of the connection in the upper.
    pub(super) const LEASE_DISPATCHER: Word = Word::at(1, 2);
    pub(super) const TOKEN_HIGH: Word = Word::at(1, 3);
    pub(super) const TOKEN_LOW: Word = Word::at(1, 4);
    pub(super) const CLAIM_BY: Word = Word::at(1, 5);
    pub(super) const REQUEST_TIMEOUT: Word = Word::at(1, 6);

    /// When this dispatcher or the last one started, see [`super::load_start`].
    pub const DISPATCHER_START: Word = Word::at(1, 7);

    // Line 2, written by the worker: the answer.
    /// Sequence of the question (48 bits) above reply and reason (8 bits each).
    pub(super) const ANSWER: Word = Word::at(2, 0);
    /// The lease after which the worker let go of a connection that goes on; written before the step to `Done`.
    pub(super) const KEPT: Word = Word::at(2, 1);
    /// The core that the worker ran on when it last said something, and 1; 0 if it has not.
    pub(super) const CORE: Word = Word::at(2, 2);

    // Line 3, written by the worker: its life.
    pub(super) const EPOCH: Word = Word::at(3, 0);
    pub(super) const PID: Word = Word::at(3, 1);
    /// Start time of the process in clock ticks since boot, as in `/proc/PID/stat` (proc(5), field 22).
    pub(super) const STARTED: Word = Word::at(3, 2);
    /// A [`Lifecycle`], with bit 8 set while the worker wants to be recycled.
    pub(super) const STATE: Word = Word::at(3, 3);
    /// Turns of the control loop.
    pub(super) const TICKS: Word = Word::at(3, 4);
    /// When the last turn was.
    pub(super) const LAST_TICK: Word = Word::at(3, 5);
    /// TCP port the worker listens on, or 0.
    pub(super) const PORT: Word = Word::at(3, 6);

    /// As [`Self::DISPATCHER_START`], of the worker.
    pub const WORKER_START: Word = Word::at(3, 7);

    // Line 4, written by both with compare-and-swap.
    /// A [`crate::ids::Claim`].
    pub const CLAIM: Word = Word::at(4, 0);
    /// 1 while the dispatcher is awake and will look at the slot by itself, so that nobody need ring for a claim that ends
    /// or an offer that is answered. The dispatcher's; beside the claim word, because it is read together with that.
    pub const WATCHED: Word = Word::at(4, 1);

    // Lines 5 and up, written by the worker: counters, over all incarnations.
    pub(super) const SERVED: Word = Word::at(5, 0);
    pub(super) const FAILED: Word = Word::at(5, 1);
    pub(super) const BYTES_IN: Word = Word::at(5, 2);
    pub(super) const BYTES_OUT: Word = Word::at(5, 3);
    /// Requests with a stale or foreign token, sent back.
    pub(super) const SENT_BACK: Word = Word::at(5, 4);
    /// All times of the histogram together, in microseconds.
    pub(super) const RUN_MICROS: Word = Word::at(5, 5);

    /// Buckets of the latency histogram, see [`Histogram`].
    pub const BUCKETS: usize = Histogram::BUCKETS;

    /// Bucket `i` of the histogram, below [`Self::BUCKETS`].
    pub const fn bucket(i: usize) -> Word {
        assert!(i < Self::BUCKETS);
        Word(6 * PER_LINE + i)
    }

    // The last lines, written by the worker at the claim: the request, for whoever asks what a frozen worker holds.
    /// The lease whose request it is; 0 while it is being written.
    pub(super) const REQUEST_LEASE: Word = Word::at(REQUEST_LINE, 0);
    /// When it was claimed.
    pub(super) const CLAIMED_AT: Word = Word::at(REQUEST_LINE, 1);

    /// Word `i` of its text, below [`RequestNote::TEXT_WORDS`].
    pub(super) const fn request_text(i: usize) -> Word {
        assert!(i < RequestNote::TEXT_WORDS);
        Word(REQUEST_LINE * PER_LINE + 2 + i)
    }

    /// Its index in the slot, below [`WORDS`].
    pub const fn index(self) -> usize {
        self.0
    }
}

/// What a worker wrote of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// Its incarnation.
    pub epoch: Epoch,
    /// Its process.
    pub pid: u32,
    /// That process' start time in clock ticks since boot.
    pub started: u64,
    /// What it says it is doing.
    pub state: Lifecycle,
    /// Whether it asks to be recycled.
    pub wants_recycle: bool,
    /// Turns of its control loop.
    pub ticks: u64,
    /// When the last turn was.
    pub last_tick: Monotonic,
    /// The TCP port it listens on.
    pub port: Option<u16>,
}

/// Flag in [`Word::STATE`].
pub(super) const WANTS_RECYCLE: u64 = 1 << 8;

impl Incarnation {
    /// The life line; `None` if no worker has ever written it, or nonsense.
    pub fn load<M: SlotMemory>(memory: &M) -> Option<Incarnation> {
        use std::sync::atomic::Ordering::Acquire;
        // Acquire E: pairs with the release of the epoch, the last word a new incarnation writes.
        let epoch = Epoch::new(memory.load(Word::EPOCH, Acquire))?;
        let state = memory.load(Word::STATE, Relaxed);
        Some(Incarnation {
            epoch,
            pid: u32::try_from(memory.load(Word::PID, Relaxed)).ok().filter(|pid| *pid > 0)?,
            started: memory.load(Word::STARTED, Relaxed),
            state: Lifecycle::new(state & 0xff)?,
            wants_recycle: state & WANTS_RECYCLE != 0,
            ticks: memory.load(Word::TICKS, Relaxed),
            last_tick: Monotonic(memory.load(Word::LAST_TICK, Relaxed)),
            port: u16::try_from(memory.load(Word::PORT, Relaxed)).ok().filter(|port| *port > 0),
        })
    }

    /// Whether the line may be that of a first worker which has not finished writing it: no epoch yet, and no state
    /// that comes after it. Of any other that cannot be loaded somebody has written nonsense.
    pub fn is_unwritten<M: SlotMemory>(memory: &M) -> bool {
        memory.load(Word::EPOCH, Relaxed) == 0 && memory.load(Word::STATE, Relaxed) <= Lifecycle::Starting as u64
    }
}

/// What a worker has done, over all its incarnations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounters {
    /// Requests answered.
    pub served: u64,
    /// Requests that ended in a 5xx of patou's own, a reset, or a cancelled client.
    pub failed: u64,
    /// Body bytes received.
    pub bytes_in: u64,
    /// Body bytes sent.
    pub bytes_out: u64,
    /// Requests sent back to the dispatcher for their token.
    pub sent_back: u64,
}

impl SlotCounters {
    /// Reads them, each by itself: together they are a glance, not a snapshot.
    pub fn load<M: SlotMemory>(memory: &M) -> SlotCounters {
        SlotCounters {
            served: memory.load(Word::SERVED, Relaxed),
            failed: memory.load(Word::FAILED, Relaxed),
            bytes_in: memory.load(Word::BYTES_IN, Relaxed),
            bytes_out: memory.load(Word::BYTES_OUT, Relaxed),
            sent_back: memory.load(Word::SENT_BACK, Relaxed),
        }
    }

    /// The same as a tally, with the times from claim to end.
    pub fn tally<M: SlotMemory>(memory: &M) -> Counters {
        let SlotCounters { served, failed, bytes_in, bytes_out, sent_back } = Self::load(memory);
        let counts = [("served", served), ("failed", failed), ("sent_back", sent_back)];
        let bytes = [("bytes_in", bytes_in), ("bytes_out", bytes_out)];
        let buckets = (0..Word::BUCKETS).map(|i| memory.load(Word::bucket(i), Relaxed));
        let times = Histogram::new(buckets, memory.load(Word::RUN_MICROS, Relaxed));
        Counters { times, ..Counters::new(counts.into_iter().chain(bytes)) }
    }
}

/// The request that a worker has in hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestNote {
    /// When it was claimed.
    pub claimed_at: Monotonic,
    /// Method and path, cut at [`RequestNote::TEXT_MAX`] bytes. A client's words: they may hold anything.
    pub text: Vec<u8>,
}

impl RequestNote {
    const TEXT_WORDS: usize = REQUEST_LINES * PER_LINE - 2;
    /// Bytes of text that are kept.
    pub const TEXT_MAX: usize = Self::TEXT_WORDS * size_of::<u64>();

    /// The request of this lease; `None` if what stands there is another one's, or is just being written.
    pub fn load<M: SlotMemory>(memory: &M, lease: LeaseId) -> Option<RequestNote> {
        use std::sync::atomic::Ordering::Acquire;
        let is_its = |order| memory.load(Word::REQUEST_LEASE, order) == lease.get();
        if !is_its(Acquire) {
            return None; // Acquire R
        }
        let claimed_at = Monotonic(memory.load(Word::CLAIMED_AT, Relaxed));
        let words = (0..Self::TEXT_WORDS).map(|i| memory.load(Word::request_text(i), Relaxed));
        let text = words.flat_map(u64::to_le_bytes).take_while(|byte| *byte != 0).collect();
        memory.fence(Acquire); // Acquire R
        is_its(Relaxed).then_some(RequestNote { claimed_at, text })
    }
}

/// Writes down the request of a lease. The text ends with a zero byte, or with the last word.
pub(super) fn store_request<M: SlotMemory>(memory: &M, lease: LeaseId, claimed_at: Monotonic, text: &[&[u8]]) {
    use std::sync::atomic::Ordering::Release;
    memory.store(Word::REQUEST_LEASE, 0, Relaxed);
    memory.fence(Release); // Release R: no word of this request is seen under the lease of the one before
    memory.store(Word::CLAIMED_AT, claimed_at.0, Relaxed);
    let mut bytes = text.iter().flat_map(|piece| piece.iter().copied()).take(RequestNote::TEXT_MAX).peekable();
    for i in 0..RequestNote::TEXT_WORDS {
        let more = bytes.peek().is_some();
        let word: [u8; size_of::<u64>()] = std::array::from_fn(|_| bytes.next().unwrap_or(0));
        memory.store(Word::request_text(i), u64::from_le_bytes(word), Relaxed);
        if !more {
            break;
        }
    }
    memory.store(Word::REQUEST_LEASE, lease.get(), Release); // Release R
}

pub(super) fn load_terms<M: SlotMemory>(memory: &M) -> Option<LeaseTerms> {
    let dispatcher = memory.load(Word::LEASE_DISPATCHER, Relaxed);
    Some(LeaseTerms {
        lease: LeaseId::new(memory.load(Word::LEASE, Relaxed))?,
        worker_epoch: Epoch::new(memory.load(Word::LEASE_WORKER, Relaxed))?,
        dispatcher_epoch: Epoch::new(dispatcher & u64::from(u32::MAX))?,
        token: Token::from_words([memory.load(Word::TOKEN_HIGH, Relaxed), memory.load(Word::TOKEN_LOW, Relaxed)]),
        claim_by: Monotonic(memory.load(Word::CLAIM_BY, Relaxed)),
        request_timeout: Duration::from_nanos(memory.load(Word::REQUEST_TIMEOUT, Relaxed)),
        connection: (dispatcher >> 32) as u32,
    })
}

pub(super) fn store_terms<M: SlotMemory>(memory: &M, terms: &LeaseTerms) {
    let [high, low] = terms.token.words();
    let timeout = u64::try_from(terms.request_timeout.as_nanos()).unwrap_or(u64::MAX);
    for (word, value) in [
        (Word::LEASE, terms.lease.get()),
        (Word::LEASE_WORKER, terms.worker_epoch.get().into()),
        (Word::LEASE_DISPATCHER, u64::from(terms.connection) << 32 | u64::from(terms.dispatcher_epoch.get())),
        (Word::TOKEN_HIGH, high),
        (Word::TOKEN_LOW, low),
        (Word::CLAIM_BY, terms.claim_by.0),
        (Word::REQUEST_TIMEOUT, timeout),
    ] {
        memory.store(word, value, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Words(Vec<AtomicU64>);

    impl SlotMemory for Words {
        fn load(&self, word: Word, order: Ordering) -> u64 {
            self.0[word.index()].load(order)
        }
        fn store(&self, word: Word, value: u64, order: Ordering) {
            self.0[word.index()].store(value, order);
        }
        fn compare_exchange(&self, _: Word, _: u64, _: u64) -> Result<(), u64> {
            unreachable!("not for requests")
        }
        fn fence(&self, _: Ordering) {}
    }

    #[test]
    fn a_request_is_kept_up_to_its_bound_and_told_from_the_one_before() {
        let memory = Words((0..WORDS).map(|_| AtomicU64::new(u64::MAX)).collect());
        let lease = |n| LeaseId::of(Epoch::FIRST, n);
        let kept = |n, pieces: &[&[u8]]| {
            store_request(&memory, lease(n), Monotonic(n), pieces);
            assert_eq!(RequestNote::load(&memory, lease(n + 1)), None);
            let request = RequestNote::load(&memory, lease(n)).unwrap();
            assert_eq!(request.claimed_at, Monotonic(n));
            String::from_utf8(request.text).unwrap()
        };
        let long = "x".repeat(RequestNote::TEXT_MAX + 1);
        assert_eq!(kept(1, &[b"GET", b" ", b"/"]), "GET /");
        assert_eq!(kept(2, &[long.as_bytes()]), long[1..]);
        assert_eq!(kept(3, &[b"PUT /16"]), "PUT /16");
        assert_eq!(kept(4, &[b"PUT /eig"]), "PUT /eig", "a word that is full");
        assert_eq!(kept(5, &[]), "");
    }
}
