//! Opens and closes pools and slots, at the start and at each reload.

use std::rc::Rc;

use super::Driver;
use crate::config::{self, Config};
use crate::dispatcher::error::DispatcherError;
use crate::dispatcher::pool_slots::{PoolSlots, WorkerSlot};
use crate::exchange::{DispatcherSide, Incarnation, SpinBudget};
use crate::handoff::HandoffSender;
use crate::ids::{PoolName, Token, WorkerId, WorkerNumber};
use crate::ipc::{self, WorkerIpc};
use crate::pool::{Pool, PoolLimits};
use crate::shm::{SegmentIdentity, SegmentRole};
use crate::{doorbell, sys};

impl Driver {
    /// Applies a configuration: adds, changes and removes pools and workers without interrupting requests.
    pub(crate) fn reconfigure(
        self: &Rc<Self>,
        config: &Config,
        return_ports: &dyn Fn(&PoolName) -> Option<u16>,
    ) -> Result<(), DispatcherError> {
        for wanted in &config.pools {
            let index = self.pool_index(&wanted.name).unwrap_or_else(|| self.add_pool(wanted, config));
            let return_port = return_ports(&wanted.name);
            for id in self.reconfigure_pool(index, wanted, config, return_port) {
                let slot = self.open_slot(config, &id, index, return_port)?;
                self.pools.borrow_mut()[index].slots[id.number.index()] = Some(slot);
                self.read_slot(index, id.number);
            }
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
            spin: SpinBudget::default(),
        });
        pools.len() - 1
    }

    /// Applies the configuration of one pool. Returns the workers without an open slot.
    fn reconfigure_pool(
        &self,
        index: usize,
        wanted: &config::PoolConfig,
        config: &Config,
        return_port: Option<u16>,
    ) -> Vec<WorkerId> {
        let pool = &mut self.pools.borrow_mut()[index];
        pool.config = wanted.clone();
        pool.table.reconfigure(limits(wanted, config));
        pool.set_return_port(return_port);
        let mut closed = Vec::new();
        for n in WorkerNumber::up_to(wanted.workers) {
            if n.index() >= pool.slots.len() {
                pool.slots.push(None);
            }
            // A worker that was removed and added again has a new segment, while the old one may still be open.
            let id = WorkerId { pool: wanted.name.clone(), number: n };
            let current = ipc::segment_name(&config.set.runtime_dir, &id);
            let slot = &mut pool.slots[n.index()];
            if slot.as_ref().is_none_or(|slot| current.is_ok_and(|name| name != slot.segment.name())) {
                *slot = None;
                closed.push(id);
            }
        }
        closed
    }

    fn open_slot(
        self: &Rc<Self>,
        config: &Config,
        id: &WorkerId,
        index: usize,
        return_port: Option<u16>,
    ) -> Result<WorkerSlot, DispatcherError> {
        let WorkerIpc { segment, to_worker, to_dispatcher } = ipc::open_unchecked(config, id)?;
        let undamaged = segment.damage().is_none();
        if !segment
            .lock_role(SegmentRole::Dispatcher)
            .map_err(|e| DispatcherError::System("locking a segment", e.into()))?
        {
            let pid = DispatcherSide::last_process(&segment).map_or(0, |process| process.pid);
            return Err(DispatcherError::Taken(pid));
        }
        let mut side = DispatcherSide::attach(segment.clone(), self.epoch, self.process, return_port);
        if undamaged {
            self.recover_connection(&side);
        } else {
            side.discard_inherited();
        }
        let readiness =
            sys::when_readable(to_dispatcher.into()).map_err(|e| DispatcherError::System("a doorbell", e))?;
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
            handoff_sender: HandoffSender::new(ipc::handoff_path(&config.set.runtime_dir, id)),
            lent: None,
            token: Token::new(0),
            doorbell_task: doorbell_task.abort_handle(),
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
        // The old incarnation closes its connections, then the next one starts.
        recycle_timeout: config.front.linger_timeout + config.watchdog.start_timeout,
    }
}
