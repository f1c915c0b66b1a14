//! A pool with the slots of its workers.

use std::collections::VecDeque;
use std::fmt;

use super::grant::Grant;
use super::refusal::PoolAvailability;
use super::worker_slot::WorkerSlot;
use crate::clock;
use crate::config::{HandlerConfig, ListenAddress, PoolConfig};
use crate::exchange::{Incarnation, SlotCounters};
use crate::ids::{Epoch, LeaseId, Lifecycle, Monotonic, PoolName, WorkerId, WorkerNumber};
use crate::log::Event;
use crate::pool::{Pool, PoolLimits, PoolNote, SlotAnswer, SlotView, Worker};
use crate::probe::{PoolReport, WorkerReport};

/// Index of a pool, and number of a worker.
pub(super) type SlotIndex = (usize, WorkerNumber);

/// A pool and the slots of its workers.
pub(super) struct PoolSlots {
    pub config: PoolConfig,
    /// Its lease table, which decides.
    pub table: Pool,
    /// The cause, if the watchdog has given up every worker.
    pub failed: Option<String>,
    /// Index `n - 1` is worker `n`.
    pub slots: Vec<Option<WorkerSlot>>,
    /// The port to which workers redirect clients that have no valid lease.
    pub return_port: Option<u16>,
}

impl PoolSlots {
    /// A pool without open slots.
    pub(super) fn new(config: PoolConfig, table: Pool) -> Self {
        Self { config, table, failed: None, slots: Vec::new(), return_port: None }
    }

    /// Applies a configuration, and makes room for the slots of new workers.
    pub(super) fn reconfigure(&mut self, config: PoolConfig, limits: PoolLimits, return_port: Option<u16>) {
        let missing = usize::from(config.workers).saturating_sub(self.slots.len());
        self.slots.extend(std::iter::repeat_with(|| None).take(missing));
        self.config = config;
        self.table.reconfigure(limits);
        self.return_port = return_port;
        self.slots.iter_mut().flatten().for_each(|slot| slot.side.set_return_port(return_port));
    }

    /// The slot of worker `n`, if it is open.
    pub(super) fn slot(&self, n: WorkerNumber) -> Option<&WorkerSlot> {
        self.slots.get(n.index())?.as_ref()
    }

    /// The slot of worker `n`, if it is open.
    pub(super) fn slot_mut(&mut self, n: WorkerNumber) -> Option<&mut WorkerSlot> {
        self.slots.get_mut(n.index())?.as_mut()
    }

    /// Whether the configuration in force has worker `n`.
    pub(super) fn has_worker(&self, n: WorkerNumber) -> bool {
        (1..=self.config.workers).contains(&n.get())
    }

    /// Whether an operator keeps worker `n` out of service.
    pub(super) fn is_drained(&self, n: WorkerNumber) -> bool {
        self.table.workers().get(n.index()).is_some_and(|worker| worker.drained)
    }

    /// Whether its workers speak HTTP.
    pub(super) fn speaks_http(&self) -> bool {
        !matches!(self.config.handler, HandlerConfig::Inetd(_))
    }

    /// Whether the slot of worker `n` may be read once more in this pass.
    pub(super) fn may_read(&mut self, n: WorkerNumber, pass: u64) -> bool {
        self.slot_mut(n).is_none_or(|slot| slot.may_read(pass))
    }

    /// Reads the slot of worker `n`.
    pub(super) fn read_slot(&mut self, n: WorkerNumber) -> SlotView {
        let worker = WorkerId { pool: self.config.name.clone(), number: n };
        let Some(slot) = self.slot_mut(n) else { return SlotView::default() };
        let seen = slot.read(&worker);
        match seen.answer {
            Some(SlotAnswer::Accept(lease)) => {
                tracing::debug!(%worker, %lease, event = %Event::LeaseAnswered, "worker accepts the offer");
            }
            Some(SlotAnswer::Refuse(lease, reason)) => {
                tracing::debug!(%worker, %lease, event = %Event::LeaseAnswered, "worker refuses the offer: {reason}");
            }
            _ => {}
        }
        seen
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
                let damage = self.slot(n).and_then(WorkerSlot::damage);
                let damage = damage.unwrap_or_else(|| "its life or its claim is invalid".into());
                tracing::error!(%worker, event = %Event::SlotCorrupt,
                    "the slot of this worker is corrupt ({damage}): the watchdog replaces the worker");
            }
            PoolNote::Lost(lease) => {
                tracing::warn!(%worker, %lease, event = %Event::RequestLost, "worker died while it served a request");
            }
        }
    }

    /// The workers, for the text of a refusal.
    pub(super) fn availability(&self) -> PoolAvailability {
        let all = self.table.workers();
        let workers = &all[..usize::from(self.config.workers).min(all.len())];
        let drained = workers.iter().filter(|worker| worker.drained).count();
        let down = workers.iter().filter(|worker| !worker.drained && !worker.up).count();
        PoolAvailability { workers: workers.len(), drained, down, failed: self.failed.clone() }
    }

    /// The workers that a report would accuse: those that have left a question open, and those with a corrupt slot. Their
    /// slots are read again before, because they may have answered or been replaced since.
    pub(super) fn suspect_workers(&self) -> VecDeque<WorkerNumber> {
        let is_suspect = |worker: &Worker| worker.silent_since.is_some() || worker.is_corrupt();
        self.workers().filter(|(_, worker)| is_suspect(worker)).map(|(n, _)| n).collect()
    }

    /// The part of this pool in the answer to a probe. `lost_since`: since when files of a worker have been missing.
    pub(super) fn report(&self, lost_since: impl Fn(WorkerNumber) -> Option<Monotonic>) -> PoolReport {
        let now = clock::now();
        let ms_since = |since| now.since(since).as_millis() as u64;
        let counters = |n| self.slot(n).map(|slot| SlotCounters::load(&*slot.segment)).unwrap_or_default();
        let ticks = |n| Incarnation::load(&*self.slot(n)?.segment).map(|life| life.ticks);
        let worker = |(n, worker): (WorkerNumber, &Worker)| WorkerReport {
            epoch: worker.epoch.map_or(0, Epoch::get),
            serves: worker.up && worker.state == Some(Lifecycle::Ready) && !worker.is_corrupt(),
            late: worker.is_late(),
            drained: worker.drained,
            corrupt: worker.is_corrupt(),
            recycle_requested: worker.recycle_requested,
            silent_ms: worker.silent_since.map(ms_since),
            starting_ms: worker.starting_since.or_else(|| lost_since(n)).map(ms_since),
            ticks: worker.silent_since.and_then(|_| ticks(n)),
            handler_faults: counters(n).handler_faults,
        };
        let (queue, oldest) = self.table.waiting();
        PoolReport {
            name: self.config.name.clone(),
            queue,
            oldest_ms: oldest.map_or(0, ms_since),
            served: self.workers().fold(0, |sum: u64, (n, _)| sum.wrapping_add(counters(n).served)),
            workers: self.workers().map(worker).collect(),
            counters: self.table.counters().clone(),
        }
    }

    fn workers(&self) -> impl Iterator<Item = (WorkerNumber, &Worker)> {
        WorkerNumber::up_to(u16::MAX).zip(self.table.workers())
    }
}

/// The name of a worker, formatted only when it is logged.
pub(super) struct WorkerName<'a>(pub &'a PoolName, pub WorkerNumber);

impl fmt::Display for WorkerName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}
