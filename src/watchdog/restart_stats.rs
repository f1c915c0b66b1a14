//! What the parts cost their watchdog, in numbers: restarts by cause, and how long it took to notice and to recover.
//!
//! Pure: the shells tell it what they do and learn.

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::Part;
use crate::ids::Monotonic;
use crate::stats::Histogram;

/// Why a part was started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// It was silent for too long, or its slot held nonsense.
    Frozen,
    /// It ended by itself.
    Exit,
    /// A signal ended it that the watchdog had not sent.
    Signal,
    /// It could not be started, or was not ready in time.
    Start,
    /// It ended; how, its supervisor knows.
    Ended,
    /// Somebody wanted it: a reload.
    Planned,
}

impl Cause {
    /// The label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Frozen => "frozen",
            Cause::Exit => "exit",
            Cause::Signal => "signal",
            Cause::Start => "start",
            Cause::Ended => "ended",
            Cause::Planned => "planned",
        }
    }
}

/// How long things took for parts of one kind.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// From the first question that had no answer to the verdict. A death is told by the kernel at once.
    pub detection: Histogram,
    /// From the verdict, or from the news of a death, to being ready again, of ends that nobody wanted.
    pub recovery: Histogram,
}

/// A part's end on its way to the next life.
#[derive(Clone, Copy, Debug)]
struct Fault {
    at: Monotonic,
    cause: Cause,
    ended: bool,
    unplanned: bool,
    /// How long it took to be ready again.
    recovered: Option<Duration>,
}

#[derive(Clone, Debug, Default)]
struct Past {
    started: bool,
    ready: bool,
    fault: Option<Fault>,
}

/// All numbers, over the life of this watchdog.
#[derive(Clone, Debug, Default)]
pub struct Account {
    past: BTreeMap<Part, Past>,
    /// How often each part was started again.
    pub restarts: BTreeMap<(Part, Cause), u64>,
    /// Times of the dispatcher.
    pub dispatcher: Times,
    /// Times of the workers.
    pub workers: Times,
}

impl Account {
    /// It is declared frozen, and has been silent since then, if that is why.
    pub fn accused(&mut self, now: Monotonic, part: &Part, silent_since: Option<Monotonic>) {
        let past = self.past.entry(part.clone()).or_default();
        let cause = if past.ready { Cause::Frozen } else { Cause::Start };
        let at = past.fault.filter(|pending| pending.recovered.is_none()).map_or(now, |pending| pending.at);
        past.fault = Some(Fault { at, cause, ended: false, unplanned: false, recovered: None });
        if let (Cause::Frozen, Some(since)) = (cause, silent_since) {
            self.times(part).detection.record(now.since(since));
        }
    }

    /// It has no process any more, for this cause if it was not accused.
    pub fn ended(&mut self, now: Monotonic, part: &Part, cause: Cause) {
        let past = self.past.entry(part.clone()).or_default();
        // A recovery that was not over counts from its beginning.
        let fresh = Fault { at: now, cause, ended: true, unplanned: false, recovered: None };
        let fault = match past.fault {
            Some(accused) if !accused.ended => Fault { ended: true, ..accused },
            // Whatever ran in between, such as a command of its unit, was not the part: it is still the same end.
            Some(pending) if pending.recovered.is_none() && !pending.unplanned => pending,
            Some(pending) if pending.recovered.is_none() => Fault { at: pending.at, ..fresh },
            _ => fresh,
        };
        (past.fault, past.ready) = (Some(fault), false);
    }

    /// Its process is about to be started.
    pub fn starting(&mut self, part: &Part) {
        let past = self.past.entry(part.clone()).or_default();
        if std::mem::replace(&mut past.started, true) && past.fault.is_some_and(|fault| !fault.unplanned) {
            past.fault = None;
            *self.restarts.entry((part.clone(), Cause::Planned)).or_default() += 1;
        }
    }

    /// Nobody had wanted its last end, and it is started again.
    pub fn unplanned(&mut self, part: &Part) {
        let fault = self.past.get_mut(part).and_then(|past| past.fault.as_mut());
        let cause = fault.as_ref().map_or(Cause::Ended, |fault| fault.cause);
        if let Some(fault) = fault {
            fault.unplanned = true;
        }
        *self.restarts.entry((part.clone(), cause)).or_default() += 1;
        self.settle(part);
    }

    /// It can serve.
    pub fn ready(&mut self, now: Monotonic, part: &Part) {
        let past = self.past.entry(part.clone()).or_default();
        match &mut past.fault {
            Some(fault) if !fault.ended => return, // the last breath of who is being killed
            Some(fault) => drop(fault.recovered.get_or_insert(now.since(fault.at))),
            None => {}
        }
        past.ready = true;
        self.settle(part);
    }

    /// Counts a recovery that is over and was one: each of both may be heard of first.
    fn settle(&mut self, part: &Part) {
        let Some(past) = self.past.get_mut(part) else { return };
        if let Some(Fault { unplanned: true, recovered: Some(took), .. }) = past.fault {
            past.fault = None;
            self.times(part).recovery.record(took);
        }
    }

    fn times(&mut self, part: &Part) -> &mut Times {
        match part {
            Part::Dispatcher => &mut self.dispatcher,
            Part::Worker(_) => &mut self.workers,
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

    fn serving() -> Account {
        let mut account = Account::default();
        account.starting(&PART);
        account.ready(at(0), &PART);
        account
    }

    fn restarts(account: &Account) -> Vec<(&'static str, u64)> {
        account.restarts.iter().map(|((_, cause), count)| (cause.as_str(), *count)).collect()
    }

    #[test]
    fn a_frozen_part_is_noticed_and_recovers() {
        let mut account = serving();
        account.accused(at(3000), &PART, Some(at(1000)));
        account.ready(at(3100), &PART); // it answers once more while it is being killed
        account.ended(at(3200), &PART, Cause::Signal);
        account.unplanned(&PART);
        account.starting(&PART);
        account.ready(at(3300), &PART);
        assert_eq!(restarts(&account), [("frozen", 1)]);
        let Times { detection, recovery } = &account.dispatcher;
        assert_eq!((detection.count(), detection.seconds()), (1, 2.0));
        assert_eq!((recovery.count(), recovery.seconds()), (1, 0.3));
        assert_eq!(account.workers.recovery.count(), 0);
    }

    #[test]
    fn a_recovery_lasts_until_it_succeeds() {
        let mut account = serving();
        for (now, cause) in [(1000, Cause::Signal), (1100, Cause::Start), (1300, Cause::Exit)] {
            account.ended(at(now), &PART, cause);
            account.unplanned(&PART);
            account.starting(&PART);
        }
        account.accused(at(1700), &PART, None); // not ready in time
        account.ended(at(1800), &PART, Cause::Signal);
        account.unplanned(&PART);
        account.starting(&PART);
        account.ready(at(2000), &PART);
        assert_eq!(restarts(&account), [("exit", 1), ("signal", 1), ("start", 2)]);
        assert_eq!((account.dispatcher.recovery.count(), account.dispatcher.detection.count()), (1, 0));
        assert_eq!(account.dispatcher.recovery.seconds(), 1.0);
    }

    #[test]
    fn what_runs_between_two_lives_of_a_unit_is_neither() {
        let mut account = serving();
        account.accused(at(2000), &PART, Some(at(0)));
        account.ended(at(2200), &PART, Cause::Ended);
        account.ended(at(2250), &PART, Cause::Ended);
        account.ready(at(2400), &PART);
        account.unplanned(&PART);
        assert_eq!((restarts(&account), account.dispatcher.recovery.seconds()), (vec![("frozen", 1)], 0.4));
    }

    #[test]
    fn what_somebody_wanted_is_no_recovery() {
        let mut account = serving();
        account.ended(at(1000), &PART, Cause::Exit);
        account.starting(&PART);
        account.ready(at(2000), &PART);
        assert_eq!(restarts(&account), [("planned", 1)]);
        assert_eq!(account.dispatcher.recovery.count(), 0);
    }

    #[test]
    fn that_it_was_unplanned_may_be_heard_of_later() {
        let mut account = serving();
        account.ended(at(1000), &PART, Cause::Ended);
        account.ready(at(1200), &PART);
        assert_eq!(account.dispatcher.recovery.count(), 0);
        account.unplanned(&PART);
        assert_eq!((restarts(&account), account.dispatcher.recovery.seconds()), (vec![("ended", 1)], 0.2));
        // Stopped, much later started by somebody, and then killed: the stop was no fault.
        account.ended(at(5000), &PART, Cause::Ended);
        account.ready(at(9000), &PART);
        account.ended(at(9500), &PART, Cause::Ended);
        account.ready(at(9600), &PART);
        account.unplanned(&PART);
        assert_eq!((account.dispatcher.recovery.count(), account.dispatcher.recovery.seconds()), (2, 0.3));
    }
}
