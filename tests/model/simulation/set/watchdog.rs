//! The watchdog's run loop, one turn at a time: performs the actions of the real `Plan` on simulated processes.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::policy::RestartPolicy;
use super::{SetSimEvent, SetSimulation};
use crate::ids::{Monotonic, WorkerId};
use crate::liveness::ProcessSample;
use crate::model::simulation::pool::{PROBE_INTERVAL, PoolSimEvent, WORKERS};
use crate::probe::ProbeReport;
use crate::watchdog::plan::{
    ChildAction, ChildEvent, ChildSet, ConfigChange, KillSignal, Notice, Part, PartSignal, Plan, PlanAction, PlanEvent,
    PlanLimits, WorkerLiveness,
};

/// As in `watchdog`: a wake-up that is later than this is reported to the plan.
const LATE: Duration = Duration::from_millis(20);
/// The drain timeout of workers.
pub(crate) const DRAIN: Duration = Duration::from_secs(1);

/// The cause of a turn.
#[derive(Clone, Debug)]
pub(crate) enum Wake {
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

pub(crate) struct SimulatedWatchdog {
    pub(crate) plan: Plan<ChildSet>,
    /// A processor runs it.
    pub(crate) runs: bool,
    pub(crate) backlog: Vec<Wake>,
    /// The machine was suspended since the last turn.
    pub(crate) was_suspended: bool,
    pub(crate) finished: bool,
    /// READY=1 messages that it has not read yet.
    pub(crate) ready_messages: Vec<(usize, u32)>,
    /// The dispatcher has been ready once.
    pub(crate) dispatcher_was_ready: bool,
    /// A probe has no response yet.
    is_probing: bool,
    next_probe: Monotonic,
    wake_at: Monotonic,
    timer: u64,
    /// The time of the last turn, and the number of turns at that time.
    last_turn: (Monotonic, u32),
}

pub(crate) fn worker(w: usize) -> WorkerId {
    format!("web/{}", w + 1).parse().unwrap()
}

/// A part by index: 0 is the dispatcher, `w + 1` worker `w`.
pub(crate) fn part_at(p: usize) -> Part {
    if p == 0 { Part::Dispatcher } else { Part::Worker(worker(p - 1)) }
}

pub(crate) fn index_of(part: &Part) -> usize {
    part.worker().map_or(0, |id| id.number.index() + 1)
}

fn workers() -> BTreeMap<WorkerId, Duration> {
    (0..WORKERS.into()).map(|w| (worker(w), DRAIN)).collect()
}

impl SimulatedWatchdog {
    pub(crate) fn new(bounds: PlanLimits, now: Monotonic) -> (Self, Vec<PlanAction<ChildAction>>) {
        let mut plan = Plan::for_children(&workers(), bounds, now);
        let actions = plan.handle(now, PlanEvent::Tick);
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
    pub(crate) fn wake(&mut self, wake: Wake) {
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
            self.handle(PlanEvent::WatchdogLate(late));
        }
        if std::mem::take(&mut self.watchdog.was_suspended) {
            self.handle(PlanEvent::MachineResumed);
        }
        self.handle(event);
        if self.watchdog.next_probe <= now {
            self.watchdog.next_probe = now + PROBE_INTERVAL;
            if !std::mem::replace(&mut self.watchdog.is_probing, true) {
                self.within(2, SetSimEvent::Probe);
            }
            self.handle(PlanEvent::ProbeSent);
        }
        let next_probe = self.watchdog.next_probe;
        let wake_at = self.watchdog.plan.deadline().map_or(next_probe, |due| due.min(next_probe));
        self.watchdog.wake_at = wake_at;
        self.watchdog.timer += 1;
        self.after(wake_at.since(now), SetSimEvent::Watchdog(Wake::Timer(self.watchdog.timer)));
    }

    fn event_of(&mut self, wake: Wake) -> PlanEvent<ChildEvent> {
        match wake {
            Wake::Timer(_) => PlanEvent::Tick,
            Wake::Exit(p, pid) => {
                assert_ne!(self.parts[p].pid, Some(pid), "it has not ended");
                // A message that it sent before its end is read first.
                if self.watchdog.read_ready(p, pid) {
                    self.handle(PlanEvent::Ready(part_at(p)));
                }
                let chance = self.pool.random.below(1001) as f64 / 1000.0;
                ChildEvent::Exited { part: part_at(p), cause: "gone".into(), jitter: chance }.into()
            }
            Wake::Ready(p, pid) if self.watchdog.read_ready(p, pid) => PlanEvent::Ready(part_at(p)),
            Wake::Ready(..) => PlanEvent::Tick,
            Wake::Report(report) => {
                self.watchdog.is_probing = false;
                report.map_or(PlanEvent::Tick, |report| {
                    PlanEvent::Report(WorkerLiveness::from_report(&report, self.pool.now))
                })
            }
            Wake::Stop => ChildEvent::Stop.into(),
            Wake::Reload(restart) => {
                for (part, status) in self.watchdog.plan.status().filter(|(part, _)| !part.is_stand_in()) {
                    let p = index_of(part);
                    // The plan forgets the failures of a part that it replaces while the part waits for a restart.
                    if status.state == "failed" || (status.state == "gone" && restart == Some(p)) {
                        self.policies[p] = RestartPolicy::default();
                    }
                }
                let workers = workers();
                let restart_dispatcher = restart == Some(0);
                let restart = restart.filter(|p| *p > 0).map(|p| worker(p - 1)).into_iter().collect();
                let (reload, limits) = (Vec::new(), self.bounds);
                ChildEvent::Apply(ConfigChange { workers, reload, restart, restart_dispatcher, limits }).into()
            }
        }
    }

    /// Passes an event to the plan and performs its actions.
    pub(crate) fn handle(&mut self, event: PlanEvent<ChildEvent>) {
        let (now, limits) = (self.pool.now, self.bounds.restarts);
        let is_ready = matches!(event, PlanEvent::Ready(_));
        let part = match &event {
            PlanEvent::Ready(part) | PlanEvent::Set(ChildEvent::Exited { part, .. }) => Some(part.clone()),
            _ => None,
        };
        let actions = self.watchdog.plan.handle(now, event);
        let part = part.filter(|part| !part.is_stand_in());
        if let Some(part) = part.as_ref().filter(|part| is_ready && self.watchdog.plan.is_up(part)) {
            self.policies[index_of(part)].ready(now);
        }
        self.perform(actions);
        if let Some(part) = part.filter(|_| !is_ready) {
            self.policies[index_of(&part)].ended(now, &limits);
        }
    }

    pub(crate) fn perform(&mut self, actions: Vec<PlanAction<ChildAction>>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            if let Some(event) = self.act(action) {
                queue.extend(self.watchdog.plan.handle(self.pool.now, event));
            }
        }
    }

    fn act(&mut self, action: PlanAction<ChildAction>) -> Option<PlanEvent<ChildEvent>> {
        match action {
            // Stand-ins affect no other part. They are not simulated: one ends when it is told to, and no sample of it
            // leads to a verdict.
            PlanAction::Sample(part @ Part::StandIn(_)) => {
                Some(PlanEvent::Sampled(part, Some(ProcessSample { ended: true, ..ProcessSample::default() })))
            }
            PlanAction::Kill(part @ Part::StandIn(_), _) => Some(ended_stand_in(part).into()),
            PlanAction::Log(Part::StandIn(_), _) => None,
            PlanAction::Sample(part) => {
                let sample = self.parts[index_of(&part)].sample();
                Some(PlanEvent::Sampled(part, sample))
            }
            PlanAction::Kill(part, signal) => {
                self.kill(index_of(&part), signal);
                None
            }
            PlanAction::DeclareFrozen(part, why) => {
                self.check_verdict(index_of(&part), &why);
                None
            }
            PlanAction::Log(part, Notice::Restarting { delay, .. }) => {
                self.policies[index_of(&part)].check_restart(self.pool.now, &self.bounds.restarts, delay);
                None
            }
            PlanAction::Log(part, Notice::Failed { .. }) => {
                self.policies[index_of(&part)].check_failure(self.pool.now, &self.bounds.restarts);
                None
            }
            PlanAction::Log(..) => None,
            PlanAction::Set(action) => self.act_as_parent(action).map(PlanEvent::Set),
        }
    }

    fn act_as_parent(&mut self, action: ChildAction) -> Option<ChildEvent> {
        match action {
            ChildAction::Start(part @ Part::StandIn(_)) => return Some(ChildEvent::Started(part, u32::MAX)),
            ChildAction::Signal(part @ Part::StandIn(_), _) => return Some(ended_stand_in(part)),
            ChildAction::Start(part) if self.pool.random.percent(1) && !self.pool.recovering => {
                self.parts[index_of(&part)].absent = Duration::ZERO;
                return Some(ChildEvent::StartFailed(part, "no memory".into()));
            }
            ChildAction::Start(part) => {
                let pid = self.start(index_of(&part));
                return Some(ChildEvent::Started(part, pid));
            }
            ChildAction::Signal(part, signal) => self.signal(index_of(&part), signal),
            ChildAction::KillOrphans(id) => self.pool.within(1, PoolSimEvent::DispatcherRung(id.number.index())),
            ChildAction::Quiesce => self.within(2, SetSimEvent::Quiesce),
            ChildAction::CloseAddress(_) | ChildAction::AllUp => {}
            ChildAction::RemoveWorker(id) => panic!("{id} is removed without a reason"),
            ChildAction::Finish => self.watchdog.finished = true,
        }
        None
    }

    fn signal(&mut self, p: usize, signal: PartSignal) {
        let Some(pid) = self.parts[p].pid else { return };
        if p == 0 && signal == PartSignal::Terminate && self.watchdog.plan.is_stopping() {
            let workers = self.parts[1..].iter().filter(|process| process.pid.is_some()).count();
            assert_eq!(workers, 0, "the dispatcher is stopped before the workers have ended");
        }
        match signal {
            PartSignal::Terminate => self.within(2, SetSimEvent::Terminate(p, pid)),
            PartSignal::Reload => {}
        }
    }

    fn kill(&mut self, p: usize, signal: KillSignal) {
        let Some(pid) = self.parts[p].pid else { return };
        match signal {
            // Some processes write a core dump for longer than the grace; a debugger intercepts the signal.
            KillSignal::Abort if self.pool.random.percent(10) || self.parts[p].held => {}
            KillSignal::Abort => self.within(20, SetSimEvent::Die(p, pid)),
            KillSignal::Kill => self.within(2, SetSimEvent::Die(p, pid)),
        }
    }
}

fn ended_stand_in(part: Part) -> ChildEvent {
    ChildEvent::Exited { part, cause: "gone".into(), jitter: 0.5 }
}
