//! The plan as conversations: what happened, and what is done about it.

mod excuses;

use super::*;
use std::collections::VecDeque;

use crate::liveness::{Activity, ProcessSample, RestartLimits, SchedStat};

const DRAIN: Duration = Duration::from_secs(30);

/// A process that could answer and does not: it sleeps, and nobody holds it.
const STUCK: ProcessSample = ProcessSample {
    ended: false,
    held: None,
    activity: Activity::Idle,
    account: Some(SchedStat { thread: 7, ran: Duration::ZERO, waited: Duration::ZERO }),
    stalled: Duration::ZERO,
};

fn at(ms: u64) -> Monotonic {
    Monotonic(ms * 1_000_000)
}

fn bounds() -> Bounds {
    Bounds {
        worker_timeout: Duration::from_secs(1),
        dispatcher_timeout: Duration::from_secs(2),
        start_timeout: Duration::from_secs(10),
        abort_grace: Duration::from_millis(200),
        parting: Duration::from_secs(2),
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
    (1..=count).map(|number| (id(number), DRAIN)).collect()
}

fn sign(number: u16) -> Sign {
    Sign { worker: id(number), silent_since: None, starting_since: None, ticks: None, corrupt: false }
}

/// A plan and what it says, in short words. Every process looks as is set here.
struct Talk(Plan, ProcessSample);

impl Talk {
    fn begin() -> Self {
        let (plan, actions) = Plan::new(&workers(2), bounds(), at(0));
        assert_eq!(words(&actions), ["start dispatcher"]);
        Self(plan, STUCK)
    }

    /// A set that is up, with pids 1 (dispatcher), 11 and 12.
    fn up() -> Self {
        let mut talk = Self::begin();
        talk.tell(0, Event::Started(Part::Dispatcher, 1), &[]);
        talk.tell(0, Event::Ready(Part::Dispatcher), &["start worker web/1", "start worker web/2"]);
        talk.tell(0, Event::Started(worker(1), 11), &[]);
        talk.tell(0, Event::Started(worker(2), 12), &[]);
        talk.tell(0, Event::Ready(worker(1)), &[]);
        talk.tell(0, Event::Ready(worker(2)), &["all up"]);
        talk
    }

    /// What it says but that it wants a look, which it gets.
    fn hear(&mut self, ms: u64, event: Event) -> Vec<Action> {
        let mut said = Vec::new();
        let mut queue = VecDeque::from(self.0.handle(at(ms), event));
        while let Some(action) = queue.pop_front() {
            match action {
                Action::Observe(part) => queue.extend(self.0.handle(at(ms), Event::Observed(part, self.1))),
                other => said.push(other),
            }
        }
        said
    }

    #[track_caller]
    fn tell(&mut self, ms: u64, event: Event, expected: &[&str]) {
        assert_eq!(words(&self.hear(ms, event)), expected);
    }

    /// A report in which worker 1 owes an answer since then.
    fn report(&mut self, ms: u64, silent_since: Option<u64>, expected: &[&str]) {
        let silent_since = silent_since.map(at);
        self.hear_signs(ms, Sign { silent_since, ..sign(1) }, expected);
    }

    /// A report in which worker 1 is between two incarnations since then.
    fn starting(&mut self, ms: u64, since: u64, expected: &[&str]) {
        self.hear_signs(ms, Sign { starting_since: Some(at(since)), ..sign(1) }, expected);
    }

    fn hear_signs(&mut self, ms: u64, of_the_first: Sign, expected: &[&str]) {
        self.tell(ms, Event::Probed, &[]);
        self.tell(ms, Event::Report(vec![of_the_first, sign(2)]), expected);
    }

    fn state(&self, part: &Part) -> &'static str {
        self.0.status().find(|(p, _)| *p == part).map_or("unknown", |(_, status)| status.state)
    }
}

fn words(actions: &[Action]) -> Vec<String> {
    let word = |action: &Action| match action {
        Action::Start(part) => format!("start {part}"),
        Action::Observe(part) => format!("look at {part}"),
        Action::Order(part, order) => format!("{order:?} {part}").to_lowercase(),
        Action::Accuse(part, why) => format!("accuse {part}: {why}"),
        Action::Sweep(id) => format!("sweep {id}"),
        Action::Quiesce => "quiesce".into(),
        Action::Remove(id) => format!("remove {id}"),
        Action::Tell(part, Notice::Restart { how, delay }) => format!("restart {part} in {delay:?}: {how}"),
        Action::Tell(part, Notice::Failed { how }) => format!("failed {part}: {how}"),
        Action::Tell(part, Notice::Ready { restarts }) => format!("back {part} {restarts}"),
        Action::Tell(part, Notice::Overdue) => format!("overdue {part}"),
        Action::Tell(part, Notice::Starved { silence }) => format!("starved {part} for {silence:?}"),
        Action::Tell(part, Notice::Suspended { by }) => format!("suspended {part} by {by}"),
        Action::Tell(part, Notice::Relieved) => format!("relieved {part}"),
        Action::Tell(part, Notice::Stopped) => format!("stopped {part}"),
        Action::Tell(part, Notice::GivenUp) => format!("given up {part}"),
        Action::AllUp => "all up".into(),
        Action::Finish => "finish".into(),
    };
    actions.iter().map(word).collect()
}

fn exited(part: Part) -> Event {
    Event::Exited { part, how: "gone".into(), chance: 0.5 }
}

fn change(count: u16) -> Change {
    Change { workers: workers(count), reload: vec![], restart: vec![], restart_dispatcher: false, bounds: bounds() }
}

#[test]
fn workers_stop_before_the_dispatcher() {
    let mut talk = Talk::up();
    talk.tell(10, Event::Stop, &["quiesce", "leave worker web/1", "leave worker web/2"]);
    assert!(talk.0.is_stopping());
    talk.tell(20, exited(worker(2)), &["sweep web/2"]);
    talk.tell(30, exited(worker(1)), &["sweep web/1", "leave dispatcher"]);
    talk.tell(40, exited(Part::Dispatcher), &["finish"]);
    talk.tell(50, Event::Stop, &[]);
}

#[test]
fn who_does_not_stop_in_time_is_killed_and_a_second_stop_waits_for_nobody() {
    let mut talk = Talk::up();
    talk.tell(0, Event::Stop, &["quiesce", "leave worker web/1", "leave worker web/2"]);
    talk.tell(10, exited(worker(2)), &["sweep web/2"]);
    talk.tell(31_999, Event::Tick, &[]);
    assert_eq!(talk.0.deadline(), Some(at(32_000)));
    talk.tell(32_000, Event::Tick, &["overdue worker web/1", "kill worker web/1"]);
    talk.tell(32_001, Event::Stop, &["kill dispatcher", "kill worker web/1"]);
    talk.tell(32_002, exited(worker(1)), &["sweep web/1"]);
    talk.tell(32_003, exited(Part::Dispatcher), &["finish"]);
}

#[test]
fn a_start_can_be_stopped_at_every_step() {
    let mut talk = Talk::begin();
    talk.tell(0, Event::Started(Part::Dispatcher, 1), &[]);
    talk.tell(1, Event::Stop, &["quiesce", "leave dispatcher"]);
    talk.tell(2, exited(Part::Dispatcher), &["finish"]);

    let mut talk = Talk::begin();
    talk.tell(
        0,
        Event::StartFailed(Part::Dispatcher, "no memory".into()),
        &["restart dispatcher in 0ns: no memory", "start dispatcher"],
    );
    talk.tell(0, Event::StartFailed(Part::Dispatcher, "no memory".into()), &["restart dispatcher in 100ms: no memory"]);
    talk.tell(1, Event::Stop, &["quiesce", "finish"]);
}

#[test]
fn a_frozen_worker_is_accused_aborted_killed_and_replaced() {
    let mut talk = Talk::up();
    talk.report(1000, Some(100), &[]);
    let accusation = "accuse worker web/1: it is frozen, no sign of life for 1s";
    talk.report(1100, Some(100), &[accusation, "abort worker web/1"]);
    assert_eq!(talk.state(&worker(1)), "frozen");
    talk.tell(1299, Event::Tick, &[]);
    talk.tell(1300, Event::Tick, &["kill worker web/1"]);
    talk.tell(1310, exited(worker(1)), &["sweep web/1", "restart worker web/1 in 0ns: frozen", "start worker web/1"]);
    talk.tell(1310, Event::Started(worker(1), 13), &[]);
    talk.tell(1320, Event::Ready(worker(1)), &["back worker web/1 1"]);
}

#[test]
fn a_part_that_freezes_again_and_again_leaves_one_core_in_a_while() {
    let mut talk = Talk::up();
    let accusation = "accuse worker web/1: it is frozen, no sign of life for 1s";
    let no_core = format!("{accusation}; without a core, of which it may leave one in 1m");
    let mut freeze = |ms: u64, accusation: &str, order: &str, restart: &[&str]| {
        talk.report(ms, Some(ms - 1000), &[accusation, order]);
        let again = [&["sweep web/1"], restart].concat();
        talk.tell(ms + 10, exited(worker(1)), &again);
        let waits = again.len() == 2 && again[1].starts_with("restart");
        talk.tell(ms + 1000, Event::Tick, if waits { &["start worker web/1"] } else { &[] });
        talk.tell(ms + 1000, Event::Started(worker(1), 13), &[]);
        talk.0.handle(at(ms + 1000), Event::Ready(worker(1)));
    };
    let first = ["restart worker web/1 in 0ns: frozen", "start worker web/1"];
    freeze(2000, accusation, "abort worker web/1", &first);
    freeze(5000, &no_core, "kill worker web/1", &["restart worker web/1 in 100ms: frozen"]);
    freeze(62_500, accusation, "abort worker web/1", &["restart worker web/1 in 100ms: frozen"]);
    freeze(64_500, &no_core, "kill worker web/1", &["failed worker web/1: frozen"]);
}

#[test]
fn a_frozen_dispatcher_is_replaced_alone() {
    let mut talk = Talk::up();
    talk.tell(100, Event::Probed, &[]);
    assert_eq!(talk.0.deadline(), Some(at(2100)));
    talk.tell(2100, Event::Tick, &["accuse dispatcher: it is frozen, no sign of life for 2s", "abort dispatcher"]);
    talk.tell(2110, exited(Part::Dispatcher), &["restart dispatcher in 0ns: frozen", "start dispatcher"]);
    talk.tell(2110, Event::Started(Part::Dispatcher, 2), &[]);
    talk.tell(2120, Event::Ready(Part::Dispatcher), &["back dispatcher 1"]);
    assert_eq!((talk.state(&worker(1)), talk.state(&worker(2))), ("up", "up"));
}

#[test]
fn who_ends_too_often_is_given_up_until_a_reload_and_the_set_is_up_without_him() {
    let mut talk = Talk::begin();
    talk.tell(0, Event::Started(Part::Dispatcher, 1), &[]);
    talk.tell(0, Event::Ready(Part::Dispatcher), &["start worker web/1", "start worker web/2"]);
    talk.tell(0, Event::Started(worker(1), 11), &[]);
    talk.tell(0, Event::Started(worker(2), 12), &[]);
    talk.tell(0, Event::Ready(worker(2)), &[]);
    talk.tell(0, exited(worker(1)), &["sweep web/1", "restart worker web/1 in 0ns: gone", "start worker web/1"]);
    talk.tell(0, exited(worker(1)), &["sweep web/1", "restart worker web/1 in 100ms: gone"]);
    talk.tell(100, Event::Tick, &["start worker web/1"]);
    talk.tell(100, exited(worker(1)), &["sweep web/1", "failed worker web/1: gone", "all up"]);
    assert_eq!(talk.state(&worker(1)), "failed");
    talk.tell(5000, Event::Apply(change(2)), &["reload dispatcher", "start worker web/1"]);
    talk.tell(5000, exited(worker(1)), &["sweep web/1", "restart worker web/1 in 0ns: gone", "start worker web/1"]);
}

#[test]
fn who_is_not_ready_in_time_is_killed() {
    let mut talk = Talk::begin();
    talk.tell(0, Event::Started(Part::Dispatcher, 1), &[]);
    assert_eq!(talk.0.deadline(), Some(at(10_000)));
    let accusation = "accuse dispatcher: it was not ready after 10s (watchdog.start_timeout)";
    talk.tell(10_000, Event::Tick, &[accusation, "abort dispatcher"]);
}

#[test]
fn who_is_stuck_between_two_incarnations_is_killed() {
    let mut talk = Talk::up();
    talk.starting(1000, 900, &[]);
    assert_eq!(talk.state(&worker(1)), "starting");
    talk.starting(10_000, 900, &[]);
    talk.report(10_500, None, &[]);
    assert_eq!(talk.state(&worker(1)), "up");
    // Each has the time of a start of its own, and who says that it is ready has done it.
    talk.starting(20_000, 15_000, &[]);
    talk.starting(24_990, 15_000, &[]);
    talk.tell(24_995, Event::Ready(worker(1)), &[]);
    talk.starting(26_000, 25_900, &[]);
    let accusation = "accuse worker web/1: it was not ready after 10s 100ms (watchdog.start_timeout)";
    talk.starting(36_000, 25_900, &[accusation, "abort worker web/1"]);
    // A process that is new is no vacancy: its start is judged for itself.
    let mut talk = Talk::up();
    talk.tell(5000, exited(worker(1)), &["sweep web/1", "restart worker web/1 in 0ns: gone", "start worker web/1"]);
    talk.tell(5001, Event::Started(worker(1), 13), &[]);
    talk.starting(5100, 100, &[]);
    talk.tell(5200, Event::Ready(worker(1)), &["back worker web/1 1"]);
    talk.report(5300, None, &[]);
    assert_eq!(talk.state(&worker(1)), "up");
}

#[test]
fn surplus_workers_leave_and_may_be_wanted_again_before_they_are_gone() {
    let mut talk = Talk::up();
    talk.tell(0, Event::Apply(change(1)), &["reload dispatcher", "leave worker web/2"]);
    talk.tell(1, Event::Apply(change(2)), &["reload dispatcher"]);
    talk.tell(2, exited(worker(2)), &["sweep web/2", "start worker web/2"]);
    talk.tell(2, Event::Started(worker(2), 22), &[]);
    talk.tell(3, Event::Ready(worker(2)), &[]);
    talk.tell(4, Event::Apply(change(1)), &["reload dispatcher", "leave worker web/2"]);
    talk.tell(5, exited(worker(2)), &["sweep web/2", "remove web/2"]);
    assert_eq!(talk.state(&worker(2)), "unknown");
    talk.tell(6, Event::Apply(change(2)), &["reload dispatcher", "start worker web/2"]);
}

#[test]
fn a_planned_restart_neither_waits_nor_counts() {
    let mut talk = Talk::up();
    let moved = Change { restart: vec![id(1)], restart_dispatcher: true, ..change(2) };
    talk.tell(0, Event::Apply(moved), &["leave dispatcher", "leave worker web/1"]);
    talk.tell(1, exited(worker(1)), &["sweep web/1", "start worker web/1"]);
    talk.tell(2, exited(Part::Dispatcher), &["start dispatcher"]);
    assert!(talk.0.status().all(|(_, status)| status.restarts == 0));
}

/// What systemd starts and stops is watched, and killed where it is frozen; nothing is started here.
#[test]
fn units_are_watched_and_left_to_systemd() {
    let told = |part: Part, absence, restarts| Event::Told { part, absence, restarts };
    let mut talk = Talk(Plan::observing(&workers(2), bounds(), at(0)), STUCK);
    assert_eq!(talk.state(&worker(1)), "gone");
    talk.tell(1, Event::Started(Part::Dispatcher, 10), &[]);
    // Its start is systemd's to judge, however long it takes.
    talk.tell(100_000, Event::Tick, &[]);
    assert_eq!(talk.state(&Part::Dispatcher), "starting");
    talk.tell(100_000, Event::Ready(Part::Dispatcher), &[]);
    for n in [1, 2] {
        talk.tell(100_000, Event::Started(worker(n), 10 + u32::from(n)), &[]);
        talk.tell(100_000, Event::Ready(worker(n)), &[]);
    }
    assert_eq!(talk.0.deadline(), None);

    // One is frozen: said, and killed, and then it is systemd's again.
    let frozen = ["accuse worker web/1: it is frozen, no sign of life for 1s", "abort worker web/1"];
    talk.report(101_000, Some(100_000), &frozen);
    talk.tell(101_200, Event::Tick, &["kill worker web/1"]);
    talk.tell(101_201, exited(worker(1)), &[]);
    assert_eq!(talk.state(&worker(1)), "gone");
    talk.tell(101_300, told(worker(1), Absence::Gone, 0), &[]);
    talk.tell(101_400, Event::Started(worker(1), 21), &[]);
    talk.tell(101_400, Event::Ready(worker(1)), &[]);
    talk.tell(101_410, told(worker(1), Absence::Gone, 1), &["back worker web/1 1"]);
    talk.tell(101_420, told(worker(1), Absence::Gone, 1), &[]);

    // The other is restarted by an administrator, then stopped, then fails.
    talk.tell(102_000, exited(worker(2)), &[]);
    talk.tell(102_001, Event::Started(worker(2), 22), &[]);
    talk.tell(102_002, Event::Ready(worker(2)), &[]);
    talk.tell(102_003, told(worker(2), Absence::Gone, 0), &[]);
    let cause = |n| talk.0.status().find(|(part, _)| **part == worker(n)).and_then(|(_, status)| status.cause);
    assert_eq!((cause(1).as_deref(), cause(2)), (Some("frozen"), None), "the end of the second was wanted");
    talk.tell(102_009, exited(worker(2)), &[]);
    talk.tell(102_010, told(worker(2), Absence::Stopped, 0), &["stopped worker web/2"]);
    talk.tell(102_020, told(worker(2), Absence::Stopped, 0), &[]);
    assert_eq!(talk.state(&worker(2)), "stopped");
    talk.tell(102_030, told(worker(2), Absence::Failed, 0), &["given up worker web/2"]);

    talk.tell(103_000, Event::Apply(change(1)), &[]);
    assert_eq!((talk.state(&worker(1)), talk.state(&worker(2))), ("up", "unknown"));

    // One that begins again in its process may have to wait before it is ready, and systemd has no bound for that.
    talk.starting(200_000, 199_000, &[]);
    talk.starting(246_400, 199_000, &[]);
    let accusation = "accuse worker web/1: it was not ready after 47s 500ms (watchdog.start_timeout)";
    talk.starting(246_500, 199_000, &[accusation, "abort worker web/1"]);
}

#[test]
fn what_a_report_says_of_a_process_is_not_held_against_the_next() {
    let mut talk = Talk::up();
    let report = |silent_since| Event::Report(vec![Sign { silent_since, corrupt: silent_since.is_none(), ..sign(1) }]);
    for (ms, silent_since) in [(100, None), (100_000, Some(at(98_000)))] {
        talk.tell(ms, Event::Probed, &[]);
        talk.hear(ms + 10, exited(worker(1)));
        talk.hear(ms + 10, Event::Started(worker(1), 13));
        talk.hear(ms + 50, Event::Ready(worker(1)));
        // Asked for before it came, answered after.
        talk.tell(ms + 60, report(silent_since), &[]);
        assert_eq!(talk.state(&worker(1)), "up");
    }
    talk.tell(101_000, Event::Probed, &[]);
    let accusation = "accuse worker web/1: its slot holds what no worker writes";
    talk.tell(101_010, report(None), &[accusation, "abort worker web/1"]);
}
