//! A pool with the slots of its workers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;

use super::slot;
use crate::clock;
use crate::config::{self, ListenAddress};
use crate::doorbell::Doorbell;
use crate::exchange::{DispatcherSide, Incarnation, SpinBudget};
use crate::handoff::HandoffSender;
use crate::ids::{Claim, Epoch, LeaseId, Monotonic, PoolName, Token, WorkerId, WorkerNumber};
use crate::log::Event;
use crate::pool::{ClientId, Pool, PoolNote, Refusal, SlotAnswer, SlotView};
use crate::shm::{Segment, SegmentIdentity, SegmentRole};

/// A worker given to a client.
#[derive(Clone, Debug)]
pub struct Grant {
    pub worker: WorkerId,
    pub lease: LeaseId,
    pub token: Token,
    /// Where the worker listens.
    pub address: ListenAddress,
    pub claim_by: Monotonic,
}

/// What became of a client's wish.
pub type Verdict = Result<Grant, Refusal>;

/// How often one slot is looked at in one go. An honest worker changes its slot once or twice meanwhile; one that
/// never stops changing it is looked at again after `slot_scan`.
const LOOKS: u32 = 32;

/// For how long a worker that was found alive, in a segment that was sound, is taken to be so, if nothing rings. Both cost
/// a system call. Of one that has died meanwhile the watchdog's ring tells, or a connection that cannot be passed on to it.
const SOUND: Duration = Duration::from_millis(5);

/// A worker's slot, as this dispatcher holds it.
pub struct Slot {
    pub asker: DispatcherSide<Arc<Segment>>,
    pub segment: Arc<Segment>,
    /// What its segment is made anew with.
    pub identity: SegmentIdentity,
    pub ring: Doorbell,
    /// Where connections are handed over to it.
    pub post: HandoffSender,
    /// Whose connection it was offered last.
    pub lent: Option<ClientId>,
    pub token: Token,
    pub listening: AbortHandle,
    /// The last incarnation seen in an undamaged slot.
    pub last: Option<Epoch>,
    /// The go of the last look, and the looks in it.
    pub looked: (u64, u32),
    /// When its worker was last found alive, with a segment that is sound.
    pub sound_at: Option<Monotonic>,
    /// Whether its worker has been told that it is looked at without a ring.
    pub watched: bool,
}

impl Slot {
    /// What is wrong with the segment, if somebody wrote in it what no honest worker writes.
    fn damage(&self) -> Option<String> {
        let damage = self.segment.damage().map(|damage| damage.to_string());
        damage.or_else(|| (!self.asker.is_intact()).then(|| "the dispatcher's own words have been overwritten".into()))
    }

    /// Whether nothing speaks against it, as far as that can be seen without a system call.
    fn is_untouched(&self) -> bool {
        !self.segment.is_truncated() && self.asker.is_intact()
    }

    /// Makes the segment of a dead worker anew.
    fn restore(&mut self, worker: &WorkerId, damage: &str) {
        let Self { asker, segment, identity, last, .. } = self;
        match segment.restore(*identity, || asker.reinitialize(*last)) {
            Ok(true) => tracing::warn!(%worker, "the segment of this worker is made anew: {damage}"),
            Ok(false) => {} // somebody has just taken it
            Err(error) => tracing::error!(%worker, "the segment of this worker cannot be made anew: {error}"),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// One pool: its decisions, its slots.
pub struct PoolSlots {
    pub config: config::PoolConfig,
    pub pool: Pool,
    /// What ended its workers, if the watchdog has given up all of them.
    pub failed: Option<String>,
    /// Index `n - 1` is worker `n`.
    pub slots: Vec<Option<Slot>>,
    /// How quick its workers are.
    pub patience: SpinBudget,
}

impl PoolSlots {
    /// The slot at this index, if it is open.
    pub fn slot(&self, index: usize) -> Option<&Slot> {
        self.slots.get(index)?.as_ref()
    }

    /// Whether worker `n` may be looked at once more in this go.
    pub fn may_look(&mut self, n: u16, go: u64) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(n) - 1).and_then(Option::as_mut) else { return true };
        let looks = if slot.looked.0 == go { slot.looked.1 } else { 0 };
        slot.looked = (go, looks + 1);
        looks < LOOKS
    }

    /// Reads the slot of worker `n`. A damaged one is garbage while its worker lives, and is made anew when that is
    /// dead.
    pub fn see(&mut self, n: u16) -> SlotView {
        let worker = WorkerId { pool: self.config.name.clone(), number: WorkerNumber::of(n) };
        let Some(slot) = self.slots.get_mut(usize::from(n) - 1).and_then(Option::as_mut) else {
            return SlotView::default();
        };
        let now = clock::now();
        let sound = slot.sound_at.filter(|at| now.since(*at) < SOUND && slot.is_untouched());
        let mut alive = sound.is_some() || slot.segment.is_role_locked(SegmentRole::Worker);
        let mut damage = if sound.is_some() { None } else { slot.damage() };
        if let (Some(what), false) = (&damage, alive) {
            slot.restore(&worker, what);
            alive = slot.segment.is_role_locked(SegmentRole::Worker);
            damage = slot.damage();
        }
        let seen = slot::read_slot(&mut slot.asker, alive);
        match seen.answer {
            Some(SlotAnswer::Accept(lease)) => {
                tracing::debug!(%worker, %lease, event = %Event::LeaseAnswered, "worker takes the lease");
            }
            Some(SlotAnswer::Refuse(lease, reason)) => {
                tracing::debug!(%worker, %lease, event = %Event::LeaseAnswered, "worker refuses the lease: {reason}");
            }
            _ => {}
        }
        if alive && seen.life.is_none() && (slot.last.is_some() || !Incarnation::is_unwritten(&slot.segment)) {
            damage = damage.or_else(|| Some("its life line is garbled".into()));
        }
        slot.sound_at = sound.or((alive && damage.is_none()).then_some(now));
        match damage {
            None => {
                slot.last = seen.life.map(|(epoch, ..)| epoch).or(slot.last);
                seen
            }
            // Nobody can tell what it is doing; `None` has it replaced.
            Some(_) if alive => SlotView { claim: None, terms: None, answer: None, ..seen },
            // Nobody is there, and nobody can be until the segment is made anew.
            Some(_) => SlotView { claim: Some(Claim::Free), terms: None, answer: None, life: None, ..seen },
        }
    }

    /// Tells the workers which listener leads to them.
    pub fn set_return_port(&mut self, return_port: Option<u16>) {
        self.slots.iter_mut().flatten().for_each(|slot| slot.asker.set_return_port(return_port));
    }

    /// What the client of this lease is told.
    pub fn grant(&self, n: u16, lease: LeaseId, claim_by: Monotonic) -> Grant {
        let worker = WorkerId { pool: self.config.name.clone(), number: WorkerNumber::of(n) };
        let slot = self.slots[usize::from(n) - 1].as_ref().expect("who is granted was asked");
        let mut address = self.config.worker_address(WorkerNumber::of(n));
        // Only where the kernel chose the port: otherwise a worker could send its clients to somebody else's.
        if let ListenAddress::Tcp(tcp) = &mut address
            && tcp.port() == 0
            && let Some(port) = Incarnation::load(&*slot.segment).and_then(|life| life.port)
        {
            tcp.set_port(port);
        }
        Grant { worker, lease, token: slot.token, address, claim_by }
    }

    /// Says what an operator wants to read.
    pub fn note(&self, n: u16, note: PoolNote) {
        let worker = WorkerName(&self.config.name, n);
        match note {
            PoolNote::Up(epoch) => tracing::debug!(%worker, %epoch, "worker is there"),
            PoolNote::Down(epoch) => tracing::debug!(%worker, %epoch, "worker has gone"),
            PoolNote::Late(lease) => {
                tracing::warn!(%worker, %lease, event = %Event::WorkerLate,
                    "worker did not answer within offer_timeout: its client goes on to another, or back into the queue");
            }
            PoolNote::Back => tracing::info!(%worker, event = %Event::WorkerBack, "worker answers again"),
            PoolNote::Unclaimed(lease) => {
                let event = Event::LeaseUnclaimed;
                tracing::debug!(%worker, %lease, %event, "lease was not used within claim_timeout");
            }
            PoolNote::Corrupt => {
                let Some(slot) = self.slots.get(usize::from(n) - 1).and_then(Option::as_ref) else { return };
                let damage = slot.damage().unwrap_or_else(|| "its life or its claim is garbled".into());
                tracing::error!(%worker, event = %Event::SlotCorrupt,
                    "the slot of this worker holds what no worker writes: {damage}");
                // The next incarnation is not to take it before it is made anew.
                slot.segment.invalidate();
            }
            PoolNote::Lost(lease) => {
                tracing::warn!(%worker, %lease, event = %Event::RequestLost,
                    "the worker died with a request in hand");
            }
        }
    }
}

/// A worker's name, written only when somebody reads it.
pub struct WorkerName<'a>(pub &'a PoolName, pub u16);

impl fmt::Display for WorkerName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}
