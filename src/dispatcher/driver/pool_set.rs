//! The pools of the set with the slots of their workers: events in, actions out. The decisions are the pools'.

use std::collections::VecDeque;
use std::rc::Rc;

use super::actions::ActionPerformer;
use super::slot_opener::SlotOpener;
use crate::config::{self, Config};
use crate::dispatcher::error::DispatcherError;
use crate::dispatcher::pool_slots::{PoolSlots, SlotIndex};
use crate::dispatcher::worker_slot::WorkerSlot;
use crate::ids::{Epoch, Monotonic, PoolName, WorkerId, WorkerNumber};
use crate::pool::{Pool, PoolEvent, PoolLimits};
use crate::probe::{FailedPool, PoolReport};
use crate::shm::SegmentRole;
use crate::{clock, ipc, log};

/// All pools of the set, and what their actions need.
pub(super) struct PoolSet {
    epoch: Epoch,
    /// In force since the last reload.
    config: Rc<Config>,
    pools: Vec<PoolSlots>,
    pub opener: SlotOpener,
    pub performer: ActionPerformer,
    /// The number of the last lease.
    leases: u64,
    /// Counts the calls of [`PoolSet::run`].
    passes: u64,
}

impl PoolSet {
    /// Without a pool before the first [`PoolSet::reconfigure`].
    pub(super) fn new(epoch: Epoch, config: &Config, opener: SlotOpener) -> Self {
        let config = Rc::new(config.clone());
        Self { epoch, config, pools: Vec::new(), opener, performer: ActionPerformer::new(epoch), leases: 0, passes: 0 }
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(super) fn config(&self) -> &Rc<Config> {
        &self.config
    }

    pub(super) fn all(&self) -> &[PoolSlots] {
        &self.pools
    }

    /// The pool of this name.
    pub(super) fn get(&self, pool: &PoolName) -> Option<&PoolSlots> {
        self.pools.iter().find(|slots| slots.config.name == *pool)
    }

    fn index_of(&self, pool: &PoolName) -> Option<usize> {
        self.pools.iter().position(|slots| slots.config.name == *pool)
    }

    /// The earliest deadline of a pool.
    pub(super) fn deadline(&self) -> Option<Monotonic> {
        self.pools.iter().filter_map(|pool| pool.table.deadline()).min()
    }

    /// Handles an event of one pool.
    pub(super) fn handle(&mut self, pool: &PoolName, event: PoolEvent) {
        if let Some(index) = self.index_of(pool) {
            self.run(index, Some(event), VecDeque::new());
        }
    }

    /// Handles an event of every pool.
    pub(super) fn handle_in_all(&mut self, event: PoolEvent) {
        for index in 0..self.pools.len() {
            self.run(index, Some(event), VecDeque::new());
        }
    }

    /// Sends a tick to each pool whose deadline is reached.
    pub(super) fn tick(&mut self) {
        let now = clock::now();
        for index in 0..self.pools.len() {
            if self.pools[index].table.deadline().is_some_and(|at| at <= now) {
                self.run(index, Some(PoolEvent::Tick), VecDeque::new());
            }
        }
        self.close_surplus_slots();
    }

    /// The doorbell of a slot rang: the worker has changed its slot, or the watchdog reports its death.
    pub(super) fn on_ring(&mut self, (index, n): SlotIndex) {
        if let Some(slot) = self.pools[index].slot_mut(n) {
            slot.checked_at = None;
        }
        self.read_slot((index, n));
    }

    /// Reads one slot.
    pub(super) fn read_slot(&mut self, (index, n): SlotIndex) {
        self.run(index, None, VecDeque::from([n]));
    }

    /// Handles `event`, reads the slots of the workers `reads`, and performs all actions that follow.
    fn run(&mut self, index: usize, event: Option<PoolEvent>, mut reads: VecDeque<WorkerNumber>) {
        let pool = &mut self.pools[index];
        self.passes += 1;
        let mut next = event;
        loop {
            let event = match next.take() {
                Some(event) => event,
                None => match reads.pop_front() {
                    // Read immediately before the decision, so that it includes every earlier action.
                    Some(n) if pool.may_read(n, self.passes) => PoolEvent::SlotRead(n, pool.read_slot(n)),
                    Some(_) => continue,
                    None => break,
                },
            };
            pool.table.count_from(self.leases);
            let actions = pool.table.handle(clock::now(), event);
            self.leases = pool.table.leases();
            for action in actions {
                if let Some(n) = self.performer.perform(index, pool, action)
                    && !reads.contains(&n)
                {
                    reads.push_back(n);
                }
            }
        }
    }

    /// Reads the polled slots that have changed, without waiting for a ring.
    pub(super) fn poll(&mut self) {
        let changed = self.performer.busy_poll.poll(&mut self.pools);
        changed.into_iter().for_each(|at| self.read_slot(at));
    }

    /// The thread is about to sleep; whether a slot has changed, so that it must not.
    pub(super) fn poll_before_sleep(&mut self) -> bool {
        let changed = self.performer.busy_poll.poll_before_sleep(&mut self.pools);
        let any = !changed.is_empty();
        changed.into_iter().for_each(|at| self.read_slot(at));
        any
    }

    /// The answer to a probe. Slots with an open question are read first: the answer may be there before its ring.
    pub(super) fn report(&mut self) -> Vec<PoolReport> {
        for index in 0..self.pools.len() {
            let suspects = self.pools[index].suspect_workers();
            self.run(index, None, suspects);
        }
        let objects = &self.opener.objects;
        self.pools.iter().map(|pool| pool.report(|n| objects.lost_since(&pool.config.name, n))).collect()
    }

    /// Records the pools of which the watchdog has given up every worker.
    pub(super) fn set_failed_pools(&mut self, failed: &[FailedPool]) {
        for index in 0..self.pools.len() {
            let pool = &mut self.pools[index];
            let name = &pool.config.name;
            let cause = failed.iter().find(|failed| failed.pool == *name).map(|failed| failed.cause.clone());
            let is_failed = cause.is_some();
            if is_failed && pool.failed.is_none() {
                tracing::error!(pool = %name, event = %log::Event::PoolFailed,
                    "every worker of pool {name} has failed: refusing its clients until a worker is up again; fix the \
                     cause, then reload the set");
            }
            let has_changed = is_failed != pool.failed.is_some();
            pool.failed = cause;
            if has_changed {
                self.run(index, Some(PoolEvent::Failed(is_failed)), VecDeque::new());
            }
        }
    }

    /// Applies a configuration: adds, changes and removes pools and workers without interrupting requests. The next tick
    /// reads every slot.
    pub(super) fn reconfigure(
        &mut self,
        config: &Config,
        return_ports: &dyn Fn(&PoolName) -> Option<u16>,
    ) -> Result<(), DispatcherError> {
        self.config = Rc::new(config.clone());
        for wanted in &config.pools {
            let index = self.index_of(&wanted.name).unwrap_or_else(|| {
                self.pools.push(PoolSlots::new(wanted.clone(), Pool::new(limits(wanted, config), self.epoch)));
                self.pools.len() - 1
            });
            self.pools[index].reconfigure(wanted.clone(), limits(wanted, config), return_ports(&wanted.name));
            self.open_missing_slots(index)?;
        }
        for (index, pool) in self.pools.iter_mut().enumerate() {
            if config.pools.iter().all(|wanted| wanted.name != pool.config.name) && pool.config.workers > 0 {
                tracing::debug!(pool = %pool.config.name, index, "pool is removed from the configuration: draining it");
                let removed = config::PoolConfig { workers: 0, ..pool.config.clone() };
                let limits = limits(&removed, config);
                pool.reconfigure(removed, limits, None);
            }
        }
        self.close_surplus_slots();
        Ok(())
    }

    /// Opens the slots that are not open, and those of workers that have new objects: a worker that was removed and added
    /// again, or one whose files were lost. A worker whose objects cannot be opened gets no clients until they can.
    /// Returns the workers whose slots were opened, and must be read.
    fn open_missing_slots(&mut self, index: usize) -> Result<VecDeque<WorkerNumber>, DispatcherError> {
        let mut opened = VecDeque::new();
        let config = self.config.clone();
        let pool = self.pools[index].config.name.clone();
        for number in WorkerNumber::up_to(self.pools[index].config.workers) {
            let id = WorkerId { pool: pool.clone(), number };
            let mut drained = None;
            if let Some(slot) = self.pools[index].slot(number) {
                let held = slot.segment.clone();
                let current = ipc::segment_name(&config.set.runtime_dir, &id);
                let is_current = current.is_ok_and(|name| name == held.name());
                let is_passed = self.opener.objects.has_passed_another(&id, &held);
                if is_current || !is_passed && ipc::open_unchecked(&config, &id, None).is_err() {
                    continue;
                }
                // What the old slot contains is settled there; its incarnation has ended.
                self.on_ring((index, number));
                if held.is_role_locked(SegmentRole::Worker) {
                    continue;
                }
                let old = self.pools[index].slots[number.index()].take();
                drained = old.map(|old| old.side.drained());
            }
            let return_port = self.pools[index].return_port;
            match self.opener.open(&config, &id, index, return_port, drained) {
                Ok(slot) => {
                    self.pools[index].slots[number.index()] = Some(slot);
                    self.opener.objects.set_opened(&id);
                    opened.push_back(number);
                }
                Err(DispatcherError::Ipc(error)) => {
                    let is_lost = ipc::object_paths(&config.set.runtime_dir, &id).iter().any(|path| !path.exists());
                    if self.opener.objects.set_unopened(id.clone(), is_lost) {
                        tracing::error!(worker = %id, event = %log::Event::FilesLost,
                            "cannot open the segment and doorbells of this worker: {error}; it gets no clients until \
                             they can be opened; if files are missing, it is replaced after watchdog.start_timeout");
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(opened)
    }

    /// Slots that cannot be opened now are opened at one of the next looks for lost names.
    fn try_open_missing_slots(&mut self, index: usize) {
        match self.open_missing_slots(index) {
            Ok(opened) => self.run(index, None, opened),
            Err(error) => {
                tracing::error!(event = %log::Event::FilesLost, "cannot open new segments: {error}; trying again");
            }
        }
    }

    /// Takes an object of a worker that has new ones, and opens its slot with the last of them.
    pub(super) fn receive_object(&mut self, name: &str, fd: std::os::fd::OwnedFd) {
        let Some((id, passed)) = self.opener.objects.receive(name, fd) else { return };
        if let Some(index) = self.index_of(&id.pool).filter(|index| self.pools[*index].has_worker(id.number)) {
            self.opener.objects.pass(id, passed);
            self.try_open_missing_slots(index);
        }
    }

    /// Looks for workers that have new objects, because the names of the old ones were removed. `stores_lost`: the
    /// objects without names go into the descriptor store.
    pub(super) fn check_names(&mut self, stores_lost: bool) {
        for index in 0..self.pools.len() {
            let PoolSlots { config, slots, .. } = &mut self.pools[index];
            if stores_lost {
                for (slot, number) in slots.iter_mut().zip(WorkerNumber::up_to(u16::MAX)) {
                    let id = WorkerId { pool: config.name.clone(), number };
                    slot.iter_mut().for_each(|slot| self.opener.store_lost_objects(slot, &id));
                }
            }
            let is_lost = |slot: &Option<WorkerSlot>| slot.as_ref().is_none_or(WorkerSlot::has_lost_names);
            if slots.iter().any(is_lost) {
                self.try_open_missing_slots(index);
            }
        }
    }

    /// Whether a worker is down and the names of its objects are lost, so that it gets new ones. Opens them if they exist.
    pub(super) fn is_being_replaced(&mut self, id: &WorkerId) -> bool {
        let Some(index) = self.index_of(&id.pool) else { return false };
        let is_lost = |pools: &Self| {
            let slot = pools.pools[index].slot(id.number);
            slot.is_some_and(|slot| slot.has_lost_names() && !slot.segment.is_role_locked(SegmentRole::Worker))
        };
        if is_lost(self) {
            self.try_open_missing_slots(index);
        }
        is_lost(self)
    }

    /// Closes the slots of workers that the pool has removed.
    fn close_surplus_slots(&mut self) {
        for pool in &mut self.pools {
            pool.slots.truncate(pool.table.workers().len());
        }
    }
}

fn limits(pool: &config::PoolConfig, config: &Config) -> PoolLimits {
    PoolLimits {
        workers: pool.workers,
        queue: pool.queue,
        queue_timeout: pool.queue_timeout,
        offer_timeout: pool.offer_timeout,
        claim_timeout: pool.claim_timeout,
        request_timeout: pool.request_timeout,
        max_sessions: pool.sessions().map_or(0, |bounds| bounds.max),
        slot_scan: config.front.slot_scan,
        recycle_timeout: config.recycle_timeout(pool),
    }
}
