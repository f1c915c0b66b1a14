//! The slot of one worker, as this dispatcher holds it: inspected, repaired, read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::fstat;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::fdstore::StoredFd;
use super::slot;
use crate::clock;
use crate::doorbell::Doorbell;
use crate::exchange::{DispatcherSide, Incarnation};
use crate::handoff::HandoffSender;
use crate::ids::{Epoch, Monotonic, Token, WorkerId};
use crate::pool::{ClientId, SlotView};
use crate::shm::{Segment, SegmentIdentity, SegmentRole};

/// Reads of one slot in one pass. A correct worker changes its slot once or twice in that time; a slot that keeps
/// changing is read again after `slot_scan`.
const READS_PER_PASS: u32 = 32;

/// How long a worker that was alive, in a segment that was undamaged, is assumed to be so unless the doorbell rings:
/// both checks cost a system call. If it has died meanwhile, the watchdog rings, or its connection cannot be passed.
const RECHECK_AFTER: Duration = Duration::from_millis(5);

/// The slot of a worker.
pub(super) struct WorkerSlot {
    pub side: DispatcherSide<Arc<Segment>>,
    pub segment: Arc<Segment>,
    /// For the header of a recreated segment.
    pub identity: SegmentIdentity,
    pub doorbell: Doorbell,
    pub handoff_sender: HandoffSender,
    /// The client of the connection that was passed last.
    pub lent: Option<ClientId>,
    pub token: Token,
    /// Rung by the worker.
    pub own_doorbell: Rc<AsyncFd<OwnedFd>>,
    /// The task that listens to it.
    pub doorbell_task: AbortHandle,
    /// The objects in the descriptor store, if their names were removed.
    pub stored: Vec<StoredFd>,
    /// The last incarnation in an undamaged slot.
    pub last_epoch: Option<Epoch>,
    /// The pass of the last read, and the reads in that pass.
    pub reads: (u64, u32),
    /// When the worker was last found alive in an undamaged segment.
    pub checked_at: Option<Monotonic>,
    /// Whether the slot tells the worker that it need not ring.
    pub polled: bool,
}

/// The state of a segment, found without reading the slot in it.
struct SegmentState {
    /// Whether the worker's lock is held.
    alive: bool,
    /// What does not conform to the protocol.
    damage: Option<String>,
    /// When that was found.
    at: Monotonic,
}

impl WorkerSlot {
    /// Reads the slot, in a segment that is repaired first if it is damaged and its worker is dead.
    pub(super) fn read(&mut self, worker: &WorkerId) -> SlotView {
        let mut state = self.inspect();
        if let SegmentState { alive: false, damage: Some(damage), .. } = &state {
            self.repair(worker, damage);
            state = self.inspect();
        }
        self.view(&state)
    }

    /// Whether the slot may be read once more in this pass.
    pub(super) fn may_read(&mut self, pass: u64) -> bool {
        let reads = if self.reads.0 == pass { self.reads.1 } else { 0 };
        self.reads = (pass, reads + 1);
        reads < READS_PER_PASS
    }

    fn inspect(&self) -> SegmentState {
        let now = clock::now();
        let recent = self.checked_at.filter(|at| now.since(*at) < RECHECK_AFTER);
        match recent.filter(|_| !self.segment.is_truncated() && self.side.is_intact()) {
            Some(at) => SegmentState { alive: true, damage: None, at },
            None => {
                let alive = self.segment.is_role_locked(SegmentRole::Worker);
                SegmentState { alive, damage: self.damage(), at: now }
            }
        }
    }

    /// What in the segment does not conform to the protocol.
    pub(super) fn damage(&self) -> Option<String> {
        let damage = self.segment.damage().map(|damage| damage.to_string());
        damage.or_else(|| (!self.side.is_intact()).then(|| "the dispatcher's words have been overwritten".into()))
    }

    /// Recreates the segment of a dead worker.
    fn repair(&mut self, worker: &WorkerId, damage: &str) {
        let Self { side, segment, identity, last_epoch, .. } = self;
        match segment.restore(*identity, || side.reinitialize(*last_epoch)) {
            Ok(true) => tracing::warn!(%worker, "the segment of this worker is damaged ({damage}): recreated"),
            Ok(false) => {} // a new incarnation has just attached
            Err(error) => {
                tracing::error!(%worker,
                    "the segment of this worker is damaged ({damage}) and cannot be recreated: {error}");
            }
        }
        self.checked_at = None;
    }

    /// What the slot shows, as far as it can be believed.
    fn view(&mut self, state: &SegmentState) -> SlotView {
        let seen = slot::read_slot(&mut self.side, state.alive);
        let was_written = self.last_epoch.is_some() || !Incarnation::is_unwritten(&self.segment);
        let has_lost_life = state.alive && seen.life.is_none() && was_written;
        let is_sound = state.damage.is_none() && !has_lost_life;
        self.checked_at = (state.alive && is_sound).then_some(state.at);
        if is_sound {
            self.last_epoch = seen.life.map(|(epoch, ..)| epoch).or(self.last_epoch);
        }
        slot::believed(seen, is_sound)
    }

    /// Whether a name of the segment or the doorbells was removed.
    pub(super) fn has_lost_names(&self) -> bool {
        let is_unlinked = |fd: BorrowedFd<'_>| fstat(fd).is_ok_and(|status| status.st_nlink == 0);
        [self.segment.as_fd(), self.doorbell.as_fd(), self.own_doorbell.as_fd()].into_iter().any(is_unlinked)
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        self.doorbell_task.abort();
    }
}
