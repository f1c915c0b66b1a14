//! How far the workers of a pool are replaced. Pure.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::exchange::Incarnation;
use crate::ids::{Lifecycle, PoolName, WorkerId, WorkerNumber};

/// So many unplanned restarts since the request show that the new program does not run.
const RESTARTS_MAX: u32 = 2;

/// A worker at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct WorkerSample {
    /// Its incarnation, as the slot has it.
    pub life: Option<Incarnation>,
    /// Whether it serves a request.
    pub is_busy: bool,
    /// The watchdog's word for its state; empty if the set does not have it.
    pub part: String,
    /// Its unplanned restarts.
    pub restarts: u32,
    /// The cause of the last of them.
    pub cause: Option<String>,
    /// Whether the dispatcher has a request to recycle it; `None` if that is not known.
    pub is_requested: Option<bool>,
}

/// What has become of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkerProgress {
    Pending,
    Recycled,
    /// It has no process, and had none before.
    Absent,
    /// It has kept what it had.
    Kept,
    /// Its new process does not run.
    Dead,
    /// The dispatcher has given it up.
    GivenUp,
}

impl WorkerProgress {
    fn of(before: &WorkerSample, now: &WorkerSample) -> Self {
        let is_absent = |sample: &WorkerSample| matches!(sample.part.as_str(), "failed" | "stopped" | "");
        let (old, new) = (before.life, now.life);
        let is_next = new.map(|life| life.epoch) != old.map(|life| life.epoch);
        let replacements = |life: Option<Incarnation>| life.map(|life| life.replacements).unwrap_or_default();
        let has_ended = replacements(new) != replacements(old);
        let serves = new.is_some_and(|life| matches!(life.state, Lifecycle::Ready | Lifecycle::Draining));
        match (is_absent(before), is_absent(now)) {
            (_, true) if now.part != "failed" => return Self::Absent, // stopped or removed by an operator
            (true, true) => return Self::Absent,
            (false, true) => return Self::Dead,
            (_, false) => {}
        }
        if serves && is_next {
            Self::Recycled
        } else if has_ended && replacements(new).last_failed {
            Self::Kept
        } else if serves && has_ended {
            Self::Recycled
        } else if now.restarts >= before.restarts.saturating_add(RESTARTS_MAX) {
            Self::Dead
        } else if now.is_requested == Some(false) && !is_next {
            Self::GivenUp
        } else {
            Self::Pending
        }
    }

    fn is_failure(self) -> bool {
        matches!(self, Self::Kept | Self::Dead | Self::GivenUp)
    }
}

/// The replacement of a pool's workers.
#[derive(Debug)]
pub(super) struct Rollout {
    pool: PoolName,
    before: Vec<WorkerSample>,
    now: Vec<WorkerSample>,
}

/// The result, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RollSummary {
    /// Every worker that has a process has a new one.
    Done(String),
    /// Some have not, or a worker has failed.
    Incomplete(String),
}

impl Rollout {
    /// Starts with the workers as they are before the request, by number.
    pub(super) fn new(pool: PoolName, before: Vec<WorkerSample>) -> Self {
        Self { pool, now: before.clone(), before }
    }

    pub(super) fn pool(&self) -> &PoolName {
        &self.pool
    }

    /// The workers as they are now; whether nothing is left to wait for.
    pub(super) fn observe(&mut self, now: Vec<WorkerSample>) -> bool {
        self.now = now;
        let mut all = self.progress().map(|(_, progress)| progress);
        all.clone().any(WorkerProgress::is_failure) || all.all(|progress| progress != WorkerProgress::Pending)
    }

    /// The workers that are not replaced yet.
    pub(super) fn pending(&self) -> impl Iterator<Item = WorkerNumber> {
        self.workers(WorkerProgress::Pending)
    }

    fn progress(&self) -> impl Iterator<Item = (WorkerNumber, WorkerProgress)> + Clone {
        let samples = self.before.iter().zip(&self.now);
        WorkerNumber::up_to(u16::MAX).zip(samples.map(|(before, now)| WorkerProgress::of(before, now)))
    }

    fn workers(&self, in_progress: WorkerProgress) -> impl Iterator<Item = WorkerNumber> {
        self.progress().filter(move |(_, progress)| *progress == in_progress).map(|(n, _)| n)
    }

    /// The result after `took`. `failure` returns why a worker has kept what it had: the rest of its status after a prefix.
    pub(super) fn summary(&self, took: Duration, failure: impl Fn(&WorkerId, &str) -> String) -> RollSummary {
        let seconds = took.as_secs_f64();
        let (recycled, all) = (self.workers(WorkerProgress::Recycled).count(), self.now.len());
        let mut text = match (recycled, all) {
            (1, 1) => format!("pool {}: 1 worker recycled in {seconds:.1} s", self.pool),
            _ if recycled == all => format!("pool {}: {all} workers recycled in {seconds:.1} s", self.pool),
            _ => format!("pool {}: {recycled} of {all} workers recycled in {seconds:.1} s", self.pool),
        };
        let mut is_done = true;
        let is_failure = self.progress().any(|(_, progress)| progress.is_failure());
        // A failure of one worker ends the request for the others.
        let is_explained =
            self.progress().any(|(_, progress)| progress.is_failure() && progress != WorkerProgress::GivenUp);
        let mut untried = Vec::new();
        for (n, progress) in self.progress() {
            let id = WorkerId { pool: self.pool.clone(), number: n };
            let now = &self.now[n.index()];
            let last_end = now.cause.as_ref().map_or(String::new(), |cause| format!(" (last end: {cause})"));
            let what = match progress {
                WorkerProgress::Recycled => continue,
                WorkerProgress::Pending => {
                    untried.push(if now.is_busy && !is_failure { format!("{id} (busy)") } else { id.to_string() });
                    continue;
                }
                WorkerProgress::GivenUp if is_explained => {
                    untried.push(id.to_string());
                    continue;
                }
                WorkerProgress::Absent if now.part == "failed" => {
                    format!("{id} has failed{last_end}, and gets the new program when a reload starts it")
                }
                WorkerProgress::Absent => format!("{id} is stopped"),
                WorkerProgress::Kept => {
                    let prefix = now.life.map(|life| life.replacements.failure_status()).unwrap_or_default();
                    format!("{id} could not start its next process: {}", failure(&id, &prefix))
                }
                WorkerProgress::Dead => format!("{id} does not start{last_end}"),
                WorkerProgress::GivenUp => format!("{id} was not replaced in time, and the dispatcher has given it up"),
            };
            is_done &= progress == WorkerProgress::Absent && now.part != "failed";
            text = format!("{text}; {what}");
        }
        if !untried.is_empty() {
            is_done = false;
            let state = if is_failure { "not recycled after this failure" } else { "not recycled yet, and will be" };
            text = format!("{text}; {state}: {}", untried.join(", "));
        }
        if is_done { RollSummary::Done(text) } else { RollSummary::Incomplete(text) }
    }
}

#[cfg(test)]
mod tests;
