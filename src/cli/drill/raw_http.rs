//! HTTP/1.1 on a blocking stream, with every way in which a response can end kept apart.

use std::io::{self, ErrorKind, Read};
use std::net::Ipv4Addr;

use httparse::Status;

/// The head of the last request on its connection.
pub(super) fn last_head(method: &str, target: &str, host: &str, length: usize) -> Vec<u8> {
    request_head("1.1", method, target, host, length, "Connection: close\r\n")
}

/// The head of a request that keeps the connection alive.
pub(super) fn keepalive_head(method: &str, target: &str, host: &str, length: usize) -> Vec<u8> {
    request_head("1.1", method, target, host, length, "")
}

/// As [`last_head`], for a body that waits for `100 Continue` (RFC 9110, section 10.1.1).
pub(super) fn expect_head(method: &str, target: &str, host: &str, length: usize) -> Vec<u8> {
    request_head("1.1", method, target, host, length, "Connection: close\r\nExpect: 100-continue\r\n")
}

/// The head of an HTTP/1.0 request.
pub(super) fn http10_head(method: &str, target: &str, host: &str, length: usize) -> Vec<u8> {
    request_head("1.0", method, target, host, length, "")
}

/// The head of a request for WebSocket (RFC 6455, section 4.1).
pub(super) fn upgrade_head(target: &str, host: &str) -> Vec<u8> {
    let more = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    request_head("1.1", "GET", target, host, 0, more)
}

fn request_head(version: &str, method: &str, target: &str, host: &str, length: usize, more: &str) -> Vec<u8> {
    let length = if method == "GET" { String::new() } else { format!("Content-Length: {length}\r\n") };
    format!("{method} {target} HTTP/{version}\r\nHost: {host}\r\n{more}{length}\r\n").into_bytes()
}

/// The header of the PROXY protocol for a client with this address: version 2 if `binary`, else version 1.
pub(super) fn proxy_header(from: Ipv4Addr, binary: bool) -> Vec<u8> {
    const PORTS: [u16; 2] = [40_000, 80];
    if !binary {
        return format!("PROXY TCP4 {from} 127.0.0.1 {} {}\r\n", PORTS[0], PORTS[1]).into_bytes();
    }
    let addresses = [from.octets(), Ipv4Addr::LOCALHOST.octets()].concat();
    let ports = PORTS.map(u16::to_be_bytes).concat();
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &addresses, &ports].concat()
}

/// How the wait for a response ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReceiveOutcome {
    /// The connection ended without a byte.
    NoBytes,
    /// Nothing more arrived in time.
    TimedOut,
    /// The connection ended within a head or body, or the bytes are not HTTP.
    Truncated,
    Complete(RawResponse),
}

/// A complete response, by its own framing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RawResponse {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl RawResponse {
    /// The value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.headers, name)
    }
}

fn find_header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The head of one response, interim or final.
struct RawResponseHead {
    status: u16,
    headers: Vec<(String, String)>,
    /// In bytes, the empty line included.
    length: usize,
}

impl RawResponseHead {
    /// The head at the start of these bytes; `Partial` while it is incomplete.
    fn parse(bytes: &[u8]) -> httparse::Result<Self> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let Status::Complete(length) = response.parse(bytes)? else { return Ok(Status::Partial) };
        let status = response.code.unwrap_or_default();
        let owned = |header: &httparse::Header<'_>| {
            (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned())
        };
        let headers = response.headers.iter().map(owned).collect();
        Ok(Status::Complete(Self { status, headers, length }))
    }

    fn complete(bytes: &[u8]) -> Option<Self> {
        match Self::parse(bytes) {
            Ok(Status::Complete(head)) => Some(head),
            _ => None,
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.headers, name)
    }

    /// RFC 9110, section 15.2.
    fn is_interim(&self) -> bool {
        (100..200).contains(&self.status)
    }
}

/// The bytes up to the end of the first head, or of the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FirstHead {
    pub bytes: Vec<u8>,
    /// It is `100 Continue`: the body may be sent.
    pub is_continue: bool,
}

/// Reads the first head; `None` if nothing arrived in time.
pub(super) fn read_first_head(stream: &mut impl Read) -> Option<FirstHead> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    while matches!(RawResponseHead::parse(&bytes), Ok(Status::Partial)) {
        match stream.read(&mut chunk) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => return None,
            Ok(0) | Err(_) => break,
            Ok(n) => bytes.extend(&chunk[..n]),
        }
    }
    let is_continue = RawResponseHead::complete(&bytes).is_some_and(|head| head.status == 100);
    Some(FirstHead { bytes, is_continue })
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionEnd {
    Fin,
    Reset,
}

/// Reads one response until the end of the connection.
pub(super) fn read_to_end(stream: &mut impl Read) -> ReceiveOutcome {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => parse_response(&bytes, ConnectionEnd::Fin),
        Err(error) if is_timeout(&error) => ReceiveOutcome::TimedOut,
        Err(_) => parse_response(&bytes, ConnectionEnd::Reset),
    }
}

/// Reads one response of a connection that may stay alive. `buffer` holds what was read beyond the previous response.
pub(super) fn read_next(stream: &mut impl Read, buffer: &mut Vec<u8>) -> ReceiveOutcome {
    let (mut bytes, mut chunk) = (std::mem::take(buffer), vec![0; 64 * 1024]);
    loop {
        if let Some(length) = response_length(&bytes) {
            *buffer = bytes.split_off(length);
            return parse_response(&bytes, ConnectionEnd::Fin);
        }
        match stream.read(&mut chunk) {
            Ok(0) => return parse_response(&bytes, ConnectionEnd::Fin),
            Ok(n) => bytes.extend(&chunk[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => return ReceiveOutcome::TimedOut,
            Err(_) => return parse_response(&bytes, ConnectionEnd::Reset),
        }
    }
}

/// The length of the first response with its interim responses, if its framing states one and all of it has arrived.
fn response_length(bytes: &[u8]) -> Option<usize> {
    let head = RawResponseHead::complete(bytes)?;
    let body = &bytes[head.length..];
    let body_length = if head.is_interim() {
        response_length(body)?
    } else if head.header("transfer-encoding").is_some() {
        decode_chunked(body)?.length
    } else {
        head.header("content-length")?.parse().ok()?
    };
    let length = head.length.checked_add(body_length)?;
    (length <= bytes.len()).then_some(length)
}

fn parse_response(mut bytes: &[u8], end: ConnectionEnd) -> ReceiveOutcome {
    loop {
        if bytes.is_empty() {
            return ReceiveOutcome::NoBytes;
        }
        let Some(head) = RawResponseHead::complete(bytes) else { return ReceiveOutcome::Truncated };
        bytes = &bytes[head.length..];
        if head.is_interim() {
            continue;
        }
        let body = match (head.header("transfer-encoding"), head.header("content-length")) {
            (Some(_), _) => {
                decode_chunked(bytes).filter(|body| body.length == bytes.len()).and_then(|body| body.content)
            }
            (None, Some(length)) => (length.parse() == Ok(bytes.len())).then(|| bytes.to_vec()),
            (None, None) => (end == ConnectionEnd::Fin).then(|| bytes.to_vec()),
        };
        let complete =
            |body| ReceiveOutcome::Complete(RawResponse { status: head.status, headers: head.headers, body });
        return body.map_or(ReceiveOutcome::Truncated, complete);
    }
}

/// A whole response as a CGI program writes it (RFC 3875, section 6).
pub(super) fn parse_cgi_response(bytes: &[u8]) -> ReceiveOutcome {
    let Some(rest) = bytes.strip_prefix(b"Status: ") else { return ReceiveOutcome::Truncated };
    parse_response(&[b"HTTP/1.1 ", rest].concat(), ConnectionEnd::Fin)
}

/// A complete chunked body.
struct ChunkedBody {
    /// In bytes as sent.
    length: usize,
    /// `None` if anything but the empty line follows the last chunk.
    content: Option<Vec<u8>>,
}

/// The chunked body at the start of these bytes, if all of it has arrived (RFC 9112, section 7.1).
fn decode_chunked(bytes: &[u8]) -> Option<ChunkedBody> {
    let (mut length, mut content) = (0, Vec::new());
    loop {
        let rest = &bytes[length..];
        // httparse takes an empty size for 0.
        rest.first().filter(|digit| digit.is_ascii_hexdigit())?;
        let Ok(Status::Complete((line, size))) = httparse::parse_chunk_size(rest) else { return None };
        let (start, size) = (length + line, usize::try_from(size).ok()?);
        length = start.checked_add(size)?.checked_add(2)?;
        let chunk = bytes.get(start..length)?;
        if size == 0 {
            return Some(ChunkedBody { length, content: (chunk == b"\r\n").then_some(content) });
        }
        content.extend(&chunk[..size]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_complete_by_its_own_framing() {
        let outcome = |text: &str, end| parse_response(text.as_bytes(), end);
        let complete = |text, end| match outcome(text, end) {
            ReceiveOutcome::Complete(response) => (response.status, String::from_utf8(response.body).unwrap()),
            other => panic!("{other:?}"),
        };
        let (fin, reset) = (ConnectionEnd::Fin, ConnectionEnd::Reset);
        assert_eq!(complete("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", reset), (200, "hi".into()));
        assert_eq!(
            complete("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n", fin),
            (503, "".into())
        );
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        assert_eq!(complete(chunked, reset), (200, "hi".into()));
        assert_eq!(complete("HTTP/1.1 200 OK\r\n\r\nhi", fin), (200, "hi".into()));
        for truncated in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nhi",
            &chunked[..chunked.len() - 2],
            &chunked[..chunked.len() - 7],
            "HTTP/1.1 200 OK\r\nContent-",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP",
        ] {
            assert_eq!(outcome(truncated, fin), ReceiveOutcome::Truncated, "{truncated}");
        }
        assert_eq!(outcome("HTTP/1.1 200 OK\r\n\r\nhi", reset), ReceiveOutcome::Truncated);
        assert_eq!(outcome("HTTP/1.1 100 Continue\r\n\r\n", fin), ReceiveOutcome::NoBytes);
    }

    #[test]
    fn consecutive_responses_are_separated_by_their_framing() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        let body = |outcome| match outcome {
            ReceiveOutcome::Complete(RawResponse { body, .. }) => body,
            other => panic!("{other:?}"),
        };
        for text in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", chunked, interim] {
            assert_eq!(response_length(text.as_bytes()), Some(text.len()));
            assert_eq!(response_length(format!("{text}HTTP").as_bytes()), Some(text.len()));
            assert_eq!(response_length(&text.as_bytes()[..text.len() - 1]), None);
            let mut buffer = Vec::new();
            assert_eq!(body(read_next(&mut text.as_bytes(), &mut buffer)), b"hi");
            let two = format!("{text}{text}");
            let (mut two, mut buffer) = (two.as_bytes(), Vec::new());
            for remaining in [text.len(), 0] {
                assert_eq!(body(read_next(&mut two, &mut buffer)), b"hi");
                assert_eq!(buffer.len(), remaining);
            }
            let truncated = &text.as_bytes()[..text.len() - 1];
            assert_eq!(read_next(&mut &*truncated, &mut buffer), ReceiveOutcome::Truncated);
        }
        assert_eq!(read_next(&mut &b""[..], &mut Vec::new()), ReceiveOutcome::NoBytes);
        // A response without a length ends with its connection.
        assert_eq!(body(read_next(&mut &b"HTTP/1.1 200 OK\r\n\r\nhi"[..], &mut Vec::new())), b"hi");
    }

    #[test]
    fn the_dispatcher_parses_the_proxy_header() {
        use crate::net::{ProxyHeader, parse_proxy_header};
        for binary in [false, true] {
            let header = proxy_header(Ipv4Addr::new(192, 0, 2, 1), binary);
            let client = "192.0.2.1:40000".parse().unwrap();
            let ProxyHeader::Complete(length, Some(ends)) = parse_proxy_header(&header) else { panic!("{header:?}") };
            assert_eq!((length, ends.client), (header.len(), client));
        }
    }

    #[test]
    fn only_100_continue_requests_the_body() {
        let first_head = |mut bytes: &[u8]| read_first_head(&mut bytes).unwrap();
        let interim = b"HTTP/1.1 100 Continue\r\n\r\n".as_slice();
        assert_eq!(first_head(interim), FirstHead { bytes: interim.to_vec(), is_continue: true });
        let last = b"HTTP/1.1 503 X\r\n\r\nno".as_slice();
        assert_eq!(first_head(last), FirstHead { bytes: last.to_vec(), is_continue: false });
        assert_eq!(first_head(&interim[..9]), FirstHead { bytes: interim[..9].to_vec(), is_continue: false });
    }
}
