//! Slots of which news is expected soon: looked at without being rung for, as long as this thread is awake.
//!
//! A ring costs the worker a system call and this thread two more and a turn of its loop. So whoever gets an offer is told
//! that the dispatcher looks by itself ([`Asker::watch`]), until the dispatcher goes to sleep. Before it does, it may watch
//! for a while, where the worker has another core and its answers are quick ([`Patience`]). At rest nothing is watched.
//!
//! [`Asker::watch`]: crate::exchange::Asker::watch
//! [`Patience`]: crate::exchange::Patience

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::sched::sched_getcpu;

use super::Driver;
use crate::clock;
use crate::dispatcher::pool_slots::{PoolSlots, Slot};

/// With more of them than this, others are waiting for a core.
const WATCHED_MAX: usize = 4;

/// With more than those, so much time passes between two glances at all of them.
const GLANCES: Duration = Duration::from_micros(200);

/// Looks at the slots in between two readings of the clock.
const LOOKS: u32 = 32;

/// A slot: index of its pool, and worker.
pub(super) type SlotIndex = (usize, u16);

thread_local! {
    /// The desk of this thread.
    static DRIVER: RefCell<Weak<Driver>> = const { RefCell::new(Weak::new()) };
}

/// To be called by the runtime before its thread sleeps.
pub fn before_sleep() {
    if let Some(desk) = DRIVER.with_borrow(Weak::upgrade) {
        desk.before_sleep();
    }
}

fn slot(rooms: &mut [PoolSlots], (index, n): SlotIndex) -> Option<&mut Slot> {
    rooms.get_mut(index)?.slots.get_mut(usize::from(n) - 1)?.as_mut()
}

/// Takes the places out of `expected` of which there is news.
fn take_news(rooms: &mut [PoolSlots], expected: &mut Vec<SlotIndex>, news: &mut VecDeque<SlotIndex>) -> bool {
    let before = news.len();
    expected.retain(|place| {
        let Some(slot) = slot(rooms, *place) else { return false };
        let waits = !slot.asker.has_update();
        if !waits {
            slot.watched = false;
            slot.asker.stop_polling();
            news.push_back(*place);
        }
        waits
    });
    news.len() > before
}

impl Driver {
    /// This desk is the one of this thread.
    pub(super) fn be_here(self: &Rc<Self>) {
        DRIVER.set(Rc::downgrade(self));
    }

    /// An offer is about to be made.
    pub(super) fn expect(&self, place: SlotIndex, slot: &mut Slot) {
        if !slot.watched {
            slot.watched = true;
            slot.asker.start_polling();
            self.expected.borrow_mut().push(place);
        }
    }

    fn before_sleep(&self) {
        let mut rooms = self.rooms.borrow_mut();
        let (mut expected, mut news) = (self.expected.borrow_mut(), self.news.borrow_mut());
        if !expected.is_empty()
            && !take_news(&mut rooms, &mut expected, &mut news)
            && !self.watch(&mut rooms, &mut expected, &mut news)
        {
            for place in expected.drain(..) {
                let Some(slot) = slot(&mut rooms, place) else { continue };
                slot.watched = false;
                slot.asker.stop_polling();
                if slot.asker.has_update() {
                    news.push_back(place);
                }
            }
        }
        if !news.is_empty() {
            self.heard.notify_one();
        }
    }

    /// Watches for as long as that is likely to be worth it; whether there was news.
    fn watch(&self, rooms: &mut [PoolSlots], expected: &mut Vec<SlotIndex>, news: &mut VecDeque<SlotIndex>) -> bool {
        let [(index, _), ..] = expected[..] else { return false };
        if expected.len() > WATCHED_MAX {
            return false;
        }
        let here = sched_getcpu().ok().map(|core| core as u64);
        let shared = self.cores == 1
            || expected.iter().any(|place| {
                slot(rooms, *place).is_none_or(|slot| slot.asker.core().is_none_or(|core| Some(core) == here))
            });
        let (since, longest) = (clock::now(), rooms[index].patience.next(shared));
        if longest.is_zero() {
            return false;
        }
        loop {
            for _ in 0..LOOKS {
                if take_news(rooms, expected, news) {
                    rooms[index].patience.record(Some(clock::now().since(since)));
                    return true;
                }
                std::hint::spin_loop();
            }
            if clock::now().since(since) >= longest {
                rooms[index].patience.record(None);
                return false;
            }
        }
    }

    /// Looks where there is news, without sleeping for it: a thread that always has something to do never sleeps. Not each
    /// time, where there is much to look at.
    pub fn glance(&self) {
        let many = self.expected.borrow().len();
        if many == 0 || many > WATCHED_MAX && clock::now().since(self.glanced.get()) < GLANCES {
            return;
        }
        self.glanced.set(clock::now());
        take_news(&mut self.rooms.borrow_mut(), &mut self.expected.borrow_mut(), &mut self.news.borrow_mut());
        self.look_at_news();
    }

    fn look_at_news(&self) {
        let next = || self.news.borrow_mut().pop_front();
        while let Some((index, n)) = next() {
            self.look(index, n);
        }
    }

    /// Looks where news was found before a sleep; never returns.
    pub async fn run_news(&self) {
        loop {
            self.heard.notified().await;
            self.look_at_news();
        }
    }
}
