//! What the client of a connection speaks, and how a response is written for it. Pure.

#![forbid(unsafe_code)]

use bytes::{BufMut, BytesMut};
use http::header::{CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, response};

use super::fastcgi::{FastcgiRecord, FastcgiStream, ProtocolStatus, RecordContent, RecordDecoder, VERSION};

/// What the client of a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum WireProtocol {
    #[default]
    Http,
    /// FastCGI, with the id of the present request. 0 before its start: the client has sent management records only.
    Fastcgi(u16),
}

impl WireProtocol {
    pub(crate) fn is_fastcgi(self) -> bool {
        matches!(self, Self::Fastcgi(_))
    }
}

/// What the first bytes of a FastCGI connection, or those after a response, begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeekedRequest {
    /// A request with this id; 0 if it is not among these bytes.
    Id(u16),
    /// More bytes will tell.
    Incomplete,
    /// They are no FastCGI.
    Malformed,
}

impl PeekedRequest {
    /// How many bytes are looked at: what precedes a request are a few management records at most.
    pub(crate) const BYTES: usize = 512;

    /// Looks at the first [`Self::BYTES`] bytes, as far as they have arrived.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        // A client of another protocol may send less than a header.
        if bytes.first().is_some_and(|version| *version != VERSION) {
            return Self::Malformed;
        }
        let (mut decoder, mut rest) = (RecordDecoder::default(), BytesMut::from(bytes));
        loop {
            match decoder.next(&mut rest) {
                Ok(Some(FastcgiRecord { request_id, content: RecordContent::BeginRequest { .. } })) => {
                    return Self::Id(request_id);
                }
                Ok(Some(_)) => {}
                Ok(None) if bytes.len() >= Self::BYTES => return Self::Id(0),
                Ok(None) if !bytes.is_empty() && decoder.is_between_records(&rest) => return Self::Id(0),
                Ok(None) => return Self::Incomplete,
                Err(_) => return Self::Malformed,
            }
        }
    }
}

/// Appends the head of a response as a CGI program writes it (RFC 3875 section 6), without the fields that concern a
/// single HTTP connection.
pub(crate) fn encode_cgi_head(head: &response::Parts, out: &mut BytesMut) {
    const OTHERS: [HeaderName; 3] = [
        HeaderName::from_static("status"),
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    let is_omitted =
        |name| [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(name) || OTHERS.contains(name);
    let reason = head.status.canonical_reason().map(|reason| format!(" {reason}")).unwrap_or_default();
    out.put_slice(format!("Status: {}{reason}\r\n", head.status.as_str()).as_bytes());
    for (name, value) in head.headers.iter().filter(|(name, _)| !is_omitted(name)) {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.put_slice(part);
        }
    }
    out.put_slice(b"\r\n");
}

/// Appends the end of the response to a FastCGI request.
pub(crate) fn encode_fastcgi_end(request_id: u16, out: &mut BytesMut) {
    FastcgiStream::Stdout.end(request_id, out);
    encode_end_request(request_id, ProtocolStatus::RequestComplete, out);
}

/// Appends the end of a FastCGI request.
pub(crate) fn encode_end_request(request_id: u16, status: ProtocolStatus, out: &mut BytesMut) {
    let content = RecordContent::EndRequest { exit_status: 0, status };
    FastcgiRecord { request_id, content }.encode(out);
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    const BEGIN: &[u8] = b"\x01\x01\x01\x02\0\x08\0\0\0\x01\x01\0\0\0\0\0";
    const VALUES: &[u8] = b"\x01\x09\0\0\0\x11\x03\0\x0f\0FCGI_MPXS_CONNS\0\0\0";

    #[test]
    fn the_start_of_a_request_is_found_from_its_first_bytes() {
        use PeekedRequest::*;
        let all = [VALUES, BEGIN, b"\x01\x04\x01\x02\xff\xff\0\0rest"].concat();
        for end in 0..=all.len() {
            let expected = match end {
                0 => Incomplete,
                end if end == VALUES.len() => Id(0), // a request may follow, or not
                end if end < VALUES.len() + BEGIN.len() => Incomplete,
                _ => Id(0x0102),
            };
            let found = PeekedRequest::parse(&all[..end]);
            // The content of a record of management may be whole before its padding.
            assert!(found == expected, "{end}: {found:?}");
        }
        assert_eq!(PeekedRequest::parse(b"GET / HTTP/1.1\r\n"), Malformed);
        assert_eq!((PeekedRequest::parse(b"G"), PeekedRequest::parse(b"\x01")), (Malformed, Incomplete));
        assert_eq!(PeekedRequest::parse(&VALUES.repeat(20)[..PeekedRequest::BYTES]), Id(0));
    }

    #[test]
    fn the_head_of_a_response_has_a_status_and_no_fields_of_a_connection() {
        let response = Response::builder().status(404).header("X-A", "1").header("Status", "200 OK");
        let response = response.header("Connection", "close").header("Transfer-Encoding", "chunked");
        let mut out = BytesMut::new();
        encode_cgi_head(&response.body(()).unwrap().into_parts().0, &mut out);
        assert_eq!(out, "Status: 404 Not Found\r\nx-a: 1\r\n\r\n");
        let unregistered = Response::builder().status(299).body(()).unwrap().into_parts().0;
        out.clear();
        encode_cgi_head(&unregistered, &mut out);
        assert_eq!(out, "Status: 299\r\n\r\n");
    }
}
