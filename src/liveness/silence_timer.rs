//! From probes, answers and process samples to a verdict.
//!
//! Only *attributable* silence counts: time in which the process had an unanswered probe and could have answered it.
//! Excluded is time in which the observer itself did not run, a debugger or a frozen control group held the process,
//! no processor ran it, or it waited for memory or a disk while the whole machine did, and time in which the observer could
//! not find out.

use std::fmt;
use std::time::Duration;

use crate::ids::Monotonic;

/// What is known about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LivenessVerdict {
    /// It is not ready yet.
    Starting,
    /// It answers.
    Alive,
    /// A probe is unanswered, for less than the timeout; or for longer, and its progress counter grows.
    Late,
    /// A probe is unanswered for longer than the timeout because the machine did not run the process.
    Starved,
    /// The process is held.
    Suspended(HeldBy),
    /// A probe is unanswered by its own fault for longer than the timeout, or it was not ready in time.
    Frozen,
    /// The process has ended.
    Ended,
}

/// What keeps a process from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldBy {
    /// Its tracer (ptrace(2)).
    Debugger,
    /// The freezer of its control group.
    Freezer,
}

impl fmt::Display for HeldBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeldBy::Debugger => "a debugger",
            HeldBy::Freezer => "the freezer of its control group",
        })
    }
}

/// What the thread that answers probes is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ThreadActivity {
    /// It runs, or waits for a processor (state R).
    Runnable,
    /// It waits for memory, a device or a lock of the kernel (state D); or it sleeps, and another thread of the process does.
    Blocked,
    /// It sleeps, or is stopped by a signal.
    #[default]
    Idle,
}

/// One sample of a process: what the verdict needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessSample {
    /// Whether the process has ended.
    pub ended: bool,
    /// What holds it, if anything.
    pub held_by: Option<HeldBy>,
    /// What the thread that answers probes is doing.
    pub activity: ThreadActivity,
    /// Scheduler statistics of that thread, if the kernel keeps them.
    pub sched_stat: Option<SchedStat>,
    /// How long any task of the machine has waited for memory, a disk or a processor since boot (`/proc/pressure`, the
    /// totals of `some`); zero if the kernel does not report it.
    pub machine_stalled: Duration,
}

/// Scheduler statistics of a thread (`/proc/PID/task/TID/schedstat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SchedStat {
    /// The thread's id.
    pub thread: u32,
    /// How long it has run.
    pub ran: Duration,
    /// How long it has waited for a processor, without a wait that is not over.
    pub waited: Duration,
}

/// How long a process may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LivenessTimeouts {
    /// Until it is ready.
    pub start: Duration,
    /// Until it answers a probe.
    pub answer: Duration,
}

/// A process that makes progress but does not answer is frozen after this many timeouts.
const PROGRESS_TIMEOUTS: u32 = 4;
/// The first sample is taken after this fraction of the timeout: a healthy process answers long before.
const FIRST_SAMPLE_FRACTION: u32 = 8;

/// Measures how long one process leaves a probe unanswered, or takes to start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SilenceTimer {
    ready: bool,
    silence: Option<Silence>,
    /// The last answer. A silence that is reported later and started earlier is no longer true.
    answered_at: Monotonic,
}

/// An unanswered probe, or an unfinished start.
#[derive(Clone, Copy, Debug)]
struct Silence {
    /// When it started. Time that the observer lost moves this and the next two forward.
    since: Monotonic,
    /// `since` moved forward by all excluded time: from here the silence is the process's own.
    attributable_since: Monotonic,
    /// The same, since the last progress.
    no_progress_since: Monotonic,
    /// The last known progress counter.
    ticks: Option<u64>,
    /// The last sample, and when it was taken.
    sample: Option<(Monotonic, ProcessSample)>,
}

impl Silence {
    fn new(since: Monotonic) -> Self {
        Self { since, attributable_since: since, no_progress_since: since, ticks: None, sample: None }
    }

    /// Excludes so much of the time until `now`.
    fn exclude(&mut self, time: Duration, now: Monotonic) {
        self.attributable_since = (self.attributable_since + time).min(now);
        self.no_progress_since = (self.no_progress_since + time).min(now);
    }
}

impl SilenceTimer {
    /// A process that was started at `now`.
    pub(crate) fn starting(now: Monotonic) -> Self {
        Self { ready: false, silence: Some(Silence::new(now)), answered_at: now }
    }

    /// The process is ready.
    pub(crate) fn set_ready(&mut self) {
        (self.ready, self.silence) = (true, None);
    }

    /// Whether the process is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// A new incarnation in the same process has been starting since `since`. If that is later than the start known so
    /// far, the process was ready in between.
    pub(crate) fn restarting_in_place(&mut self, since: Monotonic) {
        if self.ready {
            *self = Self::starting(since);
        } else {
            self.silent_since(since);
        }
    }

    /// A probe was sent; an earlier unanswered one counts.
    pub(crate) fn probe_sent(&mut self, since: Monotonic) {
        if self.ready {
            self.silence.get_or_insert(Silence::new(since));
        }
    }

    /// Another process that probes this one reports it silent since `since`, with this progress counter. If `since` is
    /// later than known so far, the process answered in between.
    pub(crate) fn reported_silent(&mut self, now: Monotonic, since: Monotonic, ticks: Option<u64>) {
        if !self.ready {
            return;
        }
        self.silent_since(since);
        if let Some(silence) = &mut self.silence {
            if silence.ticks.is_some() && ticks.is_some() && silence.ticks != ticks {
                silence.no_progress_since = now;
            }
            silence.ticks = ticks.or(silence.ticks);
        }
    }

    /// This process observes that it has made no turn since `since`, with this progress counter. An earlier silence goes on,
    /// unless the counter has grown.
    pub(crate) fn observed_silent(&mut self, now: Monotonic, since: Monotonic, ticks: Option<u64>) {
        let goes_on = self.silence.is_some_and(|known| known.ticks.is_none() || known.ticks == ticks);
        self.reported_silent(now, if goes_on { Monotonic(0) } else { since }, ticks);
    }

    /// The silence started at `since` or later.
    fn silent_since(&mut self, since: Monotonic) {
        let since = since.max(self.answered_at);
        match &mut self.silence {
            // A sample from before `since` belongs to another silence.
            Some(known) if known.sample.is_none_or(|(at, _)| since <= at) => {
                known.since = known.since.max(since);
                known.attributable_since = known.attributable_since.max(since);
                known.no_progress_since = known.no_progress_since.max(since);
            }
            silence => *silence = Some(Silence::new(since)),
        }
    }

    /// The process answered.
    pub(crate) fn answered(&mut self, now: Monotonic) {
        if self.ready {
            (self.silence, self.answered_at) = (None, now);
        }
    }

    /// The observer itself did not run for so long, up to now.
    pub(crate) fn exclude_time(&mut self, lost: Duration) {
        if let Some(silence) = &mut self.silence {
            for at in [&mut silence.since, &mut silence.attributable_since, &mut silence.no_progress_since] {
                *at = *at + lost;
            }
            if let Some((at, _)) = &mut silence.sample {
                *at = *at + lost;
            }
        }
    }

    /// Restarts a silence at `now`.
    pub(crate) fn reset(&mut self, now: Monotonic) {
        self.silence = self.silence.map(|_| Silence::new(now));
    }

    /// Adds a sample taken at `now`: time since the last sample in which the process could not run is excluded.
    pub(crate) fn add_sample(&mut self, now: Monotonic, sample: ProcessSample) {
        let Some(silence) = &mut self.silence else { return };
        let was_held = silence.sample.is_some_and(|(_, last)| last.held_by.is_some());
        if sample.held_by.is_some() || was_held {
            *silence = Silence { ticks: silence.ticks, ..Silence::new(now) };
        } else if let Some((at, last)) = &silence.sample {
            let excluded = excluded_between(last, &sample, now.since(*at));
            silence.exclude(excluded, now);
        }
        silence.sample = Some((now, sample));
    }

    /// No sample could be taken at `now`. Anything may hold the process, so all time until now is excluded; a process that
    /// was held remains so.
    pub(crate) fn sample_failed(&mut self, now: Monotonic) {
        if let Some(silence) = &mut self.silence {
            (silence.attributable_since, silence.no_progress_since) = (now, now);
            silence.sample = silence.sample.filter(|(_, last)| last.held_by.is_some()).map(|(_, last)| (now, last));
        }
    }

    /// Whether a sample is needed: after a fraction of the timeout, and before the process is declared frozen.
    pub(crate) fn needs_sample(&self, now: Monotonic, timeouts: LivenessTimeouts) -> bool {
        self.silence.is_some_and(|silence| match silence.sample {
            Some((at, last)) => at < now && !last.ended && self.deadline(timeouts).is_some_and(|due| due <= now),
            None => now.since(silence.attributable_since) >= self.timeout(timeouts) / FIRST_SAMPLE_FRACTION,
        })
    }

    /// When the verdict has to be evaluated next, unless something happens before.
    pub(crate) fn deadline(&self, timeouts: LivenessTimeouts) -> Option<Monotonic> {
        let timeout = self.timeout(timeouts);
        let silence = self.silence.filter(|silence| !silence.sample.is_some_and(|(_, last)| last.ended))?;
        Some((silence.no_progress_since + timeout).min(silence.attributable_since + timeout * PROGRESS_TIMEOUTS))
    }

    /// Since when the process has been silent, without what the observer lost.
    pub(crate) fn since(&self) -> Option<Monotonic> {
        self.silence.map(|silence| silence.since)
    }

    /// How long the process has been silent, without what the observer lost.
    pub(crate) fn silence(&self, now: Monotonic) -> Duration {
        self.silence.map_or(Duration::ZERO, |silence| now.since(silence.since))
    }

    /// The part of that time in which the process could have answered.
    pub(crate) fn attributable_silence(&self, now: Monotonic) -> Duration {
        self.silence.map_or(Duration::ZERO, |silence| now.since(silence.attributable_since))
    }

    /// Whether the progress counter of the silent process has grown within the timeout.
    pub(crate) fn makes_progress(&self, now: Monotonic, timeouts: LivenessTimeouts) -> bool {
        let timeout = self.timeout(timeouts);
        self.silence.is_some_and(|silence| {
            silence.no_progress_since > silence.attributable_since && now.since(silence.no_progress_since) < timeout
        })
    }

    /// The verdict. [`LivenessVerdict::Frozen`] depends on a recent sample: see [`SilenceTimer::needs_sample`].
    pub(crate) fn verdict(&self, now: Monotonic, timeouts: LivenessTimeouts) -> LivenessVerdict {
        let Some(silence) = &self.silence else { return LivenessVerdict::Alive };
        let timeout = self.timeout(timeouts);
        match silence.sample {
            Some((_, ProcessSample { ended: true, .. })) => return LivenessVerdict::Ended,
            Some((_, ProcessSample { held_by: Some(by), .. })) => return LivenessVerdict::Suspended(by),
            _ => {}
        }
        let (total, attributable) = (now.since(silence.since), now.since(silence.attributable_since));
        if now.since(silence.no_progress_since) >= timeout || attributable >= timeout * PROGRESS_TIMEOUTS {
            LivenessVerdict::Frozen
        } else if total >= timeout && attributable < timeout {
            LivenessVerdict::Starved
        } else if self.ready {
            LivenessVerdict::Late
        } else {
            LivenessVerdict::Starting
        }
    }

    fn timeout(&self, timeouts: LivenessTimeouts) -> Duration {
        if self.ready { timeouts.answer } else { timeouts.start }
    }
}

/// How much of the `time` between two samples the thread could not use. The kernel adds a wait for a processor to
/// `waited` when the wait is over. During the wait only the state shows it: a runnable thread has used the time that it
/// ran, and no more. The end of such a wait may be excluded twice, because its start is unknown.
fn excluded_between(last: &ProcessSample, current: &ProcessSample, time: Duration) -> Duration {
    let stalled = match current.activity {
        ThreadActivity::Blocked => current.machine_stalled.saturating_sub(last.machine_stalled),
        ThreadActivity::Runnable | ThreadActivity::Idle => Duration::ZERO,
    };
    let (Some(from), Some(to)) = (last.sched_stat, current.sched_stat) else { return stalled.min(time) };
    if from.thread != to.thread {
        return stalled.min(time);
    }
    let unused = time.saturating_sub(to.ran.saturating_sub(from.ran));
    let waited = match current.activity {
        ThreadActivity::Runnable => unused,
        ThreadActivity::Blocked | ThreadActivity::Idle => to.waited.saturating_sub(from.waited),
    };
    (waited + stalled).min(unused)
}

#[cfg(test)]
mod tests;
