//! Start, stop, restart and reload.

use proptest::prelude::*;

use super::*;

#[test]
fn workers_stop_before_the_dispatcher() {
    let mut scenario = Scenario::up();
    scenario.expect(10, ChildEvent::Stop, &["quiesce", "terminate worker web/1", "terminate worker web/2"]);
    assert!(scenario.plan.is_stopping());
    scenario.expect(20, exited(worker(2)), &["kill orphans of web/2", "close the address of web/2"]);
    let last = ["kill orphans of web/1", "close the address of web/1", "terminate dispatcher"];
    scenario.expect(30, exited(worker(1)), &last);
    scenario.expect(40, exited(Part::Dispatcher), &["finish"]);
    scenario.expect(50, ChildEvent::Stop, &[]);
}

#[test]
fn an_overdue_part_is_killed_and_a_second_stop_kills_all_parts() {
    let mut scenario = Scenario::up();
    scenario.expect(0, ChildEvent::Stop, &["quiesce", "terminate worker web/1", "terminate worker web/2"]);
    scenario.expect(10, exited(worker(2)), &["kill orphans of web/2", "close the address of web/2"]);
    scenario.expect(31_999, PlanEvent::Tick, &[]);
    assert_eq!(scenario.plan.deadline(), Some(at(32_000)));
    scenario.expect(32_000, PlanEvent::Tick, &["overdue worker web/1", "kill worker web/1"]);
    scenario.expect(32_001, ChildEvent::Stop, &["kill dispatcher", "kill worker web/1"]);
    scenario.expect(32_002, exited(worker(1)), &["kill orphans of web/1", "close the address of web/1"]);
    scenario.expect(32_003, exited(Part::Dispatcher), &["finish"]);
}

#[test]
fn a_set_can_be_stopped_at_every_step_of_its_start() {
    let mut scenario = Scenario::starting();
    scenario.expect(0, ChildEvent::Started(Part::Dispatcher, 1), &[]);
    let closed = ["close the address of web/1", "close the address of web/2"];
    scenario.expect(1, ChildEvent::Stop, &["quiesce", closed[0], closed[1], "terminate dispatcher"]);
    scenario.expect(2, exited(Part::Dispatcher), &["finish"]);

    let mut scenario = Scenario::starting();
    scenario.expect(
        0,
        ChildEvent::StartFailed(Part::Dispatcher, "no memory".into()),
        &["restart dispatcher in 0ns: no memory", "start dispatcher"],
    );
    scenario.expect(
        0,
        ChildEvent::StartFailed(Part::Dispatcher, "no memory".into()),
        &["restart dispatcher in 100ms: no memory"],
    );
    scenario.expect(1, ChildEvent::Stop, &["quiesce", closed[0], closed[1], "finish"]);
}

#[test]
fn a_part_that_ends_too_often_stays_down_until_a_reload_and_does_not_delay_the_set() {
    let mut scenario = Scenario::starting();
    scenario.plan.limits.restarts.delay_max = Duration::from_millis(100);
    scenario.expect(0, ChildEvent::Started(Part::Dispatcher, 1), &[]);
    scenario.expect(0, PlanEvent::Ready(Part::Dispatcher), &["start worker web/1", "start worker web/2"]);
    scenario.expect(0, ChildEvent::Started(worker(1), 11), &[]);
    scenario.expect(0, ChildEvent::Started(worker(2), 12), &[]);
    scenario.expect(
        0,
        exited(worker(1)),
        &["kill orphans of web/1", "restart worker web/1 in 0ns: gone", "start worker web/1"],
    );
    // The set waits for one worker that serves, and not for one that has ended before it was ready.
    scenario.expect(0, PlanEvent::Ready(worker(2)), &["all up"]);
    scenario.expect(0, exited(worker(1)), &["kill orphans of web/1", "restart worker web/1 in 100ms: gone"]);
    scenario.expect(100, PlanEvent::Tick, &["start worker web/1"]);
    let stand_in = "start the stand-in of worker web/1";
    let failed = ["kill orphans of web/1", "failed worker web/1: gone", stand_in];
    scenario.expect(100, exited(worker(1)), &failed);
    assert_eq!(scenario.state(&worker(1)), "failed");
    scenario.expect(100, ChildEvent::Started(Part::StandIn(id(1)), 91), &[]);
    scenario.expect(4990, PlanEvent::Ready(Part::StandIn(id(1))), &[]);
    let stop = "terminate the stand-in of worker web/1";
    scenario.expect(5000, ChildEvent::Apply(change(2)), &["reload dispatcher", stop, "start worker web/1"]);
    scenario.expect(5000, exited(Part::StandIn(id(1))), &[]);
    scenario.expect(
        5000,
        exited(worker(1)),
        &["kill orphans of web/1", "restart worker web/1 in 0ns: gone", "start worker web/1"],
    );
}

#[test]
fn removed_workers_stop_and_may_be_configured_again_before_they_have_ended() {
    let mut scenario = Scenario::up();
    scenario.expect(0, ChildEvent::Apply(change(1)), &["reload dispatcher", "terminate worker web/2"]);
    scenario.expect(1, ChildEvent::Apply(change(2)), &["reload dispatcher"]);
    scenario.expect(2, exited(worker(2)), &["kill orphans of web/2", "start worker web/2"]);
    scenario.expect(2, ChildEvent::Started(worker(2), 22), &[]);
    scenario.expect(3, PlanEvent::Ready(worker(2)), &[]);
    scenario.expect(4, ChildEvent::Apply(change(1)), &["reload dispatcher", "terminate worker web/2"]);
    scenario.expect(5, exited(worker(2)), &["kill orphans of web/2", "remove web/2"]);
    assert_eq!(scenario.state(&worker(2)), "unknown");
    scenario.expect(6, ChildEvent::Apply(change(2)), &["reload dispatcher", "start worker web/2"]);
}

#[test]
fn a_part_is_given_up_after_its_longest_delay_unless_it_is_ready_for_long_in_between() {
    // What follows its deaths, after each of which it is ready for so long.
    let deaths = |ready_for: [u64; 5]| {
        let mut scenario = Scenario::up();
        let delay_max = Duration::from_millis(400);
        scenario.plan.limits.restarts = RestartLimits { max: 2, delay_max, ..limits().restarts };
        let mut now = 0;
        ready_for.map(|ready_for| {
            let actions = in_words(&scenario.drive(now, exited(worker(1))));
            now += 1000;
            scenario.drive(now, PlanEvent::Tick);
            scenario.drive(now, ChildEvent::Started(worker(1), 50));
            if ready_for > 0 {
                scenario.drive(now, PlanEvent::Ready(worker(1)));
            }
            now += ready_for;
            actions[1].split(':').next().unwrap().replace("restart worker web/1 in ", "")
        })
    };
    assert_eq!(deaths([59_999, 0, 59_999, 0, 60_000]), ["0ns", "100ms", "200ms", "400ms", "failed worker web/1"]);
    assert_eq!(deaths([0, 60_000, 0, 60_000, 0]), ["0ns", "100ms", "0ns", "100ms", "0ns"]);
}

#[test]
fn a_planned_restart_is_not_delayed_and_not_counted() {
    let mut scenario = Scenario::up();
    let moved = ConfigChange { restart: vec![id(1)], restart_dispatcher: true, ..change(2) };
    scenario.expect(0, ChildEvent::Apply(moved), &["terminate dispatcher", "terminate worker web/1"]);
    scenario.expect(1, exited(worker(1)), &["kill orphans of web/1", "start worker web/1"]);
    scenario.expect(2, exited(Part::Dispatcher), &["start dispatcher"]);
    assert!(scenario.plan.status().all(|(_, status)| status.restarts == 0));
}

#[test]
fn half_of_a_pool_serves_while_its_workers_restart() {
    let mut scenario = Scenario::up();
    let moved = || ConfigChange { restart: vec![id(1), id(2)], ..change(2) };
    scenario.expect(0, ChildEvent::Apply(moved()), &["reload dispatcher", "terminate worker web/1"]);
    scenario.expect(1, exited(worker(1)), &["kill orphans of web/1", "start worker web/1"]);
    scenario.expect(1, ChildEvent::Started(worker(1), 13), &[]);
    scenario.expect(2, PlanEvent::Ready(worker(1)), &["terminate worker web/2"]);
    scenario.expect(3, exited(worker(2)), &["kill orphans of web/2", "start worker web/2"]);
    scenario.expect(3, ChildEvent::Started(worker(2), 14), &[]);
    scenario.expect(4, PlanEvent::Ready(worker(2)), &[]);
    // One that dies while it waits has no second restart, and a stop of the set restarts none.
    scenario.expect(5, ChildEvent::Apply(moved()), &["reload dispatcher", "terminate worker web/1"]);
    let died = ["kill orphans of web/2", "restart worker web/2 in 0ns: gone", "start worker web/2"];
    scenario.expect(6, exited(worker(2)), &died);
    scenario.expect(6, ChildEvent::Started(worker(2), 15), &[]);
    scenario.expect(7, PlanEvent::Ready(worker(2)), &["recovered worker web/2 1"]);
    scenario.expect(8, exited(worker(1)), &["kill orphans of web/1", "start worker web/1"]);
    scenario.expect(8, ChildEvent::Started(worker(1), 16), &[]);
    scenario.expect(9, PlanEvent::Ready(worker(1)), &[]);
    scenario.expect(10, ChildEvent::Apply(moved()), &["reload dispatcher", "terminate worker web/1"]);
    scenario.expect(11, ChildEvent::Stop, &["quiesce", "terminate worker web/2"]);
    scenario.expect(12, exited(worker(1)), &["kill orphans of web/1", "close the address of web/1"]);
}

proptest! {
    /// Workers end, become ready and are restarted by reloads in any order. `serving`: those that are ready.
    #[test]
    fn no_reload_takes_half_of_a_pool_out_of_service(
        count in 1..7_u16,
        steps in proptest::collection::vec((0..3_u8, 1..7_u16), 1..40),
    ) {
        let mut scenario = Scenario::up();
        let all: Vec<WorkerId> = (1..=count).map(id).collect();
        scenario.drive(0, ChildEvent::Apply(change(count)));
        let mut pid = 100;
        for (ms, (kind, number)) in (1..).zip(steps) {
            let part = worker(number.min(count));
            let before = all.iter().filter(|id| scenario.plan.is_up(&Part::Worker((*id).clone()))).count();
            match kind {
                0 => drop(scenario.drive(ms, ChildEvent::Apply(ConfigChange { restart: all.clone(), ..change(count) }))),
                1 if scenario.state(&part) == "draining" => drop(scenario.drive(ms, exited(part))),
                2 if ["starting", "gone"].contains(&scenario.state(&part)) => {
                    pid += 1;
                    scenario.drive(ms, ChildEvent::Started(part.clone(), pid));
                    scenario.drive(ms, PlanEvent::Ready(part));
                }
                _ => {}
            }
            let serving = all.iter().filter(|id| scenario.plan.is_up(&Part::Worker((*id).clone()))).count();
            let is_half = 2 * serving >= usize::from(count) || count == 1;
            prop_assert!(serving >= before || is_half, "{} of {}, {} before", serving, count, before);
        }
        // Whatever was awaited comes to its end.
        for ms in 1000..1000 + u64::from(count) * 4 {
            for number in 1..=count {
                match scenario.state(&worker(number)) {
                    "draining" => drop(scenario.drive(ms, exited(worker(number)))),
                    "starting" | "gone" => {
                        pid += 1;
                        scenario.drive(ms, ChildEvent::Started(worker(number), pid));
                        scenario.drive(ms, PlanEvent::Ready(worker(number)));
                    }
                    _ => {}
                }
            }
        }
        prop_assert!((1..=count).all(|number| scenario.state(&worker(number)) == "up"));
    }
}

#[test]
fn a_lost_socket_restarts_its_worker_alone() {
    let mut scenario = Scenario::up();
    scenario.plan.limits.restarts.delay_max = Duration::from_millis(100);
    let kill = "kill orphans of web/2";
    scenario.expect(0, exited(worker(2)), &[kill, "restart worker web/2 in 0ns: gone", "start worker web/2"]);
    scenario.expect(0, exited(worker(2)), &[kill, "restart worker web/2 in 100ms: gone"]);
    // It starts with the new socket in any case.
    scenario.expect(1, ChildEvent::SocketsReplaced(vec![worker(1), worker(2)]), &["terminate worker web/1"]);
    assert_eq!(scenario.state(&worker(2)), "gone");
    scenario.expect(2, exited(worker(1)), &["kill orphans of web/1", "start worker web/1"]);
    scenario.expect(2, ChildEvent::Started(worker(1), 21), &[]);
    scenario.expect(3, PlanEvent::Ready(worker(1)), &[]);
    scenario.expect(100, PlanEvent::Tick, &["start worker web/2"]);
    let stand_in = "start the stand-in of worker web/2";
    scenario.expect(100, exited(worker(2)), &[kill, "failed worker web/2: gone", stand_in]);
    scenario.expect(100, ChildEvent::Started(Part::StandIn(id(2)), 92), &[]);
    // A failed worker stays failed, and another stand-in serves its new address.
    let stop = "terminate the stand-in of worker web/2";
    scenario.expect(200, ChildEvent::SocketsReplaced(vec![Part::StandIn(id(2))]), &[stop]);
    assert_eq!(scenario.state(&worker(2)), "failed");
    scenario.expect(201, exited(Part::StandIn(id(2))), &[stand_in]);

    // A worker that left the configuration and still ends is not started again.
    let mut scenario = Scenario::up();
    scenario.expect(0, ChildEvent::Apply(change(1)), &["reload dispatcher", "terminate worker web/2"]);
    scenario.expect(1, ChildEvent::SocketsReplaced(vec![worker(2)]), &[]);
    scenario.expect(2, exited(worker(2)), &[kill, "remove web/2"]);
}
