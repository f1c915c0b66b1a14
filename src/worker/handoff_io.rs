//! A handed-over connection as hyper sees it, for one request. It delivers that request and nothing after it, and writes
//! no byte before the service has the request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Task, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::claim::ClaimedConnection;
use super::turn::Transaction;
use crate::net::{RequestInput, discard_input};

pub(super) struct HandoffIo {
    pub connection: Arc<ClaimedConnection>,
    pub transaction: Arc<Transaction>,
    /// The request.
    pub input: RequestInput,
    /// Set when the service has got the request.
    pub is_served: Arc<AtomicBool>,
    /// Set when the response is written and hyper wants the next request.
    pub idle: Arc<AtomicBool>,
}

impl AsyncRead for HandoffIo {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Task<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_served.load(Ordering::Relaxed) && self.transaction.is_response_complete() {
            if !self.transaction.is_request_complete() {
                return Poll::Ready(Ok(())); // EOF: the rest of this body is not read
            }
            if !self.connection.unflushed.load(Ordering::Relaxed) {
                self.idle.store(true, Ordering::Relaxed);
            }
            return Poll::Pending; // until the flush, after which hyper polls again
        }
        let Self { connection, input, .. } = &mut *self;
        if input.is_delivered() {
            return Poll::Pending; // until the response is written, after which hyper polls again
        }
        input.poll_read(&connection.stream, task, buffer)
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
        let Self { connection, transaction, is_served, .. } = &*self;
        // hyper rejects a malformed request by itself, without calling the service: the worker sends a response that
        // says more.
        if !is_served.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(bytes.iter().map(|part| part.len()).sum()));
        }
        connection.unflushed.store(true, Ordering::Relaxed);
        if !transaction.is_response_complete() {
            connection.set_reset_on_close(true);
        }
        let mut stream = connection.stream.clone();
        let written = Pin::new(&mut stream).poll_write_vectored(task, bytes);
        if written.is_pending() && transaction.is_body_dropped() {
            discard_input(&connection.stream, task);
        }
        written
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
