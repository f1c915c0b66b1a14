//! The Common Gateway Interface 1.1 (RFC 3875): the meta-variables of a request and the meaning of a response head.
//! Pure.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version, request};

use super::context::RequestContext;
use super::head::{self, MalformedHead};

/// `SERVER_SOFTWARE` (RFC 3875 section 4.1.17).
const SOFTWARE: &str = concat!("patou/", env!("CARGO_PKG_VERSION"));

/// The variable with the number of the lease.
pub(super) const LEASE: &str = "PATOU_LEASE";

/// The path of the request cannot be passed to a program: it has a `%` without two hex digits after it, or a NUL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path of the request contains a NUL or an invalid percent-encoding (RFC 3986 section 2.1)")]
pub(crate) struct BadPath;

/// The meta-variables of a request (RFC 3875 section 4.1), and patou's own `PATOU_WORKER` and `PATOU_LEASE`.
///
/// `length` is the exact size of the body, `None` if there is none: then `CONTENT_LENGTH` is `0` for methods that usually
/// have a body, since some libraries insist on it, and not set for the others.
///
/// `SCRIPT_NAME` is empty and `PATH_INFO` the whole path, decoded. `REQUEST_URI` (not in the RFC, but in common use) is
/// the undecoded path and query. `HTTPS` (in common use, too) and `REMOTE_USER` are set if a trusted proxy said so.
/// Omitted are headers with a name of other characters than letters, digits and `-`, as `X_A` and `X-A` would become the
/// same variable; `Proxy`, since many HTTP clients read `HTTP_PROXY`; `Proxy-Authorization`; and fields that concern a
/// single connection. `Authorization` has been removed from the request unless the pool passes it (section 9.2).
///
/// # Errors
/// [`BadPath`].
pub(crate) fn meta_variables(
    parts: &request::Parts,
    context: &RequestContext,
    length: Option<u64>,
) -> Result<Vec<(String, OsString)>, BadPath> {
    let (name, port) = context.server_name_and_port(parts);
    let mut variables: Vec<(String, OsString)> = Vec::new();
    let mut set = |name: &str, value: OsString| variables.push((name.to_owned(), value));
    set("GATEWAY_INTERFACE", "CGI/1.1".into());
    set("SERVER_SOFTWARE", SOFTWARE.into());
    set("SERVER_PROTOCOL", protocol(parts.version).into());
    set("SERVER_NAME", name.into());
    set("SERVER_PORT", port.to_string().into());
    set("REQUEST_METHOD", parts.method.as_str().into());
    set("SCRIPT_NAME", "".into());
    set("PATH_INFO", path_info(&parts.uri)?);
    set("QUERY_STRING", parts.uri.query().unwrap_or("").into());
    set("REQUEST_URI", parts.uri.path_and_query().map_or("", |target| target.as_str()).into());
    set("REMOTE_ADDR", context.remote_address().into());
    if let Some(peer) = context.peer.filter(|peer| peer.port() != 0) {
        set("REMOTE_PORT", peer.port().to_string().into());
    }
    if let Some(user) = &context.user {
        set("REMOTE_USER", user.into());
    }
    if context.is_https {
        set("HTTPS", "on".into());
    }
    if let Some(content_type) = parts.headers.get(header::CONTENT_TYPE) {
        set("CONTENT_TYPE", os_string(content_type.as_bytes()));
    }
    if let Some(length) = length.or((!is_bodiless(&parts.method)).then_some(0)) {
        set("CONTENT_LENGTH", length.to_string().into());
    }
    set("PATOU_WORKER", context.worker.to_string().into());
    set(LEASE, context.lease.clone().into());
    variables.extend(protocol_variables(&parts.headers));
    Ok(variables)
}

/// `HTTP_*` (RFC 3875 section 4.1.18).
fn protocol_variables(headers: &HeaderMap) -> Vec<(String, OsString)> {
    head::fields_for_programs(headers)
        .map(|(name, value)| {
            let variable = format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_"));
            (variable, os_string(&value))
        })
        .collect()
}

fn os_string(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// Whether requests with this method have no body, or one without a defined meaning (RFC 9110 section 9.3).
fn is_bodiless(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::DELETE, Method::OPTIONS, Method::TRACE, Method::CONNECT].contains(method)
}

fn protocol(version: Version) -> &'static str {
    if version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" }
}

/// The decoded path (RFC 3875 section 4.1.5); empty for targets without a path (`*`, `host:port`).
fn path_info(uri: &Uri) -> Result<OsString, BadPath> {
    let path = uri.path().as_bytes();
    if !path.starts_with(b"/") {
        return Ok(OsString::new());
    }
    // A variable ends at a NUL: the program would get another path than the requested one.
    let decoded = decode(path)?;
    if decoded.contains(&0) { Err(BadPath) } else { Ok(OsString::from_vec(decoded)) }
}

/// Decodes a part of a path (RFC 3986 section 2.1).
pub(super) fn decode(path: &[u8]) -> Result<Vec<u8>, BadPath> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.iter();
    while let Some(&byte) = rest.next() {
        let digit = |d: Option<&u8>| d.and_then(|&d| char::from(d).to_digit(16)).ok_or(BadPath);
        decoded.push(match byte {
            b'%' => (digit(rest.next())? * 16 + digit(rest.next())?) as u8,
            plain => plain,
        });
    }
    Ok(decoded)
}

/// A response of a program, by its head (RFC 3875 section 6.2).
#[derive(Debug)]
pub(crate) enum CgiResponse {
    /// For the client: a document or a redirect.
    Client(CgiResponseHead),
    /// The program runs again.
    LocalRedirect(LocalRedirect),
}

/// A local redirect (section 6.2.2).
#[derive(Debug)]
pub(crate) struct LocalRedirect {
    /// The path and query of the next request, whose method is GET.
    pub target: Uri,
    /// `Set-Cookie` for the client: fields of the response to the next request, as in Apache.
    pub cookies: Vec<HeaderValue>,
}

/// The head of a response for the client.
#[derive(Debug)]
pub(crate) struct CgiResponseHead {
    /// The `Status` of the program; without it 302 if there is a `Location`, else 200.
    pub status: StatusCode,
    /// All fields except `Status` and those that concern a single connection.
    pub headers: HeaderMap,
    /// The size of the body in bytes, if the program announces it.
    pub length: Option<u64>,
    /// Neither `Content-Type` nor `Location`, which no response with a body may lack (section 6.3.1): a byte of a body is
    /// a fault of the program.
    pub must_be_empty: bool,
}

/// What is wrong with a response whose head [must have no body](CgiResponseHead::must_be_empty), and that has one.
pub(crate) const NO_CONTENT_TYPE: &str = "its response has a body, and its head neither Content-Type nor Location";

/// Parses a complete response head, as found by [`head::find_end`].
///
/// A `Location` that starts with `/` is a local redirect, unless there is a `Status`: then it is for the client, as
/// most frameworks write `Status: 302` with a path.
///
/// # Errors
/// A line that is not a field; `Status`, `Location`, `Content-Type` or `Content-Length` twice (section 6.3) or invalid;
/// none of `Content-Type`, `Location` and `Status` (section 6.3).
pub(crate) fn parse_response(bytes: &[u8]) -> Result<CgiResponse, MalformedHead> {
    let mut headers = head::parse_fields(bytes)?;
    let status = head::remove_single(&mut headers, HeaderName::from_static("status"))?;
    let status = status.map(|status| head::parse_status(&status)).transpose()?;
    let location = head::remove_single(&mut headers, header::LOCATION)?;
    let content_type = head::remove_single(&mut headers, header::CONTENT_TYPE)?;
    let content_length = head::remove_single(&mut headers, header::CONTENT_LENGTH)?;
    let length = content_length.as_ref().map(head::parse_length).transpose()?;
    if let (Some(location), None) = (&location, status)
        && location.as_bytes().starts_with(b"/")
    {
        let path = Uri::try_from(location.as_bytes()).map_err(|_| {
            MalformedHead(format!("its Location is not a path: {}", head::excerpt(location.as_bytes())))
        })?;
        let cookies = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
        return Ok(CgiResponse::LocalRedirect(LocalRedirect { target: path, cookies }));
    }
    if status.is_none() && content_type.is_none() && location.is_none() && length != Some(0) {
        return Err(MalformedHead("its response head has neither Content-Type nor Location nor Status".to_owned()));
    }
    let must_be_empty = content_type.is_none() && location.is_none();
    let status = status.unwrap_or(if location.is_some() { StatusCode::FOUND } else { StatusCode::OK });
    head::remove_hop_by_hop(&mut headers);
    let content_length = content_length.filter(|_| !head::status_forbids_body(status));
    for (name, value) in
        [(header::LOCATION, location), (header::CONTENT_TYPE, content_type), (header::CONTENT_LENGTH, content_length)]
    {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    Ok(CgiResponse::Client(CgiResponseHead { status, headers, length, must_be_empty }))
}

/// Turns a request into the one that a local redirect stands for: GET, without a body and the headers that describe it.
pub(crate) fn apply_local_redirect(parts: &mut request::Parts, target: Uri) {
    parts.method = Method::GET;
    parts.uri = target;
    for name in ["content-type", "content-length", "content-encoding", "transfer-encoding", "expect"] {
        parts.headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::time::Duration;

    fn variables(request: request::Builder, length: Option<u64>) -> HashMap<String, String> {
        let context = RequestContext {
            peer: Some("[::ffff:192.0.2.7]:4711".parse().unwrap()),
            server: Some("127.0.0.1:7300".parse().unwrap()),
            is_https: false,
            port: None,
            user: None,
            worker: "default-1".parse().unwrap(),
            lease: "3.1042".to_owned(),
            body_timeout: Duration::from_secs(1),
            max_body: 0,
        };
        let parts = request.body(()).unwrap().into_parts().0;
        let variables = meta_variables(&parts, &context, length).unwrap();
        variables.into_iter().map(|(name, value)| (name, value.into_string().unwrap())).collect()
    }

    #[test]
    fn meta_variables_describe_the_request() {
        let request = Request::post("/a%20b/%C3%A9?x=%20&y")
            .header("Host", "example.org:8080")
            .header("Content-Type", "text/plain")
            .header("Content-Length", "5")
            .header("X-Twice", "1")
            .header("X-Twice", "2")
            .header("Cookie", "a=1")
            .header("Cookie", "b=2");
        let mut variables = variables(request, Some(5));
        for (name, value) in [
            ("GATEWAY_INTERFACE", "CGI/1.1"),
            ("SERVER_SOFTWARE", SOFTWARE),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("SERVER_NAME", "example.org"),
            ("SERVER_PORT", "7300"),
            ("REQUEST_METHOD", "POST"),
            ("SCRIPT_NAME", ""),
            ("PATH_INFO", "/a b/é"),
            ("QUERY_STRING", "x=%20&y"),
            ("REQUEST_URI", "/a%20b/%C3%A9?x=%20&y"),
            ("REMOTE_ADDR", "192.0.2.7"),
            ("REMOTE_PORT", "4711"),
            ("CONTENT_TYPE", "text/plain"),
            ("CONTENT_LENGTH", "5"),
            ("PATOU_WORKER", "default/1"),
            ("PATOU_LEASE", "3.1042"),
            ("HTTP_HOST", "example.org:8080"),
            ("HTTP_X_TWICE", "1, 2"),
            ("HTTP_COOKIE", "a=1; b=2"),
        ] {
            assert_eq!(variables.remove(name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(variables, HashMap::new());
    }

    #[test]
    fn harmful_and_ambiguous_headers_are_omitted() {
        let request = Request::get("/")
            .header("Proxy", "evil:1")
            .header("Proxy-Authorization", "Basic x")
            .header("Connection", "close, X-Hop")
            .header("X-Hop", "1")
            .header("TE", "trailers")
            .header("X_Forwarded_For", "spoofed")
            .header("X.Y", "1");
        let variables = variables(request, None);
        assert!(variables.keys().all(|name| !name.starts_with("HTTP_")), "{variables:?}");
        assert!(!variables.contains_key("CONTENT_LENGTH"));
        assert_eq!(variables["SERVER_NAME"], "127.0.0.1");
    }

    #[test]
    fn path_is_decoded_or_rejected() {
        let info = |path: &str| path_info(&path.parse().unwrap());
        assert_eq!(info("*").unwrap(), "");
        assert_eq!(info("/%2e%2F").unwrap(), "/./");
        for bad in ["/%", "/%4", "/%zz", "/a%00b"] {
            assert_eq!(info(bad), Err(BadPath), "{bad}");
        }
    }

    fn response_head(head: &str) -> CgiResponseHead {
        match parse_response(head.as_bytes()).unwrap() {
            CgiResponse::Client(head) => head,
            CgiResponse::LocalRedirect(redirect) => panic!("{redirect:?}"),
        }
    }

    #[test]
    fn documents_and_redirects_are_parsed() {
        let plain = response_head("Content-Type: text/html\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!((plain.status.as_u16(), plain.length, plain.headers.len()), (200, None, 2));
        assert_eq!(response_head("Status: 404 Not Found\nContent-Type: a/b\nContent-Length: 7\n\n").length, Some(7));
        assert_eq!(response_head("Location: http://example.org/\n\n").status, 302);
        let framework = response_head("Status: 303\nLocation: /there\nContent-Type: a/b\n\n");
        assert_eq!((framework.status.as_u16(), &framework.headers["location"]), (303, &"/there".parse().unwrap()));
        assert_eq!(response_head("Status: 204\nContent-Length: 3\n\n").headers.len(), 0);
        let Ok(CgiResponse::LocalRedirect(local)) =
            parse_response(b"Location: /on?x=1\nSet-Cookie: a\nSet-Cookie: b\n\n")
        else {
            panic!("no local redirect");
        };
        assert_eq!(
            (local.target.to_string().as_str(), &*local.cookies),
            ("/on?x=1", &["a", "b"].map(HeaderValue::from_static)[..])
        );
    }

    #[test]
    fn only_a_response_without_body_may_lack_a_content_type() {
        for (head, status, must_be_empty) in [
            ("Status: 404\n\n", 404, true),
            ("Status: 401\nWWW-Authenticate: Basic\n\n", 401, true),
            ("Content-Length: 0\n\n", 200, true),
            ("Content-Type: a/b\n\n", 200, false),
            ("Location: http://example.org/\n\n", 302, false),
        ] {
            let head = response_head(head);
            assert_eq!((head.status.as_u16(), head.must_be_empty), (status, must_be_empty));
        }
    }

    #[test]
    fn length_is_zero_without_a_body_that_the_method_could_have() {
        for (method, length) in [
            ("POST", Some("0")),
            ("PUT", Some("0")),
            ("PATCH", Some("0")),
            ("PROPFIND", Some("0")),
            ("GET", None),
            ("DELETE", None),
        ] {
            let variables = variables(Request::builder().method(method).uri("/"), None);
            assert_eq!(variables.get("CONTENT_LENGTH").map(String::as_str), length, "{method}");
        }
    }

    #[test]
    fn malformed_heads_are_rejected() {
        for bad in [
            "\n",
            "X-A: 1\n\n",
            "HTTP/1.1 200 OK\nContent-Type: a/b\n\n",
            "Content-Type: a/b\nContent-Type: a/b\n\n",
            "Content-Type: a/b\nStatus: 99\n\n",
            "Content-Type: a/b\nStatus: 101\n\n",
            "Content-Type: a/b\nContent-Length: -1\n\n",
            "Location: /a b\n\n",
        ] {
            assert!(parse_response(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// Decoding a path of which every byte is encoded gives the path.
        #[test]
        fn decoding_undoes_encoding(path in proptest::collection::vec(1u8.., 0..40)) {
            let encoded: String = path.iter().map(|b| format!("%{b:02x}")).collect();
            let info = path_info(&format!("/{encoded}").parse().unwrap()).unwrap();
            prop_assert_eq!(&info.into_vec()[1..], &path);
        }

        /// No header sets a variable that has another meaning for the program or its libraries.
        #[test]
        fn headers_only_make_http_variables(names in proptest::collection::vec("[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}", 0..9)) {
            let mut headers = HeaderMap::new();
            for name in &names {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), "x".parse().unwrap());
            }
            for (name, _) in protocol_variables(&headers) {
                prop_assert!(name.starts_with("HTTP_") && name != "HTTP_PROXY");
                prop_assert!(name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'));
            }
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_response(&bytes);
        }
    }
}
