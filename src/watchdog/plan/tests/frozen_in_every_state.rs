//! A part that freezes in any state in which it has a process is declared frozen within its timeout, and what follows is
//! what that state had in mind.

use super::*;

/// How the state before the freeze is reached, at 0 ms.
type Prepare = fn(&mut Scenario);

/// Worker 1 owes an answer since `since`. Each report comes 250 ms after the last.
fn freeze(scenario: &mut Scenario, since: u64) -> Vec<String> {
    let mut all = Vec::new();
    for ms in (since..=since + 1000).step_by(250) {
        let silent = WorkerLiveness { silent_since: Some(at(since)), ..alive(1) };
        scenario.drive(ms, PlanEvent::ProbeSent);
        all.extend(in_words(&scenario.drive(ms, PlanEvent::Report(vec![silent, alive(2)]))));
    }
    all
}

#[test]
fn a_worker_that_freezes_while_it_ends_is_killed_and_its_end_is_as_planned() {
    let table: [(&str, Prepare, &[&str]); 5] = [
        ("serves", |_| {}, &["restart worker web/1 in 0ns: frozen", "start worker web/1"]),
        (
            "is removed by a reload",
            |set| {
                let only_two = ConfigChange { workers: BTreeMap::from([(id(2), DRAIN_TIMEOUT)]), ..change(2) };
                set.expect(0, ChildEvent::Apply(only_two), &["reload dispatcher", "terminate worker web/1"]);
            },
            &["remove web/1"],
        ),
        (
            "is removed and configured again",
            |set| {
                let only_two = ConfigChange { workers: BTreeMap::from([(id(2), DRAIN_TIMEOUT)]), ..change(2) };
                set.drive(0, ChildEvent::Apply(only_two));
                set.expect(0, ChildEvent::Apply(change(2)), &["reload dispatcher"]);
            },
            &["start worker web/1"],
        ),
        (
            "is restarted by a reload",
            |set| {
                let moved = ConfigChange { restart: vec![id(1)], ..change(2) };
                set.expect(0, ChildEvent::Apply(moved), &["reload dispatcher", "terminate worker web/1"]);
            },
            &["start worker web/1"],
        ),
        ("stops with the set", |set| drop(set.drive(0, ChildEvent::Stop)), &["close the address of web/1"]),
    ];
    for (state, prepare, after) in table {
        let mut scenario = Scenario::up();
        prepare(&mut scenario);
        assert_eq!(freeze(&mut scenario, 500), [FROZEN, "abort worker web/1"], "a worker that {state}");
        assert_eq!(scenario.state(&worker(1)), "frozen", "a worker that {state}");
        scenario.expect(2000, PlanEvent::Tick, &["kill worker web/1"]);
        scenario.expect(2001, exited(worker(1)), &[&["kill orphans of web/1"], after].concat());
    }
}

#[test]
fn a_worker_that_drains_and_answers_is_not_killed_before_its_drain_timeout() {
    let mut scenario = Scenario::up();
    scenario.drive(0, ChildEvent::Stop);
    scenario.drive(10, exited(worker(2)));
    for ms in (250..32_000).step_by(250) {
        scenario.report(ms, None, &[]);
    }
    scenario.expect(32_000, PlanEvent::Tick, &["overdue worker web/1", "kill worker web/1"]);
    // One that the machine does not run is not killed for its silence.
    let mut scenario = Scenario::up();
    scenario.drive(0, ChildEvent::Stop);
    scenario.sample = ProcessSample { activity: ThreadActivity::Runnable, ..STUCK };
    let actions = freeze(&mut scenario, 500);
    assert_eq!(actions, ["starved worker web/1 for 1s"]);
    assert_eq!(scenario.state(&worker(1)), "draining");
}

#[test]
fn a_worker_that_freezes_while_it_starts_is_killed_also_if_it_is_told_to_stop() {
    for stop in [false, true] {
        let mut scenario = Scenario::starting();
        scenario.drive(0, ChildEvent::Started(Part::Dispatcher, 1));
        scenario.drive(0, PlanEvent::Ready(Part::Dispatcher));
        for n in [1, 2] {
            scenario.drive(0, ChildEvent::Started(worker(n), 10 + u32::from(n)));
        }
        scenario.drive(0, PlanEvent::Ready(worker(2)));
        if stop {
            scenario.drive(10, ChildEvent::Stop);
        }
        scenario.expect(9999, PlanEvent::Tick, &[]);
        let late = "worker web/1 was not ready after 10s (watchdog.start_timeout)";
        scenario.expect(10_000, PlanEvent::Tick, &[late, "abort worker web/1"]);
    }
}

#[test]
fn a_dispatcher_that_freezes_while_it_stops_is_killed() {
    // By a reload, which restarts it.
    let mut scenario = Scenario::up();
    let limits = PlanLimits { exit_grace: Duration::from_secs(60), ..limits() };
    let restart = ConfigChange { restart_dispatcher: true, limits, ..change(2) };
    scenario.expect(0, ChildEvent::Apply(restart), &["terminate dispatcher"]);
    scenario.expect(100, PlanEvent::ProbeSent, &[]);
    let frozen = "dispatcher is frozen (no sign of life for 2s)";
    scenario.expect(2100, PlanEvent::Tick, &[frozen, "abort dispatcher"]);
    scenario.expect(2110, exited(Part::Dispatcher), &["start dispatcher"]);
    // With the set, while its workers drain and after they have ended.
    for ended in [false, true] {
        let mut scenario = Scenario::up();
        scenario.plan.limits.exit_grace = Duration::from_secs(60);
        scenario.drive(0, ChildEvent::Stop);
        if ended {
            scenario.drive(10, exited(worker(1)));
            scenario.drive(10, exited(worker(2)));
        }
        scenario.expect(100, PlanEvent::ProbeSent, &[]);
        scenario.expect(2100, PlanEvent::Tick, &[frozen, "abort dispatcher"]);
        let end: &[&str] = if ended { &["finish"] } else { &[] };
        scenario.expect(2110, exited(Part::Dispatcher), end);
    }
}

#[test]
fn without_a_dispatcher_workers_are_judged_by_what_the_watchdog_sees() {
    let gone: [(&str, Prepare); 3] = [
        ("has ended", |set| drop(set.drive(0, exited(Part::Dispatcher)))),
        ("is frozen, too", |set| drop(set.drive(0, PlanEvent::ProbeSent))),
        ("died while the set stops", |set| {
            set.drive(0, ChildEvent::Stop);
            set.drive(0, exited(Part::Dispatcher));
        }),
    ];
    for (dispatcher, prepare) in gone {
        let mut scenario = Scenario::up();
        prepare(&mut scenario);
        let mut actions = Vec::new();
        for ms in (250..1500).step_by(250) {
            let silent = (ms > 250).then(|| at(250));
            let seen = vec![WorkerLiveness { silent_since: silent, ..alive(1) }, alive(2)];
            actions.extend(in_words(&scenario.drive(ms, PlanEvent::Observed(seen))));
        }
        assert_eq!(actions, [FROZEN, "abort worker web/1"], "the dispatcher {dispatcher}");
    }
}

#[test]
fn several_parts_that_freeze_at_once_are_all_replaced() {
    let mut scenario = Scenario::up();
    scenario.plan.limits.restarts.max = 10;
    scenario.drive(0, PlanEvent::ProbeSent);
    let seen = |silent: bool| {
        let since = silent.then(|| at(250));
        [1, 2].map(|n| WorkerLiveness { silent_since: since, ..alive(n) }).to_vec()
    };
    scenario.expect(250, PlanEvent::Observed(seen(false)), &[]);
    scenario.expect(500, PlanEvent::Observed(seen(true)), &[]);
    let frozen = |n: u16| format!("worker web/{n} is frozen (no sign of life for 1s)");
    let both = [&frozen(1), "abort worker web/1", &frozen(2), "abort worker web/2"];
    scenario.expect(1250, PlanEvent::Observed(seen(true)), &both);
    let dispatcher = "dispatcher is frozen (no sign of life for 2s)";
    let killed = ["kill worker web/1", "kill worker web/2"];
    scenario.expect(1450, PlanEvent::Tick, &killed);
    scenario.expect(2000, PlanEvent::Tick, &[dispatcher, "abort dispatcher"]);
}
