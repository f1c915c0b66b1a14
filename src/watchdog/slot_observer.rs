//! What the watchdog sees in the slots itself, of workers that the dispatcher does not report: it rings each worker's
//! doorbell, which every control loop counts as a turn.

use std::collections::BTreeMap;

use super::plan::{Part, Plan, PlanKind, WorkerLiveness};
use crate::exchange::Incarnation;
use crate::ids::{Epoch, Lifecycle, Monotonic, WorkerId};
use crate::ipc::ObservedWorker;

/// The last turn of each worker that was observed.
#[derive(Debug, Default)]
pub(super) struct SlotObserver {
    seen: BTreeMap<WorkerId, SeenTurn>,
}

#[derive(Clone, Copy, Debug)]
struct SeenTurn {
    epoch: Epoch,
    ticks: u64,
    /// When the doorbell was rung for the next one.
    rung_at: Monotonic,
}

impl SlotObserver {
    /// Rings the workers that `is_unreported` selects, and returns which of them have not made a turn since an earlier
    /// ring. Of a worker that is rung for the first time nothing is known, nor of one without a serving incarnation: these
    /// are left out.
    pub(super) fn observe<K: PlanKind>(
        &mut self,
        now: Monotonic,
        plan: &Plan<K>,
        is_unreported: impl Fn(&WorkerId) -> bool,
        look: impl Fn(&WorkerId) -> Option<ObservedWorker>,
    ) -> Vec<WorkerLiveness> {
        // What was seen before the dispatcher reported a worker again is outdated.
        let last = std::mem::take(&mut self.seen);
        let mut all = Vec::new();
        for (part, status) in plan.status() {
            let (Some(id), Some(pid)) = (part.worker(), status.pid) else { continue };
            let Some(observed) = is_unreported(id).then(|| look(id)).flatten() else { continue };
            let attached = observed.has_incarnation; // and is not between two incarnations
            let serves = |life: &Incarnation| attached && life.pid == pid && life.state != Lifecycle::Starting;
            let Some(Incarnation { epoch, ticks, .. }) = Incarnation::load(&observed.slot).filter(serves) else {
                continue;
            };
            let last = last.get(id);
            let same = last.filter(|seen| (seen.epoch, seen.ticks) == (epoch, ticks));
            let silent_since = same.map(|seen| seen.rung_at);
            self.seen.insert(id.clone(), SeenTurn { epoch, ticks, rung_at: silent_since.unwrap_or(now) });
            if last.is_some() {
                let (worker, ticks) = (id.clone(), Some(ticks));
                all.push(WorkerLiveness { worker, silent_since, starting_since: None, ticks, corrupt: false });
            }
            observed.to_worker.ring();
        }
        all
    }

    /// Since when a worker has been seen to owe a turn.
    pub(super) fn silent_since(&self, part: &Part) -> Option<Monotonic> {
        self.seen.get(part.worker()?).map(|seen| seen.rung_at)
    }
}
