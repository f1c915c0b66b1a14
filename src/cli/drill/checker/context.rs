//! What every rule of the checker uses: the history and its faults, the bounds, and the description of events.

use std::collections::HashSet;
use std::time::Duration;

use super::bounds::{CheckedListener, DrillBounds};
use super::timeline::{FaultScope, FaultTimeline, affects, may_end};
use crate::cli::drill::fault::{DrillPart, FaultKind};
use crate::cli::drill::fault_tracker::FaultEffect;
use crate::cli::drill::history::{DrillHistory, RequestAttempt, UnknownReason};
use crate::ids::Monotonic;

pub(super) struct CheckContext<'a> {
    pub history: &'a DrillHistory,
    pub recorded: HashSet<(u64, u32)>,
    pub listeners: &'a [CheckedListener],
    pub pool_of: &'a [usize],
    pub bounds: &'a DrillBounds,
    pub timeline: FaultTimeline<'a>,
}

impl<'a> CheckContext<'a> {
    pub(super) fn new(
        history: &'a DrillHistory,
        listeners: &'a [CheckedListener],
        pool_of: &'a [usize],
        bounds: &'a DrillBounds,
    ) -> Self {
        let recorded = history.recorded_starts.iter().copied().collect();
        Self { history, recorded, listeners, pool_of, bounds, timeline: FaultTimeline::new(history) }
    }

    pub(super) fn scope(&self, attempt: &RequestAttempt) -> FaultScope {
        FaultScope { pool: Some(self.listeners[attempt.listener].pool), listener: Some(attempt.listener) }
    }

    /// The faults that were active during an attempt.
    pub(super) fn active_during(&self, attempt: &RequestAttempt) -> impl Iterator<Item = &'a FaultEffect> + '_ {
        self.timeline.active_between(attempt.sent, attempt.ended)
    }

    /// Whether the fault makes all parts exit.
    pub(super) fn ends_set(&self, effect: &FaultEffect) -> bool {
        self.bounds.parts_follow_watchdog && effect.kind == FaultKind::Kill && effect.part == Some(DrillPart::Watchdog)
    }

    /// Whether the fault may end the set or a worker of this pool.
    pub(super) fn may_end_worker_of(&self, effect: &FaultEffect, pool: usize) -> bool {
        match effect.part {
            Some(DrillPart::Worker(worker)) => {
                self.pool_of[worker] == pool && may_end(effect, DrillPart::Worker(worker))
            }
            _ => self.ends_set(effect),
        }
    }

    /// Whether the fault explains that a request of this pool was lost in this way.
    pub(super) fn explains_loss(
        &self,
        effect: &FaultEffect,
        listener: &CheckedListener,
        reason: UnknownReason,
    ) -> bool {
        let pool = listener.pool;
        // A worker without descriptors cannot start a handler, but it can respond, unless the protocol is its program's.
        let without_descriptors = effect.kind == FaultKind::LimitDescriptors
            && matches!(effect.part, Some(DrillPart::Worker(worker)) if self.pool_of[worker] == pool);
        let responded = matches!(reason, UnknownReason::Reported(_)) || listener.refuses_silently_after.is_some();
        self.may_end_worker_of(effect, pool) || responded && without_descriptors
    }

    /// How much longer than without faults a wait in this scope may take from `from` to `to`, not counting the fault
    /// `except`.
    pub(super) fn extension(
        &self,
        from: Monotonic,
        to: Monotonic,
        scope: FaultScope,
        except: Option<&FaultEffect>,
    ) -> Duration {
        let active = self.timeline.active_between(from, to);
        let is_excepted = |effect: &FaultEffect| except.is_some_and(|except| std::ptr::eq(except, effect));
        let active = active.filter(|effect| !is_excepted(effect) && affects(effect, scope, self.pool_of));
        active.map(|effect| self.bounds.of(effect)).sum::<Duration>() + self.delay(from, to) + self.bounds.slack
    }

    /// How long the machine delayed the drill itself from `from` to `to`.
    pub(super) fn delay(&self, from: Monotonic, to: Monotonic) -> Duration {
        let delays = self.history.delays.iter().filter(|(at, by)| *at >= from && at.0 <= (to + *by).0);
        delays.map(|(_, by)| *by).sum()
    }

    /// A point in time as the report prints it.
    pub(super) fn time(&self, time: Monotonic) -> String {
        format!("{:.3} s", time.since(self.history.started_at).as_secs_f64())
    }

    pub(super) fn describe_fault(&self, effect: &FaultEffect) -> String {
        let time = |time: Option<Monotonic>| time.map_or("never".into(), |time| self.time(time));
        format!(
            "{}: fault {}, {} of {}, detected {}, recovered {}, ended {}",
            self.time(effect.injected),
            effect.number,
            effect.kind.as_str(),
            effect.target,
            time(effect.detected),
            time(effect.recovered),
            time(effect.ended)
        )
    }

    /// These attempts, each after the faults that could affect it.
    pub(super) fn describe_attempts(&self, attempts: &[&RequestAttempt]) -> Vec<String> {
        let mut events = Vec::new();
        for attempt in attempts {
            let scope = self.scope(attempt);
            let active = self.active_during(attempt).filter(|effect| affects(effect, scope, self.pool_of));
            events.extend(active.map(|effect| self.describe_fault(effect)));
            let RequestAttempt { request, number, listener, outcome, .. } = attempt;
            let (sent, ended) = (self.time(attempt.sent), self.time(attempt.ended));
            let previous = attempt.previous_sent.map(|at| format!(", after one sent at {}", self.time(at)));
            let previous = previous.unwrap_or_default();
            events.push(format!(
                "{sent}: attempt {number} of request {request} at listener index {listener}{previous}, until {ended}: \
                 {outcome}"
            ));
        }
        events.dedup();
        events
    }
}
