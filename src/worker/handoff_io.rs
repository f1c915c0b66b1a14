//! A handed-over connection as hyper sees it. It first delivers what was read with the previous request, writes no byte
//! before the lease is Responding, and reads nothing after a response.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Task, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::claim::{ClaimedConnection, may_write};
use super::state::WorkerState;
use super::turn::Transaction;

pub(super) struct HandoffIo {
    pub connection: Arc<ClaimedConnection>,
    pub state: Arc<WorkerState>,
    pub transaction: Arc<Transaction>,
    /// Bytes that were read with the previous request.
    pub read_ahead: Bytes,
    /// How many requests were received before `read_ahead`.
    pub known: u32,
    /// Set when the response is written and hyper wants the next request.
    pub idle: Arc<AtomicBool>,
}

impl AsyncRead for HandoffIo {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Task<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.read_ahead.is_empty() {
            let length = self.read_ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.read_ahead[..length]);
            self.read_ahead.advance(length);
            return Poll::Ready(Ok(()));
        }
        if self.transaction.is_response_complete() && self.connection.requests.load(Ordering::Relaxed) > self.known {
            if !self.transaction.is_request_complete() {
                return Poll::Ready(Ok(())); // EOF: the rest of this body is not read
            }
            if !self.connection.unflushed.load(Ordering::Relaxed) {
                self.idle.store(true, Ordering::Relaxed);
            }
            return Poll::Pending; // until the flush, after which hyper polls again
        }
        let mut stream = self.connection.stream.clone();
        Pin::new(&mut stream).poll_read(task, buffer)
    }
}

impl AsyncWrite for HandoffIo {
    fn poll_write(self: Pin<&mut Self>, task: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(task, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Task<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { connection, state, transaction, .. } = &*self;
        connection.unflushed.store(true, Ordering::Relaxed);
        // hyper rejects a malformed request by itself, without calling the service.
        let by_hyper = !transaction.is_responding() && !transaction.is_request_open();
        if by_hyper && !may_write(state, transaction, connection.active.lease) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !transaction.is_response_complete() {
            connection.set_reset_on_close(true);
        }
        let mut stream = connection.stream.clone();
        Pin::new(&mut stream).poll_write_vectored(task, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.connection.stream.clone();
        ready!(Pin::new(&mut stream).poll_flush(task))?;
        self.connection.unflushed.store(false, Ordering::Relaxed);
        if self.transaction.is_response_complete() {
            self.connection.set_reset_on_close(false); // the kernel has all of it
        }
        Poll::Ready(Ok(()))
    }

    /// Does nothing: the end of the connection is decided after the lease.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
