//! Where everything meets: pools, slots, bells and waiting clients. Events in, actions out, no decisions.

mod busy_poll;
mod report;
mod waiters;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::handoff::Outcome;
pub use super::pool_slots::{Grant, Verdict};
use super::pool_slots::{PoolSlots, Slot, WorkerName};
use super::token_source::TokenSource;
use super::{DispatcherError, slot};
use crate::clock;
use crate::config::{self, Config};
use crate::exchange::{DispatcherSide, Incarnation, SpinBudget, Word};
use crate::handoff::HandoffSender;
use crate::ids::{Epoch, LeaseTerms, Monotonic, PoolName, Token, WorkerId, WorkerNumber};
use crate::ipc::{self, WorkerIpc};
use crate::pool::{ClientId, Pool, PoolAction, PoolEvent, PoolLimits};
use crate::shm::{Segment, SegmentIdentity, SegmentRole};
use crate::{backoff, doorbell, log, process_tree, sys};
pub use busy_poll::before_sleep;
use waiters::Waiter;

/// The dispatcher's state, shared by its tasks, all on one thread.
pub struct Driver {
    epoch: Epoch,
    process: (u32, u64),
    rooms: RefCell<Vec<PoolSlots>>,
    clients: RefCell<HashMap<ClientId, Waiter>>,
    next_client: Cell<ClientId>,
    /// How many leases this dispatcher has given.
    leases: Cell<u64>,
    /// Counts the times that something happened, from 1.
    goes: Cell<u64>,
    armed: Cell<Option<Monotonic>>,
    rearm: Notify,
    /// Told when nobody is to be accepted any more.
    pub hold: Notify,
    /// What systemd has been told last.
    told: RefCell<String>,
    chance: TokenSource,
    cores: usize,
    /// Slots that are watched, and those where something was seen that nobody has looked at yet.
    expected: RefCell<Vec<busy_poll::SlotIndex>>,
    news: RefCell<VecDeque<busy_poll::SlotIndex>>,
    heard: Notify,
    glanced: Cell<Monotonic>,
    /// Marks of connections that were lent when the last dispatcher ended, and whether no worker has taken them.
    found: RefCell<HashMap<u32, bool>>,
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
        // Its last answers, then its start.
        making_room: config.front.linger_timeout + config.watchdog.start_timeout,
    }
}

impl Driver {
    /// Takes every slot of the set and reads back what an earlier dispatcher left in them.
    pub fn open(config: &Config, return_ports: &dyn Fn(&PoolName) -> Option<u16>) -> Result<Rc<Self>, DispatcherError> {
        let pid = std::process::id();
        let segments = undamaged(config)?;
        let epoch = next_epoch(&segments);
        backoff::delay_start(&segments.iter().collect::<Vec<_>>(), Word::DISPATCHER_LAST_START, config);
        drop(segments);
        let desk = Rc::new(Self {
            epoch,
            process: (pid, process_tree::read_process(pid).map_or(0, |process| process.started)),
            rooms: RefCell::default(),
            clients: RefCell::default(),
            next_client: Cell::new(1),
            leases: Cell::new(0),
            goes: Cell::new(1),
            armed: Cell::new(None),
            rearm: Notify::new(),
            hold: Notify::new(),
            told: RefCell::default(),
            chance: TokenSource::default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            expected: RefCell::default(),
            news: RefCell::default(),
            heard: Notify::new(),
            glanced: Cell::new(Monotonic(0)),
            found: RefCell::default(),
        });
        desk.reconfigure(config, return_ports)?;
        desk.be_here();
        Ok(desk)
    }

    /// This incarnation.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Takes a new configuration: pools and workers come, change and go; nobody who is served notices.
    pub fn reconfigure(
        self: &Rc<Self>,
        config: &Config,
        return_ports: &dyn Fn(&PoolName) -> Option<u16>,
    ) -> Result<(), DispatcherError> {
        for wanted in &config.pools {
            let known = self.rooms.borrow().iter().position(|room| room.config.name == wanted.name);
            let index = known.unwrap_or_else(|| {
                let pool = Pool::new(limits(wanted, config), self.epoch);
                let mut rooms = self.rooms.borrow_mut();
                rooms.push(PoolSlots {
                    config: wanted.clone(),
                    pool,
                    failed: None,
                    slots: Vec::new(),
                    patience: SpinBudget::default(),
                });
                rooms.len() - 1
            });
            let mut new = Vec::new();
            {
                let room = &mut self.rooms.borrow_mut()[index];
                room.config = wanted.clone();
                room.pool.reconfigure(limits(wanted, config));
                room.set_return_port(return_ports(&wanted.name));
                for n in 1..=wanted.workers {
                    if usize::from(n) > room.slots.len() {
                        room.slots.push(None);
                    }
                    // A worker that left and came back has another segment than the one we may still have open.
                    let id = WorkerId { pool: wanted.name.clone(), number: WorkerNumber::of(n) };
                    let current = ipc::segment_name(&config.set.runtime_dir, &id);
                    let slot = &mut room.slots[usize::from(n) - 1];
                    if slot.as_ref().is_none_or(|slot| current.is_ok_and(|name| name != slot.segment.name())) {
                        *slot = None;
                        new.push(n);
                    }
                }
            }
            for n in new {
                let id = WorkerId { pool: wanted.name.clone(), number: WorkerNumber::of(n) };
                let slot = self.take_slot(config, &id, index, return_ports(&wanted.name))?;
                self.rooms.borrow_mut()[index].slots[usize::from(n) - 1] = Some(slot);
                self.look(index, n);
            }
        }
        for (index, room) in self.rooms.borrow_mut().iter_mut().enumerate() {
            if config.pools.iter().all(|pool| pool.name != room.config.name) && room.config.workers > 0 {
                tracing::debug!(pool = %room.config.name, index, "pool is leaving");
                room.config.workers = 0;
                room.set_return_port(None);
                room.pool.reconfigure(PoolLimits { workers: 0, ..limits(&room.config, config) });
            }
        }
        // Every pool has a tick due at once.
        self.rearm.notify_one();
        self.drop_surplus();
        Ok(())
    }

    fn take_slot(
        self: &Rc<Self>,
        config: &Config,
        id: &WorkerId,
        index: usize,
        return_port: Option<u16>,
    ) -> Result<Slot, DispatcherError> {
        let WorkerIpc { segment, to_worker, to_dispatcher } = ipc::open_unchecked(config, id)?;
        let undamaged = segment.damage().is_none();
        if !segment
            .lock_role(SegmentRole::Dispatcher)
            .map_err(|e| DispatcherError::System("locking a segment", e.into()))?
        {
            let pid = DispatcherSide::last_process(&segment).map_or(0, |(pid, _)| pid);
            return Err(DispatcherError::Taken(pid));
        }
        let mut asker = DispatcherSide::attach(segment.clone(), self.epoch, self.process, return_port);
        if undamaged {
            self.find(&asker);
        } else {
            asker.discard_inherited();
        }
        let readiness = sys::when_readable(to_dispatcher.into()).map_err(|e| DispatcherError::System("a bell", e))?;
        let (desk, n) = (Rc::downgrade(self), id.number.get());
        let listening = tokio::task::spawn_local(async move {
            while let Ok(mut ready) = readiness.readable().await {
                ready.clear_ready();
                doorbell::clear(readiness.get_ref());
                let Some(desk) = desk.upgrade() else { return };
                desk.hear(index, n);
            }
        });
        Ok(Slot {
            identity: SegmentIdentity { set_epoch: segment.set_epoch(), digest: config.digest_of(id) },
            last: Incarnation::load(&*segment).map(|life| life.epoch).filter(|_| undamaged),
            looked: (0, 0),
            sound_at: None,
            watched: false,
            asker,
            segment,
            ring: to_worker,
            post: HandoffSender::new(ipc::handoff_path(&config.set.runtime_dir, id)),
            lent: None,
            token: Token::new(0),
            listening: listening.abort_handle(),
        })
    }

    /// Closes the slots of workers that the pool has forgotten.
    fn drop_surplus(&self) {
        for room in self.rooms.borrow_mut().iter_mut() {
            room.slots.truncate(room.pool.workers().len());
        }
    }

    fn index(&self, pool: &PoolName) -> Option<usize> {
        self.rooms.borrow().iter().position(|room| room.config.name == *pool)
    }

    /// Looks at a slot because it rang: its worker has something to say, or the watchdog of its death.
    fn hear(&self, index: usize, n: u16) {
        if let Some(slot) = self.rooms.borrow_mut()[index].slots.get_mut(usize::from(n) - 1).and_then(Option::as_mut) {
            slot.sound_at = None;
        }
        self.look(index, n);
    }

    fn look(&self, index: usize, n: u16) {
        self.feed(index, None, VecDeque::from([n]));
    }

    /// Tells one pool what happened, and does what it says.
    pub fn tell(&self, pool: &PoolName, event: PoolEvent) {
        if let Some(index) = self.index(pool) {
            self.feed(index, Some(event), VecDeque::new());
        }
    }

    /// Tells every pool.
    pub fn tell_all(&self, event: PoolEvent) {
        let rooms = self.rooms.borrow().len(); // not in the loop's head, which would keep the borrow
        for index in 0..rooms {
            self.feed(index, Some(event), VecDeque::new());
        }
    }

    fn feed(&self, index: usize, event: Option<PoolEvent>, mut looks: VecDeque<u16>) {
        let mut rooms = self.rooms.borrow_mut();
        let room = &mut rooms[index];
        let go = self.goes.replace(self.goes.get() + 1);
        let mut next = event;
        loop {
            let event = match next.take() {
                Some(event) => event,
                None => match looks.pop_front() {
                    // Read right before it is judged: every earlier action is in it.
                    Some(n) if room.may_look(n, go) => PoolEvent::Seen(n, room.see(n)),
                    Some(_) => continue,
                    None => break,
                },
            };
            room.pool.count_from(self.leases.get());
            let actions = room.pool.handle(clock::now(), event);
            self.leases.set(room.pool.leases());
            for action in actions {
                if let Some(n) = self.perform(index, room, action)
                    && !looks.contains(&n)
                {
                    looks.push_back(n);
                }
            }
        }
        let deadline = room.pool.deadline();
        drop(rooms);
        if deadline.is_some_and(|at| self.armed.get().is_none_or(|armed| at < armed)) {
            self.rearm.notify_one();
        }
    }

    /// Does one action; returns the worker whose slot is to be looked at afterwards.
    fn perform(&self, index: usize, room: &mut PoolSlots, action: PoolAction) -> Option<u16> {
        let n = match action {
            PoolAction::Grant { client, worker, lease, claim_by } => {
                let event = log::Event::LeaseGranted;
                if let Some(Waiter::StoredConnection(connection)) = self.clients.borrow().get(&client) {
                    connection.claim();
                    let worker = WorkerName(&room.config.name, worker);
                    tracing::debug!(%worker, %lease, %event, "the worker has the client's connection");
                    return None;
                }
                let grant = room.grant(worker, lease, claim_by);
                tracing::debug!(worker = %grant.worker, %lease, %event, "the client is told its worker");
                self.answer(client, Ok(grant));
                return None;
            }
            PoolAction::Over { client, worker, lease, end } => {
                let client = self.clients.borrow_mut().remove(&client);
                let slot = room.slots.get_mut(usize::from(worker) - 1)?.as_mut()?;
                slot.lent = None;
                if let Some(Waiter::StoredConnection(connection)) = client {
                    let worker = WorkerId { pool: room.config.name.clone(), number: WorkerNumber::of(worker) };
                    connection.tell(Outcome::Over(worker, end, slot.asker.is_connection_kept(lease)));
                }
                return None;
            }
            PoolAction::Refuse(client, refusal) => {
                self.answer(client, Err(refusal));
                return None;
            }
            PoolAction::Note(n, note) => {
                room.note(n, note);
                return None;
            }
            PoolAction::Look(n)
            | PoolAction::Ask(n, _)
            | PoolAction::Ring(n)
            | PoolAction::Offer { worker: n, .. }
            | PoolAction::Revoke(n, _)
            | PoolAction::Abort(n, _)
            | PoolAction::Reclaim(n, _)
            | PoolAction::Release(n, _)
            | PoolAction::Clear(n) => n,
        };
        let request_timeout = room.config.request_timeout;
        if let PoolAction::Offer { worker, epoch, lease, .. } = action {
            let event = log::Event::LeaseOffered;
            tracing::debug!(worker = %WorkerName(&room.config.name, worker), %lease, %epoch, %event, "lease is offered");
        }
        let slot = room.slots.get_mut(usize::from(n) - 1)?.as_mut()?;
        match action {
            PoolAction::Ask(_, ask) => {
                slot::ask(&mut slot.asker, ask);
                slot.ring.ring();
                return None;
            }
            PoolAction::Ring(_) => {
                slot.ring.ring();
                return None;
            }
            PoolAction::Offer { epoch, lease, claim_by, connection, .. } => {
                slot.token = Token::new(self.chance.bits());
                let terms = LeaseTerms {
                    lease,
                    worker_epoch: epoch,
                    dispatcher_epoch: self.epoch,
                    token: slot.token,
                    claim_by,
                    request_timeout,
                    connection: connection.map_or(0, |client| self.mark_of(client)),
                };
                if connection.is_some() {
                    // Nobody rings for it, and its claim is its answer: but a probe's answer is a sign of life.
                    slot.asker.supersede();
                }
                self.expect((index, n), slot);
                if slot.asker.offer(&terms).is_ok() {
                    let is_there = match connection {
                        Some(client) => self.pass_on(slot, client, lease),
                        None => {
                            slot.ring.ring();
                            true
                        }
                    };
                    if is_there {
                        return None; // its answer is rung for, or looked for
                    }
                    slot.sound_at = None;
                }
            }
            PoolAction::Revoke(_, lease) => {
                let client = slot.lent.take();
                let revoked = slot.asker.revoke(lease);
                let clients = self.clients.borrow();
                if let Some(Waiter::StoredConnection(connection)) =
                    client.filter(|_| revoked).and_then(|id| clients.get(&id))
                {
                    connection.lend(false);
                }
            }
            PoolAction::Abort(_, lease) => drop(slot.asker.abort(lease)),
            PoolAction::Reclaim(_, lease) => drop(slot.asker.reclaim(lease)),
            PoolAction::Release(_, lease) => {
                let (worker, over) = (WorkerName(&room.config.name, n), slot.asker.release(lease));
                if over {
                    tracing::debug!(%worker, %lease, event = %log::Event::LeaseOver, "lease is over");
                }
            }
            PoolAction::Clear(_) => slot.asker.clear(),
            _ => {}
        }
        Some(n)
    }

    /// Wakes the pools when their time has come; never returns.
    pub async fn run_timers(&self) {
        loop {
            let next = self.rooms.borrow().iter().filter_map(|room| room.pool.deadline()).min();
            self.armed.set(next);
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep(at.since(clock::now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.rearm.notified() => continue,
            }
            self.armed.set(None);
            let now = clock::now();
            let due: Vec<_> = (0..self.rooms.borrow().len())
                .filter(|i| self.rooms.borrow()[*i].pool.deadline().is_some_and(|at| at <= now))
                .collect();
            for index in due {
                self.feed(index, Some(PoolEvent::Tick), VecDeque::new());
            }
            self.drop_surplus();
        }
    }

    /// The end of this dispatcher is wanted.
    pub fn leave(&self) {
        for slot in self.rooms.borrow().iter().flat_map(|room| &room.slots).flatten() {
            backoff::clear_failures(&slot.segment, Word::DISPATCHER_LAST_START);
        }
    }
}

/// The segments that can be used. One worker's damaged one is no reason not to start; if all of them are another
/// version's or another set's, it is not the workers who are wrong.
fn undamaged(config: &Config) -> Result<Vec<Arc<Segment>>, DispatcherError> {
    let (mut segments, mut refused, mut spoilt) = (Vec::new(), None, false);
    for id in config.workers() {
        match ipc::open(config, &id) {
            Ok(parts) => segments.push(parts.segment),
            Err(error) => match error.damage() {
                Some(damage) if damage.is_well_formed() => refused = Some(error),
                Some(_) => spoilt = true,
                None => return Err(error.into()),
            },
        }
    }
    match refused {
        Some(error) if segments.is_empty() && !spoilt => Err(error.into()),
        _ => Ok(segments),
    }
}

/// One that is in no slot, for leases that no dispatcher before has given: one more than the highest there is.
fn next_epoch(segments: &[Arc<Segment>]) -> Epoch {
    let used: BTreeSet<Epoch> = segments.iter().filter_map(DispatcherSide::last_epoch).collect();
    let mut epoch = used.last().map_or(Epoch::FIRST, |last| last.next());
    // A hostile worker may have written the last there is.
    while used.contains(&epoch) {
        epoch = epoch.next();
    }
    epoch
}
