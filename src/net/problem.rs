//! Answers that say what went wrong, for programs and for people: RFC 9457 problem details.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderName, Response, StatusCode};
use http_body_util::Full;

/// Tells a client whether its request had started.
pub const OUTCOME: HeaderName = HeaderName::from_static("patou-outcome");

/// What became of a request that has no answer of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No worker began: it may be sent again.
    NotStarted,
    /// A worker had begun: sending it again may do it twice.
    StartedUnknown,
}

impl Outcome {
    /// As in the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::NotStarted => "not-started",
            Outcome::StartedUnknown => "started-unknown",
        }
    }
}

/// A problem to be told to a client.
#[derive(Clone, Debug)]
pub struct ProblemResponse {
    /// The HTTP status.
    pub status: StatusCode,
    /// What happened, in one sentence.
    pub detail: String,
    /// What became of the request.
    pub outcome: Outcome,
    /// When it is worth trying again, in seconds.
    pub retry_after: Option<u64>,
}

impl ProblemResponse {
    /// A problem whose request never started.
    pub fn not_started(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), outcome: Outcome::NotStarted, retry_after: None }
    }

    /// A problem of a request that a worker had taken.
    pub fn started(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), outcome: Outcome::StartedUnknown, retry_after: None }
    }

    /// 408: a client was too slow with the head of its request.
    pub fn late_head() -> Self {
        Self::not_started(StatusCode::REQUEST_TIMEOUT, "the head of the request did not come within head_timeout")
    }

    /// The same with `Retry-After`.
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Its body: `application/problem+json`.
    pub fn json(&self) -> String {
        let title = self.status.canonical_reason().unwrap_or("Problem");
        serde_json::json!({
            "type": "about:blank",
            "title": title,
            "status": self.status.as_u16(),
            "detail": self.detail,
            "outcome": self.outcome.as_str(),
        })
        .to_string()
    }

    /// The whole response.
    pub fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.json() + "\n"));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(OUTCOME, HeaderValue::from_static(self.outcome.as_str()));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }

    /// The whole response as bytes, for a connection that hyper does not serve (any more).
    pub fn raw(&self) -> Vec<u8> {
        let body = self.json() + "\n";
        let retry = self.retry_after.map_or(String::new(), |s| format!("retry-after: {s}\r\n"));
        format!(
            "HTTP/1.1 {}\r\ncontent-type: application/problem+json\r\npatou-outcome: {}\r\n{retry}\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.status,
            self.outcome.as_str(),
            body.len(),
        )
        .into_bytes()
    }
}
