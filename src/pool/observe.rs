//! What the content of a slot means for its worker.

use super::counters;
use super::hold::Hold;
use super::lease_table::{Pool, Recycling};
use super::messages::{LeaseEnd, PoolAction, PoolNote, SlotAction, SlotAnswer, SlotQuestion, SlotView};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Phase, WorkerNumber};

impl Pool {
    /// Handles the content of a slot: first the incarnation, then its answer, then the claim word.
    pub(super) fn observe(&mut self, now: Monotonic, n: WorkerNumber, seen: SlotView) {
        self.observe_life(now, n, &seen);
        if let Some(answer) = seen.answer {
            self.observe_answer(now, n, answer, &seen);
        }
        self.settle_offer(now, n, seen.claim);
        self.observe_claim(now, n, &seen);
        self.schedule_worker(now, n, seen.answer);
    }

    fn observe_life(&mut self, now: Monotonic, n: WorkerNumber, seen: &SlotView) {
        let worker = self.worker(n);
        worker.drained = seen.drained;
        let epoch = seen.life.map(|(epoch, ..)| epoch);
        let (was_up, old_epoch) = (worker.up, worker.epoch);
        let changed = epoch != old_epoch;
        worker.up = seen.alive && epoch.is_some();
        worker.epoch = epoch;
        worker.state = seen.life.map(|(_, state, _)| state);
        let serves = worker.up && worker.state != Some(Lifecycle::Starting);
        // Each incarnation has its own start.
        let known = worker.starting_since.filter(|_| !changed);
        worker.starting_since = (!serves).then(|| known.unwrap_or(now));
        worker.wants_recycle = seen.life.is_some_and(|(.., wants)| wants);
        if changed || !worker.up {
            worker.late = false;
            worker.missed_offer = false;
            worker.silent_since = None;
        }
        let up = worker.up;
        let (state, wants_recycle) = (worker.state, worker.wants_recycle);
        let serves = matches!(state, Some(Lifecycle::Ready | Lifecycle::Draining));
        match self.recycling {
            // Complete when the next incarnation serves, not when the old one has ended: one worker is down at a time.
            Some(Recycling { worker, old, .. })
                if worker == n && up && serves && (epoch != Some(old) || !wants_recycle) =>
            {
                self.recycling = None;
                self.counters.count(counters::RECYCLED);
            }
            Some(Recycling { until, .. }) if until <= now => self.recycling = None,
            // Requested by an earlier dispatcher.
            None if up && state == Some(Lifecycle::Recycling) => {
                let until = now + self.limits.recycle_timeout;
                self.recycling = epoch.map(|old| Recycling { worker: n, old, until });
            }
            _ => {}
        }
        if was_up && (changed || !up) {
            self.actions.extend(old_epoch.map(|epoch| PoolAction::Note(n, PoolNote::Down(epoch))));
        }
        if up && (changed || !was_up) {
            self.actions.extend(epoch.map(|epoch| PoolAction::Note(n, PoolNote::Up(epoch))));
        }
    }

    fn observe_answer(&mut self, now: Monotonic, n: WorkerNumber, answer: SlotAnswer, seen: &SlotView) {
        let worker = self.worker(n);
        worker.silent_since = None;
        if std::mem::take(&mut worker.late) {
            self.actions.push(PoolAction::Note(n, PoolNote::Back));
        }
        match (answer, self.worker(n).hold) {
            // Accept counts only while the worker is alive and its client has time left to claim the lease.
            (SlotAnswer::Accept(lease), Hold::Offered { lease: offered, client, claim_by, .. })
                if lease == offered && now < claim_by && self.is_bound_to_live(n, seen.terms) =>
            {
                if client.is_handoff {
                    return; // from the control loop; the serving task answers with its claim
                }
                self.worker(n).hold = Hold::Granted { lease, client: Some(client), claim_by };
                self.grant(now, n, client, lease, claim_by);
            }
            // The claim word, which is handled next, shows whether there is an offer to revoke.
            (SlotAnswer::Accept(lease) | SlotAnswer::Refuse(lease, _), Hold::Offered { lease: offered, .. })
                if lease == offered =>
            {
                self.revoke_offer(n);
            }
            (SlotAnswer::Recycle(false), _) if self.is_recycling(n) => self.recycling = None,
            _ => {}
        }
    }

    fn observe_claim(&mut self, now: Monotonic, n: WorkerNumber, seen: &SlotView) {
        let corrupt = seen.alive && seen.is_corrupt();
        if std::mem::replace(&mut self.worker(n).corrupt, corrupt) != corrupt && corrupt {
            self.actions.push(PoolAction::Note(n, PoolNote::Corrupt));
        }
        if corrupt {
            // The slot does not show what this incarnation is doing; the watchdog kills it.
            self.clear_hold(now, n);
            self.worker(n).hold = Hold::Releasing;
            return;
        }
        match seen.claim {
            None => {
                self.clear_hold(now, n);
                self.actions.push(PoolAction::Slot(n, SlotAction::Clear));
            }
            Some(Claim::Free) => {
                // An offer that could not be written, or a lease that has ended.
                self.clear_hold(now, n);
            }
            Some(Claim::Held(lease, Phase::Offered)) => self.observe_offered(now, n, lease, seen.terms),
            Some(Claim::Held(lease, phase @ (Phase::Claimed | Phase::Responding)))
                if self.is_bound_to_live(n, seen.terms) =>
            {
                match self.worker(n).hold {
                    Hold::Busy { lease: held, connection } if held == lease => {
                        if phase == Phase::Claimed && connection.is_some_and(|(_, abort_at)| abort_at <= now) {
                            self.actions.push(PoolAction::Slot(n, SlotAction::Abort(lease)));
                        }
                    }
                    _ => {
                        self.clear_hold(now, n);
                        self.worker(n).hold = Hold::Busy { lease, connection: None };
                    }
                }
            }
            Some(Claim::Held(lease, Phase::Claimed)) => {
                self.actions.push(PoolAction::Note(n, PoolNote::Lost(lease)));
                match self.worker(n).hold {
                    // The dispatcher responds only once it has won this step: the holder of the connection may be
                    // alive, whatever its slot shows.
                    Hold::Busy { lease: held, connection: Some(_) } if held == lease => {
                        self.actions.push(PoolAction::Slot(n, SlotAction::Abort(lease)));
                    }
                    _ => self.end_hold(now, n, SlotAction::Abort(lease)),
                }
            }
            Some(Claim::Held(lease, Phase::Responding)) => {
                self.actions.push(PoolAction::Note(n, PoolNote::Lost(lease)));
                self.end_hold(now, n, SlotAction::Reclaim(lease));
            }
            Some(Claim::Held(lease, phase)) => {
                match phase {
                    Phase::Done => self.end_connection(n, Some(lease), LeaseEnd::Done),
                    Phase::Aborted if self.is_overdue(now, n) => self.end_connection(n, Some(lease), LeaseEnd::Overdue),
                    Phase::Aborted => self.end_connection(n, Some(lease), LeaseEnd::NoResponse),
                    _ => {}
                }
                self.end_hold(now, n, SlotAction::Release(lease));
            }
        }
    }

    fn observe_offered(&mut self, now: Monotonic, n: WorkerNumber, lease: LeaseId, terms: Option<LeaseTerms>) {
        let is_live = self.is_bound_to_live(n, terms);
        let hold = self.worker(n).hold;
        match hold {
            Hold::Offered { lease: offered, answer_by, .. } if offered == lease => {
                if is_live && now < answer_by {
                    return;
                }
                if is_live {
                    self.worker(n).late = true;
                    self.worker(n).missed_offer = true;
                    self.actions.push(PoolAction::Note(n, PoolNote::Late(lease)));
                }
                self.revoke_offer(n);
                self.actions.push(PoolAction::Slot(n, SlotAction::Revoke(lease)));
            }
            Hold::Granted { lease: granted, client, claim_by } if granted == lease => {
                if is_live && now < claim_by {
                    return;
                }
                if is_live {
                    self.actions.push(PoolAction::Note(n, PoolNote::Unclaimed(lease)));
                    // A worker that does not serve has sent the client back, or not accepted it.
                    let serves = self.worker(n).state == Some(Lifecycle::Ready) && !self.is_silent(n, now);
                    if let Some(client) = client.filter(|_| serves) {
                        self.queue.suspect(client.peer, now);
                    }
                }
                self.start_release(n, lease);
                self.actions.push(PoolAction::Slot(n, SlotAction::Revoke(lease)));
            }
            // Granted by an earlier dispatcher: its client may be about to claim it.
            Hold::Free if is_live && terms.is_some_and(|t| now < t.claim_by && self.is_earlier(&t)) => {
                let claim_by = terms.map_or(now, |t| t.claim_by);
                self.worker(n).hold = Hold::Granted { lease, client: None, claim_by };
            }
            _ => self.end_hold(now, n, SlotAction::Revoke(lease)),
        }
    }

    /// Whether the dispatcher's deadline for the request on a passed connection has been reached.
    fn is_overdue(&self, now: Monotonic, n: WorkerNumber) -> bool {
        let hold = self.workers[n.index()].hold;
        matches!(hold, Hold::Busy { connection: Some((_, abort_at)), .. } if abort_at <= now)
    }

    /// Whether the worker has left a question open for so long that its client may not have reached it either.
    fn is_silent(&self, n: WorkerNumber, now: Monotonic) -> bool {
        let since = self.workers[n.index()].silent_since;
        since.is_some_and(|since| now.since(since) >= self.limits.offer_timeout)
    }

    fn is_earlier(&self, terms: &LeaseTerms) -> bool {
        terms.dispatcher_epoch != self.epoch
    }

    /// Whether the terms name the incarnation that is alive.
    fn is_bound_to_live(&self, n: WorkerNumber, terms: Option<LeaseTerms>) -> bool {
        let worker = &self.workers[n.index()];
        worker.up && terms.is_some_and(|t| Some(t.worker_epoch) == worker.epoch)
    }

    /// Completes every read: the next timer, the next question, the idle list.
    fn schedule_worker(&mut self, now: Monotonic, n: WorkerNumber, answer: Option<SlotAnswer>) {
        let scan = now + self.limits.slot_scan;
        let timer = match self.worker(n).hold {
            Hold::Free => None,
            Hold::Offered { answer_by, .. } => Some(answer_by),
            Hold::Granted { claim_by, .. } => Some(scan.min(claim_by)),
            Hold::Busy { .. } | Hold::Releasing => Some(scan),
        };
        self.set_timer(n, timer);
        if let Some(old) = self.recyclable(n)
            && answer != Some(SlotAnswer::Recycle(false))
        {
            self.recycling = Some(Recycling { worker: n, old, until: now + self.limits.recycle_timeout });
            self.question(now, n, SlotQuestion::Recycle);
        }
        self.list_if_idle(n);
        self.remove_surplus();
    }

    /// The incarnation, if it may be recycled now.
    fn recyclable(&self, n: WorkerNumber) -> Option<Epoch> {
        let worker = &self.workers[n.index()];
        worker.epoch.filter(|_| worker.is_idle() && worker.wants_recycle && self.recycling.is_none())
    }
}
