//! Starts, restarts and stops of the parts that the watchdog supervises itself.

use std::collections::BTreeMap;
use std::time::Duration;

use super::part::{FROZEN, PartRecord, PartState, StopReason};
use super::{
    ChildAction, ChildEvent, ConfigChange, KillSignal, Notice, Part, PartSignal, Plan, PlanAction, PlanKind, PlanLimits,
};
use crate::ids::{Monotonic, WorkerId};
use crate::liveness::{RestartHistory, SilenceTimer};

/// How long a start is postponed when a resource is used up.
const START_RETRY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SetPhase {
    Starting,
    Running,
    StoppingWorkers,
    StoppingDispatcher,
    Stopped,
}

/// A set of child processes.
#[derive(Debug)]
pub(crate) struct ChildSet {
    phase: SetPhase,
    /// The workers that wait for their planned restart, each with the process that has to end.
    pub(super) awaited_restarts: BTreeMap<WorkerId, u32>,
}

impl PlanKind for ChildSet {
    type Event = ChildEvent;
    type Action = ChildAction;

    const BY_SYSTEMD: bool = false;

    fn handle(plan: &mut Plan<Self>, now: Monotonic, event: ChildEvent) {
        match event {
            ChildEvent::Started(part, pid) => plan.on_started(now, &part, pid),
            ChildEvent::StartFailed(part, cause) => plan.on_exited(now, &part, cause, 0.5),
            ChildEvent::StartPostponed(part, cause) => plan.on_start_postponed(now, &part, cause),
            ChildEvent::Exited { part, cause, jitter } => plan.on_exited(now, &part, cause, jitter),
            ChildEvent::Stop if plan.kind.phase == SetPhase::Stopped => {}
            ChildEvent::Stop => plan.stop(now),
            ChildEvent::StopNow => plan.stop_now(now),
            ChildEvent::Apply(change) => plan.apply(now, change),
            ChildEvent::SocketsReplaced(parts) => plan.replace_processes(now, &parts),
        }
    }

    fn is_result(event: &ChildEvent) -> bool {
        matches!(event, ChildEvent::Started(..) | ChildEvent::StartFailed(..) | ChildEvent::StartPostponed(..))
    }

    fn advance(plan: &mut Plan<Self>, now: Monotonic) {
        plan.perform_restarts(now);
        plan.update_stand_ins(now);
        plan.start_due_parts(now);
        plan.advance_phase(now);
    }

    fn is_stopping(&self) -> bool {
        !matches!(self.phase, SetPhase::Starting | SetPhase::Running)
    }
}

impl<K: PlanKind> Plan<K> {
    pub(super) fn on_started(&mut self, now: Monotonic, part: &Part, pid: u32) {
        if let Some(record) = self.parts.get_mut(part) {
            record.pid = Some(pid);
            record.sample_requested = false;
            record.ready_at = None;
            record.state = PartState::Running(SilenceTimer::starting(now));
        }
    }

    pub(super) fn on_ready(&mut self, now: Monotonic, part: &Part) {
        if part.is_stand_in() {
            return self.on_sign_of_life(now, part);
        }
        let Some(record) = self.parts.get_mut(part) else { return };
        let Some(timer) = record.timer_mut() else { return };
        if timer.is_ready() {
            return; // a new incarnation in the same process
        }
        timer.set_ready();
        record.restart_history.ready(now);
        if record.ready_at.replace(now).is_some() {
            return; // the same, and a report had shown the gap between the incarnations
        }
        if !matches!(record.state, PartState::Running(_)) {
            return; // told to stop while it was starting
        }
        if record.restarts > 0 && !K::BY_SYSTEMD {
            let restarts = record.restarts;
            self.actions.push(PlanAction::Log(part.clone(), Notice::Recovered { restarts }));
        }
        if *part == Part::Dispatcher {
            for record in self.parts.values_mut() {
                if matches!(record.state, PartState::AwaitingDispatcher) {
                    record.state = PartState::StartDue(now);
                }
            }
        }
    }
}

impl Plan<ChildSet> {
    /// A set without any process. With the first event it starts the dispatcher.
    pub(crate) fn for_children(workers: &BTreeMap<WorkerId, Duration>, limits: PlanLimits, now: Monotonic) -> Self {
        let (dispatcher, worker) = (PartState::StartDue(now), PartState::AwaitingDispatcher);
        let kind = ChildSet { phase: SetPhase::Starting, awaited_restarts: BTreeMap::new() };
        Self::build(kind, dispatcher, worker, workers, limits, now)
    }

    fn on_exited(&mut self, now: Monotonic, part: &Part, cause: String, jitter: f64) {
        if part.is_stand_in() {
            return self.on_stand_in_exited(now, part, cause, jitter);
        }
        let stopping = self.is_stopping();
        let Some(record) = self.parts.get_mut(part) else { return };
        record.pid = None;
        if let Part::Worker(id) = part {
            self.actions.push(ChildAction::KillOrphans(id.clone()).into());
        }
        let reason = match &record.state {
            PartState::Stopping { reason, .. } => Some(*reason),
            _ => None,
        };
        if stopping || reason == Some(StopReason::Final) {
            record.state = PartState::Stopped;
            if let (Part::Worker(id), true) = (part, stopping) {
                self.actions.push(ChildAction::CloseAddress(id.clone()).into());
            }
            if !stopping {
                self.remove_stopped_worker(part);
            }
            return;
        }
        if reason == Some(StopReason::PlannedRestart) {
            record.restart_history.planned_end(now, &self.limits.restarts);
            record.state = PartState::StartDue(now);
            return;
        }
        let cause = if reason == Some(StopReason::Frozen) { FROZEN.to_owned() } else { cause };
        record.cause = Some(cause.clone());
        let notice = match record.restart_history.next_delay(now, &self.limits.restarts, jitter) {
            Some(delay) => {
                record.restarts += 1;
                record.state = PartState::StartDue(now + delay);
                Notice::Restarting { cause, delay }
            }
            None => {
                record.state = PartState::Failed;
                Notice::Failed { cause }
            }
        };
        self.actions.push(PlanAction::Log(part.clone(), notice));
    }

    /// A lack of descriptors, memory or processes passes or is repaired: the start is tried again for as long as it takes.
    fn on_start_postponed(&mut self, now: Monotonic, part: &Part, cause: String) {
        let is_wanted = !self.is_stopping()
            && matches!(self.parts.get(part), Some(PartRecord { state: PartState::Running(_), .. }));
        if !is_wanted {
            return self.on_exited(now, part, cause, 0.5);
        }
        let Some(record) = self.parts.get_mut(part) else { return };
        record.state = PartState::StartDue(now + START_RETRY);
        if record.cause.as_ref() != Some(&cause) {
            record.cause = Some(cause.clone());
            self.actions.push(PlanAction::Log(part.clone(), Notice::Restarting { cause, delay: START_RETRY }));
        }
    }

    /// Stops the set; the second call kills it.
    fn stop(&mut self, now: Monotonic) {
        if self.is_stopping() {
            return self.stop_now(now);
        }
        self.kind.phase = SetPhase::StoppingWorkers;
        self.actions.push(ChildAction::Quiesce.into());
        let workers: Vec<Part> = self.parts.keys().filter(|part| **part != Part::Dispatcher).cloned().collect();
        for part in workers {
            self.stop_part(now, &part, StopReason::Final);
            // One without a process does not exit: its clients wait no longer than those of one that does.
            if let (Some(id), Some(PartRecord { state: PartState::Stopped, .. })) =
                (part.worker(), self.parts.get(&part))
            {
                self.actions.push(ChildAction::CloseAddress(id.clone()).into());
            }
        }
    }

    fn stop_now(&mut self, now: Monotonic) {
        self.kind.phase = SetPhase::StoppingDispatcher;
        for (part, record) in &mut self.parts {
            match record.state {
                PartState::Running(_) | PartState::Stopping { .. } => {
                    let (kill_at, timer) = (now + Duration::from_secs(1), record.timer().copied());
                    record.state = PartState::Stopping { kill_at, reason: StopReason::Final, timer };
                    self.actions.push(PlanAction::Kill(part.clone(), KillSignal::Kill));
                }
                _ => record.state = PartState::Stopped,
            }
        }
    }

    /// Has a part finish its requests and exit; a part without a process is stopped already.
    pub(super) fn stop_part(&mut self, now: Monotonic, part: &Part, reason: StopReason) {
        let exit_grace = self.limits.exit_grace;
        let Some(record) = self.parts.get_mut(part) else { return };
        match &mut record.state {
            PartState::Running(timer) => {
                let (kill_at, timer) = (now + record.drain_timeout + exit_grace, Some(*timer));
                record.state = PartState::Stopping { kill_at, reason, timer };
                self.actions.push(ChildAction::Signal(part.clone(), PartSignal::Terminate).into());
            }
            PartState::Stopping { reason: known, .. } => *known = reason,
            PartState::AwaitingDispatcher
            | PartState::StartDue(_)
            | PartState::Failed
            | PartState::Stopped
            | PartState::Absent(_) => record.state = PartState::Stopped,
        }
    }

    fn start_due_parts(&mut self, now: Monotonic) {
        for (part, record) in &mut self.parts {
            if matches!(record.state, PartState::StartDue(at) if at <= now) {
                // The shell reports the result before any other event.
                record.state = PartState::Running(SilenceTimer::starting(now));
                self.actions.push(ChildAction::Start(part.clone()).into());
            }
        }
    }

    /// Takes the next step of the start or the stop once the previous one is complete.
    fn advance_phase(&mut self, now: Monotonic) {
        // A worker that has failed, or failed to start, does not delay the start: the others serve.
        let serves = self.parts.iter().any(|(part, record)| part.worker().is_some() && record.is_up());
        let settled = |(part, record): (&Part, &PartRecord)| {
            let has_failed = matches!(record.state, PartState::Failed) || serves && record.restarts > 0;
            record.is_up() || has_failed || part.is_stand_in()
        };
        let serving = self.parts[&Part::Dispatcher].is_up();
        if self.kind.phase == SetPhase::Starting && serving && self.parts.iter().all(settled) {
            self.kind.phase = SetPhase::Running;
            self.actions.push(ChildAction::AllUp.into());
        }
        if self.kind.phase == SetPhase::StoppingWorkers
            && self.parts.iter().all(|(part, record)| *part == Part::Dispatcher || record.is_down())
        {
            self.kind.phase = SetPhase::StoppingDispatcher;
            self.stop_part(now, &Part::Dispatcher, StopReason::Final);
        }
        if self.kind.phase == SetPhase::StoppingDispatcher && self.parts.values().all(PartRecord::is_down) {
            self.kind.phase = SetPhase::Stopped;
            self.actions.push(ChildAction::Finish.into());
        }
    }

    /// Applies a new configuration.
    fn apply(&mut self, now: Monotonic, change: ConfigChange) {
        self.limits = change.limits;
        let removed = |part: &&Part| part.worker().is_some_and(|id| !change.workers.contains_key(id));
        let removed: Vec<Part> = self.parts.keys().filter(removed).cloned().collect();
        if change.restart_dispatcher {
            self.stop_part(now, &Part::Dispatcher, StopReason::PlannedRestart);
        } else {
            self.actions.push(ChildAction::Signal(Part::Dispatcher, PartSignal::Reload).into());
        }
        self.replace_stand_ins(now, &change);
        for part in removed {
            self.stop_part(now, &part, StopReason::Final);
            self.remove_stopped_worker(&part);
        }
        for (id, drain_timeout) in change.workers {
            let part = Part::Worker(id.clone());
            let new = || PartRecord::new(PartState::StartDue(now), drain_timeout);
            let record = self.parts.entry(part.clone()).or_insert_with(new);
            record.drain_timeout = drain_timeout;
            if change.restart.contains(&id) {
                self.plan_restart(now, &id);
            } else if change.reload.contains(&id) {
                self.actions.push(ChildAction::Signal(part, PartSignal::Reload).into());
            } else if let PartState::Stopping { reason: reason @ StopReason::Final, .. } = &mut record.state {
                // Configured again before it ended: it is restarted once it has ended.
                *reason = StopReason::PlannedRestart;
            }
        }
        // Every reload, even of the same configuration, restarts failed parts. A part without a process that was to be
        // restarted is stopped, and starts here too.
        for record in self.parts.values_mut().filter(|record| record.is_down()) {
            record.restart_history = RestartHistory::default();
            record.state = PartState::StartDue(now);
        }
    }

    /// Restarts those that run.
    fn replace_processes(&mut self, now: Monotonic, parts: &[Part]) {
        for part in parts {
            if let Part::StandIn(id) = part {
                self.stop_stand_in(now, id);
            } else if matches!(self.parts.get(part), Some(PartRecord { state: PartState::Running(_), .. })) {
                self.stop_part(now, part, StopReason::PlannedRestart);
            }
        }
    }

    /// Forgets a worker that left the configuration, once it has stopped.
    fn remove_stopped_worker(&mut self, part: &Part) {
        if let (Some(PartRecord { state: PartState::Stopped, .. }), Part::Worker(id)) = (self.parts.get(part), part) {
            self.actions.push(ChildAction::RemoveWorker(id.clone()).into());
            self.parts.remove(part);
        }
    }
}
