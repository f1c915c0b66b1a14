//! A worker's life line, and the start times by which the roles back off.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::memory::SlotMemory;
use super::slot_layout::Word;
use crate::ids::{Epoch, Lifecycle, Monotonic, ProgramVersion, Replacements};

/// One incarnation of a worker, as it describes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Incarnation {
    /// Its number.
    pub epoch: Epoch,
    /// Its process.
    pub pid: u32,
    /// The start time of that process in clock ticks since boot.
    pub started: u64,
    /// Its state.
    pub state: Lifecycle,
    /// Whether it wants to be recycled.
    pub wants_recycle: bool,
    /// The planned replacements within this incarnation and earlier ones.
    pub replacements: Replacements,
    /// Turns of its control loop.
    pub ticks: u64,
    /// The time of the last turn.
    pub last_tick: Monotonic,
    /// The TCP port it listens on.
    pub port: Option<u16>,
    /// The version of its library; `None` for one that does not publish it.
    pub version: Option<ProgramVersion>,
}

/// Flag in [`Word::STATE`].
pub(super) const WANTS_RECYCLE: u64 = 1 << 8;

impl Incarnation {
    /// The life line; `None` if no worker has ever written it, or if a value is invalid.
    pub(crate) fn load<M: SlotMemory>(memory: &M) -> Option<Incarnation> {
        // Acquire E: pairs with the release of the epoch, the last word that a new incarnation writes.
        let epoch = Epoch::new(memory.load(Word::EPOCH, Acquire))?;
        let state = memory.load(Word::STATE, Relaxed);
        Some(Incarnation {
            epoch,
            pid: u32::try_from(memory.load(Word::PID, Relaxed)).ok().filter(|pid| *pid > 0)?,
            started: memory.load(Word::PROCESS_START, Relaxed),
            state: Lifecycle::new(state & 0xff)?,
            wants_recycle: state & WANTS_RECYCLE != 0,
            replacements: Replacements::new(memory.load(Word::REPLACEMENTS, Relaxed)),
            ticks: memory.load(Word::TICKS, Relaxed),
            last_tick: Monotonic(memory.load(Word::LAST_TICK, Relaxed)),
            port: u16::try_from(memory.load(Word::PORT, Relaxed)).ok().filter(|port| *port > 0),
            version: ProgramVersion::of_word(memory.load(Word::VERSION, Relaxed), epoch.get()),
        })
    }

    /// Whether the first worker may still be writing the line: no epoch yet, and no state above Starting. Any other
    /// line that [`Self::load`] rejects is corrupt.
    pub(crate) fn is_unwritten<M: SlotMemory>(memory: &M) -> bool {
        memory.load(Word::EPOCH, Relaxed) == 0 && memory.load(Word::STATE, Relaxed) <= Lifecycle::Starting as u64
    }
}

/// Since when the last incarnation of a role has been ready, as `backoff.rs` stores it, and how many consecutive failures
/// came before: [`Word::DISPATCHER_LAST_START`] or [`Word::WORKER_LAST_START`]. `None` after an intended end.
pub(crate) fn load_start(memory: &impl SlotMemory, word: Word) -> Option<(Monotonic, u32)> {
    let raw = memory.load(word, Relaxed);
    (raw != 0).then_some((Monotonic((raw >> 16).saturating_mul(1_000_000)), (raw & 0xffff) as u32))
}

/// Stores what [`load_start`] reads, rounded to milliseconds. Only the role itself may store it.
pub(crate) fn store_start(memory: &impl SlotMemory, word: Word, start: Option<(Monotonic, u32)>) {
    let raw = start.map_or(0, |(at, failures)| (at.0 / 1_000_000) << 16 | u64::from(failures.min(0xffff)));
    memory.store(word, raw, Relaxed);
}
