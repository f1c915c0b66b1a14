//! What the caller wants done, checked once, and the two requests that come of it.

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, LOCATION, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};

use super::address::{Address, Target};
use super::error::Cause;
use super::lease::Lease;
use super::upload::Payload;

/// Says whether a failed request was started: `not-started` or `started-unknown`.
pub(super) const OUTCOME: HeaderName = HeaderName::from_static("patou-outcome");

/// Headers that follow from the payload and the way it is sent.
const OURS: [HeaderName; 5] = [CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE];

/// A longer body waits for `100 Continue`: until then it would be sent in vain if the lease is stale.
const EXPECT_ABOVE: u64 = 1024;

/// A request to be carried out once.
pub(super) struct Order {
    method: Method,
    path: String,
    host: HeaderValue,
    headers: HeaderMap,
    over_unix: bool,
    pub(super) payload: Payload,
}

impl Order {
    /// Takes `request` for `target`. Its URI is a path and query; a `Host` of its own replaces the target's.
    pub(super) fn new(request: Request<Payload>, target: &Target) -> Result<Self, Cause> {
        let no = |why: &str| Err(Cause::Request(why.to_owned()));
        let (parts, payload) = request.into_parts();
        if parts.uri.authority().is_some() {
            return no("its URI names a host; give the path alone, the client knows where to");
        }
        if parts.method == Method::CONNECT {
            return no("CONNECT asks for a tunnel, and a worker serves requests");
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        if !path.starts_with('/') {
            return no("its path does not begin with a slash");
        }
        if let Some(name) = OURS.iter().find(|name| parts.headers.contains_key(*name)) {
            return no(&format!("the client sets {name} itself"));
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

    /// The request as the leased worker gets it, and whether it asks for `100 Continue` first.
    pub(super) fn to_worker(&self, lease: &Lease, length: u64) -> Result<(Request<()>, bool), Cause> {
        let path = lease.path(&self.path);
        let uri: Uri = path.parse().map_err(|e| Cause::Request(format!("path and query: {e}")))?;
        let mut request = request(self.method.clone(), uri, self.host.clone());
        let headers = request.headers_mut();
        headers.extend(self.headers.clone());
        // Methods that usually carry content say so when they carry none (RFC 9110, 8.6).
        let expects_length = matches!(self.method, Method::POST | Method::PUT | Method::PATCH);
        if length > 0 || expects_length || self.payload != Payload::Empty {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        let expect = length > EXPECT_ABOVE;
        if expect {
            headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
        }
        Ok((request, expect))
    }

    /// Why this answer of a worker means that it did not begin the request; `None` if it may have.
    ///
    /// A stale lease is a `307` back to where the call came from. An application may answer `307` too:
    /// that is its answer, unless it points to this very request, and then sending it again is what it asks.
    pub(super) fn not_begun<B>(&self, answer: &Response<B>) -> Option<String> {
        match answer.headers().get(OUTCOME).map(HeaderValue::as_bytes) {
            Some(b"not-started") => return Some(format!("{}, Patou-Outcome: not-started", answer.status())),
            Some(_) => return None,
            None => {}
        }
        let back = answer.status() == StatusCode::TEMPORARY_REDIRECT && self.is_here(answer.headers().get(LOCATION)?);
        back.then(|| "the lease was no longer valid".to_owned())
    }

    fn is_here(&self, location: &HeaderValue) -> bool {
        let Ok(uri) = Uri::try_from(location.as_bytes()) else { return false };
        let same_path = uri.path_and_query().is_some_and(|path| path.as_str() == self.path);
        let Ok(host) = self.host.to_str() else { return false };
        let same_host = match uri.authority() {
            None => true,
            // The worker cannot know what no `Host` said: the port of a dispatcher behind a Unix socket.
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
pub(super) fn host_of(target: &Target) -> Result<HeaderValue, Cause> {
    HeaderValue::try_from(target.authority()).map_err(|e| Cause::Request(format!("Host: {e}")))
}

/// `POST /.patou/lease`.
pub(super) fn lease_request(host: &HeaderValue) -> Request<()> {
    let mut request = request(Method::POST, Uri::from_static("/.patou/lease"), host.clone());
    request.headers_mut().insert(CONTENT_LENGTH, 0.into());
    request
}

fn request(method: Method, uri: Uri, host: HeaderValue) -> Request<()> {
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

    fn order(target: &str, uri: &str) -> Result<Order, Cause> {
        let request = Request::builder().uri(uri).body(Payload::Empty).unwrap();
        Order::new(request, &target.parse().unwrap())
    }

    fn answer(status: u16, name: &str, value: &str) -> Response<()> {
        Response::builder().status(status).header(name, value).body(()).unwrap()
    }

    #[test]
    fn only_a_way_back_means_not_begun() {
        let order_tcp = order("http://localhost:7286", "/a?b=c").unwrap();
        let order_unix = order("unix:/s", "/a?b=c").unwrap();
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
            let answer = answer(307, "location", location);
            assert_eq!(order_tcp.not_begun(&answer).is_some(), tcp, "{location}");
            assert_eq!(order_unix.not_begun(&answer).is_some(), unix, "{location}");
        }
        let port_80 = order("http://localhost:80", "/").unwrap();
        assert!(port_80.not_begun(&answer(307, "location", "http://localhost:80/")).is_some());
        assert!(order_tcp.not_begun(&answer(308, "location", "/a?b=c")).is_none());
        assert!(order_tcp.not_begun(&answer(503, "retry-after", "1")).is_none());
        assert!(order_tcp.not_begun(&answer(503, "patou-outcome", "not-started")).is_some());
        assert!(order_tcp.not_begun(&answer(502, "patou-outcome", "started-unknown")).is_none());
        let mut both = answer(307, "location", "/a?b=c");
        both.headers_mut().insert(OUTCOME, HeaderValue::from_static("started-unknown"));
        assert!(order_tcp.not_begun(&both).is_none());
    }

    #[test]
    fn requests_that_cannot_be_sent_are_refused() {
        let target = "http://localhost:7286".parse().unwrap();
        assert!(order("http://localhost:7286", "http://elsewhere/").is_err());
        assert!(order("http://localhost:7286", "*").is_err());
        for name in OURS {
            let request = Request::builder().header(name, "1").body(Payload::Empty).unwrap();
            assert!(Order::new(request, &target).is_err());
        }
        let connect = Request::builder().method("CONNECT").uri("/").body(Payload::Empty).unwrap();
        assert!(Order::new(connect, &target).is_err());
        let hosted = Request::builder().header(HOST, "flock.example").body(Payload::Empty).unwrap();
        assert_eq!(Order::new(hosted, &target).unwrap().host(), "flock.example");
    }
}
