//! Verdicts over time, from probes, reports and samples.

use proptest::prelude::*;

use super::*;

const TIMEOUTS: LivenessTimeouts = LivenessTimeouts { start: Duration::from_secs(10), answer: Duration::from_secs(1) };

fn at(ms: u64) -> Monotonic {
    Monotonic(ms * 1_000_000)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn sample(activity: ThreadActivity, ran: u64, waited: u64) -> ProcessSample {
    let sched_stat = SchedStat { thread: 7, ran: ms(ran), waited: ms(waited) };
    ProcessSample { activity, sched_stat: Some(sched_stat), ..ProcessSample::default() }
}

fn verdict(timer: &SilenceTimer, ms: u64) -> LivenessVerdict {
    timer.verdict(at(ms), TIMEOUTS)
}

/// The timer of a ready process with an unanswered probe since 100 ms.
fn probed() -> SilenceTimer {
    let mut timer = SilenceTimer::starting(at(0));
    timer.set_ready();
    timer.probe_sent(at(100));
    timer
}

#[test]
fn verdicts_follow_a_process_from_start_to_end() {
    let mut timer = SilenceTimer::starting(at(0));
    assert_eq!(verdict(&timer, 9_999), LivenessVerdict::Starting);
    assert_eq!(verdict(&timer, 10_000), LivenessVerdict::Frozen);
    timer.set_ready();
    assert_eq!(verdict(&timer, 1_000_000), LivenessVerdict::Alive);
    timer.probe_sent(at(20_000));
    timer.probe_sent(at(20_900));
    assert_eq!(verdict(&timer, 20_999), LivenessVerdict::Late);
    assert_eq!(verdict(&timer, 21_000), LivenessVerdict::Frozen);
    assert_eq!(timer.silence(at(21_000)), TIMEOUTS.answer);
    timer.answered(at(21_000));
    assert_eq!(verdict(&timer, 21_000), LivenessVerdict::Alive);
    timer.probe_sent(at(22_000));
    timer.add_sample(at(22_500), ProcessSample { ended: true, ..ProcessSample::default() });
    assert_eq!((verdict(&timer, 99_000), timer.deadline(TIMEOUTS)), (LivenessVerdict::Ended, None));
}

/// The report was late: the process has answered another observer since.
#[test]
fn silence_that_is_reported_after_a_later_answer_starts_with_the_answer() {
    let mut timer = probed();
    timer.answered(at(1000));
    timer.reported_silent(at(1200), at(100), Some(7));
    assert_eq!(timer.silence(at(1200)), ms(200));
    timer.reported_silent(at(1900), at(1500), Some(8));
    assert_eq!(timer.silence(at(1900)), ms(400));
}

#[test]
fn silence_goes_on_when_another_observer_begins_unless_the_process_made_a_turn() {
    let held = ProcessSample { held_by: Some(HeldBy::Debugger), ..ProcessSample::default() };
    for (ticks, verdict) in [(7, LivenessVerdict::Suspended(HeldBy::Debugger)), (8, LivenessVerdict::Late)] {
        let mut timer = probed();
        timer.reported_silent(at(200), at(100), Some(7));
        timer.add_sample(at(300), held);
        timer.observed_silent(at(450), at(400), Some(ticks));
        assert_eq!(timer.verdict(at(450), TIMEOUTS), verdict, "{ticks} turns");
    }
    let mut timer = probed();
    timer.reported_silent(at(200), at(100), Some(7));
    timer.observed_silent(at(1100), at(1000), Some(7));
    assert_eq!(verdict(&timer, 1100), LivenessVerdict::Frozen);
}

#[test]
fn time_that_the_observer_lost_is_excluded() {
    let mut timer = probed();
    timer.exclude_time(Duration::from_secs(5));
    assert_eq!(verdict(&timer, 6_000), LivenessVerdict::Late);
    assert_eq!(verdict(&timer, 6_100), LivenessVerdict::Frozen);
}

#[test]
fn a_sample_is_needed_after_an_eighth_of_the_timeout_and_at_the_timeout() {
    let mut timer = probed();
    assert!(!timer.needs_sample(at(224), TIMEOUTS) && timer.needs_sample(at(225), TIMEOUTS));
    timer.add_sample(at(225), sample(ThreadActivity::Idle, 0, 0));
    assert!(!timer.needs_sample(at(1099), TIMEOUTS) && timer.needs_sample(at(1100), TIMEOUTS));
    timer.add_sample(at(1100), sample(ThreadActivity::Idle, 0, 0));
    assert!(!timer.needs_sample(at(1100), TIMEOUTS), "it was taken at this time");
    assert_eq!(verdict(&timer, 1100), LivenessVerdict::Frozen);
}

/// Both a wait that the kernel has counted, and one that it has not counted because it is not over.
#[test]
fn waiting_for_a_processor_is_excluded() {
    let mut timer = probed();
    timer.add_sample(at(350), sample(ThreadActivity::Idle, 5, 70));
    timer.add_sample(at(1100), sample(ThreadActivity::Idle, 6, 470));
    assert_eq!(timer.attributable_silence(at(1100)), ms(600));
    assert_eq!(verdict(&timer, 1100), LivenessVerdict::Starved);
    timer.add_sample(at(1500), sample(ThreadActivity::Runnable, 16, 470));
    assert_eq!(timer.attributable_silence(at(1500)), ms(610), "it ran for 10 ms and was runnable for longer");
    assert_eq!(timer.silence(at(1500)), ms(1400));
    assert_eq!(verdict(&timer, 1889), LivenessVerdict::Starved);
    assert_eq!(verdict(&timer, 1890), LivenessVerdict::Frozen);
}

#[test]
fn spinning_stopped_and_sleeping_processes_are_frozen() {
    let mut timer = probed();
    timer.add_sample(at(350), sample(ThreadActivity::Runnable, 200, 0));
    timer.add_sample(at(1100), sample(ThreadActivity::Runnable, 950, 0));
    assert_eq!(verdict(&timer, 1100), LivenessVerdict::Frozen);
    let mut timer = probed();
    timer.add_sample(at(350), sample(ThreadActivity::Idle, 200, 3));
    timer.add_sample(at(1100), sample(ThreadActivity::Idle, 200, 3));
    assert_eq!(verdict(&timer, 1100), LivenessVerdict::Frozen);
}

#[test]
fn statistics_of_another_thread_or_none_exclude_nothing() {
    let mut timer = probed();
    timer.add_sample(at(350), sample(ThreadActivity::Runnable, 200, 0));
    let other = SchedStat { thread: 8, ran: ms(0), waited: ms(900) };
    timer.add_sample(at(1100), ProcessSample { sched_stat: Some(other), ..sample(ThreadActivity::Runnable, 0, 0) });
    assert_eq!(verdict(&timer, 1100), LivenessVerdict::Frozen);
    let mut timer = probed();
    timer.add_sample(at(350), ProcessSample { activity: ThreadActivity::Runnable, ..ProcessSample::default() });
    timer.add_sample(at(1100), ProcessSample { activity: ThreadActivity::Runnable, ..ProcessSample::default() });
    assert_eq!(verdict(&timer, 1100), LivenessVerdict::Frozen);
}

#[test]
fn a_stalled_machine_excludes_time_of_blocked_threads_only() {
    let cases = [(ThreadActivity::Blocked, LivenessVerdict::Starved), (ThreadActivity::Idle, LivenessVerdict::Frozen)];
    for (activity, expected) in cases {
        let mut timer = probed();
        timer.add_sample(at(350), ProcessSample { machine_stalled: ms(5000), ..sample(activity, 0, 0) });
        timer.add_sample(at(1100), ProcessSample { machine_stalled: ms(5300), ..sample(activity, 0, 0) });
        assert_eq!(verdict(&timer, 1100), expected);
    }
    // Without pressure information nothing is excluded.
    let mut timer = probed();
    timer.add_sample(at(350), sample(ThreadActivity::Blocked, 0, 0));
    timer.add_sample(at(1100), sample(ThreadActivity::Blocked, 0, 0));
    assert_eq!(verdict(&timer, 1100), LivenessVerdict::Frozen);
}

#[test]
fn a_held_process_has_the_whole_timeout_after_its_release() {
    let mut timer = probed();
    let held = ProcessSample { held_by: Some(HeldBy::Debugger), ..ProcessSample::default() };
    for ms in (350..9_000).step_by(250) {
        timer.add_sample(at(ms), held);
        assert_eq!(verdict(&timer, ms), LivenessVerdict::Suspended(HeldBy::Debugger));
    }
    timer.add_sample(at(9_000), sample(ThreadActivity::Idle, 0, 0));
    assert_eq!(verdict(&timer, 9_999), LivenessVerdict::Late);
    timer.add_sample(at(10_000), sample(ThreadActivity::Idle, 0, 0));
    assert_eq!(verdict(&timer, 10_000), LivenessVerdict::Frozen);
}

#[test]
fn progress_without_an_answer_extends_the_timeout_fourfold() {
    let mut timer = probed();
    for (ticks, ms) in (350..=4_100).step_by(250).enumerate() {
        assert_eq!(verdict(&timer, ms - 1), LivenessVerdict::Late, "{ms}");
        timer.reported_silent(at(ms), at(100), Some(ticks as u64));
    }
    assert_eq!(verdict(&timer, 4_100), LivenessVerdict::Frozen);
    assert!(timer.makes_progress(at(4_100), TIMEOUTS));
    // When the progress stops, one timeout is left.
    let mut timer = probed();
    timer.reported_silent(at(350), at(100), Some(1));
    timer.reported_silent(at(600), at(100), Some(2));
    timer.reported_silent(at(1_599), at(100), Some(2));
    let verdicts = (verdict(&timer, 1_599), verdict(&timer, 1_600));
    assert_eq!(verdicts, (LivenessVerdict::Late, LivenessVerdict::Frozen));
}

#[test]
fn a_later_probe_starts_another_silence() {
    let mut timer = probed();
    timer.reported_silent(at(350), at(100), None);
    timer.add_sample(at(350), sample(ThreadActivity::Idle, 0, 0));
    timer.add_sample(at(1100), sample(ThreadActivity::Runnable, 0, 0));
    assert_eq!(verdict(&timer, 1100), LivenessVerdict::Starved);
    timer.reported_silent(at(1350), at(1150), None);
    assert_eq!(timer.silence(at(1350)), ms(200));
    assert_eq!(verdict(&timer, 2149), LivenessVerdict::Late);
}

proptest! {
    /// With samples at any times: a process that never answers is frozen at its timeout and not before, if no time is
    /// excluded.
    #[test]
    fn a_silent_process_is_frozen_exactly_at_its_timeout(
        steps in prop::collection::vec(1u64..400, 1..20),
        activity in prop_oneof![
            Just(ThreadActivity::Idle),
            Just(ThreadActivity::Blocked),
            Just(ThreadActivity::Runnable),
        ],
    ) {
        let mut timer = probed();
        let mut now = 100;
        for step in steps {
            now += step;
            let frozen = now >= 1100;
            // A loop that spins has run all the time.
            let ran = if activity == ThreadActivity::Runnable { now } else { 0 };
            if timer.needs_sample(at(now), TIMEOUTS) {
                timer.add_sample(at(now), sample(activity, ran, 40));
            }
            prop_assert_eq!(verdict(&timer, now) == LivenessVerdict::Frozen, frozen);
        }
    }

    /// With any samples: no process is frozen before a whole timeout of attributable silence, and the attributable silence
    /// is never longer than the silence.
    #[test]
    fn excluded_time_never_makes_a_process_frozen(
        samples in prop::collection::vec((1u64..700, 0u64..300, 0u64..900, 0u8..5), 1..40),
    ) {
        let mut timer = probed();
        let (mut now, mut ran, mut waited, mut stalled) = (350, 0, 0, 0);
        timer.add_sample(at(now), sample(ThreadActivity::Runnable, 0, 0));
        let mut attributable = 250;
        for (step, run, wait, kind) in samples {
            let run = run.min(step);
            now += step;
            ran += run;
            let seen = match kind {
                // Runnable all the time: only what it ran is attributable.
                0 | 1 => {
                    attributable += run;
                    sample(ThreadActivity::Runnable, ran, waited)
                }
                // Blocked while the machine was stalled.
                2 => {
                    stalled += wait;
                    attributable += step - wait.min(step - run);
                    ProcessSample { machine_stalled: ms(stalled), ..sample(ThreadActivity::Blocked, ran, waited) }
                }
                // Asleep now, after a wait for a processor.
                3 => {
                    waited += wait;
                    attributable += step - wait.min(step - run);
                    sample(ThreadActivity::Idle, ran, waited)
                }
                _ => {
                    attributable = 0;
                    ProcessSample { held_by: Some(HeldBy::Freezer), ..sample(ThreadActivity::Idle, ran, waited) }
                }
            };
            let was_held = timer.verdict(at(now), TIMEOUTS) == LivenessVerdict::Suspended(HeldBy::Freezer);
            if was_held {
                attributable = 0;
            }
            timer.add_sample(at(now), ProcessSample { machine_stalled: ms(stalled), ..seen });
            prop_assert!(timer.attributable_silence(at(now)) <= timer.silence(at(now)));
            prop_assert_eq!(timer.attributable_silence(at(now)), ms(attributable));
            let frozen = verdict(&timer, now) == LivenessVerdict::Frozen;
            prop_assert_eq!(frozen, attributable >= 1000 && kind != 4);
        }
    }
}
