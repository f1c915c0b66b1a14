//! The promises, checked after every event, and the recovery and the stop at the end.

use std::time::Duration;

use super::watchdog::{DRAIN, Wake};
use super::{SetSimEvent, SetSimulation};
use crate::ids::Monotonic;
use crate::model::simulation::pool::{PROBE_INTERVAL, PoolSimEvent, WORKERS};
use crate::pool::SUSPICION;

/// Time for what the bounds do not count: delivery of messages and signals, late doorbells, slow turns.
const SLACK: Duration = Duration::from_millis(300);

impl SetSimulation {
    /// Every frozen part is detected, and every absent part replaced, within its bound of undisturbed time.
    pub(super) fn check(&self) {
        if self.watchdog.plan.is_stopping() {
            return;
        }
        for (p, process) in self.parts.iter().enumerate() {
            let timeout = self.timeout(p, process.ready);
            let undisturbed = process.undisturbed;
            // The watchdog sees the end of an excuse at its next sample, which may be one timeout later, and then
            // excuses as much again.
            let is_excused =
                process.excused_until.is_some_and(|at| self.pool.now.since(at) <= undisturbed + 2 * timeout);
            let excuse = if is_excused { timeout } else { Duration::ZERO };
            let bound = timeout + excuse + 3 * PROBE_INTERVAL + self.bounds.abort_grace + SLACK;
            assert!(undisturbed <= bound, "part {p} is frozen for {undisturbed:?}: {process:?}");
            let bound = self.bounds.restarts.delay_max.mul_f64(1.25) + SLACK;
            // Workers are first started when the dispatcher is ready.
            let may_be_absent = self.policies[p].failed || p > 0 && !self.watchdog.dispatcher_was_ready;
            assert!(may_be_absent || process.absent <= bound, "part {p} is absent for {:?}", process.absent);
        }
    }

    fn timeout(&self, p: usize, ready: bool) -> Duration {
        match (ready, p) {
            (false, _) => self.bounds.start_timeout,
            (true, 0) => self.bounds.dispatcher_timeout,
            (true, _) => self.bounds.worker_timeout,
        }
    }

    /// A part is declared frozen only for its own silence.
    pub(super) fn check_verdict(&mut self, p: usize, why: &str) {
        let process = &self.parts[p];
        let timeout = self.timeout(p, process.ready);
        let is_recent = |at: Monotonic| self.pool.now.since(at) < PROBE_INTERVAL + SLACK;
        let is_at_fault = process.is_at_fault() || process.fault_ended.is_some_and(is_recent);
        // The first sample comes after an eighth of the timeout; disturbances of the machine before it are not excused.
        let is_long_enough = process.fault + timeout / 8 + SLACK >= timeout;
        assert!(is_at_fault && is_long_enough, "part {p} is not at fault: {why}: {process:?}");
    }

    /// Ends all faults. Then all parts must come up and serve again.
    pub(crate) fn recover(&mut self) {
        self.end_faults();
        for p in 0..self.parts.len() {
            (self.parts[p].stopped, self.parts[p].held) = (false, false);
            self.apply_run_state(p);
        }
        for w in 0..WORKERS.into() {
            self.pool.within(1, PoolSimEvent::Resume(w));
        }
        // Stuck processes are detected and replaced first.
        self.run(3 * self.bounds.start_timeout);
        self.within(1, SetSimEvent::Watchdog(Wake::Reload(None)));
        self.run(SUSPICION + Duration::from_secs(4));
        for (part, status) in self.watchdog.plan.status().filter(|(part, _)| !part.is_stand_in()) {
            assert_eq!(status.state, "up", "{part}: {status:?}");
        }
        let before = self.pool.occupy_all_workers();
        self.run(Duration::from_secs(2));
        self.pool.assert_served_since(before);
    }

    fn end_faults(&mut self) {
        self.pool.end_faults();
        self.backlog.retain(|event| event.is_consequence());
        self.crashing = [self.pool.now; WORKERS as usize];
        self.events.retain(|_, event| !matches!(event, SetSimEvent::Fault | SetSimEvent::Watchdog(Wake::Reload(_))));
    }

    fn run(&mut self, time: Duration) {
        let end = self.pool.now + time;
        while self.pool.now < end {
            self.step();
        }
    }

    /// Stops the set. No process may be left, even if some are frozen.
    pub(crate) fn stop(&mut self) {
        self.end_faults();
        self.within(1, SetSimEvent::Watchdog(Wake::Stop));
        // The watchdog may be starved; then the workers end, then the dispatcher.
        let bound = Duration::from_secs(2) + DRAIN + 2 * (self.bounds.exit_grace + SLACK) + 2 * Duration::from_secs(1);
        let end = self.pool.now + bound;
        while !self.watchdog.finished {
            self.step();
            assert!(self.pool.now < end, "it does not stop: {:#?}", self.parts);
        }
        assert!(self.parts.iter().all(|process| process.pid.is_none()), "left behind: {:#?}", self.parts);
    }
}
