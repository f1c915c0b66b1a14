//! What a look at a slot means.

use super::counters;
use super::hold::Hold;
use super::lease_table::Pool;
use super::messages::{LeaseEnd, PoolAction, PoolNote, SlotAnswer, SlotQuestion, SlotView};
use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Phase};

impl Pool {
    /// What a look at a slot means: first whose life it is, then the answer, then the claim word.
    pub(super) fn see(&mut self, now: Monotonic, n: u16, seen: SlotView) {
        self.see_life(now, n, &seen);
        if let Some(answer) = seen.answer {
            self.see_answer(now, n, answer, &seen);
        }
        self.settle(now, n, seen.claim);
        self.see_claim(now, n, &seen);
        self.after(now, n, seen.answer);
    }

    fn see_life(&mut self, now: Monotonic, n: u16, seen: &SlotView) {
        let worker = self.worker(n);
        worker.drained = seen.drained;
        let epoch = seen.life.map(|(epoch, ..)| epoch);
        let (was_up, was) = (worker.up, worker.epoch);
        let changed = epoch != was;
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
            worker.shunned = false;
            worker.silent_since = None;
        }
        let up = worker.up;
        let (state, wants_recycle) = (worker.state, worker.wants_recycle);
        let serves = matches!(state, Some(Lifecycle::Ready | Lifecycle::Draining));
        match self.recycling {
            // Over when the next incarnation serves, not when the old one has gone: one is missing at a time.
            Some((number, old, _)) if number == n && up && serves && (epoch != Some(old) || !wants_recycle) => {
                self.recycling = None;
                self.tally.count(counters::RECYCLED);
            }
            Some((.., until)) if until <= now => self.recycling = None,
            // Asked by a dispatcher before this one.
            None if up && state == Some(Lifecycle::Recycling) => {
                self.recycling = epoch.map(|epoch| (n, epoch, now + self.limits.making_room));
            }
            _ => {}
        }
        if was_up && (changed || !up) {
            self.actions.extend(was.map(|epoch| PoolAction::Note(n, PoolNote::Down(epoch))));
        }
        if up && (changed || !was_up) {
            self.actions.extend(epoch.map(|epoch| PoolAction::Note(n, PoolNote::Up(epoch))));
        }
    }

    fn see_answer(&mut self, now: Monotonic, n: u16, answer: SlotAnswer, seen: &SlotView) {
        let worker = self.worker(n);
        worker.silent_since = None;
        if std::mem::take(&mut worker.late) {
            self.actions.push(PoolAction::Note(n, PoolNote::Back));
        }
        match (answer, self.worker(n).hold) {
            // A yes is worth something while the worker lives and its client has time to come.
            (SlotAnswer::Accept(lease), Hold::Asked { lease: asked, client, claim_by, .. })
                if lease == asked && now < claim_by && self.lives(n, seen.terms) =>
            {
                if client.handed {
                    return; // a yes of the control loop: the serving task's is the claim
                }
                self.worker(n).hold = Hold::Granted { lease, client: Some(client), claim_by };
                self.grant(now, n, client, lease, claim_by);
            }
            // The claim word, read next, says what there is to revoke.
            (SlotAnswer::Accept(lease) | SlotAnswer::Refuse(lease, _), Hold::Asked { lease: asked, .. })
                if lease == asked =>
            {
                self.take_back(n);
            }
            (SlotAnswer::Recycle(false), _) if self.is_recycling(n) => self.recycling = None,
            _ => {}
        }
    }

    fn see_claim(&mut self, now: Monotonic, n: u16, seen: &SlotView) {
        let corrupt = seen.alive && seen.is_corrupt();
        if std::mem::replace(&mut self.worker(n).corrupt, corrupt) != corrupt && corrupt {
            self.actions.push(PoolAction::Note(n, PoolNote::Corrupt));
        }
        if corrupt {
            // Nobody can tell what this life is doing; the watchdog ends it.
            self.abandon(now, n);
            self.worker(n).hold = Hold::Ending;
            return;
        }
        match seen.claim {
            None => {
                self.abandon(now, n);
                self.actions.push(PoolAction::Clear(n));
            }
            Some(Claim::Free) => {
                // An offer that could not be written, or a lease that has ended.
                self.abandon(now, n);
            }
            Some(Claim::Held(lease, Phase::Offered)) => self.see_offered(now, n, lease, seen.terms),
            Some(Claim::Held(lease, phase @ (Phase::Claimed | Phase::Responding))) if self.lives(n, seen.terms) => {
                match self.worker(n).hold {
                    Hold::Busy { lease: held, connection } if held == lease => {
                        if phase == Phase::Claimed && connection.is_some_and(|(_, abort_at)| abort_at <= now) {
                            self.actions.push(PoolAction::Abort(n, lease));
                        }
                    }
                    _ => {
                        self.abandon(now, n);
                        self.worker(n).hold = Hold::Busy { lease, connection: None };
                    }
                }
            }
            Some(Claim::Held(lease, Phase::Claimed)) => {
                self.actions.push(PoolAction::Note(n, PoolNote::Lost(lease)));
                match self.worker(n).hold {
                    // Answered in its place only once that is won: whoever has it may be alive, whatever its slot says.
                    Hold::Busy { lease: held, connection: Some(_) } if held == lease => {
                        self.actions.push(PoolAction::Abort(n, lease));
                    }
                    _ => self.end(now, n, PoolAction::Abort(n, lease)),
                }
            }
            Some(Claim::Held(lease, Phase::Responding)) => {
                self.actions.push(PoolAction::Note(n, PoolNote::Lost(lease)));
                self.end(now, n, PoolAction::Reclaim(n, lease));
            }
            Some(Claim::Held(lease, phase)) => {
                match phase {
                    Phase::Done => self.over(n, Some(lease), LeaseEnd::Done),
                    Phase::Aborted if self.is_overdue(now, n) => self.over(n, Some(lease), LeaseEnd::Overdue),
                    Phase::Aborted => self.over(n, Some(lease), LeaseEnd::Unanswered),
                    _ => {}
                }
                self.end(now, n, PoolAction::Release(n, lease));
            }
        }
    }

    fn see_offered(&mut self, now: Monotonic, n: u16, lease: LeaseId, terms: Option<LeaseTerms>) {
        let lives = self.lives(n, terms);
        let hold = self.worker(n).hold;
        match hold {
            Hold::Asked { lease: asked, until, .. } if asked == lease => {
                if lives && now < until {
                    return;
                }
                if lives {
                    self.worker(n).late = true;
                    self.worker(n).shunned = true;
                    self.actions.push(PoolAction::Note(n, PoolNote::Late(lease)));
                }
                self.take_back(n);
                self.actions.push(PoolAction::Revoke(n, lease));
            }
            Hold::Granted { lease: granted, client, claim_by } if granted == lease => {
                if lives && now < claim_by {
                    return;
                }
                if lives {
                    self.actions.push(PoolAction::Note(n, PoolNote::Unclaimed(lease)));
                    if let Some(client) = client.filter(|_| !self.is_silent(n, now)) {
                        self.queue.suspect(client.peer, now);
                    }
                }
                self.let_go(n, lease);
                self.actions.push(PoolAction::Revoke(n, lease));
            }
            // Given by a dispatcher before this one: its client may be on the way.
            Hold::Free if lives && terms.is_some_and(|t| now < t.claim_by && self.is_earlier(&t)) => {
                let claim_by = terms.map_or(now, |t| t.claim_by);
                self.worker(n).hold = Hold::Granted { lease, client: None, claim_by };
            }
            _ => self.end(now, n, PoolAction::Revoke(n, lease)),
        }
    }

    /// Whether the request on a connection should have been answered.
    fn is_overdue(&self, now: Monotonic, n: u16) -> bool {
        let hold = self.workers[usize::from(n) - 1].hold;
        matches!(hold, Hold::Busy { connection: Some((_, abort_at)), .. } if abort_at <= now)
    }

    /// Whether the worker itself owes an answer for too long: then a client could not have come to it.
    fn is_silent(&self, n: u16, now: Monotonic) -> bool {
        let since = self.workers[usize::from(n) - 1].silent_since;
        since.is_some_and(|since| now.since(since) >= self.limits.offer_timeout)
    }

    fn is_earlier(&self, terms: &LeaseTerms) -> bool {
        terms.dispatcher_epoch != self.epoch
    }

    /// Whether the incarnation these terms bind is the one that lives.
    fn lives(&self, n: u16, terms: Option<LeaseTerms>) -> bool {
        let worker = &self.workers[usize::from(n) - 1];
        worker.up && terms.is_some_and(|t| Some(t.worker_epoch) == worker.epoch)
    }

    /// What comes after every look: the next timer, the next question, the idle list.
    fn after(&mut self, now: Monotonic, n: u16, answer: Option<SlotAnswer>) {
        let scan = now + self.limits.slot_scan;
        let timer = match self.worker(n).hold {
            Hold::Free => None,
            Hold::Asked { until, .. } => Some(until),
            Hold::Granted { claim_by, .. } => Some(scan.min(claim_by)),
            Hold::Busy { .. } | Hold::Ending => Some(scan),
        };
        self.set_timer(n, timer);
        if let Some(epoch) = self.may_recycle(n)
            && answer != Some(SlotAnswer::Recycle(false))
        {
            self.recycling = Some((n, epoch, now + self.limits.making_room));
            self.ask(now, n, SlotQuestion::Recycle);
        }
        self.consider(n);
        self.shrink();
    }

    /// The incarnation that may be replaced now.
    fn may_recycle(&self, n: u16) -> Option<Epoch> {
        let worker = &self.workers[usize::from(n) - 1];
        worker.epoch.filter(|_| worker.is_idle() && worker.wants_recycle && self.recycling.is_none())
    }
}
