//! Why a request has no response, or an incomplete one.

use std::io;

use http::StatusCode;

use crate::descriptors;

/// The status to respond with, and the reason. As the error of a response body it means that the response must
/// end with a visible cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct RequestFailure {
    /// 400, 404, 408 or 413 for a request that cannot be served, 500 or 503 for a program that cannot be started, 502 for a
    /// program that dies or breaks the protocol, 507 without space for the request body. The worker itself adds 504 and
    /// 505.
    pub status: StatusCode,
    /// Why, for the client and the log; without a full stop.
    pub reason: String,
    /// Whether a program may have read a part of the request. If not, it is safe to send the request again.
    pub started: bool,
    /// The last line that the program wrote to standard error: for the log alone, as it may hold secrets.
    pub last_line: Option<String>,
    /// Whether the worker counts and logs it. What clients look for in vain is no fault.
    pub is_fault: bool,
}

impl RequestFailure {
    pub(crate) fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), started: true, last_line: None, is_fault: true }
    }

    pub(super) fn not_started(self) -> Self {
        Self { started: false, ..self }
    }

    /// There is no program for the path of the request: 404.
    pub(super) fn not_found(reason: impl Into<String>) -> Self {
        Self { is_fault: false, ..Self::new(StatusCode::NOT_FOUND, reason).not_started() }
    }

    /// The program failed: 502.
    pub(super) fn bad_gateway(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, reason)
    }

    /// The program did not start: 503 if `error` is a lack of descriptors, memory or processes, which may pass, else 500.
    pub(super) fn cannot_start(reason: impl Into<String>, error: Option<&io::Error>) -> Self {
        let is_shortage = error.is_some_and(descriptors::is_shortage);
        let status = if is_shortage { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::INTERNAL_SERVER_ERROR };
        Self::new(status, reason).not_started()
    }

    /// The reason with the last line of the program.
    pub(crate) fn for_log(&self) -> String {
        match &self.last_line {
            Some(line) => format!("{}; its last line on standard error: {line}", self.reason),
            None => self.reason.clone(),
        }
    }

    /// When the client should retry, in seconds.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        (self.status == StatusCode::SERVICE_UNAVAILABLE && !self.started).then_some(1)
    }
}
