//! [`Pool::handle`]: queues clients, offers them to idle workers, and pings, drains and times out.

use std::time::Duration;

use super::counters;
use super::hold::{AdoptedLease, Hold, HoldEvent, Offer};
use super::lease_table::{Pool, PoolTimer};
use super::messages::{ClientAction, ClientId, Peer, PoolAction, PoolEvent, Refusal, SlotAction, SlotQuestion};
use super::queue::QueuedClient;
use super::worker::Worker;
use crate::ids::{LeaseId, Monotonic, WorkerNumber};

/// A probe pings this many workers, and the next ones after a pause: each of them wakes up for it, and a thousand at
/// once would keep every core from the clients.
const PING_BATCH: usize = 64;
const PING_PAUSE: Duration = Duration::from_millis(10);

impl Pool {
    /// Handles one event and returns the actions that follow from it.
    pub(crate) fn handle(&mut self, now: Monotonic, event: PoolEvent) -> Vec<PoolAction> {
        match event {
            PoolEvent::Client(id, peer) => self.enqueue(now, self.queued_client(now, id, peer, false)),
            PoolEvent::Connection(id, peer) => self.enqueue(now, self.queued_client(now, id, peer, true)),
            PoolEvent::Disconnected(client) => self.remove_client(now, client),
            PoolEvent::Adopted(n, client, terms) if self.has_worker(n) => {
                self.step(now, n, HoldEvent::Adopted(AdoptedLease::of(now, client, &terms)));
            }
            PoolEvent::SlotRead(n, seen) if self.has_worker(n) => self.observe(now, n, seen),
            PoolEvent::Tick => self.tick(now),
            PoolEvent::Probe if self.next_ping.is_none() => self.ping_workers(now, WorkerNumber::FIRST),
            PoolEvent::Drain(n) if self.has_worker(n) => self.set_drained(now, n, true),
            PoolEvent::Resume(n) if self.has_worker(n) => self.set_drained(now, n, false),
            PoolEvent::Recycle(n) if self.has_worker(n) => self.request_recycle(n),
            PoolEvent::Quiesce => self.quiesce(),
            PoolEvent::Failed(failed) => self.failed = failed,
            PoolEvent::Rejected(rejection) => self.counters.count(rejection.counted_as()),
            PoolEvent::Adopted(..) | PoolEvent::SlotRead(..) => {}
            PoolEvent::Drain(_) | PoolEvent::Resume(_) | PoolEvent::Recycle(_) | PoolEvent::Probe => {}
        }
        self.offer_to_idle(now);
        if let Some(refusal) = self.unavailable() {
            self.refuse_all(refusal);
        }
        if self.limits.queue == 0 {
            self.refuse_all(Refusal::NoWorkerFree);
        }
        let actions = std::mem::take(&mut self.actions);
        counters::count(&mut self.counters, &actions);
        actions
    }

    fn queued_client(&self, now: Monotonic, id: ClientId, peer: Peer, is_handoff: bool) -> QueuedClient {
        QueuedClient { id, peer, since: now, due: now + self.limits.queue_timeout, is_handoff, turn: None }
    }

    fn enqueue(&mut self, now: Monotonic, client: QueuedClient) {
        if self.stopping {
            return self.refuse(client, Refusal::Stopping);
        }
        if let Some(refusal) = self.unavailable() {
            return self.refuse(client, refusal);
        }
        if let Some(client) = self.queue.skip(client, now)
            && let Some(n) = self.pop_idle()
        {
            return self.offer(now, n, client);
        }
        self.queue.push(client);
        self.offer_to_idle(now);
        if self.queue.contains(client.id) && self.queue.len() > self.limits.queue {
            let refusal = match self.limits.queue {
                0 => Refusal::NoWorkerFree,
                bound => Refusal::QueueFull(bound),
            };
            if let Some(surplus) = self.queue.remove_surplus(client) {
                self.refuse(surplus, refusal);
            }
        }
    }

    fn remove_client(&mut self, now: Monotonic, id: ClientId) {
        if self.queue.remove(id).is_some() {
            return;
        }
        let has_client = |worker: &Worker| worker.hold.offer().is_some_and(|offer| offer.client.id == id);
        let mut workers = WorkerNumber::up_to(self.workers.len() as u16);
        if let Some(n) = workers.find(|n| has_client(&self.workers[n.index()])) {
            self.step(now, n, HoldEvent::ClientLeft(id));
        }
    }

    /// Why no client can get a worker however long it waits: an operator has drained every worker, the watchdog has
    /// given up all of them, or the pool has been removed from the set. A worker that is only down may be back at any
    /// moment, and one that is back is seen here before the watchdog reports it.
    fn unavailable(&self) -> Option<Refusal> {
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
        while let Some(client) = self.queue.remove_oldest() {
            self.refuse(client, refusal);
        }
    }

    fn refuse(&mut self, client: QueuedClient, refusal: Refusal) {
        self.actions.push(PoolAction::Client(client.id, ClientAction::Refuse(refusal)));
    }

    fn tick(&mut self, now: Monotonic) {
        while let Some(&(time, timer)) = self.timers.first()
            && time <= now
        {
            self.timers.pop_first();
            match timer {
                PoolTimer::Worker(n) => {
                    self.worker(n).timer = None;
                    self.actions.push(PoolAction::Slot(n, SlotAction::Read));
                }
                PoolTimer::Probe => {
                    if let Some(next) = self.next_ping {
                        self.ping_workers(now, next);
                    }
                }
            }
        }
        while let Some(client) = self.queue.pop_overdue(now) {
            self.refuse(client, Refusal::QueueTimeout(now.since(client.since)));
        }
    }

    /// Every worker that is up must prove that it is alive: one with an open question is rung again, the others get a
    /// question. An answer or a new incarnation with a lost ring is found here at the latest. Starts at worker `first`.
    fn ping_workers(&mut self, now: Monotonic, first: WorkerNumber) {
        let mut rest = WorkerNumber::up_to(self.workers.len() as u16).skip(first.index());
        let batch: Vec<_> = rest.by_ref().take(PING_BATCH).collect();
        self.next_ping = rest.next();
        if self.next_ping.is_some() {
            self.timers.insert((now + PING_PAUSE, PoolTimer::Probe));
        }
        for n in batch {
            let worker = self.worker(n);
            if !worker.up {
                self.actions.push(PoolAction::Slot(n, SlotAction::Read));
            } else if worker.silent_since.is_some() {
                self.actions.extend([PoolAction::Slot(n, SlotAction::Ring), PoolAction::Slot(n, SlotAction::Read)]);
            } else {
                let question = match worker.hold {
                    Hold::Busy(lease) | Hold::HandedOff { lease, .. } => SlotQuestion::Finished(lease),
                    _ => SlotQuestion::Ping,
                };
                self.question(now, n, question);
            }
        }
    }

    /// The question replaces any other that is open in the slot.
    fn set_drained(&mut self, now: Monotonic, n: WorkerNumber, drained: bool) {
        self.step(now, n, HoldEvent::QuestionReplaced);
        if self.worker(n).silent_since.is_some() {
            self.recycling.cancel(n);
        }
        self.worker(n).drained = drained;
        self.question(now, n, if drained { SlotQuestion::Drain } else { SlotQuestion::Resume });
        self.list_if_idle(n);
    }

    /// An operator requests a recycle. The read starts it if nothing prevents it.
    fn request_recycle(&mut self, n: WorkerNumber) {
        self.worker(n).recycle_requested = true;
        // A session in the worker ends within drain_timeout.
        if let Some(lease) = self.worker(n).session {
            self.actions.push(PoolAction::Slot(n, SlotAction::DecideSession { lease, is_permitted: false }));
        }
        self.actions.push(PoolAction::Slot(n, SlotAction::Read));
    }

    /// Queues the client of a failed offer again, within its original time limit.
    pub(super) fn requeue(&mut self, now: Monotonic, client: QueuedClient) {
        if self.stopping {
            self.refuse(client, Refusal::Stopping);
        } else if client.due <= now && self.limits.queue > 0 {
            self.refuse(client, Refusal::QueueTimeout(now.since(client.since)));
        } else {
            self.queue.push(client);
        }
    }

    /// Offers waiting clients to idle workers, as long as there are both.
    fn offer_to_idle(&mut self, now: Monotonic) {
        while !self.queue.is_empty() {
            let Some(n) = self.pop_idle() else { return };
            let Some(client) = self.queue.pop(now) else {
                return self.push_idle(n);
            };
            self.offer(now, n, client);
        }
    }

    /// Offers a client to an idle worker.
    fn offer(&mut self, now: Monotonic, n: WorkerNumber, client: QueuedClient) {
        self.leases += 1;
        let lease = LeaseId::of(self.epoch, self.leases);
        let answer_by = now + self.limits.offer_timeout;
        // With handoff delivery the claim is the answer, and the offer starts no silence: only an answer of the control
        // loop ends one. The next probe pings the worker.
        let claim_by = if client.is_handoff { answer_by } else { answer_by + self.limits.claim_timeout };
        let request_timeout = self.limits.request_timeout;
        let worker = self.worker(n);
        let epoch = worker.epoch.expect("an idle worker has an epoch");
        if !client.is_handoff {
            worker.silent_since.get_or_insert(now);
        }
        let offer = Offer { lease, client, claim_by, request_timeout };
        worker.hold = Hold::Offered { offer, answer_by };
        self.queue.count_unclaimed(client, 1);
        self.set_timer(n, Some(answer_by));
        let connection = client.is_handoff.then_some(client.id);
        self.actions.push(PoolAction::Slot(n, SlotAction::Offer { epoch, lease, claim_by, connection }));
    }
}
