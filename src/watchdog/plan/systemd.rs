//! The plan for a set of systemd units: the watchdog observes and kills, systemd starts, stops and restarts.

use std::collections::BTreeMap;
use std::time::Duration;

use super::part::{PartRecord, PartState, StopReason};
use super::{Absence, ConfigChange, Notice, Part, Plan, PlanAction, PlanLimits, SupervisorKind};
use crate::ids::{Monotonic, WorkerId};

impl Plan {
    /// A set of units in unknown states.
    pub(crate) fn for_units(workers: &BTreeMap<WorkerId, Duration>, limits: PlanLimits, now: Monotonic) -> Self {
        let unknown = PartState::Absent(Absence::Gone);
        Self::build(SupervisorKind::Systemd, unknown.clone(), unknown, workers, limits, now)
    }

    /// The parts without a process, and what is known about the reason.
    pub(crate) fn absent_parts(&self) -> impl Iterator<Item = (&Part, Absence)> {
        self.parts.iter().filter_map(|(part, record)| match record.state {
            PartState::Absent(absence) => Some((part, absence)),
            _ => None,
        })
    }

    /// The unit's process ended. systemd reports later whether that was planned.
    pub(super) fn on_unit_exited(&mut self, part: &Part, cause: String) {
        let Some(record) = self.parts.get_mut(part) else { return };
        let frozen = matches!(record.state, PartState::Stopping { reason: StopReason::Frozen, .. });
        record.pid = None;
        record.state = PartState::Absent(Absence::Gone);
        record.end_unexplained = true;
        record.cause = Some(if frozen { "frozen".to_owned() } else { cause });
    }

    /// Takes over systemd's state of a unit. A higher number of restarts means that the last end was not planned.
    pub(super) fn on_unit_state(&mut self, part: &Part, absence: Absence, restarts: u32) {
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
                Notice::Recovered { restarts }
            }
            PartState::Absent(known) => {
                *known = absence;
                match absence {
                    Absence::Failed => Notice::UnitFailed,
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
    pub(super) fn apply_to_units(&mut self, change: ConfigChange) {
        self.limits = change.limits;
        self.parts.retain(|part, _| part.worker().is_none_or(|id| change.workers.contains_key(id)));
        for (id, drain_timeout) in change.workers {
            let new = || PartRecord::new(PartState::Absent(Absence::Gone), drain_timeout);
            self.parts.entry(Part::Worker(id)).or_insert_with(new).drain_timeout = drain_timeout;
        }
    }
}
