//! How the pools are, for whoever asks: systemd, the watchdog, an operator, the words of a refusal.

use sd_notify::NotifyState;

use super::Driver;
use crate::clock;
use crate::dispatcher::pool_slots::{PoolSlots, Slot};
use crate::dispatcher::redirect::PoolAvailability;
use crate::exchange::Incarnation;
use crate::ids::{Epoch, Lifecycle, PoolName, WorkerId};
use crate::log;
use crate::pool::{PoolEvent, Worker};
use crate::probe::{FailedPool, PoolReport, WorkerReport};

impl Driver {
    /// How things are, in a line for `systemctl status`.
    pub fn status(&self) -> String {
        let rooms = self.rooms.borrow();
        let workers = || rooms.iter().flat_map(|room| room.pool.workers());
        let serving = workers().filter(|worker| worker.up && !worker.drained).count();
        format!("serving with {serving} of {} workers, {} waiting", workers().count(), self.waiting())
    }

    /// Tells systemd how things are, if that has changed.
    pub fn tell_status(&self) {
        let status = self.status();
        if *self.told.borrow() != status {
            let _ = sd_notify::notify(&[NotifyState::Status(&status)]);
            self.told.replace(status);
        }
    }

    /// What the probe reports. Who owes an answer is looked at first: it may be there, and its ring not yet heard.
    pub fn report(&self) -> Vec<PoolReport> {
        let rooms = self.rooms.borrow().len();
        for index in 0..rooms {
            let silent = |(worker, n): (&Worker, u16)| worker.silent_since.map(|_| n);
            let owing = self.rooms.borrow()[index].pool.workers().iter().zip(1..).filter_map(silent).collect();
            self.feed(index, None, owing);
        }
        let now = clock::now();
        let ticks = |slot: Option<&Slot>| Incarnation::load(&*slot?.segment).map(|life| life.ticks);
        let worker = |worker: &Worker, slot: Option<&Slot>| WorkerReport {
            epoch: worker.epoch.map_or(0, Epoch::get),
            serves: worker.up && worker.state == Some(Lifecycle::Ready) && !worker.corrupt,
            late: worker.late,
            drained: worker.drained,
            corrupt: worker.corrupt,
            silent_ms: worker.silent_since.map(|since| now.since(since).as_millis() as u64),
            starting_ms: worker.starting_since.map(|since| now.since(since).as_millis() as u64),
            ticks: worker.silent_since.and_then(|_| ticks(slot)),
        };
        let report = |room: &PoolSlots| {
            let (queue, oldest) = room.pool.waiting();
            PoolReport {
                name: room.config.name.clone(),
                queue,
                oldest_ms: oldest.map_or(0, |since| now.since(since).as_millis() as u64),
                workers: room.pool.workers().iter().enumerate().map(|(i, w)| worker(w, room.slot(i))).collect(),
                tally: room.pool.tally().clone(),
            }
        };
        self.rooms.borrow().iter().map(report).collect()
    }

    /// How many clients wait for a worker.
    pub fn waiting(&self) -> usize {
        self.rooms.borrow().iter().map(|room| room.pool.waiting().0).sum()
    }

    /// Whether the configuration in force has this worker.
    pub fn has(&self, id: &WorkerId) -> bool {
        self.rooms
            .borrow()
            .iter()
            .any(|room| room.config.name == id.pool && (1..=room.config.workers).contains(&id.number.get()))
    }

    /// How the workers of a pool are, for the words of a refusal.
    pub fn staff(&self, pool: &PoolName) -> PoolAvailability {
        let rooms = self.rooms.borrow();
        let Some(room) = rooms.iter().find(|room| room.config.name == *pool) else {
            return PoolAvailability::default();
        };
        let workers = &room.pool.workers()[..usize::from(room.config.workers).min(room.pool.workers().len())];
        let drained = workers.iter().filter(|worker| worker.drained).count();
        let gone = workers.iter().filter(|worker| !worker.drained && !worker.up).count();
        PoolAvailability { workers: workers.len(), drained, gone, failed: room.failed.clone() }
    }

    /// The watchdog has given up every worker of these pools, and of no others.
    pub fn hear_failed(&self, failed: &[FailedPool]) {
        let mut changed = Vec::new();
        for room in self.rooms.borrow_mut().iter_mut() {
            let now = failed.iter().find(|failed| failed.pool == room.config.name).map(|failed| failed.cause.clone());
            if now.is_some() != room.failed.is_some() {
                changed.push((room.config.name.clone(), now.is_some()));
            }
            room.failed = now;
        }
        for (pool, failed) in changed {
            if failed {
                tracing::error!(%pool, event = %log::Event::PoolFailed,
                    "every worker of pool {pool} has failed: its clients are refused until one is back; mend the cause, then \
                     reload the set");
            }
            self.tell(&pool, PoolEvent::Failed(failed));
        }
    }

    /// Whether an operator keeps this worker out of service.
    pub fn is_drained(&self, id: &WorkerId) -> bool {
        let rooms = self.rooms.borrow();
        let room = rooms.iter().find(|room| room.config.name == id.pool);
        room.and_then(|room| room.pool.workers().get(id.number.index())).is_some_and(|worker| worker.drained)
    }
}
