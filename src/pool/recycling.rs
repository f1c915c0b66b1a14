//! Planned replacement of workers, one at a time: at the limits of a pool, and at the request of an operator.
//!
//! A worker is replaced by its next incarnation, or stays and replaces its warm process. A replacement that fails ends
//! what operators have requested, so that a program that cannot start takes no further worker out of service.

use super::worker::Worker;
use crate::ids::{Epoch, Lifecycle, Monotonic, Replacements, WorkerNumber};

/// The worker that is being replaced, if any.
#[derive(Debug, Default)]
pub(super) struct Recycling(Option<Replacement>);

#[derive(Clone, Copy, Debug)]
struct Replacement {
    worker: WorkerNumber,
    /// The incarnation that ends, unless it replaces its warm process.
    old: Epoch,
    /// Its replacements before this one.
    before: Replacements,
    /// It has requested this by itself, and does so until it is replaced.
    wants: bool,
    /// It has accepted. Until then it gets no client.
    accepted: bool,
    /// When another worker may be recycled at the latest.
    until: Monotonic,
}

impl Replacement {
    fn of(n: WorkerNumber, worker: &Worker, accepted: bool, until: Monotonic) -> Option<Self> {
        let (before, wants) = (worker.replacements, worker.wants_recycle);
        worker.living().map(|old| Self { worker: n, old, before, wants, accepted, until })
    }
}

/// How a replacement has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecyclingEnd {
    Replaced,
    /// The worker has kept what it had, or took too long.
    Failed,
}

impl Recycling {
    /// Whether worker `n` must get no client now because of it.
    pub(super) fn prevents_offer(&self, n: WorkerNumber) -> bool {
        self.0.is_some_and(|replacement| replacement.worker == n && !replacement.accepted)
    }

    /// Whether worker `n` may be recycled now. If so, its recycling starts.
    pub(super) fn start(&mut self, n: WorkerNumber, worker: &Worker, until: Monotonic) -> bool {
        if self.0.is_some() || !worker.is_due_for_recycling() {
            return false;
        }
        self.0 = Replacement::of(n, worker, false, until);
        self.0.is_some()
    }

    /// The worker agrees.
    pub(super) fn accept(&mut self, n: WorkerNumber) {
        if let Some(replacement) = self.0.as_mut().filter(|replacement| replacement.worker == n) {
            replacement.accepted = true;
        }
    }

    /// The worker does not agree, or another question has replaced the one to it.
    pub(super) fn cancel(&mut self, n: WorkerNumber) {
        self.0 = self.0.filter(|replacement| replacement.worker != n || replacement.accepted);
    }

    /// Takes note of a worker; how its recycling has ended, if it has. `until`: the bound of a recycling that starts now.
    pub(super) fn observe(
        &mut self,
        now: Monotonic,
        n: WorkerNumber,
        worker: &Worker,
        until: Monotonic,
    ) -> Option<RecyclingEnd> {
        let living = worker.living();
        let Some(replacement) = self.0 else {
            // Requested by an earlier dispatcher.
            let is_recycling = worker.state == Some(Lifecycle::Recycling);
            self.0 = Replacement::of(n, worker, true, until).filter(|_| is_recycling);
            return None;
        };
        let Replacement { old, before, wants, .. } = replacement;
        // Complete when the next incarnation serves, not when the old one has ended: one worker is down at a time.
        let serves = living.is_some() && matches!(worker.state, Some(Lifecycle::Ready | Lifecycle::Draining));
        let is_same = living == Some(old);
        let has_ended = !is_same || worker.replacements != before || wants && !worker.wants_recycle;
        let end = if replacement.worker == n && serves && has_ended {
            let has_failed = is_same && worker.replacements != before && worker.replacements.last_failed;
            if has_failed { RecyclingEnd::Failed } else { RecyclingEnd::Replaced }
        } else if replacement.until <= now {
            RecyclingEnd::Failed
        } else {
            return None;
        };
        self.0 = None;
        Some(end)
    }
}
