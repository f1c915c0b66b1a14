//! How a call fails, sorted by the one question that matters: may it be sent again?

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;

use super::address::{Address, Target};
use super::problem::Problem;
use crate::ids::WorkerId;

/// A call without an answer, or with half of one. The message is complete: it names the cause.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No worker has seen the request. It is safe to send it again.
    #[error("{cause}{}", tries(*attempts))]
    NotStarted {
        /// What was in the way, at the last attempt.
        cause: Cause,
        /// How often it was tried.
        attempts: u32,
    },
    /// The worker got the request, or a part of it, and the answer is missing or cut short: it may have
    /// been carried out or not. It was not sent again.
    #[error("{worker} may or may not have carried out the request, which was not sent again: {cause}")]
    StartedUnknown {
        /// The worker that got it.
        worker: WorkerId,
        /// How the conversation ended.
        cause: Cause,
    },
}

fn tries(attempts: u32) -> String {
    if attempts > 1 { format!(" (tried {attempts} times)") } else { String::new() }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The caller's request cannot be sent through a dispatcher.
    #[error("this request cannot be sent: {0}")]
    Request(String),
    /// The payload's file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The operating system refused the connection.
    #[error("cannot connect to {to}: {error}")]
    Connect {
        /// Dispatcher or worker.
        to: Address,
        /// Its reason.
        error: io::Error,
    },
    /// The connection was not accepted in time.
    #[error("cannot connect to {to}: no answer within {after:?}")]
    ConnectTimeout {
        /// Dispatcher or worker.
        to: Address,
        /// The bound, `connect_timeout`.
        after: Duration,
    },
    /// The dispatcher ended the connection before it answered, or answered something that is no HTTP.
    #[error("no lease from {from}: {}", chain(error))]
    Dispatcher {
        /// The dispatcher.
        from: Target,
        /// What HTTP says about it.
        error: hyper::Error,
    },
    /// The dispatcher did not answer in time.
    #[error("no lease from {from} within {after:?}")]
    LeaseTimeout {
        /// The dispatcher.
        from: Target,
        /// The bound, `lease_timeout`.
        after: Duration,
    },
    /// What the dispatcher answered is not a lease; something else may listen there.
    #[error("the answer of {from} is not a lease ({why}): is that a patou dispatcher?")]
    BadLease {
        /// The dispatcher.
        from: Target,
        /// The broken rule.
        why: String,
    },
    /// The dispatcher answered with a refusal (only from `Client::lease`; `Client::call` hands the answer back).
    #[error("no lease from {from}: {status}{}", problem.after_colon())]
    Refused {
        /// The dispatcher.
        from: Target,
        /// Its status.
        status: StatusCode,
        /// Its explanation; both fields empty if it gave none.
        problem: Problem,
    },
    /// The conversation with the worker broke off.
    #[error("the connection broke off: {}", chain(error))]
    Worker {
        /// What HTTP says about it.
        error: hyper::Error,
    },
}

/// The payload's file cannot be read, or changed while it was sent.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// The reason.
    pub error: io::Error,
}

impl Cause {
    /// Whether the same attempt may succeed a moment later, as far as the client can tell.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Cause::Connect { error, .. } => {
                !matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput)
            }
            // An answer that is no HTTP will be none the next time either.
            Cause::Dispatcher { error, .. } => !error.is_parse(),
            Cause::ConnectTimeout { .. } | Cause::LeaseTimeout { .. } | Cause::Worker { .. } => true,
            Cause::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            Cause::Request(_) | Cause::File(_) | Cause::BadLease { .. } => false,
        }
    }
}

/// An error with its sources: what HTTP reports alone ("connection error") names no cause.
fn chain(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
