//! A simulated process, which runs or not, for various reasons.

use std::time::Duration;

use super::SetSimEvent;
use crate::ids::Monotonic;
use crate::liveness::{Activity, HeldBy, ProcessSample, SchedStat};

/// The process of a part, or its absence.
#[derive(Debug, Default)]
pub struct Process {
    /// `None` while there is no process.
    pub pid: Option<u32>,
    /// Stopped by a signal: a fault of the process, as far as the watchdog can know.
    pub stopped: bool,
    /// Held by a debugger.
    pub held: bool,
    /// No processor runs it.
    pub starved: bool,
    /// It never becomes ready.
    pub stuck: bool,
    /// It has reported that it is ready.
    pub ready: bool,
    /// It was told to end, and is no longer judged.
    pub leaving: bool,
    /// When it was last held or starved.
    pub excused_until: Option<Monotonic>,
    ran: Duration,
    /// The time it has waited for a processor. Like the kernel, this counts a wait only when it is over; `waiting` is
    /// the current wait.
    waited: Duration,
    waiting: Duration,
    /// Events that wait until it runs.
    pub backlog: Vec<SetSimEvent>,
    /// How long it has been silent by its own fault, and when that last ended.
    pub fault: Duration,
    pub fault_ended: Option<Monotonic>,
    /// How long it has been silent by its own fault since the last disturbance.
    pub undisturbed: Duration,
    /// How long it has been absent since the last disturbance.
    pub absent: Duration,
}

impl Process {
    /// A new process starts.
    pub fn spawn(&mut self, pid: u32, stuck: bool) {
        assert_eq!(self.pid, None, "started while it runs");
        *self = Self { pid: Some(pid), stuck, ..Self::default() };
    }

    /// The process ends, and its backlog with it.
    pub fn end(&mut self) {
        *self = Self::default();
    }

    pub fn runs(&self) -> bool {
        self.pid.is_some() && !self.stopped && !self.held && !self.starved
    }

    /// Whether it is silent by its own fault now. A debugger that comes and goes between two samples does not excuse a
    /// process that stays silent afterwards.
    pub fn is_at_fault(&self) -> bool {
        let stuck = self.stuck && !self.ready && (self.held || !self.starved);
        self.pid.is_some() && (self.stopped || stuck)
    }

    /// Time passes.
    pub fn advance(&mut self, now: Monotonic, passed: Duration) {
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
    pub fn stall(&mut self, now: Monotonic, time: Duration) {
        self.excused_until = Some(now);
        if !self.stopped && !self.held {
            self.waited += time;
        }
    }

    /// A disturbance of the watchdog: the bounds of detection and replacement restart.
    pub fn disturb(&mut self) {
        (self.undisturbed, self.absent) = (Duration::ZERO, Duration::ZERO);
    }

    /// What the watchdog can see of it.
    pub fn sample(&self) -> ProcessSample {
        let Some(thread) = self.pid else { return ProcessSample { ended: true, ..ProcessSample::default() } };
        let runnable = self.starved && !self.stopped && !self.held;
        ProcessSample {
            ended: false,
            held: self.held.then_some(HeldBy::Debugger),
            activity: if runnable { Activity::Runnable } else { Activity::Idle },
            account: Some(SchedStat { thread, ran: self.ran, waited: self.waited }),
            stalled: Duration::ZERO,
        }
    }
}
