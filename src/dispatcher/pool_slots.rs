//! A pool with the slots of its workers.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::fstat;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::fdstore::StoredFd;
use super::grant::Grant;
use super::slot;
use crate::clock;
use crate::config::{self, ListenAddress};
use crate::doorbell::Doorbell;
use crate::exchange::{DispatcherSide, Incarnation, SpinBudget};
use crate::handoff::HandoffSender;
use crate::ids::{Claim, Epoch, LeaseId, Monotonic, PoolName, Token, WorkerId, WorkerNumber};
use crate::log::Event;
use crate::pool::{ClientId, Pool, PoolNote, SlotAnswer, SlotView};
use crate::shm::{Segment, SegmentIdentity, SegmentRole};

/// Reads of one slot in one pass. A correct worker changes its slot once or twice in that time; a slot that keeps
/// changing is read again after `slot_scan`.
const READS_PER_PASS: u32 = 32;

/// How long a worker that was alive, in a segment that was undamaged, is assumed to be so unless the doorbell rings:
/// both checks cost a system call. If it has died meanwhile, the watchdog rings, or its connection cannot be passed.
const RECHECK_AFTER: Duration = Duration::from_millis(5);

/// Index of a pool, and number of a worker.
pub(super) type SlotIndex = (usize, WorkerNumber);

/// The slot of a worker, as this dispatcher holds it.
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

impl WorkerSlot {
    /// What in the segment does not conform to the protocol.
    fn damage(&self) -> Option<String> {
        let damage = self.segment.damage().map(|damage| damage.to_string());
        damage.or_else(|| (!self.side.is_intact()).then(|| "the dispatcher's words have been overwritten".into()))
    }

    /// Whether a name of the segment or the doorbells was removed.
    pub(super) fn has_lost_names(&self) -> bool {
        let is_unlinked = |fd: BorrowedFd<'_>| fstat(fd).is_ok_and(|status| status.st_nlink == 0);
        [self.segment.as_fd(), self.doorbell.as_fd(), self.own_doorbell.as_fd()].into_iter().any(is_unlinked)
    }

    /// Whether the segment shows no damage that can be found without a system call.
    fn is_untouched(&self) -> bool {
        !self.segment.is_truncated() && self.side.is_intact()
    }

    /// Recreates the segment of a dead worker.
    fn restore(&mut self, worker: &WorkerId, damage: &str) {
        let Self { side, segment, identity, last_epoch, .. } = self;
        match segment.restore(*identity, || side.reinitialize(*last_epoch)) {
            Ok(true) => tracing::warn!(%worker, "the segment of this worker is damaged ({damage}): recreated"),
            Ok(false) => {} // a new incarnation has just attached
            Err(error) => {
                tracing::error!(%worker,
                    "the segment of this worker is damaged ({damage}) and cannot be recreated: {error}");
            }
        }
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        self.doorbell_task.abort();
    }
}

/// A pool and the slots of its workers.
pub(super) struct PoolSlots {
    pub config: config::PoolConfig,
    /// Its lease table, which decides.
    pub table: Pool,
    /// The cause, if the watchdog has given up every worker.
    pub failed: Option<String>,
    /// Index `n - 1` is worker `n`.
    pub slots: Vec<Option<WorkerSlot>>,
    /// The port to which workers redirect clients that have no valid lease.
    pub return_port: Option<u16>,
    /// How fast its workers answer.
    pub spin: SpinBudget,
}

impl PoolSlots {
    /// The slot of worker `n`, if it is open.
    pub(super) fn slot(&self, n: WorkerNumber) -> Option<&WorkerSlot> {
        self.slots.get(n.index())?.as_ref()
    }

    /// The slot of worker `n`, if it is open.
    pub(super) fn slot_mut(&mut self, n: WorkerNumber) -> Option<&mut WorkerSlot> {
        self.slots.get_mut(n.index())?.as_mut()
    }

    /// Whether the slot of worker `n` may be read once more in this pass.
    pub(super) fn may_read(&mut self, n: WorkerNumber, pass: u64) -> bool {
        let Some(slot) = self.slot_mut(n) else { return true };
        let reads = if slot.reads.0 == pass { slot.reads.1 } else { 0 };
        slot.reads = (pass, reads + 1);
        reads < READS_PER_PASS
    }

    /// Reads the slot of worker `n`. A damaged slot is reported as corrupt while its worker is alive, and its segment
    /// is recreated when the worker is dead.
    pub(super) fn read_slot(&mut self, n: WorkerNumber) -> SlotView {
        let worker = WorkerId { pool: self.config.name.clone(), number: n };
        let Some(slot) = self.slot_mut(n) else { return SlotView::default() };
        let now = clock::now();
        let checked = slot.checked_at.filter(|at| now.since(*at) < RECHECK_AFTER && slot.is_untouched());
        let mut alive = checked.is_some() || slot.segment.is_role_locked(SegmentRole::Worker);
        let mut damage = if checked.is_some() { None } else { slot.damage() };
        if let (Some(what), false) = (&damage, alive) {
            slot.restore(&worker, what);
            alive = slot.segment.is_role_locked(SegmentRole::Worker);
            damage = slot.damage();
        }
        let seen = slot::read_slot(&mut slot.side, alive);
        match seen.answer {
            Some(SlotAnswer::Accept(lease)) => {
                tracing::debug!(%worker, %lease, event = %Event::LeaseAnswered, "worker accepts the offer");
            }
            Some(SlotAnswer::Refuse(lease, reason)) => {
                tracing::debug!(%worker, %lease, event = %Event::LeaseAnswered, "worker refuses the offer: {reason}");
            }
            _ => {}
        }
        if alive && seen.life.is_none() && (slot.last_epoch.is_some() || !Incarnation::is_unwritten(&slot.segment)) {
            damage = damage.or_else(|| Some("its life line is invalid".into()));
        }
        slot.checked_at = checked.or((alive && damage.is_none()).then_some(now));
        match damage {
            None => {
                slot.last_epoch = seen.life.map(|(epoch, ..)| epoch).or(slot.last_epoch);
                seen
            }
            // The slot does not show what the worker is doing; `claim: None` has the worker replaced.
            Some(_) if alive => SlotView { claim: None, terms: None, answer: None, ..seen },
            // No worker is attached, and none can attach until the segment is recreated.
            Some(_) => SlotView { claim: Some(Claim::Free), terms: None, answer: None, life: None, ..seen },
        }
    }

    /// Sets the port to which workers redirect clients that have no valid lease.
    pub(super) fn set_return_port(&mut self, return_port: Option<u16>) {
        self.return_port = return_port;
        self.slots.iter_mut().flatten().for_each(|slot| slot.side.set_return_port(return_port));
    }

    /// The grant of a lease on worker `n`.
    pub(super) fn grant(&self, n: WorkerNumber, lease: LeaseId, claim_by: Monotonic) -> Grant {
        let worker = WorkerId { pool: self.config.name.clone(), number: n };
        let slot = self.slot(n).expect("a granted worker has an open slot");
        let mut address = self.config.worker_address(n);
        // The port that the worker reports counts only if the kernel chose it: otherwise a worker could redirect its
        // clients to a foreign port.
        if let ListenAddress::Tcp(tcp) = &mut address
            && tcp.port() == 0
            && let Some(port) = Incarnation::load(&*slot.segment).and_then(|life| life.port)
        {
            tcp.set_port(port);
        }
        Grant { worker, lease, token: slot.token, address, claim_by }
    }

    /// Logs a note of the pool.
    pub(super) fn log_note(&self, n: WorkerNumber, note: PoolNote) {
        let worker = WorkerName(&self.config.name, n);
        match note {
            PoolNote::Up(epoch) => tracing::debug!(%worker, %epoch, "worker is up"),
            PoolNote::Down(epoch) => tracing::debug!(%worker, %epoch, "worker is down"),
            PoolNote::Late(lease) => {
                tracing::warn!(%worker, %lease, event = %Event::WorkerLate,
                    "worker did not answer an offer within offer_timeout: offering its client to another, or \
                     queueing it again");
            }
            PoolNote::Back => tracing::info!(%worker, event = %Event::WorkerBack, "worker answers again"),
            PoolNote::Unclaimed(lease) => {
                let event = Event::LeaseUnclaimed;
                tracing::debug!(%worker, %lease, %event, "lease was not claimed within claim_timeout: revoking it");
            }
            PoolNote::Corrupt => {
                let Some(slot) = self.slot(n) else { return };
                let damage = slot.damage().unwrap_or_else(|| "its life or its claim is invalid".into());
                tracing::error!(%worker, event = %Event::SlotCorrupt,
                    "the slot of this worker is corrupt ({damage}): the watchdog replaces the worker");
                // The next incarnation must not attach before the segment is recreated.
                slot.segment.invalidate();
            }
            PoolNote::Lost(lease) => {
                tracing::warn!(%worker, %lease, event = %Event::RequestLost, "worker died while it served a request");
            }
        }
    }
}

/// The name of a worker, formatted only when it is logged.
pub(super) struct WorkerName<'a>(pub &'a PoolName, pub WorkerNumber);

impl fmt::Display for WorkerName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}
