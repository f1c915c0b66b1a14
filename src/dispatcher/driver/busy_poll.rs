//! Busy polling of slots with an open offer, as long as this thread is awake.
//!
//! A ring costs the worker a system call, and this thread two more and an iteration of its event loop. The slot of an
//! open offer therefore tells the worker not to ring ([`DispatcherSide::start_polling`]) until this thread parks. Before it
//! parks, it may spin for a while, if the worker runs on another core and the pool's workers answer fast
//! ([`SpinBudget`]). At rest nothing is polled.
//!
//! [`DispatcherSide::start_polling`]: crate::exchange::DispatcherSide::start_polling
//! [`SpinBudget`]: crate::exchange::SpinBudget

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::sched::sched_getcpu;

use super::Driver;
use crate::clock;
use crate::dispatcher::pool_slots::{PoolSlots, SlotIndex, WorkerSlot};

/// With more polled slots than this, other threads need the core.
const POLLED_MAX: usize = 4;

/// With more polled slots than that, the pause between two polls of all of them.
const POLL_PAUSE: Duration = Duration::from_micros(200);

/// Polls between two readings of the clock.
const POLLS_PER_CLOCK: u32 = 32;

thread_local! {
    /// The driver of this thread.
    static DRIVER: RefCell<Weak<Driver>> = const { RefCell::new(Weak::new()) };
}

/// The runtime must call this before its thread parks.
pub(crate) fn on_thread_park() {
    if let Some(driver) = DRIVER.with_borrow(Weak::upgrade) {
        driver.prepare_park();
    }
}

fn slot(pools: &mut [PoolSlots], (index, n): SlotIndex) -> Option<&mut WorkerSlot> {
    pools.get_mut(index)?.slot_mut(n)
}

/// Moves the slots that have changed from `polled` to `updated`; whether there were any.
fn take_updates(pools: &mut [PoolSlots], polled: &mut Vec<SlotIndex>, updated: &mut VecDeque<SlotIndex>) -> bool {
    let before = updated.len();
    polled.retain(|at| {
        let Some(slot) = slot(pools, *at) else { return false };
        let changed = slot.side.has_update();
        if changed {
            slot.polled = false;
            slot.side.stop_polling();
            updated.push_back(*at);
        }
        !changed
    });
    updated.len() > before
}

impl Driver {
    pub(super) fn register_on_thread(self: &Rc<Self>) {
        DRIVER.set(Rc::downgrade(self));
    }

    /// Polls a slot in which an offer is about to be made.
    pub(super) fn poll_slot(&self, at: SlotIndex, slot: &mut WorkerSlot) {
        if !slot.polled {
            slot.polled = true;
            slot.side.start_polling();
            self.polled.borrow_mut().push(at);
        }
    }

    fn prepare_park(&self) {
        let mut pools = self.pools.borrow_mut();
        let (mut polled, mut updated) = (self.polled.borrow_mut(), self.updated.borrow_mut());
        if !polled.is_empty()
            && !take_updates(&mut pools, &mut polled, &mut updated)
            && !self.spin(&mut pools, &mut polled, &mut updated)
        {
            for at in polled.drain(..) {
                let Some(slot) = slot(&mut pools, at) else { continue };
                slot.polled = false;
                slot.side.stop_polling();
                if slot.side.has_update() {
                    updated.push_back(at);
                }
            }
        }
        if !updated.is_empty() {
            self.update_found.notify_one();
        }
    }

    /// Spins for as long as an update is likely; whether there was one.
    fn spin(&self, pools: &mut [PoolSlots], polled: &mut Vec<SlotIndex>, updated: &mut VecDeque<SlotIndex>) -> bool {
        let [(index, _), ..] = polled[..] else { return false };
        if polled.len() > POLLED_MAX {
            return false;
        }
        let own_core = sched_getcpu().ok().map(|core| core as u64);
        let shares_core = self.cores == 1
            || polled.iter().any(|at| {
                slot(pools, *at).is_none_or(|slot| slot.side.core().is_none_or(|core| Some(core) == own_core))
            });
        let (since, longest) = (clock::now(), pools[index].spin.next(shares_core));
        if longest.is_zero() {
            return false;
        }
        loop {
            for _ in 0..POLLS_PER_CLOCK {
                if take_updates(pools, polled, updated) {
                    pools[index].spin.record(Some(clock::now().since(since)));
                    return true;
                }
                std::hint::spin_loop();
            }
            if clock::now().since(since) >= longest {
                pools[index].spin.record(None);
                return false;
            }
        }
    }

    /// Polls without parking, for a thread that always has something to do. With many polled slots it does nothing
    /// until the pause between two polls has passed.
    pub(crate) fn poll_now(&self) {
        let many = self.polled.borrow().len();
        if many == 0 || many > POLLED_MAX && clock::now().since(self.polled_at.get()) < POLL_PAUSE {
            return;
        }
        self.polled_at.set(clock::now());
        take_updates(&mut self.pools.borrow_mut(), &mut self.polled.borrow_mut(), &mut self.updated.borrow_mut());
        self.read_updated();
    }

    fn read_updated(&self) {
        let next = || self.updated.borrow_mut().pop_front();
        while let Some((index, n)) = next() {
            self.read_slot(index, n);
        }
    }

    /// Reads the slots in which an update was found before the thread parked; never returns.
    pub(crate) async fn run_updates(&self) {
        loop {
            self.update_found.notified().await;
            self.read_updated();
        }
    }
}
