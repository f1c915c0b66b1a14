//! Signs of life to verdicts.
//!
//! What counts is a process' *own* silence: the time that it owed an answer and could have given it. Time in which
//! it could not is excused, and there are four reasons: the observer itself did not run, a debugger or a frozen
//! control group held the process, no processor ran it, or it waited for memory or a disk while the whole machine did.

use std::fmt;
use std::time::Duration;

use crate::ids::Monotonic;

/// What is known of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has not said yet that it is ready.
    Starting,
    /// It answers.
    Alive,
    /// It owes an answer, for less than its bound; or for longer, and its progress counter grows.
    Late,
    /// It owes an answer for longer than its bound, and for so much of it the machine did not run it.
    Starved,
    /// Somebody holds it.
    Suspended(HeldBy),
    /// It owes an answer by its own fault for longer than its bound, or was not ready in time.
    Frozen,
    /// Its process has ended.
    Gone,
}

/// Who keeps a process from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBy {
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

/// What the thread that owes the answer is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// It runs, or waits for a processor (state R).
    Runnable,
    /// It waits for memory or a device (state D).
    Blocked,
    /// It sleeps, or is stopped by a signal.
    #[default]
    Idle,
}

/// A look at a process: all that a judgement needs, and no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessSample {
    /// Whether the process has ended.
    pub ended: bool,
    /// Who holds it, if anybody.
    pub held: Option<HeldBy>,
    /// What the thread does that owes the answer.
    pub activity: Activity,
    /// The account of that thread, where the kernel keeps one.
    pub account: Option<SchedStat>,
    /// How long some task of the machine has waited for memory, a disk or a processor, ever (`/proc/pressure`, the totals of
    /// `some`); zero where the kernel does not say.
    pub stalled: Duration,
}

/// What the scheduler has written up of a thread (`/proc/PID/task/TID/schedstat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedStat {
    /// Which thread.
    pub thread: u32,
    /// How long it has run.
    pub ran: Duration,
    /// How long it has waited for a processor, up to the last time that it got one.
    pub waited: Duration,
}

/// The bounds of a verdict.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To be ready.
    pub start: Duration,
    /// To answer.
    pub answer: Duration,
}

/// Who makes progress without answering is replaced after so many bounds.
const TURNING: u32 = 4;
/// A silence is looked into when it has lasted for this part of the bound: who answers at all does so long before.
const NOTICED: u32 = 8;

/// The signs of life of one process.
#[derive(Clone, Copy, Debug)]
pub struct SilenceTimer {
    ready: bool,
    silence: Option<Silence>,
}

/// An answer that is owed, or a start that is not over.
#[derive(Clone, Copy, Debug)]
struct Silence {
    /// Since when. What the observer lost moves this as well as the next two.
    asked: Monotonic,
    /// As if everything excused had been before it: the own silence counts from here.
    since: Monotonic,
    /// The same, counted from the last sign of progress.
    still: Monotonic,
    /// The progress counter as it was heard last.
    ticks: Option<u64>,
    /// The last look, and when it was.
    look: Option<(Monotonic, ProcessSample)>,
}

impl Silence {
    fn from(since: Monotonic) -> Self {
        Self { asked: since, since, still: since, ticks: None, look: None }
    }

    /// Nobody can be blamed for so much of the time until `now`.
    fn excuse(&mut self, time: Duration, now: Monotonic) {
        self.since = (self.since + time).min(now);
        self.still = (self.still + time).min(now);
    }
}

impl SilenceTimer {
    /// A process that was started just now.
    pub fn born(now: Monotonic) -> Self {
        Self { ready: false, silence: Some(Silence::from(now)) }
    }

    /// It says that it is ready.
    pub fn ready(&mut self) {
        *self = Self { ready: true, silence: None };
    }

    /// Whether it has said that it is ready.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// It has made room for another incarnation in the same process, since then, and is to say that it is ready again.
    /// A later time than the one we know means that it has done so in between.
    pub fn begins_again(&mut self, since: Monotonic) {
        if self.ready {
            *self = Self::born(since);
        } else {
            self.owes(since);
        }
    }

    /// It owes an answer since then.
    pub fn asked(&mut self, since: Monotonic) {
        if self.ready {
            self.silence.get_or_insert(Silence::from(since));
        }
    }

    /// Somebody who asks it for us says that it owes an answer since then, and what its progress counter shows.
    /// A later time than the one we know means that it has answered in between.
    pub fn silent(&mut self, now: Monotonic, since: Monotonic, ticks: Option<u64>) {
        if !self.ready {
            return;
        }
        self.owes(since);
        if let Some(silence) = &mut self.silence {
            if silence.ticks.is_some() && ticks.is_some() && silence.ticks != ticks {
                silence.still = now;
            }
            silence.ticks = ticks.or(silence.ticks);
        }
    }

    /// What is silent is so since then at the earliest.
    fn owes(&mut self, since: Monotonic) {
        match &mut self.silence {
            // What was seen before it was asked belongs to another silence.
            Some(known) if known.look.is_none_or(|(at, _)| since <= at) => {
                known.asked = known.asked.max(since);
                known.since = known.since.max(since);
                known.still = known.still.max(since);
            }
            silence => *silence = Some(Silence::from(since)),
        }
    }

    /// It has answered.
    pub fn answered(&mut self) {
        if self.ready {
            self.silence = None;
        }
    }

    /// The observer itself did not run for so long, up to now.
    pub fn excuse(&mut self, lost: Duration) {
        if let Some(silence) = &mut self.silence {
            for at in [&mut silence.asked, &mut silence.since, &mut silence.still] {
                *at = *at + lost;
            }
            if let Some((at, _)) = &mut silence.look {
                *at = *at + lost;
            }
        }
    }

    /// Whatever it owes, it owes from now on only.
    pub fn forgive(&mut self, now: Monotonic) {
        self.silence = self.silence.map(|_| Silence::from(now));
    }

    /// Somebody has looked at the process just now: what of the time since the last look is not its own is excused.
    pub fn observe(&mut self, now: Monotonic, look: ProcessSample) {
        let Some(silence) = &mut self.silence else { return };
        if look.held.is_some() {
            // As long as that lasts, it owes nothing.
            *silence = Silence { ticks: silence.ticks, ..Silence::from(now) };
        } else if let Some((at, before)) = &silence.look {
            if before.held.is_some() {
                *silence = Silence { ticks: silence.ticks, ..Silence::from(now) };
            } else {
                let excused = excused(before, &look, now.since(*at));
                silence.excuse(excused, now);
            }
        }
        silence.look = Some((now, look));
    }

    /// Whether a look at the process is wanted: when its silence is noticed, and when it would be declared frozen by
    /// what is known of it.
    pub fn wants_look(&self, now: Monotonic, patience: Timeouts) -> bool {
        self.silence.is_some_and(|silence| match silence.look {
            Some((at, look)) => at < now && !look.ended && self.due(patience).is_some_and(|due| due <= now),
            None => now.since(silence.asked) >= self.bound(patience) / NOTICED,
        })
    }

    /// When it is to be judged next, unless something happens before.
    pub fn due(&self, patience: Timeouts) -> Option<Monotonic> {
        let bound = self.bound(patience);
        let silence = self.silence.filter(|silence| !silence.look.is_some_and(|(_, look)| look.ended))?;
        Some((silence.still + bound).min(silence.since + bound * TURNING))
    }

    /// How long it has been owing, whoever is to blame.
    pub fn silence(&self, now: Monotonic) -> Duration {
        self.silence.map_or(Duration::ZERO, |silence| now.since(silence.asked))
    }

    /// How much of that is its own fault.
    pub fn own_silence(&self, now: Monotonic) -> Duration {
        self.silence.map_or(Duration::ZERO, |silence| now.since(silence.since))
    }

    /// Whether its progress counter has grown within its bound.
    pub fn ticks(&self, now: Monotonic, patience: Timeouts) -> bool {
        let bound = self.bound(patience);
        self.silence.is_some_and(|silence| silence.still > silence.since && now.since(silence.still) < bound)
    }

    /// The verdict. [`Verdict::Frozen`] is as good as the last look: see [`SilenceTimer::wants_look`].
    pub fn verdict(&self, now: Monotonic, patience: Timeouts) -> Verdict {
        let Some(silence) = &self.silence else { return Verdict::Alive };
        let bound = self.bound(patience);
        match silence.look {
            Some((_, ProcessSample { ended: true, .. })) => return Verdict::Gone,
            Some((_, ProcessSample { held: Some(holder), .. })) => return Verdict::Suspended(holder),
            _ => {}
        }
        let (raw, own) = (now.since(silence.asked), now.since(silence.since));
        if now.since(silence.still) >= bound || own >= bound * TURNING {
            Verdict::Frozen
        } else if raw >= bound && own < bound {
            Verdict::Starved
        } else if self.ready {
            Verdict::Late
        } else {
            Verdict::Starting
        }
    }

    fn bound(&self, patience: Timeouts) -> Duration {
        if self.ready { patience.answer } else { patience.start }
    }
}

/// How much of the time between two looks the thread could not use. The kernel writes a wait for a processor up when
/// it is over; of one that still lasts only the state tells: who is runnable now has used what it ran, and no more.
/// The end of such a wait may be excused once more then, since nobody knows when it began.
fn excused(before: &ProcessSample, now: &ProcessSample, time: Duration) -> Duration {
    let stalled = match now.activity {
        Activity::Blocked => now.stalled.saturating_sub(before.stalled),
        Activity::Runnable | Activity::Idle => Duration::ZERO,
    };
    let (Some(from), Some(to)) = (before.account, now.account) else { return stalled.min(time) };
    if from.thread != to.thread {
        return stalled.min(time);
    }
    let unused = time.saturating_sub(to.ran.saturating_sub(from.ran));
    let waited = match now.activity {
        Activity::Runnable => unused,
        Activity::Blocked | Activity::Idle => to.waited.saturating_sub(from.waited),
    };
    (waited + stalled).min(unused)
}

#[cfg(test)]
mod tests;
