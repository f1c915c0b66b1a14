//! Connects pools, slots, doorbells and waiting clients: events in, actions out. The decisions are the pools'.
//!
//! The child modules are `impl` blocks of [`Driver`], one per subject.

mod actions;
mod busy_poll;
mod report;
mod slots;
mod timers;
mod waiters;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::connection::Connection;
use super::error::DispatcherError;
use super::fdstore::DescriptorStore;
use super::grant::GrantResult;
use super::pool_slots::{PoolSlots, SlotIndex};
use super::token_source::TokenSource;
use crate::config::Config;
use crate::exchange::{DispatcherSide, Word};
use crate::ids::{Epoch, Monotonic, PoolName, ProcessId, WorkerId, WorkerNumber};
use crate::ipc::{self, PassedObjects};
use crate::pool::{ClientId, PoolEvent};
use crate::shm::Segment;
use crate::{backoff, clock, procfs};
pub(crate) use busy_poll::on_thread_park;

/// A client is watched for its disconnection only if it waits longer: the watch costs system calls.
pub(super) const WATCH_AFTER: Duration = Duration::from_millis(20);

/// The state of the dispatcher, shared by its tasks on one thread.
pub(super) struct Driver {
    epoch: Epoch,
    /// Pid and start time.
    process: ProcessId,
    /// In force since the last reload.
    config: RefCell<Rc<Config>>,
    /// Objects that the supervisor passed because their names were removed, of slots that are not open yet.
    passed: RefCell<BTreeMap<WorkerId, PassedObjects>>,
    /// New objects of workers of which some have not arrived yet.
    arriving: RefCell<BTreeMap<WorkerId, PassedObjects>>,
    /// The supervisor's descriptor store.
    pub store: DescriptorStore,
    /// Whether systemd has started this process.
    is_unit: bool,
    /// Whether the set is stopping.
    pub(super) stops: Cell<bool>,
    /// The workers whose objects cannot be opened, and since when files of them are missing.
    unopened: RefCell<BTreeMap<WorkerId, Option<Monotonic>>>,
    /// When the slots were last checked for lost names.
    names_checked: Cell<Monotonic>,
    pools: RefCell<Vec<PoolSlots>>,
    waiters: RefCell<HashMap<ClientId, Waiter>>,
    next_client: Cell<ClientId>,
    /// The number of the last lease.
    leases: Cell<u64>,
    /// Counts the calls of [`Driver::run`], from 1.
    passes: Cell<u64>,
    /// The deadline that the timer task sleeps for.
    armed: Cell<Option<Monotonic>>,
    rearm: Notify,
    /// Notified when the dispatcher stops accepting connections.
    pub stop_accepting: Notify,
    /// Notified when `probe.sock` is missing and systemd, which does not notice it, has bound it.
    pub probe_missing: Notify,
    /// The status that was last sent to systemd.
    sent_status: RefCell<String>,
    tokens: TokenSource,
    cores: usize,
    /// Slots that are polled, and those in which a change was found that has not been handled.
    polled: RefCell<Vec<SlotIndex>>,
    updated: RefCell<VecDeque<SlotIndex>>,
    update_found: Notify,
    polled_at: Cell<Monotonic>,
    /// Marks of connections that were lent when the previous dispatcher ended, and whether no worker has claimed them.
    recovered: RefCell<HashMap<u32, bool>>,
}

/// A client that waits for a worker.
enum Waiter {
    /// It is redirected to the worker.
    Redirect(oneshot::Sender<GrantResult>),
    /// Its connection is passed to the worker.
    Handoff(Rc<Connection>),
}

impl Driver {
    /// Opens every slot of the set and recovers what an earlier dispatcher left in them. `return_ports` maps a pool to
    /// the port of its listener; `passed` are the objects that the supervisor holds because their names were removed.
    pub(super) fn open(
        config: &Config,
        return_ports: &dyn Fn(&PoolName) -> Option<u16>,
        passed: BTreeMap<WorkerId, PassedObjects>,
        store: DescriptorStore,
    ) -> Result<Rc<Self>, DispatcherError> {
        let segments = usable_segments(config, &passed)?;
        let epoch = next_epoch(&segments);
        backoff::delay_start(&segments.iter().collect::<Vec<_>>(), Word::DISPATCHER_LAST_START, config);
        drop(segments);
        let driver = Rc::new(Self {
            epoch,
            process: procfs::this_process(),
            config: RefCell::new(Rc::new(config.clone())),
            passed: RefCell::new(passed),
            arriving: RefCell::default(),
            store,
            is_unit: backoff::is_started_by_systemd(),
            stops: Cell::default(),
            unopened: RefCell::default(),
            names_checked: Cell::new(clock::now()),
            pools: RefCell::default(),
            waiters: RefCell::default(),
            next_client: Cell::new(1),
            leases: Cell::new(0),
            passes: Cell::new(1),
            armed: Cell::new(None),
            rearm: Notify::new(),
            stop_accepting: Notify::new(),
            probe_missing: Notify::new(),
            sent_status: RefCell::default(),
            tokens: TokenSource::default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            polled: RefCell::default(),
            updated: RefCell::default(),
            update_found: Notify::new(),
            polled_at: Cell::new(Monotonic(0)),
            recovered: RefCell::default(),
        });
        driver.reconfigure(config, return_ports)?;
        driver.register_on_thread();
        Ok(driver)
    }

    /// This incarnation.
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Resets the restart delay before a planned exit.
    pub(super) fn clear_failures(&self) {
        for slot in self.pools.borrow().iter().flat_map(|pool| &pool.slots).flatten() {
            backoff::clear_failures(&slot.segment, Word::DISPATCHER_LAST_START);
        }
    }

    /// Handles an event of one pool.
    pub(super) fn handle(&self, pool: &PoolName, event: PoolEvent) {
        if let Some(index) = self.pool_index(pool) {
            self.run(index, Some(event), VecDeque::new());
        }
    }

    /// Handles an event of every pool.
    pub(super) fn handle_in_all(&self, event: PoolEvent) {
        let pools = self.pools.borrow().len(); // not in the head of the loop, which would keep the borrow
        for index in 0..pools {
            self.run(index, Some(event), VecDeque::new());
        }
    }

    fn pool_index(&self, pool: &PoolName) -> Option<usize> {
        self.pools.borrow().iter().position(|slots| slots.config.name == *pool)
    }

    fn read_slot(&self, index: usize, n: WorkerNumber) {
        self.run(index, None, VecDeque::from([n]));
    }

    /// Handles `event`, reads the slots of the workers `reads`, and performs all actions that follow.
    fn run(&self, index: usize, event: Option<PoolEvent>, mut reads: VecDeque<WorkerNumber>) {
        let mut pools = self.pools.borrow_mut();
        let pool = &mut pools[index];
        let pass = self.passes.replace(self.passes.get() + 1);
        let mut next = event;
        loop {
            let event = match next.take() {
                Some(event) => event,
                None => match reads.pop_front() {
                    // Read immediately before the decision, so that it includes every earlier action.
                    Some(n) if pool.may_read(n, pass) => PoolEvent::SlotRead(n, pool.read_slot(n)),
                    Some(_) => continue,
                    None => break,
                },
            };
            pool.table.count_from(self.leases.get());
            let actions = pool.table.handle(clock::now(), event);
            self.leases.set(pool.table.leases());
            for action in actions {
                if let Some(n) = self.perform(index, pool, action)
                    && !reads.contains(&n)
                {
                    reads.push_back(n);
                }
            }
        }
        let deadline = pool.table.deadline();
        drop(pools);
        if deadline.is_some_and(|at| self.armed.get().is_none_or(|armed| at < armed)) {
            self.rearm.notify_one();
        }
    }
}

/// The undamaged segments. Damage of one worker's segment does not prevent a start; but if every segment belongs to
/// another version or another set, the configuration is to blame.
fn usable_segments(
    config: &Config,
    passed: &BTreeMap<WorkerId, PassedObjects>,
) -> Result<Vec<Arc<Segment>>, DispatcherError> {
    let (mut segments, mut foreign, mut any_damaged) = (Vec::new(), None, false);
    for id in config.workers() {
        match ipc::open_unchecked(config, &id, passed.get(&id)).and_then(ipc::checked) {
            Ok(parts) => segments.push(parts.segment),
            Err(error) => match error.damage() {
                Some(damage) if damage.is_well_formed() => foreign = Some(error),
                Some(_) => any_damaged = true,
                None => {} // see `open_missing_slots`
            },
        }
    }
    match foreign {
        Some(error) if segments.is_empty() && !any_damaged => Err(error.into()),
        _ => Ok(segments),
    }
}

/// One more than the highest epoch in the slots: no earlier dispatcher has granted leases under it.
fn next_epoch(segments: &[Arc<Segment>]) -> Epoch {
    let used: BTreeSet<Epoch> = segments.iter().filter_map(DispatcherSide::last_epoch).collect();
    let mut epoch = used.last().map_or(Epoch::FIRST, |last| last.next());
    // A hostile worker may have written the highest possible epoch, after which the numbers wrap.
    while used.contains(&epoch) {
        epoch = epoch.next();
    }
    epoch
}
