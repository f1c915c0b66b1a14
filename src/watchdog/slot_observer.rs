//! What the watchdog sees in the slots itself, while the dispatcher does not answer: it rings each worker's doorbell, which
//! every control loop counts as a turn.

use std::collections::BTreeMap;

use super::plan::WorkerLiveness;
use crate::config::Config;
use crate::exchange::Incarnation;
use crate::ids::{Epoch, Lifecycle, Monotonic, WorkerId};
use crate::ipc;
use crate::shm::SegmentRole;

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
    /// Rings these workers, and returns which of them have not made a turn since an earlier ring. A worker without a
    /// serving incarnation is left out: what it owes is unknown.
    pub(super) fn observe<'a>(
        &mut self,
        now: Monotonic,
        config: &Config,
        workers: impl Iterator<Item = (&'a WorkerId, u32)>,
    ) -> Vec<WorkerLiveness> {
        let last = std::mem::take(&mut self.seen);
        let mut all = Vec::new();
        for (id, pid) in workers {
            let Ok(ipc) = ipc::open(config, id) else { continue };
            let attached = ipc.segment.is_role_locked(SegmentRole::Worker); // not between two incarnations
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
        all
    }

    /// The dispatcher answers again: what was seen is outdated.
    pub(super) fn reset(&mut self) {
        self.seen.clear();
    }
}
