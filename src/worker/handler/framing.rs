//! The framing between a worker and its co-process, as in the Language Server Protocol: lines `Name: value`, an empty
//! line, then exactly `Content-Length` bytes. Pure.
//!
//! The lines of a request end with CRLF: `Content-Length`, `Method`, `Target` (path and query as the client sent them),
//! `Scheme`, `Remote-Address`, `Server-Name`, `Server-Port`, `Lease`, and where they apply `Remote-User` and `Content-Type`;
//! then every other header as `Http-<Name>`. Each name occurs once. A response has `Content-Length`, optionally `Status`
//! (200 without it), and any other header for the client; its lines end with CRLF or LF. patou-coprocess(7) is the whole
//! protocol.

#![forbid(unsafe_code)]

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, request};

use super::context::RequestContext;
use super::head::{self, MalformedHead};

/// The length for the client in a response to HEAD, whose frame has no body.
const HEAD_LENGTH: HeaderName = HeaderName::from_static("http-content-length");

/// The head of a response that a co-process wrote.
#[derive(Debug)]
pub(crate) struct CoprocessResponseHead {
    /// The `Status` of the co-process; 200 without it.
    pub status: StatusCode,
    /// All other fields except those that concern a single connection.
    pub headers: HeaderMap,
    /// The size of the body in bytes.
    pub length: u64,
    /// The length for the client in a response to HEAD without a body.
    pub head_length: Option<HeaderValue>,
}

/// A frame to which an idle co-process responds with the same field.
pub(super) const PING: &[u8] = b"Content-Length: 0\r\nPing: 1\r\n\r\n";

/// The head of a request with a body of `length` bytes.
pub(crate) fn encode_request_head(parts: &request::Parts, context: &RequestContext, length: u64) -> Vec<u8> {
    let (name, port) = context.server_name_and_port(parts);
    let mut head = RequestHeadWriter(Vec::with_capacity(1024));
    head.field("Content-Length", length.to_string());
    head.field("Method", parts.method.as_str());
    head.field("Target", parts.uri.path_and_query().map_or("/", |target| target.as_str()));
    head.field("Scheme", if context.is_https { "https" } else { "http" });
    head.field("Remote-Address", context.remote_address());
    head.field("Server-Name", name);
    head.field("Server-Port", port.to_string());
    head.field("Lease", &context.lease);
    if let Some(user) = &context.user {
        head.field("Remote-User", user);
    }
    if let Some(content_type) = parts.headers.get(header::CONTENT_TYPE) {
        head.field("Content-Type", content_type);
    }
    for (name, value) in head::fields_for_programs(&parts.headers) {
        head.header(name, &value);
    }
    head.finish()
}

/// Writes lines that end with CRLF.
struct RequestHeadWriter(Vec<u8>);

impl RequestHeadWriter {
    fn field(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.0.extend_from_slice(name.as_bytes());
        self.value(value.as_ref());
    }

    /// A header of the client, in the usual spelling: `Http-User-Agent`.
    fn header(&mut self, name: &HeaderName, value: &[u8]) {
        self.0.extend_from_slice(b"Http");
        for part in name.as_str().split('-') {
            self.0.push(b'-');
            let at = self.0.len();
            self.0.extend_from_slice(part.as_bytes());
            if let Some(first) = self.0.get_mut(at) {
                first.make_ascii_uppercase();
            }
        }
        self.value(value);
    }

    /// No value can have a line ending, since `http` accepts none; if one had, it would not end its line here.
    fn value(&mut self, value: &[u8]) {
        self.0.extend_from_slice(b": ");
        self.0.extend(value.iter().map(|&byte| if matches!(byte, b'\r' | b'\n' | 0) { b' ' } else { byte }));
        self.0.extend_from_slice(b"\r\n");
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"\r\n");
        self.0
    }
}

/// Parses a complete response head, as found by [`head::find_end`].
///
/// # Errors
/// No `Content-Length` or more than one, an invalid `Status`, a line that is not a field.
pub(crate) fn parse_response_head(bytes: &[u8]) -> Result<CoprocessResponseHead, MalformedHead> {
    let mut headers = head::parse_fields(bytes)?;
    let status = head::remove_single(&mut headers, HeaderName::from_static("status"))?;
    let content_length = head::remove_single(&mut headers, header::CONTENT_LENGTH)?
        .ok_or_else(|| MalformedHead("its response head has no Content-Length".to_owned()))?;
    let head_length = head::remove_single(&mut headers, HEAD_LENGTH)?;
    head_length.as_ref().map(head::parse_length).transpose()?;
    head::remove_hop_by_hop(&mut headers);
    let status = status.map_or(Ok(StatusCode::OK), |status| head::parse_status(&status))?;
    let length = head::parse_length(&content_length)?;
    if !head::status_forbids_body(status) {
        headers.insert(header::CONTENT_LENGTH, content_length);
    }
    Ok(CoprocessResponseHead { status, headers, length, head_length })
}

/// Parses a frame without a body that is no response: one field with the value 1, `Ready` or `Ping`, and perhaps a
/// `Content-Length` of 0. Returns the name of the field.
///
/// # Errors
/// Anything else.
pub(crate) fn parse_note(bytes: &[u8]) -> Result<&'static str, MalformedHead> {
    let mut fields = head::parse_fields(bytes)?;
    let length = head::remove_single(&mut fields, header::CONTENT_LENGTH)?;
    let is_empty = length.is_none_or(|length| length == "0");
    let is_only = |name| is_empty && fields.len() == 1 && fields.get(name).is_some_and(|value| value == "1");
    let found = ["Ready", "Ping"].into_iter().find(|name| is_only(*name));
    found.ok_or_else(|| MalformedHead(format!("it wrote {} without a request", head::excerpt(bytes))))
}

#[cfg(test)]
mod tests {
    use super::super::test_request::request_context;
    use super::*;
    use http::{Request, Uri};
    use proptest::prelude::*;

    fn encode(request: request::Builder, context: &RequestContext) -> String {
        let parts = request.body(()).unwrap().into_parts().0;
        String::from_utf8(encode_request_head(&parts, context, 12)).unwrap()
    }

    #[test]
    fn request_head_is_encoded_as_documented() {
        let request = Request::post("/a%20b?c=d")
            .header("Host", "example.org:8080")
            .header("Content-Type", "text/plain")
            .header("Content-Length", "12")
            .header("Connection", "close, X-Hop")
            .header("X-Hop", "1")
            .header("Transfer-Encoding", "chunked")
            .header("Proxy", "evil:1")
            .header("Proxy-Authorization", "Basic x")
            .header("X_Forwarded_For", "spoofed")
            .header("Accept", "a/b")
            .header("ACCEPT", "c/d")
            .header("Cookie", "a=1")
            .header("Cookie", "b=2")
            .header("authorization", "Bearer t");
        let context =
            RequestContext { is_https: true, port: Some(443), user: Some("alice".to_owned()), ..request_context() };
        let expected = "Content-Length: 12\r\nMethod: POST\r\nTarget: /a%20b?c=d\r\nScheme: https\r\n\
            Remote-Address: 192.0.2.7\r\nServer-Name: example.org\r\nServer-Port: 443\r\nLease: 3.1042\r\n\
            Remote-User: alice\r\nContent-Type: text/plain\r\nHttp-Host: example.org:8080\r\n\
            Http-Accept: a/b, c/d\r\nHttp-Cookie: a=1; b=2\r\nHttp-Authorization: Bearer t\r\n\r\n";
        assert_eq!(encode(request, &context), expected);
        let unix = RequestContext { peer: None, server: None, ..request_context() };
        let expected = "Content-Length: 12\r\nMethod: GET\r\nTarget: /\r\nScheme: http\r\nRemote-Address: unix:\r\n\
            Server-Name: localhost\r\nServer-Port: 80\r\nLease: 3.1042\r\n\r\n";
        assert_eq!(encode(Request::get("/"), &unix), expected);
    }

    #[test]
    fn line_ending_in_a_value_does_not_end_its_line() {
        let context = RequestContext { user: Some("a\r\nLease: 9.9\n\0".to_owned()), ..request_context() };
        let head = encode(Request::get("/"), &context);
        assert!(head.contains("\r\nRemote-User: a  Lease: 9.9  \r\n"), "{head}");
        assert_eq!(head.matches("\nLease: ").count(), 1);
    }

    #[test]
    fn response_head_keeps_headers_for_the_client() {
        let head = b"content-length: 3\nStatus: 404 Not Found\nX-A: 1\nX-A: 2\nConnection: close\n\n";
        let head = parse_response_head(head).unwrap();
        assert_eq!((head.status.as_u16(), head.length), (404, 3));
        assert_eq!(head.headers.get_all("x-a").iter().count(), 2);
        assert_eq!(head.headers.keys().count(), 2, "{:?}", head.headers);
        let empty = parse_response_head(b"Content-Length: 0\r\nStatus: 204\r\n\r\n").unwrap();
        assert!(empty.headers.is_empty());
        let to_head = parse_response_head(b"Content-Length: 0\nHttp-Content-Length: 42\n\n").unwrap();
        assert_eq!((to_head.length, to_head.head_length.unwrap().as_bytes()), (0, &b"42"[..]));
        assert!(!to_head.headers.contains_key(HEAD_LENGTH));
    }

    #[test]
    fn malformed_response_heads_are_rejected() {
        for bad in [
            "Status: 200\n\n",
            "\n",
            "Content-Length: x\n\n",
            "Content-Length: 1\nContent-Length: 1\n\n",
            "Content-Length: 1\nStatus: 99\n\n",
            "Content-Length: 0\nHttp-Content-Length: x\n\n",
            "babble\n\n",
        ] {
            assert!(parse_response_head(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn notes_are_recognised_and_nothing_else_is() {
        assert_eq!(parse_note(b"Ready: 1\n\n").unwrap(), "Ready");
        assert_eq!(parse_note(PING).unwrap(), "Ping");
        for bad in ["Ready: 0\n\n", "Ready: 1\nPing: 1\n\n", "Content-Length: 1\nPing: 1\n\n", "\n", "Pong: 1\n\n"] {
            assert!(parse_note(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// An encoded head can be parsed with the same rules, whatever the client sent.
        #[test]
        fn request_head_can_be_parsed(
            target in "/[!-~&&[^ \"<>\\\\^`{}|#]]{0,20}",
            values in proptest::collection::vec("[ -~]{0,20}", 0..4),
            length in any::<u64>(),
        ) {
            let Ok(target) = target.parse::<Uri>() else { return Ok(()) };
            let mut request = Request::put(&target).header("Content-Type", values.concat());
            for (n, value) in values.iter().enumerate() {
                request = request.header(format!("X-{}", n % 3), value);
            }
            let parts = request.body(()).unwrap().into_parts().0;
            let bytes = encode_request_head(&parts, &request_context(), length);
            prop_assert_eq!(head::find_end(&bytes, &mut 0), Ok(Some(bytes.len())));
            let fields = head::parse_fields(&bytes).unwrap();
            prop_assert_eq!(head::parse_length(&fields["content-length"]).unwrap(), length);
            prop_assert_eq!(&fields["target"], target.path_and_query().unwrap().as_str());
            prop_assert_eq!((fields.len(), fields.keys_len()), (9 + values.len().min(3), 9 + values.len().min(3)));
        }
    }
}
