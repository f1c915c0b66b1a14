//! The lease table: workers, what holds them, the queue, timers.

use std::collections::{BTreeSet, VecDeque};

use super::counters;
use super::hold::Hold;
use super::messages::{ClientId, PoolAction, PoolLimits, SlotQuestion};
use super::queue::Queue;
use super::worker::Worker;
use crate::ids::{Epoch, Monotonic};
use crate::stats::Counters;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Worker(u16),
    Client(ClientId),
    Probe,
}

/// One pool.
#[derive(Debug)]
pub struct Pool {
    pub(super) limits: PoolLimits,
    pub(super) epoch: Epoch,
    pub(super) leases: u64,
    /// Index `n - 1` is worker `n`.
    pub(super) workers: Vec<Worker>,
    /// Numbers of idle workers, taken from the back. May hold some that are no longer: checked when taken.
    pub(super) idle: VecDeque<u16>,
    pub(super) queue: Queue,
    pub(super) timers: BTreeSet<(Monotonic, Timer)>,
    /// The next worker to be asked for a sign of life, while not all have been.
    pub(super) asking: Option<u16>,
    /// The worker that is being replaced by its next incarnation, the incarnation that is to go, and until when
    /// at the latest the others wait for it.
    pub(super) recycling: Option<(u16, Epoch, Monotonic)>,
    pub(super) stopping: bool,
    /// Whether the watchdog has given up every worker.
    pub(super) failed: bool,
    pub(super) tally: Counters,
    pub(super) actions: Vec<PoolAction>,
}

impl Pool {
    /// A pool of which nothing is known yet; `epoch` is the dispatcher's. Look at every slot next.
    pub fn new(limits: PoolLimits, epoch: Epoch) -> Self {
        Self {
            workers: vec![Worker::default(); limits.workers.into()],
            limits,
            epoch,
            leases: 0,
            idle: VecDeque::new(),
            queue: Queue::default(),
            timers: BTreeSet::new(),
            asking: None,
            recycling: None,
            stopping: false,
            failed: false,
            tally: counters::zero(),
            actions: Vec::new(),
        }
    }

    /// Takes new bounds. Workers beyond `limits.workers` get no new client and leave when they are free.
    /// A tick is due at once: it looks at every worker, the new ones among them.
    pub fn reconfigure(&mut self, limits: PoolLimits) {
        self.limits = limits;
        let count = usize::from(limits.workers).max(self.workers.len());
        self.workers.resize(count, Worker::default());
        for n in 1..=limits.workers {
            self.consider(n);
        }
        self.shrink();
        for n in 1..=self.workers.len() as u16 {
            self.set_timer(n, Some(Monotonic(0)));
        }
    }

    /// The workers it knows: `limits.workers`, and those beyond that have not left yet.
    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// How many clients wait, and since when the first of them.
    pub fn waiting(&self) -> (usize, Option<Monotonic>) {
        (self.queue.len(), self.queue.oldest())
    }

    /// What it has done up to now: how many leases it granted, how many expired or were revoked, whom it refused and
    /// why, how often it recycled, and how long clients waited until their lease was granted.
    pub fn tally(&self) -> &Counters {
        &self.tally
    }

    /// How many leases have been given; see [`Pool::count_from`].
    pub fn leases(&self) -> u64 {
        self.leases
    }

    /// The next lease is at least the one after this: pools of one dispatcher count on from each other, so that
    /// no two leases of a set have one number.
    pub fn count_from(&mut self, leases: u64) {
        self.leases = self.leases.max(leases);
    }

    /// When the next [`PoolEvent::Tick`] is due.
    pub fn deadline(&self) -> Option<Monotonic> {
        self.timers.first().map(|(time, _)| *time)
    }

    /// Whether no client waits and no lease is out.
    pub fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.workers.iter().all(|w| w.hold == Hold::Free)
    }

    pub(super) fn knows(&self, n: u16) -> bool {
        n >= 1 && usize::from(n) <= self.workers.len()
    }

    pub(super) fn worker(&mut self, n: u16) -> &mut Worker {
        &mut self.workers[usize::from(n) - 1]
    }

    pub(super) fn ask(&mut self, now: Monotonic, n: u16, question: SlotQuestion) {
        self.worker(n).silent_since.get_or_insert(now);
        self.actions.push(PoolAction::Ask(n, question));
    }

    pub(super) fn next_idle(&mut self) -> Option<u16> {
        while let Some(n) = self.idle.pop_back() {
            self.worker(n).listed = false;
            if self.is_idle(n) {
                return Some(n);
            }
        }
        None
    }

    pub(super) fn is_idle(&self, n: u16) -> bool {
        let worker = &self.workers[usize::from(n) - 1];
        n <= self.limits.workers && worker.is_idle() && !self.is_recycling(n)
    }

    pub(super) fn is_recycling(&self, n: u16) -> bool {
        self.recycling.is_some_and(|(recycling, ..)| recycling == n)
    }

    pub(super) fn push_idle(&mut self, n: u16) {
        let worker = self.worker(n);
        if !worker.listed {
            worker.listed = true;
            match worker.shunned {
                // Its control loop answers; whether its serving task does, it may show when it is needed.
                true => self.idle.push_front(n),
                false => self.idle.push_back(n),
            }
        }
    }

    /// Lists the worker as idle if it is.
    pub(super) fn consider(&mut self, n: u16) {
        if self.is_idle(n) {
            self.push_idle(n);
        }
    }

    pub(super) fn set_timer(&mut self, n: u16, at: Option<Monotonic>) {
        let old = std::mem::replace(&mut self.worker(n).timer, at);
        if old != at {
            if let Some(old) = old {
                self.timers.remove(&(old, Timer::Worker(n)));
            }
            if let Some(at) = at {
                self.timers.insert((at, Timer::Worker(n)));
            }
        }
    }

    /// Forgets workers at the end of the list that are surplus and gone.
    pub(super) fn shrink(&mut self) {
        while self.workers.len() > self.limits.workers.into()
            && let Some(last) = self.workers.last()
            && !last.up
            && last.hold == Hold::Free
        {
            let n = self.workers.len() as u16;
            self.set_timer(n, None);
            self.idle.retain(|idle| *idle != n);
            self.workers.pop();
        }
    }
}
