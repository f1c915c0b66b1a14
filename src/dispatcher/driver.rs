//! The dispatcher's pools, shared by its tasks on one thread: it reports events to them, and wakes the clients that wait.
//!
//! No borrow of the pools is held while a task waits.

mod actions;
mod busy_poll;
mod pool_set;
mod recovered;
mod slot_opener;
mod timers;
mod waiters;
mod unopened_objects;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::connection::{Connection, HandoffOutcome};
use super::error::DispatcherError;
use super::fdstore::DescriptorStore;
use super::grant::GrantResult;
use super::pool_slots::{PoolSlots, SlotIndex};
use super::refusal::PoolAvailability;
use crate::backoff;
use crate::config::Config;
use crate::exchange::{DispatcherSide, Word};
use crate::ids::{Epoch, LeaseTerms, PoolName, WorkerId, WorkerNumber};
use crate::ipc::{self, PassedObjects};
use crate::pool::{ClientId, Peer, PoolEvent, Refusal};
use crate::probe::{FailedPool, PoolReport, socket_path};
use crate::shm::Segment;
use pool_set::PoolSet;
use recovered::RecoveredConnection;
use slot_opener::SlotOpener;
use timers::Timers;
use unopened_objects::UnopenedObjects;
use waiters::Waiter;

/// A client is watched for its disconnection only if it waits longer: the watch costs system calls.
pub(super) const WATCH_AFTER: Duration = Duration::from_millis(20);

/// The pools, and what tells tasks of the dispatcher that something has happened to them.
pub(super) struct Driver {
    pools: RefCell<PoolSet>,
    timers: Timers,
    /// The supervisor's descriptor store.
    pub store: DescriptorStore,
    /// Whether systemd has started this process.
    is_unit: bool,
    /// Whether the set is stopping.
    pub stops: Cell<bool>,
    /// Notified when the dispatcher stops accepting connections.
    pub stop_accepting: Notify,
    /// Notified when `probe.sock` is missing and systemd, which does not notice it, has bound it.
    pub probe_missing: Notify,
}

impl Driver {
    /// Opens every slot of the set, and finds what an earlier dispatcher left in them; the caller adopts its connections,
    /// then calls [`Driver::read_slots`]. `return_ports` maps a pool to the port of its listener; `passed` are the objects
    /// that the supervisor holds because their names were removed.
    pub(super) fn open(
        config: &Config,
        return_ports: &dyn Fn(&PoolName) -> Option<u16>,
        passed: BTreeMap<WorkerId, PassedObjects>,
        store: DescriptorStore,
    ) -> Result<Rc<Self>, DispatcherError> {
        let segments = usable_segments(config, &passed)?;
        let epoch = next_epoch(&segments);
        backoff::delay_start(&segments.iter().collect::<Vec<_>>(), Word::DISPATCHER_LAST_START, config)?;
        drop(segments);
        let driver = Rc::new_cyclic(|driver: &Weak<Self>| {
            let driver = driver.clone();
            let on_ring = Rc::new(move |at| driver.upgrade().into_iter().for_each(|driver| driver.on_ring(at)));
            let opener = SlotOpener::new(epoch, UnopenedObjects::new(passed), store.clone(), on_ring);
            Self {
                pools: RefCell::new(PoolSet::new(epoch, config, opener)),
                timers: Timers::default(),
                store,
                is_unit: backoff::is_started_by_systemd(),
                stops: Cell::default(),
                stop_accepting: Notify::new(),
                probe_missing: Notify::new(),
            }
        });
        driver.change(|pools| pools.reconfigure(config, return_ports))?;
        Ok(driver)
    }

    /// Reads every slot of pools that were reconfigured.
    pub(super) fn read_slots(&self) {
        self.change(PoolSet::tick);
    }

    /// Changes the pools; the timers follow.
    fn change<R>(&self, change: impl FnOnce(&mut PoolSet) -> R) -> R {
        let mut pools = self.pools.borrow_mut();
        let result = change(&mut pools);
        self.timers.set(pools.deadline());
        result
    }

    /// Looks at one pool, if it exists.
    fn look<R>(&self, pool: &PoolName, look: impl FnOnce(&PoolSlots) -> R) -> Option<R> {
        self.pools.borrow().get(pool).map(look)
    }

    /// This incarnation.
    pub(super) fn epoch(&self) -> Epoch {
        self.pools.borrow().epoch()
    }

    /// Notes in the slots that this incarnation is ready.
    pub(super) fn note_ready(&self) {
        for slot in self.pools.borrow().all().iter().flat_map(|pool| &pool.slots).flatten() {
            backoff::note_ready(&slot.segment, Word::DISPATCHER_LAST_START);
        }
    }

    /// Resets the restart delay before a planned exit.
    pub(super) fn clear_failures(&self) {
        for slot in self.pools.borrow().all().iter().flat_map(|pool| &pool.slots).flatten() {
            backoff::clear_failures(&slot.segment, Word::DISPATCHER_LAST_START);
        }
    }

    /// See [`PoolSet::reconfigure`]; then reads every slot.
    pub(super) fn reconfigure(
        &self,
        config: &Config,
        return_ports: &dyn Fn(&PoolName) -> Option<u16>,
    ) -> Result<(), DispatcherError> {
        self.change(|pools| pools.reconfigure(config, return_ports))?;
        self.read_slots();
        Ok(())
    }

    /// Handles an event of one pool.
    pub(super) fn handle(&self, pool: &PoolName, event: PoolEvent) {
        self.change(|pools| pools.handle(pool, event));
    }

    /// Handles an event of every pool.
    pub(super) fn handle_in_all(&self, event: PoolEvent) {
        self.change(|pools| pools.handle_in_all(event));
    }

    /// Reads one slot: its worker does not ring when it claims a connection.
    pub(super) fn read_slot(&self, at: SlotIndex) {
        self.change(|pools| pools.read_slot(at));
    }

    fn on_ring(&self, at: SlotIndex) {
        self.change(|pools| pools.on_ring(at));
    }

    /// Takes an object of a worker that has new ones.
    pub(super) fn receive_object(&self, name: &str, fd: OwnedFd) {
        self.change(|pools| pools.receive_object(name, fd));
    }

    /// See [`PoolSet::set_failed_pools`].
    pub(super) fn set_failed_pools(&self, failed: &[FailedPool]) {
        self.change(|pools| pools.set_failed_pools(failed));
    }

    /// See [`PoolSet::report`].
    pub(super) fn report(&self) -> Vec<PoolReport> {
        self.change(PoolSet::report)
    }

    /// Reads the polled slots that have changed. For a thread that always has something to do.
    pub(super) fn poll(&self) {
        self.change(PoolSet::poll);
    }

    /// See [`PoolSet::poll_before_sleep`].
    pub(super) fn poll_before_sleep(&self) -> bool {
        self.change(PoolSet::poll_before_sleep)
    }

    /// Sends each pool a tick when its deadline is reached; never returns.
    pub(super) async fn run_timers(&self) {
        loop {
            let deadline = self.pools.borrow().deadline();
            if self.timers.reach(deadline).await {
                self.change(PoolSet::tick);
            }
        }
    }

    /// Waits for a worker of `pool`. Dropping the future leaves the queue.
    pub(super) async fn lease(&self, pool: &PoolName, peer: Peer) -> GrantResult {
        let (sender, receiver) = oneshot::channel();
        let ticket = self.enqueue(pool, Waiter::Redirect(sender));
        self.handle(pool, PoolEvent::Client(ticket.id, peer));
        receiver.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Passes a connection to a worker of `pool`, and waits for the end of its lease. Dropping the future leaves the
    /// queue.
    pub(super) async fn hand_off(&self, pool: &PoolName, peer: Peer, connection: &Rc<Connection>) -> HandoffOutcome {
        let ticket = self.enqueue(pool, Waiter::Handoff(connection.clone()));
        self.handle(pool, PoolEvent::Connection(ticket.id, peer));
        connection.outcome().await
    }

    fn enqueue<'a>(&'a self, pool: &'a PoolName, waiter: Waiter) -> QueueTicket<'a> {
        self.poll();
        let id = self.pools.borrow_mut().performer.waiters.add(waiter);
        QueueTicket { driver: self, pool, id }
    }

    /// Looks for files that were removed from outside: `probe.sock`, and the names of segments and doorbells.
    pub(super) fn check_names(&self) {
        if !self.pools.borrow_mut().opener.objects.is_check_due() {
            return;
        }
        // A set that stops closes its sockets before the dispatcher ends.
        if self.is_unit && !self.stops.get() {
            let config = self.pools.borrow().config().clone();
            if config.set.runtime_dir.exists() && !socket_path(&config).exists() {
                self.probe_missing.notify_one();
            }
        }
        self.change(|pools| pools.check_names(self.is_unit));
    }

    /// Sends one line for `systemctl status`, if it has changed.
    pub(super) fn notify_status(&self) {
        self.store.send_status(self.status());
    }

    /// One line for `systemctl status`.
    pub(super) fn status(&self) -> String {
        let pools = self.pools.borrow();
        let workers = || pools.all().iter().flat_map(|pool| pool.table.workers());
        let serving = workers().filter(|worker| worker.up && !worker.drained).count();
        let busy = workers().filter(|worker| worker.up && worker.is_held()).count();
        format!("serving with {serving} of {} workers, {busy} busy, {} waiting", workers().count(), self.waiting())
    }

    /// The number of queued clients.
    pub(super) fn waiting(&self) -> usize {
        self.pools.borrow().all().iter().map(|pool| pool.table.waiting().0).sum()
    }

    /// Whether there is a pool of this name.
    pub(super) fn has_pool(&self, pool: &PoolName) -> bool {
        self.look(pool, |_| ()).is_some()
    }

    /// Whether the configuration in force has this worker.
    pub(super) fn has_worker(&self, id: &WorkerId) -> bool {
        self.look(&id.pool, |pool| pool.has_worker(id.number)).unwrap_or_default()
    }

    /// Whether this worker is about to get new objects; see [`PoolSet::is_being_replaced`].
    pub(super) fn is_being_replaced(&self, id: &WorkerId) -> bool {
        self.change(|pools| pools.is_being_replaced(id))
    }

    /// Whether an operator keeps this worker out of service.
    pub(super) fn is_drained(&self, id: &WorkerId) -> bool {
        self.look(&id.pool, |pool| pool.is_drained(id.number)).unwrap_or_default()
    }

    /// The workers of a pool, for the text of a refusal.
    pub(super) fn availability(&self, pool: &PoolName) -> PoolAvailability {
        self.look(pool, PoolSlots::availability).unwrap_or_default()
    }

    /// Whether the workers of a pool speak HTTP.
    pub(super) fn speaks_http(&self, pool: &PoolName) -> bool {
        self.look(pool, PoolSlots::speaks_http).unwrap_or(true)
    }

    /// Whether a connection that was lent when the previous dispatcher ended was claimed by no worker.
    pub(super) fn is_unclaimed(&self, mark: u32) -> bool {
        matches!(self.pools.borrow().opener.recovered.get(mark), Some(RecoveredConnection::Unclaimed))
    }

    /// The worker of `pool` that had claimed the connection with this mark when the previous dispatcher ended.
    pub(super) fn claim_of(&self, pool: &PoolName, mark: u32) -> Option<(SlotIndex, LeaseTerms)> {
        let pools = self.pools.borrow();
        match pools.opener.recovered.get(mark) {
            Some(RecoveredConnection::Claimed(at, terms)) if pools.all()[at.0].config.name == *pool => {
                Some((at, terms))
            }
            _ => None,
        }
    }

    /// Takes the place of the previous dispatcher at a connection that a worker has claimed: its outcome follows when the
    /// slots are read.
    pub(super) fn adopt(&self, pool: &PoolName, n: WorkerNumber, terms: LeaseTerms, connection: Rc<Connection>) {
        let client = self.pools.borrow_mut().performer.waiters.add(Waiter::Handoff(connection));
        self.handle(pool, PoolEvent::Adopted(n, client, terms));
    }
}

/// The position of a client in the queue; dropped without a result, the client leaves the queue.
struct QueueTicket<'a> {
    driver: &'a Driver,
    pool: &'a PoolName,
    id: ClientId,
}

impl Drop for QueueTicket<'_> {
    fn drop(&mut self) {
        let is_waiting = self.driver.pools.borrow_mut().performer.waiters.remove(self.id);
        if is_waiting {
            self.driver.handle(self.pool, PoolEvent::Disconnected(self.id));
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
