//! Parts that are declared frozen.

use super::*;

#[test]
fn a_frozen_worker_is_aborted_killed_and_replaced() {
    let mut scenario = Scenario::up();
    scenario.report(1000, Some(100), &[]);
    scenario.report(1100, Some(100), &[FROZEN, "abort worker web/1"]);
    assert_eq!(scenario.state(&worker(1)), "frozen");
    scenario.expect(1299, PlanEvent::Tick, &[]);
    scenario.expect(1300, PlanEvent::Tick, &["kill worker web/1"]);
    scenario.expect(
        1310,
        exited(worker(1)),
        &["kill orphans of web/1", "restart worker web/1 in 0ns: frozen", "start worker web/1"],
    );
    scenario.expect(1310, ChildEvent::Started(worker(1), 13), &[]);
    scenario.expect(1320, PlanEvent::Ready(worker(1)), &["recovered worker web/1 1"]);
}

#[test]
fn a_part_that_freezes_repeatedly_leaves_one_core_dump_per_interval() {
    let mut scenario = Scenario::up();
    let delay_max = Duration::from_millis(100);
    scenario.plan.limits.restarts = RestartLimits { max: 3, delay_max, ..limits().restarts };
    let no_core = "worker web/1 is frozen (no sign of life for 1s; no core dump: at most one in 1m)";
    let mut freeze = |ms: u64, frozen: &str, signal: &str, restart: &[&str]| {
        scenario.report(ms, Some(ms - 1000), &[frozen, signal]);
        let after_exit = [&["kill orphans of web/1"], restart].concat();
        scenario.expect(ms + 10, exited(worker(1)), &after_exit);
        let delayed = after_exit.len() == 2 && after_exit[1].starts_with("restart");
        scenario.expect(ms + 1000, PlanEvent::Tick, if delayed { &["start worker web/1"] } else { &[] });
        scenario.expect(ms + 1000, ChildEvent::Started(worker(1), 13), &[]);
        scenario.plan.handle(at(ms + 1000), PlanEvent::Ready(worker(1)));
    };
    let first = ["restart worker web/1 in 0ns: frozen", "start worker web/1"];
    freeze(2000, FROZEN, "abort worker web/1", &first);
    freeze(5000, no_core, "kill worker web/1", &["restart worker web/1 in 100ms: frozen"]);
    freeze(62_500, FROZEN, "abort worker web/1", &["restart worker web/1 in 100ms: frozen"]);
    let failed = ["failed worker web/1: frozen", "start the stand-in of worker web/1"];
    freeze(64_500, no_core, "kill worker web/1", &failed);
}

#[test]
fn a_frozen_dispatcher_is_replaced_and_the_workers_are_not() {
    let mut scenario = Scenario::up();
    scenario.expect(100, PlanEvent::ProbeSent, &[]);
    assert_eq!(scenario.plan.deadline(), Some(at(2100)));
    scenario.expect(2100, PlanEvent::Tick, &["dispatcher is frozen (no sign of life for 2s)", "abort dispatcher"]);
    scenario.expect(2110, exited(Part::Dispatcher), &["restart dispatcher in 0ns: frozen", "start dispatcher"]);
    scenario.expect(2110, ChildEvent::Started(Part::Dispatcher, 2), &[]);
    scenario.expect(2120, PlanEvent::Ready(Part::Dispatcher), &["recovered dispatcher 1"]);
    assert_eq!((scenario.state(&worker(1)), scenario.state(&worker(2))), ("up", "up"));
}

#[test]
fn a_probe_that_cannot_be_sent_is_no_silence() {
    let mut scenario = Scenario::up();
    for second in 0..10 {
        scenario.expect(1000 * second + 100, PlanEvent::ProbeSent, &[]);
        scenario.expect(1000 * second + 101, PlanEvent::ProbeNotSent, &[]);
        scenario.expect(1000 * second + 1000, PlanEvent::Tick, &[]);
    }
    assert_eq!(scenario.plan.deadline(), None);
}

#[test]
fn a_part_that_is_not_ready_in_time_is_killed() {
    let mut scenario = Scenario::starting();
    scenario.expect(0, ChildEvent::Started(Part::Dispatcher, 1), &[]);
    assert_eq!(scenario.plan.deadline(), Some(at(10_000)));
    let late = "dispatcher was not ready after 10s (watchdog.start_timeout)";
    scenario.expect(10_000, PlanEvent::Tick, &[late, "abort dispatcher"]);
}

#[test]
fn a_worker_stuck_between_two_incarnations_is_killed() {
    let mut scenario = Scenario::up();
    scenario.report_starting(1000, 900, &[]);
    assert_eq!(scenario.state(&worker(1)), "starting");
    scenario.report_starting(10_000, 900, &[]);
    scenario.report(10_500, None, &[]);
    assert_eq!(scenario.state(&worker(1)), "up");
    // Each incarnation has its own start timeout, and READY ends it.
    scenario.report_starting(20_000, 15_000, &[]);
    scenario.report_starting(24_990, 15_000, &[]);
    scenario.expect(24_995, PlanEvent::Ready(worker(1)), &[]);
    scenario.report_starting(26_000, 25_900, &[]);
    let late = "worker web/1 was not ready after 10s 100ms (watchdog.start_timeout)";
    scenario.report_starting(36_000, 25_900, &[late, "abort worker web/1"]);
    // The start of a new process is independent of what a report shows about the slot.
    let mut scenario = Scenario::up();
    scenario.expect(
        5000,
        exited(worker(1)),
        &["kill orphans of web/1", "restart worker web/1 in 0ns: gone", "start worker web/1"],
    );
    scenario.expect(5001, ChildEvent::Started(worker(1), 13), &[]);
    scenario.report_starting(5100, 100, &[]);
    scenario.expect(5200, PlanEvent::Ready(worker(1)), &["recovered worker web/1 1"]);
    scenario.report(5300, None, &[]);
    assert_eq!(scenario.state(&worker(1)), "up");
}

#[test]
fn a_report_about_a_process_does_not_affect_its_successor() {
    let mut scenario = Scenario::up();
    let corrupt = || PlanEvent::Report(vec![WorkerLiveness { corrupt: true, ..alive(1) }]);
    let silent = || PlanEvent::Report(vec![silent_since(98_000)]);
    for (ms, report) in [(100, corrupt()), (100_000, silent())] {
        scenario.expect(ms, PlanEvent::ProbeSent, &[]);
        scenario.drive(ms + 10, exited(worker(1)));
        scenario.drive(ms + 10, ChildEvent::Started(worker(1), 13));
        scenario.drive(ms + 50, PlanEvent::Ready(worker(1)));
        // Requested before the new process was ready, received after.
        scenario.expect(ms + 60, report, &[]);
        // Which probe this one answers is unknown.
        scenario.expect(ms + 61, corrupt(), &[]);
        assert_eq!(scenario.state(&worker(1)), "up");
    }
    scenario.expect(101_000, PlanEvent::ProbeSent, &[]);
    scenario.expect(101_010, corrupt(), &["worker web/1 has a corrupt slot", "abort worker web/1"]);
}
