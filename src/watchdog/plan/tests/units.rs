//! A set of systemd units.

use super::*;

/// The plan kills frozen parts and starts none.
#[test]
fn units_are_watched_and_systemd_restarts_them() {
    let unit = |part: Part, absence, restarts| UnitEvent::State {
        part,
        absence,
        restarts,
        cause: Some("exit code 3".to_owned()),
    };
    let mut scenario = Scenario { plan: Plan::for_units(&workers(2), limits(), at(0)), sample: STUCK };
    assert_eq!(scenario.state(&worker(1)), "gone");
    scenario.expect(1, UnitEvent::Found(Part::Dispatcher, 10), &[]);
    // systemd limits the start itself.
    scenario.expect(100_000, PlanEvent::Tick, &[]);
    assert_eq!(scenario.state(&Part::Dispatcher), "starting");
    scenario.expect(100_000, PlanEvent::Ready(Part::Dispatcher), &[]);
    for n in [1, 2] {
        scenario.expect(100_000, UnitEvent::Found(worker(n), 10 + u32::from(n)), &[]);
        scenario.expect(100_000, PlanEvent::Ready(worker(n)), &[]);
    }
    assert_eq!(scenario.plan.deadline(), None);

    // A frozen worker is killed, and systemd restarts it.
    scenario.report(101_000, Some(100_000), &[FROZEN, "abort worker web/1"]);
    scenario.expect(101_200, PlanEvent::Tick, &["kill worker web/1"]);
    scenario.expect(101_201, UnitEvent::Ended(worker(1)), &[]);
    assert_eq!(scenario.state(&worker(1)), "gone");
    // A report between two processes, as during ExecStartPre=, may count the restart already.
    scenario.expect(101_300, unit(worker(1), Absence::Gone, 1), &[]);
    scenario.expect(101_400, UnitEvent::Found(worker(1), 21), &[]);
    scenario.expect(101_400, PlanEvent::Ready(worker(1)), &[]);
    scenario.expect(101_410, unit(worker(1), Absence::Gone, 1), &["recovered worker web/1 1"]);
    scenario.expect(101_420, unit(worker(1), Absence::Gone, 1), &[]);

    // The other is restarted by an operator, then stopped, then fails.
    scenario.expect(102_000, UnitEvent::Ended(worker(2)), &[]);
    scenario.expect(102_001, UnitEvent::Found(worker(2), 22), &[]);
    scenario.expect(102_002, PlanEvent::Ready(worker(2)), &[]);
    scenario.expect(102_003, unit(worker(2), Absence::Gone, 0), &[]);
    let cause = |n| scenario.plan.status().find(|(part, _)| **part == worker(n)).and_then(|(_, status)| status.cause);
    assert_eq!((cause(1).as_deref(), cause(2)), (Some("frozen"), None), "the end of the second was planned");
    scenario.expect(102_004, UnitEvent::Ended(Part::Dispatcher), &[]);
    scenario.expect(102_005, UnitEvent::Found(Part::Dispatcher, 31), &[]);
    scenario.expect(102_005, PlanEvent::Ready(Part::Dispatcher), &[]);
    scenario.expect(102_006, unit(Part::Dispatcher, Absence::Gone, 1), &["recovered dispatcher 1"]);
    let (_, dispatcher) = scenario.plan.status().next().unwrap();
    assert_eq!(dispatcher.cause.as_deref(), Some("exit code 3"));
    scenario.expect(102_009, UnitEvent::Ended(worker(2)), &[]);
    scenario.expect(102_010, unit(worker(2), Absence::Stopped, 0), &["stopped worker web/2"]);
    scenario.expect(102_020, unit(worker(2), Absence::Stopped, 0), &[]);
    assert_eq!(scenario.state(&worker(2)), "stopped");
    scenario.expect(102_030, unit(worker(2), Absence::Failed, 0), &["unit failed worker web/2: exit code 3"]);
    assert_eq!(
        scenario.plan.status().find(|(part, _)| **part == worker(2)).unwrap().1.cause.as_deref(),
        Some("exit code 3")
    );

    scenario.expect(103_000, UnitEvent::Apply(workers(1), limits()), &[]);
    assert_eq!((scenario.state(&worker(1)), scenario.state(&worker(2))), ("up", "unknown"));

    // systemd does not limit the start of a new incarnation in the same process, which may delay itself.
    scenario.report_starting(200_000, 199_000, &[]);
    scenario.report_starting(246_400, 199_000, &[]);
    let late = "worker web/1 was not ready after 47s 500ms (watchdog.start_timeout)";
    scenario.report_starting(246_500, 199_000, &[late, "abort worker web/1"]);
}
