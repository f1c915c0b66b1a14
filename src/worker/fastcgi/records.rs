//! The records that a FastCGI client sends during one lease: the head of a request, and what is beside it.

use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::io::AsyncReadExt;

use super::super::handler::BoxError;
use crate::net::fastcgi::{
    FastcgiRecord, FastcgiStream, MAX_CONNS, MAX_REQS, MPXS_CONNS, NameValuePairs, ProtocolStatus, RESPONDER,
    RecordContent, RecordDecoder, encode_pair,
};
use crate::net::{FastcgiRequest, NoRequest, ProblemResponse, SharedStream, encode_end_request};

/// The free space in the buffer for a read: nginx sends a body in records of 32 KiB.
const HEAD_READ: usize = 8 << 10;
const BODY_READ: usize = 64 << 10;

/// The most bytes of replies that wait for the response. A client that asks for more is not one of FastCGI.
const REPLIES_MAX: usize = 4096;

/// What a client sends first.
pub(super) enum FastcgiHead {
    Request {
        request: Box<FastcgiRequest>,
        keeps_connection: bool,
        /// The start of the body, if the front server does not know its length.
        first: Option<Bytes>,
    },
    /// Only records that belong to no request. The replies to them wait, and the connection may have a request later.
    Management,
    /// A request for something else than a response, which has its reply.
    UnknownRole,
}

/// A record of the present request.
pub(super) enum RequestRecord {
    Begin { role: u16, keeps_connection: bool },
    Params(Bytes),
    Stdin(Bytes),
    Abort,
}

/// Divides what a client sends into the records of one request. Replies to others wait until the response is written.
pub(super) struct RecordReader {
    stream: SharedStream,
    decoder: RecordDecoder,
    received: BytesMut,
    /// As the dispatcher has seen it; 0 if it has seen no request.
    request_id: u16,
    has_begun: bool,
    has_received: bool,
    replies: BytesMut,
    /// How many connections there may be.
    connections: usize,
}

impl RecordReader {
    /// `connections`: how many there may be.
    pub(super) fn new(stream: SharedStream, request_id: u16, connections: usize) -> Self {
        let (decoder, received, replies) = (RecordDecoder::default(), BytesMut::new(), BytesMut::new());
        let (has_begun, has_received) = (false, false);
        Self { stream, decoder, received, request_id, has_begun, has_received, replies, connections }
    }

    /// The connection.
    pub(super) fn stream(&self) -> &SharedStream {
        &self.stream
    }

    /// The id of the request; 0 before its start.
    pub(super) fn request_id(&self) -> u16 {
        self.request_id
    }

    /// Reads the head of the request, whose parameters have at most `limit` bytes. Without a bound in time: the caller has
    /// one.
    ///
    /// # Errors
    /// The connection ends first, or the head is rejected.
    pub(super) async fn read_head(&mut self, limit: usize) -> Result<FastcgiHead, NoRequest> {
        let (mut params, mut parsed, mut keeps_connection) = (BytesMut::new(), None, false);
        loop {
            while let Some(record) = self.decode().map_err(|error| bad(error.to_string()))? {
                match (record, parsed.take()) {
                    (RequestRecord::Begin { role, keeps_connection: keeps }, _) => {
                        keeps_connection = keeps;
                        if role != RESPONDER {
                            encode_end_request(self.request_id, ProtocolStatus::UnknownRole, &mut self.replies);
                            return Ok(FastcgiHead::UnknownRole);
                        }
                    }
                    (RequestRecord::Params(bytes), None) if bytes.is_empty() => {
                        let request = Box::new(FastcgiRequest::parse(&params).map_err(NoRequest::Rejected)?);
                        match request.length {
                            Some(1..) => return Ok(FastcgiHead::Request { request, keeps_connection, first: None }),
                            // The next record says whether there is a body.
                            Some(0) | None => parsed = Some(request),
                        }
                    }
                    (RequestRecord::Params(bytes), None) if params.len() + bytes.len() <= limit => {
                        params.extend_from_slice(&bytes);
                    }
                    (RequestRecord::Params(_), None) => {
                        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                        let detail = "the parameters of the request are larger than head_bytes";
                        return Err(NoRequest::Rejected(ProblemResponse::not_started(status, detail)));
                    }
                    (RequestRecord::Stdin(bytes), Some(request)) => {
                        if request.length == Some(0) && !bytes.is_empty() {
                            return Err(bad("there is a request body although CONTENT_LENGTH is 0"));
                        }
                        let first = Some(bytes).filter(|bytes| !bytes.is_empty());
                        return Ok(FastcgiHead::Request { request, keeps_connection, first });
                    }
                    (RequestRecord::Abort, _) => return Err(NoRequest::Closed),
                    (RequestRecord::Params(_) | RequestRecord::Stdin(_), _) => {
                        return Err(bad("the records of the request are not in their order"));
                    }
                }
            }
            if self.request_id == 0 && self.has_received && self.is_between_records() {
                return Ok(FastcgiHead::Management);
            }
            self.received.reserve(HEAD_READ);
            match self.stream.read_buf(&mut self.received).await {
                Ok(1..) => self.has_received = true,
                Ok(0) | Err(_) => return Err(NoRequest::Closed),
            }
        }
    }

    /// The next record of the request among what was received.
    ///
    /// # Errors
    /// What was received is malformed.
    fn decode(&mut self) -> Result<Option<RequestRecord>, BoxError> {
        while let Some(FastcgiRecord { request_id: id, content }) = self.decoder.next(&mut self.received)? {
            let is_present = self.has_begun && id == self.request_id;
            match content {
                RecordContent::BeginRequest { role, keeps_connection } if !self.has_begun => {
                    (self.request_id, self.has_begun) = (id, true);
                    return Ok(Some(RequestRecord::Begin { role, keeps_connection }));
                }
                RecordContent::BeginRequest { .. } if is_present => {
                    return Err("a FastCGI request begins twice".into());
                }
                RecordContent::BeginRequest { .. } => {
                    encode_end_request(id, ProtocolStatus::CannotMultiplex, &mut self.replies);
                }
                RecordContent::AbortRequest if is_present => return Ok(Some(RequestRecord::Abort)),
                RecordContent::Stream(FastcgiStream::Params, bytes) if is_present => {
                    return Ok(Some(RequestRecord::Params(bytes)));
                }
                RecordContent::Stream(FastcgiStream::Stdin, bytes) if is_present => {
                    return Ok(Some(RequestRecord::Stdin(bytes)));
                }
                RecordContent::GetValues(names) => {
                    let content = RecordContent::GetValuesResult(self.values(&names)?);
                    FastcgiRecord { request_id: 0, content }.encode(&mut self.replies);
                }
                RecordContent::Other(unknown) if id == 0 => {
                    let content = RecordContent::UnknownType(unknown);
                    FastcgiRecord { request_id: 0, content }.encode(&mut self.replies);
                }
                // Of a request that is not active: ignored (section 3.3).
                _ => {}
            }
            if self.replies.len() > REPLIES_MAX {
                return Err("too many FastCGI records require a reply".into());
            }
        }
        Ok(None)
    }

    /// The next record of the request; `None` if the client has closed the connection.
    pub(super) fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Result<Option<RequestRecord>, BoxError>> {
        loop {
            if let Some(record) = self.decode()? {
                return Poll::Ready(Ok(Some(record)));
            }
            self.received.reserve(BODY_READ);
            if ready!(pin!(self.stream.read_buf(&mut self.received)).poll(task))? == 0 {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// The values of the variables that are known among these names (section 4.1).
    fn values(&self, names: &[u8]) -> Result<Bytes, BoxError> {
        let (mut values, connections) = (BytesMut::new(), self.connections.to_string());
        for pair in NameValuePairs::new(names) {
            match pair?.0 {
                // One request at a time.
                MPXS_CONNS => encode_pair(MPXS_CONNS, b"0", &mut values),
                name if name == MAX_CONNS || name == MAX_REQS => {
                    encode_pair(name, connections.as_bytes(), &mut values);
                }
                _ => {}
            }
        }
        Ok(values.freeze())
    }

    pub(super) fn is_between_records(&self) -> bool {
        self.decoder.is_between_records(&self.received)
    }

    /// The replies that wait.
    pub(super) fn take_replies(&mut self) -> BytesMut {
        self.replies.split()
    }
}

fn bad(detail: impl Into<String>) -> NoRequest {
    NoRequest::Rejected(ProblemResponse::not_started(StatusCode::BAD_REQUEST, detail))
}
