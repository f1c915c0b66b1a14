//! The caller's request, validated once, and the two requests that are sent for it.

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, LOCATION, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};

use super::address::{Address, Target};
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
    over_unix: bool,
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
        let over_unix = matches!(target.address(), Address::Unix(_));
        Ok(Self { method: parts.method, path: path.to_owned(), host, headers, over_unix, payload })
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

    /// Why this response shows that the worker did not start the request; `None` if it may have started it.
    ///
    /// For a stale lease the worker redirects to the original request with `307`. An application may respond `307` too;
    /// that is the final response unless it names this request, in which case a retry is what it requires.
    pub(super) fn not_started_reason<B>(&self, response: &Response<B>) -> Option<String> {
        match response.headers().get(OUTCOME).map(HeaderValue::as_bytes) {
            Some(b"not-started") => return Some(format!("{}, Patou-Outcome: not-started", response.status())),
            Some(_) => return None,
            None => {}
        }
        let is_stale = response.status() == StatusCode::TEMPORARY_REDIRECT
            && self.is_this_request(response.headers().get(LOCATION)?);
        is_stale.then(|| "the lease was no longer valid".to_owned())
    }

    fn is_this_request(&self, location: &HeaderValue) -> bool {
        let Ok(uri) = Uri::try_from(location.as_bytes()) else { return false };
        let same_path = uri.path_and_query().is_some_and(|path| path.as_str() == self.path);
        let Ok(host) = self.host.to_str() else { return false };
        let same_host = match uri.authority() {
            None => true,
            // The worker does not know a port that the `Host` header does not contain: that of a dispatcher on a Unix
            // socket.
            Some(authority) if self.over_unix => authority.host() == host_only(host),
            Some(authority) => with_port(authority.as_str()).eq_ignore_ascii_case(&with_port(host)),
        };
        same_path && same_host && uri.scheme_str().is_none_or(|scheme| scheme == "http")
    }
}

fn host_only(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => authority,
    }
}

fn with_port(authority: &str) -> String {
    if host_only(authority) == authority { format!("{authority}:80") } else { authority.to_owned() }
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
    fn only_a_redirect_to_the_same_request_means_not_started() {
        let over_tcp = call_request("http://localhost:7286", "/a?b=c").unwrap();
        let over_unix = call_request("unix:/s", "/a?b=c").unwrap();
        for (location, tcp, unix) in [
            ("http://localhost:7286/a?b=c", true, true),
            ("http://LOCALHOST:7286/a?b=c", true, false),
            ("/a?b=c", true, true),
            ("http://localhost/a?b=c", false, true),
            ("http://localhost:7287/a?b=c", false, true),
            ("http://other:7286/a?b=c", false, false),
            ("https://localhost:7286/a?b=c", false, false),
            ("http://localhost:7286/a", false, false),
            ("/login", false, false),
            ("a b", false, false),
        ] {
            let response = response(307, "location", location);
            assert_eq!(over_tcp.not_started_reason(&response).is_some(), tcp, "{location}");
            assert_eq!(over_unix.not_started_reason(&response).is_some(), unix, "{location}");
        }
        let port_80 = call_request("http://localhost:80", "/").unwrap();
        assert!(port_80.not_started_reason(&response(307, "location", "http://localhost:80/")).is_some());
        assert!(over_tcp.not_started_reason(&response(308, "location", "/a?b=c")).is_none());
        assert!(over_tcp.not_started_reason(&response(503, "retry-after", "1")).is_none());
        assert!(over_tcp.not_started_reason(&response(503, "patou-outcome", "not-started")).is_some());
        assert!(over_tcp.not_started_reason(&response(502, "patou-outcome", "started-unknown")).is_none());
        let mut both = response(307, "location", "/a?b=c");
        both.headers_mut().insert(OUTCOME, HeaderValue::from_static("started-unknown"));
        assert!(over_tcp.not_started_reason(&both).is_none());
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
