//! A worker's counters, over all its incarnations.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::memory::SlotMemory;
use super::slot_layout::Word;
use crate::stats::{Counters, Histogram};

/// One of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Requests with a complete response.
    Served,
    /// Requests that failed.
    Failed,
    /// Body bytes received.
    BytesIn,
    /// Body bytes sent.
    BytesOut,
    /// Requests sent back to the dispatcher.
    SentBack,
    /// Requests rejected before their start: malformed, late, or too large.
    Rejected,
    /// Requests that failed through a fault of the handler: 500, 502 or 504 of the worker. They are in `Failed`, too.
    HandlerFaults,
}

impl Counter {
    fn word(self) -> Word {
        match self {
            Counter::Served => Word::SERVED,
            Counter::Failed => Word::FAILED,
            Counter::BytesIn => Word::BYTES_IN,
            Counter::BytesOut => Word::BYTES_OUT,
            Counter::SentBack => Word::SENT_BACK,
            Counter::Rejected => Word::REJECTED,
            Counter::HandlerFaults => Word::HANDLER_FAULTS,
        }
    }
}

/// The values of all counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotCounters {
    /// Requests with a complete response.
    pub served: u64,
    /// Requests that ended in a 5xx of patou, a reset, or a cancelled client.
    pub failed: u64,
    /// Body bytes received.
    pub bytes_in: u64,
    /// Body bytes sent.
    pub bytes_out: u64,
    /// Requests sent back to the dispatcher because of their token.
    pub sent_back: u64,
    /// Requests rejected before their start.
    pub rejected: u64,
    /// Requests that failed through a fault of the handler.
    pub handler_faults: u64,
}

impl SlotCounters {
    /// Reads each counter by itself: together they are no consistent snapshot.
    pub(crate) fn load<M: SlotMemory>(memory: &M) -> SlotCounters {
        let load = |counter: Counter| memory.load(counter.word(), Relaxed);
        SlotCounters {
            served: load(Counter::Served),
            failed: load(Counter::Failed),
            bytes_in: load(Counter::BytesIn),
            bytes_out: load(Counter::BytesOut),
            sent_back: load(Counter::SentBack),
            rejected: load(Counter::Rejected),
            handler_faults: load(Counter::HandlerFaults),
        }
    }

    /// The counters by name, with the times from claim to end.
    pub(crate) fn load_with_times<M: SlotMemory>(memory: &M) -> Counters {
        let SlotCounters { served, failed, bytes_in, bytes_out, sent_back, rejected, .. } = Self::load(memory);
        let counts = [("served", served), ("failed", failed), ("sent_back", sent_back), ("rejected", rejected)];
        let bytes = [("bytes_in", bytes_in), ("bytes_out", bytes_out)];
        let buckets = (0..Word::BUCKETS).map(|i| memory.load(Word::bucket(i), Relaxed));
        let times = Histogram::new(buckets, memory.load(Word::RUN_MICROS, Relaxed));
        Counters { times, ..Counters::new(counts.into_iter().chain(bytes)) }
    }
}

/// Adds to a counter. The worker is its only writer.
pub(super) fn add<M: SlotMemory>(memory: &M, counter: Counter, by: u64) {
    add_to(memory, counter.word(), by);
}

/// Counts one request that took this long from claim to end.
pub(super) fn record<M: SlotMemory>(memory: &M, took: Duration) {
    add_to(memory, Word::bucket(Histogram::bucket(took)), 1);
    add_to(memory, Word::RUN_MICROS, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
}

fn add_to<M: SlotMemory>(memory: &M, word: Word, by: u64) {
    memory.store(word, memory.load(word, Relaxed).wrapping_add(by), Relaxed);
}
