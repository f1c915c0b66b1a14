//! The parts of an HTTP head that the benchmark's clients and servers need.

use std::io;
use std::net::SocketAddr;

use httparse::{EMPTY_HEADER, Request, Response, Status};

/// More than the clients and servers of a benchmark send.
const MAX_HEADERS: usize = 64;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResponseHead {
    /// Bytes, with the empty line.
    pub length: usize,
    pub status: u16,
    /// Of a 307: the worker's address, and the target of the request to it.
    pub location: Option<(SocketAddr, String)>,
    pub content_length: Option<usize>,
    /// `Connection: close`
    pub close: bool,
}

impl ResponseHead {
    /// Parses a head; `None` while it is incomplete.
    pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [EMPTY_HEADER; MAX_HEADERS];
        let mut response = Response::new(&mut headers);
        let Status::Complete(length) = response.parse(bytes).map_err(io::Error::other)? else { return Ok(None) };
        let status = response.code.unwrap_or_default();
        let mut head = Self { length, status, location: None, content_length: None, close: false };
        for header in response.headers {
            let value = std::str::from_utf8(header.value).map_err(io::Error::other)?;
            if header.name.eq_ignore_ascii_case("content-length") {
                head.content_length = value.parse().ok();
            } else if header.name.eq_ignore_ascii_case("connection") {
                head.close = value.eq_ignore_ascii_case("close");
            } else if status == 307 && header.name.eq_ignore_ascii_case("location") {
                head.location = Some(parse_location(value)?);
            }
        }
        Ok(Some(head))
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestHead {
    /// Bytes, with the empty line.
    pub length: usize,
    /// 0 if there is no body.
    pub content_length: u64,
}

impl RequestHead {
    /// Parses a head; `None` while it is incomplete.
    pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [EMPTY_HEADER; MAX_HEADERS];
        let mut request = Request::new(&mut headers);
        let Status::Complete(length) = request.parse(bytes).map_err(io::Error::other)? else { return Ok(None) };
        let mut content_length = 0;
        for header in request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("content-length")) {
            let value = std::str::from_utf8(header.value).map_err(io::Error::other)?;
            content_length = value.parse().map_err(io::Error::other)?;
        }
        Ok(Some(Self { length, content_length }))
    }
}

fn parse_location(value: &str) -> io::Result<(SocketAddr, String)> {
    let invalid = || io::Error::other(format!("Location: {value} is not http://ADDRESS:PORT/PATH"));
    let (host, target) = value.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or_else(invalid)?;
    Ok((host.parse().map_err(|_| invalid())?, format!("/{target}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_carries_redirect_target_and_body_length() {
        let text = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:7300/.patou/0f/x?y\r\n\r\nrest";
        let head = ResponseHead::parse(text).unwrap().unwrap();
        assert_eq!(&text[head.length..], b"rest");
        assert_eq!(head.location, Some((([127, 0, 0, 1], 7300).into(), "/.patou/0f/x?y".to_owned())));
        let head = ResponseHead::parse(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n");
        let head = head.unwrap().unwrap();
        assert_eq!((head.status, head.content_length, head.close), (200, Some(7), true));
        assert!(ResponseHead::parse(b"220 smtp\r\n\r\n").is_err());
        assert_eq!(ResponseHead::parse(b"HTTP/1.1 200 OK\r\n").unwrap(), None);
    }

    #[test]
    fn request_head_ends_before_its_body() {
        let text = b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
        let head = RequestHead::parse(text).unwrap().unwrap();
        assert_eq!((&text[head.length..], head.content_length), (&b"body"[..], 4));
        assert_eq!(RequestHead::parse(&text[..40]).unwrap(), None);
    }
}
