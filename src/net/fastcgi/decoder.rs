//! From bytes to records.

use bytes::{Buf, Bytes, BytesMut};

use super::record::{
    ContentKind, FIXED_LENGTH, FastcgiRecord, HEADER_LENGTH, KEEP_CONNECTION, MalformedRecord, ProtocolStatus,
    RecordContent, RecordHeader, record_type,
};

/// Divides the bytes of a peer into records.
#[derive(Debug, Default)]
pub(crate) struct RecordDecoder {
    /// The record of which content is missing. Its length is that of the missing content.
    current: Option<RecordHeader>,
    /// So many bytes are padding, or of a content that is discarded.
    skipped: usize,
}

impl RecordDecoder {
    /// The next record, or piece of a stream, which it removes from `received`. `None` if more has to be received.
    ///
    /// # Errors
    /// The bytes are no records. What follows cannot be decoded.
    pub(crate) fn next(&mut self, received: &mut BytesMut) -> Result<Option<FastcgiRecord>, MalformedRecord> {
        let skipped = self.skipped.min(received.len());
        received.advance(skipped);
        self.skipped -= skipped;
        if self.skipped > 0 {
            return Ok(None);
        }
        let header = match (self.current.take(), received.first_chunk()) {
            (Some(header), _) => header,
            (None, Some(bytes)) => {
                let header = RecordHeader::decode(*bytes)?;
                received.advance(HEADER_LENGTH);
                header
            }
            (None, None) => return Ok(None),
        };
        let length = usize::from(header.content);
        let content = match header.kind() {
            ContentKind::Stream(_) if received.is_empty() && length > 0 => None,
            ContentKind::Stream(stream) => {
                let data = received.split_to(length.min(received.len())).freeze();
                let missing = header.content - data.len() as u16;
                if missing > 0 {
                    self.current = Some(RecordHeader { content: missing, ..header });
                } else {
                    self.skipped = usize::from(header.padding);
                }
                let content = RecordContent::Stream(stream, data);
                return Ok(Some(FastcgiRecord { request_id: header.request_id, content }));
            }
            ContentKind::Fixed if length != FIXED_LENGTH => {
                let RecordHeader { record_type, content, .. } = header;
                return Err(MalformedRecord(format!("a FastCGI record of type {record_type} has {content} bytes")));
            }
            ContentKind::Fixed | ContentKind::Pairs if received.len() < length => None,
            ContentKind::Fixed | ContentKind::Pairs => {
                Some(decode_content(header.record_type, received.split_to(length).freeze())?)
            }
            ContentKind::Discarded => {
                self.skipped = length;
                Some(match (header.record_type, header.request_id) {
                    (record_type::ABORT_REQUEST, 1..) => RecordContent::AbortRequest,
                    (other, _) => RecordContent::Other(other),
                })
            }
        };
        match content {
            Some(content) => {
                self.skipped += usize::from(header.padding);
                Ok(Some(FastcgiRecord { request_id: header.request_id, content }))
            }
            None => {
                self.current = Some(header);
                Ok(None)
            }
        }
    }

    /// Whether the bytes so far, of which these are still in the buffer, end with a whole record.
    pub(crate) fn is_between_records(&self, received: &[u8]) -> bool {
        self.current.is_none() && self.skipped == received.len()
    }
}

/// The content of a record that was received as a whole.
fn decode_content(record_type: u8, content: Bytes) -> Result<RecordContent, MalformedRecord> {
    Ok(match (record_type, &content[..]) {
        (record_type::GET_VALUES, _) => RecordContent::GetValues(content),
        (record_type::GET_VALUES_RESULT, _) => RecordContent::GetValuesResult(content),
        (record_type::BEGIN_REQUEST, &[high, low, flags, ..]) => RecordContent::BeginRequest {
            role: u16::from_be_bytes([high, low]),
            keeps_connection: flags & KEEP_CONNECTION != 0,
        },
        (record_type::END_REQUEST, &[a, b, c, d, status, ..]) => {
            let unknown = || MalformedRecord(format!("a FastCGI request ended with the unknown status {status}"));
            let status = ProtocolStatus::from_byte(status).ok_or_else(unknown)?;
            RecordContent::EndRequest { exit_status: u32::from_be_bytes([a, b, c, d]), status }
        }
        (_, &[unknown, ..]) => RecordContent::UnknownType(unknown),
        (_, []) => RecordContent::Other(record_type),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{CONTENT_MAX, FastcgiStream, RESPONDER, encode_pair};
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8], size: usize) -> (Vec<FastcgiRecord>, bool) {
        let (mut decoder, mut received, mut records) = (RecordDecoder::default(), BytesMut::new(), Vec::new());
        for piece in bytes.chunks(size) {
            received.extend_from_slice(piece);
            while let Some(record) = decoder.next(&mut received).unwrap() {
                records.push(record);
            }
        }
        (records, decoder.is_between_records(&received))
    }

    /// The records with the pieces of each stream joined where they follow each other.
    fn joined(records: Vec<FastcgiRecord>) -> Vec<FastcgiRecord> {
        let mut joined: Vec<FastcgiRecord> = Vec::new();
        for record in records {
            if let RecordContent::Stream(stream, data) = &record.content
                && let Some(FastcgiRecord { request_id, content: RecordContent::Stream(last, before) }) =
                    joined.last_mut()
                && *request_id == record.request_id
                && last == stream
                && !data.is_empty()
                && !before.is_empty()
            {
                *before = [&before[..], data].concat().into();
            } else {
                joined.push(record);
            }
        }
        joined
    }

    #[test]
    fn records_have_the_bytes_of_the_specification() {
        let record = |request_id, content| FastcgiRecord { request_id, content };
        let pair = {
            let mut pair = BytesMut::new();
            encode_pair(b"FCGI_MPXS_CONNS", b"", &mut pair);
            pair.freeze()
        };
        let cases: [(FastcgiRecord, &[u8]); 8] = [
            (
                record(1, RecordContent::BeginRequest { role: RESPONDER, keeps_connection: true }),
                b"\x01\x01\0\x01\0\x08\0\0\0\x01\x01\0\0\0\0\0",
            ),
            (record(0x102, RecordContent::AbortRequest), b"\x01\x02\x01\x02\0\0\0\0"),
            (
                record(1, RecordContent::EndRequest { exit_status: 938, status: ProtocolStatus::Overloaded }),
                b"\x01\x03\0\x01\0\x08\0\0\0\0\x03\xaa\x02\0\0\0",
            ),
            (
                record(1, RecordContent::Stream(FastcgiStream::Stdout, Bytes::from_static(b"abc"))),
                b"\x01\x06\0\x01\0\x03\0\0abc",
            ),
            (record(1, RecordContent::Stream(FastcgiStream::Stdin, Bytes::new())), b"\x01\x05\0\x01\0\0\0\0"),
            (record(0, RecordContent::GetValues(pair)), b"\x01\x09\0\0\0\x11\0\0\x0f\0FCGI_MPXS_CONNS"),
            (record(0, RecordContent::UnknownType(77)), b"\x01\x0b\0\0\0\x08\0\0\x4d\0\0\0\0\0\0\0"),
            (record(0, RecordContent::Other(77)), b"\x01\x4d\0\0\0\0\0\0"),
        ];
        for (record, bytes) in cases {
            let mut encoded = BytesMut::new();
            record.encode(&mut encoded);
            assert_eq!(encoded, bytes);
            let (decoded, is_whole) = decode(bytes, 1);
            assert!(is_whole);
            assert_eq!(joined(decoded), [record]);
        }
    }

    #[test]
    fn content_of_a_stream_is_passed_on_as_it_arrives_and_padding_is_not() {
        let (mut decoder, mut received) = (RecordDecoder::default(), BytesMut::new());
        let data = |bytes| Some(RecordContent::Stream(FastcgiStream::Stdout, Bytes::from_static(bytes)));
        for (bytes, expected) in [
            (&b"\x01\x06\0\x07\0\x05\x03"[..], None),
            (b"\0", None),
            (b"ab", data(b"ab")),
            (b"cde", data(b"cde")),
            (b"x", None),
            (b"xx\x01\x06\0\x07\0\0\xff\0", data(b"")),
        ] {
            received.extend_from_slice(bytes);
            assert_eq!(decoder.next(&mut received).unwrap().map(|record| record.content), expected);
        }
        assert!(!decoder.is_between_records(&received));
        received.extend_from_slice(&[1; 0xff]);
        assert!(decoder.is_between_records(&received));
        assert_eq!(decoder.next(&mut received), Ok(None));
        assert!(decoder.is_between_records(&received));
    }

    #[test]
    fn records_without_a_meaning_are_skipped_and_named() {
        // An application record without a request, and a management record with one.
        let bytes = b"\x01\x06\0\0\0\x02\x01\0ab \x01\x09\0\x01\0\x01\0\0x\x01\x02\0\x01\0\x01\0\0y";
        let (records, is_whole) = decode(bytes, 3);
        let found: Vec<_> = records.into_iter().map(|record| (record.request_id, record.content)).collect();
        assert_eq!(
            found,
            [(0, RecordContent::Other(6)), (1, RecordContent::Other(9)), (1, RecordContent::AbortRequest)]
        );
        assert!(is_whole);
    }

    #[test]
    fn malformed_records_are_rejected() {
        for bytes in [
            &b"\x02\x06\0\x01\0\0\0\0"[..],
            b"HTTP/1.1 200 OK",
            b"\x01\x01\0\x01\0\x07\0\0",
            b"\x01\x03\0\x01\xff\xff\0\0",
            b"\x01\x0b\0\0\0\0\0\0",
            b"\x01\x03\0\x01\0\x08\0\0\0\0\0\0\x04\0\0\0",
        ] {
            assert!(RecordDecoder::default().next(&mut bytes.into()).is_err(), "{bytes:?}");
        }
    }

    prop_compose! {
        fn any_record()(kind in 0..9, id in 1u16.., number in any::<u32>(), data in prop::collection::vec(any::<u8>(), 0..300)) -> FastcgiRecord {
            use RecordContent::*;
            let data = Bytes::from(data);
            let content = match kind {
                0 => BeginRequest { role: number as u16, keeps_connection: number & 0x10000 != 0 },
                1 => AbortRequest,
                2 => EndRequest { exit_status: number, status: ProtocolStatus::from_byte(number as u8 & 3).unwrap() },
                3 => GetValues(data),
                4 => GetValuesResult(data),
                5 => UnknownType(number as u8),
                6 => Other(number as u8 | 0x80),
                _ => Stream(FastcgiStream::from_type(4 + number as u8 % 5).unwrap(), data),
            };
            FastcgiRecord { request_id: if matches!(kind, 3..=5) { 0 } else { id }, content }
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_from_pieces_of_any_size(
            records in prop::collection::vec(any_record(), 0..8), size in 1..400usize,
        ) {
            let mut bytes = BytesMut::new();
            records.iter().for_each(|record| record.encode(&mut bytes));
            let (decoded, is_whole) = decode(&bytes, size);
            prop_assert!(is_whole);
            prop_assert_eq!(joined(decoded), joined(records));
        }

        #[test]
        fn a_stream_is_divided_into_records(length in 0..200_000usize, id in 1u16..) {
            let mut bytes = BytesMut::new();
            FastcgiStream::Stdin.encode(id, &vec![7; length], &mut bytes);
            FastcgiStream::Stdin.end(id, &mut bytes);
            prop_assert_eq!(bytes.len(), length + (length.div_ceil(CONTENT_MAX) + 1) * HEADER_LENGTH);
            let (records, _) = decode(&bytes, usize::MAX);
            let total: usize = records.iter().map(|record| match &record.content {
                RecordContent::Stream(FastcgiStream::Stdin, data) => data.len(),
                other => panic!("{other:?}"),
            }).sum();
            prop_assert_eq!(total, length);
        }
    }
}
