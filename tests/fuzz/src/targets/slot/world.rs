//! The dispatcher's shell over such slots, as `dispatcher::driver` is one over real segments.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use crate::dispatcher::slot;
use crate::exchange::{DispatcherSide, Word};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Monotonic, Token, WorkerNumber};
use crate::pool::{ClientId, Hold, Peer, Pool, PoolAction, PoolEvent, PoolLimits, Refusal, SlotView};

use super::Words;
use super::honest::Honest;

/// Slots 0 and 1 are hostile workers', 2 the honest one's.
pub const HOSTILE: usize = 2;
const HONEST: usize = HOSTILE;
const WORKERS: u16 = 3;
/// The worker with an honest process.
const LAST: WorkerNumber = WorkerNumber::of(WORKERS);
/// As in `dispatcher::pool_slots`.
const LOOKS: u32 = 32;

/// Offsets in a slot that a hostile worker aims at: see `docs/ARCHITECTURE.md`, "Who writes which word".
const QUESTION: usize = 0;
const ANSWER: usize = 16;

/// What happens. Workers are counted from 0.
pub enum Step {
    /// A client of this peer arrives.
    Arrive(u8),
    /// The n-th client that waits leaves.
    Leave(usize),
    /// So many milliseconds pass.
    Pass(u64),
    Ring(usize),
    Probe,
    /// Drain or resume.
    Drain(usize, bool),
    /// A hostile worker writes, after so many accesses of the dispatcher.
    Write(usize, u8, usize, u64),
    /// It writes a claim: of the n-th last lease of its own, with any phase.
    Claim(usize, u8, u8),
    /// It answers the question in its slot.
    Answer(usize, u8, u8),
    /// It dies or comes.
    Live(usize),
    /// The honest worker's control loop turns.
    Turn,
    /// The n-th client that was sent to the honest worker shows its token.
    Use(usize),
    Finish,
    Restart,
    Reconfigure(u8),
    /// The honest worker dies, and comes again.
    Die,
    Quiesce,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Waiting(Monotonic),
    Sent(LeaseId),
    Over,
}

/// A lease as it was offered.
struct Given {
    worker: WorkerNumber,
    client: ClientId,
    token: Token,
}

pub struct World {
    now: Monotonic,
    limits: PoolLimits,
    pool: Pool,
    epoch: Epoch,
    memories: Vec<Words>,
    askers: Vec<DispatcherSide<Words>>,
    /// Last incarnation seen in an undamaged slot.
    last: Vec<Option<Epoch>>,
    alive: [bool; HOSTILE],
    honest: Honest,
    clients: BTreeMap<ClientId, State>,
    leases: HashMap<LeaseId, Given>,
    /// The leases of each slot, in order.
    order: Vec<Vec<LeaseId>>,
    /// Whose request has started on the honest worker.
    started: BTreeSet<ClientId>,
    /// Whether the set is stopping.
    quiesced: bool,
}

impl World {
    pub fn new() -> Self {
        let ms = Duration::from_millis;
        let limits = PoolLimits {
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
        let memories: Vec<_> = (0..WORKERS).map(|_| Words::default()).collect();
        let mut world = Self {
            now,
            limits,
            pool: Pool::new(limits, Epoch::FIRST),
            epoch: Epoch::FIRST,
            askers: Vec::new(),
            last: vec![None; WORKERS.into()],
            alive: [true; HOSTILE],
            honest: Honest::begin(memories[HONEST].clone(), now),
            clients: BTreeMap::new(),
            leases: HashMap::new(),
            order: vec![Vec::new(); WORKERS.into()],
            started: BTreeSet::new(),
            quiesced: false,
            memories,
        };
        // A worker that will be hostile begins like any other.
        for memory in &world.memories[..HOSTILE] {
            Honest::begin(memory.clone(), now);
        }
        world.attach();
        world
    }

    fn attach(&mut self) {
        let attach = |memory: &Words| DispatcherSide::attach(memory.clone(), self.epoch, (1, 1), None);
        self.askers = self.memories.iter().map(attach).collect();
        self.feed(None, WorkerNumber::up_to(WORKERS).collect());
    }

    pub fn step(&mut self, step: Step) {
        match step {
            Step::Arrive(peer) => self.arrive(peer),
            Step::Leave(n) => {
                let waiting: Vec<_> = self.waiting().map(|(id, _)| id).collect();
                if let Some(id) = (!waiting.is_empty()).then(|| waiting[n % waiting.len()]) {
                    self.clients.insert(id, State::Over);
                    self.feed(Some(PoolEvent::Disconnected(id)), VecDeque::new());
                }
            }
            Step::Pass(ms) => self.pass(Duration::from_millis(ms)),
            Step::Ring(w) => self.feed(None, VecDeque::from([WorkerNumber::of(w as u16 + 1)])),
            Step::Probe => self.feed(Some(PoolEvent::Probe), VecDeque::new()),
            Step::Drain(w, true) => self.feed(Some(PoolEvent::Drain(WorkerNumber::of(w as u16 + 1))), VecDeque::new()),
            Step::Drain(w, false) => {
                self.feed(Some(PoolEvent::Resume(WorkerNumber::of(w as u16 + 1))), VecDeque::new())
            }
            Step::Write(w, after, index, value) => self.memories[w].arm(after, index, value),
            Step::Claim(w, after, what) => {
                let back = usize::from(what >> 4) % self.order[w].len().max(1);
                let lease = self.order[w].iter().rev().nth(back).map_or(0, |lease| lease.get());
                self.memories[w].arm(after, Word::CLAIM.index(), lease << 8 | u64::from(what % 16));
            }
            Step::Answer(w, after, what) => {
                let sequence = self.memories[w].word(QUESTION).get() >> 8;
                let (reply, reason) = (u64::from(what % 8), u64::from(what / 8 % 8));
                self.memories[w].arm(after, ANSWER, sequence << 16 | reply << 8 | reason);
            }
            Step::Live(w) => {
                self.alive[w] = !self.alive[w];
                if self.alive[w] {
                    Honest::begin(self.memories[w].clone(), self.now);
                }
            }
            Step::Turn => self.turn(),
            Step::Use(n) => self.use_token(n),
            Step::Finish => self.honest.finish(),
            Step::Restart => self.restart(),
            Step::Reconfigure(workers) => {
                self.limits.workers = workers.into();
                self.pool.reconfigure(self.limits);
                self.pass(Duration::ZERO);
            }
            Step::Die => {
                self.honest = Honest::begin(self.memories[HONEST].clone(), self.now);
                self.feed(None, VecDeque::from([LAST]));
            }
            Step::Quiesce => {
                self.quiesced = true;
                self.feed(Some(PoolEvent::Quiesce), VecDeque::new());
            }
        }
        self.check();
    }

    // ---- clients ----

    fn arrive(&mut self, peer: u8) {
        let id = self.clients.len() as ClientId + 1;
        self.clients.insert(id, State::Waiting(self.now));
        self.feed(Some(PoolEvent::Client(id, Peer::User(peer.into()))), VecDeque::new());
    }

    fn waiting(&self) -> impl Iterator<Item = (ClientId, Monotonic)> {
        self.clients.iter().filter_map(|(id, state)| match state {
            State::Waiting(since) => Some((*id, *since)),
            _ => None,
        })
    }

    fn verdict(&mut self, client: ClientId, state: State) {
        let before = self.clients.insert(client, state);
        assert!(matches!(before, Some(State::Waiting(_))), "client {client} was {before:?} and is {state:?}");
    }

    /// The client is told a lease: one that was offered for it, to that worker.
    fn grant(&mut self, client: ClientId, worker: WorkerNumber, lease: LeaseId) {
        self.verdict(client, State::Sent(lease));
        let given = &self.leases[&lease];
        assert_eq!((given.client, given.worker), (client, worker), "lease {lease} is another's");
        let newest = self.order[worker.index()].last();
        assert_eq!(newest, Some(&lease), "the token in hand is of another lease");
    }

    fn use_token(&mut self, n: usize) {
        let to_honest = |(id, state): (&ClientId, &State)| match state {
            State::Sent(lease) if self.leases[lease].worker == LAST => Some((*id, *lease)),
            _ => None,
        };
        let sent: Vec<_> = self.clients.iter().filter_map(to_honest).collect();
        if sent.is_empty() {
            return;
        }
        let (client, lease) = sent[n % sent.len()];
        if self.honest.claim(lease, self.leases[&lease].token, self.now) {
            assert!(self.started.insert(client), "the request of client {client} starts twice");
        }
    }

    fn turn(&mut self) {
        self.honest.turn(self.now);
        self.feed(None, VecDeque::from([LAST]));
    }

    // ---- the dispatcher's shell ----

    fn restart(&mut self) {
        self.epoch = self.epoch.next();
        self.pool = Pool::new(self.limits, self.epoch);
        self.quiesced = false;
        let waiting: Vec<_> = self.waiting().map(|(id, _)| id).collect();
        waiting.into_iter().for_each(|id| self.verdict(id, State::Over));
        self.attach();
    }

    /// Time passes, and what is due comes when it is.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut at_once = 0;
        while let Some(due) = self.pool.deadline().filter(|due| *due <= end) {
            at_once = if due > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 50, "the dispatcher spins: {:#?}", self.pool.workers());
            self.now = self.now.max(due);
            self.feed(Some(PoolEvent::Tick), VecDeque::new());
        }
        self.now = end;
    }

    fn feed(&mut self, event: Option<PoolEvent>, mut looks: VecDeque<WorkerNumber>) {
        let mut looked = [0; WORKERS as usize];
        let mut next = event;
        loop {
            let event = match next.take() {
                Some(event) => event,
                None => match looks.pop_front() {
                    Some(n) => {
                        let w = n.index();
                        looked[w] += 1;
                        if looked[w] > LOOKS {
                            continue;
                        }
                        PoolEvent::SlotRead(n, self.see(w))
                    }
                    None => break,
                },
            };
            for action in self.pool.handle(self.now, event) {
                if let Some(n) = self.perform(action)
                    && !looks.contains(&n)
                {
                    looks.push_back(n);
                }
            }
        }
        // The honest worker is not one that never stops changing.
        assert!(looked[HONEST] < LOOKS, "{:#?}", self.pool.workers());
    }

    /// As `dispatcher::pool_slots` reads a slot: damaged, it is garbage while its worker lives, and made anew when not.
    fn see(&mut self, w: usize) -> SlotView {
        let alive = w == HONEST || self.alive[w];
        let asker = &mut self.askers[w];
        let mut damaged = !asker.is_intact();
        if damaged && !alive {
            (0..super::words::COUNT).for_each(|index| self.memories[w].word(index).set(0));
            asker.reinitialize(self.last[w]);
            damaged = !asker.is_intact();
        }
        let seen = slot::read_slot(asker, alive);
        damaged |= alive && seen.life.is_none() && self.last[w].is_some();
        assert!(!(damaged && w == HONEST), "an honest worker's slot is damaged");
        match damaged {
            false => {
                self.last[w] = seen.life.map(|(epoch, ..)| epoch).or(self.last[w]);
                seen
            }
            true if alive => SlotView { claim: None, terms: None, answer: None, ..seen },
            true => SlotView { claim: Some(Claim::Free), terms: None, answer: None, life: None, ..seen },
        }
    }

    fn perform(&mut self, action: PoolAction) -> Option<WorkerNumber> {
        let asker = |n: WorkerNumber| n.index();
        match action {
            PoolAction::ReadSlot(n) => return Some(n),
            PoolAction::Question(n, ask) => slot::write_question(&mut self.askers[asker(n)], ask),
            PoolAction::Ring(_) | PoolAction::Note(..) => {}
            PoolAction::Offer { worker, epoch, lease, claim_by, .. } => {
                return self.offer(worker, epoch, lease, claim_by).then_some(worker);
            }
            PoolAction::Revoke(n, lease) => {
                self.askers[asker(n)].revoke(lease);
                return Some(n);
            }
            PoolAction::Abort(n, lease) => {
                assert!(n != LAST || !self.honest.holds(lease), "a request of a living worker is aborted");
                self.askers[asker(n)].abort(lease);
                return Some(n);
            }
            PoolAction::Reclaim(n, lease) => {
                self.askers[asker(n)].reclaim(lease);
                return Some(n);
            }
            PoolAction::Release(n, lease) => {
                self.askers[asker(n)].release(lease);
                return Some(n);
            }
            PoolAction::Clear(n) => {
                assert_ne!(n, LAST, "the claim of an honest worker is no garbage");
                self.askers[asker(n)].clear();
                return Some(n);
            }
            PoolAction::Grant { client, worker, lease, .. } => self.grant(client, worker, lease),
            PoolAction::LeaseEnded { .. } => panic!("nothing was handed over: {action:?}"),
            PoolAction::Refuse(client, refusal) => {
                self.verdict(client, State::Over);
                if let Refusal::QueueTimeout(waited) = refusal {
                    assert!(waited >= self.limits.queue_timeout);
                }
            }
        }
        None
    }

    /// Whether the slot is to be looked at: it was not free.
    fn offer(&mut self, worker: WorkerNumber, worker_epoch: Epoch, lease: LeaseId, claim_by: Monotonic) -> bool {
        let w = worker.index();
        let Hold::Offered { client, lease: asked, .. } = self.pool.workers()[w].hold else {
            panic!("an offer to nobody: {:?}", self.pool.workers()[w])
        };
        assert_eq!(asked, lease);
        let token = Token::new(u128::from(lease.get()) << 64 | 0x5ec7e7);
        let given = Given { worker, client: client.id, token };
        assert!(self.leases.insert(lease, given).is_none(), "lease {lease} is given twice");
        self.order[w].push(lease);
        let request_timeout = self.limits.request_timeout;
        let terms = LeaseTerms {
            lease,
            worker_epoch,
            dispatcher_epoch: self.epoch,
            token,
            claim_by,
            request_timeout,
            connection: 0,
        };
        self.askers[w].offer(&terms).is_err()
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
        // Nobody is promised to two.
        let mut promised = BTreeSet::new();
        for worker in self.pool.workers() {
            if let Hold::Offered { client, .. } | Hold::Granted { client: Some(client), .. } = worker.hold {
                assert!(promised.insert(client.id), "client {} twice: {:#?}", client.id, self.pool.workers());
            }
        }
    }

    /// The hostile ones are killed; then nothing of what they wrote is left, and the honest worker serves.
    pub fn heal(&mut self) {
        self.limits.workers = WORKERS;
        self.pool.reconfigure(self.limits);
        if self.quiesced {
            self.restart(); // a set that stops serves nobody; the next dispatcher does
        }
        self.memories.iter().for_each(Words::calm);
        self.alive = [false; HOSTILE];
        self.honest.finish();
        self.feed(Some(PoolEvent::Resume(LAST)), VecDeque::new());
        for _ in 0..8 {
            self.feed(Some(PoolEvent::Probe), WorkerNumber::up_to(WORKERS).collect());
            self.turn();
            self.pass(Duration::from_millis(250));
            self.check();
        }
        assert_eq!(self.waiting().count(), 0, "somebody waits: {:#?}", self.pool.workers());
        assert!(self.pool.is_quiet(), "{:#?}", self.pool.workers());
        for memory in &self.memories {
            assert_eq!(Claim::new(memory.word(Word::CLAIM.index()).get()), Some(Claim::Free));
        }
        self.arrive(u8::MAX);
        self.turn();
        let (client, state) = self.clients.last_key_value().expect("the one who has just come");
        assert!(matches!(state, State::Sent(_)), "client {client} is {state:?}: {:#?}", self.pool.workers());
        // What it remembers of all this is little.
        let remembered = format!("{:?}", self.pool).len();
        assert!(remembered < 8 * 1024, "{remembered} bytes: {:?}", self.pool);
    }
}
