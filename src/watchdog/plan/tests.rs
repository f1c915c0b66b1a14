//! The plan as a series of events, each with the actions that it causes.

mod excluded_time;
mod frozen;
mod frozen_in_every_state;
mod lifecycle;
mod stand_in;
mod units;

use std::collections::VecDeque;
use std::convert::Infallible;

use super::*;
use crate::liveness::{ProcessSample, RestartLimits, SchedStat, ThreadActivity};

const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A process that could answer and does not: it sleeps, and nothing holds it.
const STUCK: ProcessSample = ProcessSample {
    ended: false,
    held_by: None,
    activity: ThreadActivity::Idle,
    sched_stat: Some(SchedStat { thread: 7, ran: Duration::ZERO, waited: Duration::ZERO }),
    machine_stalled: Duration::ZERO,
};

const FROZEN: &str = "worker web/1 is frozen (no sign of life for 1s)";

fn at(ms: u64) -> Monotonic {
    Monotonic(ms * 1_000_000)
}

fn limits() -> PlanLimits {
    PlanLimits {
        worker_timeout: Duration::from_secs(1),
        dispatcher_timeout: Duration::from_secs(2),
        start_timeout: Duration::from_secs(10),
        abort_grace: Duration::from_millis(200),
        exit_grace: Duration::from_secs(2),
        restarts: RestartLimits {
            max: 2,
            within: Duration::from_secs(60),
            delay: Duration::from_millis(100),
            delay_max: Duration::from_secs(30),
        },
    }
}

fn id(number: u16) -> WorkerId {
    format!("web/{number}").parse().unwrap()
}

fn worker(number: u16) -> Part {
    Part::Worker(id(number))
}

fn workers(count: u16) -> BTreeMap<WorkerId, Duration> {
    (1..=count).map(|number| (id(number), DRAIN_TIMEOUT)).collect()
}

/// A worker without an unanswered probe.
fn alive(number: u16) -> WorkerLiveness {
    WorkerLiveness { worker: id(number), silent_since: None, starting_since: None, ticks: None, corrupt: false }
}

/// Worker 1 with an unanswered probe.
fn silent_since(ms: u64) -> WorkerLiveness {
    WorkerLiveness { silent_since: Some(at(ms)), ..alive(1) }
}

/// A plan of two workers, and the sample that every process gives.
struct Scenario<K: PlanKind = ChildSet> {
    plan: Plan<K>,
    sample: ProcessSample,
}

impl Scenario {
    /// A new set: the first action starts the dispatcher.
    fn starting() -> Self {
        let mut plan = Plan::for_children(&workers(2), limits(), at(0));
        assert_eq!(in_words(&plan.handle(at(0), PlanEvent::Tick)), ["start dispatcher"]);
        Self { plan, sample: STUCK }
    }

    /// A set that is up, with pids 1 (dispatcher), 11 and 12.
    fn up() -> Self {
        let mut scenario = Self::starting();
        scenario.expect(0, ChildEvent::Started(Part::Dispatcher, 1), &[]);
        scenario.expect(0, PlanEvent::Ready(Part::Dispatcher), &["start worker web/1", "start worker web/2"]);
        scenario.expect(0, ChildEvent::Started(worker(1), 11), &[]);
        scenario.expect(0, ChildEvent::Started(worker(2), 12), &[]);
        scenario.expect(0, PlanEvent::Ready(worker(1)), &[]);
        scenario.expect(0, PlanEvent::Ready(worker(2)), &["all up"]);
        scenario
    }
}

impl<K: PlanKind<Action: InWords>> Scenario<K> {
    /// Passes an event in, performs the samples, and returns the other actions.
    fn drive(&mut self, ms: u64, event: impl Into<PlanEvent<K::Event>>) -> Vec<PlanAction<K::Action>> {
        let mut others = Vec::new();
        let mut queue = VecDeque::from(self.plan.handle(at(ms), event.into()));
        while let Some(action) = queue.pop_front() {
            match action {
                PlanAction::Sample(part) => {
                    queue.extend(self.plan.handle(at(ms), PlanEvent::Sampled(part, Some(self.sample))));
                }
                other => others.push(other),
            }
        }
        others
    }

    #[track_caller]
    fn expect(&mut self, ms: u64, event: impl Into<PlanEvent<K::Event>>, expected: &[&str]) {
        assert_eq!(in_words(&self.drive(ms, event)), expected);
    }

    /// A probe and a report in which worker 1 is silent since then, if at all.
    #[track_caller]
    fn report(&mut self, ms: u64, since: Option<u64>, expected: &[&str]) {
        self.report_worker(ms, since.map_or(alive(1), silent_since), expected);
    }

    /// A probe and a report in which worker 1 is between two incarnations since then.
    #[track_caller]
    fn report_starting(&mut self, ms: u64, since: u64, expected: &[&str]) {
        self.report_worker(ms, WorkerLiveness { starting_since: Some(at(since)), ..alive(1) }, expected);
    }

    #[track_caller]
    fn report_worker(&mut self, ms: u64, first: WorkerLiveness, expected: &[&str]) {
        self.expect(ms, PlanEvent::ProbeSent, &[]);
        self.expect(ms, PlanEvent::Report(vec![first, alive(2)]), expected);
    }

    fn state(&self, part: &Part) -> &'static str {
        self.plan.status().find(|(p, _)| *p == part).map_or("unknown", |(_, status)| status.state)
    }
}

trait InWords {
    fn in_words(&self) -> String;
}

impl InWords for ChildAction {
    fn in_words(&self) -> String {
        match self {
            ChildAction::Start(part) => format!("start {part}"),
            ChildAction::Signal(part, signal) => format!("{signal:?} {part}").to_lowercase(),
            ChildAction::KillOrphans(id) => format!("kill orphans of {id}"),
            ChildAction::CloseAddress(id) => format!("close the address of {id}"),
            ChildAction::Quiesce => "quiesce".into(),
            ChildAction::RemoveWorker(id) => format!("remove {id}"),
            ChildAction::AllUp => "all up".into(),
            ChildAction::Finish => "finish".into(),
        }
    }
}

impl InWords for Infallible {
    fn in_words(&self) -> String {
        match *self {}
    }
}

fn in_words<A: InWords>(actions: &[PlanAction<A>]) -> Vec<String> {
    let word = |action: &PlanAction<A>| match action {
        PlanAction::Sample(part) => format!("sample {part}"),
        PlanAction::DeclareFrozen(part, why) => format!("{part} {why}"),
        PlanAction::Kill(part, signal) => format!("{signal:?} {part}").to_lowercase(),
        PlanAction::Log(part, Notice::Restarting { cause, delay }) => format!("restart {part} in {delay:?}: {cause}"),
        PlanAction::Log(part, Notice::Failed { cause }) => format!("failed {part}: {cause}"),
        PlanAction::Log(part, Notice::Recovered { restarts } | Notice::UnitRestarted { restarts }) => {
            format!("recovered {part} {restarts}")
        }
        PlanAction::Log(part, Notice::Overdue) => format!("overdue {part}"),
        PlanAction::Log(part, Notice::Starved { silence }) => format!("starved {part} for {silence:?}"),
        PlanAction::Log(part, Notice::Suspended { by }) => format!("suspended {part} by {by}"),
        PlanAction::Log(part, Notice::Resumed) => format!("resumed {part}"),
        PlanAction::Log(part, Notice::Stopped) => format!("stopped {part}"),
        PlanAction::Log(part, Notice::UnitFailed { cause }) => format!("unit failed {part}: {cause}"),
        PlanAction::Set(action) => action.in_words(),
    };
    actions.iter().map(word).collect()
}

fn exited(part: Part) -> ChildEvent {
    ChildEvent::Exited { part, cause: "gone".into(), jitter: 0.5 }
}

fn change(count: u16) -> ConfigChange {
    ConfigChange {
        workers: workers(count),
        reload: vec![],
        restart: vec![],
        restart_dispatcher: false,
        limits: limits(),
    }
}
