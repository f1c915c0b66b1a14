//! Input and output of a pool: events and slot contents in; actions, refusals and notes out.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::ids::{
    Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, RefuseReason, Replacements, SessionRequest, WorkerNumber,
};

/// The number of a client; a smaller number arrived earlier.
pub(crate) type ClientId = u64;

/// Identifies a client for fairness: its address, or its user on a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Peer {
    /// TCP clients of an IPv4 address or of an IPv6 network of 64 bits, which one client may have whole.
    Ip(IpAddr),
    /// A client of a Unix socket.
    User(u32),
}

impl Peer {
    /// The client at this address. An IPv4-mapped IPv6 address is the IPv4 address.
    pub(crate) fn at(address: IpAddr) -> Self {
        Self::Ip(match address.to_canonical() {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
            v4 => v4,
        })
    }
}

/// The bounds of a pool, from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolLimits {
    /// Workers 1 to this number get clients.
    pub workers: u16,
    /// The longest queue.
    pub queue: usize,
    /// The longest wait in the queue.
    pub queue_timeout: Duration,
    /// How long a worker may take to answer an offer.
    pub offer_timeout: Duration,
    /// How long a client may leave its lease unclaimed.
    pub claim_timeout: Duration,
    /// How long its request may take.
    pub request_timeout: Duration,
    /// The most connections that may be switched to another protocol at the same time.
    pub max_sessions: u16,
    /// How often a leased slot is read without a ring.
    pub slot_scan: Duration,
    /// How long a worker that is being recycled keeps others from being recycled. If it takes longer, the requests of
    /// operators end.
    pub recycle_timeout: Duration,
}

/// The content of a slot, as the dispatcher read it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SlotView {
    /// The worker's incarnation, its state, and whether it wants to be recycled; `None` if no worker has ever
    /// attached.
    pub life: Option<(Epoch, Lifecycle, bool)>,
    /// The planned replacements within that incarnation and earlier ones.
    pub replacements: Replacements,
    /// Whether that incarnation holds its lock.
    pub alive: bool,
    /// The claim word; `None` if it is invalid.
    pub claim: Option<Claim>,
    /// The terms of the lease in the claim word.
    pub terms: Option<LeaseTerms>,
    /// The answer to the last question, on the first read that finds it.
    pub answer: Option<SlotAnswer>,
    /// Whether an operator keeps the worker out of service.
    pub drained: bool,
    /// Whether the client of the lease wants a session, and may have one.
    pub session: SessionRequest,
}

/// A worker's answer, with the lease of its question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotAnswer {
    /// To a ping, or to a command that needs no decision.
    Ack,
    /// It accepts the offered lease.
    Accept(LeaseId),
    /// It refuses it.
    Refuse(LeaseId, RefuseReason),
    /// Whether it agrees to be recycled.
    Recycle(bool),
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PoolEvent {
    /// A client requests a worker.
    Client(ClientId, Peer),
    /// A client requests a worker for its connection, which is passed to that worker.
    Connection(ClientId, Peer),
    /// The client disconnected before it got a worker.
    Disconnected(ClientId),
    /// This dispatcher holds a connection that an earlier one has passed to this worker, and that the worker has claimed
    /// under these terms. Reported before the first read of the slot, which shows what became of it since.
    Adopted(WorkerNumber, ClientId, LeaseTerms),
    /// The slot of this worker was read.
    SlotRead(WorkerNumber, SlotView),
    /// Time has passed: the deadline of the pool may have been reached.
    Tick,
    /// The watchdog's probe: every worker must prove that it is alive.
    Probe,
    /// An operator takes the worker out of service.
    Drain(WorkerNumber),
    /// An operator puts it back into service.
    Resume(WorkerNumber),
    /// An operator requests that this worker is recycled.
    Recycle(WorkerNumber),
    /// The set is stopping: no client gets a worker any more.
    Quiesce,
    /// Whether the watchdog has given up every worker of the pool.
    Failed(bool),
    /// A client was rejected before it could request a worker.
    Rejected(Rejection),
}

/// Why the dispatcher rejects what a client has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// Its request head: malformed, late, too large, or for something that the listener does not serve.
    BadRequest,
    /// Its PROXY header is missing or malformed.
    BadProxyHeader,
}

impl Rejection {
    /// The name of its counter.
    pub(super) fn counted_as(self) -> &'static str {
        match self {
            Rejection::BadRequest => "refused_bad_request",
            Rejection::BadProxyHeader => "refused_bad_proxy_header",
        }
    }
}

/// What the caller must do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolAction {
    /// For a client.
    Client(ClientId, ClientAction),
    /// On the slot of a worker.
    Slot(WorkerNumber, SlotAction),
    /// For the log.
    Note(WorkerNumber, PoolNote),
}

/// What becomes of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientAction {
    /// It gets this worker. With handoff delivery, the worker has claimed the connection.
    Grant {
        /// Its worker.
        worker: WorkerNumber,
        /// Its lease.
        lease: LeaseId,
        /// When it ends unclaimed.
        claim_by: Monotonic,
    },
    /// The lease of its passed connection has ended: the connection belongs to the dispatcher alone again.
    LeaseEnded {
        /// The worker that had claimed it.
        worker: WorkerNumber,
        /// Its lease.
        lease: LeaseId,
        /// How it ended.
        end: LeaseEnd,
    },
    /// It gets no worker.
    Refuse(Refusal),
}

/// A step on a slot. After each that changes the claim word the caller reads the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotAction {
    /// Read it and report [`PoolEvent::SlotRead`].
    Read,
    /// Write the question and ring.
    Question(SlotQuestion),
    /// Ring again.
    Ring,
    /// Write the lease line, `Free -> Offered`, write the question and ring; a connection is passed instead of ringing.
    /// The slot is read when the worker answers, or at once if the offer cannot be made.
    Offer {
        /// The worker's incarnation.
        epoch: Epoch,
        /// The new lease.
        lease: LeaseId,
        /// When it ends unclaimed.
        claim_by: Monotonic,
        /// With handoff delivery: the client of the connection to pass.
        connection: Option<ClientId>,
    },
    /// `Offered -> Revoked`.
    Revoke(LeaseId),
    /// `Claimed -> Aborted`.
    Abort(LeaseId),
    /// Write whether the lease may have a session, and ring.
    DecideSession {
        /// The lease.
        lease: LeaseId,
        /// Whether fewer than the most sessions of the pool are open.
        is_permitted: bool,
    },
    /// `Responding | Upgraded -> Free` of a dead incarnation.
    Reclaim(LeaseId),
    /// `Done | Revoked | Aborted -> Free`.
    Release(LeaseId),
    /// Free an invalid claim word of a dead incarnation.
    Clear,
}

/// How the lease of a passed connection ended, which decides what the dispatcher may still send on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseEnd {
    /// The worker has finished with it.
    Done,
    /// The worker died before the first byte of a response: the dispatcher may respond.
    NoResponse,
    /// The deadline passed before the first byte of a response, and the worker can send none any more: the dispatcher
    /// may respond.
    Overdue,
    /// The worker died within a response, or its slot does not show how far it was: the connection must be reset.
    Cut,
}

/// Questions without an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotQuestion {
    /// Is the worker alive?
    Ping,
    /// Has the lease ended?
    Finished(LeaseId),
    /// Accept no new offers.
    Drain,
    /// Accept offers again.
    Resume,
    /// Replace this incarnation, or its warm process, by the next one.
    Recycle,
}

/// Why a client gets no worker. A value, not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The queue is full; its bound.
    QueueFull(usize),
    /// The client has waited this long, which is `queue_timeout`.
    QueueTimeout(Duration),
    /// No worker is free, and the pool has no queue.
    NoWorkerFree,
    /// An operator has taken every worker out of service.
    OutOfService,
    /// The watchdog has given up every worker.
    Failed,
    /// The set is stopping.
    Stopping,
}

impl Refusal {
    /// The name of its counter.
    pub(super) fn counted_as(self) -> &'static str {
        match self {
            Refusal::QueueFull(_) => "refused_queue_full",
            Refusal::QueueTimeout(_) => "refused_queue_timeout",
            Refusal::NoWorkerFree => "refused_no_worker_free",
            Refusal::OutOfService => "refused_out_of_service",
            Refusal::Failed => "refused_failed",
            Refusal::Stopping => "refused_stopping",
        }
    }
}

/// An event worth logging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolNote {
    /// An incarnation has attached.
    Up(Epoch),
    /// It has ended.
    Down(Epoch),
    /// It did not answer an offer in time.
    Late(LeaseId),
    /// A late worker answers again.
    Back,
    /// A lease ended unclaimed.
    Unclaimed(LeaseId),
    /// The slot holds what the protocol does not allow.
    Corrupt,
    /// The worker died with a claimed lease.
    Lost(LeaseId),
}
