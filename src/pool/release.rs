//! How a hold on a worker ends, and where its client goes then.

use std::time::Duration;

use super::hold::{Hold, RevokingOffer};
use super::lease_table::{Pool, Timer};
use super::messages::{LeaseEnd, PoolAction, Refusal};
use super::queue::Waiting;
use crate::ids::{Claim, LeaseId, Monotonic, Phase};

/// How long after its deadline a claimed request is the worker's to answer with 504: its serving task does at once,
/// its control loop a second later. Then the dispatcher does.
const PARTING: Duration = Duration::from_secs(2);

impl Pool {
    /// A client belongs to the worker that has claimed its lease, whoever wanted to end the offer meanwhile,
    /// and into the queue again once nobody can claim it any more: so it never starts twice.
    pub(super) fn settle(&mut self, now: Monotonic, n: u16, claim: Option<Claim>) {
        let (RevokingOffer { lease, client, claim_by }, asked) = match (self.worker(n).hold, self.worker(n).taken_back)
        {
            (Hold::Asked { lease, client, claim_by, .. }, _) => (RevokingOffer { lease, client, claim_by }, true),
            (_, Some(back)) => (back, false),
            _ => return,
        };
        match claim {
            Some(Claim::Held(held, Phase::Offered)) if held == lease => return,
            Some(Claim::Held(held, Phase::Claimed | Phase::Responding | Phase::Done | Phase::Aborted))
                if held == lease =>
            {
                self.worker(n).shunned = false;
                if client.handed {
                    let abort_at = now + self.limits.request_timeout + PARTING;
                    self.worker(n).hold = Hold::Busy { lease, connection: Some((client.id, abort_at)) };
                } else if asked {
                    self.worker(n).hold = Hold::Granted { lease, client: Some(client), claim_by };
                }
                self.grant(now, n, client, lease, claim_by);
            }
            _ if asked => return,
            Some(Claim::Held(held, Phase::Revoked)) if held == lease => self.send_back(now, client),
            _ => self.let_fall(now, n, lease, client),
        }
        self.worker(n).taken_back = None;
    }

    /// Ends what the worker was held by, through one more step on its slot.
    pub(super) fn end(&mut self, now: Monotonic, n: u16, step: PoolAction) {
        self.abandon(now, n);
        self.worker(n).hold = Hold::Ending;
        self.actions.push(step);
    }

    /// The hold is over; a client that has not got its worker takes its place in the queue again.
    pub(super) fn abandon(&mut self, now: Monotonic, n: u16) {
        let hold = self.worker(n).hold;
        self.claimed(n);
        self.over(n, hold.lease(), LeaseEnd::Cut);
        self.worker(n).hold = Hold::Free;
        if let Hold::Asked { lease, client, .. } = hold {
            self.let_fall(now, n, lease, client);
        }
    }

    /// The slot does not say any more what became of an offer. A client that was told nothing goes on waiting; but a
    /// connection that was passed on may have been claimed, and read, by a worker whose slot was spoilt afterwards.
    fn let_fall(&mut self, now: Monotonic, n: u16, lease: LeaseId, client: Waiting) {
        match client.handed {
            true => self.actions.push(PoolAction::Over { client: client.id, worker: n, lease, end: LeaseEnd::Cut }),
            false => self.send_back(now, client),
        }
    }

    /// The connection that the worker had claimed, if it had one, is the dispatcher's alone again.
    pub(super) fn over(&mut self, n: u16, seen: Option<LeaseId>, end: LeaseEnd) {
        if let Hold::Busy { lease, connection: Some((client, _)) } = self.worker(n).hold {
            let end = if seen == Some(lease) { end } else { LeaseEnd::Cut };
            self.worker(n).hold = Hold::Busy { lease, connection: None };
            self.actions.push(PoolAction::Over { client, worker: n, lease, end });
        }
    }

    /// The pool ends this offer or grant itself.
    pub(super) fn let_go(&mut self, n: u16, lease: LeaseId) {
        debug_assert_eq!(self.worker(n).hold.lease(), Some(lease));
        self.claimed(n);
        self.worker(n).hold = Hold::Ending;
    }

    /// The pool ends this offer, and its client is to go on to another worker unless this one was faster.
    pub(super) fn take_back(&mut self, n: u16) {
        if let Hold::Asked { lease, client, claim_by, .. } = self.worker(n).hold {
            self.let_go(n, lease);
            self.worker(n).taken_back = Some(RevokingOffer { lease, client, claim_by });
        }
    }

    /// Whatever unclaimed lease the hold stands for is not unclaimed any more.
    fn claimed(&mut self, n: u16) {
        match self.worker(n).hold {
            Hold::Asked { client, .. } | Hold::Granted { client: Some(client), .. } => {
                self.queue.unclaimed(client, -1);
            }
            _ => {}
        }
    }

    /// The client gets its worker.
    pub(super) fn grant(&mut self, now: Monotonic, n: u16, client: Waiting, lease: LeaseId, claim_by: Monotonic) {
        self.tally.times.record(now.since(client.since));
        self.actions.push(PoolAction::Grant { client: client.id, worker: n, lease, claim_by });
    }

    /// A client whose worker failed it goes on waiting, within its own budget.
    fn send_back(&mut self, now: Monotonic, client: Waiting) {
        if self.stopping {
            self.actions.push(PoolAction::Refuse(client.id, Refusal::Stopping));
        } else if client.due <= now && self.limits.queue > 0 {
            self.actions.push(PoolAction::Refuse(client.id, Refusal::QueueTimeout(now.since(client.since))));
        } else {
            self.queue.push(client);
            self.timers.insert((client.due, Timer::Client(client.id)));
        }
    }
}
