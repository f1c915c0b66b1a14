//! Who is declared frozen, and who is excused.

use std::fmt::{self, Write};
use std::time::Duration;

use super::{Action, Keeper, Notice, Order, Part, Plan, Record, Sign, Stage, StopReason};
use crate::ids::Monotonic;
use crate::liveness::{ProcessSample, SilenceTimer, Timeouts, Verdict};

impl Plan {
    /// Workers are judged here and nowhere else: by what the dispatcher says now. While it says nothing, their
    /// silence may be its own; and what it was late itself, or held by somebody, is nobody else's.
    pub(super) fn report(&mut self, now: Monotonic, signs: Vec<Sign>) {
        let asked = self.asked.take().unwrap_or(now);
        if !matches!(&self.parts[&Part::Dispatcher].stage, Stage::Running(pulse) if pulse.is_ready()) {
            return; // of one on its way out, of whom it is not known any more what it missed
        }
        if matches!(self.parts[&Part::Dispatcher].plight, Some(Verdict::Suspended(_))) {
            self.forgive(now);
        }
        let mut late = Duration::ZERO;
        self.with_pulse(&Part::Dispatcher, |pulse| {
            late = pulse.silence(now);
            pulse.answered();
        });
        if late > self.bounds.worker_timeout / 4 {
            self.lost += late;
            for record in self.parts.values_mut() {
                if let Stage::Running(pulse) = &mut record.stage
                    && record.ready.is_some()
                {
                    pulse.excuse(late);
                }
            }
        }
        let (amnesty, lost) = (self.amnesty, std::mem::take(&mut self.lost));
        for sign in signs {
            let part = Part::Worker(sign.worker);
            let Some(record) = self.parts.get_mut(&part) else { continue };
            // The report may have been written about the process before it.
            let Some(ready) = record.ready.filter(|ready| *ready <= asked) else { continue };
            let owing = |since: Monotonic| (since.max(amnesty).max(ready) + lost).min(now);
            if let Stage::Running(pulse) = &mut record.stage {
                match (sign.starting_since, sign.silent_since) {
                    (Some(since), _) => pulse.begins_again(owing(since)),
                    // What it was asked while it started it owes from now on.
                    _ if !pulse.is_ready() => {
                        pulse.ready();
                        record.ready = Some(now);
                    }
                    (None, Some(since)) => pulse.silent(now, owing(since), sign.ticks),
                    (None, None) => pulse.answered(),
                }
            }
            match self.parts.get(&part) {
                Some(Record { stage: Stage::Running(_), .. }) if sign.corrupt => {
                    self.accuse(now, &part, "its slot holds what no worker writes".into());
                }
                _ => self.consider(now, &part),
            }
        }
    }

    /// Every deadline moves by what was lost. After a long loss everybody begins anew: what was asked meanwhile
    /// may only now have reached them. Not after a short one, else a watchdog that is late often never accuses.
    pub(super) fn excuse(&mut self, now: Monotonic, time: Duration) {
        let time = self.counted.map_or(time, |counted| time.min(now.since(counted)));
        self.lost += time;
        if time > self.bounds.worker_timeout / 4 {
            self.pardon(now);
        }
        for record in self.parts.values_mut() {
            match &mut record.stage {
                Stage::Running(pulse) => pulse.excuse(time),
                Stage::Going(at, _) => *at = *at + time,
                _ => {}
            }
        }
    }

    /// All begin anew: after a suspend, in which the clock stood still, the machine stands up part by part.
    pub(super) fn forgive(&mut self, now: Monotonic) {
        self.pardon(now);
        for record in self.parts.values_mut() {
            if let Stage::Running(pulse) = &mut record.stage {
                pulse.forgive(now);
            }
        }
    }

    /// Nobody is blamed for what was before; what is lost counts from here.
    fn pardon(&mut self, now: Monotonic) {
        (self.amnesty, self.lost) = (now, Duration::ZERO);
    }

    /// Judges the dispatcher and those that start, kills who does not go, starts who is due.
    pub(super) fn judge(&mut self, now: Monotonic) {
        let due: Vec<Part> = self.parts.keys().cloned().collect();
        for part in due {
            let Some(record) = self.parts.get_mut(&part) else { continue };
            if !matches!(record.stage, Stage::Running(_)) {
                record.plight = None;
            }
            match &mut record.stage {
                Stage::Running(_) if record.ready.is_some() && part != Part::Dispatcher => {} // see `report`
                // See `answers_for`.
                Stage::Running(pulse) if self.keeper == Keeper::Systemd && !pulse.is_ready() => {}
                Stage::Running(_) => self.consider(now, &part),
                Stage::Waiting(at) if *at <= now => {
                    // The shell answers with Started or StartFailed before anything else happens.
                    record.stage = Stage::Running(SilenceTimer::born(now));
                    self.actions.push(Action::Start(part));
                }
                Stage::Going(at, why) if *at <= now => {
                    // Only the kernel can keep a killed process now; it is asked again after a while.
                    *at = now + Duration::from_secs(1);
                    if *why != StopReason::Frozen {
                        self.actions.push(Action::Tell(part.clone(), Notice::Overdue));
                    }
                    self.actions.push(Action::Order(part, Order::Kill));
                }
                _ => {}
            }
        }
    }

    /// The shell has looked at its process.
    pub(super) fn observed(&mut self, now: Monotonic, part: &Part, look: ProcessSample) {
        // Who performs actions hears nobody meanwhile: however long that took, by its own work or because the machine
        // did not run it, it was late with this look.
        let lost = now.since(self.heard);
        if !lost.is_zero() {
            self.excuse(now, lost);
            (self.heard, self.counted) = (now, Some(now));
        }
        if let Some(record) = self.parts.get_mut(part) {
            record.looking = false;
        }
        self.with_pulse(part, |pulse| pulse.observe(now, look));
        self.consider(now, part);
    }

    /// Nobody is accused without a look at him in this very moment.
    fn consider(&mut self, now: Monotonic, part: &Part) {
        let patience = self.patience(part);
        let Some(record) = self.parts.get_mut(part) else { return };
        let Stage::Running(pulse) = &record.stage else { return };
        if pulse.wants_look(now, patience) {
            if !std::mem::replace(&mut record.looking, true) {
                self.actions.push(Action::Observe(part.clone()));
            }
            return;
        }
        let plight = match pulse.verdict(now, patience) {
            Verdict::Frozen => {
                let why = accusation(pulse, now, patience);
                return self.accuse(now, part, why);
            }
            verdict @ (Verdict::Starved | Verdict::Suspended(_)) => Some(verdict),
            _ => None,
        };
        if record.plight != plight {
            record.plight = plight;
            let telling = match plight {
                Some(Verdict::Suspended(by)) => Notice::Suspended { by },
                Some(_) => Notice::Starved { silence: pulse.silence(now) },
                None => Notice::Relieved,
            };
            self.actions.push(Action::Tell(part.clone(), telling));
        }
    }

    pub(super) fn patience(&self, part: &Part) -> Timeouts {
        let answer = match part {
            Part::Dispatcher => self.bounds.dispatcher_timeout,
            Part::Worker(_) => self.bounds.worker_timeout,
        };
        // Whom systemd starts again waits itself, before it is ready, for as long as its failures demand.
        let waits = match self.keeper {
            Keeper::Watchdog => Duration::ZERO,
            Keeper::Systemd => self.bounds.restarts.longest_wait(),
        };
        Timeouts { start: self.bounds.start_timeout + waits, answer }
    }

    /// SIGABRT may leave a core. One of each part within `restarts.within` is evidence; more would fill the disk.
    fn accuse(&mut self, now: Monotonic, part: &Part, mut why: String) {
        let (kill_at, within) = (now + self.bounds.abort_grace, self.bounds.restarts.within);
        let Some(record) = self.parts.get_mut(part) else { return };
        let order = match record.aborted {
            Some(at) if now.since(at) < within => {
                let _ = write!(why, "; without a core, of which it may leave one in {}", in_words(within));
                Order::Kill
            }
            _ => {
                record.aborted = Some(now);
                Order::Abort
            }
        };
        record.stage = Stage::Going(kill_at, StopReason::Frozen);
        self.actions.push(Action::Accuse(part.clone(), why));
        self.actions.push(Action::Order(part.clone(), order));
    }
}

fn accusation(pulse: &SilenceTimer, now: Monotonic, patience: Timeouts) -> String {
    let own = pulse.own_silence(now);
    let mut why = match (pulse.is_ready(), pulse.ticks(now, patience)) {
        (false, _) => format!("it was not ready after {} (watchdog.start_timeout)", in_words(own)),
        (true, false) => format!("it is frozen, no sign of life for {}", in_words(own)),
        (true, true) => format!("it does not answer for {}, although its control loop turns", in_words(own)),
    };
    let excused = pulse.silence(now).saturating_sub(own);
    if excused >= Duration::from_millis(1) {
        let _ = write!(why, ", besides {} in which the machine did not run it", in_words(excused));
    }
    why
}

/// A duration to the millisecond.
fn in_words(duration: Duration) -> impl fmt::Display {
    humantime::format_duration(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}
