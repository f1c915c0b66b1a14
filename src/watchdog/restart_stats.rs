//! Statistics of restarts: how many by cause, and how long detection and recovery took.
//!
//! Pure: the supervisors report what they do and observe. Stand-ins are not counted: their ends interrupt nothing.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::Part;
use crate::ids::Monotonic;
use crate::stats::Histogram;

/// Why a part was restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RestartCause {
    /// It was silent for too long, or its slot was corrupt.
    Frozen,
    /// It exited by itself.
    Exit,
    /// A signal ended it that the watchdog had not sent.
    Signal,
    /// It could not be started, or was not ready in time.
    Start,
    /// It ended; only its supervisor knows how.
    Ended,
    /// The end was planned: a reload.
    Planned,
}

impl RestartCause {
    /// The value of the metric's label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            RestartCause::Frozen => "frozen",
            RestartCause::Exit => "exit",
            RestartCause::Signal => "signal",
            RestartCause::Start => "start",
            RestartCause::Ended => "ended",
            RestartCause::Planned => "planned",
        }
    }
}

/// Durations for the parts of one role.
#[derive(Clone, Debug, Default)]
pub(super) struct RecoveryTimes {
    /// From the first unanswered probe to the verdict. The kernel reports a process's end without delay.
    pub detection: Histogram,
    /// From the verdict or the process's end until the part is ready again, for unplanned ends.
    pub recovery: Histogram,
}

/// The end of a part's process, until the part is ready again.
#[derive(Clone, Copy, Debug)]
struct Outage {
    at: Monotonic,
    cause: RestartCause,
    /// Whether the process has ended; before that, the part is only declared frozen.
    ended: bool,
    /// Whether it is known to be unplanned.
    unplanned: bool,
    /// How long it took until the part was ready again.
    recovered: Option<Duration>,
}

#[derive(Clone, Debug, Default)]
struct PartHistory {
    started: bool,
    ready: bool,
    outage: Option<Outage>,
}

/// All statistics since the start of this watchdog.
#[derive(Clone, Debug, Default)]
pub(super) struct RestartStats {
    histories: BTreeMap<Part, PartHistory>,
    /// Number of restarts of each part by cause.
    pub restarts: BTreeMap<(Part, RestartCause), u64>,
    /// Durations for the dispatcher.
    pub dispatcher: RecoveryTimes,
    /// Durations for the workers.
    pub workers: RecoveryTimes,
}

impl RestartStats {
    /// The part is declared frozen; `silent_since` is the time of the first unanswered probe, if there is one.
    pub(super) fn declared_frozen(&mut self, now: Monotonic, part: &Part, silent_since: Option<Monotonic>) {
        if part.is_stand_in() {
            return;
        }
        let history = self.histories.entry(part.clone()).or_default();
        let cause = if history.ready { RestartCause::Frozen } else { RestartCause::Start };
        let at = history.outage.filter(|pending| pending.recovered.is_none()).map_or(now, |pending| pending.at);
        history.outage = Some(Outage { at, cause, ended: false, unplanned: false, recovered: None });
        if let (RestartCause::Frozen, Some(since)) = (cause, silent_since) {
            self.times(part).detection.record(now.since(since));
        }
    }

    /// The part's process has ended, for this cause if the part was not declared frozen.
    pub(super) fn ended(&mut self, now: Monotonic, part: &Part, cause: RestartCause) {
        if part.is_stand_in() {
            return;
        }
        let history = self.histories.entry(part.clone()).or_default();
        let new = Outage { at: now, cause, ended: true, unplanned: false, recovered: None };
        let outage = match history.outage {
            Some(frozen) if !frozen.ended => Outage { ended: true, ..frozen },
            // What ended now was not the part itself but another command of its unit: still the same outage.
            Some(pending) if pending.recovered.is_none() && !pending.unplanned => pending,
            // An unfinished recovery counts from its start.
            Some(pending) if pending.recovered.is_none() => Outage { at: pending.at, ..new },
            _ => new,
        };
        (history.outage, history.ready) = (Some(outage), false);
    }

    /// The part's process is about to be started.
    pub(super) fn starting(&mut self, part: &Part) {
        if part.is_stand_in() {
            return;
        }
        let history = self.histories.entry(part.clone()).or_default();
        if std::mem::replace(&mut history.started, true) && history.outage.is_some_and(|outage| !outage.unplanned) {
            history.outage = None;
            *self.restarts.entry((part.clone(), RestartCause::Planned)).or_default() += 1;
        }
    }

    /// The part's last end was unplanned, and the part is restarted.
    pub(super) fn unplanned_restart(&mut self, part: &Part) {
        if part.is_stand_in() {
            return;
        }
        let outage = self.histories.get_mut(part).and_then(|history| history.outage.as_mut());
        let cause = outage.as_ref().map_or(RestartCause::Ended, |outage| outage.cause);
        if let Some(outage) = outage {
            outage.unplanned = true;
        }
        *self.restarts.entry((part.clone(), cause)).or_default() += 1;
        self.count_recovery(part);
    }

    /// The part can serve.
    pub(super) fn ready(&mut self, now: Monotonic, part: &Part) {
        if part.is_stand_in() {
            return;
        }
        let history = self.histories.entry(part.clone()).or_default();
        match &mut history.outage {
            Some(outage) if !outage.ended => return, // the last answer of a process that is being killed
            Some(outage) => drop(outage.recovered.get_or_insert(now.since(outage.at))),
            None => {}
        }
        history.ready = true;
        self.count_recovery(part);
    }

    /// Counts a recovery once it is both complete and known to follow an unplanned end, in whichever order.
    fn count_recovery(&mut self, part: &Part) {
        let Some(history) = self.histories.get_mut(part) else { return };
        if let Some(Outage { unplanned: true, recovered: Some(took), .. }) = history.outage {
            history.outage = None;
            self.times(part).recovery.record(took);
        }
    }

    fn times(&mut self, part: &Part) -> &mut RecoveryTimes {
        match part {
            Part::Dispatcher => &mut self.dispatcher,
            Part::Worker(_) | Part::StandIn(_) => &mut self.workers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Part = Part::Dispatcher;

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    fn serving() -> RestartStats {
        let mut stats = RestartStats::default();
        stats.starting(&PART);
        stats.ready(at(0), &PART);
        stats
    }

    fn restarts(stats: &RestartStats) -> Vec<(&'static str, u64)> {
        stats.restarts.iter().map(|((_, cause), count)| (cause.as_str(), *count)).collect()
    }

    #[test]
    fn detection_and_recovery_of_a_frozen_part_are_counted() {
        let mut stats = serving();
        stats.declared_frozen(at(3000), &PART, Some(at(1000)));
        stats.ready(at(3100), &PART); // it answers once more while it is being killed
        stats.ended(at(3200), &PART, RestartCause::Signal);
        stats.unplanned_restart(&PART);
        stats.starting(&PART);
        stats.ready(at(3300), &PART);
        assert_eq!(restarts(&stats), [("frozen", 1)]);
        let RecoveryTimes { detection, recovery } = &stats.dispatcher;
        assert_eq!((detection.count(), detection.seconds()), (1, 2.0));
        assert_eq!((recovery.count(), recovery.seconds()), (1, 0.3));
        assert_eq!(stats.workers.recovery.count(), 0);
    }

    #[test]
    fn a_recovery_lasts_until_a_start_succeeds() {
        let mut stats = serving();
        for (now, cause) in [(1000, RestartCause::Signal), (1100, RestartCause::Start), (1300, RestartCause::Exit)] {
            stats.ended(at(now), &PART, cause);
            stats.unplanned_restart(&PART);
            stats.starting(&PART);
        }
        stats.declared_frozen(at(1700), &PART, None); // not ready in time
        stats.ended(at(1800), &PART, RestartCause::Signal);
        stats.unplanned_restart(&PART);
        stats.starting(&PART);
        stats.ready(at(2000), &PART);
        assert_eq!(restarts(&stats), [("exit", 1), ("signal", 1), ("start", 2)]);
        assert_eq!((stats.dispatcher.recovery.count(), stats.dispatcher.detection.count()), (1, 0));
        assert_eq!(stats.dispatcher.recovery.seconds(), 1.0);
    }

    #[test]
    fn other_commands_of_a_unit_are_not_counted() {
        let mut stats = serving();
        stats.declared_frozen(at(2000), &PART, Some(at(0)));
        stats.ended(at(2200), &PART, RestartCause::Ended);
        stats.ended(at(2250), &PART, RestartCause::Ended);
        stats.ready(at(2400), &PART);
        stats.unplanned_restart(&PART);
        assert_eq!((restarts(&stats), stats.dispatcher.recovery.seconds()), (vec![("frozen", 1)], 0.4));
    }

    #[test]
    fn a_planned_end_is_not_a_recovery() {
        let mut stats = serving();
        stats.ended(at(1000), &PART, RestartCause::Exit);
        stats.starting(&PART);
        stats.ready(at(2000), &PART);
        assert_eq!(restarts(&stats), [("planned", 1)]);
        assert_eq!(stats.dispatcher.recovery.count(), 0);
    }

    #[test]
    fn an_end_may_be_reported_as_unplanned_after_the_recovery() {
        let mut stats = serving();
        stats.ended(at(1000), &PART, RestartCause::Ended);
        stats.ready(at(1200), &PART);
        assert_eq!(stats.dispatcher.recovery.count(), 0);
        stats.unplanned_restart(&PART);
        assert_eq!((restarts(&stats), stats.dispatcher.recovery.seconds()), (vec![("ended", 1)], 0.2));
        // Stopped and started by an operator, and then killed: the stop is not counted.
        stats.ended(at(5000), &PART, RestartCause::Ended);
        stats.ready(at(9000), &PART);
        stats.ended(at(9500), &PART, RestartCause::Ended);
        stats.ready(at(9600), &PART);
        stats.unplanned_restart(&PART);
        assert_eq!((stats.dispatcher.recovery.count(), stats.dispatcher.recovery.seconds()), (2, 0.3));
    }
}
