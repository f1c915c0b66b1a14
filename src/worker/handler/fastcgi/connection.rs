//! A connection to an application.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::super::child::HandlerProcess;
use super::listener::ApplicationListener;
use crate::net::fastcgi::{FastcgiRecord, MalformedRecord, RecordDecoder};

/// How much is read at once, in bytes.
const READ_SIZE: usize = 32 << 10;

/// The connection. It is closed when this and the task that writes to it are dropped.
#[derive(Debug)]
pub(super) struct ApplicationConnection {
    pub(super) stream: Arc<UnixStream>,
    decoder: RecordDecoder,
    received: BytesMut,
    pub(super) idle_since: Instant,
}

/// What has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    Data,
    /// The application has closed the connection.
    Closed,
    /// The process has ended, and left nothing more to be read.
    Ended,
}

impl ApplicationConnection {
    pub(super) fn open(listener: &ApplicationListener) -> io::Result<Self> {
        let stream = Arc::new(UnixStream::from_std(listener.connect()?)?);
        let (decoder, received) = (RecordDecoder::default(), BytesMut::new());
        Ok(Self { stream, decoder, received, idle_since: Instant::now() })
    }

    /// The next record, as far as it is received.
    pub(super) fn next_record(&mut self) -> Result<Option<FastcgiRecord>, MalformedRecord> {
        self.decoder.next(&mut self.received)
    }

    /// Whether everything that was received is decoded.
    pub(super) fn is_between_records(&self) -> bool {
        self.decoder.is_between_records(&self.received)
    }

    /// Waits for more from the application, which is this process.
    pub(super) async fn receive(&mut self, process: &HandlerProcess) -> Arrival {
        let mut ended = pin!(process.ended());
        loop {
            let has_ended = tokio::select! {
                biased;
                _ = self.stream.readable() => false,
                () = &mut ended => true,
            };
            if self.received.capacity() - self.received.len() < READ_SIZE / 8 {
                self.received.reserve(READ_SIZE);
            }
            if has_ended {
                return self.read_now();
            }
            match self.stream.try_read_buf(&mut self.received) {
                Ok(1..) => return Arrival::Data,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return Arrival::Closed,
            }
        }
    }

    /// Directly from the socket: tokio may not have seen its readiness yet.
    fn read_now(&mut self) -> Arrival {
        let mut buffer = [0; 4096];
        match recv(self.stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(count @ 1..) => {
                self.received.put_slice(&buffer[..count]);
                Arrival::Data
            }
            Err(Errno::EAGAIN) => Arrival::Ended,
            Ok(0) | Err(_) => Arrival::Closed,
        }
    }

    /// Writes as many bytes as the buffer of the socket has room for. Directly to the socket, as above.
    pub(super) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match send(self.stream.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EAGAIN) => Ok(0),
            written => Ok(written?),
        }
    }

    /// Whether the application has closed it, or written without a request.
    pub(super) fn is_readable(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.stream.as_raw_fd(), &mut [0], flags) != Err(Errno::EAGAIN)
    }
}
