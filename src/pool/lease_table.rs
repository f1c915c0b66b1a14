//! The lease table: workers and what holds them, the idle list, the queue, timers.

use std::collections::{BTreeSet, VecDeque};

use super::counters;
use super::hold::Hold;
use super::messages::{PoolAction, PoolLimits, SlotAction, SlotQuestion};
use super::queue::ClientQueue;
use super::recycling::Recycling;
use super::worker::Worker;
use crate::ids::{Epoch, Monotonic, WorkerNumber};
use crate::stats::Counters;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PoolTimer {
    Worker(WorkerNumber),
    Probe,
}

/// One pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(super) limits: PoolLimits,
    pub(super) epoch: Epoch,
    pub(super) leases: u64,
    /// Index `n - 1` is worker `n`.
    pub(super) workers: Vec<Worker>,
    /// Numbers of idle workers, taken from the back. An entry may be outdated: it is checked when taken.
    pub(super) idle: VecDeque<WorkerNumber>,
    pub(super) queue: ClientQueue,
    /// Those of clients are in the queue.
    pub(super) timers: BTreeSet<(Monotonic, PoolTimer)>,
    /// The next worker to ping, while a probe is not complete.
    pub(super) next_ping: Option<WorkerNumber>,
    pub(super) recycling: Recycling,
    pub(super) stopping: bool,
    /// Whether the watchdog has given up every worker.
    pub(super) failed: bool,
    pub(super) counters: Counters,
    pub(super) actions: Vec<PoolAction>,
}

impl Pool {
    /// A pool of unknown workers; `epoch` is the dispatcher's. The caller must read every slot next.
    pub(crate) fn new(limits: PoolLimits, epoch: Epoch) -> Self {
        Self {
            workers: vec![Worker::default(); limits.workers.into()],
            limits,
            epoch,
            leases: 0,
            idle: VecDeque::new(),
            queue: ClientQueue::default(),
            timers: BTreeSet::new(),
            next_ping: None,
            recycling: Recycling::default(),
            stopping: false,
            failed: false,
            counters: counters::zero(),
            actions: Vec::new(),
        }
    }

    /// Applies new bounds. Workers beyond `limits.workers` get no new client and are removed when they are free.
    /// A tick is due at once: it reads every slot, those of new workers included.
    pub(crate) fn reconfigure(&mut self, limits: PoolLimits) {
        self.limits = limits;
        let count = usize::from(limits.workers).max(self.workers.len());
        self.workers.resize(count, Worker::default());
        for n in WorkerNumber::up_to(limits.workers) {
            self.list_if_idle(n);
        }
        self.remove_surplus();
        for n in WorkerNumber::up_to(self.workers.len() as u16) {
            self.set_timer(n, Some(Monotonic(0)));
        }
    }

    /// The workers of the pool: `limits.workers`, and surplus ones that have not ended yet.
    pub(crate) fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// The length of the queue, and when its first client arrived.
    pub(crate) fn waiting(&self) -> (usize, Option<Monotonic>) {
        (self.queue.len(), self.queue.oldest())
    }

    /// Leases granted, expired and revoked, refusals by reason, recyclings, and how long clients waited for a grant.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The number of the last lease; see [`Pool::count_from`].
    pub(crate) fn leases(&self) -> u64 {
        self.leases
    }

    /// The next lease gets a number above this one: the pools of one dispatcher share one sequence, so that lease
    /// numbers are unique within a set.
    pub(crate) fn count_from(&mut self, leases: u64) {
        self.leases = self.leases.max(leases);
    }

    /// When the next [`PoolEvent::Tick`](super::PoolEvent::Tick) is due.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        self.timers.first().map(|(time, _)| *time).into_iter().chain(self.queue.next_due()).min()
    }

    /// Whether no client waits and no lease is out.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.workers.iter().all(|w| w.hold == Hold::Free)
    }

    pub(super) fn has_worker(&self, n: WorkerNumber) -> bool {
        n.index() < self.workers.len()
    }

    pub(super) fn worker(&mut self, n: WorkerNumber) -> &mut Worker {
        &mut self.workers[n.index()]
    }

    pub(super) fn question(&mut self, now: Monotonic, n: WorkerNumber, question: SlotQuestion) {
        self.worker(n).silent_since.get_or_insert(now);
        self.actions.push(PoolAction::Slot(n, SlotAction::Question(question)));
    }

    pub(super) fn pop_idle(&mut self) -> Option<WorkerNumber> {
        while let Some(n) = self.idle.pop_back() {
            self.worker(n).in_idle_list = false;
            if self.is_idle(n) {
                return Some(n);
            }
        }
        None
    }

    fn is_idle(&self, n: WorkerNumber) -> bool {
        let worker = &self.workers[n.index()];
        n.get() <= self.limits.workers && worker.is_idle() && !self.recycling.prevents_offer(n)
    }

    pub(super) fn push_idle(&mut self, n: WorkerNumber) {
        let worker = self.worker(n);
        if !worker.in_idle_list {
            worker.in_idle_list = true;
            if worker.may_hang() {
                // Its control loop answers; its serving task may still hang, which the next claim shows.
                self.idle.push_front(n);
            } else {
                self.idle.push_back(n);
            }
        }
    }

    pub(super) fn list_if_idle(&mut self, n: WorkerNumber) {
        if self.is_idle(n) {
            self.push_idle(n);
        }
    }

    pub(super) fn set_timer(&mut self, n: WorkerNumber, at: Option<Monotonic>) {
        let old = std::mem::replace(&mut self.worker(n).timer, at);
        if old != at {
            if let Some(old) = old {
                self.timers.remove(&(old, PoolTimer::Worker(n)));
            }
            if let Some(at) = at {
                self.timers.insert((at, PoolTimer::Worker(n)));
            }
        }
    }

    /// Removes surplus workers that have ended, from the end of the list.
    pub(super) fn remove_surplus(&mut self) {
        while self.workers.len() > self.limits.workers.into()
            && let Some(n) = WorkerNumber::up_to(self.workers.len() as u16).next_back()
            && let last = self.worker(n)
            && !last.up
            && last.hold == Hold::Free
        {
            self.set_timer(n, None);
            self.idle.retain(|idle| *idle != n);
            self.workers.pop();
        }
    }
}
