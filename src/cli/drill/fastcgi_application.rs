//! A FastCGI application on descriptor 0, as PHP is one: it serves one connection after the other, keeps one if the worker
//! says so, and exits after as many requests as `PHP_FCGI_MAX_REQUESTS` says.

use std::io::{self, Cursor, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use bytes::BytesMut;

use crate::net::fastcgi::{
    FastcgiRecord, FastcgiStream, MPXS_CONNS, NameValuePairs, ProtocolStatus, RecordContent, RecordDecoder, encode_pair,
};

/// How long it takes to exit after its last request: what is sent to it meanwhile is not served.
const END_DELAY: Duration = Duration::from_millis(20);

/// Serves requests with `respond`, which gets path, query, length and body, and writes a CGI response.
pub(super) fn serve(
    mut respond: impl FnMut(&str, &str, (u64, &mut dyn Read), &mut Vec<u8>) -> io::Result<()>,
) -> io::Result<()> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut left = std::env::var("PHP_FCGI_MAX_REQUESTS").ok().and_then(|max| max.parse().ok()).unwrap_or(u64::MAX);
    while left > 0 {
        let mut connection = RecordConnection::new(listener.accept()?.0);
        // The worker may close its connection at any time.
        while left > 0 && connection.serve_request(&mut respond).unwrap_or(false) {
            left -= 1;
            if !connection.is_kept {
                break;
            }
        }
        if left == 0 {
            std::thread::sleep(END_DELAY); // with the connection open
        }
    }
    Ok(())
}

struct RecordConnection {
    stream: UnixStream,
    decoder: RecordDecoder,
    received: BytesMut,
    /// The worker may send another request.
    is_kept: bool,
}

impl RecordConnection {
    fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: RecordDecoder::default(), received: BytesMut::new(), is_kept: false }
    }

    fn next_record(&mut self) -> io::Result<Option<FastcgiRecord>> {
        loop {
            if let Some(record) = self.decoder.next(&mut self.received).map_err(io::Error::other)? {
                return Ok(Some(record));
            }
            let mut buffer = [0; 8192];
            match self.stream.read(&mut buffer)? {
                0 => return Ok(None),
                count => self.received.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Returns whether there was a request. It has started when its variables are complete.
    fn serve_request(
        &mut self,
        respond: &mut impl FnMut(&str, &str, (u64, &mut dyn Read), &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<bool> {
        let mut pairs = Vec::new();
        while let Some(FastcgiRecord { request_id, content }) = self.next_record()? {
            match content {
                RecordContent::BeginRequest { keeps_connection, .. } => self.is_kept = keeps_connection,
                RecordContent::Stream(FastcgiStream::Params, data) if !data.is_empty() => pairs.extend(data),
                RecordContent::Stream(FastcgiStream::Params, _) => {
                    let variable = |wanted: &str| {
                        let found = NameValuePairs::new(&pairs).flatten().find(|(name, _)| *name == wanted.as_bytes());
                        found.map_or_else(String::new, |(_, value)| String::from_utf8_lossy(value).into_owned())
                    };
                    let (path, query) = (variable("PATH_INFO"), variable("QUERY_STRING"));
                    let length = variable("CONTENT_LENGTH").parse().unwrap_or(0);
                    let mut response = Vec::new();
                    respond(&path, &query, (length, &mut RecordBody::new(self)), &mut response)?;
                    self.end_request(request_id, &response)?;
                    return Ok(true);
                }
                RecordContent::GetValues(_) => self.reply()?,
                _ => {}
            }
        }
        Ok(false)
    }

    fn reply(&mut self) -> io::Result<()> {
        let (mut pairs, mut reply) = (BytesMut::new(), BytesMut::new());
        encode_pair(MPXS_CONNS, b"0", &mut pairs);
        let content = RecordContent::GetValuesResult(pairs.freeze());
        FastcgiRecord { request_id: 0, content }.encode(&mut reply);
        self.stream.write_all(&reply)
    }

    fn end_request(&mut self, request_id: u16, response: &[u8]) -> io::Result<()> {
        let mut records = BytesMut::new();
        FastcgiStream::Stdout.encode(request_id, response, &mut records);
        let content = RecordContent::EndRequest { exit_status: 0, status: ProtocolStatus::RequestComplete };
        FastcgiRecord { request_id, content }.encode(&mut records);
        self.stream.write_all(&records)
    }
}

/// The body of a request.
struct RecordBody<'c> {
    connection: &'c mut RecordConnection,
    piece: Cursor<bytes::Bytes>,
}

impl<'c> RecordBody<'c> {
    fn new(connection: &'c mut RecordConnection) -> Self {
        Self { connection, piece: Cursor::default() }
    }
}

impl Read for RecordBody<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.piece.read(buffer)? {
                0 => {}
                count => return Ok(count),
            }
            match self.connection.next_record()?.map(|record| record.content) {
                Some(RecordContent::Stream(FastcgiStream::Stdin, data)) if !data.is_empty() => {
                    self.piece = Cursor::new(data);
                }
                Some(RecordContent::Stream(FastcgiStream::Stdin, _)) => return Ok(0),
                Some(_) => {}
                // A part of a body would be recorded, and sent back as the whole.
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}
