//! What clients sent and saw, what handlers recorded, what was done to the set: and whether the promises hold.
//!
//! Pure. Each rule names the promise of which it is a part, see `README.md`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::fault_tracker::{Effect, Stray};
use super::generator::{Expect, Kind, Part, Target};
use crate::ids::Monotonic;

/// How one attempt of a request ended, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Status 200, whole, and what was to be expected.
    Served,
    /// It looks whole and is something else.
    Wrong(String),
    /// Certainly not started; the client may send it again.
    NotStarted(Reason),
    /// Perhaps started.
    Unknown(Doubt),
    /// Nothing came in time, at this step.
    Silent(&'static str),
    /// A status that neither serves nor says what became of the request.
    Odd(u16),
    /// The client itself left.
    Left,
}

/// Why an attempt was certainly not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// An answer with `Patou-Outcome: not-started` and this status.
    Refused(u16),
    /// The dispatcher closed the connection without a byte.
    Closed,
    /// The dispatcher could not be reached.
    Unreached,
    /// The worker sent the client back to the dispatcher.
    SentBack,
    /// The worker could not be reached.
    Unmet,
    /// It was sent together with one whose response ended the connection.
    Behind,
}

/// Why it cannot be known whether an attempt was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// An answer with `Patou-Outcome: started-unknown` and this status.
    Told(u16),
    /// The connection of the worker, or the one that is handed over, ended without a response.
    Lost,
    /// It ended within the response, visibly.
    Cut,
}

/// One attempt of one request.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub request: u64,
    /// From 1. A request is sent again only while it is certain that it has not started.
    pub number: u32,
    /// The listener, by its place in the configuration.
    pub door: usize,
    pub begun: Monotonic,
    pub ended: Monotonic,
    /// How much of that the client or its handler wanted: pauses, slowness, retries of the client library.
    pub own: Duration,
    /// When the one before it on its connection was sent, if there was one.
    pub kept: Option<Monotonic>,
    pub end: End,
}

impl Attempt {
    /// How long it waited for the set.
    pub fn wait(&self) -> Duration {
        self.ended.since(self.begun).saturating_sub(self.own)
    }
}

/// A listener as the judge needs to know it.
#[derive(Clone, Debug)]
pub struct Door {
    pub pool: usize,
    /// Its handler records each start.
    pub records: bool,
    /// It hands connections over, and tells nobody where to go.
    pub handed: bool,
    /// Nobody but its program knows what is spoken there: who waits for so long is refused without a word.
    pub mute_after: Option<Duration>,
}

/// How long things may take, as the configuration says.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// One attempt while nothing is wrong, by pool.
    pub attempt: Vec<Duration>,
    /// Until a frozen worker is killed.
    pub worker: Duration,
    /// Until a frozen dispatcher is killed.
    pub dispatcher: Duration,
    /// Until a watchdog is back that was killed, or froze.
    pub watchdog: Duration,
    /// For what it has in hand when it is told to leave.
    pub leave: Duration,
    /// Until what has ended is up again.
    pub restart: Duration,
    /// Until a connection that waits is where it outlives the dispatcher.
    pub store_after: Duration,
    /// For work of the machine itself.
    pub slack: Duration,
    /// Whether the parts leave when the watchdog is killed.
    pub orphans_leave: bool,
}

impl Bounds {
    /// For how long this fault may be felt.
    pub fn of(&self, effect: &Effect) -> Duration {
        let part = match (effect.part, effect.kind) {
            (Some(Part::Watchdog), Kind::Kill | Kind::Freeze | Kind::Restart | Kind::Abort) => return self.watchdog,
            (None | Some(Part::Watchdog), _) => return effect.over.unwrap_or(effect.from).since(effect.from),
            (Some(part), _) => part,
        };
        let detection = if part == Part::Dispatcher { self.dispatcher } else { self.worker };
        match effect.kind {
            Kind::Kill | Kind::Abort | Kind::Crash => self.restart,
            Kind::Leave | Kind::Restart => self.leave + self.restart,
            Kind::Freeze | Kind::Cut | Kind::CutAndMend | Kind::Scribble => detection + self.restart,
            _ => effect.over.unwrap_or(effect.from).since(effect.from),
        }
    }
}

/// Everything that was seen.
#[derive(Clone, Debug)]
pub struct Facts {
    pub began: Monotonic,
    pub attempts: Vec<Attempt>,
    /// Request and attempt of each start that a handler recorded.
    pub records: Vec<(u64, u32)>,
    pub effects: Vec<Effect>,
    pub strays: Vec<Stray>,
    /// When the drill itself was run too late, and by how much.
    pub late: Vec<(Monotonic, Duration)>,
}

/// A promise that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// `P1` to `P7`.
    pub promise: &'static str,
    pub what: String,
    /// What led to it, one event a line.
    pub story: Vec<String>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Served => f.write_str("served"),
            End::Wrong(what) => write!(f, "a response that looks whole and is not: {what}"),
            End::NotStarted(Reason::Refused(status)) => write!(f, "refused with {status}, not-started"),
            End::NotStarted(Reason::Closed) => f.write_str("closed by the dispatcher without a byte"),
            End::NotStarted(Reason::Unreached) => f.write_str("dispatcher not reached"),
            End::NotStarted(Reason::SentBack) => f.write_str("sent back by the worker"),
            End::NotStarted(Reason::Unmet) => f.write_str("worker not reached"),
            End::NotStarted(Reason::Behind) => f.write_str("sent behind one whose response ended the connection"),
            End::Unknown(Doubt::Told(status)) => write!(f, "answered {status}, started-unknown"),
            End::Unknown(Doubt::Lost) => f.write_str("the connection ended without a response"),
            End::Unknown(Doubt::Cut) => f.write_str("the response was visibly cut"),
            End::Silent(step) => write!(f, "silence ({step})"),
            End::Odd(status) => write!(f, "answered {status} without Patou-Outcome"),
            End::Left => f.write_str("the client left"),
        }
    }
}

/// After a fault is over, what it began may still be on its way.
const ECHO: Duration = Duration::from_millis(100);

/// The faults, in order of time, to be asked who was felt when.
pub struct Calendar<'a> {
    effects: Vec<&'a Effect>,
    longest: Duration,
    end: Monotonic,
}

impl<'a> Calendar<'a> {
    pub fn new(facts: &'a Facts) -> Self {
        let mut effects: Vec<_> = facts.effects.iter().collect();
        effects.sort_by_key(|effect| effect.from);
        let last = facts.attempts.iter().map(|attempt| attempt.ended).max().unwrap_or(facts.began);
        let end = last + Duration::from_secs(3600);
        let length = |effect: &&Effect| effect.over.unwrap_or(end).since(effect.from) + ECHO;
        let longest = effects.iter().map(length).max().unwrap_or_default();
        Self { effects, longest, end }
    }

    /// The faults that had an effect at some time from `from` to `to`.
    pub fn between(&self, from: Monotonic, to: Monotonic) -> impl Iterator<Item = &'a Effect> + '_ {
        let first = self.effects.partition_point(|effect| effect.from + self.longest < from);
        self.effects[first..]
            .iter()
            .take_while(move |effect| effect.from <= to)
            .filter(move |effect| effect.over.unwrap_or(self.end) + ECHO >= from)
            .copied()
    }
}

/// Whether a fault could be felt by the clients of a pool. `pool_of` gives each worker's.
pub fn concerns(effect: &Effect, pool: usize, door: usize, pool_of: &[usize]) -> bool {
    match (effect.part, effect.target) {
        (Some(Part::Worker(worker)), _) | (None, Target::Slot(worker)) => pool_of[worker] == pool,
        (_, Target::Door(other)) => other == door,
        _ => true,
    }
}

/// Whether it ends, or may end, the process of this part.
fn ends(effect: &Effect, part: Part) -> bool {
    effect.part == Some(part) && (effect.expect != Expect::Stays || effect.killed.is_some())
}

/// Judges a drill. `doors` are the listeners, `pool_of` the pool of each worker.
pub fn judge(facts: &Facts, doors: &[Door], pool_of: &[usize], bounds: &Bounds) -> Vec<Breach> {
    let recorded = facts.records.iter().copied().collect();
    let judge = Judge { facts, recorded, doors, pool_of, bounds, calendar: Calendar::new(facts) };
    let mut breaches = judge.starts();
    breaches.extend(facts.attempts.iter().filter_map(|attempt| judge.attempt(attempt)));
    breaches.extend(facts.effects.iter().filter_map(|effect| judge.effect(effect)));
    breaches.extend(facts.strays.iter().map(|stray| judge.stray(stray)));
    breaches
}

struct Judge<'a> {
    facts: &'a Facts,
    recorded: HashSet<(u64, u32)>,
    doors: &'a [Door],
    pool_of: &'a [usize],
    bounds: &'a Bounds,
    calendar: Calendar<'a>,
}

impl Judge<'_> {
    /// P1: what the handlers recorded against what the clients were told.
    fn starts(&self) -> Vec<Breach> {
        let mut requests: BTreeMap<u64, Vec<&Attempt>> = BTreeMap::new();
        for attempt in &self.facts.attempts {
            requests.entry(attempt.request).or_default().push(attempt);
        }
        let mut starts: HashMap<u64, Vec<u32>> = HashMap::new();
        for (request, attempt) in &self.facts.records {
            starts.entry(*request).or_default().push(*attempt);
        }
        let mut breaches = Vec::new();
        for (request, attempts) in &requests {
            let started = starts.remove(request).unwrap_or_default();
            if !self.doors[attempts[0].door].records {
                continue;
            }
            let breach = |what: String| {
                let mut story = self.story(attempts);
                story.push(format!("recorded as started: attempts {started:?}"));
                Breach { promise: "P1", what: format!("request {request} {what}"), story }
            };
            if started.len() > 1 {
                breaches.push(breach(format!("was started {} times", started.len())));
            }
            for attempt in attempts {
                let recorded = started.contains(&attempt.number);
                match &attempt.end {
                    End::NotStarted(_) if recorded => {
                        breaches.push(breach(format!("was started although its client was told: {}", attempt.end)));
                    }
                    End::Served | End::Wrong(_) if !recorded => {
                        breaches.push(breach("was answered, and its start is not on record".into()));
                    }
                    _ => {}
                }
            }
        }
        let mut unknown: Vec<_> = starts.into_keys().collect();
        unknown.sort_unstable();
        breaches.extend(unknown.into_iter().map(|request| Breach {
            promise: "P1",
            what: format!("request {request} was started, and nobody has sent it"),
            story: Vec::new(),
        }));
        breaches
    }

    /// P2, P3, P4, P7: what one attempt saw.
    fn attempt(&self, attempt: &Attempt) -> Option<Breach> {
        let breach = |promise, what: String| {
            Some(Breach { promise, what: format!("request {} {what}", attempt.request), story: self.story(&[attempt]) })
        };
        let pool = self.doors[attempt.door].pool;
        let mut felt = self.calendar.between(attempt.begun, attempt.ended);
        match &attempt.end {
            End::Wrong(_) => return breach("P3", format!("got {}", attempt.end)),
            End::Silent(step) => return breach("P3", format!("got no answer at all within its bound ({step})")),
            End::Odd(status) => return breach("P3", format!("was answered {status} and not told what became of it")),
            End::NotStarted(Reason::Closed) => {
                let blamed = |effect: &Effect| self.ends_set(effect) || ends(effect, Part::Dispatcher);
                if !felt.any(blamed) {
                    return breach("P4", "was closed by the dispatcher, to which nothing had been done".into());
                }
            }
            End::Unknown(doubt) if self.doors[attempt.door].handed => {
                if let Some((promise, what)) = self.handed(attempt, *doubt) {
                    return breach(promise, what);
                }
            }
            End::Unknown(_) => {
                let blamed = |effect: &Effect| match effect.part {
                    Some(Part::Worker(worker)) => self.pool_of[worker] == pool && ends(effect, Part::Worker(worker)),
                    _ => self.ends_set(effect),
                };
                if !felt.any(blamed) {
                    return breach("P3", format!("was lost without a fault of its pool: {}", attempt.end));
                }
            }
            _ => {}
        }
        if attempt.end == End::Left {
            return None;
        }
        let bound = self.bounds.attempt[pool] + self.extension(attempt.begun, attempt.ended, pool, attempt.door, None);
        if attempt.wait() > bound {
            let what = format!("waited {} ms, and its bound is {} ms", attempt.wait().as_millis(), bound.as_millis());
            return breach("P7", what);
        }
        None
    }

    /// Whether it has everybody leave.
    fn ends_set(&self, effect: &Effect) -> bool {
        self.bounds.orphans_leave && effect.kind == Kind::Kill && effect.part == Some(Part::Watchdog)
    }

    /// How much longer than usual something may take that needed this pool from `from` to `to`.
    fn extension(&self, from: Monotonic, to: Monotonic, pool: usize, door: usize, but: Option<u32>) -> Duration {
        let felt = self.calendar.between(from, to);
        let felt = felt.filter(|effect| Some(effect.number) != but && concerns(effect, pool, door, self.pool_of));
        felt.map(|effect| self.bounds.of(effect)).sum::<Duration>() + self.late(from, to) + self.bounds.slack
    }

    /// What the machine withheld from the drill itself.
    fn late(&self, from: Monotonic, to: Monotonic) -> Duration {
        let late = self.facts.late.iter().filter(|(at, by)| *at >= from && at.0 <= (to + *by).0);
        late.map(|(_, by)| *by).sum()
    }

    /// P2, P5: what one fault did to its part.
    fn effect(&self, effect: &Effect) -> Option<Breach> {
        let part = effect.part?;
        if effect.excused.is_some() {
            return None;
        }
        let name = self.name(part);
        let breach = |promise, what| Some(Breach { promise, what, story: vec![self.tell(effect)] });
        if let Some(cause) = &effect.killed {
            return breach("P5", format!("{name} was killed for a fault that harms nobody: {cause}"));
        }
        if effect.expect != Expect::Ends && effect.detected.is_none() {
            return None;
        }
        let Some(back) = effect.back else {
            return breach("P2", format!("{name} is not back at the end of the drill"));
        };
        let pool = |worker: usize| self.pool_of[worker];
        let others = match part {
            Part::Worker(worker) => self.extension(effect.from, back, pool(worker), usize::MAX, Some(effect.number)),
            _ => self.extension(effect.from, back, usize::MAX, usize::MAX, Some(effect.number)),
        };
        let (took, bound) = (back.since(effect.from), self.bounds.of(effect) + others);
        if took > bound {
            let what =
                format!("{name} was back after {} ms, and its bound is {} ms", took.as_millis(), bound.as_millis());
            return breach("P2", what);
        }
        None
    }

    fn stray(&self, stray: &Stray) -> Breach {
        let from = Monotonic(stray.at.0.saturating_sub(2_000_000_000));
        let story = self.calendar.between(from, stray.at).map(|effect| self.tell(effect)).collect();
        let what = format!(
            "{} (pid {}) ended at {}, to which nothing had been done: {}",
            self.name(stray.part),
            stray.pid,
            self.at(stray.at),
            stray.cause
        );
        Breach { promise: "P5", what, story }
    }

    fn at(&self, time: Monotonic) -> String {
        format!("{:.3} s", time.since(self.facts.began).as_secs_f64())
    }

    fn name(&self, part: Part) -> String {
        match part {
            Part::Watchdog => "the watchdog".into(),
            Part::Dispatcher => "the dispatcher".into(),
            Part::Worker(worker) => format!("worker {worker} (from 0)"),
        }
    }

    fn tell(&self, effect: &Effect) -> String {
        let at = |time: Option<Monotonic>| time.map_or("never".into(), |time| self.at(time));
        format!(
            "{}: fault {}, {} of {:?}, noticed {}, back {}, over {}",
            self.at(effect.from),
            effect.number,
            effect.kind.as_str(),
            effect.target,
            at(effect.detected),
            at(effect.back),
            at(effect.over)
        )
    }

    fn story(&self, attempts: &[&Attempt]) -> Vec<String> {
        let mut story = Vec::new();
        for attempt in attempts {
            let pool = self.doors[attempt.door].pool;
            let felt = self.calendar.between(attempt.begun, attempt.ended);
            let felt = felt.filter(|effect| concerns(effect, pool, attempt.door, self.pool_of));
            story.extend(felt.map(|effect| self.tell(effect)));
            let Attempt { request, number, door, end, .. } = attempt;
            let (begun, ended) = (self.at(attempt.begun), self.at(attempt.ended));
            let before = attempt.kept.map(|at| format!(", behind one sent at {}", self.at(at))).unwrap_or_default();
            story.push(format!(
                "{begun}: attempt {number} of request {request} at listener {door}{before}, until {ended}: {end}"
            ));
        }
        story.dedup();
        story
    }
}

mod handed;
#[cfg(test)]
mod tests;
