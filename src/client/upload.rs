//! The body of a request: replayable, streamed from a file, held back until the worker wants it.

use std::fs::File;
use std::future::pending;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use nix::fcntl::OFlag;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::error::FileError;
use super::step::{Step, Watch};

/// The body of a request, which can be sent more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Payload {
    /// No body.
    #[default]
    Empty,
    /// These bytes.
    Bytes(Bytes),
    /// The content of a regular file, read in chunks of 64 KiB while it is sent. Its length is taken from
    /// the file's metadata at each attempt; what is appended later is not sent.
    File(PathBuf),
}

const CHUNK: u64 = 64 * 1024;

/// A payload opened for one attempt.
pub(super) struct Source {
    content: Content,
    pub(super) length: u64,
}

enum Content {
    Bytes(Bytes),
    File(PathBuf, Reading),
}

/// A read of the disk may block and so happens on another thread; the file goes there and back.
enum Reading {
    Idle(File),
    Busy(JoinHandle<io::Result<(File, Bytes)>>),
    Failed,
}

impl Payload {
    /// Opens the payload. Fails if the file cannot be opened or has no length of its own (pipe, device).
    pub(super) fn open(&self) -> Result<Source, FileError> {
        let path = match self {
            Payload::Empty => return Ok(Source { content: Content::Bytes(Bytes::new()), length: 0 }),
            Payload::Bytes(bytes) => {
                return Ok(Source { content: Content::Bytes(bytes.clone()), length: bytes.len() as u64 });
            }
            Payload::File(path) => path,
        };
        let (file, length) = regular(path).map_err(|error| FileError { path: path.clone(), error })?;
        Ok(Source { content: Content::File(path.clone(), Reading::Idle(file)), length })
    }
}

fn regular(path: &Path) -> io::Result<(File, u64)> {
    // O_NONBLOCK: opening a FIFO would wait for its writer before we could see that it is one.
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file, so its length is not known in advance"));
    }
    Ok((file, metadata.len()))
}

fn read_chunk(mut file: File, bytes: u64) -> io::Result<(File, Bytes)> {
    let mut chunk = Vec::with_capacity(bytes as usize);
    file.by_ref().take(bytes).read_to_end(&mut chunk)?;
    if chunk.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "became shorter while it was sent"));
    }
    Ok((file, chunk.into()))
}

/// Holds a body back until the worker asks for it (`Expect: 100-continue`, RFC 9110, 10.1.1).
#[derive(Debug, Default)]
pub(super) struct Gate {
    continued: Notify,
    refused: AtomicBool,
}

impl Gate {
    /// `100 Continue` came.
    pub(super) fn proceed(&self) {
        self.continued.notify_one();
    }

    /// The worker has given its final answer and has no use for the body.
    pub(super) fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// Returns after [`Self::proceed`] or `silence`; after [`Self::refuse`] never: ending the body early
    /// would be an error to the connection and lose the answer that refused it.
    async fn opened(self: Arc<Self>, silence: Duration) {
        let silent = tokio::time::timeout(silence, self.continued.notified()).await.is_err();
        if silent && self.refused.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
    }
}

/// A [`Source`] on its way.
pub(super) struct Upload {
    source: Source,
    left: u64,
    gate: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    watch: Watch,
}

impl Upload {
    /// Sends `source`; with a gate only once that opens, at the latest after this long a silence.
    pub(super) fn new(source: Source, gate: Option<(Arc<Gate>, Duration)>, watch: Watch) -> Self {
        let left = source.length;
        Self { source, left, gate: gate.map(|(gate, silence)| Box::pin(gate.opened(silence)) as _), watch }
    }
}

impl Content {
    fn poll_chunk(&mut self, cx: &mut Context<'_>, bytes: u64) -> Poll<Result<Bytes, FileError>> {
        let (path, reading) = match self {
            Content::Bytes(rest) => return Poll::Ready(Ok(rest.split_to(bytes as usize))),
            Content::File(path, reading) => (path, reading),
        };
        if let Reading::Idle(_) = reading
            && let Reading::Idle(file) = std::mem::replace(reading, Reading::Failed)
        {
            *reading = Reading::Busy(tokio::task::spawn_blocking(move || read_chunk(file, bytes)));
        }
        let read = match reading {
            Reading::Busy(task) => ready!(Pin::new(task).poll(cx)).unwrap_or_else(|e| Err(io::Error::other(e))),
            _ => Err(io::Error::other("polled after it failed")),
        };
        Poll::Ready(match read {
            Ok((file, chunk)) => {
                *reading = Reading::Idle(file);
                Ok(chunk)
            }
            Err(error) => {
                *reading = Reading::Failed;
                Err(FileError { path: path.clone(), error })
            }
        })
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = FileError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FileError>>> {
        let this = &mut *self;
        if let Some(gate) = &mut this.gate {
            ready!(gate.as_mut().poll(cx));
            this.gate = None;
        }
        if this.left == 0 {
            return Poll::Ready(None);
        }
        let chunk = ready!(this.source.content.poll_chunk(cx, this.left.min(CHUNK)))?;
        this.left -= chunk.len() as u64;
        this.watch.tell(|| Step::Progress { bytes: this.source.length - this.left, of: this.source.length });
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gate_opens_when_asked_or_after_silence_unless_refused() {
        let asked = Arc::<Gate>::default();
        asked.proceed();
        // The answer to a request may follow its 100 at once and need the body all the same.
        asked.refuse();
        asked.opened(Duration::MAX).await;

        Arc::<Gate>::default().opened(Duration::ZERO).await;

        let refused = Arc::<Gate>::default();
        refused.refuse();
        let opened = tokio::time::timeout(Duration::from_millis(20), refused.opened(Duration::ZERO)).await;
        assert!(opened.is_err());
    }
}
