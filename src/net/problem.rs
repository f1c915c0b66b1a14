//! Responses that describe an error, for programs and for people: RFC 9457 problem details.

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderName, Response, StatusCode};
use http_body_util::Full;

use super::fastcgi::FastcgiStream;
use super::wire::{WireProtocol, encode_cgi_head, encode_fastcgi_end};

/// The header that reports whether the request had started.
const OUTCOME: HeaderName = HeaderName::from_static("patou-outcome");

/// What is known about a request without a response from its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestOutcome {
    /// No worker has claimed it: a retry is safe.
    NotStarted,
    /// A worker has claimed it: a retry may execute it twice.
    StartedUnknown,
}

impl RequestOutcome {
    /// The value of the header.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            RequestOutcome::NotStarted => "not-started",
            RequestOutcome::StartedUnknown => "started-unknown",
        }
    }
}

/// An error response.
#[derive(Clone, Debug)]
pub(crate) struct ProblemResponse {
    /// The HTTP status.
    pub status: StatusCode,
    /// What happened, in one sentence.
    pub detail: String,
    /// Whether the request had started.
    pub outcome: RequestOutcome,
    /// When the client should retry, in seconds.
    pub retry_after: Option<u64>,
}

impl ProblemResponse {
    /// An error for a request that has not started.
    pub(crate) fn not_started(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), outcome: RequestOutcome::NotStarted, retry_after: None }
    }

    /// An error for a request that a worker has claimed.
    pub(crate) fn started(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), outcome: RequestOutcome::StartedUnknown, retry_after: None }
    }

    /// 408: the request head did not arrive within this bound, which is a key of the configuration.
    pub(crate) fn late_head(bound: &str) -> Self {
        Self::not_started(StatusCode::REQUEST_TIMEOUT, format!("the request head did not arrive within {bound}"))
    }

    /// The response to a request that hyper cannot parse. The check of its bytes has found nothing wrong with it.
    pub(crate) fn unparsable(error: &hyper::Error) -> Self {
        let status = if error.is_parse_too_large() {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        } else {
            StatusCode::BAD_REQUEST
        };
        let detail = match status {
            StatusCode::BAD_REQUEST => "the request head is malformed",
            _ => "the request head has too many headers",
        };
        Self::not_started(status, detail)
    }

    /// Adds `Retry-After`.
    pub(crate) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// The body: `application/problem+json`.
    pub(crate) fn json(&self) -> String {
        let title = self.status.canonical_reason().unwrap_or("Problem");
        let [title, detail] = [title, &self.detail].map(json_string);
        let (status, outcome) = (self.status.as_u16(), self.outcome.as_str());
        format!(r#"{{"detail":{detail},"outcome":"{outcome}","status":{status},"title":{title},"type":"about:blank"}}"#)
    }

    /// The whole response.
    pub(crate) fn response(&self) -> Response<Full<Bytes>> {
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

    /// The whole response as bytes, for a connection that hyper does not serve. Empty if it cannot be framed: FastCGI
    /// before the start of a request.
    pub(crate) fn framed(&self, wire: WireProtocol) -> Vec<u8> {
        let request = match wire {
            WireProtocol::Http => return self.raw(),
            WireProtocol::Fastcgi(0) => return Vec::new(),
            WireProtocol::Fastcgi(request) => request,
        };
        let (mut content, mut records) = (BytesMut::new(), BytesMut::new());
        encode_cgi_head(&self.response().into_parts().0, &mut content);
        content.extend_from_slice(format!("{}\n", self.json()).as_bytes());
        FastcgiStream::Stdout.encode(request, &content, &mut records);
        encode_fastcgi_end(request, &mut records);
        records.into()
    }

    /// The whole response in HTTP.
    pub(crate) fn raw(&self) -> Vec<u8> {
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

/// A string of JSON (RFC 8259, section 7). serde_json would be the only use of that crate in a program worker.
fn json_string(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            '\0'..='\u{1f}' => json.push_str(&format!("\\u{:04x}", c as u32)),
            c => json.push(c),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_is_json_with_any_detail() {
        for detail in ["", "plain", "\"quoted\" \\ back", "line\nfeed\u{0}\u{1f}\u{7f}\u{e9}\u{1f600}"] {
            let problem = ProblemResponse::not_started(StatusCode::SERVICE_UNAVAILABLE, detail);
            let read: serde_json::Value = serde_json::from_str(&problem.json()).unwrap();
            assert_eq!(read["detail"], detail);
            assert_eq!((&read["status"], &read["outcome"]), (&503.into(), &"not-started".into()));
            assert_eq!((&read["title"], &read["type"]), (&"Service Unavailable".into(), &"about:blank".into()));
        }
    }
}
