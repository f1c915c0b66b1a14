//! The errors of a call. They distinguish whether the request may be sent again.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;

use super::address::{Address, Target};
use super::problem::Problem;
use crate::ids::WorkerId;

/// A call without a response, or with a truncated one. The message includes the cause.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No worker has received the request. It is safe to send it again.
    #[error("{cause}{}", attempts_text(*attempts))]
    NotStarted {
        /// The cause of the last attempt's failure.
        cause: FailureCause,
        /// The number of attempts.
        attempts: u32,
    },
    /// The worker received the request or a part of it, and the response is missing or truncated. The request may have
    /// been carried out; it was not sent again.
    #[error("{worker} may or may not have carried out the request, which was not sent again: {cause}")]
    StartedUnknown {
        /// The worker that received it.
        worker: WorkerId,
        /// How the connection ended.
        cause: FailureCause,
    },
}

fn attempts_text(attempts: u32) -> String {
    if attempts > 1 { format!(" ({attempts} attempts)") } else { String::new() }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FailureCause {
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
        /// The reason.
        error: io::Error,
    },
    /// The connection was not accepted in time.
    #[error("cannot connect to {to}: no connection within {after:?}")]
    ConnectTimeout {
        /// Dispatcher or worker.
        to: Address,
        /// The bound, `connect_timeout`.
        after: Duration,
    },
    /// The dispatcher closed the connection without a response, or its response is not HTTP.
    #[error("no lease from {from}: {}", chain(error))]
    Dispatcher {
        /// The dispatcher.
        from: Target,
        /// The HTTP error.
        error: hyper::Error,
    },
    /// The dispatcher did not respond in time.
    #[error("no lease from {from} within {after:?}")]
    LeaseTimeout {
        /// The dispatcher.
        from: Target,
        /// The bound, `lease_timeout`.
        after: Duration,
    },
    /// The response is not a lease; another server may listen on this address.
    #[error("the response of {from} is not a lease ({why}): is it a patou dispatcher?")]
    BadLease {
        /// The dispatcher.
        from: Target,
        /// The violated rule.
        why: String,
    },
    /// The dispatcher refused (only from `Client::lease`; `Client::call` returns the refusal as its response).
    #[error("no lease from {from}: {status}{}", problem.after_colon())]
    Refused {
        /// The dispatcher.
        from: Target,
        /// Its status.
        status: StatusCode,
        /// Its explanation; both fields are empty if there is none.
        problem: Problem,
    },
    /// The connection to the worker failed.
    #[error("the connection failed: {}", chain(error))]
    Worker {
        /// The HTTP error.
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

impl FailureCause {
    /// Whether a retry may succeed.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            FailureCause::Connect { error, .. } => {
                !matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput)
            }
            // A server that does not speak HTTP will not do so at the next attempt.
            FailureCause::Dispatcher { error, .. } => !error.is_parse(),
            FailureCause::ConnectTimeout { .. } | FailureCause::LeaseTimeout { .. } | FailureCause::Worker { .. } => {
                true
            }
            FailureCause::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            FailureCause::Request(_) | FailureCause::File(_) | FailureCause::BadLease { .. } => false,
        }
    }
}

/// An error with its sources: the message of hyper alone ("connection error") does not name the cause.
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
