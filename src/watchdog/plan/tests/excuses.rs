//! What is not held against a part: what others lost, what held it, what the machine did not give it.

use super::*;
use crate::liveness::HeldBy;

fn account(ran_ms: u64, waited_ms: u64) -> Option<SchedStat> {
    Some(SchedStat { thread: 7, ran: Duration::from_millis(ran_ms), waited: Duration::from_millis(waited_ms) })
}

#[test]
fn a_starved_worker_is_told_once_and_not_killed_and_a_stopped_one_is() {
    let mut talk = Talk::up();
    talk.1 = ProcessSample { activity: Activity::Runnable, account: account(10, 0), ..STUCK };
    for ms in (350..1100).step_by(250) {
        talk.report(ms, Some(100), &[]);
    }
    talk.report(1100, Some(100), &["starved worker web/1 for 1s"]);
    assert_eq!(talk.state(&worker(1)), "starved");
    for ms in (1350..60_000).step_by(250) {
        talk.report(ms, Some(100), &[]);
    }
    talk.report(60_000, None, &["relieved worker web/1"]);
    assert_eq!(talk.state(&worker(1)), "up");
    // Another is stopped while the first starves again: that is not excused.
    talk.1 = STUCK;
    talk.report(61_000, Some(60_100), &[]);
    talk.report(61_100, Some(60_100), &[ACCUSED, "abort worker web/1"]);
}

const ACCUSED: &str = "accuse worker web/1: it is frozen, no sign of life for 1s";

#[test]
fn who_is_held_owes_nothing_and_begins_anew() {
    for by in [HeldBy::Debugger, HeldBy::Freezer] {
        let mut talk = Talk::up();
        talk.1 = ProcessSample { held: Some(by), ..STUCK };
        talk.report(350, Some(100), &[&format!("suspended worker web/1 by {by}")]);
        assert_eq!(talk.state(&worker(1)), "suspended");
        for ms in (600..20_000).step_by(250) {
            talk.report(ms, Some(100), &[]);
        }
        talk.1 = STUCK;
        // Seen at the next look, at most a bound later; then it has a bound to answer.
        talk.report(20_350, Some(100), &["relieved worker web/1"]);
        talk.report(21_349, Some(100), &[]);
        talk.report(21_350, Some(100), &[ACCUSED, "abort worker web/1"]);
    }
}

#[test]
fn a_loop_that_turns_without_an_answer_has_four_bounds() {
    let mut talk = Talk::up();
    for (ticks, ms) in (350..4100).step_by(250).enumerate() {
        let sign = Sign { silent_since: Some(at(100)), ticks: Some(ticks as u64), ..sign(1) };
        talk.tell(ms, Event::Probed, &[]);
        talk.tell(ms, Event::Report(vec![sign]), &[]);
    }
    let sign = Sign { silent_since: Some(at(100)), ticks: Some(99), ..sign(1) };
    talk.tell(4100, Event::Probed, &[]);
    let accusation = "accuse worker web/1: it does not answer for 4s, although its control loop turns";
    talk.tell(4100, Event::Report(vec![sign]), &[accusation, "abort worker web/1"]);
}

#[test]
fn a_starved_start_is_no_frozen_start() {
    let mut talk = Talk::begin();
    talk.1 = ProcessSample { activity: Activity::Runnable, account: account(0, 0), ..STUCK };
    talk.tell(0, Event::Started(Part::Dispatcher, 1), &[]);
    for ms in (250..10_000).step_by(250) {
        talk.tell(ms, Event::Tick, &[]);
    }
    talk.tell(10_000, Event::Tick, &["starved dispatcher for 10s"]);
    assert_eq!(talk.state(&Part::Dispatcher), "starved");
    talk.tell(15_000, Event::Tick, &[]);
    talk.tell(
        15_000,
        Event::Ready(Part::Dispatcher),
        &["relieved dispatcher", "start worker web/1", "start worker web/2"],
    );
}

#[test]
fn who_has_ended_is_not_accused() {
    let mut talk = Talk::up();
    talk.1 = ProcessSample { ended: true, ..STUCK };
    talk.tell(100, Event::Probed, &[]);
    talk.tell(2100, Event::Tick, &[]);
    assert_eq!(talk.0.deadline(), None, "its end is on its way");
    talk.tell(2101, exited(Part::Dispatcher), &["restart dispatcher in 0ns: gone", "start dispatcher"]);
}

#[test]
fn after_a_suspend_everybody_begins_anew() {
    let mut talk = Talk::up();
    talk.tell(100, Event::Probed, &[]);
    talk.report(900, Some(100), &[]);
    talk.tell(1000, Event::Probed, &[]);
    talk.tell(1050, Event::Resumed, &[]);
    talk.report(1100, Some(100), &[]);
    talk.report(2049, Some(100), &[]);
    talk.report(2050, Some(100), &[ACCUSED, "abort worker web/1"]);
    let mut talk = Talk::up();
    talk.tell(100, Event::Probed, &[]);
    talk.tell(2000, Event::Resumed, &[]);
    assert_eq!(talk.0.deadline(), Some(at(4000)));
}

#[test]
fn nobody_is_blamed_for_what_the_watchdog_or_the_dispatcher_lost() {
    let mut talk = Talk::up();
    talk.report(900, Some(100), &[]);
    talk.tell(4000, Event::Lost(Duration::from_secs(3)), &[]);
    talk.report(4000, Some(100), &[]);
    talk.report(4999, Some(100), &[]);
    talk.report(5000, Some(100), &["accuse worker web/1: it is frozen, no sign of life for 1s", "abort worker web/1"]);

    let mut talk = Talk::up();
    talk.tell(100, Event::Probed, &[]);
    let sign = || vec![Sign { silent_since: Some(at(100)), ..sign(1) }];
    talk.tell(1500, Event::Report(sign()), &[]); // the dispatcher itself was late
    talk.report(2499, Some(100), &[]);
    talk.report(2500, Some(100), &["accuse worker web/1: it is frozen, no sign of life for 1s", "abort worker web/1"]);
}

#[test]
fn an_answer_that_waited_for_the_watchdog_is_taken_in_before_anybody_is_judged() {
    let mut talk = Talk::up();
    talk.tell(100, Event::Probed, &[]);
    // It answered after 1.9 s, and the watchdog, which should have looked at 2 s, did not run until 3 s.
    talk.tell(3100, Event::Lost(Duration::from_secs(1)), &[]);
    talk.tell(3100, Event::Probed, &[]);
    talk.tell(3100, Event::Report(vec![sign(1), sign(2)]), &[]);
    talk.tell(3100, Event::Tick, &[]);
    // Without it the dispatcher is found to be frozen at that moment.
    let mut talk = Talk::up();
    talk.tell(100, Event::Probed, &[]);
    talk.tell(3100, Event::Lost(Duration::from_secs(1)), &[]);
    let accused = "accuse dispatcher: it is frozen, no sign of life for 2s";
    talk.tell(3100, Event::Tick, &[accused, "abort dispatcher"]);
}

#[test]
fn nobody_is_blamed_for_what_a_dispatcher_missed_that_was_held() {
    let mut talk = Talk::up();
    talk.report(200, Some(100), &[]);
    talk.1 = ProcessSample { held: Some(HeldBy::Debugger), ..STUCK };
    talk.tell(250, Event::Probed, &[]);
    talk.tell(500, Event::Tick, &["suspended dispatcher by a debugger"]);
    for ms in (750..6000).step_by(250) {
        talk.tell(ms, Event::Tick, &[]);
    }
    // The worker has answered meanwhile, and been asked again, before anybody could see the answer.
    talk.1 = STUCK;
    let sign = Sign { silent_since: Some(at(100)), ..sign(1) };
    talk.tell(6000, Event::Report(vec![sign]), &["relieved dispatcher"]);
    talk.report(6999, Some(100), &[]);
    talk.report(7000, Some(100), &[ACCUSED, "abort worker web/1"]);
}

#[test]
fn what_the_watchdog_lost_and_what_the_dispatcher_lost_after_it_add_up() {
    let mut talk = Talk::up();
    talk.tell(2000, Event::Lost(Duration::from_millis(1800)), &[]);
    talk.tell(2000, Event::Report(vec![sign(1)]), &[]);
    talk.tell(2000, Event::Probed, &[]);
    let owing = Sign { silent_since: Some(at(1000)), ..sign(1) };
    talk.tell(3900, Event::Report(vec![owing]), &[]); // 1.9 s of it are the dispatcher's own
    talk.report(4899, Some(1000), &[]);
    talk.report(4900, Some(1000), &[ACCUSED, "abort worker web/1"]);
}

#[test]
fn nobody_is_blamed_by_a_dispatcher_that_is_told_to_go_and_was_held() {
    let mut talk = Talk::up();
    talk.tell(100, Event::Probed, &[]);
    talk.1.held = Some(HeldBy::Debugger);
    talk.tell(600, Event::Tick, &["suspended dispatcher by a debugger"]);
    let restart = Change { restart_dispatcher: true, ..change(2) };
    talk.tell(3000, Event::Apply(restart), &["leave dispatcher"]);
    talk.1.held = None;
    let owing = Sign { silent_since: Some(at(100)), ..sign(1) };
    talk.tell(3100, Event::Report(vec![owing]), &[]);
    assert_eq!(talk.state(&worker(1)), "up");
}

/// The machine may not run it in the middle of a turn either, between the wish for a look and the look.
#[test]
fn what_the_watchdog_lost_within_a_turn_is_not_held_against_anybody() {
    let Talk(mut plan, _) = Talk::up();
    let mut tell = |ms, event| words(&plan.handle(at(ms), event));
    let none: [&str; 0] = [];
    let seen = |part| Event::Observed(part, STUCK);
    let silent = |since| Event::Report(vec![Sign { silent_since: Some(at(since)), ..sign(1) }, sign(2)]);
    tell(250, Event::Probed);
    assert_eq!(tell(250, silent(100)), ["look at worker web/1"]);
    // So long that it would be frozen by this look, which is the first.
    assert_eq!(tell(1150, seen(worker(1))), none);
    // Nor is the same time lost once more for whoever measures the turns.
    assert_eq!(tell(1150, Event::Lost(Duration::from_millis(650))), none);
    tell(1160, Event::Probed);
    assert_eq!(tell(1160, silent(100)), none);
    tell(1999, Event::Probed);
    assert_eq!(tell(1999, silent(100)), none);
    // From when it has been heard again on everybody has his whole bound, since it was lost for so long.
    tell(2150, Event::Probed);
    assert_eq!(tell(2150, silent(100)), ["look at worker web/1"]);
    assert_eq!(tell(2150, seen(worker(1))), [ACCUSED, "abort worker web/1"]);

    let Talk(mut plan, _) = Talk::up();
    let mut tell = |ms, event| words(&plan.handle(at(ms), event));
    tell(100, Event::Probed);
    assert_eq!(tell(400, Event::Tick), ["look at dispatcher"]);
    assert_eq!(tell(2500, seen(Part::Dispatcher)), none);
    assert_eq!(tell(4199, Event::Tick), none);
    assert_eq!(tell(4200, Event::Tick), ["look at dispatcher"]);
    assert_eq!(tell(4200, seen(Part::Dispatcher))[1..], ["abort dispatcher"]);
}

#[test]
fn a_watchdog_that_is_late_again_and_again_still_accuses() {
    let mut talk = Talk::up();
    let mut now = 100;
    // 100 ms late of every second: a worker that is silent for long is nevertheless found out.
    let accused = (0..10).any(|_| {
        now += 1000;
        talk.tell(now, Event::Lost(Duration::from_millis(100)), &[]);
        talk.tell(now, Event::Probed, &[]);
        let sign = Sign { silent_since: Some(at(100)), ..sign(1) };
        !talk.hear(now, Event::Report(vec![sign])).is_empty()
    });
    assert!(accused);
}

proptest::proptest! {
    /// Whatever the watchdog loses, and whenever: time counts against a worker while the watchdog ran, and only then.
    #[test]
    fn lost_time_is_never_held_against_anybody(
        steps in proptest::collection::vec(
            (1u64..400, proptest::option::weighted(0.4, 1u64..2000), proptest::bool::weighted(0.1)),
            1..60,
        ),
    ) {
        let mut talk = Talk::up();
        let (mut now, mut since, mut seen) = (100, 100, 0);
        for (run, lost, answered) in steps {
            if answered {
                // And was asked again at once.
                (since, seen) = (now, 0);
            }
            now += run;
            seen += run;
            if let Some(lost) = lost {
                now += lost;
                talk.0.handle(at(now), Event::Lost(Duration::from_millis(lost)));
                // So much may have kept its question from it: it begins anew.
                seen = if lost > 250 { 0 } else { seen };
            }
            talk.0.handle(at(now), Event::Probed);
            let sign = Sign { silent_since: Some(at(since)), ..sign(1) };
            let accused = !talk.hear(now, Event::Report(vec![sign])).is_empty();
            proptest::prop_assert_eq!(accused, seen >= 1000, "silent for {} ms of the watchdog's time", seen);
            if accused {
                break;
            }
        }
    }
}
