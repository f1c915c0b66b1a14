//! What the watchdog sees in the slots itself, while the dispatcher does not answer: it rings each worker's doorbell, which
//! every control loop counts as a turn.

use std::collections::BTreeMap;

use super::plan::{Plan, WorkerLiveness};
use crate::config::Config;
use crate::exchange::Incarnation;
use crate::ids::{Epoch, Lifecycle, Monotonic, WorkerId};
use crate::ipc::WorkerIpc;

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
    /// If the probe that was sent at `probed_at` is unanswered for a `probe_interval`: rings the workers, and returns which
    /// of them have not made a turn since an earlier ring. A worker without a serving incarnation is left out: what it
    /// owes is unknown. `open` opens the objects of a worker that the watchdog holds: their names may be gone.
    pub(super) fn observe(
        &mut self,
        now: Monotonic,
        config: &Config,
        plan: &Plan,
        probed_at: Option<Monotonic>,
        open: impl Fn(&WorkerId) -> Option<WorkerIpc>,
    ) -> Option<Vec<WorkerLiveness>> {
        // What was seen before the dispatcher responded again is outdated.
        let last = std::mem::take(&mut self.seen);
        probed_at.filter(|at| now.since(*at) >= config.watchdog.probe_interval)?;
        let mut all = Vec::new();
        for (part, status) in plan.status() {
            let (Some(id), Some(pid)) = (part.worker(), status.pid) else { continue };
            let Some(ipc) = open(id) else { continue };
            let attached = ipc.has_incarnation(); // and is not between two incarnations
            let serves = |life: &Incarnation| attached && life.pid == pid && life.state != Lifecycle::Starting;
            let Some(Incarnation { epoch, ticks, .. }) = Incarnation::load(&*ipc.segment).filter(serves) else {
                continue;
            };
            let same = last.get(id).filter(|seen| (seen.epoch, seen.ticks) == (epoch, ticks));
            let silent_since = same.map(|seen| seen.rung_at);
            self.seen.insert(id.clone(), SeenTurn { epoch, ticks, rung_at: silent_since.unwrap_or(now) });
            let worker = id.clone();
            all.push(WorkerLiveness { worker, silent_since, starting_since: None, ticks: Some(ticks), corrupt: false });
            ipc.to_worker.ring();
        }
        Some(all)
    }
}
