//! The phases of a transaction, what happens to it, and what it decides.

use std::time::Duration;

use crate::ids::{LeaseId, LeaseTerms, Monotonic};

/// How much of the current request has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestPhase {
    /// There is none: the request before has its response.
    None,
    /// Its head is awaited.
    Head,
    /// Its body arrives.
    Body,
    /// The handler waits for more of its body.
    Awaited,
    /// All of it has arrived.
    Complete,
    /// The handler has dropped the body before its end.
    Abandoned,
}

/// How much of the response to the current request has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResponsePhase {
    /// Nothing.
    None,
    /// Its head has been passed to hyper.
    Started,
    /// hyper has taken all of it.
    Complete,
    /// Its body has failed.
    Failed,
}

/// Whether the worker may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeasePhase {
    /// The connection has no lease: a redirect client whose token has not been read.
    Unclaimed,
    /// Nothing has been sent under the lease.
    Claimed,
    /// The slot shows Responding.
    Responding,
    /// The slot shows Upgraded: the connection switches to another protocol.
    Upgraded,
    /// The dispatcher has aborted the lease: the connection is no longer this worker's.
    Lost,
}

/// What a request head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReceivedHead {
    pub has_body: bool,
    /// The client understands interim responses.
    pub is_http11: bool,
    /// The client sends nothing after this request.
    pub is_last: bool,
}

/// A claimed lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClaimedLease {
    pub id: LeaseId,
    pub claimed_at: Monotonic,
    /// The `request_timeout` of its pool.
    pub timeout: Duration,
}

/// What has happened. An event that starts a clock says when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransactionEvent {
    /// The lease is claimed.
    Claimed(ClaimedLease),
    /// The step of the slot to Responding has succeeded.
    Responding,
    /// The step of the slot to Responding has failed.
    LeaseLost,
    /// The response switches the connection to another protocol now, for at most this time.
    Upgraded(Monotonic, Duration),
    /// The head has arrived.
    HeadRead(ReceivedHead),
    /// The request is refused with this status before its handler is called.
    Refused(u16),
    /// The handler reads the body faster than it arrives.
    BodyAwaited,
    /// A part of the body has arrived.
    BodyArrived,
    BodyEnded,
    /// The handler has dropped the body.
    BodyDropped,
    /// The request counts as failed: its body or its handler has an error.
    RequestFailed,
    /// The serving task finds now that the time for the response is over. It runs, however late it is.
    DeadlineReached(Monotonic),
    /// The handler is done with the request: the thread of the serving task is not blocked by it any more.
    HandlerDone,
    /// The response has this status, 0 in an unknown protocol, and starts now.
    ResponseStarted(u16, Monotonic),
    ResponseEnded,
    ResponseFailed,
    /// Bytes of the response were written, and not flushed.
    Written,
    Flushed,
    /// hyper wants the next request.
    NextWanted,
    /// The next request begins to arrive now.
    NextBegun(Monotonic),
    /// Request and response change no more. The lease may still be lost before [`super::Transaction::ending`].
    Ended(EndCause),
}

impl TransactionEvent {
    /// The lease with these terms is claimed now.
    pub(crate) fn claimed(now: Monotonic, terms: &LeaseTerms) -> Self {
        Self::Claimed(ClaimedLease { id: terms.lease, claimed_at: now, timeout: terms.request_timeout })
    }
}

/// Why the service of a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndCause {
    /// The last request has its response, or there was none, and the connection may have another one.
    Idle,
    /// The client has closed its direction between two requests, or the response said that the connection ends.
    Closed,
    /// The head did not arrive in time.
    LateHead,
    /// The head is malformed.
    BadHead,
    /// See [`super::Transaction::cut_at`].
    Deadline,
    /// The client has disconnected.
    ClientGone,
    /// The response of the handler cannot be sent.
    HandlerFault,
    /// Reading or writing has failed.
    Broken,
}

/// How the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It stays open for the next request.
    KeepAlive,
    /// The sending direction is shut down, then the connection.
    CloseWrite,
    /// A reset, so that a cut response does not look complete, nor a lost request not started.
    Reset,
    /// 408: the head did not arrive within this key of the configuration. Then as [`Self::CloseWrite`].
    LateHead408(&'static str),
    /// The refusal of the head. Then as [`Self::CloseWrite`].
    Reject,
    /// It is left to the dispatcher.
    LeaveOpen,
}

/// What a lease counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestResult {
    /// No request was started.
    Unused,
    Served,
    Failed,
}

/// What hyper reads next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputStep {
    /// More of the request.
    Deliver,
    /// The end: the rest of the request is not read.
    End,
    /// Nothing for now.
    Wait,
}
