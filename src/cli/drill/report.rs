//! What a drill found, for people and for machines.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::checker::{Attempt, Breach, Calendar, Door, Doubt, End, Facts, Reason, concerns};
use super::fault_tracker::Effect;
use super::generator::{Kind, Part, Target};

/// Times in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Times {
    pub count: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Times {
    /// Nearest rank.
    fn of(mut all: Vec<Duration>) -> Option<Self> {
        all.sort();
        let at = |share: f64| all[((all.len() as f64 * share).ceil() as usize).clamp(1, all.len()) - 1];
        let ms = |time: Duration| (time.as_secs_f64() * 10_000.0).round() / 10.0;
        let last = *all.last()?;
        Some(Self { count: all.len(), p50_ms: ms(at(0.5)), p99_ms: ms(at(0.99)), max_ms: ms(last) })
    }
}

/// All faults of one kind on one sort of target.
#[derive(Clone, Debug, Serialize)]
pub struct Faults {
    pub kind: &'static str,
    pub target: &'static str,
    pub count: usize,
    /// Not judged: see [`Effect::excused`].
    pub excused: usize,
    /// Until the watchdog knew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detection: Option<Times>,
    /// Until the part was up again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Times>,
    /// The longest that an attempt waited while one of them had an effect.
    pub longest_wait_ms: f64,
}

/// How the attempts at one listener ended.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcomes {
    pub listener: String,
    pub requests: usize,
    pub attempts: usize,
    pub served: usize,
    pub refused: usize,
    pub closed: usize,
    pub unreached: usize,
    pub sent_back: usize,
    pub unmet: usize,
    pub behind: usize,
    pub told_unknown: usize,
    pub lost: usize,
    pub cut: usize,
    pub left: usize,
    pub wrong: usize,
    pub silent: usize,
    pub odd: usize,
    /// Lost, cut or told unknown, with no start on record: no handler had begun, or none that keeps records.
    pub lost_unrecorded: usize,
    pub longest_wait_ms: f64,
}

/// The whole report.
#[derive(Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub faults: usize,
    pub skipped: Vec<String>,
    pub seconds: f64,
    pub faults_per_second: f64,
    pub by_kind: Vec<Faults>,
    pub by_listener: Vec<Outcomes>,
    pub starts_on_record: usize,
    /// How late the drill itself was run by the machine, in all.
    pub own_lateness_ms: u64,
    pub violations: Vec<Violation>,
    /// What the figures do not cover, in words.
    pub remarks: Vec<String>,
    /// The command that does the same again.
    pub repeat: String,
}

#[derive(Debug, Serialize)]
pub struct Violation {
    pub promise: &'static str,
    pub what: String,
    pub story: Vec<String>,
}

impl From<Breach> for Violation {
    fn from(Breach { promise, what, story }: Breach) -> Self {
        Self { promise, what, story }
    }
}

fn sort_of(effect: &Effect) -> &'static str {
    match effect.target {
        Target::Part(Part::Watchdog) => "watchdog",
        Target::Part(Part::Dispatcher) => "dispatcher",
        Target::Part(Part::Worker(_)) | Target::Slot(_) => "worker",
        Target::Door(_) => "listener",
        Target::Machine => "machine",
    }
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

/// The faults in figures.
pub fn by_kind(facts: &Facts, doors: &[Door], pool_of: &[usize]) -> Vec<Faults> {
    type Key = (&'static str, Kind);
    let mut waits: BTreeMap<Key, Duration> = BTreeMap::new();
    let calendar = Calendar::new(facts);
    for attempt in facts.attempts.iter().filter(|attempt| attempt.end != End::Left) {
        let pool = doors[attempt.door].pool;
        let felt = calendar.between(attempt.begun, attempt.ended);
        for effect in felt.filter(|effect| concerns(effect, pool, attempt.door, pool_of)) {
            let longest = waits.entry((sort_of(effect), effect.kind)).or_default();
            *longest = (*longest).max(attempt.wait());
        }
    }
    let mut groups: BTreeMap<Key, Vec<&Effect>> = BTreeMap::new();
    for effect in &facts.effects {
        groups.entry((sort_of(effect), effect.kind)).or_default().push(effect);
    }
    let figures = |(key, effects): (Key, Vec<&Effect>)| {
        let judged: Vec<_> = effects.iter().filter(|effect| effect.excused.is_none()).collect();
        let times = |end: fn(&Effect) -> Option<crate::ids::Monotonic>| {
            Times::of(judged.iter().filter_map(|effect| Some(end(effect)?.since(effect.from))).collect())
        };
        Faults {
            kind: key.1.as_str(),
            target: key.0,
            count: effects.len(),
            excused: effects.len() - judged.len(),
            detection: times(|effect| effect.detected),
            recovery: times(|effect| effect.back),
            longest_wait_ms: ms(waits.get(&key).copied().unwrap_or_default()),
        }
    };
    groups.into_iter().map(figures).collect()
}

/// The requests in figures. `names` are the listeners'.
pub fn by_listener(facts: &Facts, doors: &[Door], names: &[String]) -> Vec<Outcomes> {
    let recorded: std::collections::HashSet<_> = facts.records.iter().collect();
    let mut all: Vec<Outcomes> =
        names.iter().map(|name| Outcomes { listener: name.clone(), ..Outcomes::default() }).collect();
    for attempt in &facts.attempts {
        let Attempt { request, number, door, end, .. } = attempt;
        let row = &mut all[*door];
        row.attempts += 1;
        row.requests += usize::from(*number == 1);
        *match end {
            End::Served => &mut row.served,
            End::Wrong(_) => &mut row.wrong,
            End::NotStarted(Reason::Refused(_)) => &mut row.refused,
            End::NotStarted(Reason::Closed) => &mut row.closed,
            End::NotStarted(Reason::Unreached) => &mut row.unreached,
            End::NotStarted(Reason::SentBack) => &mut row.sent_back,
            End::NotStarted(Reason::Unmet) => &mut row.unmet,
            End::NotStarted(Reason::Behind) => &mut row.behind,
            End::Unknown(Doubt::Told(_)) => &mut row.told_unknown,
            End::Unknown(Doubt::Lost) => &mut row.lost,
            End::Unknown(Doubt::Cut) => &mut row.cut,
            End::Silent(_) => &mut row.silent,
            End::Odd(_) => &mut row.odd,
            End::Left => &mut row.left,
        } += 1;
        let unknown = matches!(end, End::Unknown(_));
        row.lost_unrecorded += usize::from(unknown && doors[*door].records && !recorded.contains(&(*request, *number)));
        if *end != End::Left {
            row.longest_wait_ms = row.longest_wait_ms.max(ms(attempt.wait()));
        }
    }
    all
}

/// Violations that are printed whole; the rest is counted.
const TOLD: usize = 20;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { faults, seconds, faults_per_second, .. } = self;
        writeln!(f, "{faults} faults in {seconds:.1} s, {faults_per_second:.1} per second")?;
        writeln!(f)?;
        let times = |times: Option<Times>| {
            times.map_or_else(String::new, |t| format!("{:.0} / {:.0} / {:.0}", t.p50_ms, t.p99_ms, t.max_ms))
        };
        writeln!(
            f,
            "{:<21} {:<11} {:>5}  {:<21} {:<21} LONGEST",
            "FAULT", "TARGET", "COUNT", "NOTICED AFTER", "BACK AFTER"
        )?;
        writeln!(f, "{:<21} {:<11} {:>5}  {:<21} {:<21} WAIT", "", "", "", "p50 / p99 / max ms", "p50 / p99 / max ms")?;
        for row in &self.by_kind {
            let (noticed, back) = (times(row.detection), times(row.recovery));
            let line = format!(
                "{:<21} {:<11} {:>5}  {noticed:<21} {back:<21} {:.0} ms",
                row.kind, row.target, row.count, row.longest_wait_ms
            );
            writeln!(f, "{line}")?;
        }
        writeln!(f)?;
        for row in &self.by_listener {
            let mut words = format!("{} requests in {} attempts: {} served", row.requests, row.attempts, row.served);
            for (count, what) in [
                (row.refused, "refused"),
                (row.closed, "closed by the dispatcher"),
                (row.unreached, "dispatcher not reached"),
                (row.sent_back, "sent back"),
                (row.unmet, "worker not reached"),
                (row.behind, "sent behind the last of a connection"),
                (row.told_unknown, "told started-unknown"),
                (row.lost, "lost with the worker"),
                (row.cut, "visibly cut"),
                (row.left, "left by their clients"),
                (row.wrong, "WRONG"),
                (row.silent, "SILENT"),
                (row.odd, "ODD"),
            ] {
                if count > 0 {
                    let _ = write!(words, ", {count} {what}"); // to a String
                }
            }
            writeln!(f, "{}: {words}; longest wait {:.0} ms", row.listener, row.longest_wait_ms)?;
        }
        writeln!(f)?;
        let unrecorded: usize = self.by_listener.iter().map(|row| row.lost_unrecorded).sum();
        writeln!(f, "{} starts on record; lost with nothing on record: {unrecorded}", self.starts_on_record)?;
        writeln!(f, "the machine ran the drill itself too late by {} ms in all", self.own_lateness_ms)?;
        for remark in &self.remarks {
            writeln!(f, "{remark}")?;
        }
        for skipped in &self.skipped {
            writeln!(f, "not injected: {skipped}")?;
        }
        writeln!(f, "violations: {}", self.violations.len())?;
        for violation in self.violations.iter().take(TOLD) {
            writeln!(f, "\n{}: {}", violation.promise, violation.what)?;
            for line in &violation.story {
                writeln!(f, "    {line}")?;
            }
        }
        if self.violations.len() > TOLD {
            writeln!(f, "\nand {} more: see --json", self.violations.len() - TOLD)?;
        }
        writeln!(f, "repeat with: {}", self.repeat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times = Times::of((1..=200).map(Duration::from_millis).collect()).unwrap();
        assert_eq!(times, Times { count: 200, p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 });
        assert_eq!(Times::of(vec![Duration::from_millis(7)]).unwrap().p99_ms, 7.0);
        assert_eq!(Times::of(Vec::new()), None);
    }
}
