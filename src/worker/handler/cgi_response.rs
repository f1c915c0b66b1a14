//! A process and the pipe it answers through, read as one: the end of the process is the end, not the end of
//! the file, since a grandchild may hold the pipe open for ever.

use std::os::fd::OwnedFd;
use std::{io, mem};

use bytes::{Buf, Bytes, BytesMut};
use nix::fcntl::{FcntlArg, fcntl};
use tokio::net::unix::pipe::Receiver;

use super::child::{Child, Ended};
use super::head::{self, Malformed};
use super::stream::{First, race};

/// Read at once, in bytes: what a pipe holds unless told otherwise (`pipe(7)`).
const CHUNK: usize = 64 * 1024;

/// What comes out of a process.
#[derive(Debug)]
pub enum Event {
    /// Bytes; never none.
    Data(Bytes),
    /// The pipe has been closed while the process runs on. Said once.
    Closed,
    /// The process has ended, has been reaped, and all it wrote has been read. Said again and again.
    Ended(Ended),
}

/// Why there is no head.
#[derive(Debug)]
pub enum NoHead {
    /// What came is no head.
    Malformed(Malformed),
    /// The pipe was closed before its end.
    Closed,
    /// The process ended before its end.
    Ended(Ended),
}

/// A process and the reading end of its pipe. All its futures may be dropped and started anew.
#[derive(Debug)]
pub struct Output {
    /// The process.
    pub child: Child,
    pipe: Option<Receiver>,
    /// Read and not yet given out.
    held: BytesMut,
    /// How the process ended, and how many bytes of the pipe may still be its own.
    ended: Option<(Ended, usize)>,
}

impl Output {
    /// Joins a process and the reading end of a pipe it writes.
    pub fn new(child: Child, pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self { child, pipe: Some(Receiver::from_owned_fd(pipe)?), held: BytesMut::new(), ended: None })
    }

    /// The next event.
    pub async fn next(&mut self) -> Event {
        if !self.held.is_empty() {
            return Event::Data(mem::take(&mut self.held).freeze());
        }
        self.read().await
    }

    /// Reads a head and gives it out with its empty line; what follows it comes with [`Output::next`].
    pub async fn head(&mut self) -> Result<Bytes, NoHead> {
        let mut searched = 0;
        loop {
            if let Some(end) = head::end(&self.held, &mut searched).map_err(NoHead::Malformed)? {
                return Ok(self.held.split_to(end).freeze());
            }
            match self.read().await {
                // Mostly the first piece and the last: then nothing is copied.
                Event::Data(data) if self.held.is_empty() => self.held = BytesMut::from(data),
                Event::Data(data) => self.held.extend_from_slice(&data),
                Event::Closed => return Err(NoHead::Closed),
                Event::Ended(ended) => return Err(NoHead::Ended(ended)),
            }
        }
    }

    /// Gives bytes back, to come first again.
    pub fn unread(&mut self, bytes: Bytes) {
        debug_assert!(self.held.is_empty());
        self.held = BytesMut::from(bytes);
    }

    /// Whether the process runs and has said nothing that nobody asked for; the reason if not.
    pub fn quiet(&mut self) -> Result<(), String> {
        if let Some(ended) = self.child.try_wait() {
            return Err(ended.to_string());
        }
        let Some(pipe) = &self.pipe else { return Err("closed its descriptor for responses".to_owned()) };
        let mut byte = [0];
        // Straight from the pipe: tokio may not know yet that something has come.
        match nix::unistd::read(pipe, &mut byte) {
            Err(nix::errno::Errno::EAGAIN) if self.held.is_empty() => Ok(()),
            Ok(0) => Err("closed its descriptor for responses".to_owned()),
            _ => Err("wrote more than it had announced, or unasked".to_owned()),
        }
    }

    async fn read(&mut self) -> Event {
        loop {
            if let Some((ended, left)) = &mut self.ended {
                return match self.pipe.as_ref().and_then(|pipe| drain(pipe, left)) {
                    Some(data) => Event::Data(data),
                    None => Event::Ended(*ended),
                };
            }
            let Some(pipe) = &self.pipe else {
                self.ended = Some((self.child.wait().await, 0));
                continue;
            };
            // The end comes first: a grandchild that never stops writing must not hide it.
            if let First::Left(ended) = race(self.child.wait(), pipe.readable()).await {
                let size = fcntl(pipe, FcntlArg::F_GETPIPE_SZ).unwrap_or(0);
                self.ended = Some((ended, usize::try_from(size).unwrap_or(0)));
                continue;
            }
            let mut buffer = BytesMut::with_capacity(CHUNK);
            match pipe.try_read_buf(&mut buffer) {
                Ok(1..) => return Event::Data(buffer.freeze()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => {
                    self.pipe = None;
                    return Event::Closed;
                }
            }
        }
    }
}

/// Takes what is in the pipe of a process that has ended: at most `left` bytes, the size of the pipe, as only
/// those can be its own. Straight from the pipe: tokio may not know yet that they have come.
fn drain(pipe: &Receiver, left: &mut usize) -> Option<Bytes> {
    let mut buffer = BytesMut::zeroed((*left).min(CHUNK));
    let count = nix::unistd::read(pipe, &mut buffer).ok().filter(|&count| count > 0)?;
    *left -= count;
    buffer.truncate(count);
    Some(buffer.freeze())
}

/// Cuts `bytes` after `left` bytes, counts them off and returns what was beyond.
pub fn cut(bytes: &mut Bytes, left: &mut u64) -> Bytes {
    let fits = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.remaining());
    *left -= fits as u64;
    bytes.split_off(fits)
}
