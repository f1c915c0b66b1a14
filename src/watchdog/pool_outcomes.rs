//! What the dispatcher's reports say of the clients of a pool: when it last served, and whether its requests fail.
//!
//! Pure. The counters are those of the slots, which outlive workers and dispatchers.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::ids::{Monotonic, WorkerNumber};
use crate::probe::{PoolReport, WorkerReport};

/// The reports on one pool so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct PoolOutcomes {
    /// The counters in the last report: complete responses, and each worker's faults of the handler.
    counted: Option<(u64, Vec<u64>)>,
    /// When a request was last seen to have succeeded.
    success_at: Option<Monotonic>,
    /// When a fault of the handler was last seen, and on which worker.
    fault: Option<(Monotonic, WorkerNumber)>,
    /// When a worker was last seen in service.
    in_service_at: Option<Monotonic>,
}

impl PoolOutcomes {
    /// A worker has reported that it can serve.
    pub(super) fn worker_ready(&mut self, now: Monotonic) {
        self.in_service_at = Some(now);
    }

    /// Takes a report that arrived at `now`.
    pub(super) fn update(&mut self, now: Monotonic, report: &PoolReport) {
        let is_in_service =
            |worker: &WorkerReport| worker.serves && !worker.drained && !worker.late && worker.silent_ms.is_none();
        if report.workers.iter().any(is_in_service) {
            self.in_service_at = Some(now);
        }
        let faults: Vec<u64> = report.workers.iter().map(|worker| worker.handler_faults).collect();
        if let Some((served, before)) = &self.counted {
            if report.served > *served {
                self.success_at = Some(now);
            }
            // A worker that was added has none before; a counter that decreases belongs to another slot.
            let before = before.iter().chain(std::iter::repeat(&0));
            let mut grown = WorkerNumber::up_to(u16::MAX).zip(faults.iter().zip(before));
            if let Some((worker, _)) = grown.find(|(_, (now, before))| now > before) {
                self.fault = Some((now, worker));
            }
        }
        self.counted = Some((report.served, faults));
    }

    /// If every request that has ended within the last `degraded_after` failed through a fault of the handler, and there
    /// was one: when the last fault was seen, and on which worker.
    pub(crate) fn failing(&self, now: Monotonic, degraded_after: Duration) -> Option<(Monotonic, WorkerNumber)> {
        let is_recent = |at: Monotonic| now.since(at) < degraded_after;
        self.fault.filter(|(at, _)| is_recent(*at) && !self.success_at.is_some_and(is_recent))
    }

    /// Whether a worker was in service within the last `time`, and now may be none.
    pub(crate) fn was_in_service(&self, now: Monotonic, time: Duration) -> bool {
        self.in_service_at.is_some_and(|at| now.since(at) <= time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);

    fn at(s: u64) -> Monotonic {
        Monotonic(s * 1_000_000_000)
    }

    fn report(served: u64, faults: &[u64]) -> PoolReport {
        let worker = |handler_faults: &u64| WorkerReport {
            epoch: 1,
            serves: true,
            late: false,
            drained: false,
            corrupt: false,
            recycle_requested: false,
            silent_ms: None,
            starting_ms: None,
            ticks: None,
            handler_faults: *handler_faults,
        };
        let workers = faults.iter().map(worker).collect();
        let name = "web".to_owned().try_into().unwrap();
        PoolReport { name, queue: 0, oldest_ms: 0, workers, served, counters: Default::default() }
    }

    #[test]
    fn pool_fails_while_all_requests_of_the_window_have_failed() {
        let mut outcomes = PoolOutcomes::default();
        // What was counted before this watchdog started is no event.
        outcomes.update(at(100), &report(7, &[5, 5]));
        assert_eq!(outcomes.failing(at(100), WINDOW), None);
        outcomes.update(at(101), &report(8, &[5, 5]));
        outcomes.update(at(102), &report(8, &[5, 6]));
        let failing = |outcomes: &PoolOutcomes, s| outcomes.failing(at(s), WINDOW).map(|(_, worker)| worker.get());
        assert_eq!(failing(&outcomes, 130), None, "one has succeeded");
        assert_eq!(failing(&outcomes, 131), Some(2));
        assert_eq!(failing(&outcomes, 132), None, "there was no request");
        outcomes.update(at(140), &report(8, &[6, 6]));
        assert_eq!(failing(&outcomes, 140), Some(1));
        outcomes.update(at(141), &report(9, &[7, 6]));
        assert_eq!(failing(&outcomes, 141), None, "it has recovered");
        assert_eq!(outcomes.failing(at(141), Duration::ZERO), None);
    }

    #[test]
    fn workers_that_come_and_go_are_no_faults() {
        let mut outcomes = PoolOutcomes::default();
        outcomes.update(at(1), &report(50, &[5, 9]));
        outcomes.update(at(2), &report(20, &[5]));
        outcomes.update(at(3), &report(20, &[5, 0]));
        assert_eq!(outcomes.failing(at(3), WINDOW), None);
        outcomes.update(at(4), &report(20, &[5, 1]));
        assert_eq!(outcomes.failing(at(4), WINDOW).map(|(at, worker)| (at, worker.get())), Some((at(4), 2)));
    }

    #[test]
    fn only_workers_that_are_not_drained_are_in_service() {
        let mut outcomes = PoolOutcomes::default();
        assert!(!outcomes.was_in_service(at(0), WINDOW));
        let mut drained = report(0, &[0]);
        drained.workers[0].drained = true;
        outcomes.update(at(1), &drained);
        assert!(!outcomes.was_in_service(at(1), WINDOW));
        outcomes.update(at(2), &report(0, &[0]));
        outcomes.update(at(3), &drained);
        assert!(outcomes.was_in_service(at(32), WINDOW) && !outcomes.was_in_service(at(33), WINDOW));
    }
}
