//! The watchdog's shell over the simulated machine: the loop of `watchdog::Watch::run`, turn by turn.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ids::{Monotonic, WorkerId};
use crate::probe::ProbeReport;
use crate::watchdog::plan::{
    ConfigChange, Notice, Part, PartSignal, Plan, PlanAction, PlanEvent, PlanLimits, WorkerLiveness,
};

use super::core::{PROBE, WORKERS, What};
use super::policy::Policy;
use super::set::{Happening, Set};

/// As in `watchdog`: a loop that wakes later than this was late.
const LATE: Duration = Duration::from_millis(20);
/// How long workers may take to finish.
pub const DRAIN: Duration = Duration::from_secs(1);

/// What wakes the watchdog.
#[derive(Clone, Debug)]
pub enum Wake {
    /// The time it has set itself, if it has not set another since.
    Timer(u64),
    /// A process has ended.
    Exit(usize, u32),
    /// A process says that it is ready.
    Ready(usize, u32),
    /// The dispatcher answers; `None`: the connection was cut.
    Answer(Option<ProbeReport>),
    Stop,
    /// A new configuration, for which these parts must be replaced.
    Reload(Option<usize>),
}

pub struct Dog {
    pub plan: Plan,
    /// A processor runs it.
    pub runs: bool,
    pub backlog: Vec<Wake>,
    /// The machine was suspended since its last turn.
    pub napped: bool,
    pub finished: bool,
    /// READY=1 that it has not read yet.
    pub said: Vec<(usize, u32)>,
    /// The dispatcher has been ready once.
    pub risen: bool,
    /// A question is out.
    asking: bool,
    next_probe: Monotonic,
    wake_at: Monotonic,
    timer: u64,
    /// Its last turn, and how many there were at that time.
    ticks: (Monotonic, u32),
}

pub fn worker(w: usize) -> WorkerId {
    format!("web/{}", w + 1).parse().unwrap()
}

/// Parts by number: 0 is the dispatcher, `w + 1` worker `w`.
pub fn part(p: usize) -> Part {
    if p == 0 { Part::Dispatcher } else { Part::Worker(worker(p - 1)) }
}

pub fn number(part: &Part) -> usize {
    part.worker().map_or(0, |id| id.number.get().into())
}

fn workers() -> BTreeMap<WorkerId, Duration> {
    (0..WORKERS.into()).map(|w| (worker(w), DRAIN)).collect()
}

impl Dog {
    pub fn new(bounds: PlanLimits, now: Monotonic) -> (Self, Vec<PlanAction>) {
        let (plan, actions) = Plan::new(&workers(), bounds, now);
        let dog = Self {
            plan,
            runs: true,
            backlog: Vec::new(),
            napped: false,
            finished: false,
            said: Vec::new(),
            risen: false,
            asking: false,
            next_probe: now + PROBE,
            wake_at: now,
            timer: 0,
            ticks: (now, 0),
        };
        (dog, actions)
    }
}

impl Set {
    /// One turn of its loop.
    pub fn wake(&mut self, wake: Wake) {
        if self.dog.finished || matches!(wake, Wake::Timer(timer) if timer != self.dog.timer) {
            return;
        }
        if !self.dog.runs {
            return self.dog.backlog.push(wake);
        }
        let now = self.core.now;
        let ticks = if self.dog.ticks.0 == now { self.dog.ticks.1 + 1 } else { 1 };
        assert!(ticks < 1000, "the watchdog spins: {:#?}", self.parts);
        self.dog.ticks = (now, ticks);
        let event = self.heard(wake);
        let late = now.since(self.dog.wake_at);
        if late > LATE {
            self.handle(PlanEvent::WatchdogLate(late));
        }
        if std::mem::take(&mut self.dog.napped) {
            self.handle(PlanEvent::MachineResumed);
        }
        if self.dog.next_probe <= now {
            self.dog.next_probe = now + PROBE;
            if !std::mem::replace(&mut self.dog.asking, true) {
                self.later(2, Happening::Question);
            }
            self.handle(PlanEvent::ProbeSent);
        }
        self.handle(event);
        let wake_at = self.dog.plan.deadline().map_or(self.dog.next_probe, |due| due.min(self.dog.next_probe));
        self.dog.wake_at = wake_at;
        self.dog.timer += 1;
        self.after(wake_at.since(now), Happening::Dog(Wake::Timer(self.dog.timer)));
    }

    fn heard(&mut self, wake: Wake) -> PlanEvent {
        match wake {
            Wake::Timer(_) => PlanEvent::Tick,
            Wake::Exit(p, pid) => {
                assert_ne!(self.parts[p].pid, Some(pid), "it has not ended");
                // What it said comes before its end.
                if self.hear_ready(p, pid) {
                    self.handle(PlanEvent::Ready(part(p)));
                }
                let chance = self.core.random.below(1001) as f64 / 1000.0;
                PlanEvent::Exited { part: part(p), cause: "gone".into(), jitter: chance }
            }
            Wake::Ready(p, pid) if self.hear_ready(p, pid) => PlanEvent::Ready(part(p)),
            Wake::Ready(..) => PlanEvent::Tick,
            Wake::Answer(report) => {
                self.dog.asking = false;
                report.map_or(PlanEvent::Tick, |report| {
                    PlanEvent::Report(WorkerLiveness::from_report(&report, self.core.now))
                })
            }
            Wake::Stop => PlanEvent::Stop,
            Wake::Reload(restart) => {
                for (of, status) in self.dog.plan.status() {
                    let p = number(of);
                    // Who is to be replaced and waits for a restart is not the one who ended any more.
                    if status.state == "failed" || (status.state == "gone" && restart == Some(p)) {
                        self.policies[p] = Policy::default();
                    }
                }
                let workers = workers();
                let restart_dispatcher = restart == Some(0);
                let restart = restart.filter(|p| *p > 0).map(|p| worker(p - 1)).into_iter().collect();
                PlanEvent::Apply(ConfigChange {
                    workers,
                    reload: Vec::new(),
                    restart,
                    restart_dispatcher,
                    limits: self.bounds,
                })
            }
        }
    }

    fn hear_ready(&mut self, p: usize, pid: u32) -> bool {
        let at = self.dog.said.iter().position(|said| *said == (p, pid));
        at.map(|at| self.dog.said.remove(at)).inspect(|_| self.dog.risen |= p == 0).is_some()
    }

    /// Tells the plan, and does what it says.
    pub fn handle(&mut self, event: PlanEvent) {
        let actions = self.dog.plan.handle(self.core.now, event);
        self.perform(actions);
    }

    pub fn perform(&mut self, actions: Vec<PlanAction>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            if let Some(event) = self.act(action) {
                queue.extend(self.dog.plan.handle(self.core.now, event));
            }
        }
    }

    fn act(&mut self, action: PlanAction) -> Option<PlanEvent> {
        match action {
            PlanAction::Start(part) if self.core.random.percent(1) && !self.core.healing => {
                self.parts[number(&part)].absent = Duration::ZERO;
                Some(PlanEvent::StartFailed(part, "no memory".into()))
            }
            PlanAction::Start(part) => {
                let pid = self.start(number(&part));
                Some(PlanEvent::Started(part, pid))
            }
            PlanAction::Sample(part) => {
                let look = self.parts[number(&part)].look();
                Some(PlanEvent::Sampled(part, look))
            }
            PlanAction::Signal(part, order) => {
                self.order(number(&part), order);
                None
            }
            PlanAction::DeclareFrozen(part, why) => {
                self.accused(number(&part), &why);
                None
            }
            PlanAction::KillOrphans(id) => {
                self.core.later(1, What::Rung(id.number.index()));
                None
            }
            PlanAction::Quiesce => {
                self.later(2, Happening::Quiesce);
                None
            }
            PlanAction::Log(part, Notice::Restarting { delay, .. }) => {
                self.policies[number(&part)].restarted(self.core.now, &self.bounds.restarts, delay);
                None
            }
            PlanAction::Log(part, Notice::Failed { .. }) => {
                self.policies[number(&part)].given_up(self.core.now, &self.bounds.restarts);
                None
            }
            PlanAction::Log(..) | PlanAction::AllUp => None,
            PlanAction::RemoveWorker(id) => panic!("{id} is removed, and nobody wanted that"),
            PlanAction::Finish => {
                self.dog.finished = true;
                None
            }
        }
    }

    /// A signal goes out.
    fn order(&mut self, p: usize, order: PartSignal) {
        let Some(pid) = self.parts[p].pid else { return };
        if p == 0 && order == PartSignal::Terminate && self.dog.plan.is_stopping() {
            let left = self.parts[1..].iter().filter(|process| process.pid.is_some()).count();
            assert_eq!(left, 0, "the dispatcher is told to go before the workers are gone");
        }
        match order {
            PartSignal::Terminate => {
                self.parts[p].leaving = true;
                self.later(2, Happening::Term(p, pid));
            }
            PartSignal::Reload => {}
            // Some write a core for longer than the grace; a debugger keeps the signal to itself.
            PartSignal::Abort if self.core.random.percent(10) || self.parts[p].held => {}
            PartSignal::Abort => self.later(20, Happening::Die(p, pid)),
            PartSignal::Kill => self.later(2, Happening::Die(p, pid)),
        }
    }
}
