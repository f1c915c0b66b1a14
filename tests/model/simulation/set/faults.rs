//! The faults of processes and of the machine.

use super::process::Process;
use super::watchdog::Wake;
use super::{SetSimEvent, SetSimulation};
use crate::model::simulation::pool::WORKERS;

impl SetSimulation {
    /// A random fault of a random part, or of the machine.
    pub(super) fn inject_fault(&mut self) {
        let p = self.pool.random.below(u64::from(WORKERS) + 1) as usize;
        let kind = self.pool.random.below(12);
        match (kind, self.parts[p].pid) {
            (0..3, Some(pid)) => self.stop_process(p, pid),
            (3, Some(pid)) => self.end(p, pid),
            (4, Some(pid)) if p > 0 => {
                self.crashing[p - 1] = self.pool.now + self.pool.random.millis(5000);
                self.end(p, pid);
            }
            (5, Some(pid)) => {
                self.parts[p].held = true;
                self.parts[p].unreadable = self.pool.random.percent(30);
                self.apply_run_state(p);
                self.within(5000, SetSimEvent::Detach(p, pid));
            }
            (6, Some(_)) => self.starve(p, 5000),
            (7, _) => {
                self.watchdog.runs = false;
                self.within(2000, SetSimEvent::ScheduleWatchdog);
            }
            (8, _) => self.stall_machine(),
            (9, _) => {
                self.watchdog.was_suspended = true;
                for p in 0..self.parts.len() {
                    self.starve(p, 1000);
                }
                self.parts.iter_mut().for_each(Process::disturb);
            }
            (10, _) => {
                let restart = self.pool.random.percent(50).then_some(p);
                self.within(1, SetSimEvent::Watchdog(Wake::Reload(restart)));
            }
            (_, Some(_)) => self.starve(p, 300),
            _ => {}
        }
    }

    /// SIGSTOP, often without a SIGCONT.
    fn stop_process(&mut self, p: usize, pid: u32) {
        self.parts[p].stopped = true;
        self.apply_run_state(p);
        match self.pool.random.below(3) {
            0 => self.within(500, SetSimEvent::Continue(p, pid)),
            1 => self.within(6000, SetSimEvent::Continue(p, pid)),
            _ => {}
        }
    }

    /// No processor runs the part for up to `ms` milliseconds.
    fn starve(&mut self, p: usize, ms: u64) {
        if let Some(pid) = self.parts[p].pid {
            self.parts[p].starved = true;
            self.apply_run_state(p);
            self.within(ms, SetSimEvent::Schedule(p, pid));
        }
    }

    /// The machine does nothing for a while.
    fn stall_machine(&mut self) {
        let time = self.pool.random.millis(3000);
        let now = self.pool.now + time;
        self.parts.iter_mut().for_each(|process| process.stall(now, time));
        self.pool.stall(now);
        let rest = self.events.split_off(&(now, 0));
        for event in std::mem::replace(&mut self.events, rest).into_values() {
            self.after(std::time::Duration::ZERO, event);
        }
        self.parts.iter_mut().for_each(Process::disturb);
    }
}
