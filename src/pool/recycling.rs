//! Planned replacement of workers, one at a time.

use super::worker::Worker;
use crate::ids::{Epoch, Lifecycle, Monotonic, WorkerNumber};

/// The worker that is being replaced by its next incarnation, if any.
#[derive(Debug, Default)]
pub(super) struct Recycling(Option<Replacement>);

#[derive(Clone, Copy, Debug)]
struct Replacement {
    worker: WorkerNumber,
    /// The incarnation that ends.
    old: Epoch,
    /// When another worker may be recycled at the latest.
    until: Monotonic,
}

impl Recycling {
    pub(super) fn concerns(&self, n: WorkerNumber) -> bool {
        self.0.is_some_and(|replacement| replacement.worker == n)
    }

    /// Whether worker `n` may be recycled now. If so, its recycling starts.
    pub(super) fn start(&mut self, n: WorkerNumber, worker: &Worker, until: Monotonic) -> bool {
        let old = worker.living().filter(|_| self.0.is_none() && worker.is_idle() && worker.wants_recycle);
        self.0 = self.0.or(old.map(|old| Replacement { worker: n, old, until }));
        old.is_some()
    }

    /// The worker does not agree, or another question has replaced the one to it.
    pub(super) fn cancel(&mut self, n: WorkerNumber) {
        self.0 = self.0.filter(|replacement| replacement.worker != n);
    }

    /// Takes note of a worker; whether its recycling is complete. `until`: the bound of a recycling that starts now.
    pub(super) fn observe(&mut self, now: Monotonic, n: WorkerNumber, worker: &Worker, until: Monotonic) -> bool {
        let living = worker.living();
        let Some(replacement) = self.0 else {
            // Requested by an earlier dispatcher.
            let old = living.filter(|_| worker.state == Some(Lifecycle::Recycling));
            self.0 = old.map(|old| Replacement { worker: n, old, until });
            return false;
        };
        // Complete when the next incarnation serves, not when the old one has ended: one worker is down at a time.
        let serves = living.is_some() && matches!(worker.state, Some(Lifecycle::Ready | Lifecycle::Draining));
        let is_next = living != Some(replacement.old) || !worker.wants_recycle;
        let is_complete = replacement.worker == n && serves && is_next;
        if is_complete || replacement.until <= now {
            self.0 = None;
        }
        is_complete
    }
}
