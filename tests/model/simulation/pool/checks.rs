//! The promises, checked after every event, and the recovery at the end.

use std::time::Duration;

use super::{PoolSimEvent, PoolSimulation, SimulatedWorker, WORKERS, number_of};
use crate::exchange::{self, Incarnation};
use crate::ids::{Claim, Phase, WorkerNumber};
use crate::pool::{Hold, Peer, PoolEvent, PoolLimits, SUSPICION};

impl PoolSimulation {
    /// No client waits and no lease lasts longer than its bounds. `passed`: the time since the last check.
    pub(crate) fn check(&mut self, passed: Duration) {
        let PoolLimits { queue, queue_timeout, offer_timeout, claim_timeout, request_timeout, slot_scan, .. } =
            self.limits;
        let slack = Duration::from_millis(1);
        let mut requeued = 0;
        for id in &self.waiting {
            let client = &self.clients[id];
            let waited = self.serving.since(client.since);
            assert!(waited <= queue_timeout + offer_timeout + slack, "client {id} has waited for {waited:?}");
            requeued += usize::from(client.offered);
        }
        let (waiting, _) = self.pool.waiting();
        assert!(waiting <= queue + requeued, "{waiting} clients wait");
        for (w, worker) in self.workers.iter_mut().enumerate() {
            let claim = exchange::claim(&worker.slot).expect("a valid claim word");
            let Claim::Held(lease, phase) = claim else {
                worker.lease_age = None;
                continue;
            };
            let before = worker.lease_age.filter(|(held, _)| *held == lease).map_or(Duration::ZERO, |(_, age)| age);
            // The watchdog is responsible for a frozen worker. A surplus worker, which a new dispatcher does not know,
            // ends its lease by itself.
            let is_excused =
                worker.frozen && matches!(phase, Phase::Claimed | Phase::Responding) || w >= self.pool.workers().len();
            let age = if is_excused { before } else { before + passed };
            worker.lease_age = Some((lease, age));
            let bound = offer_timeout + claim_timeout + request_timeout + slot_scan + slack;
            assert!(age <= bound, "lease {lease} of worker {} is {phase:?} for {age:?}", number_of(w));
        }
    }

    /// Removes all scheduled faults and requests.
    pub(crate) fn end_faults(&mut self) {
        self.recovering = true;
        self.events.retain(|_, event| event.is_consequence());
    }

    /// Ends all faults. Then all workers must become idle, and serve again.
    pub(crate) fn recover(&mut self) {
        self.limits.workers = WORKERS;
        self.pool.reconfigure(self.limits);
        self.end_faults();
        for w in 0..self.workers.len() {
            self.execute(PoolSimEvent::Thaw(w));
            self.handle(PoolEvent::Resume(number_of(w)));
            if self.workers[w].side.is_none() {
                self.within(50, PoolSimEvent::StartIncarnation(w));
            }
        }
        self.run(SUSPICION + Duration::from_secs(2));
        let before = self.occupy_all_workers();
        self.run(Duration::from_secs(2));
        self.assert_served_since(before);
        self.recycle_all_workers();
    }

    /// Every worker is recycled at the request of an operator.
    fn recycle_all_workers(&mut self) {
        let seen = |workers: &[SimulatedWorker]| -> Vec<_> {
            let lives = workers.iter().filter_map(|worker| Incarnation::load(&worker.slot));
            lives.map(|life| (life.epoch, life.replacements)).collect()
        };
        let before = seen(&self.workers);
        WorkerNumber::up_to(WORKERS).for_each(|n| self.handle(PoolEvent::Recycle(n)));
        self.run(Duration::from_secs(4));
        let after = seen(&self.workers);
        assert_eq!(after.len(), usize::from(WORKERS));
        assert!(before.iter().zip(&after).all(|(before, after)| before != after), "{before:?} {after:?}");
        assert!(self.pool.workers().iter().all(|worker| !worker.recycle_requested), "{:#?}", self.pool.workers());
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// As many clients as workers arrive at an idle pool, and each gets an offer. Returns the number of earlier grants.
    pub(crate) fn occupy_all_workers(&mut self) -> u64 {
        assert!(self.waiting.is_empty(), "still waiting: {:?}", self.waiting);
        assert!(self.pool.is_quiet(), "{:#?}", self.pool.workers());
        let before = self.granted;
        for i in 0..WORKERS {
            self.started.push(0);
            self.arrive(self.started.len() - 1, Peer::User(100 + u32::from(i)), i % 2 == 0);
        }
        let offered = self.pool.workers().iter().filter(|worker| worker.hold != Hold::Free).count();
        assert_eq!(offered, usize::from(WORKERS), "some workers are not idle: {:#?}", self.pool.workers());
        before
    }

    /// All clients are served, and no lease is left.
    pub(crate) fn assert_served_since(&self, before: u64) {
        assert!(self.granted > before && self.pool.is_quiet(), "{:#?}", self.pool.workers());
        assert!(self.waiting.is_empty(), "still waiting: {:?}", self.waiting);
        assert!(self.adopted.is_empty(), "no end of their lease: {:?}", self.adopted);
    }
}
