//! A simulated process, which runs or not, for various reasons.

use std::time::Duration;

use super::SetSimEvent;
use crate::ids::Monotonic;
use crate::liveness::{HeldBy, ProcessSample, SchedStat, ThreadActivity};

/// The process of a part, or its absence.
#[derive(Debug, Default)]
pub(crate) struct Process {
    /// `None` while there is no process.
    pub(crate) pid: Option<u32>,
    /// Stopped by a signal: a fault of the process, as far as the watchdog can know.
    pub(crate) stopped: bool,
    /// Held by a debugger.
    pub(crate) held: bool,
    /// The watchdog has no descriptor left to sample it while it is held.
    pub(crate) unreadable: bool,
    /// No processor runs it.
    pub(crate) starved: bool,
    /// It never becomes ready.
    pub(crate) stuck: bool,
    /// It has reported that it is ready.
    pub(crate) ready: bool,
    /// When it was last held or starved.
    pub(crate) excused_until: Option<Monotonic>,
    ran: Duration,
    /// The time it has waited for a processor. Like the kernel, this counts a wait only when it is over; `waiting` is
    /// the current wait.
    waited: Duration,
    waiting: Duration,
    /// Events that wait until it runs.
    pub(crate) backlog: Vec<SetSimEvent>,
    /// How long it has been silent by its own fault, and when that last ended.
    pub(crate) fault: Duration,
    pub(crate) fault_ended: Option<Monotonic>,
    /// How long it has been silent by its own fault since the last disturbance.
    pub(crate) undisturbed: Duration,
    /// How long it has been absent since the last disturbance.
    pub(crate) absent: Duration,
}

impl Process {
    /// A new process starts.
    pub(crate) fn spawn(&mut self, pid: u32, stuck: bool) {
        assert_eq!(self.pid, None, "started while it runs");
        *self = Self { pid: Some(pid), stuck, ..Self::default() };
    }

    /// The process ends, and its backlog with it.
    pub(crate) fn end(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn runs(&self) -> bool {
        self.pid.is_some() && !self.stopped && !self.held && !self.starved
    }

    /// Whether it is silent by its own fault now. A debugger that comes and goes between two samples does not excuse a
    /// process that stays silent afterwards.
    pub(crate) fn is_at_fault(&self) -> bool {
        let stuck = self.stuck && !self.ready && (self.held || !self.starved);
        self.pid.is_some() && (self.stopped || stuck)
    }

    /// Time passes.
    pub(crate) fn advance(&mut self, now: Monotonic, passed: Duration) {
        if self.pid.is_none() {
            self.absent += passed;
            return;
        }
        if self.held || self.starved {
            self.excused_until = Some(now);
        }
        if self.starved && !self.stopped && !self.held {
            self.waiting += passed;
        } else {
            self.waited += std::mem::take(&mut self.waiting);
        }
        if self.is_at_fault() {
            // For a watchdog that samples, two stops in quick succession are one. A stuck process was silent before.
            let ended = self.fault_ended.take().filter(|_| !self.stuck);
            if ended.is_some_and(|ended| now.since(ended) > passed + Duration::from_millis(500)) {
                self.fault = Duration::ZERO;
            }
            self.fault += passed;
            self.undisturbed = if self.held { Duration::ZERO } else { self.undisturbed + passed };
        } else {
            if self.fault > Duration::ZERO {
                self.fault_ended.get_or_insert(now);
            }
            self.undisturbed = Duration::ZERO;
        }
    }

    /// No processor has run it for this time, which ends at `now`.
    pub(crate) fn stall(&mut self, now: Monotonic, time: Duration) {
        self.excused_until = Some(now);
        if !self.stopped && !self.held {
            self.waited += time;
        }
    }

    /// A disturbance of the watchdog: the bounds of detection and replacement restart.
    pub(crate) fn disturb(&mut self) {
        (self.undisturbed, self.absent) = (Duration::ZERO, Duration::ZERO);
    }

    /// What the watchdog can see of it.
    pub(crate) fn sample(&self) -> Option<ProcessSample> {
        let Some(thread) = self.pid else { return Some(ProcessSample { ended: true, ..ProcessSample::default() }) };
        if self.held && self.unreadable {
            return None;
        }
        let runnable = self.starved && !self.stopped && !self.held;
        Some(ProcessSample {
            ended: false,
            held_by: self.held.then_some(HeldBy::Debugger),
            activity: if runnable { ThreadActivity::Runnable } else { ThreadActivity::Idle },
            sched_stat: Some(SchedStat { thread, ran: self.ran, waited: self.waited }),
            machine_stalled: Duration::ZERO,
        })
    }
}
