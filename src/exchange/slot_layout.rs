//! The words of a slot and their positions.

use crate::stats::Histogram;

/// 64-bit words in a 64-byte line.
const PER_LINE: usize = 8;
/// Lines of the counters: one of plain counters, the others of the histogram.
const COUNTER_LINES: usize = 1 + Word::BUCKETS / PER_LINE;
/// The first line of the request note.
const REQUEST_LINE: usize = 5 + COUNTER_LINES;
/// Lines of the request note.
const REQUEST_LINES: usize = 3;
/// Lines in a slot.
pub(crate) const LINES: usize = REQUEST_LINE + REQUEST_LINES;
/// Words in a slot.
pub(crate) const WORDS: usize = LINES * PER_LINE;

/// The position of one 64-bit word in the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(usize);

impl Word {
    const fn at(line: usize, word: usize) -> Self {
        assert!(word < PER_LINE && line < LINES);
        Self(line * PER_LINE + word)
    }

    /// The first word of the slot.
    pub(crate) const FIRST: Word = Word::at(0, 0);

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
    /// The last sequence used; a new dispatcher continues from it.
    pub(super) const LAST_SEQUENCE: Word = Word::at(0, 5);
    /// The dispatcher's process and its start time, as in the life line.
    pub(super) const DISPATCHER_PID: Word = Word::at(0, 6);
    pub(super) const DISPATCHER_PROCESS_START: Word = Word::at(0, 7);

    // Line 1, written by the dispatcher while the claim word is free: the terms of the lease.
    pub(super) const LEASE: Word = Word::at(1, 0);
    pub(super) const LEASE_WORKER_EPOCH: Word = Word::at(1, 1);
    /// The dispatcher's epoch in the lower half, the mark of the connection in the upper half.
    pub(super) const LEASE_DISPATCHER_EPOCH: Word = Word::at(1, 2);
    pub(super) const TOKEN_HIGH: Word = Word::at(1, 3);
    pub(super) const TOKEN_LOW: Word = Word::at(1, 4);
    pub(super) const CLAIM_BY: Word = Word::at(1, 5);
    pub(super) const REQUEST_TIMEOUT: Word = Word::at(1, 6);

    /// When the dispatcher last started, see [`super::load_start`].
    pub(crate) const DISPATCHER_LAST_START: Word = Word::at(1, 7);

    // Line 2, written by the worker: the answer.
    /// Sequence of the question (48 bits) above reply and reason (8 bits each).
    pub(super) const ANSWER: Word = Word::at(2, 0);
    /// The lease after which the worker released a connection that stays open; written before the step to `Done`.
    pub(super) const KEPT_CONNECTION: Word = Word::at(2, 1);
    // Word 2 is written by older workers.
    /// [`crate::ids::Replacements`]; older workers leave 0.
    pub(super) const REPLACEMENTS: Word = Word::at(2, 3);
    /// A [`crate::ids::ProgramVersion`] and its epoch; earlier versions do not write it.
    pub(super) const VERSION: Word = Word::at(2, 5);
    /// The lease whose client wants to switch to another protocol; written while the lease is in service.
    pub(super) const SESSION_WANTED: Word = Word::at(2, 4);

    // Line 3, written by the worker: its life.
    pub(super) const EPOCH: Word = Word::at(3, 0);
    pub(super) const PID: Word = Word::at(3, 1);
    /// Start time of the process in clock ticks since boot, as in `/proc/PID/stat` (proc(5), field 22).
    pub(super) const PROCESS_START: Word = Word::at(3, 2);
    /// A [`crate::ids::Lifecycle`], with bit 8 set while the worker wants to be recycled.
    pub(super) const STATE: Word = Word::at(3, 3);
    /// Turns of the control loop.
    pub(super) const TICKS: Word = Word::at(3, 4);
    /// The time of the last turn.
    pub(super) const LAST_TICK: Word = Word::at(3, 5);
    /// TCP port the worker listens on, or 0.
    pub(super) const PORT: Word = Word::at(3, 6);

    /// When the worker last started, see [`super::load_start`].
    pub(crate) const WORKER_LAST_START: Word = Word::at(3, 7);

    // Line 4.
    /// A [`crate::ids::Claim`], written by both sides with compare-and-swap.
    pub(crate) const CLAIM: Word = Word::at(4, 0);
    /// 1 while the dispatcher polls the slot, so that the end of a claim and the answer to an offer need no doorbell.
    /// Written by the dispatcher; beside the claim word, because the worker reads both together.
    pub(crate) const POLLING: Word = Word::at(4, 1);
    /// The dispatcher's decision about a session: its lease above 8 bits, which are 1 if it is permitted. A
    /// session that is not permitted any more has to end.
    pub(super) const SESSION_DECISION: Word = Word::at(4, 2);

    // Lines 5 and up, written by the worker: counters, over all incarnations.
    pub(super) const SERVED: Word = Word::at(5, 0);
    pub(super) const FAILED: Word = Word::at(5, 1);
    pub(super) const BYTES_IN: Word = Word::at(5, 2);
    pub(super) const BYTES_OUT: Word = Word::at(5, 3);
    /// Requests with a stale or foreign token, sent back to the dispatcher.
    pub(super) const SENT_BACK: Word = Word::at(5, 4);
    /// The sum of all times in the histogram, in microseconds.
    pub(super) const RUN_MICROS: Word = Word::at(5, 5);
    /// Requests rejected before their start.
    pub(super) const REJECTED: Word = Word::at(5, 6);
    /// Requests that failed through a fault of the handler; older workers leave 0.
    pub(super) const HANDLER_FAULTS: Word = Word::at(5, 7);

    /// Buckets of the latency histogram, see [`Histogram`].
    pub(crate) const BUCKETS: usize = Histogram::BUCKETS;

    /// Bucket `i` of the histogram, below [`Self::BUCKETS`].
    pub(crate) const fn bucket(i: usize) -> Word {
        assert!(i < Self::BUCKETS);
        Word(6 * PER_LINE + i)
    }

    // The last lines, written by the worker after the claim: the request note.
    /// The lease of the noted request; 0 while the note is being written.
    pub(super) const REQUEST_LEASE: Word = Word::at(REQUEST_LINE, 0);
    /// The time of the claim.
    pub(super) const CLAIMED_AT: Word = Word::at(REQUEST_LINE, 1);

    /// Words of the note's text.
    pub(super) const REQUEST_TEXT_WORDS: usize = REQUEST_LINES * PER_LINE - 2;

    /// Word `i` of the note's text, below [`Self::REQUEST_TEXT_WORDS`].
    pub(super) const fn request_text(i: usize) -> Word {
        assert!(i < Self::REQUEST_TEXT_WORDS);
        Word(REQUEST_LINE * PER_LINE + 2 + i)
    }

    /// The word's index in the slot, below [`WORDS`].
    pub(crate) const fn index(self) -> usize {
        self.0
    }
}
