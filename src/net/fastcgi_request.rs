//! The parameters of a FastCGI request as an HTTP request. Pure.
//!
//! The client is the front server, which has parsed the HTTP request and names the facts that an HTTP listener would find
//! out itself. Only parameters with a known meaning are read: `PHP_VALUE`, `SCRIPT_FILENAME` and all others change nothing.

#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode, Uri, Version};

use super::fastcgi::NameValuePairs;
use super::{ProblemResponse, RequestOrigin, TARGET_MAX};

/// Fields that are not taken from `HTTP_*`: those of one connection, those whose value another parameter has, and `Proxy`,
/// which CGI programs would get as `HTTP_PROXY`.
const OMITTED: [&str; 11] = [
    "connection",
    "content-length",
    "content-type",
    "expect",
    "keep-alive",
    "proxy",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A request as the front server describes it.
#[derive(Debug)]
pub(crate) struct FastcgiRequest {
    /// With the headers of the client. `Content-Length` is there if the front server knows it.
    pub request: Request<()>,
    /// Where it comes from.
    pub origin: RequestOrigin,
    /// The length of the body in bytes; `None` if the front server does not know it.
    pub length: Option<u64>,
}

/// The parameters that are read, besides `HTTP_*`.
#[derive(Debug, Default)]
struct Params<'a> {
    method: &'a [u8],
    uri: &'a [u8],
    script_name: &'a [u8],
    path_info: &'a [u8],
    query: &'a [u8],
    protocol: &'a [u8],
    content_type: &'a [u8],
    content_length: &'a [u8],
    remote_addr: &'a [u8],
    remote_port: &'a [u8],
    remote_user: &'a [u8],
    auth_type: &'a [u8],
    server_name: &'a [u8],
    server_port: &'a [u8],
    https: &'a [u8],
    scheme: &'a [u8],
}

impl<'a> Params<'a> {
    /// The place of the parameter with this name.
    fn field(&mut self, name: &[u8]) -> Option<&mut &'a [u8]> {
        Some(match name {
            b"REQUEST_METHOD" => &mut self.method,
            b"REQUEST_URI" => &mut self.uri,
            b"SCRIPT_NAME" => &mut self.script_name,
            b"PATH_INFO" => &mut self.path_info,
            b"QUERY_STRING" => &mut self.query,
            b"SERVER_PROTOCOL" => &mut self.protocol,
            b"CONTENT_TYPE" => &mut self.content_type,
            b"CONTENT_LENGTH" => &mut self.content_length,
            b"REMOTE_ADDR" => &mut self.remote_addr,
            b"REMOTE_PORT" => &mut self.remote_port,
            b"REMOTE_USER" => &mut self.remote_user,
            b"AUTH_TYPE" => &mut self.auth_type,
            b"SERVER_NAME" => &mut self.server_name,
            b"SERVER_PORT" => &mut self.server_port,
            b"HTTPS" => &mut self.https,
            b"REQUEST_SCHEME" => &mut self.scheme,
            _ => return None,
        })
    }

    /// The client; `None` on a Unix socket, for which nginx writes `unix:`.
    fn client(&self) -> Option<SocketAddr> {
        let address: IpAddr = text(self.remote_addr)?.parse().ok()?;
        Some(SocketAddr::new(address, text(self.remote_port).and_then(|port| port.parse().ok()).unwrap_or(0)))
    }

    /// The user, if the front server has authenticated it (RFC 3875 sections 4.1.1 and 4.1.11). By default nginx passes on
    /// the name in any `Authorization` header.
    fn user(&self) -> Option<String> {
        let is_authenticated = !self.auth_type.is_empty();
        // An environment variable has no NUL, and no name of a user has another control character.
        let is_name = |user: &&str| !user.is_empty() && !user.contains(char::is_control);
        text(self.remote_user).filter(|user| is_authenticated && is_name(user)).map(str::to_owned)
    }

    /// The target, which nginx and Apache pass on as the client has sent it.
    fn target(&self) -> Result<Uri, ProblemResponse> {
        let invalid = || bad("REQUEST_URI is not the target of a request");
        let built;
        let uri = if self.uri.is_empty() {
            built = self.path_and_query();
            &built
        } else {
            self.uri
        };
        if uri.len() > TARGET_MAX {
            return Err(problem(StatusCode::URI_TOO_LONG, "REQUEST_URI is too long"));
        }
        match uri {
            [b'/', ..] => PathAndQuery::try_from(uri).map(Uri::from).map_err(|_| invalid()),
            b"*" => Ok(Uri::from_static("*")),
            _ => {
                let uri = Uri::try_from(uri).map_err(|_| invalid())?;
                let is_http = uri.scheme_str().is_some_and(|scheme| matches!(scheme, "http" | "https"));
                let target = uri.path_and_query().cloned().filter(|_| is_http).ok_or_else(invalid)?;
                Ok(Uri::from(target)) // the front server has chosen the host
            }
        }
    }

    /// The target by the parameters of CGI, whose path is decoded (RFC 3875 section 4.1.5).
    fn path_and_query(&self) -> Vec<u8> {
        let mut target = Vec::new();
        for byte in self.script_name.iter().chain(self.path_info) {
            match byte {
                b'/' | b'-' | b'.' | b'_' | b'~' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' => target.push(*byte),
                b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => target.push(*byte),
                _ if byte.is_ascii_alphanumeric() => target.push(*byte),
                _ => target.extend(format!("%{byte:02X}").bytes()),
            }
        }
        if !target.starts_with(b"/") {
            target.insert(0, b'/');
        }
        if !self.query.is_empty() {
            target.push(b'?');
            target.extend(self.query);
        }
        target
    }

    /// The host for a client that has named none.
    fn host(&self) -> Option<HeaderValue> {
        let name = Some(self.server_name).filter(|name| !name.is_empty())?;
        let host = match text(self.server_port) {
            Some("") | Some("80") | Some("443") | None => name.to_vec(),
            Some(port) => [name, b":", port.as_bytes()].concat(),
        };
        HeaderValue::from_bytes(&host).ok()
    }
}

impl FastcgiRequest {
    /// Reads the content of a complete `FCGI_PARAMS` stream.
    ///
    /// # Errors
    /// The response to a request that the parameters do not describe.
    pub(crate) fn parse(params: &[u8]) -> Result<Self, ProblemResponse> {
        let (mut known, mut request) = (Params::default(), Request::new(()));
        for pair in NameValuePairs::new(params) {
            let (name, value) = pair.map_err(|error| bad(error.to_string()))?;
            if let Some(header) = name.strip_prefix(b"HTTP_") {
                add_header(request.headers_mut(), header, value)?;
            } else if let Some(field) = known.field(name) {
                *field = value; // nginx sends each fastcgi_param of the configuration, of which the last one counts
            }
        }
        let method = Method::from_bytes(known.method).map_err(|_| bad("REQUEST_METHOD is not a method"))?;
        if method == Method::CONNECT {
            return Err(problem(StatusCode::NOT_IMPLEMENTED, "this server opens no tunnels (CONNECT)"));
        }
        *request.uri_mut() = known.target()?;
        *request.method_mut() = method;
        *request.version_mut() = if known.protocol == b"HTTP/1.0" { Version::HTTP_10 } else { Version::HTTP_11 };
        let headers = request.headers_mut();
        if headers.get(HOST).is_none_or(|host| host.is_empty())
            && let Some(host) = known.host()
        {
            headers.insert(HOST, host);
        }
        if !known.content_type.is_empty() {
            let value = HeaderValue::from_bytes(known.content_type);
            headers.insert(CONTENT_TYPE, value.map_err(|_| bad("CONTENT_TYPE is not the value of a header"))?);
        }
        let length = match known.content_length {
            b"" => None,
            digits => {
                let number = text(digits).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                let number = number.and_then(|text| text.parse::<u64>().ok());
                Some(number.ok_or_else(|| bad("CONTENT_LENGTH is not a number"))?)
            }
        };
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        let is_https = match known.https {
            b"" => known.scheme == b"https",
            value => !value.eq_ignore_ascii_case(b"off"),
        };
        let origin = RequestOrigin {
            client: known.client(),
            is_https: Some(is_https),
            port: text(known.server_port).and_then(|port| port.parse().ok()),
            user: known.user(),
        };
        Ok(Self { request, origin, length })
    }
}

/// Adds the header of an `HTTP_*` parameter. `name` is what follows the prefix.
fn add_header(headers: &mut http::HeaderMap, name: &[u8], value: &[u8]) -> Result<(), ProblemResponse> {
    let name = String::from_utf8_lossy(name).to_ascii_lowercase().replace('_', "-");
    let Ok(name) = HeaderName::try_from(name) else { return Ok(()) };
    if OMITTED.contains(&name.as_str()) {
        return Ok(());
    }
    let value = HeaderValue::from_bytes(value.trim_ascii());
    let value = value.map_err(|_| bad(format!("the value of the header {name} has a control character")))?;
    if name == HOST && headers.contains_key(HOST) {
        return Err(bad("the request has more than one HTTP_HOST"));
    }
    let too_many = problem(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the request has too many headers");
    headers.try_append(name, value).map(drop).map_err(|_| too_many)
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn problem(status: StatusCode, detail: impl Into<String>) -> ProblemResponse {
    ProblemResponse::not_started(status, detail)
}

fn bad(detail: impl Into<String>) -> ProblemResponse {
    problem(StatusCode::BAD_REQUEST, detail)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::super::fastcgi::encode_pair;
    use super::*;

    const BASE: [(&str, &str); 3] = [("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/a%20b?c=d"), ("HTTP_HOST", "a:8080")];

    /// A request with the parameters of [`BASE`], each of which `more` may replace.
    fn parse(more: &[(&str, &str)]) -> Result<FastcgiRequest, u16> {
        let mut bytes = BytesMut::new();
        let base = BASE.iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name));
        for (name, value) in base.chain(more) {
            encode_pair(name.as_bytes(), value.as_bytes(), &mut bytes);
        }
        FastcgiRequest::parse(&bytes).map_err(|problem| problem.status.as_u16())
    }

    fn origin(more: &[(&str, &str)]) -> RequestOrigin {
        parse(more).unwrap().origin
    }

    #[test]
    fn parameters_become_a_request() {
        let parsed = parse(&[
            ("REQUEST_METHOD", "PUT"),
            ("CONTENT_TYPE", "text/plain"),
            ("CONTENT_LENGTH", "7"),
            ("HTTP_X_FORWARDED_FOR", " 1, 2 "),
            ("HTTP_COOKIE", "a"),
            ("HTTP_COOKIE", "b"),
            ("SERVER_PROTOCOL", "HTTP/2.0"),
        ]);
        let FastcgiRequest { request, length, .. } = parsed.unwrap();
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::PUT, "/a%20b?c=d"));
        assert_eq!((request.version(), length), (Version::HTTP_11, Some(7)));
        let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let mut lines: Vec<_> = request.headers().iter().map(line).collect();
        lines.sort_unstable();
        let expected = [
            "content-length: 7",
            "content-type: text/plain",
            "cookie: a",
            "cookie: b",
            "host: a:8080",
            "x-forwarded-for: 1, 2",
        ];
        assert_eq!(lines, expected);
        assert_eq!(parse(&[("SERVER_PROTOCOL", "HTTP/1.0")]).unwrap().request.version(), Version::HTTP_10);
    }

    #[test]
    fn dangerous_and_unknown_parameters_change_nothing() {
        let plain = parse(&[]).unwrap();
        for (name, value) in [
            ("PHP_VALUE", "auto_prepend_file=/etc/passwd"),
            ("PHP_ADMIN_VALUE", "open_basedir=/"),
            ("SCRIPT_FILENAME", "proxy:fcgi://127.0.0.1/x"),
            ("DOCUMENT_ROOT", "/"),
            ("HTTP_PROXY", "http://evil/"),
            ("HTTP_CONNECTION", "X-Mine"),
            ("HTTP_TRANSFER_ENCODING", "chunked"),
            ("HTTP_CONTENT_LENGTH", "5"),
            ("HTTP_UPGRADE", "websocket"),
            ("HTTP_EXPECT", "100-continue"),
            ("HTTP_", "x"),
            ("HTTP_A B", "x"),
            ("REMOTE_USER", "root"),
            ("LD_PRELOAD", "/x"),
            ("http_x", "y"),
        ] {
            let parsed = parse(&[(name, value)]).unwrap();
            let seen = |parsed: &FastcgiRequest| {
                (parsed.request.headers().clone(), parsed.request.uri().clone(), parsed.origin.clone(), parsed.length)
            };
            assert_eq!(seen(&parsed), seen(&plain), "{name}");
        }
    }

    #[test]
    fn the_front_server_names_the_client_and_its_scheme() {
        let client = |address, port| origin(&[("REMOTE_ADDR", address), ("REMOTE_PORT", port)]).client;
        assert_eq!(client("192.0.2.7", "80"), Some("192.0.2.7:80".parse().unwrap()));
        assert_eq!(client("2001:db8::7", ""), Some("[2001:db8::7]:0".parse().unwrap()));
        assert_eq!(client("unix:", ""), None);
        let is_https = |more: &[_]| origin(more).is_https == Some(true);
        assert!(
            is_https(&[("HTTPS", "on")]) && is_https(&[("REQUEST_SCHEME", "https")]) && is_https(&[("HTTPS", "1")])
        );
        assert!(!is_https(&[]) && !is_https(&[("HTTPS", "OFF"), ("REQUEST_SCHEME", "https")]));
        assert_eq!((origin(&[("SERVER_PORT", "8443")]).port, origin(&[("SERVER_PORT", "x")]).port), (Some(8443), None));
        assert_eq!(origin(&[("REMOTE_USER", "root")]).user, None, "from any Authorization header, by default in nginx");
        assert_eq!(origin(&[("REMOTE_USER", "me"), ("AUTH_TYPE", "Basic")]).user, Some("me".to_owned()));
        for user in ["", "a\0b", "a\nb"] {
            assert_eq!(origin(&[("REMOTE_USER", user), ("AUTH_TYPE", "Basic")]).user, None, "{user:?}");
        }
    }

    #[test]
    fn a_request_without_a_host_or_a_uri_gets_those_of_the_server() {
        let host = |more: &[_]| parse(more).unwrap().request.headers().get(HOST).cloned();
        assert_eq!(host(&[("HTTP_HOST", ""), ("SERVER_NAME", "b"), ("SERVER_PORT", "81")]).unwrap(), "b:81");
        assert_eq!(host(&[("HTTP_HOST", ""), ("SERVER_NAME", "b"), ("SERVER_PORT", "443")]).unwrap(), "b");
        assert_eq!(host(&[("SERVER_NAME", "b")]).unwrap(), "a:8080");
        let target = |more: &[_]| parse(more).unwrap().request.uri().to_string();
        let script = [("REQUEST_URI", ""), ("SCRIPT_NAME", "/a b"), ("PATH_INFO", "/\u{e9}?"), ("QUERY_STRING", "q=1")];
        assert_eq!(target(&script), "/a%20b/%C3%A9%3F?q=1");
        assert_eq!((target(&[("REQUEST_URI", "")]), target(&[("REQUEST_URI", "*")])), ("/".into(), "*".into()));
        assert_eq!(target(&[("REQUEST_URI", "http://other/x?y")]), "/x?y", "the front server has chosen the host");
    }

    #[test]
    fn what_describes_no_request_is_refused() {
        for (name, value, status) in [
            ("REQUEST_METHOD", "", 400),
            ("REQUEST_METHOD", "G T", 400),
            ("REQUEST_METHOD", "CONNECT", 501),
            ("REQUEST_URI", "x", 400),
            ("REQUEST_URI", "ftp://a/", 400),
            ("REQUEST_URI", "/a b", 400),
            ("CONTENT_LENGTH", "+1", 400),
            ("CONTENT_LENGTH", "18446744073709551616", 400),
            ("CONTENT_TYPE", "a\r\nb: c", 400),
            ("HTTP_X", "a\r\nb: c", 400),
        ] {
            assert_eq!(parse(&[(name, value)]).map(drop), Err(status), "{name}={value:?}");
        }
        assert_eq!(parse(&[("HTTP_HOST", "a"), ("HTTP_HOST", "b")]).map(drop), Err(400));
        assert_eq!(parse(&[("REQUEST_URI", &format!("/{}", "a".repeat(TARGET_MAX)))]).map(drop), Err(414));
        assert!(FastcgiRequest::parse(b"\x01").is_err(), "a pair that ends too early");
    }
}
