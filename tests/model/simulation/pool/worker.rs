//! The workers.

use std::sync::Arc;
use std::time::Duration;

use super::{PoolSimEvent, PoolSimulation};
use crate::exchange::{Incarnation, PlainSlot, QuestionKind, Reply, WorkerSide};
use crate::ids::{Epoch, LeaseId, Lifecycle, RefuseReason, Replacements};
use crate::pool::ClientId;
use crate::worker::transaction::{EndCause, Ending, LeasePhase, Transaction, TransactionEvent as E};

/// How the service of a connection ends; mostly regularly.
const CAUSES: [EndCause; 6] =
    [EndCause::Idle, EndCause::Idle, EndCause::Closed, EndCause::Broken, EndCause::ClientGone, EndCause::Deadline];

pub(crate) struct SimulatedWorker {
    pub(crate) slot: Arc<PlainSlot>,
    /// `None` while its process is dead.
    pub(crate) side: Option<WorkerSide<Arc<PlainSlot>>>,
    /// Its process is between two incarnations.
    pub(super) between_incarnations: bool,
    pub(crate) frozen: bool,
    pub(super) state: Lifecycle,
    pub(super) wants_recycle: bool,
    /// It has a warm process, which it replaces while it serves.
    pub(super) is_warm: bool,
    pub(super) replacements: Replacements,
    /// Sequence of the last answered question.
    pub(super) answered: u64,
    /// The request that it serves.
    pub(super) request: Option<Transaction>,
    /// Events that wait until it thaws.
    pub(super) backlog: Vec<PoolSimEvent>,
    /// The lease in the slot, and the time for which it has been there without an excuse.
    pub(super) lease_age: Option<(LeaseId, Duration)>,
}

impl Default for SimulatedWorker {
    fn default() -> Self {
        Self {
            slot: Arc::default(),
            side: None,
            frozen: false,
            state: Lifecycle::Starting,
            wants_recycle: false,
            is_warm: false,
            replacements: Replacements::default(),
            between_incarnations: false,
            answered: 0,
            request: None,
            backlog: Vec::new(),
            lease_age: None,
        }
    }
}

impl SimulatedWorker {
    /// The lease that it serves.
    pub(super) fn lease(&self) -> Option<LeaseId> {
        self.request.as_ref().and_then(Transaction::lease).map(|lease| lease.id)
    }

    /// Whether an incarnation holds the slot's lock.
    pub(super) fn is_alive(&self) -> bool {
        self.side.is_some() && !self.between_incarnations
    }
}

impl PoolSimulation {
    /// One turn of a worker's control loop.
    pub(super) fn turn(&mut self, w: usize) {
        if self.random.percent(3) && !self.recovering {
            return self.within(120, PoolSimEvent::WorkerTurn(w));
        }
        let claims_at_once = self.claims_at_once;
        let worker = &mut self.workers[w];
        let Some(side) = worker.side.as_ref().filter(|_| !worker.between_incarnations) else { return };
        side.tick(self.now);
        let before = worker.state;
        // The word counts, not the question: the question may have been replaced before the worker reads it.
        if matches!(worker.state, Lifecycle::Ready | Lifecycle::Draining) {
            worker.state = if side.drained() { Lifecycle::Draining } else { Lifecycle::Ready };
            side.set_state(worker.state, worker.wants_recycle);
        }
        let Some(question) = side.question(worker.answered) else {
            if worker.state != before {
                self.ring(PoolSimEvent::DispatcherRung(w));
            }
            return;
        };
        let mut reply = side.decide(&question, worker.state);
        if question.kind == QuestionKind::Recycle && reply == Reply::Accept {
            assert!(worker.lease().is_none_or(|lease| self.aborted.contains(&lease)));
            if self.random.percent(10) && !self.recovering {
                reply = Reply::Refuse(RefuseReason::Busy);
            } else if !worker.is_warm {
                worker.state = Lifecycle::Recycling;
                side.set_state(worker.state, worker.wants_recycle);
            }
        }
        let (is_warm, epoch) = (worker.is_warm, side.epoch());
        worker.answered = question.sequence;
        side.reply(&question, reply);
        self.ring(PoolSimEvent::DispatcherRung(w));
        if question.kind == QuestionKind::Recycle && reply == Reply::Accept {
            let end = if is_warm { PoolSimEvent::Replaced(w, epoch) } else { PoolSimEvent::EndIncarnation(w) };
            self.within(15, end);
        }
        if claims_at_once
            && question.kind == QuestionKind::Offer
            && reply == Reply::Accept
            && let Some(lease) = question.lease
            && let Some(&(_, Some(client))) = self.leases.get(&lease)
            && !self.clients[&client].by_handoff
        {
            self.claim(w, client, lease);
        }
    }

    /// The serving task receives one connection after the other.
    pub(super) fn receive_connection(&mut self, w: usize, id: ClientId, lease: LeaseId) {
        let worker = &self.workers[w];
        match worker.state {
            _ if !worker.is_alive() => {}
            Lifecycle::Ready if worker.request.is_some() => {
                self.within(1, PoolSimEvent::ReceiveConnection(w, id, lease));
            }
            Lifecycle::Ready => self.claim(w, id, lease),
            _ => self.after(Duration::ZERO, PoolSimEvent::WorkerTurn(w)),
        }
    }

    pub(crate) fn start_incarnation(&mut self, w: usize) {
        let worker = &mut self.workers[w];
        if worker.side.is_some() && worker.state != Lifecycle::Recycling {
            return;
        }
        let side = WorkerSide::attach(worker.slot.clone(), 1 + w as u32, self.now.0, None, self.now);
        worker.answered = side.answered();
        (worker.state, worker.wants_recycle, worker.between_incarnations) = (Lifecycle::Starting, false, false);
        worker.request = None; // an aborted one
        let epoch = side.epoch();
        worker.side = Some(side);
        self.ring(PoolSimEvent::DispatcherRung(w));
        self.within(20, PoolSimEvent::Ready(w, epoch));
    }

    pub(super) fn ready(&mut self, w: usize, epoch: Epoch) {
        let worker = &mut self.workers[w];
        let Some(side) = worker.side.as_ref().filter(|side| side.epoch() == epoch) else { return };
        worker.state = if side.drained() { Lifecycle::Draining } else { Lifecycle::Ready };
        side.set_state(worker.state, worker.wants_recycle);
        self.readied.push(w);
        self.ring(PoolSimEvent::DispatcherRung(w));
        self.after(Duration::ZERO, PoolSimEvent::WorkerTurn(w));
    }

    /// The replacement of its warm process has ended.
    pub(super) fn replaced(&mut self, w: usize, epoch: Epoch) {
        let failed = self.random.percent(10) && !self.recovering;
        let worker = &mut self.workers[w];
        let Some(side) = worker.side.as_ref().filter(|side| side.epoch() == epoch) else { return };
        worker.replacements = worker.replacements.with(failed);
        worker.wants_recycle = false;
        side.set_replacements(worker.replacements);
        side.set_state(worker.state, worker.wants_recycle);
        self.ring(PoolSimEvent::DispatcherRung(w));
    }

    pub(super) fn want_recycle(&mut self, w: usize) {
        let worker = &mut self.workers[w];
        if let Some(side) = &worker.side
            && !worker.frozen
            && worker.state == Lifecycle::Ready
        {
            worker.wants_recycle = true;
            side.set_state(worker.state, true);
            self.ring(PoolSimEvent::DispatcherRung(w));
        }
    }

    pub(super) fn end_incarnation(&mut self, w: usize) {
        let worker = &mut self.workers[w];
        // The process may have died since, and another one may have started.
        if worker.is_alive() && worker.state == Lifecycle::Recycling {
            worker.between_incarnations = true;
            // Sometimes no incarnation follows, and the watchdog must detect it.
            let is_stuck = self.in_set && !self.recovering && self.random.percent(10);
            if !is_stuck {
                self.within(15, PoolSimEvent::StartIncarnation(w));
            }
            self.ended_incarnations.push((w, is_stuck));
            self.ring(PoolSimEvent::DispatcherRung(w));
        }
    }

    /// The process dies.
    pub(crate) fn die(&mut self, w: usize) {
        let worker = &mut self.workers[w];
        worker.side = None;
        worker.request = None;
        (worker.frozen, worker.between_incarnations) = (false, false);
        for event in std::mem::take(&mut worker.backlog) {
            if let PoolSimEvent::Claim(_, client) = event {
                self.not_started(client);
            }
        }
        if !self.in_set {
            self.within(400, PoolSimEvent::StartIncarnation(w));
        }
    }

    /// The worker starts its response, or finds that the dispatcher has aborted the lease.
    pub(super) fn respond(&mut self, w: usize, epoch: Epoch, lease: LeaseId) {
        let is_aborted = self.aborted.contains(&lease);
        let worker = &mut self.workers[w];
        let Some(side) = worker.side.as_ref().filter(|side| side.epoch() == epoch) else { return };
        let responds = side.respond(lease);
        assert!(responds != is_aborted, "lease {lease} was aborted");
        if let Some(transaction) =
            worker.request.as_mut().filter(|held| held.lease().is_some_and(|held| held.id == lease))
        {
            transaction.on(if responds { E::Responding } else { E::LeaseLost });
            transaction.on(E::ResponseStarted(200, self.now));
        }
    }

    /// The request ends, in one of many ways.
    pub(super) fn finish(&mut self, w: usize, epoch: Epoch, lease: LeaseId) {
        if self.workers[w].side.as_ref().is_none_or(|side| side.epoch() != epoch) {
            return;
        }
        let worker = &mut self.workers[w];
        let is_held = worker.lease() == Some(lease);
        if let Some(transaction) = worker.request.as_mut().filter(|_| is_held) {
            for event in [E::BodyEnded, E::BodyDropped, E::ResponseEnded, E::ResponseFailed, E::NextWanted] {
                if self.random.percent(80) {
                    transaction.on(event);
                }
            }
            transaction.on(E::Ended(CAUSES[self.random.below(CAUSES.len() as u64) as usize]));
            if transaction.lease_phase() == LeasePhase::Claimed {
                self.respond(w, epoch, lease);
            }
        }
        let worker = &mut self.workers[w];
        let Some(side) = &worker.side else { return };
        let is_aborted = self.aborted.contains(&lease);
        if let Some(transaction) = worker.request.take_if(|_| is_held) {
            let ending = transaction.ending();
            assert_eq!(ending == Ending::LeaveOpen, is_aborted, "lease {lease}: {ending:?}");
            assert!(ending != Ending::KeepAlive || !transaction.is_request_open(), "{transaction:?}");
            self.endings.insert(lease, ending);
            if ending == Ending::KeepAlive {
                side.keep_connection(lease);
            }
        }
        if is_aborted {
            return assert!(!side.done(lease));
        }
        assert!(is_held && side.done(lease), "lease {lease} of a living worker was ended");
        self.ring(PoolSimEvent::DispatcherRung(w));
    }

    /// The turns of the control loop.
    pub(crate) fn ticks(&self, w: usize) -> Option<u64> {
        Incarnation::load(&self.workers[w].slot).map(|life| life.ticks)
    }
}
