//! What a client sends, divided into requests: the head is read and checked before hyper gets it, and hyper gets no byte
//! of the next request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::chunks::ChunkScanner;
use super::request_head::{BodyFraming, CheckedHead, HeadScanner};
use super::{ProblemResponse, SharedStream};

/// The first size of the buffer for a head, which is hyper's as well: a head with a short body takes one read.
const BUFFER_SIZE: usize = 8192;

/// Why there is no request.
#[derive(Debug)]
pub(crate) enum NoRequest {
    /// The client has closed its sending direction without a request, or the connection is broken.
    Closed,
    Rejected(ProblemResponse),
}

/// One request of a connection: its head, then its body.
pub(crate) struct RequestInput {
    /// Received, and not yet delivered.
    ready: Bytes,
    body: BodyEnd,
    /// Received after the end of this request.
    next: BytesMut,
}

/// How much of the body is still to be received.
#[derive(Clone, Copy, Debug)]
enum BodyEnd {
    After(u64),
    Chunked(ChunkScanner),
    /// A malformed chunk has been received: there is no way to tell.
    Unknown,
}

impl BodyEnd {
    /// The body has these further bytes; returns how many of them belong to it.
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::After(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(scanner) => {
                let taken = scanner.scan(bytes);
                taken.map_err(|error| {
                    *self = Self::Unknown;
                    io::Error::new(io::ErrorKind::InvalidData, error)
                })
            }
            Self::Unknown => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn is_reached(&self) -> bool {
        match self {
            Self::After(left) => *left == 0,
            Self::Chunked(scanner) => scanner.is_complete(),
            Self::Unknown => false,
        }
    }
}

impl RequestInput {
    /// Reads the head of the next request, of at most `limit` bytes. `received` was read from the connection before.
    /// Without a bound in time: the caller has one.
    ///
    /// # Errors
    /// The connection ends first, or the head is rejected.
    pub(crate) async fn read(stream: &SharedStream, mut received: BytesMut, limit: usize) -> Result<Self, NoRequest> {
        let mut scanner = HeadScanner::new(limit);
        let mut stream = stream.clone();
        loop {
            match scanner.scan(&received) {
                Ok(Some(head)) => return Ok(Self::new(head, received)),
                Ok(None) => {}
                Err(problem) => return Err(NoRequest::Rejected(problem)),
            }
            if received.len() == received.capacity() {
                received.reserve(BUFFER_SIZE.max(received.len()));
            }
            match stream.read_buf(&mut received).await {
                Ok(1..) => {}
                Ok(0) if received.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) => {
                    let detail = "the client stopped sending within the request head";
                    return Err(NoRequest::Rejected(ProblemResponse::not_started(StatusCode::BAD_REQUEST, detail)));
                }
                Ok(0) | Err(_) => return Err(NoRequest::Closed),
            }
        }
    }

    fn new(head: CheckedHead, mut received: BytesMut) -> Self {
        let mut body = match head.body {
            BodyFraming::Length(length) => BodyEnd::After(length),
            BodyFraming::Chunked => BodyEnd::Chunked(ChunkScanner::new()),
        };
        received.advance(head.start);
        let head_length = head.end - head.start;
        // The handler gets the error of a malformed chunk when it reads the body.
        let in_body = body.take(&received[head_length..]).unwrap_or(0);
        let end = head_length + in_body;
        // Splitting costs an allocation.
        let next = if end < received.len() { received.split_off(end) } else { BytesMut::new() };
        Self { ready: received.freeze(), body, next }
    }

    /// Whether the whole request has been delivered.
    pub(crate) fn is_delivered(&self) -> bool {
        self.ready.is_empty() && self.body.is_reached()
    }

    /// What was received after this request.
    pub(crate) fn into_next(self) -> BytesMut {
        self.next
    }

    /// Delivers what the client sends after this request, in a protocol without requests.
    pub(crate) fn poll_read_rest(
        &mut self,
        stream: &SharedStream,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.next.is_empty() {
            return Pin::new(&mut stream.clone()).poll_read(task, buffer);
        }
        let length = self.next.len().min(buffer.remaining());
        buffer.put_slice(&self.next.split_to(length));
        Poll::Ready(Ok(()))
    }

    /// Delivers more of the request. Not to be called when all of it [is delivered](Self::is_delivered).
    pub(crate) fn poll_read(
        &mut self,
        stream: &SharedStream,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ready.is_empty() {
            let length = self.ready.len().min(buffer.remaining());
            buffer.put_slice(&self.ready[..length]);
            self.ready.advance(length);
            return Poll::Ready(Ok(()));
        }
        if matches!(self.body, BodyEnd::Unknown) {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut stream.clone()).poll_read(task, buffer))?;
        let taken = self.body.take(&buffer.filled()[before..])?;
        self.next.extend_from_slice(&buffer.filled()[before + taken..]);
        buffer.set_filled(before + taken);
        Poll::Ready(Ok(()))
    }
}

/// Reads and discards what the client sends, until nothing is there to be read. A client that reads the response only
/// after it has sent its whole request would otherwise wait for ever.
pub(crate) fn discard_input(stream: &SharedStream, task: &mut Context<'_>) {
    let mut discarded = [0; 8192];
    let mut stream = stream.clone();
    loop {
        let mut buffer = ReadBuf::new(&mut discarded);
        match Pin::new(&mut stream).poll_read(task, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
            _ => return,
        }
    }
}

/// A connection with one request, as hyper sees it.
pub(crate) struct OneRequestIo<F> {
    pub stream: SharedStream,
    pub input: RequestInput,
    /// Set when the service has got the request. hyper's own response to a request that it rejects is discarded: the
    /// caller sends one that says more.
    pub is_served: Arc<AtomicBool>,
    /// Whether the rest of the request body is not wanted any more.
    pub is_body_dropped: F,
}

impl<F: Fn() -> bool + Unpin> AsyncRead for OneRequestIo<F> {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, input, .. } = &mut *self;
        if input.is_delivered() {
            return Poll::Ready(Ok(())); // EOF: no second request is read
        }
        input.poll_read(stream, task, buffer)
    }
}

impl<F: Fn() -> bool + Unpin> AsyncWrite for OneRequestIo<F> {
    fn poll_write(self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(task, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.is_served.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(bytes.iter().map(|part| part.len()).sum()));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(task, bytes);
        if written.is_pending() && (self.is_body_dropped)() {
            discard_input(&self.stream, task);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: the owner decides how the connection ends ([`super::lingering_close()`]).
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
