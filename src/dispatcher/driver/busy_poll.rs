//! Busy polling of slots with an open offer, as long as this thread is awake.
//!
//! A ring costs the worker a system call, and this thread two more and an iteration of its event loop. The slot of an
//! open offer therefore tells the worker not to ring ([`DispatcherSide::start_polling`]) until this thread sleeps. At
//! rest nothing is polled.
//!
//! [`DispatcherSide::start_polling`]: crate::exchange::DispatcherSide::start_polling

use std::time::Duration;

use crate::clock;
use crate::dispatcher::pool_slots::{PoolSlots, SlotIndex};
use crate::dispatcher::worker_slot::WorkerSlot;
use crate::ids::Monotonic;

/// With more polled slots than this, there is a pause between two polls of all of them.
const POLLED_MAX: usize = 4;
const POLL_PAUSE: Duration = Duration::from_micros(200);

/// The polled slots.
#[derive(Default)]
pub(super) struct BusyPoll {
    polled: Vec<SlotIndex>,
    /// When all of them were last polled.
    last: Option<Monotonic>,
}

impl BusyPoll {
    /// Polls a slot in which an offer is about to be made.
    pub(super) fn add(&mut self, at: SlotIndex, slot: &mut WorkerSlot) {
        if !slot.polled {
            slot.polled = true;
            slot.side.start_polling();
            self.polled.push(at);
        }
    }

    /// The slots that have changed; they are polled no longer.
    pub(super) fn poll(&mut self, pools: &mut [PoolSlots]) -> Vec<SlotIndex> {
        if self.polled.is_empty() {
            return Vec::new();
        }
        let now = clock::now();
        if self.polled.len() > POLLED_MAX && self.last.is_some_and(|last| now.since(last) < POLL_PAUSE) {
            return Vec::new();
        }
        self.last = Some(now);
        self.take_changed(pools)
    }

    /// As [`Self::poll`], before the thread sleeps: if no slot has changed, the workers must ring from now on.
    pub(super) fn poll_before_sleep(&mut self, pools: &mut [PoolSlots]) -> Vec<SlotIndex> {
        let changed = self.take_changed(pools);
        if !changed.is_empty() {
            return changed;
        }
        let stop = |at: &SlotIndex| {
            let Some(slot) = slot(pools, *at) else { return false };
            slot.polled = false;
            slot.side.stop_polling();
            slot.side.has_update()
        };
        self.polled.drain(..).filter(stop).collect()
    }

    fn take_changed(&mut self, pools: &mut [PoolSlots]) -> Vec<SlotIndex> {
        let mut changed = Vec::new();
        self.polled.retain(|at| {
            let Some(slot) = slot(pools, *at) else { return false };
            let has_update = slot.side.has_update();
            if has_update {
                slot.polled = false;
                slot.side.stop_polling();
                changed.push(*at);
            }
            !has_update
        });
        changed
    }
}

fn slot(pools: &mut [PoolSlots], (index, n): SlotIndex) -> Option<&mut WorkerSlot> {
    pools.get_mut(index)?.slot_mut(n)
}
