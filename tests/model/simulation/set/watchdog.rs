//! The watchdog's run loop, one turn at a time: performs the actions of the real `Plan` on simulated processes.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::policy::RestartPolicy;
use super::{SetSimEvent, SetSimulation};
use crate::ids::{Monotonic, WorkerId};
use crate::model::simulation::pool::{PROBE_INTERVAL, PoolSimEvent, WORKERS};
use crate::probe::ProbeReport;
use crate::watchdog::plan::{Action, Bounds, Change, Event, Notice, Order, Part, Plan, Sign};

/// As in `watchdog`: a wake-up that is later than this is reported to the plan.
const LATE: Duration = Duration::from_millis(20);
/// The drain timeout of workers.
pub const DRAIN: Duration = Duration::from_secs(1);

/// The cause of a turn.
#[derive(Clone, Debug)]
pub enum Wake {
    /// The timer with this number, if it is the last one set.
    Timer(u64),
    /// A process has ended.
    Exit(usize, u32),
    /// A process reports that it is ready.
    Ready(usize, u32),
    /// The dispatcher responds to the probe; `None`: the connection was closed.
    Report(Option<ProbeReport>),
    Stop,
    /// A new configuration, which requires the replacement of this part.
    Reload(Option<usize>),
}

pub struct SimulatedWatchdog {
    pub plan: Plan,
    /// A processor runs it.
    pub runs: bool,
    pub backlog: Vec<Wake>,
    /// The machine was suspended since the last turn.
    pub was_suspended: bool,
    pub finished: bool,
    /// READY=1 messages that it has not read yet.
    pub ready_messages: Vec<(usize, u32)>,
    /// The dispatcher has been ready once.
    pub dispatcher_was_ready: bool,
    /// A probe has no response yet.
    is_probing: bool,
    next_probe: Monotonic,
    wake_at: Monotonic,
    timer: u64,
    /// The time of the last turn, and the number of turns at that time.
    last_turn: (Monotonic, u32),
}

pub fn worker(w: usize) -> WorkerId {
    format!("web/{}", w + 1).parse().unwrap()
}

/// A part by index: 0 is the dispatcher, `w + 1` worker `w`.
pub fn part_at(p: usize) -> Part {
    if p == 0 { Part::Dispatcher } else { Part::Worker(worker(p - 1)) }
}

pub fn index_of(part: &Part) -> usize {
    part.worker().map_or(0, |id| id.number.index() + 1)
}

fn workers() -> BTreeMap<WorkerId, Duration> {
    (0..WORKERS.into()).map(|w| (worker(w), DRAIN)).collect()
}

impl SimulatedWatchdog {
    pub fn new(bounds: Bounds, now: Monotonic) -> (Self, Vec<Action>) {
        let (plan, actions) = Plan::new(&workers(), bounds, now);
        let watchdog = Self {
            plan,
            runs: true,
            backlog: Vec::new(),
            was_suspended: false,
            finished: false,
            ready_messages: Vec::new(),
            dispatcher_was_ready: false,
            is_probing: false,
            next_probe: now + PROBE_INTERVAL,
            wake_at: now,
            timer: 0,
            last_turn: (now, 0),
        };
        (watchdog, actions)
    }

    /// Reads the READY=1 of this process; whether there was one.
    fn read_ready(&mut self, p: usize, pid: u32) -> bool {
        let at = self.ready_messages.iter().position(|message| *message == (p, pid));
        at.map(|at| self.ready_messages.remove(at)).inspect(|_| self.dispatcher_was_ready |= p == 0).is_some()
    }
}

impl SetSimulation {
    /// One turn of the loop.
    pub fn wake(&mut self, wake: Wake) {
        if self.watchdog.finished || matches!(wake, Wake::Timer(timer) if timer != self.watchdog.timer) {
            return;
        }
        if !self.watchdog.runs {
            return self.watchdog.backlog.push(wake);
        }
        let now = self.pool.now;
        let turns = if self.watchdog.last_turn.0 == now { self.watchdog.last_turn.1 + 1 } else { 1 };
        assert!(turns < 1000, "the watchdog spins: {:#?}", self.parts);
        self.watchdog.last_turn = (now, turns);
        let event = self.event_of(wake);
        let late = now.since(self.watchdog.wake_at);
        if late > LATE {
            self.handle(Event::Lost(late));
        }
        if std::mem::take(&mut self.watchdog.was_suspended) {
            self.handle(Event::Resumed);
        }
        if self.watchdog.next_probe <= now {
            self.watchdog.next_probe = now + PROBE_INTERVAL;
            if !std::mem::replace(&mut self.watchdog.is_probing, true) {
                self.within(2, SetSimEvent::Probe);
            }
            self.handle(Event::Probed);
        }
        self.handle(event);
        let next_probe = self.watchdog.next_probe;
        let wake_at = self.watchdog.plan.deadline().map_or(next_probe, |due| due.min(next_probe));
        self.watchdog.wake_at = wake_at;
        self.watchdog.timer += 1;
        self.after(wake_at.since(now), SetSimEvent::Watchdog(Wake::Timer(self.watchdog.timer)));
    }

    fn event_of(&mut self, wake: Wake) -> Event {
        match wake {
            Wake::Timer(_) => Event::Tick,
            Wake::Exit(p, pid) => {
                assert_ne!(self.parts[p].pid, Some(pid), "it has not ended");
                // A message that it sent before its end is read first.
                if self.watchdog.read_ready(p, pid) {
                    self.handle(Event::Ready(part_at(p)));
                }
                let chance = self.pool.random.below(1001) as f64 / 1000.0;
                Event::Exited { part: part_at(p), how: "gone".into(), chance }
            }
            Wake::Ready(p, pid) if self.watchdog.read_ready(p, pid) => Event::Ready(part_at(p)),
            Wake::Ready(..) => Event::Tick,
            Wake::Report(report) => {
                self.watchdog.is_probing = false;
                report.map_or(Event::Tick, |report| Event::Report(Sign::all(&report, self.pool.now)))
            }
            Wake::Stop => Event::Stop,
            Wake::Reload(restart) => {
                for (part, status) in self.watchdog.plan.status() {
                    let p = index_of(part);
                    // The plan forgets the failures of a part that it replaces while the part waits for a restart.
                    if status.state == "failed" || (status.state == "gone" && restart == Some(p)) {
                        self.policies[p] = RestartPolicy::default();
                    }
                }
                let workers = workers();
                let restart_dispatcher = restart == Some(0);
                let restart = restart.filter(|p| *p > 0).map(|p| worker(p - 1)).into_iter().collect();
                Event::Apply(Change { workers, reload: Vec::new(), restart, restart_dispatcher, bounds: self.bounds })
            }
        }
    }

    /// Passes an event to the plan and performs its actions.
    pub fn handle(&mut self, event: Event) {
        let actions = self.watchdog.plan.handle(self.pool.now, event);
        self.perform(actions);
    }

    pub fn perform(&mut self, actions: Vec<Action>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            if let Some(event) = self.act(action) {
                queue.extend(self.watchdog.plan.handle(self.pool.now, event));
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start(part) if self.pool.random.percent(1) && !self.pool.recovering => {
                self.parts[index_of(&part)].absent = Duration::ZERO;
                Some(Event::StartFailed(part, "no memory".into()))
            }
            Action::Start(part) => {
                let pid = self.start(index_of(&part));
                Some(Event::Started(part, pid))
            }
            Action::Observe(part) => {
                let sample = self.parts[index_of(&part)].sample();
                Some(Event::Observed(part, sample))
            }
            Action::Order(part, order) => {
                self.signal(index_of(&part), order);
                None
            }
            Action::Accuse(part, why) => {
                self.check_verdict(index_of(&part), &why);
                None
            }
            Action::Sweep(id) => {
                self.pool.within(1, PoolSimEvent::DispatcherRung(id.number.index()));
                None
            }
            Action::Quiesce => {
                self.within(2, SetSimEvent::Quiesce);
                None
            }
            Action::Tell(part, Notice::Restart { delay, .. }) => {
                self.policies[index_of(&part)].check_restart(self.pool.now, &self.bounds.restarts, delay);
                None
            }
            Action::Tell(part, Notice::Failed { .. }) => {
                self.policies[index_of(&part)].check_failure(self.pool.now, &self.bounds.restarts);
                None
            }
            Action::Tell(..) | Action::AllUp => None,
            Action::Remove(id) => panic!("{id} is removed without a reason"),
            Action::Finish => {
                self.watchdog.finished = true;
                None
            }
        }
    }

    fn signal(&mut self, p: usize, order: Order) {
        let Some(pid) = self.parts[p].pid else { return };
        if p == 0 && order == Order::Leave && self.watchdog.plan.is_stopping() {
            let workers = self.parts[1..].iter().filter(|process| process.pid.is_some()).count();
            assert_eq!(workers, 0, "the dispatcher is stopped before the workers have ended");
        }
        match order {
            Order::Leave => {
                self.parts[p].leaving = true;
                self.within(2, SetSimEvent::Terminate(p, pid));
            }
            Order::Reload => {}
            // Some processes write a core dump for longer than the grace; a debugger intercepts the signal.
            Order::Abort if self.pool.random.percent(10) || self.parts[p].held => {}
            Order::Abort => self.within(20, SetSimEvent::Die(p, pid)),
            Order::Kill => self.within(2, SetSimEvent::Die(p, pid)),
        }
    }
}
