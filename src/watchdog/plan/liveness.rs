//! Decides which part is frozen, and which time is not attributed to a part.

use std::fmt;
use std::time::Duration;

use super::part::{PartState, StopReason};
use super::{KillSignal, Notice, Part, Plan, PlanAction, PlanKind, WorkerLiveness};
use crate::ids::Monotonic;
use crate::liveness::{LivenessTimeouts, LivenessVerdict, ProcessSample, SilenceTimer};

impl<K: PlanKind> Plan<K> {
    /// Evaluates the workers, from the dispatcher's current report only. While the dispatcher is silent, a worker's
    /// silence may be the dispatcher's; time in which the dispatcher was late or suspended is no worker's.
    pub(super) fn on_report(&mut self, now: Monotonic, workers: Vec<WorkerLiveness>) {
        // Without a known probe the report may be older than any process.
        let probe_sent_at = self.probe_sent_at.take().unwrap_or(Monotonic(0));
        if self.parts[&Part::Dispatcher].timer().is_none_or(|timer| !timer.is_ready()) {
            return; // from a dispatcher that has been declared frozen, or has ended
        }
        if matches!(self.parts[&Part::Dispatcher].hold_reason, Some(LivenessVerdict::Suspended(_))) {
            self.reset_all(now);
        }
        let mut late = Duration::ZERO;
        self.with_timer(&Part::Dispatcher, |timer| {
            late = timer.silence(now);
            timer.answered(now);
        });
        if self.is_long(late) {
            self.excluded += late;
            for record in self.parts.values_mut().filter(|record| record.ready_at.is_some()) {
                record.timer_mut().into_iter().for_each(|timer| timer.exclude_time(late));
            }
        }
        let excluded = std::mem::take(&mut self.excluded);
        self.judge_workers(now, probe_sent_at, excluded, workers, SilenceTimer::reported_silent);
    }

    /// Evaluates workers by what is known about them since `probe_sent_at` or later. A silence that was not known before
    /// is shorter by `excluded`.
    pub(super) fn judge_workers(
        &mut self,
        now: Monotonic,
        probe_sent_at: Monotonic,
        excluded: Duration,
        workers: Vec<WorkerLiveness>,
        note_silence: fn(&mut SilenceTimer, Monotonic, Monotonic, Option<u64>),
    ) {
        let blame_since = self.blame_since;
        for worker in workers {
            let part = Part::Worker(worker.worker);
            let Some(record) = self.parts.get_mut(&part) else { continue };
            // If the process became ready after the probe was sent, the report may be about its predecessor.
            let Some(ready_at) = record.ready_at.filter(|ready| *ready <= probe_sent_at) else { continue };
            let attributable = |since: Monotonic| (since.max(blame_since).max(ready_at) + excluded).min(now);
            let has_timer = record.timer().is_some();
            if let Some(timer) = record.timer_mut() {
                match (worker.starting_since, worker.silent_since) {
                    (Some(since), _) => timer.restarting_in_place(attributable(since)),
                    // A probe sent while it was starting counts from now.
                    _ if !timer.is_ready() => {
                        timer.set_ready();
                        record.ready_at = Some(now);
                    }
                    (None, Some(since)) => note_silence(timer, now, attributable(since), worker.ticks),
                    (None, None) => timer.answered(now),
                }
            }
            if worker.corrupt && has_timer {
                self.declare_frozen(now, &part, "has a corrupt slot", Vec::new());
            } else {
                self.evaluate(now, &part);
            }
        }
    }

    /// Extends every deadline by time in which the watchdog did not run. A long time restarts all silences, because a
    /// pending probe may have arrived only now. A short one does not, or a watchdog that is often a little late would
    /// never declare a part frozen.
    pub(super) fn exclude_time(&mut self, now: Monotonic, time: Duration) {
        let time = self.excluded_until.map_or(time, |until| time.min(now.since(until)));
        self.excluded += time;
        if self.is_long(time) {
            self.reset_blame(now);
        }
        for record in self.parts.values_mut() {
            record.timer_mut().into_iter().for_each(|timer| timer.exclude_time(time));
            if let PartState::Stopping { kill_at, .. } = &mut record.state {
                *kill_at = *kill_at + time;
            }
        }
    }

    fn is_long(&self, excluded: Duration) -> bool {
        excluded > self.limits.worker_timeout / 4
    }

    /// Restarts every silence at `now`. After a suspend, in which the clock did not advance, the parts resume one after
    /// the other.
    pub(super) fn reset_all(&mut self, now: Monotonic) {
        self.reset_blame(now);
        for record in self.parts.values_mut() {
            record.timer_mut().into_iter().for_each(|timer| timer.reset(now));
        }
    }

    fn reset_blame(&mut self, now: Monotonic) {
        (self.blame_since, self.excluded) = (now, Duration::ZERO);
    }

    /// Evaluates the dispatcher and the starting parts, and kills the parts that did not stop.
    pub(super) fn check_deadlines(&mut self, now: Monotonic) {
        let parts: Vec<Part> = self.parts.keys().cloned().collect();
        for part in parts {
            let judged = self.parts.get(&part).is_some_and(|record| self.is_judged_by_time(&part, record));
            let Some(record) = self.parts.get_mut(&part) else { continue };
            if record.timer().is_none() {
                record.hold_reason = None;
            }
            match &mut record.state {
                PartState::Stopping { kill_at, timer, .. } if *kill_at <= now => {
                    // Only the kernel can still keep a killed process; the next attempt is a second later.
                    *kill_at = now + Duration::from_secs(1);
                    if timer.is_some() {
                        self.actions.push(PlanAction::Log(part.clone(), Notice::Overdue));
                    }
                    self.actions.push(PlanAction::Kill(part, KillSignal::Kill));
                }
                _ if judged => self.evaluate(now, &part),
                _ => {}
            }
        }
    }

    pub(super) fn on_sampled(&mut self, now: Monotonic, part: &Part, sample: Option<ProcessSample>) {
        // While the shell performs actions it receives no events. That time, spent on its own work or not run by the
        // machine, makes this sample late.
        let late = now.since(self.last_external_event);
        if !late.is_zero() {
            self.exclude_time(now, late);
            (self.last_external_event, self.excluded_until) = (now, Some(now));
        }
        if let Some(record) = self.parts.get_mut(part) {
            record.sample_requested = false;
        }
        self.with_timer(part, |timer| match sample {
            Some(sample) => timer.add_sample(now, sample),
            None => timer.sample_failed(now),
        });
        self.evaluate(now, part);
    }

    /// Applies the verdict on a part. A part is declared frozen only after a sample of this very moment.
    fn evaluate(&mut self, now: Monotonic, part: &Part) {
        let timeouts = self.timeouts(part);
        let Some(record) = self.parts.get_mut(part) else { return };
        let Some(timer) = record.timer().copied() else { return };
        if timer.needs_sample(now, timeouts) {
            if !std::mem::replace(&mut record.sample_requested, true) {
                self.actions.push(PlanAction::Sample(part.clone()));
            }
            return;
        }
        let hold_reason = match timer.verdict(now, timeouts) {
            LivenessVerdict::Frozen => {
                let (what, details) = describe_frozen(part, &timer, now, timeouts);
                return self.declare_frozen(now, part, &what, details);
            }
            verdict @ (LivenessVerdict::Starved | LivenessVerdict::Suspended(_)) => Some(verdict),
            _ => None,
        };
        if record.hold_reason != hold_reason {
            let previous = std::mem::replace(&mut record.hold_reason, hold_reason);
            let notice = match hold_reason {
                Some(LivenessVerdict::Suspended(by)) => Notice::Suspended { by },
                Some(_) => Notice::Starved { silence: timer.silence(now) },
                None => Notice::Resumed,
            };
            self.actions.push(PlanAction::Log(part.clone(), notice));
            // Its next report is about the time in which it was held.
            if *part == Part::Dispatcher && matches!(previous, Some(LivenessVerdict::Suspended(_))) {
                self.reset_all(now);
            }
        }
    }

    pub(super) fn timeouts(&self, part: &Part) -> LivenessTimeouts {
        let answer = match part {
            Part::Dispatcher => self.limits.dispatcher_timeout,
            Part::Worker(_) | Part::StandIn(_) => self.limits.worker_timeout,
        };
        if part.is_stand_in() {
            return LivenessTimeouts { start: answer, answer }; // it is ready as soon as its program runs
        }
        // A part that systemd restarts delays its own start after failures, before it becomes ready.
        let delay = if K::BY_SYSTEMD { self.limits.restarts.longest_delay() } else { Duration::ZERO };
        LivenessTimeouts { start: self.limits.start_timeout + delay, answer }
    }

    /// Records why a part is killed, and kills it. SIGABRT may leave a core dump: one per part within
    /// `restarts.within` is evidence, more would fill the disk.
    fn declare_frozen(&mut self, now: Monotonic, part: &Part, what: &str, mut details: Vec<String>) {
        let (kill_at, within) = (now + self.limits.abort_grace, self.limits.restarts.within);
        let Some(record) = self.parts.get_mut(part) else { return };
        let signal = match record.aborted_at {
            Some(at) if now.since(at) < within => {
                details.push(format!("no core dump: at most one in {}", to_millis(within)));
                KillSignal::Kill
            }
            _ => {
                record.aborted_at = Some(now);
                KillSignal::Abort
            }
        };
        let reason = match &record.state {
            PartState::Stopping { reason, .. } => *reason,
            _ => StopReason::Frozen,
        };
        record.state = PartState::Stopping { kill_at, reason, timer: None };
        let details = if details.is_empty() { String::new() } else { format!(" ({})", details.join("; ")) };
        self.actions.push(PlanAction::DeclareFrozen(part.clone(), format!("{what}{details}")));
        self.actions.push(PlanAction::Kill(part.clone(), signal));
    }
}

/// What is wrong with a part, and the details.
fn describe_frozen(
    part: &Part,
    timer: &SilenceTimer,
    now: Monotonic,
    timeouts: LivenessTimeouts,
) -> (String, Vec<String>) {
    let silence = timer.attributable_silence(now);
    let (what, detail) = if !timer.is_ready() {
        let key = if part.is_stand_in() { "watchdog.worker_timeout" } else { "watchdog.start_timeout" };
        (format!("was not ready after {}", to_millis(silence)), key.to_owned())
    } else if timer.makes_progress(now, timeouts) {
        ("is frozen".to_owned(), format!("no answer for {} although its control loop runs", to_millis(silence)))
    } else {
        ("is frozen".to_owned(), format!("no sign of life for {}", to_millis(silence)))
    };
    let mut details = vec![detail];
    let excluded = timer.silence(now).saturating_sub(silence);
    if excluded >= Duration::from_millis(1) {
        details.push(format!("the machine did not run it for another {}", to_millis(excluded)));
    }
    (what, details)
}

/// A duration in words, to the millisecond.
fn to_millis(duration: Duration) -> impl fmt::Display {
    humantime::format_duration(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}
