//! The heads of a request and a response on their way through a worker (RFC 9110, section 7.6). Pure.

#![forbid(unsafe_code)]

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Version, request, response};

use super::super::context::RequestContext;
use super::super::head::remove_hop_by_hop;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// The head that the server gets: without the fields of the client's connection, and with the client's address.
pub(super) fn forwarded_request(parts: &request::Parts, context: &RequestContext) -> Request<()> {
    let mut headers = parts.headers.clone();
    let accepts_trailers = has_token(&headers, header::TE, "trailers");
    let host = headers.get(header::HOST).cloned();
    remove_connection_fields(&mut headers);
    // Not of the connection, even if the request says so: the listener has checked this one.
    if let Some(host) = host {
        headers.insert(header::HOST, host);
    }
    if accepts_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("TE"));
    }
    set_forwarded(&mut headers, context);
    // Required of HTTP/1.1 (RFC 9112, section 3.2), and not of the HTTP/1.0 that the client may have spoken.
    if !headers.contains_key(header::HOST) {
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    request
}

/// Makes the head of a response that of HTTP/1.1, without the fields of the server's connection.
///
/// # Errors
/// When the body has a transfer coding besides chunked, in which the client would get it.
pub(super) fn make_response(head: &mut response::Parts) -> Result<(), String> {
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
            return Err("its response has another transfer coding than chunked".to_owned());
        }
        // The chunks determine the length (RFC 9112, section 6.3).
        head.headers.remove(header::CONTENT_LENGTH);
    }
    remove_connection_fields(&mut head.headers);
    head.version = Version::HTTP_11;
    Ok(())
}

/// Removes the fields that concern one connection from a request, a response, or trailers.
pub(super) fn remove_connection_fields(headers: &mut HeaderMap) {
    // Not a field of the connection: hyper sends the trailers that it announces.
    let trailer: Vec<HeaderValue> = headers.get_all(header::TRAILER).iter().cloned().collect();
    remove_hop_by_hop(headers);
    for names in trailer {
        headers.append(header::TRAILER, names);
    }
}

/// Whether the client waits for `100 Continue` before it sends the body.
pub(super) fn expects_continue(headers: &HeaderMap) -> bool {
    has_token(headers, header::EXPECT, "100-continue")
}

fn has_token(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|token| token.split(';').next().is_some_and(|token| token.trim().eq_ignore_ascii_case(wanted)))
}

/// Removes what a client says about itself in the place of the worker, from the head of a request or its trailers, and
/// other spellings of the fields that determine its length. A server may read `-` and `_` in names alike.
pub(super) fn remove_claims(headers: &mut HeaderMap) {
    let is_claim = |name: &str| name.starts_with("x-forwarded") || ["forwarded", "x-real-ip"].contains(&name);
    let is_framing = |name: &str| ["content-length", "transfer-encoding"].contains(&name);
    let is_removed = |name: &&HeaderName| {
        let read = name.as_str().replace('_', "-");
        is_claim(&read) || is_framing(&read) && read != name.as_str()
    };
    let removed: Vec<HeaderName> = headers.keys().filter(is_removed).cloned().collect();
    for name in removed {
        headers.remove(name);
    }
}

/// Names client, scheme, host and port as the worker has found them, in place of whatever the request says about them.
fn set_forwarded(headers: &mut HeaderMap, context: &RequestContext) {
    remove_claims(headers);
    if let Some(peer) = context.peer
        && let Ok(address) = HeaderValue::from_str(&peer.ip().to_canonical().to_string())
    {
        headers.insert(FORWARDED_FOR, address);
    }
    let scheme = if context.is_https { "https" } else { "http" };
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.insert(FORWARDED_HOST, host);
    }
    if let Some(port) = context.port {
        headers.insert(FORWARDED_PORT, HeaderValue::from(port));
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::test_request::request_context;
    use super::*;

    fn forwarded(fields: &[(&str, &str)], peer: Option<&str>) -> Vec<String> {
        let mut request = Request::get("/a?b=c").version(Version::HTTP_10);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        let peer = peer.map(|peer| peer.parse().unwrap());
        let request = forwarded_request(&parts, &RequestContext { peer, ..request_context() });
        assert_eq!((request.uri().to_string().as_str(), request.version()), ("/a?b=c", Version::HTTP_11));
        let field = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let mut fields: Vec<_> = request.headers().iter().map(field).collect();
        fields.sort();
        fields
    }

    #[test]
    fn fields_of_the_connection_are_removed_and_those_of_the_message_stay() {
        let fields = [
            ("Connection", "close, X-Mine, te"),
            ("X-Mine", "1"),
            ("TE", "gzip, trailers;q=0.5"),
            ("Trailer", "X-Sum"),
            ("Keep-Alive", "5"),
            ("Upgrade", "h2c"),
            ("Proxy-Connection", "keep-alive"),
            ("Transfer-Encoding", "chunked"),
            ("Cookie", "a=b"),
            ("Host", "example.org"),
        ];
        let expected = [
            "connection: TE",
            "cookie: a=b",
            "host: example.org",
            "te: trailers",
            "trailer: X-Sum",
            "x-forwarded-for: 192.0.2.7",
            "x-forwarded-host: example.org",
            "x-forwarded-proto: http",
        ];
        assert_eq!(forwarded(&fields, Some("192.0.2.7:1")), expected);
    }

    #[test]
    fn host_stays_and_no_other_spelling_of_a_length() {
        let fields = [
            ("Connection", "Host, Content-Length, X-Forwarded-For"),
            ("Host", "example.org"),
            ("Content_Length", "300"),
            ("Transfer_Encoding", "chunked"),
            ("Transfer_encoding", "chunked"),
            ("X_Own", "1"),
        ];
        let expected = [
            "host: example.org",
            "x-forwarded-for: 192.0.2.7",
            "x-forwarded-host: example.org",
            "x-forwarded-proto: http",
            "x_own: 1",
        ];
        assert_eq!(forwarded(&fields, Some("192.0.2.7:1")), expected);
    }

    #[test]
    fn response_is_framed_by_its_chunks_or_refused() {
        let made = |codings: &[&str]| {
            let mut response = http::Response::builder().version(Version::HTTP_10).header("Content-Length", "5");
            for coding in codings {
                response = response.header("Transfer-Encoding", *coding);
            }
            let mut head = response.body(()).unwrap().into_parts().0;
            make_response(&mut head).map(|()| (head.version, head.headers.len()))
        };
        assert_eq!(made(&[]), Ok((Version::HTTP_11, 1)));
        assert_eq!(made(&["Chunked"]), Ok((Version::HTTP_11, 0)));
        for other in [&["gzip, chunked"][..], &["gzip"], &["gzip", "chunked"], &["identity"]] {
            assert!(made(other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn client_cannot_claim_another_address() {
        let fields = [
            ("X-Forwarded-For", "10.0.0.1"),
            ("X_Forwarded_For", "10.0.0.1"),
            ("X-Forwarded_Proto", "https"),
            ("X-Forwarded-Port", "443"),
            ("Forwarded", "for=10.0.0.1"),
            ("X-Real-IP", "10.0.0.1"),
            ("X-Real_Ip", "10.0.0.1"),
        ];
        assert_eq!(
            forwarded(&fields, Some("[::1]:9")),
            ["host: localhost", "x-forwarded-for: ::1", "x-forwarded-proto: http"]
        );
        assert_eq!(forwarded(&fields, None), ["host: localhost", "x-forwarded-proto: http"]);
    }

    #[test]
    fn scheme_and_port_are_those_of_a_trusted_proxy() {
        let parts = Request::get("/").header("Host", "example.org").body(()).unwrap().into_parts().0;
        let context = RequestContext { is_https: true, port: Some(8443), ..request_context() };
        let headers = forwarded_request(&parts, &context).into_parts().0.headers;
        assert_eq!(
            (&headers["x-forwarded-proto"], &headers["x-forwarded-port"]),
            (&"https".parse().unwrap(), &"8443".parse().unwrap())
        );
    }

    #[test]
    fn expectation_is_found_among_others() {
        let expects = |value: &str| {
            expects_continue(&HeaderMap::from_iter([(header::EXPECT, HeaderValue::from_str(value).unwrap())]))
        };
        assert!(expects("100-Continue") && !expects("200-ok"));
    }
}
