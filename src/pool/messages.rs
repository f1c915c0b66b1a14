//! What a pool is told, and what it says: events and observations in, actions, refusals and notes out.

use std::net::IpAddr;
use std::time::Duration;

use crate::ids::{Claim, Epoch, LeaseId, LeaseTerms, Lifecycle, Monotonic, Phase, RefuseReason};

/// A client as the shell numbers it; smaller numbers came earlier.
pub type ClientId = u64;

/// Who a client is, for fairness: its address, or its user on a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A TCP client.
    Ip(IpAddr),
    /// A client of a Unix socket.
    User(u32),
}

/// The bounds of a pool, from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Workers 1 to this number may be given clients.
    pub workers: u16,
    /// Clients that may wait.
    pub queue: usize,
    /// How long each of them may.
    pub queue_timeout: Duration,
    /// How long a worker may think about an offer.
    pub offer_timeout: Duration,
    /// How long a client may leave its worker alone.
    pub claim_timeout: Duration,
    /// How long its request may take.
    pub request_timeout: Duration,
    /// How often a leased slot is looked at without a ring.
    pub slot_scan: Duration,
    /// How long the others wait for a worker that is being recycled to serve again.
    pub making_room: Duration,
}

/// What the shell reads in a slot.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotView {
    /// The worker's incarnation and state; `None` if nobody has ever been there.
    pub life: Option<(Epoch, Lifecycle, bool)>,
    /// Whether that incarnation holds its lock.
    pub alive: bool,
    /// The claim word; `None` if it is garbage.
    pub claim: Option<Claim>,
    /// The terms of the lease in the claim word.
    pub terms: Option<LeaseTerms>,
    /// The answer to the last question, if it has just come.
    pub answer: Option<SlotAnswer>,
    /// Whether an operator keeps the worker out of service.
    pub drained: bool,
}

impl SlotView {
    /// Whether nobody can tell from it what the worker is doing for whom.
    pub(super) fn is_corrupt(&self) -> bool {
        match self.claim {
            None => true,
            Some(Claim::Held(_, Phase::Claimed | Phase::Responding)) => self.life.is_none() || self.terms.is_none(),
            Some(_) => false,
        }
    }
}

/// An answer, with what it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotAnswer {
    /// To a ping, or to an order that needs no decision.
    Here,
    /// It takes the offered lease.
    Accept(LeaseId),
    /// It does not.
    Refuse(LeaseId, RefuseReason),
    /// It agrees to be recycled, or not.
    Recycle(bool),
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum PoolEvent {
    /// A client wants a worker.
    Client(ClientId, Peer),
    /// A client wants its connection handed over to a worker.
    Connection(ClientId, Peer),
    /// It has gone before it got one.
    Left(ClientId),
    /// The shell has looked at the slot of this worker.
    Seen(u16, SlotView),
    /// Time has passed: something in `Pool::deadline` may be due.
    Tick,
    /// The watchdog asks: everybody is to show a sign of life.
    Probe,
    /// An operator takes the worker out of service.
    Drain(u16),
    /// An operator puts it back.
    Resume(u16),
    /// The set is stopping: nobody gets a worker any more.
    Quiesce,
    /// The watchdog has given up every worker, or has not any more.
    Failed(bool),
}

/// What the shell is to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolAction {
    /// Read the slot and report [`PoolEvent::SlotView`].
    Look(u16),
    /// Put the question and ring.
    Ask(u16, SlotQuestion),
    /// Ring again.
    Ring(u16),
    /// Write the lease line, `Free -> Offered`, ask and ring; then look. A connection is passed instead of ringing.
    Offer {
        /// To whom.
        worker: u16,
        /// Its incarnation.
        epoch: Epoch,
        /// The new lease.
        lease: LeaseId,
        /// When it ends unclaimed.
        claim_by: Monotonic,
        /// Whose connection is handed over, if it is one.
        connection: Option<ClientId>,
    },
    /// `Offered -> Revoked`; then look.
    Revoke(u16, LeaseId),
    /// `Claimed -> Aborted` of a dead incarnation; then look.
    Abort(u16, LeaseId),
    /// `Responding -> Free` of a dead incarnation; then look.
    Reclaim(u16, LeaseId),
    /// `Done | Revoked | Aborted -> Free`; then look.
    Release(u16, LeaseId),
    /// Free a garbled claim word of a dead incarnation; then look.
    Clear(u16),
    /// The client gets this worker; a connection that was handed over has been claimed by it.
    Grant {
        /// Which client.
        client: ClientId,
        /// Which worker.
        worker: u16,
        /// By which lease.
        lease: LeaseId,
        /// When it ends unclaimed.
        claim_by: Monotonic,
    },
    /// The worker has let go of a connection that it had claimed.
    Over {
        /// Whose.
        client: ClientId,
        /// Which worker.
        worker: u16,
        /// By which lease.
        lease: LeaseId,
        /// How it ended.
        end: LeaseEnd,
    },
    /// The client gets nothing.
    Refuse(ClientId, Refusal),
    /// For the log.
    Note(u16, PoolNote),
}

/// How the lease of a connection ended, and so what may still be written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEnd {
    /// The worker is through with it.
    Done,
    /// The worker died before the first byte of a response: it may be answered.
    Unanswered,
    /// The deadline passed before the first byte of a response, and the worker can send none any more: likewise.
    Overdue,
    /// The worker died within a response, or nobody knows: it must not look whole.
    Cut,
}

/// Questions without a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotQuestion {
    /// Are you there?
    Ping,
    /// Is the lease over?
    Finished(LeaseId),
    /// Take nothing new.
    Drain,
    /// Take offers again.
    Resume,
    /// Make room for your next incarnation.
    Recycle,
}

/// Why a client gets no worker. A value, not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many as may wait are waiting.
    QueueFull(usize),
    /// It has waited for as long as it may.
    QueueTimeout(Duration),
    /// Nobody is free, and the pool has no queue.
    NobodyFree,
    /// An operator has taken every worker out of service: waiting would be in vain.
    OutOfService,
    /// The watchdog has given up every worker: so would it be.
    Failed,
    /// The set is stopping.
    Stopping,
}

impl Refusal {
    /// What it is counted as.
    pub(super) fn counted_as(self) -> &'static str {
        match self {
            Refusal::QueueFull(_) => "refused_queue_full",
            Refusal::QueueTimeout(_) => "refused_queue_timeout",
            Refusal::NobodyFree => "refused_nobody_free",
            Refusal::OutOfService => "refused_out_of_service",
            Refusal::Failed => "refused_failed",
            Refusal::Stopping => "refused_stopping",
        }
    }
}

/// What an operator wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolNote {
    /// An incarnation has appeared.
    Up(Epoch),
    /// It is not there any more.
    Down(Epoch),
    /// It did not answer an offer in time.
    Late(LeaseId),
    /// It answers again.
    Back,
    /// A lease ended unused.
    Unclaimed(LeaseId),
    /// The slot held what no honest writer writes.
    Corrupt,
    /// An accident ended a claimed lease.
    Lost(LeaseId),
}
