//! What happens next to a warm process. Pure.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use crate::config::Replacing;

/// How far the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// There is none, and nothing is left of the last one.
    Absent,
    /// It has failed: what is left of it has to be killed.
    Lost,
    /// It has to become ready.
    Starting,
    /// It is ready, and waits for a request.
    Idle,
    /// A request has it, or it finishes an interrupted one.
    InUse,
    /// It is pinged.
    Pinged,
    /// It is about to become ready, or to be replaced by one that is.
    InCheck,
}

impl Stage {
    pub(super) fn readiness(self) -> HandlerReadiness {
        match self {
            Stage::Idle | Stage::InUse => HandlerReadiness::Ready,
            Stage::Pinged => HandlerReadiness::Pinged,
            Stage::Absent | Stage::Lost | Stage::Starting | Stage::InCheck => HandlerReadiness::Starting,
        }
    }
}

/// Whether a worker may get a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandlerReadiness {
    /// Its process takes one at once, or as soon as the one before is over.
    Ready,
    /// Its process is pinged, and may be frozen.
    Pinged,
    /// Its process has to load.
    Starting,
}

/// What the next step depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    pub stage: Stage,
    /// Processes that a successor has replaced have to end.
    pub has_retired: bool,
    /// When a successor is to start; `None`: no replacement is wanted.
    pub replacement: Option<Replacing>,
    /// How often an idle process is pinged.
    pub ping: Option<Duration>,
    /// The end of the last request, or of the last ping.
    pub last_sign: Instant,
}

/// The next step of the task that keeps the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeeperStep {
    /// Let the replaced processes exit.
    EndRetired,
    /// Clean up, start a process, and wait until it is ready, whatever of that is still to do.
    BringUp,
    /// Start a successor.
    Replace(Replacing),
    Ping,
    /// Wait for a change, until this time.
    Wait(Option<Instant>),
}

impl Situation {
    pub(super) fn next_step(&self, now: Instant) -> KeeperStep {
        if self.has_retired {
            return KeeperStep::EndRetired;
        }
        match (self.stage, self.replacement) {
            (Stage::Absent | Stage::Lost | Stage::Starting, _) => KeeperStep::BringUp,
            (Stage::Idle, Some(replacing)) => KeeperStep::Replace(replacing),
            (Stage::InUse, Some(Replacing::Before)) => KeeperStep::Replace(Replacing::Before),
            (Stage::InUse | Stage::Pinged | Stage::InCheck, _) => KeeperStep::Wait(None),
            (Stage::Idle, None) => match self.ping.map(|interval| self.last_sign + interval) {
                Some(due) if due <= now => KeeperStep::Ping,
                due => KeeperStep::Wait(due),
            },
        }
    }
}

/// When a process that has to become ready must be: before the watchdog ends the worker, since an error that quotes the
/// process helps more.
pub(super) fn ready_by(since: Instant, start_timeout: Duration) -> Instant {
    since + start_timeout.mul_f64(0.9)
}

/// What a ping without a response means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PingVerdict {
    Frozen,
    /// This process did not run itself, or a debugger holds the other: the time does not count.
    Excused,
}

/// The verdict on a process that has not responded by `due`. `is_traced`: a debugger holds it.
pub(super) fn ping_verdict(due: Instant, now: Instant, limit: Duration, is_traced: bool) -> PingVerdict {
    let late = now.saturating_duration_since(due);
    if is_traced || late > limit / 4 { PingVerdict::Excused } else { PingVerdict::Frozen }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn situation(stage: Stage) -> Situation {
        Situation { stage, has_retired: false, replacement: None, ping: None, last_sign: Instant::now() }
    }

    #[test]
    fn process_that_is_not_ready_is_brought_up_before_it_is_replaced_or_pinged() {
        let now = Instant::now();
        for stage in [Stage::Absent, Stage::Lost, Stage::Starting] {
            let wanted =
                Situation { replacement: Some(Replacing::Before), ping: Some(Duration::ZERO), ..situation(stage) };
            assert_eq!(wanted.next_step(now), KeeperStep::BringUp);
            assert_eq!(stage.readiness(), HandlerReadiness::Starting);
        }
    }

    #[test]
    fn successor_starts_during_a_request_unless_the_old_process_must_end_first() {
        let now = Instant::now();
        let step = |stage, replacing| Situation { replacement: Some(replacing), ..situation(stage) }.next_step(now);
        assert_eq!(step(Stage::InUse, Replacing::Before), KeeperStep::Replace(Replacing::Before));
        assert_eq!(step(Stage::InUse, Replacing::After), KeeperStep::Wait(None));
        assert_eq!(step(Stage::Idle, Replacing::After), KeeperStep::Replace(Replacing::After));
        let retired = Situation { has_retired: true, ..situation(Stage::InUse) };
        assert_eq!(retired.next_step(now), KeeperStep::EndRetired);
    }

    #[test]
    fn only_a_process_that_has_been_idle_for_the_interval_is_pinged() {
        let interval = Duration::from_secs(5);
        let idle = Situation { ping: Some(interval), ..situation(Stage::Idle) };
        let due = idle.last_sign + interval;
        assert_eq!(idle.next_step(idle.last_sign), KeeperStep::Wait(Some(due)));
        assert_eq!(idle.next_step(due), KeeperStep::Ping);
        assert_eq!(Situation { stage: Stage::InUse, ..idle }.next_step(due), KeeperStep::Wait(None));
        assert_eq!(situation(Stage::Idle).next_step(due), KeeperStep::Wait(None));
    }

    #[test]
    fn process_is_not_blamed_for_time_in_which_it_could_not_respond() {
        let (due, limit) = (Instant::now(), Duration::from_secs(4));
        assert_eq!(ping_verdict(due, due, limit, false), PingVerdict::Frozen);
        assert_eq!(ping_verdict(due, due + limit / 4, limit, false), PingVerdict::Frozen);
        assert_eq!(ping_verdict(due, due + limit / 2, limit, false), PingVerdict::Excused);
        assert_eq!(ping_verdict(due, due, limit, true), PingVerdict::Excused);
    }
}
