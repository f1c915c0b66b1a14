//! The core of a set: real `Pool`, real slots, workers and clients that do what they like.
//!
//! By itself workers die and come back and the dispatcher is restarted as chance will; in [`super::set`] there are
//! processes and a watchdog for that.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::dispatcher::slot;
use crate::exchange::{self, DispatcherSide, Incarnation, QuestionKind, Reply, SlotMemory, WORDS, Word, WorkerSide};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Phase, Token, WorkerNumber};
use crate::pool::{ClientId, Hold, LeaseEnd, Peer, Pool, PoolAction, PoolEvent, PoolLimits, PoolNote, SUSPICION};

use super::random::Random;

pub const WORKERS: u16 = 4;
/// How often the watchdog asks.
pub const PROBE: Duration = Duration::from_millis(250);

pub struct Words(Vec<AtomicU64>);

impl SlotMemory for Words {
    fn load(&self, word: Word, _: Ordering) -> u64 {
        self.0[word.index()].load(Ordering::SeqCst)
    }
    fn store(&self, word: Word, value: u64, _: Ordering) {
        self.0[word.index()].store(value, Ordering::SeqCst);
    }
    fn compare_exchange(&self, word: Word, current: u64, new: u64) -> Result<(), u64> {
        self.0[word.index()].compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).map(drop)
    }
    fn fence(&self, _: Ordering) {}
}

/// What happens next, and to whom. Workers are counted from 0 here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum What {
    /// A new client.
    Arrive,
    /// A client asks anew for a request that has not started.
    Again(usize, Peer),
    /// A waiting client loses patience.
    Leave,
    /// A bell reaches the dispatcher.
    Rung(usize),
    /// A bell reaches the worker, or it gets round to it.
    Turn(usize),
    /// The client shows its token to the worker.
    Claim(usize, ClientId),
    /// The worker gets round to a connection that was handed over.
    Take(usize, ClientId, LeaseId),
    Respond(usize, Epoch, LeaseId),
    Finish(usize, Epoch, LeaseId),
    Freeze(usize),
    Thaw(usize),
    Die(usize),
    /// The incarnation ends, and its process goes on as the next one.
    Vacate(usize),
    /// The next incarnation takes the slot.
    Begin(usize),
    Ready(usize, Epoch),
    WantRecycle(usize),
    Drain(usize),
    Resume(usize),
    Probe,
    Restart,
    Reconfigure,
}

impl What {
    /// What follows from what has happened, and brings nothing new.
    pub fn is_harmless(self) -> bool {
        self.of_worker().is_some() || matches!(self, What::Rung(_) | What::Again(..) | What::Thaw(_) | What::Probe)
    }

    /// The worker that has to run for it.
    pub fn of_worker(self) -> Option<usize> {
        match self {
            What::Turn(w) | What::Claim(w, _) | What::Take(w, ..) => Some(w),
            What::Respond(w, ..) | What::Finish(w, ..) => Some(w),
            What::Vacate(w) | What::Begin(w) | What::Ready(w, _) => Some(w),
            _ => None,
        }
    }
}

pub struct Worker {
    pub memory: Arc<Words>,
    /// While it lives.
    pub respondent: Option<WorkerSide<Arc<Words>>>,
    /// Its process is between two incarnations.
    vacant: bool,
    /// It does not run.
    pub frozen: bool,
    state: Lifecycle,
    wants_recycle: bool,
    answered: u64,
    /// The lease it works for.
    request: Option<LeaseId>,
    /// What waits for it to thaw.
    backlog: Vec<What>,
    /// The lease in the slot, and for how long it has been there without excuse.
    lease: Option<(LeaseId, Duration)>,
}

impl Worker {
    /// Whether somebody has its slot.
    fn is_there(&self) -> bool {
        self.respondent.is_some() && !self.vacant
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    Waiting,
    Granted(LeaseId),
    Over,
}

pub struct Client {
    request: usize,
    peer: Peer,
    since: Monotonic,
    state: State,
    offered: bool,
    /// Whether its connection is handed over, and whether a worker may have it.
    handed: bool,
    lent: bool,
}

pub struct Sim {
    seed: u64,
    pub random: Random,
    pub now: Monotonic,
    pub limits: PoolLimits,
    /// Workers claim by themselves with their answer, as with a socket that comes with the offer.
    eager: bool,
    pub healing: bool,
    /// Whether there are processes and a watchdog: then nobody dies or comes by himself.
    in_a_set: bool,
    pub pool: Pool,
    epoch: Epoch,
    askers: Vec<DispatcherSide<Arc<Words>>>,
    pub workers: Vec<Worker>,
    clients: BTreeMap<ClientId, Client>,
    /// Those without a verdict.
    waiting: BTreeSet<ClientId>,
    last_client: ClientId,
    /// How often each request was started.
    started: Vec<u32>,
    /// Leases that the dispatcher has ended in their worker's place.
    aborted: BTreeSet<LeaseId>,
    /// Requests of connections that were offered a second time.
    pub offered_again: u64,
    /// Secret and client of each lease.
    leases: HashMap<LeaseId, (Token, Option<ClientId>)>,
    suspects: HashMap<Peer, Monotonic>,
    pub events: BTreeMap<(Monotonic, u64), What>,
    count: u64,
    to_look: VecDeque<WorkerNumber>,
    pub granted: u64,
    /// How long the dispatcher has been running: what a client may wait is counted by that.
    pub serving: Monotonic,
    /// Incarnations of workers that have become ready since somebody looked.
    pub readied: Vec<usize>,
    /// Who has ended his incarnation, and whether nothing comes of it.
    pub vacated: Vec<(usize, bool)>,
    /// How many rings in a row each bell has lost.
    lost: [u32; WORKERS as usize * 2],
}

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let what = if self.in_a_set { "set" } else { "core" };
            eprintln!(
                "at {:?}: repeat with PATOU_SIM_SEED={} cargo test --test simulation {what}",
                self.now, self.seed
            );
        }
    }
}

impl Sim {
    /// By itself, or in a set where nothing runs yet.
    pub fn new(seed: u64, in_a_set: bool) -> Self {
        let mut random = Random(seed);
        let limits = PoolLimits {
            workers: if in_a_set { WORKERS } else { 1 + random.below(WORKERS.into()) as u16 },
            queue: [0, 1, 4, 16][random.below(4) as usize],
            queue_timeout: Duration::from_millis(400),
            offer_timeout: Duration::from_millis(50),
            claim_timeout: Duration::from_millis(300),
            request_timeout: Duration::from_millis(500),
            slot_scan: Duration::from_millis(100),
            recycle_timeout: Duration::from_secs(10),
        };
        let worker = |_| Worker {
            memory: Arc::new(Words((0..WORDS).map(|_| AtomicU64::new(0)).collect())),
            respondent: None,
            frozen: false,
            state: Lifecycle::Starting,
            wants_recycle: false,
            vacant: false,
            answered: 0,
            request: None,
            backlog: Vec::new(),
            lease: None,
        };
        let mut sim = Self {
            seed,
            eager: random.percent(40),
            random,
            now: Monotonic(1_000_000_000),
            limits,
            healing: false,
            in_a_set,
            pool: Pool::new(limits, Epoch::FIRST),
            epoch: Epoch::FIRST,
            askers: Vec::new(),
            workers: (0..WORKERS).map(worker).collect(),
            clients: BTreeMap::new(),
            waiting: BTreeSet::new(),
            last_client: 0,
            started: Vec::new(),
            aborted: BTreeSet::new(),
            offered_again: 0,
            leases: HashMap::new(),
            suspects: HashMap::new(),
            events: BTreeMap::new(),
            count: 0,
            to_look: VecDeque::new(),
            granted: 0,
            serving: Monotonic(0),
            readied: Vec::new(),
            vacated: Vec::new(),
            lost: [0; WORKERS as usize * 2],
        };
        if in_a_set {
            for what in [What::Arrive, What::Leave] {
                sim.later(100, what);
            }
            for w in 0..sim.workers.len() {
                sim.later(20_000, What::WantRecycle(w));
                sim.later(20_000, What::Drain(w));
            }
            return sim;
        }
        sim.attach();
        sim.look_everywhere();
        for w in 0..sim.workers.len() {
            sim.later(20, What::Begin(w));
        }
        for what in [What::Arrive, What::Leave, What::Probe, What::Restart, What::Reconfigure] {
            sim.later(100, what);
        }
        for w in 0..sim.workers.len() {
            for what in [What::Freeze(w), What::Die(w), What::WantRecycle(w), What::Drain(w)] {
                sim.later(3000, what);
            }
        }
        sim
    }

    pub fn later(&mut self, ms: u64, what: What) {
        let after = self.random.millis(ms);
        self.after(after, what);
    }

    pub fn after(&mut self, after: Duration, what: What) {
        self.count += 1;
        self.events.insert((self.now + after, self.count), what);
    }

    /// Rings a bell, as bells are: mostly at once, sometimes late, twice or never.
    fn ring(&mut self, bell: What) {
        let lost = match bell {
            What::Rung(w) => &mut self.lost[2 * w],
            What::Turn(w) => &mut self.lost[2 * w + 1],
            other => panic!("no bell: {other:?}"),
        };
        let chance = self.random.below(100);
        // One that is never heard makes a silence of which no watchdog could know that nobody is to blame.
        *lost = if chance < 2 && *lost < 2 { *lost + 1 } else { 0 };
        match chance {
            0..2 if *lost > 0 => {}
            2..5 => self.later(150, bell),
            5..8 => {
                self.later(1, bell);
                self.later(20, bell);
            }
            _ => self.later(1, bell),
        }
    }

    // ---- the dispatcher's shell ----

    /// Takes the slots; the clients whose connection was offered and not taken.
    fn attach(&mut self) -> BTreeSet<ClientId> {
        let slots = self.workers.iter().map(|w| DispatcherSide::attach(w.memory.clone(), self.epoch, (1, 1), None));
        self.askers = slots.collect();
        let mut found = BTreeSet::new();
        for asker in &self.askers {
            let Some((Claim::Held(lease, phase), _)) = exchange::terms(asker.memory()) else { continue };
            let Some(&(_, Some(client))) = self.leases.get(&lease) else { continue };
            let is_free =
                |asker: &DispatcherSide<_>| phase == Phase::Revoked || phase == Phase::Offered && asker.revoke(lease);
            if self.clients[&client].handed && is_free(asker) {
                found.insert(client);
            }
        }
        found
    }

    fn look_everywhere(&mut self) {
        self.to_look = WorkerNumber::up_to(WORKERS).collect();
        self.look_around();
    }

    pub fn tell(&mut self, event: PoolEvent) {
        let actions = self.pool.handle(self.now, event);
        for action in actions {
            self.perform(action);
            self.meddle();
        }
        if !matches!(event, PoolEvent::SlotRead(..)) {
            self.look_around();
        }
    }

    pub fn look_around(&mut self) {
        while let Some(n) = self.to_look.pop_front() {
            let w = n.index();
            let seen = slot::read_slot(&mut self.askers[w], self.workers[w].is_there());
            self.tell(PoolEvent::SlotRead(n, seen));
        }
    }

    /// Sometimes a worker is faster: what it would do next it does between two steps of the dispatcher.
    fn meddle(&mut self) {
        if self.random.percent(25)
            && let Some((&key, &what)) = self.events.iter().find(|(_, what)| what.of_worker().is_some())
        {
            self.events.remove(&key);
            self.happen(what);
        }
    }

    fn perform(&mut self, action: PoolAction) {
        let touched = match action {
            PoolAction::ReadSlot(n) => Some(n),
            PoolAction::Question(n, ask) => {
                slot::write_question(&mut self.askers[n.index()], ask);
                self.ring(What::Turn(n.index()));
                None
            }
            PoolAction::Ring(n) => {
                self.ring(What::Turn(n.index()));
                None
            }
            PoolAction::Offer { worker, epoch, lease, claim_by, connection } => {
                self.offer(worker, epoch, lease, claim_by, connection);
                Some(worker)
            }
            PoolAction::Revoke(n, lease) => {
                if self.askers[n.index()].revoke(lease)
                    && let Some(&(_, Some(client))) = self.leases.get(&lease)
                {
                    self.clients.get_mut(&client).unwrap().lent = false;
                }
                Some(n)
            }
            PoolAction::Abort(n, lease) => {
                if self.askers[n.index()].abort(lease) {
                    self.aborted.insert(lease);
                }
                Some(n)
            }
            PoolAction::Reclaim(n, lease) => {
                self.askers[n.index()].reclaim(lease);
                Some(n)
            }
            PoolAction::Release(n, lease) => {
                self.askers[n.index()].release(lease);
                Some(n)
            }
            PoolAction::Clear(_) | PoolAction::Note(_, PoolNote::Corrupt) => {
                panic!("no slot is garbled here: {action:?}")
            }
            PoolAction::Grant { client, worker, lease, .. } => {
                self.grant(client, worker, lease);
                None
            }
            PoolAction::LeaseEnded { client, worker, lease, end } => {
                self.over(client, worker, lease, end);
                None
            }
            PoolAction::Refuse(client, _) => {
                self.verdict(client, State::Over);
                None
            }
            PoolAction::Note(_, PoolNote::Unclaimed(lease)) => {
                if let Some(&(_, Some(client))) = self.leases.get(&lease) {
                    self.suspects.insert(self.clients[&client].peer, self.now + SUSPICION);
                }
                None
            }
            PoolAction::Note(..) => None,
        };
        self.to_look.extend(touched.filter(|n| !self.to_look.contains(n)));
    }

    fn offer(
        &mut self,
        worker: WorkerNumber,
        epoch: Epoch,
        lease: LeaseId,
        claim_by: Monotonic,
        connection: Option<ClientId>,
    ) {
        let w = worker.index();
        let terms = LeaseTerms {
            lease,
            worker_epoch: epoch,
            dispatcher_epoch: self.epoch,
            token: Token::new(u128::from(self.random.next()) << 64 | u128::from(self.random.next())),
            claim_by,
            request_timeout: self.limits.request_timeout,
            connection: 0,
        };
        let Hold::Offered { client, lease: asked, .. } = self.pool.workers()[w].hold else {
            panic!("an offer to nobody: {:?}", self.pool.workers()[w])
        };
        assert_eq!(asked, lease);
        let free = |peer| self.suspects.get(&peer).is_none_or(|until| *until <= self.now);
        let overtaken = self.waiting.range(..client.id).find(|id| {
            let other = &self.clients[id];
            !other.offered && free(other.peer) && free(client.peer)
        });
        assert!(overtaken.is_none(), "client {} overtook {:?}", client.id, overtaken);
        let client = client.id;
        let entry = self.clients.get_mut(&client).unwrap();
        assert_eq!(connection, entry.handed.then_some(client));
        assert!(!entry.lent, "client {client} is offered to two workers");
        self.offered_again += u64::from(entry.handed && entry.offered);
        (entry.offered, entry.lent) = (true, entry.handed);
        let known = self.leases.insert(lease, (terms.token, Some(client)));
        assert!(known.is_none(), "lease {lease} was given twice");
        if self.askers[w].offer(&terms).is_ok() {
            match connection {
                // It comes, or its worker dies first.
                Some(client) => self.later(2, What::Take(w, client, lease)),
                None => self.ring(What::Turn(w)),
            }
        }
    }

    /// A connection is nobody's any more.
    fn over(&mut self, id: ClientId, worker: WorkerNumber, lease: LeaseId, end: LeaseEnd) {
        let state = std::mem::replace(&mut self.clients.get_mut(&id).unwrap().state, State::Over);
        assert_eq!(state, State::Granted(lease), "client {id} of worker {worker}: {end:?}");
        let has = self.workers[worker.index()].request == Some(lease);
        match end {
            LeaseEnd::Done | LeaseEnd::NoResponse | LeaseEnd::Cut => {
                assert!(!has, "{end:?} of lease {lease}, which goes on")
            }
            LeaseEnd::Overdue => {}
        }
        assert_eq!(
            matches!(end, LeaseEnd::Overdue | LeaseEnd::NoResponse),
            self.aborted.contains(&lease),
            "{end:?} of {lease}"
        );
    }

    fn verdict(&mut self, client: ClientId, state: State) {
        let client_state = &mut self.clients.get_mut(&client).unwrap().state;
        assert_eq!(*client_state, State::Waiting, "client {client} gets a second verdict: {state:?}");
        *client_state = state;
        self.waiting.remove(&client);
    }

    fn grant(&mut self, client: ClientId, worker: WorkerNumber, lease: LeaseId) {
        self.verdict(client, State::Granted(lease));
        self.granted += 1;
        if self.clients[&client].handed {
            assert_eq!(self.started[self.clients[&client].request], 1, "lease {lease} was not claimed");
            return;
        }
        if self.eager {
            return;
        }
        let w = worker.index();
        match self.random.below(100) {
            0..4 if !self.healing => {}
            4..10 if !self.healing => self.later(600, What::Claim(w, client)),
            _ => self.later(3, What::Claim(w, client)),
        }
    }

    /// The next dispatcher.
    pub fn restart(&mut self) {
        self.epoch = self.epoch.next();
        self.pool = Pool::new(self.limits, self.epoch);
        self.to_look.clear();
        // What waited comes back from the store; what was offered is closed, for its worker may have it, but for a
        // connection that none has taken.
        let waiting: Vec<_> = self.waiting.iter().copied().collect();
        for id in &waiting {
            self.verdict(*id, State::Over);
        }
        let found = self.attach();
        self.look_everywhere();
        for id in waiting {
            let Client { request, peer, handed, offered, lent, .. } = self.clients[&id];
            if if handed { !lent || found.contains(&id) } else { !offered } {
                self.offered_again += u64::from(lent);
                self.arrive(request, peer, handed);
            }
        }
    }

    // ---- clients ----

    pub fn arrive(&mut self, request: usize, peer: Peer, handed: bool) {
        self.last_client += 1;
        let id = self.last_client;
        let client =
            Client { request, peer, since: self.serving, state: State::Waiting, offered: false, handed, lent: false };
        self.clients.insert(id, client);
        self.waiting.insert(id);
        self.tell(if handed { PoolEvent::Connection(id, peer) } else { PoolEvent::Client(id, peer) });
    }

    /// What the client was promised has not started: it is over, or it asks anew.
    fn not_started(&mut self, id: ClientId) {
        let Client { request, peer, .. } = self.clients[&id];
        self.clients.get_mut(&id).unwrap().state = State::Over;
        assert_eq!(self.started[request], 0);
        if self.random.percent(30) {
            self.later(5, What::Again(request, peer));
        }
    }

    /// Somebody shows the worker the token of this lease.
    fn claim(&mut self, w: usize, id: ClientId, lease: LeaseId) {
        let token = self.leases[&lease].0;
        let handed = self.clients[&id].handed;
        let worker = &mut self.workers[w];
        let Some(respondent) = &worker.respondent else {
            if !handed {
                self.not_started(id);
            }
            return;
        };
        let terms = match respondent.claim(token, self.now) {
            Ok(terms) => terms,
            Err(_) if self.eager || handed => return,
            Err(_) => return self.not_started(id),
        };
        assert_eq!((terms.lease, terms.worker_epoch), (lease, respondent.epoch()), "another's lease was claimed");
        assert!(respondent.claim(token, self.now).is_err(), "lease {lease} was claimed twice");
        assert!(worker.request.is_none_or(|old| self.aborted.contains(&old)), "worker {} has two live leases", w + 1);
        worker.request = Some(lease);
        let epoch = respondent.epoch();
        let request = self.clients[&id].request;
        self.started[request] += 1;
        assert_eq!(self.started[request], 1, "request {request} of client {id} was started twice");
        let (responds, takes) = (self.random.percent(70), self.random.percent(10));
        let bound = if takes { 480 } else { 20 };
        let takes = self.random.millis(bound);
        if responds {
            self.after(takes / 2, What::Respond(w, epoch, lease));
        }
        self.after(takes, What::Finish(w, epoch, lease));
    }

    // ---- workers ----

    pub fn turn(&mut self, w: usize) {
        if self.random.percent(3) && !self.healing {
            return self.later(120, What::Turn(w));
        }
        let eager = self.eager;
        let worker = &mut self.workers[w];
        let Some(respondent) = worker.respondent.as_ref().filter(|_| !worker.vacant) else { return };
        respondent.tick(self.now);
        let before = worker.state;
        // The word counts, not the question: that may have been replaced before it was read.
        if matches!(worker.state, Lifecycle::Ready | Lifecycle::Draining) {
            worker.state = if respondent.drained() { Lifecycle::Draining } else { Lifecycle::Ready };
            respondent.set_state(worker.state, worker.wants_recycle);
        }
        let Some(question) = respondent.question(worker.answered) else {
            if worker.state != before {
                self.ring(What::Rung(w));
            }
            return;
        };
        let mut reply = respondent.decide(&question, worker.state);
        if question.kind == QuestionKind::Recycle && reply == Reply::Accept {
            if worker.wants_recycle && worker.state == Lifecycle::Ready {
                assert!(worker.request.is_none_or(|lease| self.aborted.contains(&lease)));
                worker.state = Lifecycle::Recycling;
                respondent.set_state(worker.state, true);
            } else {
                reply = Reply::Refuse(crate::ids::RefuseReason::Busy);
            }
        }
        worker.answered = question.sequence;
        respondent.reply(&question, reply);
        self.ring(What::Rung(w));
        if question.kind == QuestionKind::Recycle && reply == Reply::Accept {
            self.later(15, What::Vacate(w));
        }
        if eager
            && question.kind == QuestionKind::Offer
            && reply == Reply::Accept
            && let Some(lease) = question.lease
            && let Some(&(_, Some(client))) = self.leases.get(&lease)
            && !self.clients[&client].handed
        {
            self.claim(w, client, lease);
        }
    }

    /// Its serving task takes one connection after the other.
    fn take(&mut self, w: usize, id: ClientId, lease: LeaseId) {
        let worker = &self.workers[w];
        match worker.state {
            _ if worker.vacant || worker.respondent.is_none() => {}
            Lifecycle::Ready if worker.request.is_some() => self.later(1, What::Take(w, id, lease)),
            Lifecycle::Ready => self.claim(w, id, lease),
            _ => self.after(Duration::ZERO, What::Turn(w)),
        }
    }

    pub fn begin(&mut self, w: usize) {
        let worker = &mut self.workers[w];
        if worker.respondent.is_some() && worker.state != Lifecycle::Recycling {
            return;
        }
        let respondent = WorkerSide::attach(worker.memory.clone(), 1 + w as u32, self.now.0, None, self.now);
        worker.answered = respondent.answered();
        (worker.state, worker.wants_recycle, worker.vacant) = (Lifecycle::Starting, false, false);
        worker.request = None; // of one that was aborted
        let epoch = respondent.epoch();
        worker.respondent = Some(respondent);
        self.ring(What::Rung(w));
        self.later(20, What::Ready(w, epoch));
    }

    pub fn ready(&mut self, w: usize, epoch: Epoch) {
        let worker = &mut self.workers[w];
        let Some(respondent) = worker.respondent.as_ref().filter(|r| r.epoch() == epoch) else { return };
        worker.state = if respondent.drained() { Lifecycle::Draining } else { Lifecycle::Ready };
        respondent.set_state(worker.state, worker.wants_recycle);
        self.readied.push(w);
        self.ring(What::Rung(w));
        self.after(Duration::ZERO, What::Turn(w));
    }

    pub fn die(&mut self, w: usize) {
        let worker = &mut self.workers[w];
        worker.respondent = None;
        worker.request = None;
        (worker.frozen, worker.vacant) = (false, false);
        for what in std::mem::take(&mut worker.backlog) {
            if let What::Claim(_, client) = what {
                self.not_started(client);
            }
        }
        if !self.in_a_set {
            self.later(400, What::Begin(w));
        }
    }

    fn finish(&mut self, w: usize, epoch: Epoch, lease: LeaseId) {
        let worker = &mut self.workers[w];
        let Some(respondent) = worker.respondent.as_ref().filter(|r| r.epoch() == epoch) else { return };
        if self.aborted.contains(&lease) {
            worker.request = worker.request.filter(|held| *held != lease);
            return assert!(!respondent.done(lease));
        }
        assert_eq!(worker.request.take(), Some(lease));
        if self.random.percent(50) {
            respondent.keep_connection(lease);
        }
        assert!(respondent.done(lease), "lease {lease} of a living worker was ended");
        self.ring(What::Rung(w));
    }

    // ---- the world ----

    pub fn happen(&mut self, what: What) {
        if let Some(w) = what.of_worker()
            && self.workers[w].frozen
        {
            return self.workers[w].backlog.push(what);
        }
        match what {
            What::Arrive => {
                self.later(if self.random.0 >> 40 & 1 == 0 { 4 } else { 30 }, What::Arrive);
                self.started.push(0);
                let peer = Peer::User(self.random.below(6) as u32);
                let handed = self.random.percent(50);
                self.arrive(self.started.len() - 1, peer, handed);
            }
            What::Again(request, peer) => self.arrive(request, peer, false),
            What::Take(w, id, lease) => self.take(w, id, lease),
            What::Leave => {
                self.later(60, What::Leave);
                let waiting: Vec<_> = self.waiting.iter().copied().collect();
                if !waiting.is_empty() {
                    let id = waiting[self.random.below(waiting.len() as u64) as usize];
                    self.verdict(id, State::Over);
                    self.tell(PoolEvent::Disconnected(id));
                }
            }
            What::Rung(w) => {
                self.to_look.push_back(WorkerNumber::of(w as u16 + 1));
                self.look_around();
            }
            What::Turn(w) => self.turn(w),
            What::Claim(w, id) => {
                if let State::Granted(lease) = self.clients[&id].state {
                    self.claim(w, id, lease);
                }
            }
            What::Respond(w, epoch, lease) => {
                let respondent = self.workers[w].respondent.as_ref().filter(|r| r.epoch() == epoch);
                let responds = respondent.is_none_or(|r| r.respond(lease));
                assert!(responds != self.aborted.contains(&lease) || respondent.is_none(), "lease {lease} was aborted");
            }
            What::Finish(w, epoch, lease) => self.finish(w, epoch, lease),
            What::Freeze(w) => {
                self.later(6000, What::Freeze(w));
                if self.workers[w].respondent.is_some() {
                    self.workers[w].frozen = true;
                    self.later(1500, What::Thaw(w));
                }
            }
            What::Thaw(w) => {
                self.workers[w].frozen = false;
                for what in std::mem::take(&mut self.workers[w].backlog) {
                    self.after(Duration::ZERO, what);
                }
            }
            What::Die(w) => {
                self.later(4000, What::Die(w));
                if self.workers[w].respondent.is_some() {
                    self.die(w);
                }
            }
            What::Vacate(w) => {
                let worker = &mut self.workers[w];
                // It may have died, and another may have begun.
                if worker.respondent.is_some() && worker.state == Lifecycle::Recycling && !worker.vacant {
                    worker.vacant = true;
                    // Sometimes nothing comes of it, and somebody has to notice.
                    let stuck = self.in_a_set && !self.healing && self.random.percent(10);
                    if !stuck {
                        self.later(15, What::Begin(w));
                    }
                    self.vacated.push((w, stuck));
                    self.ring(What::Rung(w));
                }
            }
            What::Begin(w) if self.in_a_set && self.workers[w].respondent.is_none() => {} // it died over it
            What::Begin(w) => self.begin(w),
            What::Ready(w, epoch) => self.ready(w, epoch),
            What::WantRecycle(w) => {
                self.later(2000, What::WantRecycle(w));
                let worker = &mut self.workers[w];
                if let Some(respondent) = &worker.respondent
                    && !worker.frozen
                    && worker.state == Lifecycle::Ready
                {
                    worker.wants_recycle = true;
                    respondent.set_state(worker.state, true);
                    self.ring(What::Rung(w));
                }
            }
            What::Drain(w) => {
                self.later(8000, What::Drain(w));
                self.later(800, What::Resume(w));
                self.tell(PoolEvent::Drain(WorkerNumber::of(w as u16 + 1)));
            }
            What::Resume(w) => self.tell(PoolEvent::Resume(WorkerNumber::of(w as u16 + 1))),
            What::Probe => {
                self.after(PROBE, What::Probe);
                self.tell(PoolEvent::Probe);
            }
            What::Restart => {
                self.later(3000, What::Restart);
                self.restart();
            }
            What::Reconfigure => {
                self.later(4000, What::Reconfigure);
                self.limits.workers = 1 + self.random.below(WORKERS.into()) as u16;
                self.pool.reconfigure(self.limits);
            }
        }
    }

    /// Time goes on; how much. `serving`: the dispatcher runs.
    pub fn advance(&mut self, to: Monotonic, serving: bool) -> Duration {
        let passed = to.since(self.now);
        self.now = self.now.max(to);
        if serving {
            self.serving = self.serving + passed;
        }
        passed
    }

    /// Nobody did anything until `now`.
    pub fn stall(&mut self, now: Monotonic) {
        self.now = now;
        // What was due comes now, in its order, and before what follows from it.
        let rest = self.events.split_off(&(now, 0));
        for what in std::mem::replace(&mut self.events, rest).into_values() {
            self.after(Duration::ZERO, what);
        }
    }

    /// How often the control loop of worker `w` has turned.
    pub fn ticks(&self, w: usize) -> Option<u64> {
        Incarnation::load(&self.workers[w].memory).map(|life| life.ticks)
    }

    /// One event, or the tick that is due before it.
    pub fn step(&mut self) {
        let (&(next, _), _) = self.events.first_key_value().expect("there is always the next probe");
        let passed = match self.pool.deadline() {
            Some(due) if due < next => {
                let passed = self.advance(due, true);
                self.tell(PoolEvent::Tick);
                passed
            }
            _ => {
                let (_, what) = self.events.pop_first().unwrap();
                let passed = self.advance(next, true);
                self.happen(what);
                passed
            }
        };
        self.check(passed);
    }

    pub fn check(&mut self, passed: Duration) {
        let PoolLimits { queue, queue_timeout, offer_timeout, claim_timeout, request_timeout, slot_scan, .. } =
            self.limits;
        let ms = Duration::from_millis(1);
        let mut sent_back = 0;
        for id in &self.waiting {
            let client = &self.clients[id];
            let waited = self.serving.since(client.since);
            assert!(waited <= queue_timeout + offer_timeout + ms, "client {id} has waited for {waited:?}");
            sent_back += usize::from(client.offered);
        }
        let (waiting, _) = self.pool.waiting();
        assert!(waiting <= queue + sent_back, "{waiting} clients wait");
        for (w, worker) in self.workers.iter_mut().enumerate() {
            let claim = exchange::claim(&worker.memory).expect("a claim word that can be read");
            let Claim::Held(lease, phase) = claim else {
                worker.lease = None;
                continue;
            };
            let before = worker.lease.filter(|(held, _)| *held == lease).map_or(Duration::ZERO, |(_, age)| age);
            // A frozen worker is the watchdog's; a surplus one that a new dispatcher does not know ends by itself.
            let excused =
                worker.frozen && matches!(phase, Phase::Claimed | Phase::Responding) || w >= self.pool.workers().len();
            let age = if excused { before } else { before + passed };
            worker.lease = Some((lease, age));
            let bound = offer_timeout + claim_timeout + request_timeout + slot_scan + ms;
            assert!(age <= bound, "lease {lease} of worker {} is {phase:?} for {age:?}", w + 1);
        }
    }

    /// No new accident happens.
    pub fn calm(&mut self) {
        self.healing = true;
        self.events.retain(|_, what| what.is_harmless());
    }

    /// Everybody recovers; then all must be idle and serve again.
    pub fn heal(&mut self) {
        self.limits.workers = WORKERS;
        self.pool.reconfigure(self.limits);
        self.calm();
        for w in 0..self.workers.len() {
            self.happen(What::Thaw(w));
            self.tell(PoolEvent::Resume(WorkerNumber::of(w as u16 + 1)));
            if self.workers[w].respondent.is_none() {
                self.later(50, What::Begin(w));
            }
        }
        let end = self.now + SUSPICION + Duration::from_secs(2);
        while self.now < end {
            self.step();
        }
        let before = self.ask_all();
        let end = self.now + Duration::from_secs(2);
        while self.now < end {
            self.step();
        }
        self.is_well(before);
    }

    /// As many clients as there are workers come to a core that has nothing to do; how many were served before.
    pub fn ask_all(&mut self) -> u64 {
        assert!(self.waiting.is_empty(), "still waiting: {:?}", self.waiting);
        assert!(self.pool.is_quiet(), "{:#?}", self.pool.workers());
        let before = self.granted;
        for i in 0..WORKERS {
            self.started.push(0);
            self.arrive(self.started.len() - 1, Peer::User(100 + u32::from(i)), i % 2 == 0);
        }
        let asked = self.pool.workers().iter().filter(|w| w.hold != Hold::Free).count();
        assert_eq!(asked, usize::from(WORKERS), "not everybody is idle: {:#?}", self.pool.workers());
        before
    }

    /// They were served.
    pub fn is_well(&self, before: u64) {
        assert!(self.granted > before && self.pool.is_quiet(), "{:#?}", self.pool.workers());
        assert!(self.waiting.is_empty(), "still waiting: {:?}", self.waiting);
    }
}
