//! The Common Gateway Interface 1.1 (RFC 3875) without any input or output: the meta-variables of a request
//! and the meaning of a response head. Pure.

use std::borrow::Cow;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode, Uri, Version, request};

use super::Context;
use super::head::{self, Malformed};

/// `SERVER_SOFTWARE` (RFC 3875 section 4.1.17).
const SOFTWARE: &str = concat!("patou/", env!("CARGO_PKG_VERSION"));

/// The path of the request cannot be given to a program: a `%` without two digits behind it, or a NUL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path is not percent-encoded as RFC 3986 section 2.1 says, or holds a NUL")]
pub struct BadPath;

/// The meta-variables of a request (RFC 3875 section 4.1), and patou's own `PATOU_WORKER`, `PATOU_LEASE`.
///
/// `length` is the exact size of the body, `None` when there is none or it is not known (chunked): then
/// there is no `CONTENT_LENGTH` and the program reads until end of file.
///
/// `SCRIPT_NAME` is empty and `PATH_INFO` the whole path, decoded; `REQUEST_URI`, not of the RFC but
/// everywhere, is path and query as they came. A header whose name holds anything but letters, digits and
/// `-` is left out, as `X_A` and `X-A` would become the same variable. So are `Proxy` (`HTTP_PROXY` is read by
/// many HTTP clients), credentials (section 9.2), and what concerns one connection only.
///
/// # Errors
/// [`BadPath`].
pub fn variables(
    parts: &request::Parts,
    context: &Context,
    length: Option<u64>,
) -> Result<Vec<(String, OsString)>, BadPath> {
    let (name, port) = server(parts, context.server);
    // nginx's word for a client on a Unix socket, which has no address but must have a variable.
    let peer = context.peer.map_or("unix:".to_owned(), |peer| peer.ip().to_canonical().to_string());
    let mut all: Vec<(String, OsString)> = Vec::new();
    let mut set = |name: &str, value: OsString| all.push((name.to_owned(), value));
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
    set("REMOTE_ADDR", peer.into());
    if let Some(peer) = context.peer {
        set("REMOTE_PORT", peer.port().to_string().into());
    }
    if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
        set("CONTENT_TYPE", bytes(kind.as_bytes()));
    }
    if let Some(length) = length {
        set("CONTENT_LENGTH", length.to_string().into());
    }
    set("PATOU_WORKER", context.worker.to_string().into());
    set("PATOU_LEASE", context.lease.clone().into());
    all.extend(protocol_variables(&parts.headers));
    Ok(all)
}

/// `HTTP_*` (RFC 3875 section 4.1.18).
fn protocol_variables(headers: &HeaderMap) -> Vec<(String, OsString)> {
    let mut headers = headers.clone();
    head::drop_hop_by_hop(&mut headers);
    for own in ["content-type", "content-length", "authorization", "proxy-authorization", "proxy"] {
        headers.remove(own);
    }
    let plain = |name: &HeaderName| name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (headers.keys().filter(|name| plain(name)))
        .map(|name| {
            // Cookies are the one list that is not joined by commas (RFC 9113 section 8.2.3).
            let glue: &[u8] = if name == header::COOKIE { b"; " } else { b", " };
            let values: Vec<_> = headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
            let variable = format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_"));
            (variable, bytes(&values.join(glue)))
        })
        .collect()
}

fn bytes(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

fn protocol(version: Version) -> &'static str {
    if version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" }
}

/// The name the client used, and the port it came in by, if that is known.
fn server(parts: &request::Parts, local: Option<SocketAddr>) -> (String, u16) {
    let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let host = parts.uri.authority().map_or(Cow::Borrowed(host), |authority| authority.as_str().into());
    let asked: Option<http::uri::Authority> = host.parse().ok();
    let name = asked.as_ref().map(|asked| asked.host()).filter(|host| !host.is_empty());
    let name = name.map(str::to_owned).unwrap_or_else(|| match local.map(|local| local.ip().to_canonical()) {
        Some(std::net::IpAddr::V6(ip)) => format!("[{ip}]"),
        Some(ip) => ip.to_string(),
        None => "localhost".to_owned(),
    });
    let port = local.map(|local| local.port()).or_else(|| asked.and_then(|asked| asked.port_u16())).unwrap_or(80);
    (name, port)
}

/// The path, decoded (RFC 3875 section 4.1.5); empty for the targets that have none (`*`, `host:port`).
fn path_info(uri: &Uri) -> Result<OsString, BadPath> {
    let path = uri.path().as_bytes();
    if !path.starts_with(b"/") {
        return Ok(OsString::new());
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.iter();
    while let Some(&byte) = rest.next() {
        let digit = |d: Option<&u8>| d.and_then(|&d| char::from(d).to_digit(16)).ok_or(BadPath);
        decoded.push(match byte {
            b'%' => (digit(rest.next())? * 16 + digit(rest.next())?) as u8,
            plain => plain,
        });
    }
    // A variable ends at a NUL: the program would see another path than the one that was asked for.
    if decoded.contains(&0) { Err(BadPath) } else { Ok(OsString::from_vec(decoded)) }
}

/// What a program's response head asks for (RFC 3875 section 6.2).
#[derive(Debug)]
pub enum Answer {
    /// A response for the client: a document or a redirect.
    Client(Document),
    /// A local redirect (section 6.2.2): run the program again, with GET and this path and query.
    Again(Uri),
}

/// The head of a response for the client.
#[derive(Debug)]
pub struct Document {
    /// As the program says; without that 302 with a `Location`, 200 otherwise.
    pub status: StatusCode,
    /// Everything but `Status` and what concerns one connection only; with `Content-Length` if the
    /// program gave one.
    pub headers: HeaderMap,
    /// The size of the body in bytes, if the program says.
    pub length: Option<u64>,
}

/// Reads a complete response head, as [`head::end`] found it.
///
/// A `Location` that starts with `/` is a local redirect, unless there is a `Status` beside it: then the
/// program means the client (`Status: 302` with a path is what most frameworks write).
///
/// # Errors
/// A line that is no field; `Status`, `Location`, `Content-Type` or `Content-Length` twice (section 6.3) or
/// unreadable; no `Content-Type` (section 6.3.1), unless there is a `Location` or surely no body.
pub fn answer(bytes: &[u8]) -> Result<Answer, Malformed> {
    let mut headers = head::fields(bytes)?;
    let status = head::take_once(&mut headers, HeaderName::from_static("status"))?;
    let status = status.map(|status| head::status(&status)).transpose()?;
    let location = head::take_once(&mut headers, header::LOCATION)?;
    let kind = head::take_once(&mut headers, header::CONTENT_TYPE)?;
    let size = head::take_once(&mut headers, header::CONTENT_LENGTH)?;
    let length = size.as_ref().map(head::length).transpose()?;
    if let (Some(location), None) = (&location, status)
        && location.as_bytes().starts_with(b"/")
    {
        let path = Uri::try_from(location.as_bytes())
            .map_err(|_| Malformed(format!("its Location is no path: {}", head::shown(location.as_bytes()))))?;
        return Ok(Answer::Again(path));
    }
    let status = status.unwrap_or(if location.is_some() { StatusCode::FOUND } else { StatusCode::OK });
    if kind.is_none() && location.is_none() && length != Some(0) && !head::bodiless(status) {
        return Err(Malformed("its head has neither Content-Type nor Location".to_owned()));
    }
    head::drop_hop_by_hop(&mut headers);
    let size = size.filter(|_| !head::bodiless(status));
    for (name, value) in [(header::LOCATION, location), (header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, size)] {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    Ok(Answer::Client(Document { status, headers, length }))
}

/// The request that a local redirect stands for: GET, no body, the headers of the first but for those that
/// describe its body.
pub fn redirected(parts: &mut request::Parts, path: Uri) {
    parts.method = Method::GET;
    parts.uri = path;
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::EXPECT] {
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

    fn of(request: request::Builder, length: Option<u64>) -> HashMap<String, String> {
        let context = Context {
            peer: Some("[::ffff:192.0.2.7]:4711".parse().unwrap()),
            server: Some("127.0.0.1:7300".parse().unwrap()),
            worker: "default-1".parse().unwrap(),
            lease: "3.1042".to_owned(),
            body_timeout: Duration::from_secs(1),
            max_body: 0,
        };
        let parts = request.body(()).unwrap().into_parts().0;
        let all = variables(&parts, &context, length).unwrap();
        all.into_iter().map(|(name, value)| (name, value.into_string().unwrap())).collect()
    }

    #[test]
    fn a_request_becomes_variables() {
        let request = Request::post("/a%20b/%C3%A9?x=%20&y")
            .header("Host", "example.org:8080")
            .header("Content-Type", "text/plain")
            .header("Content-Length", "5")
            .header("X-Twice", "1")
            .header("X-Twice", "2")
            .header("Cookie", "a=1")
            .header("Cookie", "b=2");
        let mut all = of(request, Some(5));
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
            assert_eq!(all.remove(name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(all, HashMap::new());
    }

    #[test]
    fn what_could_harm_or_mislead_is_left_out() {
        let request = Request::get("/")
            .header("Proxy", "evil:1")
            .header("Authorization", "Basic x")
            .header("Proxy-Authorization", "Basic x")
            .header("Connection", "close, X-Hop")
            .header("X-Hop", "1")
            .header("TE", "trailers")
            .header("X_Forwarded_For", "spoofed")
            .header("X.Y", "1");
        let all = of(request, None);
        assert!(all.keys().all(|name| !name.starts_with("HTTP_")), "{all:?}");
        assert!(!all.contains_key("CONTENT_LENGTH"));
        assert_eq!(all["SERVER_NAME"], "127.0.0.1");
    }

    #[test]
    fn paths_are_decoded_or_refused() {
        let info = |path: &str| path_info(&path.parse().unwrap());
        assert_eq!(info("*").unwrap(), "");
        assert_eq!(info("/%2e%2F").unwrap(), "/./");
        for bad in ["/%", "/%4", "/%zz", "/a%00b"] {
            assert_eq!(info(bad), Err(BadPath), "{bad}");
        }
    }

    fn document(head: &str) -> Document {
        match answer(head.as_bytes()).unwrap() {
            Answer::Client(document) => document,
            Answer::Again(path) => panic!("redirect to {path}"),
        }
    }

    #[test]
    fn documents_and_redirects() {
        let plain = document("Content-Type: text/html\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!((plain.status.as_u16(), plain.length, plain.headers.len()), (200, None, 2));
        assert_eq!(document("Status: 404 Not Found\nContent-Type: a/b\nContent-Length: 7\n\n").length, Some(7));
        assert_eq!(document("Location: http://example.org/\n\n").status, 302);
        let framework = document("Status: 303\nLocation: /there\nContent-Type: a/b\n\n");
        assert_eq!((framework.status.as_u16(), &framework.headers["location"]), (303, &"/there".parse().unwrap()));
        assert_eq!(document("Status: 204\nContent-Length: 3\n\n").headers.len(), 0);
        assert!(matches!(answer(b"Location: /again?x=1\n\n"), Ok(Answer::Again(path)) if path == "/again?x=1"));
    }

    #[test]
    fn broken_heads_are_refused() {
        for bad in [
            "\n",
            "X-A: 1\n\n",
            "Status: 404\n\n",
            "HTTP/1.1 200 OK\nContent-Type: a/b\n\n",
            "Content-Type: a/b\nContent-Type: a/b\n\n",
            "Content-Type: a/b\nStatus: 99\n\n",
            "Content-Type: a/b\nStatus: 101\n\n",
            "Content-Type: a/b\nContent-Length: -1\n\n",
            "Location: /a b\n\n",
        ] {
            assert!(answer(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// Encoding every byte of a path and letting it be decoded gives the path.
        #[test]
        fn decoding_undoes_encoding(path in proptest::collection::vec(1u8.., 0..40)) {
            let encoded: String = path.iter().map(|b| format!("%{b:02x}")).collect();
            let info = path_info(&format!("/{encoded}").parse().unwrap()).unwrap();
            prop_assert_eq!(&info.into_vec()[1..], &path);
        }

        /// No header makes a variable that the program or its libraries take for something else.
        #[test]
        fn headers_only_make_http_variables(names in proptest::collection::vec("[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}", 0..9)) {
            let mut headers = HeaderMap::new();
            for name in &names {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), "x".parse().unwrap());
            }
            for (name, _) in protocol_variables(&headers) {
                prop_assert!(name.starts_with("HTTP_") && name != "HTTP_PROXY" && name != "HTTP_AUTHORIZATION");
                prop_assert!(name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = answer(&bytes);
        }
    }
}
