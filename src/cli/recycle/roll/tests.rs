//! What the command concludes from samples of workers.

use super::*;
use crate::ids::{Epoch, Monotonic, Replacements};

fn life(epoch: u64, state: Lifecycle, replacements: Replacements) -> Incarnation {
    Incarnation {
        epoch: Epoch::new(epoch).unwrap(),
        pid: 1,
        started: 1,
        state,
        wants_recycle: false,
        replacements,
        ticks: 0,
        last_tick: Monotonic(0),
        port: None,
        version: None,
    }
}

fn sample(epoch: u64, state: Lifecycle, replacements: Replacements) -> WorkerSample {
    WorkerSample { life: Some(life(epoch, state, replacements)), part: "up".to_owned(), ..WorkerSample::default() }
}

const NONE: Replacements = Replacements { ended: 7, last_failed: true };

fn old() -> WorkerSample {
    sample(3, Lifecycle::Ready, NONE)
}

fn next() -> WorkerSample {
    sample(4, Lifecycle::Ready, NONE)
}

fn part(state: &str, sample: WorkerSample) -> WorkerSample {
    WorkerSample { part: state.to_owned(), ..sample }
}

#[test]
fn progress_of_a_worker_follows_from_two_samples() {
    use WorkerProgress::*;
    let restarted = |restarts| WorkerSample { restarts, ..sample(4, Lifecycle::Starting, NONE) };
    let requested = |is_requested| WorkerSample { is_requested, ..old() };
    for (before, now, expected) in [
        (old(), old(), Pending),
        (old(), requested(Some(true)), Pending),
        (old(), requested(None), Pending),
        (old(), requested(Some(false)), GivenUp),
        // A new incarnation, once it serves; one that an operator has drained as well.
        (old(), sample(3, Lifecycle::Recycling, NONE), Pending),
        (old(), WorkerSample { is_requested: Some(false), ..sample(4, Lifecycle::Starting, NONE) }, Pending),
        (old(), next(), Recycled),
        (old(), sample(4, Lifecycle::Draining, NONE), Recycled),
        (WorkerSample { life: None, ..old() }, next(), Recycled),
        // The same one with another warm process.
        (old(), sample(3, Lifecycle::Ready, NONE.with(false)), Recycled),
        (old(), sample(3, Lifecycle::Starting, NONE.with(false)), Pending),
        (old(), sample(3, Lifecycle::Ready, NONE.with(true)), Kept),
        // It could keep nothing, and has died of it.
        (old(), sample(4, Lifecycle::Starting, NONE.with(true)), Kept),
        (old(), restarted(1), Pending),
        (old(), restarted(2), Dead),
        (old(), part("failed", restarted(1)), Dead),
        // Workers without a process.
        (part("failed", old()), part("failed", old()), Absent),
        (part("failed", old()), next(), Recycled),
        (part("stopped", old()), part("stopped", old()), Absent),
        (old(), part("stopped", old()), Absent),
        (old(), part("", old()), Absent),
    ] {
        assert_eq!(WorkerProgress::of(&before, &now), expected, "{before:?} {now:?}");
    }
}

fn rollout(now: &[WorkerSample]) -> (Rollout, bool) {
    let mut rollout = Rollout::new(PoolName::new("web").unwrap(), vec![old(); now.len()]);
    let is_over = rollout.observe(now.to_vec());
    (rollout, is_over)
}

fn summary(rollout: &Rollout) -> RollSummary {
    rollout.summary(Duration::from_millis(3_210), |id, prefix| {
        assert_eq!(prefix, "recycling 8 failed: ");
        format!("{id}'s program exited")
    })
}

#[test]
fn rollout_ends_with_the_last_worker() {
    let (pending, is_over) = rollout(&[next(), old(), WorkerSample { is_busy: true, ..old() }]);
    assert!(!is_over);
    assert_eq!(pending.pending().map(WorkerNumber::get).collect::<Vec<_>>(), [2, 3]);
    let text = "pool web: 1 of 3 workers recycled in 3.2 s; not recycled yet, and will be: web/2, web/3 (busy)";
    assert_eq!(summary(&pending), RollSummary::Incomplete(text.to_owned()));
    let (done, is_over) = rollout(&[next(), next()]);
    assert!(is_over);
    assert_eq!(summary(&done), RollSummary::Done("pool web: 2 workers recycled in 3.2 s".to_owned()));
    let (one, _) = rollout(&[next()]);
    assert_eq!(summary(&one), RollSummary::Done("pool web: 1 worker recycled in 3.2 s".to_owned()));
}

#[test]
fn rollout_ends_with_the_first_failure() {
    let kept = sample(3, Lifecycle::Ready, NONE.with(true));
    let (rollout, is_over) = rollout(&[next(), kept, WorkerSample { is_busy: true, ..old() }]);
    assert!(is_over);
    let text = "pool web: 1 of 3 workers recycled in 3.2 s; web/2 could not start its next process: web/2's program \
                exited; not recycled after this failure: web/3";
    assert_eq!(summary(&rollout), RollSummary::Incomplete(text.to_owned()));
}

/// The dispatcher forgets the other requests with the failure, and both may be seen at once.
#[test]
fn worker_whose_request_ends_with_the_failure_of_another_is_not_blamed() {
    let kept = sample(3, Lifecycle::Ready, NONE.with(true));
    let forgotten = || WorkerSample { is_requested: Some(false), ..old() };
    let (failed, _) = rollout(&[kept, forgotten(), old()]);
    let text = "pool web: 0 of 3 workers recycled in 3.2 s; web/1 could not start its next process: web/1's program \
                exited; not recycled after this failure: web/2, web/3";
    assert_eq!(summary(&failed), RollSummary::Incomplete(text.to_owned()));
    let (late, is_over) = rollout(&[next(), forgotten()]);
    assert!(is_over);
    let text = "pool web: 1 of 2 workers recycled in 3.2 s; web/2 was not replaced in time, and the dispatcher has given \
                it up";
    assert_eq!(summary(&late), RollSummary::Incomplete(text.to_owned()));
}

#[test]
fn worker_without_a_process_ends_no_rollout() {
    let (stopped, is_over) = rollout(&[next(), part("stopped", old())]);
    assert!(is_over);
    let text = "pool web: 1 of 2 workers recycled in 3.2 s; web/2 is stopped";
    assert_eq!(summary(&stopped), RollSummary::Done(text.to_owned()));
    let failed = || WorkerSample { cause: Some("it exited with status 1".to_owned()), ..part("failed", old()) };
    let mut rollout = Rollout::new(PoolName::new("web").unwrap(), vec![failed(), old()]);
    assert!(!rollout.observe(vec![failed(), old()]));
    assert!(rollout.observe(vec![failed(), next()]));
    let text = "pool web: 1 of 2 workers recycled in 3.2 s; web/1 has failed (last end: it exited with status 1), and gets \
                the new program when a reload starts it";
    assert_eq!(summary(&rollout), RollSummary::Incomplete(text.to_owned()));
}
