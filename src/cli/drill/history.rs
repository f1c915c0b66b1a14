//! The history of a drill: what each client sent and received, which starts the handlers recorded, which faults were
//! injected, and the violations that the checker finds in it.
//!
//! Pure.

#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::fault_tracker::{FaultEffect, UnexplainedExit};
use crate::ids::Monotonic;

/// How one attempt of a request ended, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AttemptOutcome {
    /// Status 200, complete, with the expected body.
    Served,
    /// The response looks complete and is wrong.
    WrongResponse(String),
    /// Certainly not started; the client may retry.
    NotStarted(NotStartedReason),
    /// Possibly started.
    Unknown(UnknownReason),
    /// Nothing arrived in time, at this step.
    TimedOut(&'static str),
    /// A status other than 200 without `Patou-Outcome`.
    NoOutcome(u16),
    /// The client disconnected by itself.
    Disconnected,
}

/// Why an attempt has certainly not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotStartedReason {
    /// A response with `Patou-Outcome: not-started` and this status.
    Refused(u16),
    /// The dispatcher closed the connection without a byte.
    ClosedByDispatcher,
    /// The dispatcher could not be reached.
    DispatcherUnreachable,
    /// The worker returned the client to the dispatcher.
    ReturnedToDispatcher,
    /// The worker could not be reached.
    WorkerUnreachable,
    /// It was pipelined, and the response to an earlier request ended the connection.
    ConnectionClosed,
}

/// Why it is unknown whether an attempt started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnknownReason {
    /// A response with `Patou-Outcome: started-unknown` and this status.
    Reported(u16),
    /// The connection to the worker, or a handoff connection, ended without a response.
    NoResponse,
    /// The connection ended within the response.
    Truncated,
}

/// One attempt of one request.
#[derive(Clone, Debug)]
pub(super) struct RequestAttempt {
    pub request: u64,
    /// From 1. A client retries only what has certainly not started.
    pub number: u32,
    /// The listener, by its index in the configuration.
    pub listener: usize,
    pub sent: Monotonic,
    pub ended: Monotonic,
    /// The part of this time that the client or its handler caused: pauses, retries of the client library.
    pub client_time: Duration,
    /// When the previous request on the same connection was sent, if there was one.
    pub previous_sent: Option<Monotonic>,
    pub outcome: AttemptOutcome,
}

impl RequestAttempt {
    /// How long the client waited for the set.
    pub(super) fn wait(&self) -> Duration {
        self.ended.since(self.sent).saturating_sub(self.client_time)
    }
}

/// A session as its client saw it.
#[derive(Clone, Debug)]
pub(super) struct SessionSpan {
    /// The listener, by its index in the configuration.
    pub listener: usize,
    /// When the client had received the 101.
    pub opened: Monotonic,
    /// When the client sent the last message that came back: the session was open then.
    pub alive_until: Monotonic,
    /// What was wrong with it.
    pub fault: Option<&'static str>,
}

/// Everything that was observed.
#[derive(Clone, Debug)]
pub(super) struct DrillHistory {
    pub started_at: Monotonic,
    pub attempts: Vec<RequestAttempt>,
    pub sessions: Vec<SessionSpan>,
    /// Request and attempt number of each start that a handler recorded.
    pub recorded_starts: Vec<(u64, u32)>,
    pub effects: Vec<FaultEffect>,
    pub unexplained_exits: Vec<UnexplainedExit>,
    /// When the machine delayed the drill itself, and by how much.
    pub delays: Vec<(Monotonic, Duration)>,
}

/// A promise that did not hold; `docs/PROMISES.md` lists the promises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PromiseViolation {
    /// `P1` to `P10`.
    pub promise: &'static str,
    pub what: String,
    /// The events that led to it, one per line.
    pub story: Vec<String>,
}

impl PromiseViolation {
    /// One without events.
    pub(super) fn new(promise: &'static str, what: String) -> Self {
        Self { promise, what, story: Vec::new() }
    }
}

impl fmt::Display for AttemptOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttemptOutcome::Served => f.write_str("served"),
            AttemptOutcome::WrongResponse(what) => write!(f, "a response that looks complete and is wrong: {what}"),
            AttemptOutcome::NotStarted(reason) => reason.fmt(f),
            AttemptOutcome::Unknown(reason) => reason.fmt(f),
            AttemptOutcome::TimedOut(step) => write!(f, "timed out ({step})"),
            AttemptOutcome::NoOutcome(status) => write!(f, "status {status} without Patou-Outcome"),
            AttemptOutcome::Disconnected => f.write_str("the client disconnected"),
        }
    }
}

impl fmt::Display for NotStartedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotStartedReason::Refused(status) => return write!(f, "refused with status {status}, not-started"),
            NotStartedReason::ClosedByDispatcher => "closed by the dispatcher without a byte",
            NotStartedReason::DispatcherUnreachable => "dispatcher unreachable",
            NotStartedReason::ReturnedToDispatcher => "returned to the dispatcher by the worker",
            NotStartedReason::WorkerUnreachable => "worker unreachable",
            NotStartedReason::ConnectionClosed => "pipelined, and an earlier response ended the connection",
        })
    }
}

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnknownReason::Reported(status) => write!(f, "status {status}, started-unknown"),
            UnknownReason::NoResponse => f.write_str("the connection ended without a response"),
            UnknownReason::Truncated => f.write_str("the response was visibly truncated"),
        }
    }
}
