//! One record: its parts, and its bytes.

use bytes::{BufMut, Bytes, BytesMut};

/// The length of a header in bytes (section 8, `FCGI_HEADER_LEN`).
pub(crate) const HEADER_LENGTH: usize = 8;
/// The longest content of a record in bytes.
pub(crate) const CONTENT_MAX: usize = u16::MAX as usize;
/// The role of an application that responds to HTTP requests (section 6.2).
pub(crate) const RESPONDER: u16 = 1;
/// The first byte of every record (section 3.3).
pub(crate) const VERSION: u8 = 1;
/// `FCGI_KEEP_CONN`, the flag of `FCGI_BEGIN_REQUEST` (section 5.1).
pub(super) const KEEP_CONNECTION: u8 = 1;
/// The length of every content that is neither a stream nor pairs, in bytes.
pub(super) const FIXED_LENGTH: usize = 8;
/// What is wrong with the bytes of a peer, for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct MalformedRecord(pub(super) String);

/// A stream of a request (section 3.3, *Types of record types*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FastcgiStream {
    /// Variables of the request, as name-value pairs.
    Params,
    /// The request body.
    Stdin,
    /// The response.
    Stdout,
    /// Messages of the application.
    Stderr,
    /// A file for a filter.
    Data,
}

/// How a request ended for the protocol (section 5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProtocolStatus {
    RequestComplete,
    /// The application serves one request at a time on a connection.
    CannotMultiplex,
    /// The application lacks a resource.
    Overloaded,
    UnknownRole,
}

/// A record, or a piece of one that belongs to a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FastcgiRecord {
    /// 0 in management records, which belong to no request.
    pub request_id: u16,
    pub content: RecordContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RecordContent {
    /// `role` is not checked.
    BeginRequest {
        role: u16,
        keeps_connection: bool,
    },
    AbortRequest,
    /// `exit_status` is the application's own (section 5.5, `appStatus`).
    EndRequest {
        exit_status: u32,
        status: ProtocolStatus,
    },
    /// The next bytes of a stream; none at its end.
    Stream(FastcgiStream, Bytes),
    /// Name-value pairs with empty values.
    GetValues(Bytes),
    /// Name-value pairs.
    GetValuesResult(Bytes),
    /// The peer does not know records of this type.
    UnknownType(u8),
    /// A record of this type has no meaning here. Its content is discarded. In a management record
    /// [`Self::UnknownType`] is the reply to it (section 4.2); others are ignored.
    Other(u8),
}

/// The types of records (section 8).
pub(super) mod record_type {
    pub(in super::super) const BEGIN_REQUEST: u8 = 1;
    pub(in super::super) const ABORT_REQUEST: u8 = 2;
    pub(in super::super) const END_REQUEST: u8 = 3;
    pub(in super::super) const PARAMS: u8 = 4;
    pub(in super::super) const STDIN: u8 = 5;
    pub(in super::super) const STDOUT: u8 = 6;
    pub(in super::super) const STDERR: u8 = 7;
    pub(in super::super) const DATA: u8 = 8;
    pub(in super::super) const GET_VALUES: u8 = 9;
    pub(in super::super) const GET_VALUES_RESULT: u8 = 10;
    pub(in super::super) const UNKNOWN_TYPE: u8 = 11;
}

impl FastcgiStream {
    pub(super) fn from_type(record_type: u8) -> Option<Self> {
        Some(match record_type {
            record_type::PARAMS => Self::Params,
            record_type::STDIN => Self::Stdin,
            record_type::STDOUT => Self::Stdout,
            record_type::STDERR => Self::Stderr,
            record_type::DATA => Self::Data,
            _ => return None,
        })
    }

    fn record_type(self) -> u8 {
        match self {
            Self::Params => record_type::PARAMS,
            Self::Stdin => record_type::STDIN,
            Self::Stdout => record_type::STDOUT,
            Self::Stderr => record_type::STDERR,
            Self::Data => record_type::DATA,
        }
    }

    /// The header of a record with the next `length` bytes of this stream, which follow it.
    pub(crate) fn header(self, request_id: u16, length: u16) -> [u8; HEADER_LENGTH] {
        RecordHeader { record_type: self.record_type(), request_id, content: length, padding: 0 }.encode()
    }

    /// Appends `data` as records of this stream. Without data it appends nothing, see [`Self::end`].
    pub(crate) fn encode(self, request_id: u16, data: &[u8], out: &mut BytesMut) {
        for content in data.chunks(CONTENT_MAX) {
            out.put_slice(&self.header(request_id, content.len() as u16));
            out.put_slice(content);
        }
    }

    /// Appends the end of this stream.
    pub(crate) fn end(self, request_id: u16, out: &mut BytesMut) {
        out.put_slice(&self.header(request_id, 0));
    }
}

impl ProtocolStatus {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::RequestComplete, Self::CannotMultiplex, Self::Overloaded, Self::UnknownRole]
            .get(usize::from(byte))
            .copied()
    }
}

impl FastcgiRecord {
    /// Appends the record. Of a stream, or of pairs, it has the first [`CONTENT_MAX`] bytes at most.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let mut fixed = [0; FIXED_LENGTH];
        let (record_type, content): (u8, &[u8]) = match &self.content {
            RecordContent::BeginRequest { role, keeps_connection } => {
                fixed[..2].copy_from_slice(&role.to_be_bytes());
                fixed[2] = if *keeps_connection { KEEP_CONNECTION } else { 0 };
                (record_type::BEGIN_REQUEST, &fixed)
            }
            RecordContent::EndRequest { exit_status, status } => {
                fixed[..4].copy_from_slice(&exit_status.to_be_bytes());
                fixed[4] = *status as u8;
                (record_type::END_REQUEST, &fixed)
            }
            RecordContent::UnknownType(unknown) => {
                fixed[0] = *unknown;
                (record_type::UNKNOWN_TYPE, &fixed)
            }
            RecordContent::Stream(stream, data) => (stream.record_type(), data),
            RecordContent::GetValues(pairs) => (record_type::GET_VALUES, pairs),
            RecordContent::GetValuesResult(pairs) => (record_type::GET_VALUES_RESULT, pairs),
            RecordContent::AbortRequest => (record_type::ABORT_REQUEST, &[]),
            RecordContent::Other(other) => (*other, &[]),
        };
        let content = &content[..content.len().min(CONTENT_MAX)];
        let (request_id, length) = (self.request_id, content.len() as u16);
        out.put_slice(&RecordHeader { record_type, request_id, content: length, padding: 0 }.encode());
        out.put_slice(content);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) record_type: u8,
    pub(super) request_id: u16,
    /// The lengths of what follows, in bytes.
    pub(super) content: u16,
    pub(super) padding: u8,
}

impl RecordHeader {
    fn encode(self) -> [u8; HEADER_LENGTH] {
        let ([id_high, id_low], [high, low]) = (self.request_id.to_be_bytes(), self.content.to_be_bytes());
        [VERSION, self.record_type, id_high, id_low, high, low, self.padding, 0]
    }

    pub(super) fn decode(bytes: [u8; HEADER_LENGTH]) -> Result<Self, MalformedRecord> {
        let [version, record_type, id_high, id_low, high, low, padding, _] = bytes;
        if version != VERSION {
            return Err(MalformedRecord(format!("a FastCGI record has the version {version} instead of {VERSION}")));
        }
        let (request_id, content) = (u16::from_be_bytes([id_high, id_low]), u16::from_be_bytes([high, low]));
        Ok(Self { record_type, request_id, content, padding })
    }

    pub(super) fn kind(self) -> ContentKind {
        use record_type::*;
        let is_management = self.request_id == 0;
        match (self.record_type, FastcgiStream::from_type(self.record_type)) {
            (_, Some(stream)) if !is_management => ContentKind::Stream(stream),
            (BEGIN_REQUEST | END_REQUEST, _) if !is_management => ContentKind::Fixed,
            (UNKNOWN_TYPE, _) if is_management => ContentKind::Fixed,
            (GET_VALUES | GET_VALUES_RESULT, _) if is_management => ContentKind::Pairs,
            _ => ContentKind::Discarded,
        }
    }
}

/// How the content of a record is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentKind {
    /// As it arrives.
    Stream(FastcgiStream),
    /// As a whole, of 8 bytes.
    Fixed,
    /// As a whole.
    Pairs,
    /// Not at all.
    Discarded,
}
