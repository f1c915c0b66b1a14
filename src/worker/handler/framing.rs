//! The framing between a worker and its co-process, as in the Language Server Protocol: lines `Name: value`, an empty
//! line, then exactly `Content-Length` bytes. Pure.
//!
//! A request has `Content-Length`, `Method`, `Target` (path and query as the client sent them), `Lease` and optionally
//! `Content-Type`; its lines end with CRLF. A response has `Content-Length`, optionally `Status` (200 without it), and
//! any other header for the client; its lines end with CRLF or LF.

#![forbid(unsafe_code)]

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode, Uri};

use super::head::{self, MalformedHead};

/// The head of a response that a co-process wrote.
#[derive(Debug)]
pub(crate) struct CoprocessResponseHead {
    /// The `Status` of the co-process; 200 without it.
    pub status: StatusCode,
    /// All other fields except those that concern a single connection.
    pub headers: HeaderMap,
    /// The size of the body in bytes.
    pub length: u64,
}

/// A frame to which an idle co-process responds with the same field.
pub(super) const PING: &[u8] = b"Content-Length: 0\r\nPing: 1\r\n\r\n";

/// The head of a request with a body of `length` bytes.
///
/// No value can contain a line ending: `http` rejects them in targets and header values, and a lease consists of
/// numbers.
pub(crate) fn encode_request_head(
    method: &Method,
    target: &Uri,
    headers: &HeaderMap,
    lease: &str,
    length: u64,
) -> Vec<u8> {
    debug_assert!(!lease.contains(['\r', '\n']));
    let target = target.path_and_query().map_or("/", |target| target.as_str());
    let mut head = format!("Content-Length: {length}\r\nMethod: {method}\r\nTarget: {target}\r\n").into_bytes();
    if let Some(content_type) = headers.get(header::CONTENT_TYPE) {
        head.extend_from_slice(b"Content-Type: ");
        head.extend_from_slice(content_type.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(format!("Lease: {lease}\r\n\r\n").as_bytes());
    head
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
    head::remove_hop_by_hop(&mut headers);
    let status = status.map_or(Ok(StatusCode::OK), |status| head::parse_status(&status))?;
    let length = head::parse_length(&content_length)?;
    if !head::status_forbids_body(status) {
        headers.insert(header::CONTENT_LENGTH, content_length);
    }
    Ok(CoprocessResponseHead { status, headers, length })
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
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    #[test]
    fn request_head_is_encoded_as_documented() {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
        let head = encode_request_head(&Method::POST, &Uri::from_static("http://h/a%20b?c=d"), &headers, "3.7", 12);
        let expected = "Content-Length: 12\r\nMethod: POST\r\nTarget: /a%20b?c=d\r\nContent-Type: text/plain\r\n\
            Lease: 3.7\r\n\r\n";
        assert_eq!(String::from_utf8(head).unwrap(), expected);
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
    }

    #[test]
    fn malformed_response_heads_are_rejected() {
        for bad in [
            "Status: 200\n\n",
            "\n",
            "Content-Length: x\n\n",
            "Content-Length: 1\nContent-Length: 1\n\n",
            "Content-Length: 1\nStatus: 99\n\n",
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
            content_type in proptest::option::of("[ -~]{1,20}"),
            length in any::<u64>(),
        ) {
            let Ok(target) = target.parse::<Uri>() else { return Ok(()) };
            let mut headers = HeaderMap::new();
            if let Some(content_type) = &content_type {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
            }
            let bytes = encode_request_head(&Method::PUT, &target, &headers, "1.1", length);
            prop_assert_eq!(head::find_end(&bytes, &mut 0), Ok(Some(bytes.len())));
            let fields = head::parse_fields(&bytes).unwrap();
            prop_assert_eq!(head::parse_length(&fields["content-length"]).unwrap(), length);
            prop_assert_eq!(&fields["target"], target.path_and_query().unwrap().as_str());
            prop_assert_eq!(fields.len(), 4 + usize::from(content_type.is_some()));
        }
    }
}
