//! The caller's request, validated once, and the two requests that are sent for it.

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};

use super::address::Target;
use super::error::FailureCause;
use super::lease::Lease;
use super::payload::Payload;

/// States whether a failed request was started: `not-started` or `started-unknown`.
pub(super) const OUTCOME: HeaderName = HeaderName::from_static("patou-outcome");

/// Headers that the client sets: they depend on the payload and how it is sent.
const CLIENT_HEADERS: [HeaderName; 5] = [CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE];

/// A longer body waits for `100 Continue`, so that it is not sent under a stale lease.
const EXPECT_ABOVE: u64 = 1024;

/// A validated request of the caller.
pub(super) struct CallRequest {
    method: Method,
    path: String,
    host: HeaderValue,
    headers: HeaderMap,
    pub(super) payload: Payload,
}

impl CallRequest {
    /// Validates `request` for `target`. Its URI is a path and query; its `Host` header replaces that of the target.
    pub(super) fn new(request: Request<Payload>, target: &Target) -> Result<Self, FailureCause> {
        let invalid = |why: &str| Err(FailureCause::Request(why.to_owned()));
        let (parts, payload) = request.into_parts();
        if parts.uri.authority().is_some() {
            return invalid("its URI names a host; write the path only");
        }
        if parts.method == Method::CONNECT {
            return invalid("CONNECT is not supported: a worker is not a tunnel");
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        if !path.starts_with('/') {
            return invalid("its path does not start with a slash");
        }
        if let Some(name) = CLIENT_HEADERS.iter().find(|name| parts.headers.contains_key(*name)) {
            return invalid(&format!("the client sets {name} itself"));
        }
        let mut headers = parts.headers;
        let host = match headers.remove(HOST) {
            Some(host) => host,
            None => host_of(target)?,
        };
        Ok(Self { method: parts.method, path: path.to_owned(), host, headers, payload })
    }

    pub(super) fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// The request for the leased worker, and whether it expects `100 Continue`.
    pub(super) fn to_worker(&self, lease: &Lease, length: u64) -> Result<(Request<()>, bool), FailureCause> {
        let path = lease.path(&self.path);
        let uri: Uri = path.parse().map_err(|e| FailureCause::Request(format!("path and query: {e}")))?;
        let mut request = bare_request(self.method.clone(), uri, self.host.clone());
        let headers = request.headers_mut();
        headers.extend(self.headers.clone());
        // Methods that usually have content need a length of 0 if they have none (RFC 9110, 8.6).
        let needs_length = matches!(self.method, Method::POST | Method::PUT | Method::PATCH);
        if length > 0 || needs_length || self.payload != Payload::Empty {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        let expects_continue = length > EXPECT_ABOVE;
        if expects_continue {
            headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
        }
        Ok((request, expects_continue))
    }

    /// Why this response shows that the worker did not start the request; `None` if it may have started it. Only
    /// `Patou-Outcome` is proof, which a handler cannot set: an application may respond `307` or `503` itself.
    pub(super) fn not_started_reason<B>(response: &Response<B>) -> Option<String> {
        let outcome = response.headers().get(OUTCOME)?;
        (outcome == "not-started").then(|| format!("{}, Patou-Outcome: not-started", response.status()))
    }
}

/// The `Host` of a request to `target`.
pub(super) fn host_of(target: &Target) -> Result<HeaderValue, FailureCause> {
    HeaderValue::try_from(target.authority()).map_err(|e| FailureCause::Request(format!("Host: {e}")))
}

/// `POST /.patou/lease`.
pub(super) fn lease_request(host: &HeaderValue) -> Request<()> {
    let mut request = bare_request(Method::POST, Uri::from_static("/.patou/lease"), host.clone());
    request.headers_mut().insert(CONTENT_LENGTH, 0.into());
    request
}

fn bare_request(method: Method, uri: Uri, host: HeaderValue) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    request.headers_mut().insert(HOST, host);
    // One request per connection, on both legs (RFC 9112, 9.6).
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call_request(target: &str, uri: &str) -> Result<CallRequest, FailureCause> {
        let request = Request::builder().uri(uri).body(Payload::Empty).unwrap();
        CallRequest::new(request, &target.parse().unwrap())
    }

    fn response(status: u16, name: &str, value: &str) -> Response<()> {
        Response::builder().status(status).header(name, value).body(()).unwrap()
    }

    #[test]
    fn only_the_outcome_means_not_started() {
        let is_not_started = |response: &Response<()>| CallRequest::not_started_reason(response).is_some();
        for (status, name, value, expected) in [
            (307, "patou-outcome", "not-started", true),
            (503, "patou-outcome", "not-started", true),
            (502, "patou-outcome", "started-unknown", false),
            (307, "location", "http://localhost:7286/a?b=c", false), // the application's own redirect
            (503, "retry-after", "1", false),
        ] {
            assert_eq!(is_not_started(&response(status, name, value)), expected, "{status} {name}: {value}");
        }
    }

    #[test]
    fn requests_that_cannot_be_sent_are_rejected() {
        let target = "http://localhost:7286".parse().unwrap();
        assert!(call_request("http://localhost:7286", "http://elsewhere/").is_err());
        assert!(call_request("http://localhost:7286", "*").is_err());
        for name in CLIENT_HEADERS {
            let request = Request::builder().header(name, "1").body(Payload::Empty).unwrap();
            assert!(CallRequest::new(request, &target).is_err());
        }
        let connect = Request::builder().method("CONNECT").uri("/").body(Payload::Empty).unwrap();
        assert!(CallRequest::new(connect, &target).is_err());
        let hosted = Request::builder().header(HOST, "flock.example").body(Payload::Empty).unwrap();
        assert_eq!(CallRequest::new(hosted, &target).unwrap().host(), "flock.example");
    }
}
