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
mod stand_in;
mod systemd;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{Monotonic, PoolName, WorkerId};
use crate::liveness::SilenceTimer;
pub(crate) use messages::{
    Absence, ConfigChange, Notice, Part, PartSignal, PlanAction, PlanEvent, PlanLimits, WorkerLiveness,
};
pub(crate) use part::PartStatus;
use part::{PartRecord, PartState};

/// What starts and stops the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SupervisorKind {
    Watchdog,
    Systemd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SetPhase {
    Starting,
    Running,
    StoppingWorkers,
    StoppingDispatcher,
    Stopped,
}

/// The state of the set, as the watchdog knows it.
#[derive(Debug)]
pub(crate) struct Plan {
    parts: BTreeMap<Part, PartRecord>,
    limits: PlanLimits,
    supervisor: SupervisorKind,
    phase: SetPhase,
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
    actions: Vec<PlanAction>,
}

impl Plan {
    /// A set without any process. The first action starts the dispatcher.
    pub(crate) fn new(
        workers: &BTreeMap<WorkerId, Duration>,
        limits: PlanLimits,
        now: Monotonic,
    ) -> (Self, Vec<PlanAction>) {
        let (dispatcher, worker) = (PartState::StartDue(now), PartState::AwaitingDispatcher);
        let mut plan = Self::build(SupervisorKind::Watchdog, dispatcher, worker, workers, limits, now);
        let actions = plan.handle(now, PlanEvent::Tick);
        (plan, actions)
    }

    /// Processes an event and returns what to do.
    pub(crate) fn handle(&mut self, now: Monotonic, event: PlanEvent) -> Vec<PlanAction> {
        match &event {
            PlanEvent::Sampled(..) | PlanEvent::StartFailed(..) | PlanEvent::StartPostponed(..) => {}
            PlanEvent::Started(..) if self.supervisor == SupervisorKind::Watchdog => {}
            _ => self.last_external_event = self.last_external_event.max(now),
        }
        // The events that arrived meanwhile follow these three, and no part is evaluated before they are processed: one
        // of them may be the answer to a probe of a watchdog that was late.
        let ends_batch =
            !matches!(event, PlanEvent::WatchdogLate(_) | PlanEvent::MachineResumed | PlanEvent::ProbeSent);
        let by_systemd = self.supervisor == SupervisorKind::Systemd;
        match event {
            PlanEvent::Started(part, pid) => self.on_started(now, &part, pid),
            PlanEvent::StartFailed(part, cause) => self.on_exited(now, &part, cause, 0.5),
            PlanEvent::StartPostponed(part, cause) => self.on_start_postponed(now, &part, cause),
            PlanEvent::Ready(part) => self.on_ready(now, &part),
            PlanEvent::Exited { part, cause, .. } if by_systemd => self.on_unit_exited(&part, cause),
            PlanEvent::Exited { part, cause, jitter } => self.on_exited(now, &part, cause, jitter),
            PlanEvent::UnitState { part, absence, restarts } => self.on_unit_state(&part, absence, restarts),
            PlanEvent::ProbeSent => {
                self.probe_sent_at.get_or_insert(now);
                self.with_timer(&Part::Dispatcher, |timer| timer.probe_sent(now));
            }
            PlanEvent::ProbeNotSent => {
                self.probe_sent_at = None;
                self.with_timer(&Part::Dispatcher, SilenceTimer::answered); // as far as the watchdog can know
            }
            PlanEvent::Report(workers) => self.on_report(now, workers),
            PlanEvent::Observed(workers) => self.judge_workers(now, now, self.excluded, workers),
            PlanEvent::Sampled(part, sample) => self.on_sampled(now, &part, sample),
            PlanEvent::WatchdogLate(time) => self.exclude_time(now, time),
            PlanEvent::MachineResumed => self.reset_all(now),
            PlanEvent::Tick => {}
            PlanEvent::Stop if self.phase == SetPhase::Stopped => {}
            PlanEvent::Stop => self.stop(now),
            PlanEvent::StopNow => self.stop_now(now),
            PlanEvent::Apply(change) if by_systemd => self.apply_to_units(change),
            PlanEvent::Apply(change) => self.apply(now, change),
            PlanEvent::SocketsReplaced(workers) => self.replace_processes(now, &workers),
        }
        if ends_batch {
            self.update_stand_ins(now);
            self.check_deadlines(now);
            self.advance(now);
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
        !matches!(self.phase, SetPhase::Starting | SetPhase::Running)
    }

    fn build(
        supervisor: SupervisorKind,
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
            supervisor,
            phase: match supervisor {
                SupervisorKind::Watchdog => SetPhase::Starting,
                SupervisorKind::Systemd => SetPhase::Running,
            },
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
        !by_report && (self.supervisor == SupervisorKind::Watchdog || timer.is_ready())
    }

    fn with_timer<T>(&mut self, part: &Part, change: impl FnOnce(&mut SilenceTimer) -> T) -> Option<T> {
        self.parts.get_mut(part).and_then(PartRecord::timer_mut).map(change)
    }
}

#[cfg(test)]
mod tests;
