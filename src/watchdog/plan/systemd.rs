//! The plan of a watchdog that only watches: systemd starts and stops the parts, and starts again what has died.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Absence, Action, Bounds, Change, Keeper, Notice, Part, Plan, Record, SetPhase, Stage};
use crate::ids::{Monotonic, WorkerId};

impl Plan {
    /// A set of units of which nothing is known yet.
    pub fn observing(workers: &BTreeMap<WorkerId, Duration>, bounds: Bounds, now: Monotonic) -> Self {
        let away = |drain| Record::new(Stage::Away(Absence::Gone), drain);
        let mut parts = BTreeMap::from([(Part::Dispatcher, away(Duration::ZERO))]);
        for (id, drain) in workers {
            parts.insert(Part::Worker(id.clone()), away(*drain));
        }
        let (keeper, era, lost) = (Keeper::Systemd, SetPhase::Running, Duration::ZERO);
        let (asked, heard, counted, actions) = (None, now, None, Vec::new());
        Self { parts, bounds, keeper, era, amnesty: now, lost, asked, heard, counted, actions }
    }

    /// The parts without a process, and what is known of their absence.
    pub fn absent_parts(&self) -> impl Iterator<Item = (&Part, Absence)> {
        self.parts.iter().filter_map(|(part, record)| match record.stage {
            Stage::Away(absence) => Some((part, absence)),
            _ => None,
        })
    }

    /// Its process has gone. Whether somebody wanted it so is known when systemd has been asked.
    pub(super) fn left(&mut self, part: &Part, how: String) {
        let Some(record) = self.parts.get_mut(part) else { return };
        let frozen = matches!(record.stage, Stage::Going(_, super::StopReason::Frozen));
        record.pid = None;
        record.stage = Stage::Away(Absence::Gone);
        record.unexplained = true;
        record.cause = Some(if frozen { "frozen".to_owned() } else { how });
    }

    /// What systemd says of a part, and how often it has started it by itself: that it did so once more means that
    /// the last end was not wanted.
    pub(super) fn told(&mut self, part: &Part, absence: Absence, restarts: u32) {
        let Some(record) = self.parts.get_mut(part) else { return };
        let again = restarts > record.count;
        record.count = restarts;
        let telling = match &mut record.stage {
            Stage::Running(_) if std::mem::take(&mut record.unexplained) => {
                if !again {
                    // Stopped and started by somebody.
                    record.cause = None;
                    return;
                }
                Notice::Ready { restarts }
            }
            Stage::Away(known) if *known != absence => {
                *known = absence;
                match absence {
                    Absence::Failed => Notice::GivenUp,
                    // Who has not been seen running is not being stopped.
                    Absence::Stopped if record.cause.take().is_some() => Notice::Stopped,
                    Absence::Stopped | Absence::Gone => return,
                }
            }
            _ => return,
        };
        self.actions.push(Action::Tell(part.clone(), telling));
    }

    /// The units are brought in line by whoever published the configuration.
    pub(super) fn take_over(&mut self, change: Change) {
        self.bounds = change.bounds;
        self.parts.retain(|part, _| part.worker().is_none_or(|id| change.workers.contains_key(id)));
        for (id, drain) in change.workers {
            let new = || Record::new(Stage::Away(Absence::Gone), drain);
            self.parts.entry(Part::Worker(id)).or_insert_with(new).drain = drain;
        }
    }
}
