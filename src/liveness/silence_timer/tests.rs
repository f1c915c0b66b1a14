//! A silence and what was seen of it, by the clock.

use proptest::prelude::*;

use super::*;

const PATIENCE: Timeouts = Timeouts { start: Duration::from_secs(10), answer: Duration::from_secs(1) };

fn at(ms: u64) -> Monotonic {
    Monotonic(ms * 1_000_000)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn look(activity: Activity, ran: u64, waited: u64) -> ProcessSample {
    let account = SchedStat { thread: 7, ran: ms(ran), waited: ms(waited) };
    ProcessSample { activity, account: Some(account), ..ProcessSample::default() }
}

fn verdict(pulse: &SilenceTimer, ms: u64) -> Verdict {
    pulse.verdict(at(ms), PATIENCE)
}

/// One that is ready and owes an answer since 100 ms.
fn asked() -> SilenceTimer {
    let mut pulse = SilenceTimer::born(at(0));
    pulse.ready();
    pulse.asked(at(100));
    pulse
}

#[test]
fn a_life_in_verdicts() {
    let mut pulse = SilenceTimer::born(at(0));
    assert_eq!(verdict(&pulse, 9_999), Verdict::Starting);
    assert_eq!(verdict(&pulse, 10_000), Verdict::Frozen);
    pulse.ready();
    assert_eq!(verdict(&pulse, 1_000_000), Verdict::Alive);
    pulse.asked(at(20_000));
    pulse.asked(at(20_900));
    assert_eq!(verdict(&pulse, 20_999), Verdict::Late);
    assert_eq!(verdict(&pulse, 21_000), Verdict::Frozen);
    assert_eq!(pulse.silence(at(21_000)), PATIENCE.answer);
    pulse.answered();
    assert_eq!(verdict(&pulse, 21_000), Verdict::Alive);
    pulse.asked(at(22_000));
    pulse.observe(at(22_500), ProcessSample { ended: true, ..ProcessSample::default() });
    assert_eq!((verdict(&pulse, 99_000), pulse.due(PATIENCE)), (Verdict::Gone, None));
}

#[test]
fn time_that_the_observer_lost_is_nobodys_silence() {
    let mut pulse = asked();
    pulse.excuse(Duration::from_secs(5));
    assert_eq!(verdict(&pulse, 6_000), Verdict::Late);
    assert_eq!(verdict(&pulse, 6_100), Verdict::Frozen);
}

#[test]
fn a_look_is_wanted_when_silence_is_noticed_and_when_it_is_judged() {
    let mut pulse = asked();
    assert!(!pulse.wants_look(at(224), PATIENCE) && pulse.wants_look(at(225), PATIENCE));
    pulse.observe(at(225), look(Activity::Idle, 0, 0));
    assert!(!pulse.wants_look(at(1099), PATIENCE) && pulse.wants_look(at(1100), PATIENCE));
    pulse.observe(at(1100), look(Activity::Idle, 0, 0));
    assert!(!pulse.wants_look(at(1100), PATIENCE), "it has just been had");
    assert_eq!(verdict(&pulse, 1100), Verdict::Frozen);
}

/// What the kernel has written up, and a wait that it has not written up because it still lasts.
#[test]
fn waiting_for_a_processor_is_excused() {
    let mut pulse = asked();
    pulse.observe(at(350), look(Activity::Idle, 5, 70));
    pulse.observe(at(1100), look(Activity::Idle, 6, 470));
    assert_eq!(pulse.own_silence(at(1100)), ms(600));
    assert_eq!(verdict(&pulse, 1100), Verdict::Starved);
    pulse.observe(at(1500), look(Activity::Runnable, 16, 470));
    assert_eq!(pulse.own_silence(at(1500)), ms(610), "it ran for 10 ms, and would have run for longer");
    assert_eq!(pulse.silence(at(1500)), ms(1400));
    assert_eq!(verdict(&pulse, 1889), Verdict::Starved);
    assert_eq!(verdict(&pulse, 1890), Verdict::Frozen);
}

#[test]
fn who_spins_is_frozen_and_so_is_who_is_stopped_or_sleeps() {
    let mut pulse = asked();
    pulse.observe(at(350), look(Activity::Runnable, 200, 0));
    pulse.observe(at(1100), look(Activity::Runnable, 950, 0));
    assert_eq!(verdict(&pulse, 1100), Verdict::Frozen);
    let mut pulse = asked();
    pulse.observe(at(350), look(Activity::Idle, 200, 3));
    pulse.observe(at(1100), look(Activity::Idle, 200, 3));
    assert_eq!(verdict(&pulse, 1100), Verdict::Frozen);
}

#[test]
fn another_thread_or_no_account_excuses_nothing() {
    let mut pulse = asked();
    pulse.observe(at(350), look(Activity::Runnable, 200, 0));
    let other = SchedStat { thread: 8, ran: ms(0), waited: ms(900) };
    pulse.observe(at(1100), ProcessSample { account: Some(other), ..look(Activity::Runnable, 0, 0) });
    assert_eq!(verdict(&pulse, 1100), Verdict::Frozen);
    let mut pulse = asked();
    pulse.observe(at(350), ProcessSample { activity: Activity::Runnable, ..ProcessSample::default() });
    pulse.observe(at(1100), ProcessSample { activity: Activity::Runnable, ..ProcessSample::default() });
    assert_eq!(verdict(&pulse, 1100), Verdict::Frozen);
}

#[test]
fn a_stalled_machine_excuses_who_is_blocked_and_nobody_else() {
    for (activity, expected) in [(Activity::Blocked, Verdict::Starved), (Activity::Idle, Verdict::Frozen)] {
        let mut pulse = asked();
        pulse.observe(at(350), ProcessSample { stalled: ms(5000), ..look(activity, 0, 0) });
        pulse.observe(at(1100), ProcessSample { stalled: ms(5300), ..look(activity, 0, 0) });
        assert_eq!(verdict(&pulse, 1100), expected);
    }
    // Where the kernel does not tell, nothing is excused.
    let mut pulse = asked();
    pulse.observe(at(350), look(Activity::Blocked, 0, 0));
    pulse.observe(at(1100), look(Activity::Blocked, 0, 0));
    assert_eq!(verdict(&pulse, 1100), Verdict::Frozen);
}

#[test]
fn who_is_held_begins_anew_when_he_is_let_go() {
    let mut pulse = asked();
    let held = ProcessSample { held: Some(HeldBy::Debugger), ..ProcessSample::default() };
    for ms in (350..9_000).step_by(250) {
        pulse.observe(at(ms), held);
        assert_eq!(verdict(&pulse, ms), Verdict::Suspended(HeldBy::Debugger));
    }
    pulse.observe(at(9_000), look(Activity::Idle, 0, 0));
    assert_eq!(verdict(&pulse, 9_999), Verdict::Late);
    pulse.observe(at(10_000), look(Activity::Idle, 0, 0));
    assert_eq!(verdict(&pulse, 10_000), Verdict::Frozen);
}

#[test]
fn progress_is_no_answer_and_worth_four_bounds() {
    let mut pulse = asked();
    for (ticks, ms) in (350..=4_100).step_by(250).enumerate() {
        assert_eq!(verdict(&pulse, ms - 1), Verdict::Late, "{ms}");
        pulse.silent(at(ms), at(100), Some(ticks as u64));
    }
    assert_eq!(verdict(&pulse, 4_100), Verdict::Frozen);
    assert!(pulse.ticks(at(4_100), PATIENCE));
    // One that stops turning has one bound from then on.
    let mut pulse = asked();
    pulse.silent(at(350), at(100), Some(1));
    pulse.silent(at(600), at(100), Some(2));
    pulse.silent(at(1_599), at(100), Some(2));
    assert_eq!((verdict(&pulse, 1_599), verdict(&pulse, 1_600)), (Verdict::Late, Verdict::Frozen));
}

#[test]
fn a_later_question_is_another_silence() {
    let mut pulse = asked();
    pulse.silent(at(350), at(100), None);
    pulse.observe(at(350), look(Activity::Idle, 0, 0));
    pulse.observe(at(1100), look(Activity::Runnable, 0, 0));
    assert_eq!(verdict(&pulse, 1100), Verdict::Starved);
    pulse.silent(at(1350), at(1150), None);
    assert_eq!(pulse.silence(at(1350)), ms(200));
    assert_eq!(verdict(&pulse, 2149), Verdict::Late);
}

proptest! {
    /// However the looks fall: who never answers and is never excused is frozen at his bound, and at none before it.
    #[test]
    fn who_is_stuck_is_found_at_the_bound(
        looks in prop::collection::vec(1u64..400, 1..20),
        activity in prop_oneof![Just(Activity::Idle), Just(Activity::Blocked), Just(Activity::Runnable)],
    ) {
        let mut pulse = asked();
        let mut now = 100;
        for step in looks {
            now += step;
            let frozen = now >= 1100;
            // A loop that spins has run all the time.
            let ran = if activity == Activity::Runnable { now } else { 0 };
            if pulse.wants_look(at(now), PATIENCE) {
                pulse.observe(at(now), look(activity, ran, 40));
            }
            prop_assert_eq!(verdict(&pulse, now) == Verdict::Frozen, frozen);
        }
    }

    /// Whatever is seen: nobody is frozen before his bound has passed without excuse since the first look, and
    /// the own silence is never longer than the silence.
    #[test]
    fn nobody_is_frozen_while_he_is_excused(
        looks in prop::collection::vec((1u64..700, 0u64..300, 0u64..900, 0u8..5), 1..40),
    ) {
        let mut pulse = asked();
        let (mut now, mut ran, mut waited, mut stalled) = (350, 0, 0, 0);
        pulse.observe(at(now), look(Activity::Runnable, 0, 0));
        let mut own = 250;
        for (step, run, wait, kind) in looks {
            let run = run.min(step);
            now += step;
            ran += run;
            let seen = match kind {
                // On the run queue all the time: only what it ran is its own.
                0 | 1 => {
                    own += run;
                    look(Activity::Runnable, ran, waited)
                }
                // Blocked while the machine was stalled.
                2 => {
                    stalled += wait;
                    own += step - wait.min(step - run);
                    ProcessSample { stalled: ms(stalled), ..look(Activity::Blocked, ran, waited) }
                }
                // It slept at the end, and had waited for a processor before.
                3 => {
                    waited += wait;
                    own += step - wait.min(step - run);
                    look(Activity::Idle, ran, waited)
                }
                _ => {
                    own = 0;
                    ProcessSample { held: Some(HeldBy::Freezer), ..look(Activity::Idle, ran, waited) }
                }
            };
            let was_held = pulse.verdict(at(now), PATIENCE) == Verdict::Suspended(HeldBy::Freezer);
            if was_held {
                own = 0;
            }
            let kept = ProcessSample { stalled: ms(stalled), ..seen };
            pulse.observe(at(now), kept);
            prop_assert!(pulse.own_silence(at(now)) <= pulse.silence(at(now)));
            prop_assert_eq!(pulse.own_silence(at(now)), ms(own));
            let frozen = verdict(&pulse, now) == Verdict::Frozen;
            prop_assert_eq!(frozen, own >= 1000 && kind != 4);
        }
    }
}
