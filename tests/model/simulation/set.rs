//! A set: the core's dispatcher and workers as processes on a machine, and a watchdog.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::Monotonic;
use crate::liveness::RestartLimits;
use crate::pool::{PoolEvent, SUSPICION};
use crate::probe::{PoolReport, ProbeReport, WorkerReport};
use crate::watchdog::plan::PlanLimits;

use super::core::{PROBE, Sim, WORKERS, What};
use super::dog::{DRAIN, Dog, Wake};
use super::machine::Process;
use super::policy::Policy;

/// Besides what is counted: ways of messages and signals, late bells and slow turns.
const SLACK: Duration = Duration::from_millis(300);

/// What happens to whom. Parts are counted: 0 is the dispatcher, `w + 1` worker `w`; a process that has ended
/// meanwhile is nobody any more.
#[derive(Clone, Debug)]
pub enum Happening {
    /// Something goes wrong.
    Fault,
    /// It goes on: SIGCONT, the debugger leaves, a processor is there.
    Continue(usize, u32),
    Release(usize, u32),
    Feed(usize, u32),
    /// The watchdog gets a processor.
    FeedDog,
    /// The process has come up so far that it takes its role.
    Begin(usize, u32),
    /// It ends.
    Die(usize, u32),
    /// SIGTERM has come, and it may be through with what it has.
    Term(usize, u32),
    /// The dispatcher is asked.
    Question,
    /// It is told that the set stops.
    Quiesce,
    /// The watchdog hears something.
    Dog(Wake),
}

pub struct Set {
    pub core: Sim,
    pub parts: Vec<Process>,
    pub policies: Vec<Policy>,
    pub dog: Dog,
    pub bounds: PlanLimits,
    events: BTreeMap<(Monotonic, u64), Happening>,
    count: u64,
    pids: u32,
    /// Workers that die as soon as they are up, until then.
    crashing: [Monotonic; WORKERS as usize],
    /// What waits for a dispatcher that runs.
    waiting: Vec<What>,
    /// A question waits in the socket for a dispatcher.
    asked: bool,
}

impl Set {
    pub fn new(seed: u64) -> Self {
        let mut core = Sim::new(seed, true);
        let ms = Duration::from_millis;
        let max = 1 + core.random.below(6) as u32;
        let restarts = RestartLimits { max, within: ms(20_000), delay: ms(100), delay_max: ms(1500) };
        let bounds = PlanLimits {
            worker_timeout: ms(1000),
            dispatcher_timeout: ms(2000),
            start_timeout: ms(3000),
            abort_grace: ms(200),
            exit_grace: ms(1000),
            restarts,
        };
        let (dog, actions) = Dog::new(bounds, core.now);
        let mut set = Self {
            crashing: [core.now; WORKERS as usize],
            core,
            parts: (0..=WORKERS).map(|_| Process::default()).collect(),
            policies: (0..=WORKERS).map(|_| Policy::default()).collect(),
            dog,
            bounds,
            events: BTreeMap::new(),
            count: 0,
            pids: 100,
            waiting: Vec::new(),
            asked: false,
        };
        set.perform(actions);
        set.wake(Wake::Timer(0));
        set.later(3000, Happening::Fault);
        set
    }

    pub fn granted(&self) -> u64 {
        self.core.granted
    }

    pub fn later(&mut self, ms: u64, what: Happening) {
        let after = self.core.random.millis(ms);
        self.after(after, what);
    }

    pub fn after(&mut self, after: Duration, what: Happening) {
        self.count += 1;
        self.events.insert((self.core.now + after, self.count), what);
    }

    // ---- time ----

    /// The next thing that happens.
    pub fn step(&mut self) {
        let tick = self.core.pool.deadline().filter(|_| self.serves());
        let core = self.core.events.first_key_value().map(|((at, _), _)| *at);
        let own = self.events.first_key_value().map(|((at, _), _)| *at);
        let next = [tick, core, own].into_iter().flatten().min().expect("there is always the next probe");
        self.pass(next);
        if tick == Some(next) {
            self.core.tell(PoolEvent::Tick);
        } else if core == Some(next) {
            let (_, what) = self.core.events.pop_first().unwrap();
            self.meet(what);
        } else {
            let (_, what) = self.events.pop_first().unwrap();
            self.happen(what);
        }
        self.look_who_is_ready();
    }

    /// Whether there is a dispatcher that runs.
    fn serves(&self) -> bool {
        self.parts[0].runs() && self.parts[0].ready
    }

    fn pass(&mut self, to: Monotonic) {
        let serves = self.serves();
        let passed = self.core.advance(to, serves);
        let judges = self.dog.runs && !self.dog.finished;
        for process in &mut self.parts {
            process.pass(self.core.now, passed);
        }
        if !judges || !self.dog.risen {
            self.parts.iter_mut().for_each(Process::disturb);
        }
        if !serves || self.parts[0].fault > Duration::ZERO && self.parts[0].is_at_fault() {
            self.parts[1..].iter_mut().for_each(|process| process.undisturbed = Duration::ZERO);
        }
        self.core.check(if serves { passed } else { Duration::ZERO });
        self.check();
    }

    /// Every part that is frozen is found, and every part that is gone is replaced, in so much undisturbed time.
    fn check(&self) {
        if self.dog.plan.is_stopping() {
            return;
        }
        for (p, process) in self.parts.iter().enumerate() {
            let timeout = self.timeout(p, process.ready);
            // Who is told to go is not judged any more, but killed when his time is over.
            let leave = if process.leaving { DRAIN + self.bounds.exit_grace } else { Duration::ZERO };
            let undisturbed = process.undisturbed;
            // The end of an excuse is seen at the next look, which may be a bound later and excuse as much again.
            let excused = process.excused_until.is_some_and(|at| self.core.now.since(at) <= undisturbed + 2 * timeout);
            let twice = if excused { timeout } else { Duration::ZERO };
            let bound = timeout + twice + 3 * PROBE + self.bounds.abort_grace + leave + SLACK;
            assert!(undisturbed <= bound, "part {p} is frozen for {undisturbed:?}: {process:?}");
            let bound = self.bounds.restarts.delay_max.mul_f64(1.25) + SLACK;
            // Workers are first started when the dispatcher has been ready.
            let may_be = self.policies[p].failed || p > 0 && !self.dog.risen;
            assert!(may_be || process.absent <= bound, "part {p} is gone for {:?}", process.absent);
        }
    }

    fn timeout(&self, p: usize, ready: bool) -> Duration {
        match (ready, p) {
            (false, _) => self.bounds.start_timeout,
            (true, 0) => self.bounds.dispatcher_timeout,
            (true, _) => self.bounds.worker_timeout,
        }
    }

    /// Nobody is accused but for his own silence.
    pub fn accused(&mut self, p: usize, why: &str) {
        let process = &self.parts[p];
        let timeout = self.timeout(p, process.ready);
        let recent = |at: Monotonic| self.core.now.since(at) < PROBE + SLACK;
        let is_it = process.is_at_fault() || process.fault_ended.is_some_and(recent);
        // What the machine did before the first look at a silence, which comes after an eighth, is not excused.
        assert!(is_it && process.fault + timeout / 8 + SLACK >= timeout, "part {p} is innocent: {why}: {process:?}");
    }

    // ---- processes ----

    /// A process begins.
    pub fn start(&mut self, p: usize) -> u32 {
        self.pids += 1;
        let stuck = !self.core.healing && self.core.random.percent(3);
        self.parts[p].spawn(self.pids, stuck);
        if !stuck {
            self.later(30, Happening::Begin(p, self.pids));
        }
        if p > 0 && self.core.now < self.crashing[p - 1] {
            self.later(60, Happening::Die(p, self.pids));
        }
        self.pids
    }

    fn end(&mut self, p: usize, pid: u32) {
        if self.parts[p].backlog.iter().any(|what| matches!(what, Happening::Question)) {
            self.later(1, Happening::Dog(Wake::Answer(None)));
        }
        self.parts[p].end();
        if p > 0 {
            let w = p - 1;
            if self.core.workers[w].respondent.is_some() {
                self.core.die(w);
            }
            self.core.workers[w].frozen = false;
        }
        self.later(3, Happening::Dog(Wake::Exit(p, pid)));
    }

    /// Whether it runs has changed.
    fn settle(&mut self, p: usize) {
        if self.parts[p].pid.is_none() {
            return;
        }
        if !self.parts[p].runs() {
            if p > 0 {
                self.core.workers[p - 1].frozen = true;
            }
            return;
        }
        for what in std::mem::take(&mut self.parts[p].backlog) {
            self.after(Duration::ZERO, what);
        }
        if p > 0 {
            self.core.happen(What::Thaw(p - 1));
        } else {
            self.catch_up();
        }
    }

    /// What has waited for the dispatcher comes to it.
    fn catch_up(&mut self) {
        if self.serves() {
            for what in std::mem::take(&mut self.waiting) {
                self.core.after(Duration::ZERO, what);
            }
        }
    }

    fn look_who_is_ready(&mut self) {
        for (w, stuck) in std::mem::take(&mut self.core.vacated) {
            (self.parts[w + 1].ready, self.parts[w + 1].stuck) = (false, stuck);
        }
        for w in std::mem::take(&mut self.core.readied) {
            if let Some(pid) = self.parts[w + 1].pid {
                (self.parts[w + 1].ready, self.parts[w + 1].stuck) = (true, false);
                self.says_ready(w + 1, pid);
            }
        }
    }

    fn says_ready(&mut self, p: usize, pid: u32) {
        self.dog.said.push((p, pid));
        self.later(2, Happening::Dog(Wake::Ready(p, pid)));
    }

    // ---- what happens ----

    /// The core meets with it, if who is meant runs. A bell is not lost with a dispatcher: the next one looks at every slot.
    fn meet(&mut self, what: What) {
        if what.of_worker().is_some() || matches!(what, What::WantRecycle(_)) || self.serves() {
            return self.core.happen(what);
        }
        if !(matches!(what, What::Rung(_)) && self.parts[0].pid.is_none()) {
            self.waiting.push(what);
        }
    }

    fn happen(&mut self, what: Happening) {
        let is = |set: &Self, p: usize, pid: u32| set.parts[p].pid == Some(pid);
        match what {
            Happening::Fault => {
                self.later(1500, Happening::Fault);
                self.fault();
            }
            Happening::Continue(p, pid) if is(self, p, pid) => {
                self.parts[p].stopped = false;
                self.settle(p);
            }
            Happening::Release(p, pid) if is(self, p, pid) => {
                self.parts[p].held = false;
                self.settle(p);
            }
            Happening::Feed(p, pid) if is(self, p, pid) => {
                self.parts[p].starved = false;
                self.settle(p);
            }
            Happening::FeedDog => {
                self.dog.runs = true;
                for wake in std::mem::take(&mut self.dog.backlog) {
                    self.after(Duration::ZERO, Happening::Dog(wake));
                }
            }
            Happening::Die(p, pid) if is(self, p, pid) => self.end(p, pid),
            Happening::Begin(p, pid) | Happening::Term(p, pid) if is(self, p, pid) && !self.parts[p].runs() => {
                self.parts[p].backlog.push(what);
            }
            Happening::Begin(0, pid) if is(self, 0, pid) => {
                self.parts[0].ready = true;
                self.core.restart();
                self.catch_up();
                if std::mem::take(&mut self.asked) {
                    self.later(1, Happening::Question);
                }
                self.says_ready(0, pid);
            }
            Happening::Begin(p, pid) if is(self, p, pid) => self.core.begin(p - 1),
            Happening::Term(p, pid) if is(self, p, pid) => {
                let now = self.core.now;
                let owes = p > 0 && self.core.workers[p - 1].respondent.as_ref().is_some_and(|r| r.has_obligation(now));
                if owes {
                    self.after(Duration::from_millis(20), Happening::Term(p, pid));
                } else {
                    self.end(p, pid);
                }
            }
            Happening::Question if !self.parts[0].ready => self.asked = true,
            Happening::Quiesce if !self.parts[0].ready => {} // it knows nothing of the stop, and the workers refuse
            Happening::Question | Happening::Quiesce if !self.parts[0].runs() => self.parts[0].backlog.push(what),
            Happening::Question => self.answer(),
            Happening::Quiesce => self.core.tell(PoolEvent::Quiesce),
            Happening::Dog(wake) => self.wake(wake),
            _ => {} // it has ended meanwhile
        }
    }

    /// The dispatcher reports, and asks everybody for a sign of life (`dispatcher::probe`).
    fn answer(&mut self) {
        let silent = |set: &Self| -> Vec<usize> {
            let workers = set.core.pool.workers().iter().enumerate();
            workers.filter_map(|(w, worker)| worker.silent_since.map(|_| w)).collect()
        };
        for w in silent(self) {
            self.core.happen(What::Rung(w));
        }
        let now = self.core.now;
        let worker = |(w, worker): (usize, &crate::pool::Worker)| WorkerReport {
            epoch: worker.epoch.map_or(0, |epoch| epoch.get()),
            serves: worker.up,
            late: worker.late,
            drained: worker.drained,
            corrupt: worker.corrupt,
            silent_ms: worker.silent_since.map(|since| now.since(since).as_millis() as u64),
            starting_ms: worker.starting_since.map(|since| now.since(since).as_millis() as u64),
            ticks: worker.silent_since.and_then(|_| self.core.ticks(w)),
        };
        let workers = self.core.pool.workers().iter().enumerate().map(worker).collect();
        let (name, tally) = ("web".to_owned().try_into().unwrap(), Default::default());
        let pool = PoolReport { name, queue: 0, oldest_ms: 0, workers, tally };
        let report = ProbeReport { nonce: 1, pid: 1, epoch: 1, pools: vec![pool], refused: None };
        self.core.tell(PoolEvent::Probe);
        self.later(3, Happening::Dog(Wake::Answer(Some(report))));
    }

    /// Something goes wrong.
    fn fault(&mut self) {
        let p = self.core.random.below(u64::from(WORKERS) + 1) as usize;
        let kind = self.core.random.below(12);
        match (kind, self.parts[p].pid) {
            (0..3, Some(pid)) => {
                self.parts[p].stopped = true;
                self.settle(p);
                match self.core.random.below(3) {
                    0 => self.later(500, Happening::Continue(p, pid)),
                    1 => self.later(6000, Happening::Continue(p, pid)),
                    _ => {}
                }
            }
            (3, Some(pid)) => self.end(p, pid),
            (4, Some(pid)) if p > 0 => {
                self.crashing[p - 1] = self.core.now + self.core.random.millis(5000);
                self.end(p, pid);
            }
            (5, Some(pid)) => {
                self.parts[p].held = true;
                self.settle(p);
                self.later(5000, Happening::Release(p, pid));
            }
            (6, Some(_)) => self.starve(p, 5000),
            (7, _) => {
                self.dog.runs = false;
                self.later(2000, Happening::FeedDog);
            }
            (8, _) => {
                // The machine does nothing at all for a while.
                let time = self.core.random.millis(3000);
                let now = self.core.now + time;
                self.parts.iter_mut().for_each(|process| process.stall(now, time));
                self.core.stall(now);
                let rest = self.events.split_off(&(now, 0));
                for what in std::mem::replace(&mut self.events, rest).into_values() {
                    self.after(Duration::ZERO, what);
                }
                self.parts.iter_mut().for_each(Process::disturb);
            }
            (9, _) => {
                self.dog.napped = true;
                for p in 0..self.parts.len() {
                    self.starve(p, 1000);
                }
                self.parts.iter_mut().for_each(Process::disturb);
            }
            (10, _) => {
                let restart = self.core.random.percent(50).then_some(p);
                self.later(1, Happening::Dog(Wake::Reload(restart)));
            }
            (_, Some(_)) => self.starve(p, 300),
            _ => {}
        }
    }

    fn starve(&mut self, p: usize, ms: u64) {
        if let Some(pid) = self.parts[p].pid {
            self.parts[p].starved = true;
            self.settle(p);
            self.later(ms, Happening::Feed(p, pid));
        }
    }

    // ---- the end ----

    /// Nothing goes wrong any more; everybody comes back, and all is as in the beginning.
    pub fn heal(&mut self) {
        self.recover();
        for p in 0..self.parts.len() {
            (self.parts[p].stopped, self.parts[p].held) = (false, false);
            self.settle(p);
        }
        for w in 0..WORKERS.into() {
            self.core.later(1, What::Resume(w));
        }
        // Who is stuck has to be found and replaced first.
        self.run(3 * self.bounds.start_timeout);
        self.later(1, Happening::Dog(Wake::Reload(None)));
        self.run(SUSPICION + Duration::from_secs(4));
        for (part, status) in self.dog.plan.status() {
            assert_eq!(status.state, "up", "{part}: {status:?}");
        }
        let before = self.core.ask_all();
        self.run(Duration::from_secs(2));
        self.core.is_well(before);
    }

    fn recover(&mut self) {
        self.core.calm();
        self.waiting.retain(|what| what.is_harmless());
        self.crashing = [self.core.now; WORKERS as usize];
        self.events.retain(|_, what| !matches!(what, Happening::Fault | Happening::Dog(Wake::Reload(_))));
    }

    fn run(&mut self, time: Duration) {
        let end = self.core.now + time;
        while self.core.now < end {
            self.step();
        }
    }

    /// A stop ends with everything gone, whoever is frozen.
    pub fn stop(&mut self) {
        self.recover();
        self.later(1, Happening::Dog(Wake::Stop));
        // The watchdog may just be starved; then workers, then the dispatcher.
        let bound = Duration::from_secs(2) + DRAIN + 2 * (self.bounds.exit_grace + SLACK) + 2 * Duration::from_secs(1);
        let end = self.core.now + bound;
        while !self.dog.finished {
            self.step();
            assert!(self.core.now < end, "it does not stop: {:#?}", self.parts);
        }
        assert!(self.parts.iter().all(|process| process.pid.is_none()), "left behind: {:#?}", self.parts);
    }
}
