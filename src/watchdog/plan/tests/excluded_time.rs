//! Time that is not attributed to a part: the watchdog or the dispatcher was late, or the part could not run.

use super::*;
use crate::liveness::HeldBy;

fn sched_stat(ran_ms: u64, waited_ms: u64) -> Option<SchedStat> {
    Some(SchedStat { thread: 7, ran: Duration::from_millis(ran_ms), waited: Duration::from_millis(waited_ms) })
}

#[test]
fn a_starved_worker_is_logged_once_and_not_killed_but_a_stopped_one_is() {
    let mut scenario = Scenario::up();
    scenario.sample = ProcessSample { activity: ThreadActivity::Runnable, sched_stat: sched_stat(10, 0), ..STUCK };
    for ms in (350..1100).step_by(250) {
        scenario.report(ms, Some(100), &[]);
    }
    scenario.report(1100, Some(100), &["starved worker web/1 for 1s"]);
    assert_eq!(scenario.state(&worker(1)), "starved");
    for ms in (1350..60_000).step_by(250) {
        scenario.report(ms, Some(100), &[]);
    }
    scenario.report(60_000, None, &["resumed worker web/1"]);
    assert_eq!(scenario.state(&worker(1)), "up");
    // A stopped process is not runnable: no time is excluded.
    scenario.sample = STUCK;
    scenario.report(61_000, Some(60_100), &[]);
    scenario.report(61_100, Some(60_100), &[FROZEN, "abort worker web/1"]);
}

#[test]
fn a_held_worker_is_not_killed_and_has_the_whole_timeout_after_its_release() {
    for by in [HeldBy::Debugger, HeldBy::Freezer] {
        let mut scenario = Scenario::up();
        scenario.sample = ProcessSample { held_by: Some(by), ..STUCK };
        scenario.report(350, Some(100), &[&format!("suspended worker web/1 by {by}")]);
        assert_eq!(scenario.state(&worker(1)), "suspended");
        for ms in (600..20_000).step_by(250) {
            scenario.report(ms, Some(100), &[]);
        }
        scenario.sample = STUCK;
        // The next sample, at most one timeout later, shows the release; then it has one timeout to answer.
        scenario.report(20_350, Some(100), &["resumed worker web/1"]);
        scenario.report(21_349, Some(100), &[]);
        scenario.report(21_350, Some(100), &[FROZEN, "abort worker web/1"]);
    }
}

#[test]
fn a_worker_of_which_no_sample_can_be_taken_is_not_killed() {
    let mut scenario = Scenario::up();
    let fail = |scenario: &mut Scenario, ms: u64| {
        scenario.plan.handle(at(ms), PlanEvent::ProbeSent);
        let actions = scenario.plan.handle(at(ms), PlanEvent::Report(vec![silent_since(100), alive(2)]));
        let requested = actions.iter().any(|action| matches!(action, PlanAction::Sample(_)));
        if requested {
            for words in in_words(&scenario.plan.handle(at(ms), PlanEvent::Sampled(worker(1), None))) {
                assert_eq!((ms, &*words), (1100, "starved worker web/1 for 1s"));
            }
        }
        requested
    };
    let requests = (350..20_000).step_by(250).filter(|ms| fail(&mut scenario, *ms)).count();
    assert!((10..=79).contains(&requests), "{requests}");
    // From the first sample on it has the whole timeout.
    scenario.report(20_100, Some(100), &[]);
    scenario.report(20_800, Some(100), &[]);
    let reason = "no sign of life for 1s 350ms; the machine did not run it for another 19s 750ms";
    let frozen = format!("worker web/1 is frozen ({reason})");
    scenario.report(21_200, Some(100), &[&frozen, "abort worker web/1"]);
    // A worker that was held remains suspended meanwhile, and is released by a sample only.
    let mut scenario = Scenario::up();
    scenario.sample = ProcessSample { held_by: Some(HeldBy::Debugger), ..STUCK };
    scenario.report(350, Some(100), &["suspended worker web/1 by a debugger"]);
    for ms in (600..20_000).step_by(250) {
        fail(&mut scenario, ms);
        assert_eq!(scenario.state(&worker(1)), "suspended");
    }
}

#[test]
fn a_worker_that_makes_progress_without_an_answer_has_four_timeouts() {
    let mut scenario = Scenario::up();
    for (ticks, ms) in (350..4100).step_by(250).enumerate() {
        let turning = WorkerLiveness { ticks: Some(ticks as u64), ..silent_since(100) };
        scenario.expect(ms, PlanEvent::ProbeSent, &[]);
        scenario.expect(ms, PlanEvent::Report(vec![turning]), &[]);
    }
    let turning = WorkerLiveness { ticks: Some(99), ..silent_since(100) };
    scenario.expect(4100, PlanEvent::ProbeSent, &[]);
    let frozen = "worker web/1 is frozen (no answer for 4s although its control loop runs)";
    scenario.expect(4100, PlanEvent::Report(vec![turning]), &[frozen, "abort worker web/1"]);
}

#[test]
fn a_starved_start_is_not_a_frozen_start() {
    let mut scenario = Scenario::starting();
    scenario.sample = ProcessSample { activity: ThreadActivity::Runnable, sched_stat: sched_stat(0, 0), ..STUCK };
    scenario.expect(0, ChildEvent::Started(Part::Dispatcher, 1), &[]);
    for ms in (250..10_000).step_by(250) {
        scenario.expect(ms, PlanEvent::Tick, &[]);
    }
    scenario.expect(10_000, PlanEvent::Tick, &["starved dispatcher for 10s"]);
    assert_eq!(scenario.state(&Part::Dispatcher), "starved");
    scenario.expect(15_000, PlanEvent::Tick, &[]);
    scenario.expect(
        15_000,
        PlanEvent::Ready(Part::Dispatcher),
        &["resumed dispatcher", "start worker web/1", "start worker web/2"],
    );
}

#[test]
fn an_ended_part_is_not_declared_frozen() {
    let mut scenario = Scenario::up();
    scenario.sample = ProcessSample { ended: true, ..STUCK };
    scenario.expect(100, PlanEvent::ProbeSent, &[]);
    scenario.expect(2100, PlanEvent::Tick, &[]);
    assert_eq!(scenario.plan.deadline(), None, "the end will be reported");
    scenario.expect(2101, exited(Part::Dispatcher), &["restart dispatcher in 0ns: gone", "start dispatcher"]);
}

#[test]
fn after_a_suspend_every_silence_restarts() {
    let mut scenario = Scenario::up();
    scenario.expect(100, PlanEvent::ProbeSent, &[]);
    scenario.report(900, Some(100), &[]);
    scenario.expect(1000, PlanEvent::ProbeSent, &[]);
    scenario.expect(1050, PlanEvent::MachineResumed, &[]);
    scenario.report(1100, Some(100), &[]);
    scenario.report(2049, Some(100), &[]);
    scenario.report(2050, Some(100), &[FROZEN, "abort worker web/1"]);
    let mut scenario = Scenario::up();
    scenario.expect(100, PlanEvent::ProbeSent, &[]);
    scenario.expect(2000, PlanEvent::MachineResumed, &[]);
    assert_eq!(scenario.plan.deadline(), Some(at(4000)));
}

#[test]
fn a_dispatcher_that_the_watchdog_cannot_probe_is_not_silent() {
    let mut scenario = Scenario::up();
    for ms in (0..20_000).step_by(250) {
        scenario.expect(ms, PlanEvent::ProbeSent, &[]);
        scenario.expect(ms + 1, PlanEvent::ProbeNotSent, &[]);
    }
    scenario.expect(20_000, PlanEvent::ProbeSent, &[]);
    assert_eq!(scenario.plan.deadline(), Some(at(22_000)), "its silence starts with a probe that was sent");
}

#[test]
fn a_part_that_cannot_be_started_for_lack_of_resources_is_not_given_up() {
    let mut scenario = Scenario::up();
    scenario.expect(0, exited(Part::Dispatcher), &["restart dispatcher in 0ns: gone", "start dispatcher"]);
    let postponed = || ChildEvent::StartPostponed(Part::Dispatcher, "no descriptor".to_owned());
    scenario.expect(0, postponed(), &["restart dispatcher in 1s: no descriptor"]);
    for second in 1..300 {
        scenario.expect(second * 1000, PlanEvent::Tick, &["start dispatcher"]);
        scenario.expect(second * 1000, postponed(), &[]);
    }
}

#[test]
fn time_in_which_the_watchdog_or_the_dispatcher_was_late_is_excluded() {
    let mut scenario = Scenario::up();
    scenario.report(900, Some(100), &[]);
    scenario.expect(4000, PlanEvent::WatchdogLate(Duration::from_secs(3)), &[]);
    scenario.report(4000, Some(100), &[]);
    scenario.report(4999, Some(100), &[]);
    scenario.report(5000, Some(100), &[FROZEN, "abort worker web/1"]);

    let mut scenario = Scenario::up();
    scenario.expect(100, PlanEvent::ProbeSent, &[]);
    scenario.expect(1500, PlanEvent::Report(vec![silent_since(100)]), &[]); // the dispatcher itself was late
    scenario.report(2499, Some(100), &[]);
    scenario.report(2500, Some(100), &[FROZEN, "abort worker web/1"]);
}

#[test]
fn a_buffered_answer_is_processed_before_any_part_is_evaluated() {
    let mut scenario = Scenario::up();
    scenario.expect(100, PlanEvent::ProbeSent, &[]);
    // The dispatcher answered after 1.9 s, before its deadline at 2 s, but the watchdog did not run until 3 s.
    scenario.expect(3100, PlanEvent::WatchdogLate(Duration::from_secs(1)), &[]);
    scenario.expect(3100, PlanEvent::ProbeSent, &[]);
    scenario.expect(3100, PlanEvent::Report(vec![alive(1), alive(2)]), &[]);
    scenario.expect(3100, PlanEvent::Tick, &[]);
    // Without the answer the dispatcher is declared frozen at that time.
    let mut scenario = Scenario::up();
    scenario.expect(100, PlanEvent::ProbeSent, &[]);
    scenario.expect(3100, PlanEvent::WatchdogLate(Duration::from_secs(1)), &[]);
    let frozen = "dispatcher is frozen (no sign of life for 2s)";
    scenario.expect(3100, PlanEvent::Tick, &[frozen, "abort dispatcher"]);
}

#[test]
fn time_in_which_the_dispatcher_was_held_is_excluded() {
    let mut scenario = Scenario::up();
    scenario.report(200, Some(100), &[]);
    scenario.sample = ProcessSample { held_by: Some(HeldBy::Debugger), ..STUCK };
    scenario.expect(250, PlanEvent::ProbeSent, &[]);
    scenario.expect(500, PlanEvent::Tick, &["suspended dispatcher by a debugger"]);
    for ms in (750..6000).step_by(250) {
        scenario.expect(ms, PlanEvent::Tick, &[]);
    }
    // Meanwhile the worker has answered unseen, and was probed again.
    scenario.sample = STUCK;
    scenario.expect(6000, PlanEvent::Report(vec![silent_since(100)]), &["resumed dispatcher"]);
    scenario.report(6999, Some(100), &[]);
    scenario.report(7000, Some(100), &[FROZEN, "abort worker web/1"]);
}

/// A sample shows the release before the dispatcher reports.
#[test]
fn time_in_which_the_dispatcher_was_held_is_excluded_from_its_next_report() {
    let mut scenario = Scenario::up();
    scenario.sample = ProcessSample { held_by: Some(HeldBy::Debugger), ..STUCK };
    scenario.expect(250, PlanEvent::ProbeSent, &[]);
    scenario.expect(500, PlanEvent::Tick, &["suspended dispatcher by a debugger"]);
    scenario.sample = STUCK;
    scenario.expect(2500, PlanEvent::Tick, &["resumed dispatcher"]);
    scenario.expect(2510, PlanEvent::Report(vec![silent_since(100)]), &[]);
    scenario.report(3499, Some(100), &[]);
    scenario.report(3500, Some(100), &[FROZEN, "abort worker web/1"]);
}

/// The watchdog sees that a worker is released and makes a turn, before a late report says that it was silent.
#[test]
fn late_report_does_not_blame_a_worker_for_the_time_in_which_it_was_held() {
    let mut scenario = Scenario::up();
    scenario.sample = ProcessSample { held_by: Some(HeldBy::Debugger), ..STUCK };
    scenario.report(250, Some(100), &["suspended worker web/1 by a debugger"]);
    scenario.sample = STUCK;
    let alive = vec![WorkerLiveness { silent_since: None, ..alive(1) }];
    scenario.expect(3000, PlanEvent::Observed(alive), &["resumed worker web/1"]);
    scenario.report(3010, Some(1300), &[]);
}

#[test]
fn delays_of_the_watchdog_and_later_delays_of_the_dispatcher_add_up() {
    let mut scenario = Scenario::up();
    scenario.expect(2000, PlanEvent::WatchdogLate(Duration::from_millis(1800)), &[]);
    scenario.expect(2000, PlanEvent::Report(vec![alive(1)]), &[]);
    scenario.expect(2000, PlanEvent::ProbeSent, &[]);
    scenario.expect(3900, PlanEvent::Report(vec![silent_since(1000)]), &[]); // the dispatcher itself was late by 1.9 s
    scenario.report(4899, Some(1000), &[]);
    scenario.report(4900, Some(1000), &[FROZEN, "abort worker web/1"]);
}

#[test]
fn the_report_of_a_stopping_dispatcher_that_was_held_restarts_every_silence() {
    let mut scenario = Scenario::up();
    scenario.expect(100, PlanEvent::ProbeSent, &[]);
    scenario.sample.held_by = Some(HeldBy::Debugger);
    scenario.expect(600, PlanEvent::Tick, &["suspended dispatcher by a debugger"]);
    let restart = ConfigChange { restart_dispatcher: true, ..change(2) };
    scenario.expect(3000, ChildEvent::Apply(restart), &["terminate dispatcher"]);
    scenario.sample.held_by = None;
    scenario.expect(3100, PlanEvent::Report(vec![silent_since(100)]), &["resumed dispatcher"]);
    assert_eq!(scenario.state(&worker(1)), "up");
    scenario.report(4099, Some(100), &[]);
    scenario.report(4100, Some(100), &[FROZEN, "abort worker web/1"]);
}

/// The machine may stop running the watchdog between a requested sample and the sample.
#[test]
fn time_that_the_watchdog_lost_while_it_performed_actions_is_excluded_once() {
    let Scenario { mut plan, .. } = Scenario::up();
    let mut handle = |ms, event| in_words(&plan.handle(at(ms), event));
    let none: [&str; 0] = [];
    let sampled = |part| PlanEvent::Sampled(part, Some(STUCK));
    let silent = |since| PlanEvent::Report(vec![silent_since(since), alive(2)]);
    handle(250, PlanEvent::ProbeSent);
    assert_eq!(handle(250, silent(100)), ["sample worker web/1"]);
    // Late by so much that the worker would be frozen by this first sample.
    assert_eq!(handle(1150, sampled(worker(1))), none);
    // The shell reports the same delay: it is not excluded twice.
    assert_eq!(handle(1150, PlanEvent::WatchdogLate(Duration::from_millis(650))), none);
    handle(1160, PlanEvent::ProbeSent);
    assert_eq!(handle(1160, silent(100)), none);
    handle(1999, PlanEvent::ProbeSent);
    assert_eq!(handle(1999, silent(100)), none);
    // After so long a delay every part has its whole timeout again.
    handle(2150, PlanEvent::ProbeSent);
    assert_eq!(handle(2150, silent(100)), ["sample worker web/1"]);
    assert_eq!(handle(2150, sampled(worker(1))), [FROZEN, "abort worker web/1"]);

    let Scenario { mut plan, .. } = Scenario::up();
    let mut handle = |ms, event| in_words(&plan.handle(at(ms), event));
    handle(100, PlanEvent::ProbeSent);
    assert_eq!(handle(400, PlanEvent::Tick), ["sample dispatcher"]);
    assert_eq!(handle(2500, sampled(Part::Dispatcher)), none);
    assert_eq!(handle(4199, PlanEvent::Tick), none);
    assert_eq!(handle(4200, PlanEvent::Tick), ["sample dispatcher"]);
    assert_eq!(handle(4200, sampled(Part::Dispatcher))[1..], ["abort dispatcher"]);
}

#[test]
fn a_watchdog_that_is_often_late_still_declares_a_part_frozen() {
    let mut scenario = Scenario::up();
    let mut now = 100;
    // Late by 100 ms in every second.
    let declared = (0..10).any(|_| {
        now += 1000;
        scenario.expect(now, PlanEvent::WatchdogLate(Duration::from_millis(100)), &[]);
        scenario.expect(now, PlanEvent::ProbeSent, &[]);
        !scenario.drive(now, PlanEvent::Report(vec![silent_since(100)])).is_empty()
    });
    assert!(declared);
}

proptest::proptest! {
    /// However often and long the watchdog is late: only time in which it ran counts against a worker.
    #[test]
    fn time_in_which_the_watchdog_is_late_is_never_attributed(
        steps in proptest::collection::vec(
            (1u64..400, proptest::option::weighted(0.4, 1u64..2000), proptest::bool::weighted(0.1)),
            1..60,
        ),
    ) {
        let mut scenario = Scenario::up();
        let (mut now, mut since, mut counted) = (100, 100, 0);
        for (run, late, answered) in steps {
            if answered {
                // And was probed again immediately.
                (since, counted) = (now, 0);
            }
            now += run;
            counted += run;
            if let Some(late) = late {
                now += late;
                scenario.plan.handle(at(now), PlanEvent::WatchdogLate(Duration::from_millis(late)));
                // A long delay restarts the silence: the probe may not have arrived.
                counted = if late > 250 { 0 } else { counted };
            }
            scenario.plan.handle(at(now), PlanEvent::ProbeSent);
            let declared = !scenario.drive(now, PlanEvent::Report(vec![silent_since(since)])).is_empty();
            proptest::prop_assert_eq!(declared, counted >= 1000, "silent for {} ms of the watchdog's time", counted);
            if declared {
                break;
            }
        }
    }
}
