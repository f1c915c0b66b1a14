//! The watchdog's decisions: when a part starts, when it is declared frozen, and in which order the set stops.
//!
//! Pure: the shell passes in what happened ([`PlanEvent`]) and performs the returned [`PlanAction`]s in order.
//!
//! Start: the dispatcher first, the workers once it is ready. Stop: the workers first, the dispatcher once all of
//! them have ended. In between the parts are independent: no part is restarted because another one was.

#![forbid(unsafe_code)]

mod lifecycle;
mod liveness;
mod messages;
mod part;
mod planned_restarts;
mod stand_in;
mod systemd;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::ids::{Monotonic, PoolName, WorkerId};
use crate::liveness::SilenceTimer;
pub(crate) use lifecycle::ChildSet;
pub(crate) use messages::{
    Absence, ChildAction, ChildEvent, ConfigChange, KillSignal, Notice, Part, PartSignal, PlanAction, PlanEvent,
    PlanLimits, UnitEvent, WorkerLiveness,
};
pub(crate) use part::PartStatus;
use part::{PartRecord, PartState};
pub(crate) use systemd::UnitSet;

/// What starts, stops and restarts the parts: the watchdog ([`ChildSet`]), or systemd ([`UnitSet`]).
pub(crate) trait PlanKind: fmt::Debug + Sized {
    /// What happens in such a set only.
    type Event: fmt::Debug;
    /// What the shell of such a set alone has to do.
    type Action;

    /// Whether systemd starts the parts: it limits their starts itself, and a part delays its start after failures.
    const BY_SYSTEMD: bool;

    /// Processes an event.
    fn handle(plan: &mut Plan<Self>, now: Monotonic, event: Self::Event);

    /// Whether the event is the result of an action.
    fn is_result(_event: &Self::Event) -> bool {
        false
    }

    /// Takes the steps that follow from events and verdicts.
    fn advance(_plan: &mut Plan<Self>, _now: Monotonic) {}

    /// Whether the set is stopping or has stopped.
    fn is_stopping(&self) -> bool {
        false
    }
}

/// The state of the set, as the watchdog knows it.
#[derive(Debug)]
pub(crate) struct Plan<K: PlanKind> {
    parts: BTreeMap<Part, PartRecord>,
    limits: PlanLimits,
    kind: K,
    /// Silence before this time is not attributed to any part.
    blame_since: Monotonic,
    /// Time excluded since the last report or since `blame_since`, whichever is later: a silence that the next report
    /// shows may have started before it.
    excluded: Duration,
    /// When the unanswered probe was sent.
    probe_sent_at: Option<Monotonic>,
    /// The last event that is not the result of an action.
    last_external_event: Monotonic,
    /// Up to when the time spent on actions has been excluded.
    excluded_until: Option<Monotonic>,
    actions: Vec<PlanAction<K::Action>>,
}

impl<K: PlanKind> Plan<K> {
    /// Processes an event and returns what to do.
    pub(crate) fn handle(&mut self, now: Monotonic, event: PlanEvent<K::Event>) -> Vec<PlanAction<K::Action>> {
        let is_result = match &event {
            PlanEvent::Sampled(..) => true,
            PlanEvent::Set(event) => K::is_result(event),
            _ => false,
        };
        if !is_result {
            self.last_external_event = self.last_external_event.max(now);
        }
        // The events that arrived meanwhile follow these three, and no part is evaluated before they are processed: one
        // of them may be the answer to a probe of a watchdog that was late.
        let ends_batch =
            !matches!(event, PlanEvent::WatchdogLate(_) | PlanEvent::MachineResumed | PlanEvent::ProbeSent);
        match event {
            PlanEvent::Ready(part) => self.on_ready(now, &part),
            PlanEvent::ProbeSent => {
                self.probe_sent_at.get_or_insert(now);
                self.with_timer(&Part::Dispatcher, |timer| timer.probe_sent(now));
            }
            PlanEvent::ProbeNotSent => {
                self.probe_sent_at = None;
                self.with_timer(&Part::Dispatcher, |timer| timer.answered(now)); // as far as the watchdog can know
            }
            PlanEvent::Report(workers) => self.on_report(now, workers),
            PlanEvent::Observed(workers) => {
                self.judge_workers(now, now, self.excluded, workers, SilenceTimer::observed_silent);
            }
            PlanEvent::Sampled(part, sample) => self.on_sampled(now, &part, sample),
            PlanEvent::WatchdogLate(time) => self.exclude_time(now, time),
            PlanEvent::MachineResumed => self.reset_all(now),
            PlanEvent::Tick => {}
            PlanEvent::Set(event) => K::handle(self, now, event),
        }
        if ends_batch {
            self.check_deadlines(now);
            K::advance(self, now);
        }
        std::mem::take(&mut self.actions)
    }

    /// When the next [`PlanEvent::Tick`] is due.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        let due = |(part, record): (&Part, &PartRecord)| {
            let timer = record.timer().filter(|_| self.is_judged_by_time(part, record));
            let verdict = timer.and_then(|timer| timer.deadline(self.timeouts(part)));
            let step = match &record.state {
                PartState::StartDue(at) | PartState::Stopping { kill_at: at, .. } => Some(*at),
                PartState::AwaitingDispatcher
                | PartState::Running(_)
                | PartState::Failed
                | PartState::Stopped
                | PartState::Absent(_) => None,
            };
            [verdict, step, self.stand_in_due(part, record)].into_iter().flatten().min()
        };
        self.parts.iter().filter_map(due).min()
    }

    /// The status of each part.
    pub(crate) fn status(&self) -> impl Iterator<Item = (&Part, PartStatus)> {
        self.parts.iter().map(|(part, record)| (part, record.status()))
    }

    /// The pools of which every worker has failed, each with how one of them ended last.
    pub(crate) fn failed_pools(&self) -> Vec<(&PoolName, &str)> {
        let mut pools: BTreeMap<&PoolName, Option<&str>> = BTreeMap::new();
        for (part, record) in &self.parts {
            let Part::Worker(id) = part else { continue };
            let failed = matches!(record.state, PartState::Failed | PartState::Absent(Absence::Failed));
            let cause = failed.then(|| record.cause.as_deref().unwrap_or("it ended too often"));
            // One worker that has not failed is enough.
            pools.entry(&id.pool).and_modify(|all| *all = all.and(cause)).or_insert(cause);
        }
        pools.into_iter().filter_map(|(pool, cause)| Some((pool, cause?))).collect()
    }

    /// Whether a part is ready and was not told to stop.
    pub(crate) fn is_up(&self, part: &Part) -> bool {
        self.parts.get(part).is_some_and(PartRecord::is_up)
    }

    /// Whether the set is stopping or has stopped.
    pub(crate) fn is_stopping(&self) -> bool {
        self.kind.is_stopping()
    }

    fn build(
        kind: K,
        dispatcher: PartState,
        worker: PartState,
        workers: &BTreeMap<WorkerId, Duration>,
        limits: PlanLimits,
        now: Monotonic,
    ) -> Self {
        let workers = workers.iter().map(|(id, drain)| (Part::Worker(id.clone()), (worker.clone(), *drain)));
        let parts = [(Part::Dispatcher, (dispatcher, Duration::ZERO))].into_iter().chain(workers);
        Self {
            parts: parts.map(|(part, (state, drain))| (part, PartRecord::new(state, drain))).collect(),
            limits,
            kind,
            blame_since: now,
            excluded: Duration::ZERO,
            probe_sent_at: None,
            last_external_event: now,
            excluded_until: None,
            actions: Vec::new(),
        }
    }

    /// Whether the plan judges a silent part as time passes. A worker that has been ready is judged with each report on
    /// it. systemd limits the start of a unit itself (TimeoutStartSec=).
    fn is_judged_by_time(&self, part: &Part, record: &PartRecord) -> bool {
        let Some(timer) = record.timer() else { return false };
        let by_report = part.worker().is_some() && record.ready_at.is_some();
        !by_report && (!K::BY_SYSTEMD || timer.is_ready())
    }

    fn with_timer<T>(&mut self, part: &Part, change: impl FnOnce(&mut SilenceTimer) -> T) -> Option<T> {
        self.parts.get_mut(part).and_then(PartRecord::timer_mut).map(change)
    }
}

#[cfg(test)]
mod tests;
