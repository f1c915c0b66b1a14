//! Reports on the pools, for systemd, the watchdog, operators and refused clients.

use super::Driver;
use crate::clock;
use crate::dispatcher::pool_slots::{PoolSlots, WorkerSlot};
use crate::dispatcher::refusal::PoolAvailability;
use crate::exchange::Incarnation;
use crate::ids::{Epoch, Lifecycle, Monotonic, PoolName, WorkerId, WorkerNumber};
use crate::log;
use crate::pool::{PoolEvent, Worker};
use crate::probe::{FailedPool, PoolReport, WorkerReport};

impl Driver {
    /// One line for `systemctl status`.
    pub(crate) fn status(&self) -> String {
        let pools = self.pools.borrow();
        let workers = || pools.iter().flat_map(|pool| pool.table.workers());
        let serving = workers().filter(|worker| worker.up && !worker.drained).count();
        format!("serving with {serving} of {} workers, {} waiting", workers().count(), self.waiting())
    }

    /// Sends the status to systemd if it has changed.
    pub(crate) fn notify_status(&self) {
        let status = self.status();
        if *self.sent_status.borrow() != status && self.store.send_status(&status) {
            self.sent_status.replace(status);
        }
    }

    /// The answer to a probe. Slots with an open question are read first: the answer may be there before its ring.
    pub(crate) fn report(&self) -> Vec<PoolReport> {
        let pools = self.pools.borrow().len();
        for index in 0..pools {
            let silent = |(worker, n): (&Worker, WorkerNumber)| worker.silent_since.map(|_| n);
            let open = self.pools.borrow()[index]
                .table
                .workers()
                .iter()
                .zip(WorkerNumber::up_to(u16::MAX))
                .filter_map(silent)
                .collect();
            self.run(index, None, open);
        }
        let now = clock::now();
        let ms_since = |since| now.since(since).as_millis() as u64;
        let ticks = |slot: Option<&WorkerSlot>| Incarnation::load(&*slot?.segment).map(|life| life.ticks);
        // A worker whose files are missing lives and gets no clients. Its next start creates them again.
        let unopened = self.unopened.borrow();
        let lost_since = |pool: &PoolSlots, n: WorkerNumber| {
            let is_worker = |id: &WorkerId| id.pool == pool.config.name && id.number == n;
            unopened.iter().find(|(id, _)| is_worker(id)).and_then(|(_, since)| *since)
        };
        let worker = |worker: &Worker, slot: Option<&WorkerSlot>, lost_since: Option<Monotonic>| WorkerReport {
            epoch: worker.epoch.map_or(0, Epoch::get),
            serves: worker.up && worker.state == Some(Lifecycle::Ready) && !worker.corrupt,
            late: worker.late,
            drained: worker.drained,
            corrupt: worker.corrupt,
            silent_ms: worker.silent_since.map(ms_since),
            starting_ms: worker.starting_since.or(lost_since).map(ms_since),
            ticks: worker.silent_since.and_then(|_| ticks(slot)),
        };
        let report = |pool: &PoolSlots| {
            let (queue, oldest) = pool.table.waiting();
            PoolReport {
                name: pool.config.name.clone(),
                queue,
                oldest_ms: oldest.map_or(0, ms_since),
                workers: pool
                    .table
                    .workers()
                    .iter()
                    .zip(WorkerNumber::up_to(u16::MAX))
                    .map(|(w, n)| worker(w, pool.slot(n), lost_since(pool, n)))
                    .collect(),
                counters: pool.table.counters().clone(),
            }
        };
        self.pools.borrow().iter().map(report).collect()
    }

    /// The number of queued clients.
    pub(crate) fn waiting(&self) -> usize {
        self.pools.borrow().iter().map(|pool| pool.table.waiting().0).sum()
    }

    /// Whether the configuration in force has this worker.
    pub(crate) fn has_worker(&self, id: &WorkerId) -> bool {
        self.pools
            .borrow()
            .iter()
            .any(|pool| pool.config.name == id.pool && (1..=pool.config.workers).contains(&id.number.get()))
    }

    /// The workers of a pool, for the text of a refusal.
    pub(crate) fn availability(&self, pool: &PoolName) -> PoolAvailability {
        let pools = self.pools.borrow();
        let Some(slots) = pools.iter().find(|slots| slots.config.name == *pool) else {
            return PoolAvailability::default();
        };
        let all = slots.table.workers();
        let workers = &all[..usize::from(slots.config.workers).min(all.len())];
        let drained = workers.iter().filter(|worker| worker.drained).count();
        let down = workers.iter().filter(|worker| !worker.drained && !worker.up).count();
        PoolAvailability { workers: workers.len(), drained, down, failed: slots.failed.clone() }
    }

    /// Records the pools of which the watchdog has given up every worker.
    pub(crate) fn set_failed_pools(&self, failed: &[FailedPool]) {
        let mut changed = Vec::new();
        for pool in self.pools.borrow_mut().iter_mut() {
            let now = failed.iter().find(|failed| failed.pool == pool.config.name).map(|failed| failed.cause.clone());
            if now.is_some() != pool.failed.is_some() {
                changed.push((pool.config.name.clone(), now.is_some()));
            }
            pool.failed = now;
        }
        for (pool, failed) in changed {
            if failed {
                tracing::error!(%pool, event = %log::Event::PoolFailed,
                    "every worker of pool {pool} has failed: refusing its clients until a worker is up again; fix the \
                     cause, then reload the set");
            }
            self.handle(&pool, PoolEvent::Failed(failed));
        }
    }

    /// Whether an operator keeps this worker out of service.
    pub(crate) fn is_drained(&self, id: &WorkerId) -> bool {
        let pools = self.pools.borrow();
        let slots = pools.iter().find(|slots| slots.config.name == id.pool);
        let worker = slots.and_then(|slots| slots.table.workers().get(id.number.index()));
        worker.is_some_and(|worker| worker.drained)
    }
}
