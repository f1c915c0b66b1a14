//! The plan for a set of systemd units: the watchdog observes and kills, systemd starts, stops and restarts.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use super::part::{FROZEN, PartRecord, PartState, StopReason};
use super::{Absence, Notice, Part, Plan, PlanAction, PlanKind, PlanLimits, UnitEvent};
use crate::ids::{Monotonic, WorkerId};

/// A set of systemd units.
#[derive(Debug)]
pub(crate) struct UnitSet;

impl PlanKind for UnitSet {
    type Event = UnitEvent;
    /// systemd starts, stops and cleans up.
    type Action = Infallible;

    const BY_SYSTEMD: bool = true;

    fn handle(plan: &mut Plan<Self>, now: Monotonic, event: UnitEvent) {
        match event {
            UnitEvent::Found(part, pid) => plan.on_started(now, &part, pid),
            UnitEvent::Ended(part) => plan.on_unit_ended(&part),
            UnitEvent::State { part, absence, restarts, cause } => plan.on_unit_state(&part, absence, restarts, cause),
            UnitEvent::Apply(workers, limits) => plan.apply_to_units(workers, limits),
        }
    }
}

impl Plan<UnitSet> {
    /// A set of units in unknown states.
    pub(crate) fn for_units(workers: &BTreeMap<WorkerId, Duration>, limits: PlanLimits, now: Monotonic) -> Self {
        let unknown = PartState::Absent(Absence::Gone);
        Self::build(UnitSet, unknown.clone(), unknown, workers, limits, now)
    }

    /// The parts without a process, and what is known about the reason.
    pub(crate) fn absent_parts(&self) -> impl Iterator<Item = (&Part, Absence)> {
        self.parts.iter().filter_map(|(part, record)| match record.state {
            PartState::Absent(absence) => Some((part, absence)),
            _ => None,
        })
    }

    /// The unit's process ended. systemd reports later whether that was planned.
    fn on_unit_ended(&mut self, part: &Part) {
        let Some(record) = self.parts.get_mut(part) else { return };
        let frozen = matches!(record.state, PartState::Stopping { reason: StopReason::Frozen, .. });
        record.pid = None;
        record.state = PartState::Absent(Absence::Gone);
        record.end_unexplained = true;
        record.cause = Some(if frozen { FROZEN } else { "its process has ended" }.to_owned());
    }

    /// Takes over systemd's state of a unit. A higher number of restarts means that the last end was not planned.
    fn on_unit_state(&mut self, part: &Part, absence: Absence, restarts: u32, cause: Option<String>) {
        let Some(record) = self.parts.get_mut(part) else { return };
        if matches!(record.state, PartState::Absent(known) if known == absence) {
            return; // a restart counts when the part runs again
        }
        let was_restarted = restarts > record.restarts;
        record.restarts = restarts;
        let notice = match &mut record.state {
            PartState::Running(_) if std::mem::take(&mut record.end_unexplained) => {
                if !was_restarted {
                    // Stopped and started by an operator.
                    record.cause = None;
                    return;
                }
                // Of a part that the watchdog has killed it knows more.
                if record.cause.as_deref() != Some(FROZEN) {
                    record.cause = cause.or_else(|| record.cause.take());
                }
                Notice::UnitRestarted { restarts }
            }
            PartState::Absent(known) => {
                *known = absence;
                match absence {
                    Absence::Failed => {
                        let cause = cause.unwrap_or_else(|| "its start failed".to_owned());
                        record.cause = Some(cause.clone());
                        Notice::UnitFailed { cause }
                    }
                    // A unit that was never seen running was not stopped now.
                    Absence::Stopped if record.cause.take().is_some() => Notice::Stopped,
                    Absence::Stopped | Absence::Gone => return,
                }
            }
            _ => return,
        };
        self.actions.push(PlanAction::Log(part.clone(), notice));
    }

    /// Takes over the limits and the list of workers; the command that published the configuration changes the units.
    fn apply_to_units(&mut self, workers: BTreeMap<WorkerId, Duration>, limits: PlanLimits) {
        self.limits = limits;
        self.parts.retain(|part, _| part.worker().is_none_or(|id| workers.contains_key(id)));
        for (id, drain_timeout) in workers {
            let new = || PartRecord::new(PartState::Absent(Absence::Gone), drain_timeout);
            self.parts.entry(Part::Worker(id)).or_insert_with(new).drain_timeout = drain_timeout;
        }
    }
}
