//! The body of a request: can be sent again, is streamed from a file, and is held back until the worker requests it.

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
use super::step::{Step, StepReporter};

/// The body of a request. It can be sent more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Payload {
    /// No body.
    #[default]
    Empty,
    /// These bytes.
    Bytes(Bytes),
    /// The content of a regular file, read in chunks of 64 KiB while it is sent. Each attempt takes the length from the
    /// metadata; data that is appended later is not sent.
    File(PathBuf),
}

const CHUNK: u64 = 64 * 1024;

/// A payload opened for one attempt.
pub(super) struct OpenPayload {
    source: PayloadSource,
    pub(super) length: u64,
}

enum PayloadSource {
    Bytes(Bytes),
    File(PathBuf, FileReader),
}

/// A file is read on another thread, because a disk read may block; the file is moved there and back.
enum FileReader {
    Idle(File),
    Busy(JoinHandle<io::Result<(File, Bytes)>>),
    Failed,
}

impl Payload {
    /// Opens the payload. Fails if the file cannot be opened or has no length (pipe, device).
    pub(super) fn open(&self) -> Result<OpenPayload, FileError> {
        let path = match self {
            Payload::Empty => return Ok(OpenPayload { source: PayloadSource::Bytes(Bytes::new()), length: 0 }),
            Payload::Bytes(bytes) => {
                return Ok(OpenPayload { source: PayloadSource::Bytes(bytes.clone()), length: bytes.len() as u64 });
            }
            Payload::File(path) => path,
        };
        let (file, length) = open_regular(path).map_err(|error| FileError { path: path.clone(), error })?;
        Ok(OpenPayload { source: PayloadSource::File(path.clone(), FileReader::Idle(file)), length })
    }
}

fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    // O_NONBLOCK: opening a FIFO would block until it has a writer, before the check below.
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
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "became shorter while it was being sent"));
    }
    Ok((file, chunk.into()))
}

/// Holds a body back until the worker requests it (`Expect: 100-continue`, RFC 9110, 10.1.1).
#[derive(Debug, Default)]
pub(super) struct ContinueGate {
    opened: Notify,
    is_shut: AtomicBool,
}

impl ContinueGate {
    /// `100 Continue` was received.
    pub(super) fn open(&self) {
        self.opened.notify_one();
    }

    /// The worker has sent its final response and does not need the body.
    pub(super) fn shut(&self) {
        self.is_shut.store(true, Ordering::Relaxed);
    }

    /// Returns after [`Self::open`] or after `timeout`. Never returns after [`Self::shut`]: to end the body early would
    /// be an error of the connection and lose the response.
    async fn wait(self: Arc<Self>, timeout: Duration) {
        let timed_out = tokio::time::timeout(timeout, self.opened.notified()).await.is_err();
        if timed_out && self.is_shut.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
    }
}

/// An [`OpenPayload`] while it is being sent.
pub(super) struct RequestBody {
    payload: OpenPayload,
    left: u64,
    gate: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    reporter: StepReporter,
}

impl RequestBody {
    /// Sends `payload`; with a gate, waits until the gate opens or the timeout expires.
    pub(super) fn new(
        payload: OpenPayload,
        gate: Option<(Arc<ContinueGate>, Duration)>,
        reporter: StepReporter,
    ) -> Self {
        let left = payload.length;
        Self { payload, left, gate: gate.map(|(gate, timeout)| Box::pin(gate.wait(timeout)) as _), reporter }
    }
}

impl PayloadSource {
    fn poll_chunk(&mut self, cx: &mut Context<'_>, bytes: u64) -> Poll<Result<Bytes, FileError>> {
        let (path, reading) = match self {
            PayloadSource::Bytes(rest) => return Poll::Ready(Ok(rest.split_to(bytes as usize))),
            PayloadSource::File(path, reading) => (path, reading),
        };
        if let FileReader::Idle(_) = reading
            && let FileReader::Idle(file) = std::mem::replace(reading, FileReader::Failed)
        {
            *reading = FileReader::Busy(tokio::task::spawn_blocking(move || read_chunk(file, bytes)));
        }
        let read = match reading {
            FileReader::Busy(task) => ready!(Pin::new(task).poll(cx)).unwrap_or_else(|e| Err(io::Error::other(e))),
            _ => Err(io::Error::other("polled after it failed")),
        };
        Poll::Ready(match read {
            Ok((file, chunk)) => {
                *reading = FileReader::Idle(file);
                Ok(chunk)
            }
            Err(error) => {
                *reading = FileReader::Failed;
                Err(FileError { path: path.clone(), error })
            }
        })
    }
}

impl Body for RequestBody {
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
        let chunk = ready!(this.payload.source.poll_chunk(cx, this.left.min(CHUNK)))?;
        this.left -= chunk.len() as u64;
        this.reporter.report(|| Step::Progress { bytes: this.payload.length - this.left, of: this.payload.length });
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
    async fn gate_opens_on_100_or_after_the_timeout_unless_shut() {
        let opened = Arc::<ContinueGate>::default();
        opened.open();
        // A final response may follow the 100 at once; the body is needed nevertheless.
        opened.shut();
        opened.wait(Duration::MAX).await;

        Arc::<ContinueGate>::default().wait(Duration::ZERO).await;

        let shut = Arc::<ContinueGate>::default();
        shut.shut();
        let waited = tokio::time::timeout(Duration::from_millis(20), shut.wait(Duration::ZERO)).await;
        assert!(waited.is_err());
    }
}
