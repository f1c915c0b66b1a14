//! The records of FastCGI, of which either peer is hostile: the same records result from pieces of any size, nothing is held
//! back beyond one record, and what was decoded is encoded to the same records.

use bytes::{Bytes, BytesMut};

use crate::net::fastcgi::{
    CONTENT_MAX, FastcgiRecord, HEADER_LENGTH, NameValuePairs, RecordContent, RecordDecoder, encode_pair,
};

use super::input::Input;

/// The records in a stream of bytes, and whether the stream is malformed after them. Pieces of a stream are joined.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<FastcgiRecord>, bool) {
    let (mut decoder, mut received) = (RecordDecoder::default(), BytesMut::new());
    let mut records: Vec<FastcgiRecord> = Vec::new();
    for piece in pieces {
        received.extend_from_slice(piece);
        loop {
            match decoder.next(&mut received) {
                Ok(Some(record)) => add(&mut records, record),
                Ok(None) => break,
                Err(_) => return (records, true),
            }
        }
        assert!(received.len() <= HEADER_LENGTH + CONTENT_MAX, "{} bytes are held back", received.len());
    }
    (records, false)
}

fn add(records: &mut Vec<FastcgiRecord>, record: FastcgiRecord) {
    if let RecordContent::Stream(stream, data) = &record.content
        && let Some(FastcgiRecord { request_id, content: RecordContent::Stream(last, before) }) = records.last_mut()
        && (*request_id, *last) == (record.request_id, *stream)
        && !data.is_empty()
        && !before.is_empty()
    {
        *before = Bytes::from([&before[..], data].concat());
    } else {
        records.push(record);
    }
}

fn check_pairs(bytes: &[u8]) {
    let (mut encoded, mut length) = (BytesMut::new(), 0);
    let pairs: Vec<_> = NameValuePairs::new(bytes).map_while(Result::ok).collect();
    for (name, value) in &pairs {
        length += name.len() + value.len();
        encode_pair(name, value, &mut encoded);
    }
    assert!(length <= bytes.len(), "pairs of {length} bytes in {}", bytes.len());
    assert_eq!(NameValuePairs::new(&encoded).map(|pair| pair.expect("it was encoded")).collect::<Vec<_>>(), pairs);
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let size = usize::from(input.byte()) + 1;
    let (records, is_malformed) = read([input.0].into_iter());
    let in_pieces = read(input.0.chunks(size));
    assert_eq!(in_pieces, (records.clone(), is_malformed), "pieces of {size} bytes make a difference");
    let mut encoded = BytesMut::new();
    for record in &records {
        record.encode(&mut encoded);
        match &record.content {
            RecordContent::Stream(_, data) | RecordContent::GetValues(data) | RecordContent::GetValuesResult(data) => {
                check_pairs(data);
            }
            _ => {}
        }
    }
    assert_eq!(read([&encoded[..]].into_iter()), (records, false), "another meaning after encoding");
    check_pairs(input.0);
}
