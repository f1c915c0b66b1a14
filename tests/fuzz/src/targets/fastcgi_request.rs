//! A FastCGI request as the front server describes it. Each line is a parameter `NAME=value`; the whole input is looked at
//! as the first bytes of a connection, too.

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, HOST};
use http::{Method, StatusCode};

use crate::net::fastcgi::{FastcgiRecord, FastcgiStream, RecordContent, RecordDecoder, encode_pair};
use crate::net::{FastcgiRequest, PeekedRequest, ProblemResponse, WireProtocol};

/// What a client must not be able to say in a header.
const FORBIDDEN: [&str; 7] =
    ["proxy", "connection", "transfer-encoding", "upgrade", "expect", "keep-alive", "proxy-connection"];

pub(crate) fn run(bytes: &[u8]) {
    peek(bytes);
    let mut params = BytesMut::new();
    for line in bytes.split(|&byte| byte == b'\n') {
        if let Some(at) = line.iter().position(|&byte| byte == b'=') {
            encode_pair(&line[..at], &line[at + 1..], &mut params);
        }
    }
    let _ = FastcgiRequest::parse(bytes); // pairs that are malformed
    match FastcgiRequest::parse(&params) {
        Ok(request) => check(&request),
        Err(problem) => framed(&problem),
    }
}

fn check(parsed: &FastcgiRequest) {
    let FastcgiRequest { request, length, .. } = parsed;
    let headers = request.headers();
    assert!(FORBIDDEN.iter().all(|name| !headers.contains_key(*name)), "{headers:?}");
    assert!(headers.keys().all(|name| !name.as_str().contains('_')), "{headers:?}");
    assert!(headers.get_all(HOST).iter().count() <= 1);
    let announced: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(announced, length.map(|length| length.to_string()).as_slice());
    assert_ne!(request.method(), Method::CONNECT);
    let target = request.uri().path_and_query().map(|target| target.as_str());
    assert!(target.is_some_and(|target| target.starts_with('/') || target == "*"), "{target:?}");
    assert_eq!(request.uri().authority(), None);
}

/// A response by itself consists of STDOUT, its end, and the end of the request.
fn framed(problem: &ProblemResponse) {
    assert!(problem.status.is_client_error() || problem.status == StatusCode::NOT_IMPLEMENTED);
    assert!(problem.framed(WireProtocol::Fastcgi(0)).is_empty());
    let mut bytes = BytesMut::from(&problem.framed(WireProtocol::Fastcgi(0x0102))[..]);
    let (mut decoder, mut kinds) = (RecordDecoder::default(), String::new());
    while let Some(FastcgiRecord { request_id, content }) = decoder.next(&mut bytes).unwrap() {
        assert_eq!(request_id, 0x0102);
        kinds.push(match content {
            RecordContent::Stream(FastcgiStream::Stdout, data) if data.is_empty() => '.',
            RecordContent::Stream(FastcgiStream::Stdout, _) => 'o',
            RecordContent::EndRequest { .. } => 'e',
            other => panic!("{other:?}"),
        });
    }
    assert!(kinds.trim_start_matches('o') == ".e" && kinds.len() > 2 && bytes.is_empty(), "{kinds}");
}

/// Further bytes never change what was found.
fn peek(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(PeekedRequest::BYTES)];
    let mut found = PeekedRequest::Incomplete;
    for end in 0..=bytes.len() {
        let next = PeekedRequest::parse(&bytes[..end]);
        match found {
            // A request may follow the management records.
            PeekedRequest::Incomplete | PeekedRequest::Id(0) => found = next,
            PeekedRequest::Id(_) | PeekedRequest::Malformed => assert_eq!(next, found, "{end} bytes"),
        }
    }
}
