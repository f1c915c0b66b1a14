//! Opens and closes pools and slots, at the start and at each reload.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use super::Driver;
use crate::config::{self, Config};
use crate::dispatcher::error::DispatcherError;
use crate::dispatcher::fdstore::StoredFd;
use crate::dispatcher::pool_slots::{PoolSlots, WorkerSlot};
use crate::dispatcher::probe;
use crate::exchange::{DispatcherSide, Incarnation, SpinBudget};
use crate::handoff::HandoffSender;
use crate::ids::{PoolName, Token, WorkerId, WorkerNumber};
use crate::ipc::{self, PassedObjects, WorkerIpc, WorkerObject};
use crate::pool::{Pool, PoolLimits};
use crate::shm::{Segment, SegmentIdentity, SegmentRole};
use crate::{clock, doorbell, held_file, log, sys};

/// The interval between two looks for objects whose names were removed: a system call for each worker.
const NAMES_CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Driver {
    /// Applies a configuration: adds, changes and removes pools and workers without interrupting requests.
    pub(crate) fn reconfigure(
        self: &Rc<Self>,
        config: &Config,
        return_ports: &dyn Fn(&PoolName) -> Option<u16>,
    ) -> Result<(), DispatcherError> {
        *self.config.borrow_mut() = Rc::new(config.clone());
        for wanted in &config.pools {
            let index = self.pool_index(&wanted.name).unwrap_or_else(|| self.add_pool(wanted, config));
            self.reconfigure_pool(index, wanted, config, return_ports(&wanted.name));
            self.open_missing_slots(index, config)?;
        }
        for (index, pool) in self.pools.borrow_mut().iter_mut().enumerate() {
            if config.pools.iter().all(|wanted| wanted.name != pool.config.name) && pool.config.workers > 0 {
                tracing::debug!(pool = %pool.config.name, index, "pool is removed from the configuration: draining it");
                pool.config.workers = 0;
                pool.set_return_port(None);
                pool.table.reconfigure(PoolLimits { workers: 0, ..limits(&pool.config, config) });
            }
        }
        // Every pool has a tick due at once.
        self.rearm.notify_one();
        self.close_surplus_slots();
        Ok(())
    }

    fn add_pool(&self, wanted: &config::PoolConfig, config: &Config) -> usize {
        let mut pools = self.pools.borrow_mut();
        pools.push(PoolSlots {
            config: wanted.clone(),
            table: Pool::new(limits(wanted, config), self.epoch),
            failed: None,
            slots: Vec::new(),
            return_port: None,
            spin: SpinBudget::default(),
        });
        pools.len() - 1
    }

    /// Applies the configuration of one pool.
    fn reconfigure_pool(&self, index: usize, wanted: &config::PoolConfig, config: &Config, return_port: Option<u16>) {
        let pool = &mut self.pools.borrow_mut()[index];
        pool.config = wanted.clone();
        pool.table.reconfigure(limits(wanted, config));
        pool.set_return_port(return_port);
        let missing = usize::from(wanted.workers).saturating_sub(pool.slots.len());
        pool.slots.extend(std::iter::repeat_with(|| None).take(missing));
    }

    /// Opens the slots that are not open, and those of workers that have new objects: a worker that was removed and added
    /// again, or one whose files were lost. A worker whose objects cannot be opened gets no clients until they can.
    fn open_missing_slots(self: &Rc<Self>, index: usize, config: &Config) -> Result<(), DispatcherError> {
        let (name, workers) = {
            let pool = &self.pools.borrow()[index];
            (pool.config.name.clone(), pool.config.workers)
        };
        for number in WorkerNumber::up_to(workers) {
            let id = WorkerId { pool: name.clone(), number };
            let held = self.pools.borrow()[index].slot(number).map(|slot| slot.segment.clone());
            let mut drained = None;
            if let Some(held) = held {
                let current = ipc::segment_name(&config.set.runtime_dir, &id);
                let is_current = current.is_ok_and(|name| name == held.name());
                let is_passed = self.has_passed_another(&id, &held);
                if is_current || !is_passed && ipc::open_unchecked(config, &id, None).is_err() {
                    continue;
                }
                // What the old slot contains is settled there; its incarnation has ended.
                self.on_ring(index, number);
                if held.is_role_locked(SegmentRole::Worker) {
                    continue;
                }
                let old = self.pools.borrow_mut()[index].slots[number.index()].take();
                drained = old.map(|old| old.side.drained());
            }
            match self.open_slot(config, &id, index, drained) {
                Ok(slot) => {
                    self.pools.borrow_mut()[index].slots[number.index()] = Some(slot);
                    self.unopened.borrow_mut().remove(&id);
                    self.passed.borrow_mut().remove(&id); // the slot has opened them once more
                    self.read_slot(index, number);
                }
                Err(DispatcherError::Ipc(error)) => {
                    let is_lost = ipc::object_paths(&config.set.runtime_dir, &id).iter().any(|path| !path.exists());
                    let mut unopened = self.unopened.borrow_mut();
                    if !unopened.contains_key(&id) {
                        tracing::error!(worker = %id, event = %log::Event::FilesLost,
                            "cannot open the segment and doorbells of this worker: {error}; it gets no clients until \
                             they can be opened; if files are missing, it is replaced after watchdog.start_timeout");
                    }
                    let since = unopened.entry(id).or_default();
                    *since = is_lost.then(|| since.unwrap_or(clock::now()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the supervisor has passed another segment than the slot's. Objects of the slot itself are closed.
    fn has_passed_another(&self, id: &WorkerId, held: &Segment) -> bool {
        let mut passed = self.passed.borrow_mut();
        if passed.get(id).is_some_and(|passed| passed.has_segment(held.as_fd())) {
            passed.remove(id);
        }
        passed.contains_key(id)
    }

    /// Takes an object of a worker that has new ones, and opens its slot with the last of them: their names may have been
    /// removed again.
    pub(crate) fn receive_object(self: &Rc<Self>, name: &str, fd: OwnedFd) {
        let complete = {
            let mut arriving = self.arriving.borrow_mut();
            PassedObjects::collect(&mut arriving, name, fd);
            let is_complete = |passed: &PassedObjects| passed.path(WorkerObject::Handoff).is_some();
            let id = arriving.iter().find_map(|(id, passed)| is_complete(passed).then(|| id.clone()));
            id.and_then(|id| arriving.remove_entry(&id))
        };
        let Some((id, passed)) = complete.filter(|(id, _)| self.has_worker(id)) else { return };
        let Some(index) = self.pool_index(&id.pool) else { return };
        self.passed.borrow_mut().insert(id, passed);
        self.try_open_missing_slots(index, &self.config.borrow().clone());
    }

    /// Slots that cannot be opened now are opened at one of the next looks for lost names.
    fn try_open_missing_slots(self: &Rc<Self>, index: usize, config: &Config) {
        if let Err(error) = self.open_missing_slots(index, config) {
            tracing::error!(event = %log::Event::FilesLost, "cannot open new segments: {error}; trying again");
        }
    }

    /// Looks for workers that have new objects, because the names of the old ones were removed. Once per
    /// [`NAMES_CHECK_INTERVAL`].
    pub(crate) fn check_names(self: &Rc<Self>) {
        let now = clock::now();
        if now.since(self.names_checked.get()) < NAMES_CHECK_INTERVAL {
            return;
        }
        self.names_checked.set(now);
        let config = self.config.borrow().clone();
        // A set that stops closes its sockets before the dispatcher ends.
        let is_watched = self.is_unit && !self.stops.get();
        if is_watched && config.set.runtime_dir.exists() && !probe::path(&config).exists() {
            self.probe_missing.notify_one();
        }
        let pools = self.pools.borrow().len();
        for index in 0..pools {
            if self.is_unit {
                self.store_lost_objects(index);
            }
            let is_lost = |slot: &Option<WorkerSlot>| slot.as_ref().is_none_or(|slot| slot.segment.is_unlinked());
            let any_lost = self.pools.borrow()[index].slots.iter().any(is_lost);
            if any_lost {
                self.try_open_missing_slots(index, &config);
            }
        }
    }

    /// Gives segments and doorbells whose names were removed to systemd, which passes them to the next dispatcher. Each is
    /// opened once more: the lock on the segment must end with this process.
    fn store_lost_objects(&self, index: usize) {
        let pool = &mut self.pools.borrow_mut()[index];
        let name = pool.config.name.clone();
        for (slot, number) in pool.slots.iter_mut().zip(WorkerNumber::up_to(u16::MAX)) {
            let Some(slot) = slot.as_mut().filter(|slot| slot.stored.is_empty() && slot.has_lost_names()) else {
                continue;
            };
            let id = WorkerId { pool: name.clone(), number };
            let opened = (|| {
                Ok::<_, std::io::Error>([
                    held_file::reopen(&slot.segment)?,
                    held_file::reopen(&slot.doorbell)?,
                    held_file::reopen(slot.own_doorbell.get_ref())?,
                ])
            })();
            match opened {
                Ok(opened) => {
                    tracing::warn!(worker = %id, event = %log::Event::FilesLost, "the segment or doorbells of worker {id} \
                        were removed from outside: requests continue, and the next dispatcher gets them from systemd");
                    slot.stored = self.stored_objects(&id).collect();
                    for (fd, entry) in opened.into_iter().zip(&slot.stored) {
                        self.store.add_object(fd, entry.name().to_owned());
                    }
                }
                Err(error) => tracing::error!(worker = %id, event = %log::Event::FilesLost,
                    "cannot open the objects of worker {id} once more: {error}; trying again"),
            }
        }
    }

    /// A worker's objects in the descriptor store.
    fn stored_objects(&self, id: &WorkerId) -> impl Iterator<Item = StoredFd> {
        let objects = [WorkerObject::Segment, WorkerObject::ToWorker, WorkerObject::ToDispatcher];
        objects.into_iter().map(|object| self.store.entry(object.descriptor_name(id)))
    }

    /// `drained`: the slot continues one that this dispatcher has settled, and whose worker was out of service or not.
    fn open_slot(
        self: &Rc<Self>,
        config: &Config,
        id: &WorkerId,
        index: usize,
        drained: Option<bool>,
    ) -> Result<WorkerSlot, DispatcherError> {
        let passed = self.passed.borrow();
        let passed = passed.get(id);
        let return_port = self.pools.borrow()[index].return_port;
        let WorkerIpc { segment, to_worker, to_dispatcher } = ipc::open_unchecked(config, id, passed)?;
        let undamaged = segment.damage().is_none();
        if !segment
            .lock_role(SegmentRole::Dispatcher)
            .map_err(|e| DispatcherError::System("locking a segment", e.into()))?
        {
            let pid = DispatcherSide::last_process(&segment).map_or(0, |process| process.pid);
            return Err(DispatcherError::Taken(pid));
        }
        let mut side = DispatcherSide::attach(segment.clone(), self.epoch, self.process, return_port);
        match drained {
            Some(drained) if undamaged => side.continue_copy(drained),
            None if undamaged => self.recover_connection(&side),
            _ => side.discard_inherited(),
        }
        let own_doorbell =
            sys::when_readable(to_dispatcher.into()).map_err(|e| DispatcherError::System("a doorbell", e))?;
        let own_doorbell = Rc::new(own_doorbell);
        let readiness = own_doorbell.clone();
        let mut stored: Vec<_> = passed.iter().flat_map(|_| self.stored_objects(id)).collect();
        if !segment.is_unlinked() {
            stored.clear(); // the worker has new objects: removes the old ones from the store
        }
        let (driver, n) = (Rc::downgrade(self), id.number);
        let doorbell_task = tokio::task::spawn_local(async move {
            while let Ok(mut ready) = readiness.readable().await {
                ready.clear_ready();
                doorbell::clear(readiness.get_ref());
                let Some(driver) = driver.upgrade() else { return };
                driver.on_ring(index, n);
            }
        });
        Ok(WorkerSlot {
            identity: SegmentIdentity { set_epoch: segment.set_epoch(), digest: config.digest_of(id) },
            last_epoch: Incarnation::load(&*segment).map(|life| life.epoch).filter(|_| undamaged),
            reads: (0, 0),
            checked_at: None,
            polled: false,
            side,
            segment,
            doorbell: to_worker,
            handoff_sender: HandoffSender::new(
                ipc::handoff_path(&config.set.runtime_dir, id),
                passed.and_then(|passed| passed.path(WorkerObject::Handoff)).map(PathBuf::as_path),
            ),
            lent: None,
            token: Token::new(0),
            own_doorbell,
            doorbell_task: doorbell_task.abort_handle(),
            stored,
        })
    }

    /// The doorbell rang: the worker has changed its slot, or the watchdog reports its death.
    fn on_ring(&self, index: usize, n: WorkerNumber) {
        if let Some(slot) = self.pools.borrow_mut()[index].slot_mut(n) {
            slot.checked_at = None;
        }
        self.read_slot(index, n);
    }

    /// Closes the slots of workers that the pool has removed.
    pub(super) fn close_surplus_slots(&self) {
        for pool in self.pools.borrow_mut().iter_mut() {
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
        slot_scan: config.front.slot_scan,
        // The old incarnation delivers its last responses, then the next one starts.
        recycle_timeout: config.front.body_timeout.max(config.front.linger_timeout) + config.watchdog.start_timeout,
    }
}
