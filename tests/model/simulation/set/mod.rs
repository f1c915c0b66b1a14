//! The simulation of a set: the pool's dispatcher and workers as processes, and a watchdog.

mod checks;
mod faults;
mod policy;
mod process;
mod watchdog;

use std::collections::BTreeMap;
use std::time::Duration;

use super::pool::{PoolSimEvent, PoolSimulation, WORKERS};
use crate::ids::Monotonic;
use crate::liveness::RestartLimits;
use crate::pool::PoolEvent;
use crate::probe::{PoolReport, ProbeReport, WorkerReport};
use crate::watchdog::plan::PlanLimits;
use policy::RestartPolicy;
use process::Process;
use watchdog::{SimulatedWatchdog, Wake};

/// A future event. Parts are given by index, 0 is the dispatcher and `w + 1` worker `w`, and by pid: the event has no
/// effect once that process has ended.
#[derive(Clone, Debug)]
pub(crate) enum SetSimEvent {
    /// A random fault.
    Fault,
    /// SIGCONT arrives.
    Continue(usize, u32),
    /// The debugger detaches.
    Detach(usize, u32),
    /// A processor runs the process again.
    Schedule(usize, u32),
    /// A processor runs the watchdog again.
    ScheduleWatchdog,
    /// The process takes its role.
    TakeRole(usize, u32),
    /// The process ends.
    Die(usize, u32),
    /// SIGTERM arrives, or is pending while the process finishes its request.
    Terminate(usize, u32),
    /// A probe reaches the dispatcher.
    Probe,
    /// The dispatcher learns that the set is stopping.
    Quiesce,
    /// The watchdog wakes up.
    Watchdog(Wake),
}

pub(crate) struct SetSimulation {
    pub(crate) pool: PoolSimulation,
    pub(crate) parts: Vec<Process>,
    pub(crate) policies: Vec<RestartPolicy>,
    pub(crate) watchdog: SimulatedWatchdog,
    pub(crate) bounds: PlanLimits,
    events: BTreeMap<(Monotonic, u64), SetSimEvent>,
    event_count: u64,
    last_pid: u32,
    /// Until when each worker dies soon after every start.
    crashing: [Monotonic; WORKERS as usize],
    /// Events of the pool that wait for a running dispatcher.
    backlog: Vec<PoolSimEvent>,
    /// A probe waits in the socket.
    probe_waits: bool,
}

impl SetSimulation {
    pub(crate) fn new(seed: u64) -> Self {
        let mut pool = PoolSimulation::new(seed, true);
        let ms = Duration::from_millis;
        let max = 1 + pool.random.below(6) as u32;
        let restarts = RestartLimits { max, within: ms(20_000), delay: ms(100), delay_max: ms(1500) };
        let bounds = PlanLimits {
            worker_timeout: ms(1000),
            dispatcher_timeout: ms(2000),
            start_timeout: ms(3000),
            abort_grace: ms(200),
            exit_grace: ms(1000),
            restarts,
        };
        let (watchdog, actions) = SimulatedWatchdog::new(bounds, pool.now);
        let mut set = Self {
            crashing: [pool.now; WORKERS as usize],
            pool,
            parts: (0..=WORKERS).map(|_| Process::default()).collect(),
            policies: (0..=WORKERS).map(|_| RestartPolicy::default()).collect(),
            watchdog,
            bounds,
            events: BTreeMap::new(),
            event_count: 0,
            last_pid: 100,
            backlog: Vec::new(),
            probe_waits: false,
        };
        set.perform(actions);
        set.wake(Wake::Timer(0));
        set.within(3000, SetSimEvent::Fault);
        set
    }

    pub(crate) fn granted(&self) -> u64 {
        self.pool.granted
    }

    /// Schedules an event at a random time within `ms` milliseconds.
    pub(crate) fn within(&mut self, ms: u64, event: SetSimEvent) {
        let after = self.pool.random.millis(ms);
        self.after(after, event);
    }

    pub(crate) fn after(&mut self, after: Duration, event: SetSimEvent) {
        self.event_count += 1;
        self.events.insert((self.pool.now + after, self.event_count), event);
    }

    /// Executes the next event.
    pub(crate) fn step(&mut self) {
        let tick = self.pool.pool.deadline().filter(|_| self.is_serving());
        let of_pool = self.pool.events.first_key_value().map(|((at, _), _)| *at);
        let of_set = self.events.first_key_value().map(|((at, _), _)| *at);
        let next = [tick, of_pool, of_set].into_iter().flatten().min().expect("the next probe is scheduled");
        self.advance(next);
        if tick == Some(next) {
            self.pool.handle(PoolEvent::Tick);
        } else if of_pool == Some(next) {
            let (_, event) = self.pool.events.pop_first().unwrap();
            self.execute_in_pool(event);
        } else {
            let (_, event) = self.events.pop_first().unwrap();
            self.execute(event);
        }
        self.send_ready_messages();
    }

    /// Whether a dispatcher is running and ready.
    fn is_serving(&self) -> bool {
        self.parts[0].runs() && self.parts[0].ready
    }

    fn advance(&mut self, to: Monotonic) {
        let serving = self.is_serving();
        let passed = self.pool.advance(to, serving);
        let is_judging = self.watchdog.runs && !self.watchdog.finished;
        for process in &mut self.parts {
            process.advance(self.pool.now, passed);
        }
        if !is_judging || !self.watchdog.dispatcher_was_ready {
            self.parts.iter_mut().for_each(Process::disturb);
        }
        if !serving || self.parts[0].fault > Duration::ZERO && self.parts[0].is_at_fault() {
            self.parts[1..].iter_mut().for_each(|process| process.undisturbed = Duration::ZERO);
        }
        self.pool.check(if serving { passed } else { Duration::ZERO });
        self.check();
    }

    /// Starts the process of a part; returns its pid.
    pub(crate) fn start(&mut self, p: usize) -> u32 {
        self.last_pid += 1;
        let stuck = !self.pool.recovering && self.pool.random.percent(3);
        self.parts[p].spawn(self.last_pid, stuck);
        if !stuck {
            self.within(30, SetSimEvent::TakeRole(p, self.last_pid));
        }
        if p > 0 && self.pool.now < self.crashing[p - 1] {
            self.within(60, SetSimEvent::Die(p, self.last_pid));
        }
        self.last_pid
    }

    fn end(&mut self, p: usize, pid: u32) {
        if self.parts[p].backlog.iter().any(|event| matches!(event, SetSimEvent::Probe)) {
            self.within(1, SetSimEvent::Watchdog(Wake::Report(None)));
        }
        self.parts[p].end();
        if p > 0 {
            let w = p - 1;
            if self.pool.workers[w].side.is_some() {
                self.pool.die(w);
            }
            self.pool.workers[w].frozen = false;
        }
        self.within(3, SetSimEvent::Watchdog(Wake::Exit(p, pid)));
    }

    /// Applies a change of whether the process runs.
    fn apply_run_state(&mut self, p: usize) {
        if self.parts[p].pid.is_none() {
            return;
        }
        if !self.parts[p].runs() {
            if p > 0 {
                self.pool.workers[p - 1].frozen = true;
            }
            return;
        }
        for event in std::mem::take(&mut self.parts[p].backlog) {
            self.after(Duration::ZERO, event);
        }
        if p > 0 {
            self.pool.execute(PoolSimEvent::Thaw(p - 1));
        } else {
            self.release_backlog();
        }
    }

    fn release_backlog(&mut self) {
        if self.is_serving() {
            for event in std::mem::take(&mut self.backlog) {
                self.pool.after(Duration::ZERO, event);
            }
        }
    }

    fn send_ready_messages(&mut self) {
        for (w, stuck) in std::mem::take(&mut self.pool.ended_incarnations) {
            (self.parts[w + 1].ready, self.parts[w + 1].stuck) = (false, stuck);
        }
        for w in std::mem::take(&mut self.pool.readied) {
            if let Some(pid) = self.parts[w + 1].pid {
                (self.parts[w + 1].ready, self.parts[w + 1].stuck) = (true, false);
                self.send_ready(w + 1, pid);
            }
        }
    }

    fn send_ready(&mut self, p: usize, pid: u32) {
        self.watchdog.ready_messages.push((p, pid));
        self.within(2, SetSimEvent::Watchdog(Wake::Ready(p, pid)));
    }

    /// Executes an event of the pool if its process runs. A ring for a dead dispatcher is dropped: the next dispatcher
    /// reads every slot.
    fn execute_in_pool(&mut self, event: PoolSimEvent) {
        if event.worker().is_some() || matches!(event, PoolSimEvent::WantRecycle(_)) || self.is_serving() {
            return self.pool.execute(event);
        }
        if !(matches!(event, PoolSimEvent::DispatcherRung(_)) && self.parts[0].pid.is_none()) {
            self.backlog.push(event);
        }
    }

    fn execute(&mut self, event: SetSimEvent) {
        let is_current = |set: &Self, p: usize, pid: u32| set.parts[p].pid == Some(pid);
        match event {
            SetSimEvent::Fault => {
                self.within(1500, SetSimEvent::Fault);
                self.inject_fault();
            }
            SetSimEvent::Continue(p, pid) if is_current(self, p, pid) => {
                self.parts[p].stopped = false;
                self.apply_run_state(p);
            }
            SetSimEvent::Detach(p, pid) if is_current(self, p, pid) => {
                self.parts[p].held = false;
                self.apply_run_state(p);
            }
            SetSimEvent::Schedule(p, pid) if is_current(self, p, pid) => {
                self.parts[p].starved = false;
                self.apply_run_state(p);
            }
            SetSimEvent::ScheduleWatchdog => {
                self.watchdog.runs = true;
                for wake in std::mem::take(&mut self.watchdog.backlog) {
                    self.after(Duration::ZERO, SetSimEvent::Watchdog(wake));
                }
            }
            SetSimEvent::Die(p, pid) if is_current(self, p, pid) => self.end(p, pid),
            SetSimEvent::TakeRole(p, pid) | SetSimEvent::Terminate(p, pid)
                if is_current(self, p, pid) && !self.parts[p].runs() =>
            {
                self.parts[p].backlog.push(event);
            }
            SetSimEvent::TakeRole(0, pid) if is_current(self, 0, pid) => {
                self.parts[0].ready = true;
                self.pool.restart_dispatcher();
                self.release_backlog();
                if std::mem::take(&mut self.probe_waits) {
                    self.within(1, SetSimEvent::Probe);
                }
                self.send_ready(0, pid);
            }
            SetSimEvent::TakeRole(p, pid) if is_current(self, p, pid) => self.pool.start_incarnation(p - 1),
            SetSimEvent::Terminate(p, pid) if is_current(self, p, pid) => {
                let now = self.pool.now;
                let side = if p > 0 { self.pool.workers[p - 1].side.as_ref() } else { None };
                if side.is_some_and(|side| side.has_obligation(now)) {
                    self.after(Duration::from_millis(20), SetSimEvent::Terminate(p, pid));
                } else {
                    self.end(p, pid);
                }
            }
            SetSimEvent::Probe if !self.parts[0].ready => self.probe_waits = true,
            SetSimEvent::Quiesce if !self.parts[0].ready => {} // the dispatcher misses the stop; the workers refuse
            SetSimEvent::Probe | SetSimEvent::Quiesce if !self.parts[0].runs() => self.parts[0].backlog.push(event),
            SetSimEvent::Probe => self.respond_to_probe(),
            SetSimEvent::Quiesce => self.pool.handle(PoolEvent::Quiesce),
            SetSimEvent::Watchdog(wake) => self.wake(wake),
            _ => {} // the process has ended meanwhile
        }
    }

    /// The dispatcher reports and pings every worker, as `dispatcher::probe` does.
    fn respond_to_probe(&mut self) {
        let workers = self.pool.pool.workers().iter().enumerate();
        let silent: Vec<usize> = workers.filter_map(|(w, worker)| worker.silent_since.map(|_| w)).collect();
        for w in silent {
            self.pool.execute(PoolSimEvent::DispatcherRung(w));
        }
        let now = self.pool.now;
        let worker = |(w, worker): (usize, &crate::pool::Worker)| WorkerReport {
            epoch: worker.epoch.map_or(0, |epoch| epoch.get()),
            serves: worker.up,
            late: worker.is_late(),
            drained: worker.drained,
            corrupt: worker.is_corrupt(),
            recycle_requested: worker.recycle_requested,
            silent_ms: worker.silent_since.map(|since| now.since(since).as_millis() as u64),
            starting_ms: worker.starting_since.map(|since| now.since(since).as_millis() as u64),
            ticks: worker.silent_since.and_then(|_| self.pool.ticks(w)),
            handler_faults: 0,
        };
        let workers = self.pool.pool.workers().iter().enumerate().map(worker).collect();
        let (name, counters) = ("web".to_owned().try_into().unwrap(), Default::default());
        let pool = PoolReport { name, queue: 0, oldest_ms: 0, workers, served: 0, counters };
        let (pools, stopping) = (vec![pool], false);
        let report = ProbeReport {
            nonce: 1,
            pid: 1,
            epoch: 1,
            pools,
            connections: None,
            refused: None,
            stopping,
            version: None,
        };
        self.pool.handle(PoolEvent::Probe);
        self.within(3, SetSimEvent::Watchdog(Wake::Report(Some(report))));
    }
}
