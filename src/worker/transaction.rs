//! One request and its response on a worker: how far both have come, until when each step may take, and how the
//! connection ends. Pure: takes `now`.
//!
//! ```text
//! request   Head -> Body <-> Awaited -> Complete -> None -> Head ...        response   None -> Started -> Complete
//!                     '---------'----> Abandoned                                              '-----> Failed
//! lease     Unclaimed -> Claimed -> Responding -> Upgraded
//!                           '-----> Lost
//! ```
//!
//! The pipelined requests of one lease follow each other in one transaction. An event that does not fit the phases changes
//! nothing: a handler may keep a request body and drop it at any later time.

#![forbid(unsafe_code)]

mod messages;

use std::time::Duration;

pub(crate) use self::messages::{
    ClaimedLease, EndCause, Ending, InputStep, LeasePhase, ReceivedHead, RequestPhase, RequestResult, ResponsePhase,
    TransactionEvent,
};
use crate::bounds::{BLOCKED_GRACE, HANDLER_ABORT_GRACE, head_bound};
use crate::ids::{LeaseTerms, Monotonic};

/// The points in time that bound the current request.
#[derive(Clone, Copy, Debug)]
struct Deadlines {
    head: Monotonic,
    head_key: &'static str,
    /// When the handler must have responded.
    response: Monotonic,
    cut: Monotonic,
    /// While the handler has the request.
    blocked: Option<Monotonic>,
}

#[derive(Debug)]
pub(crate) struct Transaction {
    request: RequestPhase,
    response: ResponsePhase,
    lease: Option<ClaimedLease>,
    lease_phase: LeasePhase,
    head_timeout: Duration,
    deadlines: Deadlines,
    /// The number of the current request, from 1; 0 before the first.
    number: u32,
    head: ReceivedHead,
    /// The status of the last response; 0 before there is one.
    status: u16,
    was_refused: bool,
    has_failed: bool,
    is_flushed: bool,
    end: Option<EndCause>,
}

impl Transaction {
    /// A connection was accepted, or received from the dispatcher.
    pub(crate) fn new(now: Monotonic, head_timeout: Duration, request_timeout: Duration) -> Self {
        let (bound, head_key) = head_bound(head_timeout, request_timeout);
        let response = now + request_timeout;
        let deadlines = Deadlines { head: now + bound, head_key, response, cut: response, blocked: None };
        Self {
            request: RequestPhase::Head,
            response: ResponsePhase::None,
            lease: None,
            lease_phase: LeasePhase::Unclaimed,
            head_timeout,
            deadlines,
            number: 0,
            head: ReceivedHead { has_body: false, is_http11: false, is_last: false },
            status: 0,
            was_refused: false,
            has_failed: false,
            is_flushed: true,
            end: None,
        }
    }

    /// As [`Self::new`], for a connection that is claimed before its head is read.
    pub(crate) fn claimed(now: Monotonic, head_timeout: Duration, terms: &LeaseTerms) -> Self {
        let mut transaction = Self::new(now, head_timeout, terms.request_timeout);
        transaction.on(TransactionEvent::claimed(now, terms));
        transaction
    }

    /// Notes what has happened. Returns whether the event fits the phases; another changes nothing.
    pub(crate) fn on(&mut self, event: TransactionEvent) -> bool {
        use TransactionEvent as E;
        match event {
            E::Claimed(_) | E::Responding | E::LeaseLost | E::Upgraded(..) => self.on_lease(event),
            // What hyper and the handler do while they are dropped says nothing about the request.
            _ if self.end.is_some() => false,
            E::HeadRead(_) | E::BodyAwaited | E::BodyArrived | E::BodyEnded | E::BodyDropped | E::NextBegun(_) => {
                self.on_request(event)
            }
            E::Refused(_) | E::ResponseStarted(..) | E::ResponseEnded | E::ResponseFailed | E::NextWanted => {
                self.on_response(event)
            }
            E::RequestFailed => !std::mem::replace(&mut self.has_failed, true),
            E::DeadlineReached(now) => {
                let Deadlines { cut, blocked, .. } = &mut self.deadlines;
                if self.response == ResponsePhase::None || self.lease_phase == LeasePhase::Upgraded {
                    *cut = (now + HANDLER_ABORT_GRACE).max(*cut);
                    *blocked = blocked.map(|at| at.max(now + BLOCKED_GRACE));
                }
                true
            }
            E::HandlerDone => self.deadlines.blocked.take().is_some(),
            // hyper responds by itself to a head that it rejects, which is discarded.
            E::Written => self.request != RequestPhase::Head && std::mem::replace(&mut self.is_flushed, false),
            E::Flushed => !std::mem::replace(&mut self.is_flushed, true),
            E::Ended(cause) => {
                self.end = Some(cause);
                true
            }
        }
    }

    /// As [`Self::on`], for an event of the body of request `number`, of which a later request takes no notice.
    pub(crate) fn on_body(&mut self, number: u32, event: TransactionEvent) -> bool {
        number == self.number && self.on(event)
    }

    fn on_lease(&mut self, event: TransactionEvent) -> bool {
        use {LeasePhase as L, TransactionEvent as E};
        let next = match (self.lease_phase, event) {
            (L::Unclaimed, E::Claimed(lease)) => {
                self.lease = Some(lease);
                self.start_clock(lease.claimed_at, lease.timeout);
                L::Claimed
            }
            (L::Claimed, E::Responding) => L::Responding,
            (L::Claimed, E::LeaseLost) => L::Lost,
            (L::Responding, E::Upgraded(now, timeout)) => {
                self.start_clock(now, timeout);
                L::Upgraded
            }
            _ => return false,
        };
        self.lease_phase = next;
        true
    }

    fn on_request(&mut self, event: TransactionEvent) -> bool {
        use {RequestPhase as R, TransactionEvent as E};
        let next = match (self.request, event) {
            (R::None, E::NextBegun(now)) => {
                let timeout = self.lease.map_or(self.head_timeout, |lease| lease.timeout);
                self.start_clock(now, timeout);
                R::Head
            }
            (R::Head, E::HeadRead(head)) => {
                self.number += 1;
                self.head = head;
                (self.status, self.was_refused, self.has_failed) = (0, false, false);
                if head.has_body { R::Body } else { R::Complete }
            }
            (R::Body, E::BodyAwaited) => R::Awaited,
            (R::Awaited, E::BodyArrived) => R::Body,
            (R::Body | R::Awaited, E::BodyEnded) => R::Complete,
            (R::Body | R::Awaited, E::BodyDropped) => R::Abandoned,
            _ => return false,
        };
        self.request = next;
        true
    }

    fn on_response(&mut self, event: TransactionEvent) -> bool {
        use {RequestPhase as R, ResponsePhase as S, TransactionEvent as E};
        if matches!(self.request, R::None | R::Head) {
            return false;
        }
        self.response = match (self.response, event) {
            (S::None, E::Refused(status)) => {
                (self.status, self.was_refused) = (status, true);
                if self.request != R::Complete {
                    self.request = R::Abandoned;
                }
                S::Complete
            }
            (S::None, E::ResponseStarted(status, now)) => {
                self.status = status;
                if now < self.deadlines.response {
                    self.deadlines.cut = self.deadlines.response;
                }
                S::Started
            }
            (S::Started, E::ResponseEnded) => S::Complete,
            (S::Started, E::ResponseFailed) => S::Failed,
            (S::Complete, E::NextWanted)
                if self.request == R::Complete && self.is_flushed && self.lease_phase != LeasePhase::Upgraded =>
            {
                self.request = R::None;
                S::None
            }
            _ => return false,
        };
        true
    }

    fn start_clock(&mut self, now: Monotonic, timeout: Duration) {
        let (bound, head_key) = head_bound(self.head_timeout, timeout);
        let response = now + timeout;
        let (cut, blocked) = (response + HANDLER_ABORT_GRACE, Some(response + BLOCKED_GRACE));
        self.deadlines = Deadlines { head: now + bound, head_key, response, cut, blocked };
    }

    /// How the connection ends, after [`TransactionEvent::Ended`].
    pub(crate) fn ending(&self) -> Ending {
        // A FIN within a response would make it look complete, and one in place of a response would mean that the request
        // was not started. After a response it is harmless.
        use RequestPhase as R;
        let is_open = self.is_request_open() || !self.is_flushed;
        match self.end {
            _ if self.lease_phase == LeasePhase::Lost => Ending::LeaveOpen,
            Some(EndCause::ClientGone | EndCause::HandlerFault) => Ending::Reset,
            _ if is_open => Ending::Reset,
            Some(EndCause::Idle) if matches!(self.request, R::None | R::Head) && self.lease.is_some() => {
                Ending::KeepAlive
            }
            Some(EndCause::LateHead) => Ending::LateHead408(self.deadlines.head_key),
            Some(EndCause::BadHead) => Ending::Reject,
            None | Some(EndCause::Idle | EndCause::Closed | EndCause::Deadline | EndCause::Broken) => {
                Ending::CloseWrite
            }
        }
    }

    /// What the last request counts as, after [`TransactionEvent::Ended`].
    pub(crate) fn result(&self) -> RequestResult {
        if self.number == 0 || self.was_refused {
            RequestResult::Unused
        } else if self.has_failed || self.ending() == Ending::Reset {
            RequestResult::Failed
        } else {
            RequestResult::Served
        }
    }

    /// What hyper reads next: nothing between a response and the next request, which the dispatcher must find in the
    /// socket.
    pub(crate) fn next_input(&mut self) -> InputStep {
        match (self.request, self.response) {
            (RequestPhase::None, _) => InputStep::Wait,
            (RequestPhase::Complete, ResponsePhase::Complete) => {
                self.on(TransactionEvent::NextWanted);
                InputStep::Wait
            }
            (_, ResponsePhase::Complete) => InputStep::End,
            _ => InputStep::Deliver,
        }
    }

    /// Whether a close of the connection must reset it, as does the death of this process: while a request has no complete
    /// response, and in a session.
    pub(crate) fn needs_reset_on_close(&self) -> bool {
        let is_unanswered = self.request == RequestPhase::Head || self.is_request_open() || !self.is_flushed;
        match self.lease_phase {
            LeasePhase::Unclaimed | LeasePhase::Lost => false,
            LeasePhase::Claimed | LeasePhase::Responding => is_unanswered,
            LeasePhase::Upgraded => true,
        }
    }

    /// Whether there is a request without a complete response.
    pub(crate) fn is_request_open(&self) -> bool {
        !matches!(self.request, RequestPhase::None | RequestPhase::Head) && self.response != ResponsePhase::Complete
    }

    pub(crate) fn request(&self) -> RequestPhase {
        self.request
    }

    pub(crate) fn response(&self) -> ResponsePhase {
        self.response
    }

    pub(crate) fn lease_phase(&self) -> LeasePhase {
        self.lease_phase
    }

    pub(crate) fn lease(&self) -> Option<ClaimedLease> {
        self.lease
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Whether the whole last request has arrived, after which its client sends nothing.
    pub(crate) fn is_last_request_complete(&self) -> bool {
        self.head.is_last && matches!(self.request, RequestPhase::None | RequestPhase::Complete)
    }

    /// Whether an interim response may probe the client: it speaks HTTP/1.1, and nothing has been sent.
    pub(crate) fn may_probe(&self) -> bool {
        self.head.is_http11 && self.lease_phase == LeasePhase::Claimed
    }

    /// Whether an HTTP/1.0 client waits for a response, or for its end.
    pub(crate) fn is_http10_open(&self) -> bool {
        !self.head.is_http11 && self.is_request_open()
    }

    /// Whether the client may send another request after this one.
    pub(crate) fn is_persistent(&self) -> bool {
        !self.head.is_last
    }

    /// When the head must have arrived.
    pub(crate) fn head_by(&self) -> Monotonic {
        self.deadlines.head
    }

    /// When the handler must have responded.
    pub(crate) fn respond_by(&self) -> Monotonic {
        self.deadlines.response
    }

    /// When the serving task cuts the connection, whatever happens on it: at the deadline within a response, later without
    /// one.
    pub(crate) fn cut_at(&self) -> Monotonic {
        self.deadlines.cut
    }

    /// When the control loop concludes that the handler blocks its thread.
    pub(crate) fn blocked_at(&self) -> Option<Monotonic> {
        self.deadlines.blocked
    }

    /// At the deadline without a response: whether the client is late with its body, and not the handler with its
    /// response.
    pub(crate) fn is_client_late(&self) -> bool {
        self.request == RequestPhase::Awaited
    }
}

#[cfg(test)]
mod tests;
