//! Stand-ins of workers that are down.

use super::*;

const START: &str = "start the stand-in of worker web/1";
const STOP: &str = "terminate the stand-in of worker web/1";

fn stand_in() -> Part {
    Part::StandIn(id(1))
}

/// Worker 1 has ended twice, so that its restart is delayed by four times `restarts.delay`, and its stand-in runs.
fn delayed() -> Scenario {
    let mut scenario = Scenario::up();
    scenario.plan.limits.restarts.max = 10;
    scenario.plan.limits.restarts.delay = Duration::from_millis(400);
    scenario.expect(
        0,
        exited(worker(1)),
        &["kill orphans of web/1", "restart worker web/1 in 0ns: gone", "start worker web/1"],
    );
    scenario.expect(0, ChildEvent::Started(worker(1), 13), &[]);
    let delayed = ["kill orphans of web/1", "restart worker web/1 in 400ms: gone", START];
    scenario.expect(0, exited(worker(1)), &delayed);
    scenario.expect(0, ChildEvent::Started(stand_in(), 91), &[]);
    scenario.expect(10, PlanEvent::Ready(stand_in()), &[]);
    scenario
}

#[test]
fn a_stand_in_serves_from_the_end_of_the_worker_until_the_next_incarnation_is_ready() {
    let mut scenario = delayed();
    assert_eq!(scenario.state(&worker(1)), "gone");
    scenario.expect(250, PlanEvent::Ready(stand_in()), &[]);
    scenario.expect(400, PlanEvent::Tick, &["start worker web/1"]);
    scenario.expect(400, ChildEvent::Started(worker(1), 14), &[]);
    scenario.expect(500, PlanEvent::Ready(stand_in()), &[]);
    scenario.expect(600, PlanEvent::Ready(worker(1)), &["recovered worker web/1 2", STOP]);
    scenario.expect(610, exited(stand_in()), &[]);
    assert_eq!(scenario.state(&stand_in()), "unknown");
}

#[test]
fn a_worker_whose_restart_takes_long_gets_a_stand_in() {
    let mut scenario = Scenario::up();
    scenario.expect(
        0,
        exited(worker(1)),
        &["kill orphans of web/1", "restart worker web/1 in 0ns: gone", "start worker web/1"],
    );
    scenario.expect(0, ChildEvent::Started(worker(1), 13), &[]);
    assert_eq!(scenario.plan.deadline(), Some(at(100)));
    scenario.expect(99, PlanEvent::Tick, &[]);
    scenario.expect(100, PlanEvent::Tick, &[START]);
    scenario.expect(100, ChildEvent::Started(stand_in(), 91), &[]);
    scenario.expect(900, PlanEvent::Ready(worker(1)), &["recovered worker web/1 1", STOP]);
    // The start of a set has no clients yet.
    let mut scenario = Scenario::starting();
    scenario.expect(0, ChildEvent::Started(Part::Dispatcher, 1), &[]);
    scenario.expect(0, PlanEvent::Ready(Part::Dispatcher), &["start worker web/1", "start worker web/2"]);
    scenario.expect(5000, PlanEvent::Tick, &[]);
}

#[test]
fn a_stand_in_that_dies_or_freezes_is_replaced_and_never_given_up() {
    let mut scenario = delayed();
    scenario.plan.limits.restarts.max = 2;
    let restart = |ms| format!("restart the stand-in of worker web/1 in {ms}: gone");
    scenario.expect(20, exited(stand_in()), &[&restart("0ns"), START]);
    scenario.expect(20, ChildEvent::Started(stand_in(), 92), &[]);
    scenario.expect(30, exited(stand_in()), &[&restart("400ms")]);
    scenario.expect(430, PlanEvent::Tick, &["start worker web/1", START]);
    for (ms, n) in (430..).step_by(1100).zip(93..110) {
        scenario.drive(ms, ChildEvent::Started(worker(1), n + 100));
        scenario.drive(ms, ChildEvent::Started(stand_in(), n));
        let actions = scenario.drive(ms + 10, exited(stand_in()));
        assert!(in_words(&actions)[0].starts_with("restart the stand-in"), "{actions:?}");
        let actions = in_words(&scenario.drive(ms + 1010, PlanEvent::Tick));
        assert!(actions.contains(&START.to_owned()), "{ms}: {actions:?}");
    }
    assert_eq!(scenario.plan.status().find(|(part, _)| **part == worker(1)).unwrap().1.restarts, 2);

    // READY=1 is its sign of life.
    let mut scenario = delayed();
    scenario.expect(300, PlanEvent::Ready(stand_in()), &[]);
    scenario.drive(400, PlanEvent::Tick);
    scenario.drive(400, ChildEvent::Started(worker(1), 14));
    scenario.expect(1549, PlanEvent::Tick, &[]);
    let frozen = "the stand-in of worker web/1 is frozen (no sign of life for 1s)";
    scenario.expect(1550, PlanEvent::Tick, &[frozen, "abort the stand-in of worker web/1"]);
    scenario.expect(1750, PlanEvent::Tick, &["kill the stand-in of worker web/1"]);
    scenario.expect(1751, exited(stand_in()), &["restart the stand-in of worker web/1 in 0ns: frozen", START]);
}

#[test]
fn a_stand_in_that_is_starved_is_not_killed() {
    let mut scenario = delayed();
    scenario.sample = ProcessSample { activity: ThreadActivity::Runnable, ..STUCK };
    scenario.drive(400, PlanEvent::Tick);
    scenario.drive(400, ChildEvent::Started(worker(1), 14));
    for ms in (500..8000).step_by(250) {
        let actions = in_words(&scenario.drive(ms, PlanEvent::Tick));
        assert!(actions.iter().all(|action| action.starts_with("starved")), "{ms}: {actions:?}");
    }
}

#[test]
fn stand_ins_end_with_the_set_and_with_their_worker() {
    let mut scenario = delayed();
    scenario.expect(20, ChildEvent::Stop, &["quiesce", "close the address of web/1", "terminate worker web/2", STOP]);
    scenario.expect(30, exited(worker(2)), &["kill orphans of web/2", "close the address of web/2"]);
    scenario.expect(40, exited(stand_in()), &["terminate dispatcher"]);
    scenario.expect(50, exited(Part::Dispatcher), &["finish"]);

    let mut scenario = delayed();
    let kill = "kill the stand-in of worker web/1";
    let none = ConfigChange { workers: BTreeMap::new(), ..change(0) };
    let removed = ["reload dispatcher", STOP, kill, "remove web/1", "terminate worker web/2"];
    scenario.expect(20, ChildEvent::Apply(none), &removed);
    scenario.expect(30, exited(stand_in()), &[]);
    // A worker that moves gets a stand-in at its new address.
    let mut scenario = delayed();
    let moved = ConfigChange { restart: vec![id(1)], ..change(2) };
    scenario.expect(20, ChildEvent::Apply(moved), &["reload dispatcher", STOP, "start worker web/1"]);
    scenario.expect(20, ChildEvent::Started(worker(1), 14), &[]);
    scenario.expect(30, exited(stand_in()), &[]);
    scenario.expect(120, PlanEvent::Tick, &[START]);
}

#[test]
fn a_worker_that_ends_while_its_stand_in_ends_gets_the_next_one() {
    let mut scenario = delayed();
    scenario.drive(400, PlanEvent::Tick);
    scenario.drive(400, ChildEvent::Started(worker(1), 14));
    scenario.expect(410, PlanEvent::Ready(worker(1)), &["recovered worker web/1 2", STOP]);
    scenario.expect(420, exited(worker(1)), &["kill orphans of web/1", "restart worker web/1 in 800ms: gone"]);
    scenario.expect(430, exited(stand_in()), &[START]);
}
