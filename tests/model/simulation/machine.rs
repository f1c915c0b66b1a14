//! The machine: processes that run or do not, and why not.

use std::time::Duration;

use crate::ids::Monotonic;
use crate::liveness::{HeldBy, ProcessSample, SchedStat, ThreadActivity};

use super::set::Happening;

/// The process of a part, or its absence.
#[derive(Debug, Default)]
pub struct Process {
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// Stopped by a signal: its own fault, as far as anybody knows.
    pub stopped: bool,
    /// Held by a debugger.
    pub held: bool,
    /// No processor runs it.
    pub starved: bool,
    /// It never becomes ready.
    pub stuck: bool,
    /// It has said that it is ready.
    pub ready: bool,
    /// What is on its way out already: nobody judges it any more.
    pub leaving: bool,
    /// When it was held or starved last.
    pub excused_until: Option<Monotonic>,
    ran: Duration,
    /// Written up by the kernel, which it does when a wait is over, and the wait that still lasts.
    waited: Duration,
    waiting: Duration,
    /// What waits for it to run.
    pub backlog: Vec<Happening>,
    /// For how long it has been silent by its own fault, and when that ended last.
    pub fault: Duration,
    pub fault_ended: Option<Monotonic>,
    /// The same, since the last disturbance.
    pub undisturbed: Duration,
    /// For how long it has been gone, undisturbed.
    pub absent: Duration,
}

impl Process {
    /// A new process in this place.
    pub fn spawn(&mut self, pid: u32, stuck: bool) {
        assert_eq!(self.pid, None, "started while it runs");
        *self = Self { pid: Some(pid), stuck, ..Self::default() };
    }

    /// It is gone, with everything that waited for it.
    pub fn end(&mut self) {
        *self = Self::default();
    }

    pub fn runs(&self) -> bool {
        self.pid.is_some() && !self.stopped && !self.held && !self.starved
    }

    /// Silent by its own fault just now. A debugger that comes and goes between two looks excuses nobody who does not
    /// answer afterwards either.
    pub fn is_at_fault(&self) -> bool {
        let stuck = self.stuck && !self.ready && (self.held || !self.starved);
        self.pid.is_some() && (self.stopped || stuck)
    }

    /// Time goes on.
    pub fn pass(&mut self, now: Monotonic, passed: Duration) {
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
            // A stop soon after another is one to who looks every now and then, and who is stuck was so before.
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

    /// No processor ran it for so long; the clock goes on by that.
    pub fn stall(&mut self, now: Monotonic, time: Duration) {
        self.excused_until = Some(now);
        if !self.stopped && !self.held {
            self.waited += time;
        }
    }

    /// Whatever bound there is on its detection or replacement begins anew.
    pub fn disturb(&mut self) {
        (self.undisturbed, self.absent) = (Duration::ZERO, Duration::ZERO);
    }

    /// What the watchdog can see of it.
    pub fn look(&self) -> ProcessSample {
        let Some(thread) = self.pid else { return ProcessSample { ended: true, ..ProcessSample::default() } };
        let runnable = self.starved && !self.stopped && !self.held;
        ProcessSample {
            ended: false,
            held_by: self.held.then_some(HeldBy::Debugger),
            activity: if runnable { ThreadActivity::Runnable } else { ThreadActivity::Idle },
            sched_stat: Some(SchedStat { thread, ran: self.ran, waited: self.waited }),
            machine_stalled: Duration::ZERO,
        }
    }
}
