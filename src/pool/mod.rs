//! The decisions of the dispatcher for one pool: whom to ask, who waits, who is late, whose turn it is.
//!
//! Pure: no I/O, no clock, no chance. The shell tells it what happened ([`PoolEvent`]) and when, performs the
//! [`PoolAction`]s it returns in order, and tells it what the slot says afterwards ([`PoolEvent::SlotView`]). A state
//! read from a slot is the only proof of anything: after an action on a slot the shell always looks again,
//! and a decision is only taken on what was seen.
//!
//! Idle workers are taken last in, first out, so that caches stay warm and surplus workers stay asleep; one that missed
//! an offer comes last.

mod counters;
mod messages;
mod queue;
mod release;
mod worker;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::ids::{Epoch, LeaseId, Monotonic};
use crate::stats::Counters;
pub use messages::{
    ClientId, LeaseEnd, Peer, PoolAction, PoolEvent, PoolLimits, PoolNote, Refusal, SlotAnswer, SlotQuestion, SlotView,
};
use queue::{Queue, Waiting};
pub use worker::{Hold, Worker};

/// How long a peer whose lease ended unused gets only one unclaimed lease at a time.
pub const SUSPICION: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Worker(u16),
    Client(ClientId),
    Probe,
}

/// So many workers are asked for a sign of life at once, and the next ones after a pause: each of them wakes up for it, and
/// a thousand together would keep every core from the clients.
const ASKED_AT_ONCE: u16 = 64;
const ASKING_PAUSE: Duration = Duration::from_millis(10);

/// One pool.
#[derive(Debug)]
pub struct Pool {
    limits: PoolLimits,
    epoch: Epoch,
    leases: u64,
    /// Index `n - 1` is worker `n`.
    workers: Vec<Worker>,
    /// Numbers of idle workers, taken from the back. May hold some that are no longer: checked when taken.
    idle: VecDeque<u16>,
    queue: Queue,
    timers: BTreeSet<(Monotonic, Timer)>,
    /// The next worker to be asked for a sign of life, while not all have been.
    asking: Option<u16>,
    /// The worker that is being replaced by its next incarnation, the incarnation that is to go, and until when
    /// at the latest the others wait for it.
    recycling: Option<(u16, Epoch, Monotonic)>,
    stopping: bool,
    /// Whether the watchdog has given up every worker.
    failed: bool,
    tally: Counters,
    actions: Vec<PoolAction>,
}

impl Pool {
    /// A pool of which nothing is known yet; `epoch` is the dispatcher's. Look at every slot next.
    pub fn new(limits: PoolLimits, epoch: Epoch) -> Self {
        Self {
            workers: vec![Worker::default(); limits.workers.into()],
            limits,
            epoch,
            leases: 0,
            idle: VecDeque::new(),
            queue: Queue::default(),
            timers: BTreeSet::new(),
            asking: None,
            recycling: None,
            stopping: false,
            failed: false,
            tally: counters::zero(),
            actions: Vec::new(),
        }
    }

    /// Takes new bounds. Workers beyond `limits.workers` get no new client and leave when they are free.
    /// A tick is due at once: it looks at every worker, the new ones among them.
    pub fn reconfigure(&mut self, limits: PoolLimits) {
        self.limits = limits;
        let count = usize::from(limits.workers).max(self.workers.len());
        self.workers.resize(count, Worker::default());
        for n in 1..=limits.workers {
            self.consider(n);
        }
        self.shrink();
        for n in 1..=self.workers.len() as u16 {
            self.set_timer(n, Some(Monotonic(0)));
        }
    }

    /// The workers it knows: `limits.workers`, and those beyond that have not left yet.
    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// How many clients wait, and since when the first of them.
    pub fn waiting(&self) -> (usize, Option<Monotonic>) {
        (self.queue.len(), self.queue.oldest())
    }

    /// What it has done up to now: how many leases it granted, how many expired or were revoked, whom it refused and
    /// why, how often it recycled, and how long clients waited until their lease was granted.
    pub fn tally(&self) -> &Counters {
        &self.tally
    }

    /// How many leases have been given; see [`Pool::count_from`].
    pub fn leases(&self) -> u64 {
        self.leases
    }

    /// The next lease is at least the one after this: pools of one dispatcher count on from each other, so that
    /// no two leases of a set have one number.
    pub fn count_from(&mut self, leases: u64) {
        self.leases = self.leases.max(leases);
    }

    /// When the next [`PoolEvent::Tick`] is due.
    pub fn deadline(&self) -> Option<Monotonic> {
        self.timers.first().map(|(time, _)| *time)
    }

    /// Whether no client waits and no lease is out.
    pub fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.workers.iter().all(|w| w.hold == Hold::Free)
    }

    /// Takes in what happened and returns what to do.
    pub fn handle(&mut self, now: Monotonic, event: PoolEvent) -> Vec<PoolAction> {
        match event {
            PoolEvent::Client(client, peer) => self.arrive(now, client, peer, false),
            PoolEvent::Connection(client, peer) => self.arrive(now, client, peer, true),
            PoolEvent::Left(client) => self.leave(client),
            PoolEvent::Seen(n, seen) if self.knows(n) => self.see(now, n, seen),
            PoolEvent::Tick => self.tick(now),
            PoolEvent::Probe if self.asking.is_none() => self.probe(now, 1),
            PoolEvent::Drain(n) if self.knows(n) => self.order(now, n, true),
            PoolEvent::Resume(n) if self.knows(n) => self.order(now, n, false),
            PoolEvent::Quiesce => self.quiesce(),
            PoolEvent::Failed(failed) => self.failed = failed,
            PoolEvent::Seen(..) | PoolEvent::Drain(_) | PoolEvent::Resume(_) | PoolEvent::Probe => {}
        }
        self.serve(now);
        if let Some(refusal) = self.in_vain() {
            self.refuse_all(refusal);
        }
        if self.limits.queue == 0 {
            self.refuse_all(Refusal::NobodyFree);
        }
        let actions = std::mem::take(&mut self.actions);
        counters::take_in(&mut self.tally, &actions);
        actions
    }

    fn knows(&self, n: u16) -> bool {
        n >= 1 && usize::from(n) <= self.workers.len()
    }

    fn worker(&mut self, n: u16) -> &mut Worker {
        &mut self.workers[usize::from(n) - 1]
    }

    fn arrive(&mut self, now: Monotonic, client: ClientId, peer: Peer, handed: bool) {
        if self.stopping {
            return self.actions.push(PoolAction::Refuse(client, Refusal::Stopping));
        }
        if let Some(refusal) = self.in_vain() {
            return self.actions.push(PoolAction::Refuse(client, refusal));
        }
        let due = now + self.limits.queue_timeout;
        self.queue.push(Waiting { id: client, peer, since: now, due, handed });
        self.serve(now);
        if self.queue.contains(client) && self.queue.len() > self.limits.queue {
            self.queue.remove(client);
            let refusal = match self.limits.queue {
                0 => Refusal::NobodyFree,
                bound => Refusal::QueueFull(bound),
            };
            return self.actions.push(PoolAction::Refuse(client, refusal));
        }
        if self.queue.contains(client) {
            self.timers.insert((due, Timer::Client(client)));
        }
    }

    fn leave(&mut self, client: ClientId) {
        if let Some(waiting) = self.queue.remove(client) {
            self.timers.remove(&(waiting.due, Timer::Client(client)));
            return;
        }
        for n in 1..=self.workers.len() as u16 {
            match self.worker(n).hold {
                Hold::Asked { lease, client: asked, .. } if asked.id == client => {
                    self.let_go(n, lease);
                    self.actions.push(PoolAction::Revoke(n, lease));
                }
                _ => self.worker(n).forget(client),
            }
        }
    }

    /// Why waiting would be in vain, if it would: an operator keeps every worker from clients, all are given up, or the
    /// pool is not part of the set any more.
    /// Who is merely gone may come back any moment; and who is back is seen here before the watchdog says so.
    fn in_vain(&self) -> Option<Refusal> {
        let count = usize::from(self.limits.workers);
        let workers = || self.workers.iter().take(count);
        if workers().all(|worker| worker.drained) {
            return Some(Refusal::OutOfService);
        }
        (self.failed && !workers().any(|worker| worker.up)).then_some(Refusal::Failed)
    }

    fn quiesce(&mut self) {
        self.stopping = true;
        self.refuse_all(Refusal::Stopping);
    }

    fn refuse_all(&mut self, refusal: Refusal) {
        for client in self.queue.take_all() {
            self.timers.remove(&(client.due, Timer::Client(client.id)));
            self.actions.push(PoolAction::Refuse(client.id, refusal));
        }
    }

    fn tick(&mut self, now: Monotonic) {
        while let Some(&(time, timer)) = self.timers.first()
            && time <= now
        {
            self.timers.pop_first();
            match timer {
                Timer::Worker(n) => {
                    self.worker(n).timer = None;
                    self.actions.push(PoolAction::Look(n));
                }
                Timer::Client(client) => {
                    if let Some(waiting) = self.queue.remove(client) {
                        let waited = now.since(waiting.since);
                        self.actions.push(PoolAction::Refuse(client, Refusal::QueueTimeout(waited)));
                    }
                }
                Timer::Probe => {
                    if let Some(next) = self.asking {
                        self.probe(now, next);
                    }
                }
            }
        }
    }

    /// Everybody who is up owes a sign of life: who has not answered is rung again, the others are asked.
    /// An answer or a new incarnation whose ring was lost is found here at the latest. From worker `first` on.
    fn probe(&mut self, now: Monotonic, first: u16) {
        let last = (self.workers.len() as u16).min(first.saturating_add(ASKED_AT_ONCE - 1));
        self.asking = (usize::from(last) < self.workers.len()).then_some(last + 1);
        if self.asking.is_some() {
            self.timers.insert((now + ASKING_PAUSE, Timer::Probe));
        }
        for n in first..=last {
            let worker = self.worker(n);
            if !worker.up {
                self.actions.push(PoolAction::Look(n));
            } else if worker.silent_since.is_some() {
                self.actions.extend([PoolAction::Ring(n), PoolAction::Look(n)]);
            } else {
                let question = match worker.hold {
                    Hold::Busy { lease, .. } => SlotQuestion::Finished(lease),
                    _ => SlotQuestion::Ping,
                };
                self.ask(now, n, question);
            }
        }
    }

    /// The order takes the place of the question that is open in the slot, whatever that was.
    fn order(&mut self, now: Monotonic, n: u16, drained: bool) {
        if let Hold::Asked { lease, .. } = self.worker(n).hold {
            self.take_back(n);
            self.actions.push(PoolAction::Revoke(n, lease));
        }
        if self.is_recycling(n) && self.worker(n).silent_since.is_some() {
            self.recycling = None;
        }
        self.worker(n).drained = drained;
        self.ask(now, n, if drained { SlotQuestion::Drain } else { SlotQuestion::Resume });
        self.consider(n);
    }

    fn ask(&mut self, now: Monotonic, n: u16, question: SlotQuestion) {
        self.worker(n).silent_since.get_or_insert(now);
        self.actions.push(PoolAction::Ask(n, question));
    }

    /// Gives idle workers to waiting clients for as long as there are both.
    fn serve(&mut self, now: Monotonic) {
        while !self.queue.is_empty() {
            let Some(n) = self.next_idle() else { return };
            let Some(client) = self.queue.take_next(now) else {
                return self.push_idle(n);
            };
            self.timers.remove(&(client.due, Timer::Client(client.id)));
            self.leases += 1;
            let lease = LeaseId::of(self.epoch, self.leases);
            let until = now + self.limits.offer_timeout;
            // A connection is the worker's to claim, and its claim is its answer. A worker that is silent there is
            // asked at the next probe: what ends a silence is an answer of its control loop, and nothing else.
            let claim_by = if client.handed { until } else { until + self.limits.claim_timeout };
            let worker = self.worker(n);
            let epoch = worker.epoch.expect("an idle worker has an epoch");
            if !client.handed {
                worker.silent_since.get_or_insert(now);
            }
            worker.hold = Hold::Asked { lease, client, until, claim_by };
            self.queue.unclaimed(client, 1);
            self.set_timer(n, Some(until));
            let connection = client.handed.then_some(client.id);
            self.actions.push(PoolAction::Offer { worker: n, epoch, lease, claim_by, connection });
        }
    }

    fn next_idle(&mut self) -> Option<u16> {
        while let Some(n) = self.idle.pop_back() {
            self.worker(n).listed = false;
            if self.is_idle(n) {
                return Some(n);
            }
        }
        None
    }

    fn is_idle(&self, n: u16) -> bool {
        let worker = &self.workers[usize::from(n) - 1];
        n <= self.limits.workers && worker.is_idle() && !self.is_recycling(n)
    }

    fn is_recycling(&self, n: u16) -> bool {
        self.recycling.is_some_and(|(recycling, ..)| recycling == n)
    }

    fn push_idle(&mut self, n: u16) {
        let worker = self.worker(n);
        if !worker.listed {
            worker.listed = true;
            match worker.shunned {
                // Its control loop answers; whether its serving task does, it may show when it is needed.
                true => self.idle.push_front(n),
                false => self.idle.push_back(n),
            }
        }
    }

    /// Lists the worker as idle if it is.
    fn consider(&mut self, n: u16) {
        if self.is_idle(n) {
            self.push_idle(n);
        }
    }

    fn set_timer(&mut self, n: u16, at: Option<Monotonic>) {
        let old = std::mem::replace(&mut self.worker(n).timer, at);
        if old != at {
            if let Some(old) = old {
                self.timers.remove(&(old, Timer::Worker(n)));
            }
            if let Some(at) = at {
                self.timers.insert((at, Timer::Worker(n)));
            }
        }
    }

    /// Forgets workers at the end of the list that are surplus and gone.
    fn shrink(&mut self) {
        while self.workers.len() > self.limits.workers.into()
            && let Some(last) = self.workers.last()
            && !last.up
            && last.hold == Hold::Free
        {
            let n = self.workers.len() as u16;
            self.set_timer(n, None);
            self.idle.retain(|idle| *idle != n);
            self.workers.pop();
        }
    }
}

#[cfg(test)]
mod tests;
