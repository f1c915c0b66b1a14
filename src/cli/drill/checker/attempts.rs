//! P3, P4 and P7: what the client of one attempt saw, and how long it waited.

use super::context::CheckContext;
use super::handoff;
use super::timeline::may_end;
use crate::cli::drill::fault::DrillPart;
use crate::cli::drill::history::{AttemptOutcome, NotStartedReason, PromiseViolation, RequestAttempt};

pub(super) fn check(context: &CheckContext<'_>, attempt: &RequestAttempt) -> Option<PromiseViolation> {
    let (promise, what) = check_outcome(context, attempt).or_else(|| check_wait(context, attempt))?;
    let what = format!("request {} {what}", attempt.request);
    Some(PromiseViolation { promise, what, story: context.describe_attempts(&[attempt]) })
}

fn check_outcome(context: &CheckContext<'_>, attempt: &RequestAttempt) -> Option<(&'static str, String)> {
    let listener = &context.listeners[attempt.listener];
    let mut active = context.active_during(attempt);
    match &attempt.outcome {
        AttemptOutcome::WrongResponse(_) => Some(("P3", format!("got {}", attempt.outcome))),
        AttemptOutcome::TimedOut(step) => Some(("P3", format!("got no response within its bound ({step})"))),
        AttemptOutcome::NoOutcome(_) => Some(("P3", format!("got {}", attempt.outcome))),
        AttemptOutcome::NotStarted(NotStartedReason::ClosedByDispatcher) => {
            let explained = active.any(|effect| context.ends_set(effect) || may_end(effect, DrillPart::Dispatcher));
            let what = || ("P4", "was closed by the dispatcher without a fault that explains it".into());
            (!explained).then(what)
        }
        AttemptOutcome::Unknown(reason) if listener.handoff => handoff::check(context, attempt, *reason),
        AttemptOutcome::Unknown(reason) => {
            let explained = active.any(|effect| context.explains_loss(effect, listener, *reason));
            (!explained).then(|| ("P3", format!("was lost without a fault of its pool: {}", attempt.outcome)))
        }
        _ => None,
    }
}

fn check_wait(context: &CheckContext<'_>, attempt: &RequestAttempt) -> Option<(&'static str, String)> {
    if attempt.outcome == AttemptOutcome::Disconnected {
        return None;
    }
    let bound = context.bounds.attempt[context.listeners[attempt.listener].pool]
        + context.extension(attempt.sent, attempt.ended, context.scope(attempt), None);
    let wait = attempt.wait();
    let what = || ("P7", format!("waited {} ms; its bound is {} ms", wait.as_millis(), bound.as_millis()));
    (wait > bound).then(what)
}
