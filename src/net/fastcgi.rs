//! The records of FastCGI, for both sides of a connection ("FastCGI Specification" 1.0; the sections named here are its
//! own). Pure.
//!
//! A record is a header of 8 bytes, its content and padding. [`RecordDecoder`] takes bytes as they arrive and holds back
//! no more than the header or the content of one record; the content of a stream is passed on without waiting for the rest
//! of its record. Nothing is allocated because of a length that a peer announces.

#![forbid(unsafe_code)]

mod decoder;
mod pairs;
mod record;

pub(crate) use decoder::RecordDecoder;
pub(crate) use pairs::{MAX_CONNS, MAX_REQS, MPXS_CONNS, NameValuePairs, encode_pair};
#[cfg(any(test, fuzzing))]
pub(crate) use record::HEADER_LENGTH;
pub(crate) use record::{
    CONTENT_MAX, FastcgiRecord, FastcgiStream, MalformedRecord, ProtocolStatus, RESPONDER, RecordContent, VERSION,
};
