//! A process together with the pipe it writes its response to.
//!
//! The response ends when the process ends, not at end of file: a descendant of the process may hold the pipe open
//! for ever.

use std::os::fd::OwnedFd;
use std::{io, mem};

use bytes::{Buf, Bytes, BytesMut};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use tokio::net::unix::pipe::Receiver;

use super::child::{HandlerProcess, ProcessExit};
use super::head::{self, MalformedHead};

/// The size of a read, in bytes: the default capacity of a pipe (`pipe(7)`).
const READ_SIZE: usize = 64 * 1024;

/// What a [`ResponseReader`] reads.
#[derive(Debug)]
pub(super) enum ReaderEvent {
    /// At least one byte.
    Data(Bytes),
    /// The pipe has been closed and the process continues. Reported once.
    PipeClosed,
    /// The process has ended and been reaped, and everything it wrote has been read. Reported at every call.
    Exited(ProcessExit),
}

/// Why there is no response head.
#[derive(Debug)]
pub(super) enum HeadError {
    /// The bytes are not a head.
    Malformed(MalformedHead),
    /// The pipe was closed before the end of the head.
    PipeClosed,
    /// The process ended before the end of the head.
    Exited(ProcessExit),
}

/// Why a process that waits for a request is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotIdle {
    /// It has ended.
    Exited(ProcessExit),
    /// It has closed the pipe.
    PipeClosed,
    /// It has written bytes that belong to no response.
    UnexpectedData,
}

/// The process and our end of the pipe. All its futures may be dropped and called again.
#[derive(Debug)]
pub(crate) struct ResponseReader {
    /// The process.
    pub child: HandlerProcess,
    pipe: Option<Receiver>,
    /// Bytes read and not yet returned.
    buffered: BytesMut,
    exit: Option<ExitAndUnread>,
}

#[derive(Debug)]
struct ExitAndUnread {
    exit: ProcessExit,
    /// How many bytes in the pipe may come from the process itself, at most.
    unread: usize,
}

impl ResponseReader {
    /// Takes a process and our end of a pipe that it writes to.
    pub(super) fn new(child: HandlerProcess, pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self { child, pipe: Some(Receiver::from_owned_fd(pipe)?), buffered: BytesMut::new(), exit: None })
    }

    /// The next event.
    pub(super) async fn next(&mut self) -> ReaderEvent {
        if !self.buffered.is_empty() {
            return ReaderEvent::Data(mem::take(&mut self.buffered).freeze());
        }
        self.read().await
    }

    /// Reads a head, including its empty line. [`next`](Self::next) then returns the bytes after it.
    pub(super) async fn head(&mut self) -> Result<Bytes, HeadError> {
        let mut searched = 0;
        loop {
            if let Some(end) = head::find_end(&self.buffered, &mut searched).map_err(HeadError::Malformed)? {
                return Ok(self.buffered.split_to(end).freeze());
            }
            match self.read().await {
                // Mostly the whole head arrives in one piece: then nothing is copied.
                ReaderEvent::Data(data) if self.buffered.is_empty() => self.buffered = BytesMut::from(data),
                ReaderEvent::Data(data) => self.buffered.extend_from_slice(&data),
                ReaderEvent::PipeClosed => return Err(HeadError::PipeClosed),
                ReaderEvent::Exited(exit) => return Err(HeadError::Exited(exit)),
            }
        }
    }

    /// Puts back bytes that [`next`](Self::next) has just returned.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        debug_assert!(self.buffered.is_empty());
        self.buffered = BytesMut::from(bytes);
    }

    /// Checks that the process runs and has written nothing since its last response.
    pub(super) fn check_idle(&mut self) -> Result<(), NotIdle> {
        if let Some(exit) = self.child.try_wait() {
            return Err(NotIdle::Exited(exit));
        }
        let Some(pipe) = &self.pipe else { return Err(NotIdle::PipeClosed) };
        let mut byte = [0];
        // Directly from the pipe: tokio may not have seen its readiness yet.
        match nix::unistd::read(pipe, &mut byte) {
            Err(Errno::EAGAIN) if self.buffered.is_empty() => Ok(()),
            Ok(0) => Err(NotIdle::PipeClosed),
            _ => Err(NotIdle::UnexpectedData),
        }
    }

    async fn read(&mut self) -> ReaderEvent {
        loop {
            if let Some(ExitAndUnread { exit, unread }) = &mut self.exit {
                return match self.pipe.as_ref().and_then(|pipe| read_now(pipe, unread)) {
                    Some(data) => ReaderEvent::Data(data),
                    None => ReaderEvent::Exited(*exit),
                };
            }
            let Some(pipe) = &self.pipe else {
                self.exit = Some(ExitAndUnread { exit: self.child.wait().await, unread: 0 });
                continue;
            };
            tokio::select! {
                // The exit is polled first: a descendant that never stops writing must not hide it.
                biased;
                exit = self.child.wait() => {
                    let capacity = fcntl(pipe, FcntlArg::F_GETPIPE_SZ).unwrap_or(0);
                    self.exit = Some(ExitAndUnread { exit, unread: usize::try_from(capacity).unwrap_or(0) });
                    continue;
                }
                _ = pipe.readable() => {}
            }
            let mut buffer = BytesMut::with_capacity(READ_SIZE);
            match pipe.try_read_buf(&mut buffer) {
                Ok(1..) => return ReaderEvent::Data(buffer.freeze()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => {
                    self.pipe = None;
                    return ReaderEvent::PipeClosed;
                }
            }
        }
    }
}

/// Reads from the pipe of a process that has ended: at most `unread` bytes, which starts as the capacity of the pipe,
/// since the process can have left no more. Directly from the pipe: tokio may not have seen its readiness yet.
fn read_now(pipe: &Receiver, unread: &mut usize) -> Option<Bytes> {
    let mut buffer = BytesMut::zeroed((*unread).min(READ_SIZE));
    let count = nix::unistd::read(pipe, &mut buffer).ok().filter(|&count| count > 0)?;
    *unread -= count;
    buffer.truncate(count);
    Some(buffer.freeze())
}

/// Truncates `bytes` to at most `remaining` bytes, subtracts them from it, and returns the excess.
pub(super) fn split_excess(bytes: &mut Bytes, remaining: &mut u64) -> Bytes {
    let fits = usize::try_from(*remaining).unwrap_or(usize::MAX).min(bytes.remaining());
    *remaining -= fits as u64;
    bytes.split_off(fits)
}
