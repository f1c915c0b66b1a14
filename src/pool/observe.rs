//! What the content of a slot means for its worker.

use super::counters;
use super::hold::{Hold, HoldEvent, Return};
use super::lease_table::Pool;
use super::messages::{ClientAction, PoolAction, PoolNote, SlotAction, SlotAnswer, SlotQuestion, SlotView};
use super::recycling::RecyclingEnd;
use super::seen_lease::{BoundTo, SeenLease};
use super::worker::MissedOffer;
use crate::ids::{Claim, Lifecycle, Monotonic, WorkerNumber};

impl Pool {
    /// Handles the content of a slot: first the incarnation, then its answer, then the claim word.
    pub(super) fn observe(&mut self, now: Monotonic, n: WorkerNumber, seen: SlotView) {
        self.observe_life(now, n, &seen);
        let bound_to = BoundTo::of(seen.terms, self.worker(n).living());
        if let Some(answer) = seen.answer {
            self.observe_answer(now, n, answer, bound_to);
        }
        let lease = SeenLease::of(&seen, bound_to, self.epoch);
        let worker = self.worker(n);
        if worker.hold.offer().is_some_and(|offer| lease.claimed() == Some(offer.lease)) {
            worker.missed_offer = worker.missed_offer.claimed();
        }
        self.step(now, n, HoldEvent::SlotRead(lease));
        self.decide_session(n, &seen, bound_to);
        self.schedule_worker(now, n, seen.answer);
    }

    fn observe_life(&mut self, now: Monotonic, n: WorkerNumber, seen: &SlotView) {
        let worker = self.worker(n);
        let before = worker.living();
        worker.observe_life(now, seen);
        let after = worker.living();
        let until = now + self.limits.recycle_timeout;
        if let Some(end) = self.recycling.observe(now, n, &self.workers[n.index()], until) {
            self.end_recycling(n, end);
        }
        if before != after {
            let notes = before.map(PoolNote::Down).into_iter().chain(after.map(PoolNote::Up));
            self.actions.extend(notes.map(|note| PoolAction::Note(n, note)));
        }
    }

    /// The next worker for which an operator has requested it follows; none after a failure.
    fn end_recycling(&mut self, n: WorkerNumber, end: RecyclingEnd) {
        match end {
            RecyclingEnd::Replaced => {
                self.counters.count(counters::RECYCLED);
                self.worker(n).recycle_requested = false;
            }
            RecyclingEnd::Failed => self.workers.iter_mut().for_each(|worker| worker.recycle_requested = false),
        }
        let requested = WorkerNumber::up_to(u16::MAX).zip(&self.workers).filter(|(_, worker)| worker.recycle_requested);
        self.actions.extend(requested.map(|(n, _)| PoolAction::Slot(n, SlotAction::Read)));
    }

    /// Permits a session to the client of a lease that wants one, unless the pool has as many as it may have.
    fn decide_session(&mut self, n: WorkerNumber, seen: &SlotView, bound_to: BoundTo) {
        let Some(lease) = seen.session.wanted else { return };
        // A pipelined request comes after a response.
        let is_in_service = seen.claim.and_then(Claim::in_service) == Some(lease) && bound_to == BoundTo::Living;
        if !is_in_service || seen.session.decided.is_some_and(|(decided, _)| decided == lease) {
            return;
        }
        let max = usize::from(self.limits.max_sessions);
        let open = self.workers.iter().filter(|worker| worker.session.is_some()).count();
        let unknown = self.workers.iter().filter(|worker| worker.may_have_unknown_session()).count();
        if open < max && open + unknown >= max {
            return; // the next look at the slot decides, as soon as the others are known
        }
        let is_permitted = open < max;
        self.worker(n).session = is_permitted.then_some(lease);
        self.actions.push(PoolAction::Slot(n, SlotAction::DecideSession { lease, is_permitted }));
    }

    fn observe_answer(&mut self, now: Monotonic, n: WorkerNumber, answer: SlotAnswer, bound_to: BoundTo) {
        let worker = self.worker(n);
        worker.silent_since = None;
        if worker.is_late() {
            self.actions.push(PoolAction::Note(n, PoolNote::Back));
        }
        let worker = self.worker(n);
        worker.missed_offer = worker.missed_offer.answered();
        match answer {
            SlotAnswer::Accept(lease) => self.step(now, n, HoldEvent::Accepted(lease, bound_to)),
            SlotAnswer::Refuse(lease, _) => self.step(now, n, HoldEvent::Refused(lease)),
            SlotAnswer::Recycle(false) => self.recycling.cancel(n),
            SlotAnswer::Recycle(true) => self.recycling.accept(n),
            SlotAnswer::Ack => {}
        }
    }

    /// Passes an event to what holds the worker, and does what follows from it.
    pub(super) fn step(&mut self, now: Monotonic, n: WorkerNumber, event: HoldEvent) {
        let hold = self.worker(n).hold;
        let step = hold.step(now, event);
        self.worker(n).hold = step.hold;
        if let Some(offer) = step.grant {
            self.counters.times.record(now.since(offer.client.since));
            let grant = ClientAction::Grant { worker: n, lease: offer.lease, claim_by: offer.claim_by };
            self.actions.push(PoolAction::Client(offer.client.id, grant));
        }
        match (step.note, hold) {
            (Some(PoolNote::Late(_)), _) => self.worker(n).missed_offer = MissedOffer::Silent,
            // A worker that does not serve has sent the client back, or not accepted it.
            (Some(PoolNote::Unclaimed(_)), Hold::Granted(offer)) if self.serves(n, now) => {
                self.queue.suspect(offer.client.peer, now);
            }
            _ => {}
        }
        self.actions.extend(step.note.map(|note| PoolAction::Note(n, note)));
        if let Some(client) = hold.unclaimed_by()
            && step.hold.unclaimed_by().is_none()
        {
            self.queue.count_unclaimed(client, -1);
        }
        match step.client {
            Some(Return::Queue(client)) => self.requeue(now, client),
            Some(Return::Dispatcher(client, lease, end)) => {
                self.actions.push(PoolAction::Client(client, ClientAction::LeaseEnded { worker: n, lease, end }));
            }
            None => {}
        }
        self.actions.extend(step.slot.map(|action| PoolAction::Slot(n, action)));
    }

    /// Whether the worker is ready, and has left no question open for so long that its client may not have reached it
    /// either.
    fn serves(&self, n: WorkerNumber, now: Monotonic) -> bool {
        let worker = &self.workers[n.index()];
        let is_silent = worker.silent_since.is_some_and(|since| now.since(since) >= self.limits.offer_timeout);
        worker.state == Some(Lifecycle::Ready) && !is_silent
    }

    /// Completes every read: the next timer, the next question, the idle list.
    fn schedule_worker(&mut self, now: Monotonic, n: WorkerNumber, answer: Option<SlotAnswer>) {
        let scan = now + self.limits.slot_scan;
        let read_by = self.worker(n).hold.read_by(scan);
        self.set_timer(n, read_by);
        let until = now + self.limits.recycle_timeout;
        if answer != Some(SlotAnswer::Recycle(false)) && self.recycling.start(n, &self.workers[n.index()], until) {
            self.question(now, n, SlotQuestion::Recycle);
        }
        self.list_if_idle(n);
        self.remove_surplus();
    }
}
