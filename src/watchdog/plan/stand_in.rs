//! Stand-ins: while a worker is down, a small process serves its address and sends its clients back to the dispatcher.
//!
//! A stand-in is a part with verdicts like all others, and its repeated READY=1 is its sign of life. It does not accept
//! while a worker serves (`worker/stand_in.rs`), so the two may overlap.

use std::time::Duration;

use super::part::{PartRecord, PartState, StopReason};
use super::{ChildSet, ConfigChange, KillSignal, Notice, Part, Plan, PlanAction, PlanKind};
use crate::ids::{Monotonic, WorkerId};
use crate::liveness::RestartLimits;

/// A worker that is down for longer gets a stand-in. An ordinary restart is faster.
const STAND_IN_AFTER: Duration = Duration::from_millis(100);

/// Within one `worker_timeout` a stand-in sends so many READY=1, see `worker/stand_in.rs`.
const SIGNS_OF_LIFE: u32 = 4;

/// The longest delay of a stand-in's restart. It is never given up.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);

impl Plan<ChildSet> {
    /// Starts a stand-in for each worker that is down for long, and stops those of workers that are ready.
    pub(super) fn update_stand_ins(&mut self, now: Monotonic) {
        if self.is_stopping() {
            return;
        }
        let stand_ins: Vec<WorkerId> = self.parts.keys().filter_map(stand_in_of).cloned().collect();
        for id in stand_ins {
            if !self.parts.get(&Part::Worker(id.clone())).is_some_and(is_down) {
                self.stop_stand_in(now, &id);
            }
        }
        let wanted = |(part, record): (&Part, &PartRecord)| {
            let id = part.worker()?;
            let long = match &record.state {
                PartState::StartDue(at) => now + STAND_IN_AFTER < *at,
                PartState::Failed => true,
                _ => self.stand_in_due(part, record).is_some_and(|due| due <= now),
            };
            long.then(|| Part::StandIn(id.clone()))
        };
        let wanted: Vec<Part> = self.parts.iter().filter_map(wanted).collect();
        for part in wanted {
            let new = || PartRecord::new(PartState::StartDue(now), Duration::ZERO);
            self.parts.entry(part).or_insert_with(new);
        }
    }

    pub(super) fn on_stand_in_exited(&mut self, now: Monotonic, part: &Part, cause: String, jitter: f64) {
        let stopping = self.is_stopping();
        let Some(record) = self.parts.get_mut(part) else { return };
        record.pid = None;
        match &record.state {
            _ if stopping => record.state = PartState::Stopped,
            // If the worker is down again, it gets another one at once.
            PartState::Stopping { reason: StopReason::Final, .. } => drop(self.parts.remove(part)),
            state => {
                let is_frozen = matches!(state, PartState::Stopping { .. });
                let cause = if is_frozen { "frozen".to_owned() } else { cause };
                let limits = RestartLimits { max: u32::MAX, delay_max: RETRY_DELAY_MAX, ..self.limits.restarts };
                let delay = record.restart_history.next_delay(now, &limits, jitter).unwrap_or(RETRY_DELAY_MAX);
                record.state = PartState::StartDue(now + delay);
                self.actions.push(PlanAction::Log(part.clone(), Notice::Restarting { cause, delay }));
            }
        }
    }

    /// A new configuration is in force. The stand-ins of workers that are still down start again with it; those of
    /// workers that it has not are killed, because another part may bind their addresses.
    pub(super) fn replace_stand_ins(&mut self, now: Monotonic, change: &ConfigChange) {
        let stand_ins: Vec<WorkerId> = self.parts.keys().filter_map(stand_in_of).cloned().collect();
        for id in stand_ins {
            self.stop_stand_in(now, &id);
            if !change.workers.contains_key(&id) {
                self.actions.push(PlanAction::Kill(Part::StandIn(id), KillSignal::Kill));
            }
        }
    }

    /// Has a stand-in close the address and finish its connections.
    pub(super) fn stop_stand_in(&mut self, now: Monotonic, id: &WorkerId) {
        let part = Part::StandIn(id.clone());
        self.stop_part(now, &part, StopReason::Final);
        if self.parts.get(&part).is_some_and(|record| matches!(record.state, PartState::Stopped)) {
            self.parts.remove(&part);
        }
    }
}

impl<K: PlanKind> Plan<K> {
    /// When a worker that is being restarted gets a stand-in because it is not ready by then.
    pub(super) fn stand_in_due(&self, part: &Part, record: &PartRecord) -> Option<Monotonic> {
        let PartState::Running(timer) = &record.state else { return None };
        let id = part.worker()?;
        // Before the first start, and after a planned end, there is no client.
        let is_restarting = record.restarts > 0 && record.ready_at.is_none() && !timer.is_ready();
        // A delayed unit serves its address itself, and that of a failed one is closed.
        let possible = is_restarting && !K::BY_SYSTEMD && !self.is_stopping();
        if !possible || self.parts.contains_key(&Part::StandIn(id.clone())) {
            return None;
        }
        timer.since().map(|since| since + STAND_IN_AFTER)
    }

    /// The stand-in has sent READY=1, and owes the next one when that is due.
    pub(super) fn on_sign_of_life(&mut self, now: Monotonic, part: &Part) {
        let next = now + self.limits.worker_timeout / SIGNS_OF_LIFE;
        self.with_timer(part, |timer| {
            timer.set_ready();
            timer.probe_sent(next);
        });
    }
}

/// Whether the worker has no process that serves, and is restarted or given up. To evaluate for workers that have a
/// stand-in.
fn is_down(worker: &PartRecord) -> bool {
    match &worker.state {
        PartState::StartDue(_) | PartState::Failed | PartState::Stopping { reason: StopReason::Frozen, .. } => true,
        PartState::Running(timer) => !timer.is_ready(),
        _ => false,
    }
}

fn stand_in_of(part: &Part) -> Option<&WorkerId> {
    match part {
        Part::StandIn(id) => Some(id),
        Part::Dispatcher | Part::Worker(_) => None,
    }
}
