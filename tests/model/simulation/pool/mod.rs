//! The simulation of one pool: the real `Pool` and real slots, with workers and clients that behave at random.
//!
//! Used alone, it also kills and restarts workers and the dispatcher at random. In [`super::set`] processes and a
//! watchdog do that.

mod checks;
mod clients;
mod dispatcher;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::random::Random;
use crate::exchange::{DispatcherSide, PlainSlot};
use crate::ids::{Epoch, LeaseId, Monotonic, Token, WorkerNumber};
use crate::pool::{ClientId, Peer, Pool, PoolEvent, PoolLimits};
use crate::worker::transaction::Ending;
use clients::{Client, ClientState};
pub(crate) use worker::SimulatedWorker;

pub(crate) const WORKERS: u16 = 4;
/// The interval of the watchdog's probes.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// The number of the worker with this index.
pub(crate) fn number_of(index: usize) -> WorkerNumber {
    WorkerNumber::of(index as u16 + 1)
}

/// A future event. Workers are given by index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum PoolSimEvent {
    ClientArrives,
    /// A client retries a request that has not started.
    ClientRetries(usize, Peer),
    /// A queued client leaves.
    ClientLeaves,
    /// A doorbell reaches the dispatcher.
    DispatcherRung(usize),
    /// A doorbell reaches the worker's control loop, or the loop turns by itself.
    WorkerTurn(usize),
    /// The client shows its token to the worker.
    Claim(usize, ClientId),
    /// The worker's serving task receives a handoff connection.
    ReceiveConnection(usize, ClientId, LeaseId),
    Respond(usize, Epoch, LeaseId),
    Finish(usize, Epoch, LeaseId),
    Freeze(usize),
    Thaw(usize),
    Die(usize),
    /// The incarnation ends; its process continues as the next one.
    EndIncarnation(usize),
    /// The next incarnation attaches to the slot.
    StartIncarnation(usize),
    Ready(usize, Epoch),
    WantRecycle(usize),
    /// The worker has another warm process.
    Replaced(usize, Epoch),
    /// An operator requests that it is recycled.
    RequestRecycle(usize),
    Drain(usize),
    Resume(usize),
    Probe,
    RestartDispatcher,
    Reconfigure,
}

impl PoolSimEvent {
    /// Whether it follows from earlier events and causes neither a new request nor a new fault.
    pub(crate) fn is_consequence(self) -> bool {
        self.worker().is_some()
            || matches!(self, Self::DispatcherRung(_) | Self::ClientRetries(..) | Self::Thaw(_) | Self::Probe)
    }

    /// The worker that must run for it.
    pub(crate) fn worker(self) -> Option<usize> {
        match self {
            Self::WorkerTurn(w) | Self::Claim(w, _) | Self::ReceiveConnection(w, ..) => Some(w),
            Self::Respond(w, ..) | Self::Finish(w, ..) => Some(w),
            Self::EndIncarnation(w) | Self::StartIncarnation(w) => Some(w),
            Self::Ready(w, _) | Self::Replaced(w, _) => Some(w),
            _ => None,
        }
    }
}

pub(crate) struct PoolSimulation {
    seed: u64,
    pub(crate) random: Random,
    pub(crate) now: Monotonic,
    pub(crate) limits: PoolLimits,
    /// Workers claim together with their answer.
    claims_at_once: bool,
    /// No new faults.
    pub(crate) recovering: bool,
    /// Processes and a watchdog exist: workers neither die nor start by themselves.
    in_set: bool,
    pub(crate) pool: Pool,
    epoch: Epoch,
    sides: Vec<DispatcherSide<Arc<PlainSlot>>>,
    pub(crate) workers: Vec<SimulatedWorker>,
    clients: BTreeMap<ClientId, Client>,
    /// The clients without a verdict.
    waiting: BTreeSet<ClientId>,
    /// How many turns of a peer the first waiting client of another one has waited for.
    turns: BTreeMap<(ClientId, Peer), u32>,
    last_client: ClientId,
    /// How often each request was started.
    started: Vec<u32>,
    /// Leases that the dispatcher has aborted.
    aborted: BTreeSet<LeaseId>,
    /// How workers have ended the connections of leases.
    endings: HashMap<LeaseId, Ending>,
    /// How often a connection was offered to a second worker.
    pub(crate) offered_again: u64,
    /// The clients whose claimed connection this dispatcher has from an earlier one.
    adopted: BTreeSet<ClientId>,
    /// How the leases of such clients ended, and how often.
    pub(crate) ends_of_adopted: BTreeMap<String, u64>,
    /// Token and client of each lease.
    leases: HashMap<LeaseId, (Token, Option<ClientId>)>,
    /// Peers that left a lease unclaimed, and until when that counts.
    suspects: HashMap<Peer, Monotonic>,
    pub(crate) events: BTreeMap<(Monotonic, u64), PoolSimEvent>,
    event_count: u64,
    slots_to_read: VecDeque<WorkerNumber>,
    pub(crate) granted: u64,
    /// The time during which the dispatcher was running: the wait of a client is measured in it.
    pub(crate) serving: Monotonic,
    /// The workers that have become ready since the last look.
    pub(crate) readied: Vec<usize>,
    /// The workers between two incarnations, and whether no next one starts.
    pub(crate) ended_incarnations: Vec<(usize, bool)>,
    /// How many consecutive rings each doorbell has lost.
    lost_rings: [u32; WORKERS as usize * 2],
}

impl Drop for PoolSimulation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let test = if self.in_set { "set" } else { "pool" };
            eprintln!(
                "at {:?}: repeat with PATOU_SIM_SEED={} cargo test --lib model::simulation::{test}_keeps",
                self.now, self.seed
            );
        }
    }
}

impl PoolSimulation {
    /// A simulation of its own, or the pool of a set in which no process runs yet.
    pub(crate) fn new(seed: u64, in_set: bool) -> Self {
        let mut random = Random(seed);
        let limits = PoolLimits {
            max_sessions: 1,
            workers: if in_set { WORKERS } else { 1 + random.below(WORKERS.into()) as u16 },
            queue: [0, 1, 4, 16][random.below(4) as usize],
            queue_timeout: Duration::from_millis(400),
            offer_timeout: Duration::from_millis(50),
            claim_timeout: Duration::from_millis(300),
            request_timeout: Duration::from_millis(500),
            slot_scan: Duration::from_millis(100),
            recycle_timeout: Duration::from_secs(10),
        };
        let mut simulation = Self {
            seed,
            claims_at_once: random.percent(40),
            random,
            now: Monotonic(1_000_000_000),
            limits,
            recovering: false,
            in_set,
            pool: Pool::new(limits, Epoch::FIRST),
            epoch: Epoch::FIRST,
            sides: Vec::new(),
            workers: (0..WORKERS)
                .map(|w| SimulatedWorker { is_warm: w % 2 == 1, ..SimulatedWorker::default() })
                .collect(),
            clients: BTreeMap::new(),
            waiting: BTreeSet::new(),
            turns: BTreeMap::new(),
            last_client: 0,
            started: Vec::new(),
            aborted: BTreeSet::new(),
            endings: HashMap::new(),
            offered_again: 0,
            adopted: BTreeSet::new(),
            ends_of_adopted: BTreeMap::new(),
            leases: HashMap::new(),
            suspects: HashMap::new(),
            events: BTreeMap::new(),
            event_count: 0,
            slots_to_read: VecDeque::new(),
            granted: 0,
            serving: Monotonic(0),
            readied: Vec::new(),
            ended_incarnations: Vec::new(),
            lost_rings: [0; WORKERS as usize * 2],
        };
        simulation.schedule_first_events();
        simulation
    }

    fn schedule_first_events(&mut self) {
        use PoolSimEvent::*;
        if self.in_set {
            for event in [ClientArrives, ClientLeaves] {
                self.within(100, event);
            }
            for w in 0..self.workers.len() {
                for event in [WantRecycle(w), RequestRecycle(w), Drain(w)] {
                    self.within(20_000, event);
                }
            }
            return;
        }
        self.attach();
        self.read_all_slots();
        for w in 0..self.workers.len() {
            self.within(20, StartIncarnation(w));
        }
        for event in [ClientArrives, ClientLeaves, Probe, RestartDispatcher, Reconfigure] {
            self.within(100, event);
        }
        for w in 0..self.workers.len() {
            for event in [Freeze(w), Die(w), WantRecycle(w), RequestRecycle(w), Drain(w)] {
                self.within(3000, event);
            }
        }
    }

    /// Schedules an event at a random time within `ms` milliseconds.
    pub(crate) fn within(&mut self, ms: u64, event: PoolSimEvent) {
        let after = self.random.millis(ms);
        self.after(after, event);
    }

    pub(crate) fn after(&mut self, after: Duration, event: PoolSimEvent) {
        self.event_count += 1;
        self.events.insert((self.now + after, self.event_count), event);
    }

    /// Rings a doorbell. The ring arrives soon, or late, or twice, or never.
    fn ring(&mut self, doorbell: PoolSimEvent) {
        let lost = match doorbell {
            PoolSimEvent::DispatcherRung(w) => &mut self.lost_rings[2 * w],
            PoolSimEvent::WorkerTurn(w) => &mut self.lost_rings[2 * w + 1],
            other => panic!("no doorbell: {other:?}"),
        };
        let chance = self.random.below(100);
        // At most two in a row: a doorbell that never rings makes a worker silent without a fault of the worker, and no
        // watchdog could know that.
        *lost = if chance < 2 && *lost < 2 { *lost + 1 } else { 0 };
        match chance {
            0..2 if *lost > 0 => {}
            2..5 => self.within(150, doorbell),
            5..8 => {
                self.within(1, doorbell);
                self.within(20, doorbell);
            }
            _ => self.within(1, doorbell),
        }
    }

    /// Executes an event.
    pub(crate) fn execute(&mut self, event: PoolSimEvent) {
        if let Some(w) = event.worker()
            && self.workers[w].frozen
        {
            return self.workers[w].backlog.push(event);
        }
        match event {
            PoolSimEvent::ClientArrives => {
                self.within(if self.random.0 >> 40 & 1 == 0 { 4 } else { 30 }, PoolSimEvent::ClientArrives);
                self.new_client();
            }
            PoolSimEvent::ClientRetries(request, peer) => self.arrive(request, peer, false),
            PoolSimEvent::ReceiveConnection(w, id, lease) => self.receive_connection(w, id, lease),
            PoolSimEvent::ClientLeaves => {
                self.within(60, PoolSimEvent::ClientLeaves);
                self.leave();
            }
            PoolSimEvent::DispatcherRung(w) => {
                self.slots_to_read.push_back(number_of(w));
                self.read_slots();
            }
            PoolSimEvent::WorkerTurn(w) => self.turn(w),
            PoolSimEvent::Claim(w, id) => {
                if let ClientState::Granted(lease) = self.clients[&id].state {
                    self.claim(w, id, lease);
                }
            }
            PoolSimEvent::Respond(w, epoch, lease) => self.respond(w, epoch, lease),
            PoolSimEvent::Finish(w, epoch, lease) => self.finish(w, epoch, lease),
            PoolSimEvent::Freeze(w) => {
                self.within(6000, PoolSimEvent::Freeze(w));
                if self.workers[w].side.is_some() {
                    self.workers[w].frozen = true;
                    self.within(1500, PoolSimEvent::Thaw(w));
                }
            }
            PoolSimEvent::Thaw(w) => {
                self.workers[w].frozen = false;
                for event in std::mem::take(&mut self.workers[w].backlog) {
                    self.after(Duration::ZERO, event);
                }
            }
            PoolSimEvent::Die(w) => {
                self.within(4000, PoolSimEvent::Die(w));
                if self.workers[w].side.is_some() {
                    self.die(w);
                }
            }
            PoolSimEvent::EndIncarnation(w) => self.end_incarnation(w),
            PoolSimEvent::StartIncarnation(w) if self.in_set && self.workers[w].side.is_none() => {} // it died
            PoolSimEvent::StartIncarnation(w) => self.start_incarnation(w),
            PoolSimEvent::Ready(w, epoch) => self.ready(w, epoch),
            PoolSimEvent::WantRecycle(w) => {
                self.within(2000, PoolSimEvent::WantRecycle(w));
                self.want_recycle(w);
            }
            PoolSimEvent::Replaced(w, epoch) => self.replaced(w, epoch),
            PoolSimEvent::RequestRecycle(w) => {
                self.within(3000, PoolSimEvent::RequestRecycle(w));
                self.handle(PoolEvent::Recycle(number_of(w)));
            }
            PoolSimEvent::Drain(w) => {
                self.within(8000, PoolSimEvent::Drain(w));
                self.within(800, PoolSimEvent::Resume(w));
                self.handle(PoolEvent::Drain(number_of(w)));
            }
            PoolSimEvent::Resume(w) => self.handle(PoolEvent::Resume(number_of(w))),
            PoolSimEvent::Probe => {
                self.after(PROBE_INTERVAL, PoolSimEvent::Probe);
                self.handle(PoolEvent::Probe);
            }
            PoolSimEvent::RestartDispatcher => {
                self.within(3000, PoolSimEvent::RestartDispatcher);
                self.restart_dispatcher();
            }
            PoolSimEvent::Reconfigure => {
                self.within(4000, PoolSimEvent::Reconfigure);
                self.limits.workers = 1 + self.random.below(WORKERS.into()) as u16;
                self.pool.reconfigure(self.limits);
            }
        }
    }

    /// Advances the clock; returns the time that has passed. `serving`: the dispatcher is running.
    pub(crate) fn advance(&mut self, to: Monotonic, serving: bool) -> Duration {
        let passed = to.since(self.now);
        self.now = self.now.max(to);
        if serving {
            self.serving = self.serving + passed;
        }
        passed
    }

    /// The machine has done nothing until `now`: due events happen now, in their order, and before what follows from
    /// them.
    pub(crate) fn stall(&mut self, now: Monotonic) {
        self.now = now;
        let rest = self.events.split_off(&(now, 0));
        for event in std::mem::replace(&mut self.events, rest).into_values() {
            self.after(Duration::ZERO, event);
        }
    }

    /// Executes the next event, or the pool's tick if that is due earlier.
    pub(crate) fn step(&mut self) {
        let (&(next, _), _) = self.events.first_key_value().expect("the next probe is scheduled");
        let passed = match self.pool.deadline() {
            Some(due) if due < next => {
                let passed = self.advance(due, true);
                self.handle(PoolEvent::Tick);
                passed
            }
            _ => {
                let (_, event) = self.events.pop_first().unwrap();
                let passed = self.advance(next, true);
                self.execute(event);
                passed
            }
        };
        self.check(passed);
    }
}
