//! Why a request has no response, or an incomplete one.

use http::StatusCode;

/// The status to respond with, and the reason. As the error of a response body it means that the response must
/// end with a visible cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct RequestFailure {
    /// 400, 408, 411 or 413 for a request that cannot be served, 500 for a program that cannot be started, 502 for
    /// a program that dies or breaks the protocol. The worker itself adds 504 and 505.
    pub status: StatusCode,
    /// Why, for the client and the log; without a full stop.
    pub reason: String,
    /// Whether a program may have read a part of the request. If not, it is safe to send the request again.
    pub started: bool,
}

impl RequestFailure {
    pub(super) fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), started: true }
    }

    pub(super) fn not_started(self) -> Self {
        Self { started: false, ..self }
    }

    /// The program failed: 502.
    pub(super) fn bad_gateway(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, reason)
    }

    /// The program did not start: 500.
    pub(super) fn cannot_start(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, reason)
    }
}
