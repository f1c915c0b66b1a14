//! The watchdog's shell over the simulated machine: the loop of `watchdog::Watch::run`, turn by turn.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ids::{Monotonic, WorkerId};
use crate::probe::ProbeReport;
use crate::watchdog::plan::{Action, Bounds, Change, Event, Notice, Order, Part, Plan, Sign};

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
    pub fn new(bounds: Bounds, now: Monotonic) -> (Self, Vec<Action>) {
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
            self.handle(Event::Lost(late));
        }
        if std::mem::take(&mut self.dog.napped) {
            self.handle(Event::Resumed);
        }
        if self.dog.next_probe <= now {
            self.dog.next_probe = now + PROBE;
            if !std::mem::replace(&mut self.dog.asking, true) {
                self.later(2, Happening::Question);
            }
            self.handle(Event::Probed);
        }
        self.handle(event);
        let wake_at = self.dog.plan.deadline().map_or(self.dog.next_probe, |due| due.min(self.dog.next_probe));
        self.dog.wake_at = wake_at;
        self.dog.timer += 1;
        self.after(wake_at.since(now), Happening::Dog(Wake::Timer(self.dog.timer)));
    }

    fn heard(&mut self, wake: Wake) -> Event {
        match wake {
            Wake::Timer(_) => Event::Tick,
            Wake::Exit(p, pid) => {
                assert_ne!(self.parts[p].pid, Some(pid), "it has not ended");
                // What it said comes before its end.
                if self.hear_ready(p, pid) {
                    self.handle(Event::Ready(part(p)));
                }
                let chance = self.core.random.below(1001) as f64 / 1000.0;
                Event::Exited { part: part(p), how: "gone".into(), chance }
            }
            Wake::Ready(p, pid) if self.hear_ready(p, pid) => Event::Ready(part(p)),
            Wake::Ready(..) => Event::Tick,
            Wake::Answer(report) => {
                self.dog.asking = false;
                report.map_or(Event::Tick, |report| Event::Report(Sign::all(&report, self.core.now)))
            }
            Wake::Stop => Event::Stop,
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
                Event::Apply(Change { workers, reload: Vec::new(), restart, restart_dispatcher, bounds: self.bounds })
            }
        }
    }

    fn hear_ready(&mut self, p: usize, pid: u32) -> bool {
        let at = self.dog.said.iter().position(|said| *said == (p, pid));
        at.map(|at| self.dog.said.remove(at)).inspect(|_| self.dog.risen |= p == 0).is_some()
    }

    /// Tells the plan, and does what it says.
    pub fn handle(&mut self, event: Event) {
        let actions = self.dog.plan.handle(self.core.now, event);
        self.perform(actions);
    }

    pub fn perform(&mut self, actions: Vec<Action>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            if let Some(event) = self.act(action) {
                queue.extend(self.dog.plan.handle(self.core.now, event));
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start(part) if self.core.random.percent(1) && !self.core.healing => {
                self.parts[number(&part)].absent = Duration::ZERO;
                Some(Event::StartFailed(part, "no memory".into()))
            }
            Action::Start(part) => {
                let pid = self.start(number(&part));
                Some(Event::Started(part, pid))
            }
            Action::Observe(part) => {
                let look = self.parts[number(&part)].look();
                Some(Event::Observed(part, look))
            }
            Action::Order(part, order) => {
                self.order(number(&part), order);
                None
            }
            Action::Accuse(part, why) => {
                self.accused(number(&part), &why);
                None
            }
            Action::Sweep(id) => {
                self.core.later(1, What::Rung(id.number.index()));
                None
            }
            Action::Quiesce => {
                self.later(2, Happening::Quiesce);
                None
            }
            Action::Tell(part, Notice::Restart { delay, .. }) => {
                self.policies[number(&part)].restarted(self.core.now, &self.bounds.restarts, delay);
                None
            }
            Action::Tell(part, Notice::Failed { .. }) => {
                self.policies[number(&part)].given_up(self.core.now, &self.bounds.restarts);
                None
            }
            Action::Tell(..) | Action::AllUp => None,
            Action::Remove(id) => panic!("{id} is removed, and nobody wanted that"),
            Action::Finish => {
                self.dog.finished = true;
                None
            }
        }
    }

    /// A signal goes out.
    fn order(&mut self, p: usize, order: Order) {
        let Some(pid) = self.parts[p].pid else { return };
        if p == 0 && order == Order::Leave && self.dog.plan.is_stopping() {
            let left = self.parts[1..].iter().filter(|process| process.pid.is_some()).count();
            assert_eq!(left, 0, "the dispatcher is told to go before the workers are gone");
        }
        match order {
            Order::Leave => {
                self.parts[p].leaving = true;
                self.later(2, Happening::Term(p, pid));
            }
            Order::Reload => {}
            // Some write a core for longer than the grace; a debugger keeps the signal to itself.
            Order::Abort if self.core.random.percent(10) || self.parts[p].held => {}
            Order::Abort => self.later(20, Happening::Die(p, pid)),
            Order::Kill => self.later(2, Happening::Die(p, pid)),
        }
    }
}
