//! One worker as the pool sees it, and what a look at its slot means.

use super::queue::Waiting;
use super::{Action, Answer, Ask, MAKING_ROOM, Note, Pool, Recycling, Refusal, Seen, Timer};
use crate::ids::{Claim, Epoch, LeaseId, Phase, Terms, Time, WorkerState};

/// What a worker is held by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// Nothing.
    #[default]
    Free,
    /// An offer it has not answered.
    Asked {
        /// The offered lease.
        lease: LeaseId,
        /// For whom.
        client: Waiting,
        /// When it is late.
        until: Time,
        /// When the lease ends unclaimed.
        claim_by: Time,
    },
    /// A lease its client has not used. Without a client it was given by an earlier dispatcher.
    Granted {
        /// The lease.
        lease: LeaseId,
        /// For whom.
        client: Option<Waiting>,
        /// When it ends unclaimed.
        claim_by: Time,
    },
    /// A request.
    Busy {
        /// By which lease.
        lease: LeaseId,
    },
    /// A lease that the pool is ending.
    Ending,
}

impl Hold {
    /// The lease it is held by.
    pub fn lease(&self) -> Option<LeaseId> {
        match self {
            Hold::Asked { lease, .. } | Hold::Granted { lease, .. } | Hold::Busy { lease } => Some(*lease),
            Hold::Free | Hold::Ending => None,
        }
    }
}

/// One worker.
#[derive(Clone, Debug, Default)]
pub struct Worker {
    /// Its last known incarnation.
    pub epoch: Option<Epoch>,
    /// Whether that incarnation lives.
    pub up: bool,
    /// What it says of itself.
    pub state: Option<WorkerState>,
    /// Whether it has missed an offer and not answered since.
    pub late: bool,
    /// Whether an operator keeps it out of service.
    pub drained: bool,
    /// What holds it.
    pub hold: Hold,
    /// Whether its claim word holds what no honest writer writes.
    pub garbled: bool,
    /// Since when a question of ours has had no answer.
    pub silent_since: Option<Time>,
    pub(super) wants_recycle: bool,
    pub(super) listed: bool,
    pub(super) timer: Option<Time>,
}

impl Worker {
    pub(super) fn is_idle(&self) -> bool {
        self.up && self.state == Some(WorkerState::Ready) && !self.late && !self.drained && self.hold == Hold::Free
    }
}

impl Pool {
    /// What a look at a slot means: first whose life it is, then the answer, then the claim word.
    pub(super) fn see(&mut self, now: Time, n: u16, seen: Seen) {
        self.see_life(now, n, &seen);
        if let Some(answer) = seen.answer {
            self.see_answer(now, n, answer);
        }
        self.see_claim(now, n, &seen);
        self.after(now, n);
    }

    fn see_life(&mut self, now: Time, n: u16, seen: &Seen) {
        let worker = self.worker(n);
        worker.drained = seen.drained;
        let epoch = seen.life.map(|(epoch, ..)| epoch);
        let (was_up, was) = (worker.up, worker.epoch);
        let changed = epoch != was;
        worker.up = seen.alive && epoch.is_some();
        worker.epoch = epoch;
        worker.state = seen.life.map(|(_, state, _)| state);
        worker.wants_recycle = seen.life.is_some_and(|(.., wants)| wants);
        if changed || !worker.up {
            worker.late = false;
            worker.silent_since = None;
        }
        let up = worker.up;
        // Not when its former life has ended, but when it serves again: only one worker of a pool is out.
        let serves = up && matches!(worker.state, Some(WorkerState::Ready | WorkerState::Draining));
        let wants = worker.wants_recycle;
        self.recycling.take_if(|r| now >= r.until || r.worker == n && serves && (!wants || epoch != r.epoch));
        if was_up && (changed || !up) {
            self.actions.extend(was.map(|epoch| Action::Note(n, Note::Down(epoch))));
        }
        if up && (changed || !was_up) {
            self.actions.extend(epoch.map(|epoch| Action::Note(n, Note::Up(epoch))));
        }
    }

    fn see_answer(&mut self, now: Time, n: u16, answer: Answer) {
        let worker = self.worker(n);
        worker.silent_since = None;
        if std::mem::take(&mut worker.late) {
            self.actions.push(Action::Note(n, Note::Back));
        }
        match (answer, self.worker(n).hold) {
            (Answer::Accept(lease), Hold::Asked { lease: asked, client, claim_by, .. }) if lease == asked => {
                self.worker(n).hold = Hold::Granted { lease, client: Some(client), claim_by };
                self.actions.push(Action::Grant { client: client.id, worker: n, lease, claim_by });
            }
            (Answer::Refuse(lease, _), Hold::Asked { lease: asked, client, .. }) if lease == asked => {
                self.let_go(n, lease);
                self.send_back(now, client);
                self.actions.push(Action::Revoke(n, lease));
            }
            (Answer::Recycle(false), _) if self.is_recycling(n) => self.recycling = None,
            _ => {}
        }
    }

    fn see_claim(&mut self, now: Time, n: u16, seen: &Seen) {
        let up = self.worker(n).up;
        let garbled = seen.claim.is_none() && up;
        if std::mem::replace(&mut self.worker(n).garbled, garbled) != garbled && garbled {
            self.actions.push(Action::Note(n, Note::Garbled));
        }
        match seen.claim {
            None if up => {
                // Nobody can tell what this life is doing; the watchdog ends it.
                self.abandon(now, n);
                self.worker(n).hold = Hold::Ending;
            }
            None => {
                self.abandon(now, n);
                self.actions.push(Action::Clear(n));
            }
            Some(Claim::Free) => {
                // An offer that could not be written, or a lease that has ended.
                self.abandon(now, n);
            }
            Some(Claim::Held(lease, Phase::Offered)) => self.see_offered(now, n, lease, seen.terms),
            Some(Claim::Held(lease, Phase::Claimed | Phase::Responding)) if self.lives(n, seen.terms) => {
                if self.worker(n).hold != (Hold::Busy { lease }) {
                    self.abandon(now, n);
                    self.worker(n).hold = Hold::Busy { lease };
                }
            }
            Some(Claim::Held(lease, Phase::Claimed)) => {
                self.actions.push(Action::Note(n, Note::Lost(lease)));
                self.end(now, n, Action::Abort(n, lease));
            }
            Some(Claim::Held(lease, Phase::Responding)) => {
                self.actions.push(Action::Note(n, Note::Lost(lease)));
                self.end(now, n, Action::Bury(n, lease));
            }
            Some(Claim::Held(lease, _)) => self.end(now, n, Action::Release(n, lease)),
        }
    }

    fn see_offered(&mut self, now: Time, n: u16, lease: LeaseId, terms: Option<Terms>) {
        let lives = self.lives(n, terms);
        let hold = self.worker(n).hold;
        match hold {
            Hold::Asked { lease: asked, client, until, .. } if asked == lease => {
                if lives && now < until {
                    return;
                }
                if lives {
                    self.worker(n).late = true;
                    self.actions.push(Action::Note(n, Note::Late(lease)));
                }
                self.let_go(n, lease);
                self.send_back(now, client);
                self.actions.push(Action::Revoke(n, lease));
            }
            Hold::Granted { lease: granted, client, claim_by } if granted == lease => {
                if lives && now < claim_by {
                    return;
                }
                if lives {
                    self.actions.push(Action::Note(n, Note::Unclaimed(lease)));
                    if let Some(client) = client {
                        self.queue.suspect(client.peer, now);
                    }
                }
                self.let_go(n, lease);
                self.actions.push(Action::Revoke(n, lease));
            }
            // Given by a dispatcher before this one: its client may be on the way.
            Hold::Free if lives && terms.is_some_and(|t| now < t.claim_by && self.is_earlier(&t)) => {
                let claim_by = terms.map_or(now, |t| t.claim_by);
                self.worker(n).hold = Hold::Granted { lease, client: None, claim_by };
            }
            _ => self.end(now, n, Action::Revoke(n, lease)),
        }
    }

    fn is_earlier(&self, terms: &Terms) -> bool {
        terms.dispatcher_epoch != self.epoch
    }

    /// Whether the incarnation these terms bind is the one that lives.
    fn lives(&self, n: u16, terms: Option<Terms>) -> bool {
        let worker = &self.workers[usize::from(n) - 1];
        worker.up && terms.is_some_and(|t| Some(t.worker_epoch) == worker.epoch)
    }

    /// Ends what the worker was held by, through one more step on its slot.
    fn end(&mut self, now: Time, n: u16, step: Action) {
        self.abandon(now, n);
        self.worker(n).hold = Hold::Ending;
        self.actions.push(step);
    }

    /// The hold is over; a client that has not got its worker takes its place in the queue again.
    fn abandon(&mut self, now: Time, n: u16) {
        let hold = self.worker(n).hold;
        self.claimed(n);
        self.worker(n).hold = Hold::Free;
        if let Hold::Asked { client, .. } = hold {
            self.send_back(now, client);
        }
    }

    /// The pool ends this offer or grant itself.
    pub(super) fn let_go(&mut self, n: u16, lease: LeaseId) {
        debug_assert_eq!(self.worker(n).hold.lease(), Some(lease));
        self.claimed(n);
        self.worker(n).hold = Hold::Ending;
    }

    /// Whatever unclaimed lease the hold stands for is not unclaimed any more.
    fn claimed(&mut self, n: u16) {
        match self.worker(n).hold {
            Hold::Asked { client, .. } | Hold::Granted { client: Some(client), .. } => {
                self.queue.unclaimed(client.peer, -1);
            }
            _ => {}
        }
    }

    /// A client whose worker failed it goes on waiting, within its own budget.
    fn send_back(&mut self, now: Time, client: Waiting) {
        if self.stopping {
            self.actions.push(Action::Refuse(client.id, Refusal::Stopping));
        } else if self.limits.queue == 0 && !self.workers.iter().any(Worker::is_idle) {
            self.actions.push(Action::Refuse(client.id, Refusal::NobodyFree));
        } else if client.due <= now && self.limits.queue > 0 {
            self.actions.push(Action::Refuse(client.id, Refusal::QueueTimeout(now.since(client.since))));
        } else {
            self.queue.put_back(client);
            self.timers.insert((client.due, Timer::Client(client.id)));
        }
    }

    /// What comes after every look: the next timer, the next question, the idle list.
    fn after(&mut self, now: Time, n: u16) {
        let scan = now + self.limits.slot_scan;
        let timer = match self.worker(n).hold {
            Hold::Free => None,
            Hold::Asked { until, .. } => Some(until),
            Hold::Granted { claim_by, .. } => Some(scan.min(claim_by)),
            Hold::Busy { .. } | Hold::Ending => Some(scan),
        };
        self.set_timer(n, timer);
        if self.may_recycle(n) {
            self.recycling = Some(Recycling { worker: n, epoch: self.worker(n).epoch, until: now + MAKING_ROOM });
            self.ask(now, n, Ask::Recycle);
        }
        self.consider(n);
        self.shrink();
    }

    fn may_recycle(&self, n: u16) -> bool {
        let worker = &self.workers[usize::from(n) - 1];
        worker.is_idle() && worker.wants_recycle && self.recycling.is_none()
    }
}
