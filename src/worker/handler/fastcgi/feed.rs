//! The task that writes a request to an application.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::net::UnixStream;

use super::super::body_feed::BodyFeed;
use super::super::http::SharedBody;
use crate::net::fastcgi::{CONTENT_MAX, FastcgiRecord, FastcgiStream, RESPONDER, RecordContent};

/// The request of a connection, which carries one after the other.
pub(super) const REQUEST_ID: u16 = 1;
/// So many bytes of a request are kept until its connection is accepted: more than the buffer of the socket takes.
const RETAINED_MAX: usize = 1 << 20;

/// The records before the body of a request; all of them if it has none.
pub(super) fn encode_start(variables: &[u8], keeps_connection: bool, has_body: bool) -> Bytes {
    let mut start = BytesMut::with_capacity(variables.len() + 64);
    let content = RecordContent::BeginRequest { role: RESPONDER, keeps_connection };
    FastcgiRecord { request_id: REQUEST_ID, content }.encode(&mut start);
    FastcgiStream::Params.encode(REQUEST_ID, variables, &mut start);
    FastcgiStream::Params.end(REQUEST_ID, &mut start);
    if !has_body {
        FastcgiStream::Stdin.end(REQUEST_ID, &mut start);
    }
    start.freeze()
}

/// Starts to write `start`, the first records of a request, and its body. It ends when the application reads no further,
/// which is allowed, and when the body fails, which `body` then knows.
pub(super) fn spawn(stream: Arc<UnixStream>, start: Bytes, body: SharedBody) -> BodyFeed<()> {
    BodyFeed::spawn(async move {
        let mut written = start.len();
        if write_all(&stream, &start).await.is_none() {
            return;
        }
        let mut attempt = body.attempt();
        while let Some(frame) = attempt.frame().await {
            let Ok(frame) = frame else { return };
            let Ok(data) = frame.into_data() else { continue };
            for content in data.chunks(CONTENT_MAX) {
                let header = FastcgiStream::Stdin.header(REQUEST_ID, content.len() as u16);
                if write_all(&stream, &header).await.is_none() || write_all(&stream, content).await.is_none() {
                    return;
                }
            }
            written += data.len();
            if written > RETAINED_MAX {
                body.set_written();
            }
        }
        let mut end = BytesMut::new();
        FastcgiStream::Stdin.end(REQUEST_ID, &mut end);
        write_all(&stream, &end).await;
    })
}

/// Returns `None` if the application does not read any more.
async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> Option<()> {
    while !bytes.is_empty() {
        stream.writable().await.ok()?;
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
    Some(())
}
