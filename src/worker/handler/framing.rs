//! The framing between a worker and its co-process, as in the Language Server Protocol: lines
//! `Name: value`, an empty line, then exactly `Content-Length` bytes. Pure.
//!
//! To the co-process: `Content-Length`, `Method`, `Target` (path and query as the client sent them), `Lease`
//! and, if there is one, `Content-Type`; lines end with CRLF. Back: `Content-Length`, optionally `Status`
//! (200 without it), and any other header for the client; lines end with CRLF or LF.

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode, Uri};

use super::head::{self, Malformed};

/// The head of a response that a co-process wrote.
#[derive(Debug)]
pub struct Answer {
    /// What the client is told; 200 when the co-process does not say.
    pub status: StatusCode,
    /// The other headers, with `Content-Length`, without what concerns one connection only.
    pub headers: HeaderMap,
    /// How many bytes follow.
    pub length: u64,
}

/// Writes the head of a request whose body has `length` bytes.
///
/// No value can hold a line end: `http` refuses them in targets and header values, and a lease is written
/// by the dispatcher's own hand.
pub fn request_head(method: &Method, target: &Uri, headers: &HeaderMap, lease: &str, length: u64) -> Vec<u8> {
    debug_assert!(!lease.contains(['\r', '\n']));
    let target = target.path_and_query().map_or("/", |target| target.as_str());
    let mut head = format!("Content-Length: {length}\r\nMethod: {method}\r\nTarget: {target}\r\n").into_bytes();
    if let Some(kind) = headers.get(header::CONTENT_TYPE) {
        head.extend_from_slice(b"Content-Type: ");
        head.extend_from_slice(kind.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(format!("Lease: {lease}\r\n\r\n").as_bytes());
    head
}

/// Reads a complete response head, as [`head::end`] found it.
///
/// # Errors
/// No `Content-Length` or more than one, a bad `Status`, a line that is no field.
pub fn answer(bytes: &[u8]) -> Result<Answer, Malformed> {
    let mut headers = head::fields(bytes)?;
    let status = head::take_once(&mut headers, HeaderName::from_static("status"))?;
    let length = head::take_once(&mut headers, header::CONTENT_LENGTH)?
        .ok_or_else(|| Malformed("its head has no Content-Length".to_owned()))?;
    head::drop_hop_by_hop(&mut headers);
    let status = status.map_or(Ok(StatusCode::OK), |status| head::status(&status))?;
    let count = head::length(&length)?;
    if !head::bodiless(status) {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    Ok(Answer { status, headers, length: count })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_written_as_documented() {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
        let head = request_head(&Method::POST, &Uri::from_static("http://h/a%20b?c=d"), &headers, "3.7", 12);
        let expected = "Content-Length: 12\r\nMethod: POST\r\nTarget: /a%20b?c=d\r\nContent-Type: text/plain\r\n\
            Lease: 3.7\r\n\r\n";
        assert_eq!(String::from_utf8(head).unwrap(), expected);
    }

    #[test]
    fn an_answer_passes_headers_on() {
        let read = answer(b"content-length: 3\nStatus: 404 Not Found\nX-A: 1\nX-A: 2\nConnection: close\n\n").unwrap();
        assert_eq!((read.status.as_u16(), read.length), (404, 3));
        assert_eq!(read.headers.get_all("x-a").iter().count(), 2);
        assert_eq!(read.headers.keys().count(), 2, "{:?}", read.headers);
        let empty = answer(b"Content-Length: 0\r\nStatus: 204\r\n\r\n").unwrap();
        assert!(empty.headers.is_empty());
    }

    #[test]
    fn an_answer_that_breaks_the_framing_is_refused() {
        for bad in [
            "Status: 200\n\n",
            "\n",
            "Content-Length: x\n\n",
            "Content-Length: 1\nContent-Length: 1\n\n",
            "Content-Length: 1\nStatus: 99\n\n",
            "babble\n\n",
        ] {
            assert!(answer(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// What is written can be read back with the same rules, whatever the client sent.
        #[test]
        fn a_request_head_is_one_head(
            target in "/[!-~&&[^ \"<>\\\\^`{}|#]]{0,20}",
            kind in proptest::option::of("[ -~]{1,20}"),
            length in any::<u64>(),
        ) {
            let Ok(target) = target.parse::<Uri>() else { return Ok(()) };
            let mut headers = HeaderMap::new();
            if let Some(kind) = &kind {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(kind).unwrap());
            }
            let bytes = request_head(&Method::PUT, &target, &headers, "1.1", length);
            prop_assert_eq!(head::end(&bytes, &mut 0), Ok(Some(bytes.len())));
            let fields = head::fields(&bytes).unwrap();
            prop_assert_eq!(head::length(&fields["content-length"]).unwrap(), length);
            prop_assert_eq!(&fields["target"], target.path_and_query().unwrap().as_str());
            prop_assert_eq!(fields.len(), 4 + usize::from(kind.is_some()));
        }
    }
}
