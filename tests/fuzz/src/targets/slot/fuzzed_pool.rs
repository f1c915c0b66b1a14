//! The dispatcher's pool over scripted slots, as `dispatcher::driver` runs it over real segments.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::ScriptedSlot;
use super::well_behaved::WellBehavedWorker;
use crate::dispatcher::slot;
use crate::exchange::{DispatcherSide, WORDS, Word};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Monotonic, ProcessId, Token, WorkerNumber};
use crate::pool::{
    ClientAction, ClientId, Hold, Offer, Peer, Pool, PoolAction, PoolEvent, PoolLimits, Refusal, SlotAction, SlotView,
};

/// Slots 0 and 1 belong to hostile workers, slot 2 to the well-behaved one.
pub(crate) const HOSTILE: usize = 2;
const WELL_BEHAVED: usize = HOSTILE;
const WORKERS: u16 = 3;
/// The well-behaved worker.
const LAST: WorkerNumber = WorkerNumber::of(WORKERS);
/// How often the dispatcher reads one slot per event at most, as in `dispatcher::worker_slot`.
const READS_MAX: u32 = 32;

/// Indices of words that a hostile worker aims at: see `docs/ARCHITECTURE.md`, *The slot*.
const QUESTION: usize = 0;
const ANSWER: usize = 16;

/// One step. Workers are given by index.
pub(crate) enum Step {
    /// A client of this peer arrives.
    ClientArrives(u8),
    /// The n-th waiting client leaves.
    ClientLeaves(usize),
    /// So many milliseconds pass.
    Advance(u64),
    Ring(usize),
    Probe,
    /// Drain or resume.
    Drain(usize, bool),
    /// A hostile worker writes a word, after so many accesses of the dispatcher.
    Write(usize, u8, usize, u64),
    /// It writes a claim word: its n-th last lease, in any phase.
    WriteClaim(usize, u8, u8),
    /// It answers the question in its slot.
    WriteAnswer(usize, u8, u8),
    /// A hostile worker dies, or returns.
    ToggleAlive(usize),
    /// A turn of the well-behaved worker's control loop.
    WorkerTurn,
    /// The n-th client with a lease on the well-behaved worker shows its token.
    UseToken(usize),
    /// The well-behaved worker responds.
    Finish,
    RestartDispatcher,
    Reconfigure(u8),
    /// The well-behaved worker dies and starts again.
    RestartWorker,
    Quiesce,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum ClientState {
    Waiting(Monotonic),
    Granted(LeaseId),
    Over,
}

/// A lease that was offered.
struct OfferedLease {
    worker: WorkerNumber,
    client: ClientId,
    token: Token,
}

pub(crate) struct FuzzedPool {
    now: Monotonic,
    limits: PoolLimits,
    pool: Pool,
    epoch: Epoch,
    slots: Vec<ScriptedSlot>,
    sides: Vec<DispatcherSide<ScriptedSlot>>,
    /// The last incarnation seen in each intact slot.
    last: Vec<Option<Epoch>>,
    alive: [bool; HOSTILE],
    worker: WellBehavedWorker,
    clients: BTreeMap<ClientId, ClientState>,
    leases: HashMap<LeaseId, OfferedLease>,
    /// The leases of each slot, in order.
    history: Vec<Vec<LeaseId>>,
    /// The clients with a request that has started on the well-behaved worker.
    started: BTreeSet<ClientId>,
    /// Whether the set is stopping.
    quiesced: bool,
}

fn number_of(index: usize) -> WorkerNumber {
    WorkerNumber::of(index as u16 + 1)
}

impl FuzzedPool {
    pub(crate) fn new() -> Self {
        let ms = Duration::from_millis;
        let limits = PoolLimits {
            max_sessions: 1,
            workers: WORKERS,
            queue: 4,
            queue_timeout: ms(400),
            offer_timeout: ms(50),
            claim_timeout: ms(300),
            request_timeout: ms(500),
            slot_scan: ms(100),
            recycle_timeout: ms(10_000),
        };
        let now = Monotonic(1_000_000_000);
        let slots: Vec<_> = (0..WORKERS).map(|_| ScriptedSlot::default()).collect();
        let mut pool = Self {
            now,
            limits,
            pool: Pool::new(limits, Epoch::FIRST),
            epoch: Epoch::FIRST,
            sides: Vec::new(),
            last: vec![None; WORKERS.into()],
            alive: [true; HOSTILE],
            worker: WellBehavedWorker::start(slots[WELL_BEHAVED].clone(), now),
            clients: BTreeMap::new(),
            leases: HashMap::new(),
            history: vec![Vec::new(); WORKERS.into()],
            started: BTreeSet::new(),
            quiesced: false,
            slots,
        };
        // A hostile worker starts like any other.
        for slot in &pool.slots[..HOSTILE] {
            WellBehavedWorker::start(slot.clone(), now);
        }
        pool.attach();
        pool
    }

    fn attach(&mut self) {
        let process = ProcessId { pid: 1, start_time: 1 };
        let attach = |slot: &ScriptedSlot| DispatcherSide::attach(slot.clone(), self.epoch, process, None);
        self.sides = self.slots.iter().map(attach).collect();
        self.handle(None, WorkerNumber::up_to(WORKERS).collect());
    }

    pub(crate) fn step(&mut self, step: Step) {
        match step {
            Step::ClientArrives(peer) => self.arrive(peer),
            Step::ClientLeaves(n) => {
                let waiting: Vec<_> = self.waiting().map(|(id, _)| id).collect();
                if let Some(id) = (!waiting.is_empty()).then(|| waiting[n % waiting.len()]) {
                    self.clients.insert(id, ClientState::Over);
                    self.handle(Some(PoolEvent::Disconnected(id)), VecDeque::new());
                }
            }
            Step::Advance(ms) => self.advance(Duration::from_millis(ms)),
            Step::Ring(w) => self.handle(None, VecDeque::from([number_of(w)])),
            Step::Probe => self.handle(Some(PoolEvent::Probe), VecDeque::new()),
            Step::Drain(w, true) => self.handle(Some(PoolEvent::Drain(number_of(w))), VecDeque::new()),
            Step::Drain(w, false) => self.handle(Some(PoolEvent::Resume(number_of(w))), VecDeque::new()),
            Step::Write(w, after, index, value) => self.slots[w].write_after(after, index, value),
            Step::WriteClaim(w, after, choice) => {
                let back = usize::from(choice >> 4) % self.history[w].len().max(1);
                let lease = self.history[w].iter().rev().nth(back).map_or(0, |lease| lease.get());
                self.slots[w].write_after(after, Word::CLAIM.index(), lease << 8 | u64::from(choice % 16));
            }
            Step::WriteAnswer(w, after, choice) => {
                let sequence = self.slots[w].word(QUESTION).get() >> 8;
                let (reply, reason) = (u64::from(choice % 8), u64::from(choice / 8 % 8));
                self.slots[w].write_after(after, ANSWER, sequence << 16 | reply << 8 | reason);
            }
            Step::ToggleAlive(w) => {
                self.alive[w] = !self.alive[w];
                if self.alive[w] {
                    WellBehavedWorker::start(self.slots[w].clone(), self.now);
                }
            }
            Step::WorkerTurn => self.turn(),
            Step::UseToken(n) => self.use_token(n),
            Step::Finish => self.worker.finish(),
            Step::RestartDispatcher => self.restart_dispatcher(),
            Step::Reconfigure(workers) => {
                self.limits.workers = workers.into();
                self.pool.reconfigure(self.limits);
                self.advance(Duration::ZERO);
            }
            Step::RestartWorker => {
                self.worker = WellBehavedWorker::start(self.slots[WELL_BEHAVED].clone(), self.now);
                self.handle(None, VecDeque::from([LAST]));
            }
            Step::Quiesce => {
                self.quiesced = true;
                self.handle(Some(PoolEvent::Quiesce), VecDeque::new());
            }
        }
        self.check();
    }

    // ---- clients ----

    fn arrive(&mut self, peer: u8) {
        let id = self.clients.len() as ClientId + 1;
        self.clients.insert(id, ClientState::Waiting(self.now));
        self.handle(Some(PoolEvent::Client(id, Peer::User(peer.into()))), VecDeque::new());
    }

    fn waiting(&self) -> impl Iterator<Item = (ClientId, Monotonic)> {
        self.clients.iter().filter_map(|(id, state)| match state {
            ClientState::Waiting(since) => Some((*id, *since)),
            _ => None,
        })
    }

    /// A waiting client gets its verdict.
    fn decide(&mut self, client: ClientId, state: ClientState) {
        let before = self.clients.insert(client, state);
        assert!(matches!(before, Some(ClientState::Waiting(_))), "client {client} was {before:?} and is {state:?}");
    }

    /// A client is granted a lease, which must be the one that was offered for it, on that worker.
    fn grant(&mut self, client: ClientId, worker: WorkerNumber, lease: LeaseId) {
        self.decide(client, ClientState::Granted(lease));
        let offered = &self.leases[&lease];
        assert_eq!((offered.client, offered.worker), (client, worker), "lease {lease} belongs to another client");
        let newest = self.history[worker.index()].last();
        assert_eq!(newest, Some(&lease), "the current token belongs to another lease");
    }

    fn use_token(&mut self, n: usize) {
        let with_lease = |(id, state): (&ClientId, &ClientState)| match state {
            ClientState::Granted(lease) if self.leases[lease].worker == LAST => Some((*id, *lease)),
            _ => None,
        };
        let granted: Vec<_> = self.clients.iter().filter_map(with_lease).collect();
        if granted.is_empty() {
            return;
        }
        let (client, lease) = granted[n % granted.len()];
        if self.worker.claim(lease, self.leases[&lease].token, self.now) {
            assert!(self.started.insert(client), "the request of client {client} starts twice");
        }
    }

    fn turn(&mut self) {
        self.worker.turn(self.now);
        self.handle(None, VecDeque::from([LAST]));
    }

    // ---- the dispatcher ----

    fn restart_dispatcher(&mut self) {
        self.epoch = self.epoch.next();
        self.pool = Pool::new(self.limits, self.epoch);
        self.quiesced = false;
        let waiting: Vec<_> = self.waiting().map(|(id, _)| id).collect();
        waiting.into_iter().for_each(|id| self.decide(id, ClientState::Over));
        self.attach();
    }

    /// Time passes. Due ticks happen at their time.
    fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        let mut immediate = 0;
        while let Some(due) = self.pool.deadline().filter(|due| *due <= end) {
            immediate = if due > self.now { 0 } else { immediate + 1 };
            assert!(immediate < 50, "the dispatcher spins: {:#?}", self.pool.workers());
            self.now = self.now.max(due);
            self.handle(Some(PoolEvent::Tick), VecDeque::new());
        }
        self.now = end;
    }

    /// Passes an event to the pool, performs its actions, and reads the slots in `to_read`.
    fn handle(&mut self, event: Option<PoolEvent>, mut to_read: VecDeque<WorkerNumber>) {
        let mut reads = [0; WORKERS as usize];
        let mut next = event;
        loop {
            let event = match next.take() {
                Some(event) => event,
                None => match to_read.pop_front() {
                    Some(n) => {
                        let w = n.index();
                        reads[w] += 1;
                        if reads[w] > READS_MAX {
                            continue;
                        }
                        PoolEvent::SlotRead(n, self.read_slot(w))
                    }
                    None => break,
                },
            };
            for action in self.pool.handle(self.now, event) {
                if let Some(n) = self.perform(action)
                    && !to_read.contains(&n)
                {
                    to_read.push_back(n);
                }
            }
        }
        // The slot of the well-behaved worker does not change for ever.
        assert!(reads[WELL_BEHAVED] < READS_MAX, "{:#?}", self.pool.workers());
    }

    /// As `dispatcher::worker_slot` reads a slot: a damaged one is corrupt while its worker lives, and restored when the
    /// worker is dead.
    fn read_slot(&mut self, w: usize) -> SlotView {
        let alive = w == WELL_BEHAVED || self.alive[w];
        let side = &mut self.sides[w];
        let mut is_damaged = !side.is_intact();
        if is_damaged && !alive {
            (0..WORDS).for_each(|index| self.slots[w].word(index).set(0));
            side.reinitialize(self.last[w]);
            is_damaged = !side.is_intact();
        }
        let view = slot::read_slot(side, alive);
        is_damaged |= alive && view.life.is_none() && self.last[w].is_some();
        assert!(!(is_damaged && w == WELL_BEHAVED), "the slot of the well-behaved worker is damaged");
        if !is_damaged {
            self.last[w] = view.life.map(|(epoch, ..)| epoch).or(self.last[w]);
        }
        slot::believed(view, !is_damaged)
    }

    /// Performs an action; returns the number of the slot that the dispatcher reads next.
    fn perform(&mut self, action: PoolAction) -> Option<WorkerNumber> {
        match action {
            PoolAction::Client(client, action) => {
                self.perform_for_client(client, action);
                None
            }
            PoolAction::Slot(n, action) => self.perform_on_slot(n, action).then_some(n),
            PoolAction::Note(..) => None,
        }
    }

    fn perform_for_client(&mut self, client: ClientId, action: ClientAction) {
        match action {
            ClientAction::Grant { worker, lease, .. } => self.grant(client, worker, lease),
            ClientAction::LeaseEnded { .. } => panic!("no connection was handed over: {action:?}"),
            ClientAction::Refuse(refusal) => {
                self.decide(client, ClientState::Over);
                if let Refusal::QueueTimeout(waited) = refusal {
                    assert!(waited >= self.limits.queue_timeout);
                }
            }
        }
    }

    /// Performs a step on a slot; whether the dispatcher reads the slot next.
    fn perform_on_slot(&mut self, n: WorkerNumber, action: SlotAction) -> bool {
        let side = &mut self.sides[n.index()];
        match action {
            SlotAction::Read => {}
            SlotAction::Question(question) => {
                slot::write_question(side, question);
                return false;
            }
            SlotAction::Ring => return false,
            SlotAction::Offer { epoch, lease, claim_by, .. } => return self.offer(n, epoch, lease, claim_by),
            SlotAction::Revoke(lease) => drop(side.revoke(lease)),
            SlotAction::Abort(lease) => {
                assert!(n != LAST || !self.worker.serves(lease), "a request of a living worker is aborted");
                side.abort(lease);
            }
            SlotAction::DecideSession { lease, is_permitted } => side.decide_session(lease, is_permitted),
            SlotAction::Reclaim(lease) => drop(side.reclaim(lease)),
            SlotAction::Release(lease) => drop(side.release(lease)),
            SlotAction::Clear => {
                assert_ne!(n, LAST, "the claim word of the well-behaved worker is valid");
                side.clear();
            }
        }
        true
    }

    /// Makes an offer; whether the slot was not free and must be read.
    fn offer(&mut self, worker: WorkerNumber, worker_epoch: Epoch, lease: LeaseId, claim_by: Monotonic) -> bool {
        let w = worker.index();
        let Hold::Offered { offer: Offer { client, lease: offered, .. }, .. } = self.pool.workers()[w].hold else {
            panic!("an offer without a client: {:?}", self.pool.workers()[w])
        };
        assert_eq!(offered, lease);
        let token = Token::new(u128::from(lease.get()) << 64 | 0x5ec7e7);
        let entry = OfferedLease { worker, client: client.id, token };
        assert!(self.leases.insert(lease, entry).is_none(), "lease {lease} is offered twice");
        self.history[w].push(lease);
        let terms = LeaseTerms {
            lease,
            worker_epoch,
            dispatcher_epoch: self.epoch,
            token,
            claim_by,
            request_timeout: self.limits.request_timeout,
            connection: 0,
        };
        self.sides[w].offer(&terms).is_err()
    }

    // ---- promises ----

    fn check(&self) {
        let PoolLimits { queue, queue_timeout, offer_timeout, slot_scan, .. } = self.limits;
        let bound = queue_timeout + offer_timeout + slot_scan;
        for (id, since) in self.waiting() {
            let waited = self.now.since(since);
            assert!(waited <= bound, "client {id} has waited for {waited:?}: {:#?}", self.pool.workers());
        }
        assert!(self.pool.waiting().0 <= queue + usize::from(WORKERS));
        // No client holds two workers.
        let mut holding = BTreeSet::new();
        for worker in self.pool.workers() {
            if let Hold::Offered { offer, .. } | Hold::Revoking(offer) | Hold::Granted(offer) = worker.hold {
                let client = offer.client.id;
                assert!(holding.insert(client), "client {client} twice: {:#?}", self.pool.workers());
            }
        }
    }

    /// The hostile workers are killed. Then none of their writes may be left, and the well-behaved worker serves.
    pub(crate) fn recover(&mut self) {
        self.limits.workers = WORKERS;
        self.pool.reconfigure(self.limits);
        if self.quiesced {
            self.restart_dispatcher(); // a stopping set serves no client; the next dispatcher does
        }
        self.slots.iter().for_each(ScriptedSlot::end_script);
        self.alive = [false; HOSTILE];
        self.worker.finish();
        self.handle(Some(PoolEvent::Resume(LAST)), VecDeque::new());
        for _ in 0..8 {
            self.handle(Some(PoolEvent::Probe), WorkerNumber::up_to(WORKERS).collect());
            self.turn();
            self.advance(Duration::from_millis(250));
            self.check();
        }
        assert_eq!(self.waiting().count(), 0, "a client still waits: {:#?}", self.pool.workers());
        assert!(self.pool.is_quiet(), "{:#?}", self.pool.workers());
        for slot in &self.slots {
            assert_eq!(Claim::new(slot.word(Word::CLAIM.index()).get()), Some(Claim::Free));
        }
        self.arrive(u8::MAX);
        self.turn();
        let (client, state) = self.clients.last_key_value().expect("the client that has just arrived");
        assert!(matches!(state, ClientState::Granted(_)), "client {client} is {state:?}: {:#?}", self.pool.workers());
        // The pool forgets past clients and leases.
        let size = format!("{:?}", self.pool).len();
        assert!(size < 8 * 1024, "{size} bytes: {:?}", self.pool);
    }
}
