//! P3 and P4 on handoff listeners, where dispatcher and worker use the same connection.
//!
//! A client there does not know which of them ended its connection without a byte of response. The recorded starts and
//! the faults of that time decide whether the request was allowed to end so.

use std::time::Duration;

use super::context::CheckContext;
use super::timeline::{affects, may_end};
use crate::cli::drill::fault::{DrillPart, FaultKind, FaultTarget};
use crate::cli::drill::fault_tracker::FaultEffect;
use crate::cli::drill::history::{RequestAttempt, UnknownReason};

/// Checks an attempt of which the client does not know whether it started. Returns the broken promise, and how.
pub(super) fn check(
    context: &CheckContext<'_>,
    attempt: &RequestAttempt,
    reason: UnknownReason,
) -> Option<(&'static str, String)> {
    let listener = &context.listeners[attempt.listener];
    if context.active_during(attempt).any(|effect| context.explains_loss(effect, listener, reason)) {
        return None;
    }
    if reason != UnknownReason::NoResponse {
        return Some(("P3", format!("was lost without a fault of its pool: {reason}")));
    }
    let has_started = context.recorded.contains(&(attempt.request, attempt.number));
    if !has_started && may_be_refused_silently(context, attempt) {
        return None;
    }
    // An idle connection, or one that a worker returned, was lost if the dispatcher died since the previous request.
    let since = attempt.previous_sent.unwrap_or(attempt.sent);
    let deaths = context.timeline.active_between(since, attempt.ended);
    let mut deaths =
        deaths.filter(|effect| may_end(effect, DrillPart::Dispatcher) || context.ends_set(effect)).peekable();
    if deaths.peek().is_none() {
        return Some(("P3", "got no byte of response, without a fault of its pool or of the dispatcher".into()));
    }
    if has_started {
        return Some(("P4", "had started, and got no byte of response when the dispatcher died".into()));
    }
    // Idle and very recent connections may be lost with the dispatcher.
    let is_recent = |effect: &FaultEffect| attempt.sent + time_to_store(context, attempt, effect) >= effect.injected;
    if attempt.previous_sent.is_some() || deaths.any(is_recent) {
        return None;
    }
    Some(("P4", "had waited longer than store_after, and was lost when the dispatcher died".into()))
}

/// Whether the end of the connection may be the refusal of an `inetd` pool, which cannot send a 503: no worker became
/// free in time, or all are drained.
fn may_be_refused_silently(context: &CheckContext<'_>, attempt: &RequestAttempt) -> bool {
    let listener = &context.listeners[attempt.listener];
    let Some(queue_time) = listener.refuses_silently_after else { return false };
    let scope = context.scope(attempt);
    let slows_pool = |effect: &FaultEffect| {
        let at_pool = matches!(effect.target, FaultTarget::Listener(n) if context.listeners[n].pool == listener.pool);
        at_pool || affects(effect, scope, context.pool_of)
    };
    let is_drained = |worker: usize| {
        let drains =
            |effect: &FaultEffect| effect.kind == FaultKind::Drain && effect.part == Some(DrillPart::Worker(worker));
        context.active_during(attempt).any(drains)
    };
    let mut workers = (0..context.pool_of.len()).filter(|worker| context.pool_of[*worker] == listener.pool);
    let waited = attempt.ended.since(attempt.sent) >= queue_time;
    waited && context.active_during(attempt).any(slows_pool) || workers.all(is_drained)
}

/// How long it may take until a queued connection is in the descriptor store, considering the faults before `death`.
fn time_to_store(context: &CheckContext<'_>, attempt: &RequestAttempt, death: &FaultEffect) -> Duration {
    let slows = |effect: &&FaultEffect| {
        let on_dispatcher = effect.part == Some(DrillPart::Dispatcher) || effect.target == FaultTarget::Machine;
        effect.number != death.number && (on_dispatcher || context.ends_set(effect))
    };
    let slowed = context.timeline.active_between(attempt.sent, death.injected).filter(slows);
    let slowed: Duration = slowed.map(|effect| context.bounds.of(effect)).sum();
    context.bounds.store_after + context.bounds.slack + context.delay(attempt.sent, attempt.ended) + slowed
}
