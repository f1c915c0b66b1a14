//! What a pool does when something happens.

use std::time::Duration;

use super::counters;
use super::hold::Hold;
use super::lease_table::{Pool, Timer};
use super::messages::{ClientId, Peer, PoolAction, PoolEvent, Refusal, SlotQuestion};
use super::queue::Waiting;
use crate::ids::{LeaseId, Monotonic};

/// So many workers are asked for a sign of life at once, and the next ones after a pause: each of them wakes up for it, and
/// a thousand together would keep every core from the clients.
const ASKED_AT_ONCE: u16 = 64;
const ASKING_PAUSE: Duration = Duration::from_millis(10);

impl Pool {
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
}
