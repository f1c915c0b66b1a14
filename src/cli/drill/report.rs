//! The report of a drill, as text and as JSON.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::checker::{CheckedListener, FaultScope, FaultTimeline, affects};
use super::fault::{DrillPart, FaultKind, FaultTarget};
use super::fault_tracker::FaultEffect;
use super::history::{AttemptOutcome, DrillHistory, NotStartedReason, PromiseViolation, RequestAttempt, UnknownReason};
use crate::ids::Monotonic;

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct LatencySummary {
    pub count: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl LatencySummary {
    /// By the nearest-rank method.
    fn of(mut all: Vec<Duration>) -> Option<Self> {
        all.sort();
        let rank = |share: f64| all[((all.len() as f64 * share).ceil() as usize).clamp(1, all.len()) - 1];
        let max = *all.last()?;
        Some(Self { count: all.len(), p50_ms: ms(rank(0.5)), p99_ms: ms(rank(0.99)), max_ms: ms(max) })
    }
}

/// Rounded to tenths of a millisecond.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

/// All faults of one kind on one kind of target.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FaultRow {
    pub kind: &'static str,
    pub target: &'static str,
    pub count: usize,
    /// Those that are not judged: see [`FaultEffect::excluded`].
    pub excused: usize,
    /// Those that ended a process which was replaced.
    pub replaced: usize,
    /// Those that ended no process.
    pub survived: usize,
    /// Processes that were killed although the fault was harmless.
    pub false_kills: usize,
    /// Until the watchdog detected them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detection: Option<LatencySummary>,
    /// Until the part was up again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<LatencySummary>,
    /// Until the removed files existed again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair: Option<LatencySummary>,
    /// The longest wait of an attempt while one of them had an effect.
    pub longest_wait_ms: f64,
}

/// How the attempts at one listener ended: the counts of [`AttemptOutcome`].
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ListenerRow {
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
    /// The [`AttemptOutcome::Unknown`] without a recorded start at a handler that records.
    pub lost_unrecorded: usize,
    pub longest_wait_ms: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct DrillReport {
    pub seed: u64,
    pub faults: usize,
    pub skipped: Vec<String>,
    pub seconds: f64,
    pub faults_per_second: f64,
    pub by_kind: Vec<FaultRow>,
    pub by_listener: Vec<ListenerRow>,
    pub starts_on_record: usize,
    /// Connections that have switched to WebSocket.
    pub sessions: usize,
    /// Processes that ended without a fault that may end them.
    pub false_kills: usize,
    /// The longest wait of an attempt.
    pub longest_wait_ms: f64,
    /// How long the machine delayed the drill itself, in total.
    pub own_lateness_ms: u64,
    pub violations: Vec<PromiseViolation>,
    /// What the drill did not check.
    pub remarks: Vec<String>,
    /// The command that repeats the drill.
    pub repeat: String,
}

fn target_name(effect: &FaultEffect) -> &'static str {
    match effect.target {
        FaultTarget::Part(DrillPart::Watchdog) => "watchdog",
        FaultTarget::Part(DrillPart::Dispatcher) => "dispatcher",
        FaultTarget::Part(DrillPart::Worker(_)) | FaultTarget::Slot(_) => "worker",
        FaultTarget::Listener(_) => "listener",
        FaultTarget::Parts(_) => "several",
        FaultTarget::Set => "set",
        FaultTarget::Machine => "machine",
    }
}

/// One row for each kind of fault and target.
pub(super) fn by_kind(history: &DrillHistory, listeners: &[CheckedListener], pool_of: &[usize]) -> Vec<FaultRow> {
    type Key = (&'static str, FaultKind);
    let key = |effect: &FaultEffect| (target_name(effect), effect.kind);
    let mut longest_waits: BTreeMap<Key, Duration> = BTreeMap::new();
    let timeline = FaultTimeline::new(history);
    for attempt in history.attempts.iter().filter(|attempt| attempt.outcome != AttemptOutcome::Disconnected) {
        let scope = FaultScope { pool: Some(listeners[attempt.listener].pool), listener: Some(attempt.listener) };
        let active = timeline.active_between(attempt.sent, attempt.ended);
        for effect in active.filter(|effect| affects(effect, scope, pool_of)) {
            let longest = longest_waits.entry(key(effect)).or_default();
            *longest = (*longest).max(attempt.wait());
        }
    }
    let mut groups: BTreeMap<Key, Vec<&FaultEffect>> = BTreeMap::new();
    for effect in &history.effects {
        groups.entry(key(effect)).or_default().push(effect);
    }
    let row = |(key, effects): (Key, Vec<&FaultEffect>)| {
        let judged: Vec<_> = effects.iter().filter(|effect| effect.excluded.is_none()).collect();
        let latency = |end: fn(&FaultEffect) -> Option<Monotonic>| {
            LatencySummary::of(judged.iter().filter_map(|effect| Some(end(effect)?.since(effect.injected))).collect())
        };
        FaultRow {
            kind: key.1.as_str(),
            target: key.0,
            count: effects.len(),
            excused: effects.len() - judged.len(),
            replaced: judged.iter().filter(|effect| effect.recovered.is_some() && effect.kill_cause.is_none()).count(),
            survived: judged.iter().filter(|effect| effect.ended.is_some() && effect.detected.is_none()).count(),
            false_kills: judged.iter().filter(|effect| effect.kill_cause.is_some()).count(),
            detection: latency(|effect| effect.detected),
            recovery: latency(|effect| effect.recovered),
            repair: latency(|effect| effect.repaired).filter(|_| key.1.is_repaired()),
            longest_wait_ms: ms(longest_waits.get(&key).copied().unwrap_or_default()),
        }
    };
    groups.into_iter().map(row).collect()
}

/// Parts that were killed although their fault was harmless.
pub(super) fn false_kills(history: &DrillHistory) -> usize {
    history.effects.iter().filter(|effect| effect.excluded.is_none() && effect.kill_cause.is_some()).count()
}

/// The longest wait of an attempt of a client that did not disconnect.
pub(super) fn longest_wait_ms(history: &DrillHistory) -> f64 {
    let attempts = history.attempts.iter().filter(|attempt| attempt.outcome != AttemptOutcome::Disconnected);
    ms(attempts.map(RequestAttempt::wait).max().unwrap_or_default())
}

/// One row for each listener. `names` are the addresses of the listeners.
pub(super) fn by_listener(history: &DrillHistory, listeners: &[CheckedListener], names: &[String]) -> Vec<ListenerRow> {
    let recorded: HashSet<_> = history.recorded_starts.iter().collect();
    let mut rows: Vec<_> =
        names.iter().map(|name| ListenerRow { listener: name.clone(), ..ListenerRow::default() }).collect();
    for attempt in &history.attempts {
        let RequestAttempt { request, number, listener, outcome, .. } = attempt;
        let row = &mut rows[*listener];
        row.attempts += 1;
        row.requests += usize::from(*number == 1);
        *row.count_of(outcome) += 1;
        let unrecorded = listeners[*listener].records && !recorded.contains(&(*request, *number));
        row.lost_unrecorded += usize::from(matches!(outcome, AttemptOutcome::Unknown(_)) && unrecorded);
        if *outcome != AttemptOutcome::Disconnected {
            row.longest_wait_ms = row.longest_wait_ms.max(ms(attempt.wait()));
        }
    }
    rows
}

impl ListenerRow {
    fn count_of(&mut self, outcome: &AttemptOutcome) -> &mut usize {
        match outcome {
            AttemptOutcome::Served => &mut self.served,
            AttemptOutcome::WrongResponse(_) => &mut self.wrong,
            AttemptOutcome::NotStarted(reason) => match reason {
                NotStartedReason::Refused(_) => &mut self.refused,
                NotStartedReason::ClosedByDispatcher => &mut self.closed,
                NotStartedReason::DispatcherUnreachable => &mut self.unreached,
                NotStartedReason::ReturnedToDispatcher => &mut self.sent_back,
                NotStartedReason::WorkerUnreachable => &mut self.unmet,
                NotStartedReason::ConnectionClosed => &mut self.behind,
            },
            AttemptOutcome::Unknown(UnknownReason::Reported(_)) => &mut self.told_unknown,
            AttemptOutcome::Unknown(UnknownReason::NoResponse) => &mut self.lost,
            AttemptOutcome::Unknown(UnknownReason::Truncated) => &mut self.cut,
            AttemptOutcome::TimedOut(_) => &mut self.silent,
            AttemptOutcome::NoOutcome(_) => &mut self.odd,
            AttemptOutcome::Disconnected => &mut self.left,
        }
    }
}

impl fmt::Display for ListenerRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listener, requests, attempts, served, .. } = self;
        write!(f, "{listener}: {requests} requests in {attempts} attempts: {served} served")?;
        for (count, what) in [
            (self.refused, "refused"),
            (self.closed, "closed by the dispatcher"),
            (self.unreached, "dispatcher unreachable"),
            (self.sent_back, "returned to the dispatcher"),
            (self.unmet, "worker unreachable"),
            (self.behind, "pipelined behind the last response"),
            (self.told_unknown, "reported as started-unknown"),
            (self.lost, "without a response"),
            (self.cut, "visibly truncated"),
            (self.left, "disconnected by the client"),
            (self.wrong, "WRONG"),
            (self.silent, "TIMED OUT"),
            (self.odd, "WITHOUT PATOU-OUTCOME"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        write!(f, "; longest wait {:.0} ms", self.longest_wait_ms)
    }
}

/// How many violations are printed; the rest is only counted.
const PRINTED_VIOLATIONS: usize = 20;

impl fmt::Display for DrillReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { faults, seconds, faults_per_second, .. } = self;
        writeln!(f, "{faults} faults in {seconds:.1} s, {faults_per_second:.1} per second\n")?;
        write_table(f, &self.by_kind)?;
        writeln!(f)?;
        for row in &self.by_listener {
            writeln!(f, "{row}")?;
        }
        writeln!(f)?;
        let unrecorded: usize = self.by_listener.iter().map(|row| row.lost_unrecorded).sum();
        writeln!(f, "{} recorded starts; {unrecorded} lost without a recorded start", self.starts_on_record)?;
        let Self { false_kills, longest_wait_ms, .. } = self;
        writeln!(f, "false kills: {false_kills}; longest wait of a client: {longest_wait_ms:.0} ms")?;
        writeln!(f, "the machine delayed the drill itself by {} ms in total", self.own_lateness_ms)?;
        for remark in &self.remarks {
            writeln!(f, "{remark}")?;
        }
        for skipped in &self.skipped {
            writeln!(f, "not injected: {skipped}")?;
        }
        writeln!(f, "violations: {}", self.violations.len())?;
        for violation in self.violations.iter().take(PRINTED_VIOLATIONS) {
            writeln!(f, "\n{}: {}", violation.promise, violation.what)?;
            for event in &violation.story {
                writeln!(f, "    {event}")?;
            }
        }
        if self.violations.len() > PRINTED_VIOLATIONS {
            writeln!(f, "\nand {} more: see --json", self.violations.len() - PRINTED_VIOLATIONS)?;
        }
        writeln!(f, "repeat with: {}", self.repeat)
    }
}

fn write_table(f: &mut fmt::Formatter<'_>, rows: &[FaultRow]) -> fmt::Result {
    let percentiles = "p50 / p99 / max ms";
    let (detected, recovered) = ("DETECTED", "RECOVERED, REPAIRED");
    writeln!(
        f,
        "{:<21} {:<11} {:>5} {:>5}  {detected:<21} {recovered:<21} LONGEST",
        "FAULT", "TARGET", "COUNT", "ENDED"
    )?;
    writeln!(f, "{:<21} {:<11} {:>5} {:>5}  {percentiles:<21} {percentiles:<21} WAIT", "", "", "", "")?;
    for row in rows {
        let latency = |summary: Option<LatencySummary>| {
            summary.map_or_else(String::new, |s| format!("{:.0} / {:.0} / {:.0}", s.p50_ms, s.p99_ms, s.max_ms))
        };
        let FaultRow { kind, target, count, longest_wait_ms, .. } = row;
        let (detected, recovered) = (latency(row.detection), latency(row.repair.or(row.recovery)));
        let ended = row.replaced + row.false_kills;
        writeln!(
            f,
            "{kind:<21} {target:<11} {count:>5} {ended:>5}  {detected:<21} {recovered:<21} {longest_wait_ms:.0} ms"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let summary = LatencySummary::of((1..=200).map(Duration::from_millis).collect()).unwrap();
        assert_eq!(summary, LatencySummary { count: 200, p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 });
        assert_eq!(LatencySummary::of(vec![Duration::from_millis(7)]).unwrap().p99_ms, 7.0);
        assert_eq!(LatencySummary::of(Vec::new()), None);
    }
}
