//! The rest of a FastCGI request after its head: its body, and its end before the response.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::super::handler::BoxError;
use super::records::{RecordReader, RequestRecord};
use crate::net::discard_input;
use crate::sync;

/// What is known of the end of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StdinEnd {
    Awaited,
    Reached,
    /// The client has aborted the request, or is gone.
    Aborted,
}

/// The rest of a request, shared by its body and by the task that responds to it.
pub(super) struct FastcgiInput {
    state: Mutex<InputState>,
    /// Notified when the end of the body is reached, or the request is aborted.
    ended: Notify,
}

struct InputState {
    /// `None` after the request: a handler may keep its body.
    reader: Option<RecordReader>,
    stdin: StdinEnd,
}

impl InputState {
    /// The next bytes of the body; `None` at its end.
    fn poll_stdin(&mut self, task: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BoxError>> {
        let reader = self.reader.as_mut().ok_or("the request is over")?;
        let record = match self.stdin {
            StdinEnd::Awaited => ready!(reader.poll_next(task)),
            StdinEnd::Reached => return Poll::Ready(Ok(None)),
            StdinEnd::Aborted => Ok(Some(RequestRecord::Abort)),
        };
        Poll::Ready(match record {
            Ok(Some(RequestRecord::Stdin(bytes))) if bytes.is_empty() => {
                self.stdin = StdinEnd::Reached;
                Ok(None)
            }
            Ok(Some(RequestRecord::Stdin(bytes))) => Ok(Some(bytes)),
            Ok(Some(RequestRecord::Abort)) | Ok(None) => {
                self.stdin = StdinEnd::Aborted;
                Err("the client has aborted the request".into())
            }
            Ok(Some(RequestRecord::Begin { .. } | RequestRecord::Params(_))) => {
                Err("a FastCGI record is not in its order".into())
            }
            Err(error) => Err(error),
        })
    }
}

impl FastcgiInput {
    /// `is_complete`: whether there is no body, or its end has been read.
    pub(super) fn new(reader: RecordReader, is_complete: bool) -> Arc<Self> {
        let stdin = if is_complete { StdinEnd::Reached } else { StdinEnd::Awaited };
        Arc::new(Self { state: Mutex::new(InputState { reader: Some(reader), stdin }), ended: Notify::new() })
    }

    fn poll_stdin(&self, task: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BoxError>> {
        let mut state = sync::lock(&self.state);
        let before = state.stdin;
        let polled = state.poll_stdin(task);
        if state.stdin != before {
            self.ended.notify_one();
        }
        polled
    }

    /// Returns when the client aborts the request, or closes the connection, after all of the request has arrived.
    pub(super) async fn aborted(&self) {
        while sync::lock(&self.state).stdin == StdinEnd::Awaited {
            self.ended.notified().await;
        }
        poll_fn(|task| {
            let mut state = sync::lock(&self.state);
            let InputState { reader: Some(reader), stdin: StdinEnd::Reached } = &mut *state else {
                return Poll::Ready(());
            };
            loop {
                match ready!(reader.poll_next(task)) {
                    Ok(Some(RequestRecord::Abort) | None) | Err(_) => return Poll::Ready(()),
                    Ok(Some(_)) => {} // is not in its order, and belongs to nothing
                }
            }
        })
        .await;
    }

    /// The replies that wait.
    pub(super) fn take_replies(&self) -> BytesMut {
        sync::lock(&self.state).reader.as_mut().map(RecordReader::take_replies).unwrap_or_default()
    }

    /// Reads and discards what has arrived. The connection has no further request.
    pub(super) fn discard(&self, task: &mut Context<'_>) {
        if let Some(reader) = &sync::lock(&self.state).reader {
            discard_input(reader.stream(), task);
        }
    }

    /// Reads the end of the body, which may follow the last byte after a while. Returns whether all of the request has been
    /// read. To be called before the client gets the end of the response, after which it may send the next request.
    pub(super) async fn finish(&self, bound: Duration) -> bool {
        let read = poll_fn(|task| {
            while ready!(self.poll_stdin(task)).is_ok_and(|bytes| bytes.is_some()) {}
            Poll::Ready(())
        });
        let _ = timeout(bound, read).await;
        sync::lock(&self.state).stdin == StdinEnd::Reached
    }

    /// Ends the input. Returns whether nothing has been read after the request.
    pub(super) fn close(&self) -> bool {
        let reader = sync::lock(&self.state).reader.take();
        reader.is_some_and(|reader| reader.is_between_records())
    }
}

/// The body of a request.
pub(super) struct FastcgiBody {
    input: Arc<FastcgiInput>,
    /// How many bytes are still to come; `None` if the front server does not know.
    left: Option<u64>,
    first: Option<Bytes>,
    is_ended: bool,
}

impl FastcgiBody {
    /// A body of which `first` has been read.
    pub(super) fn new(input: Arc<FastcgiInput>, length: Option<u64>, first: Option<Bytes>) -> Self {
        let is_ended = length.is_none() && first.is_none();
        Self { input, left: length, first, is_ended }
    }
}

impl http_body::Body for FastcgiBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        let data = match self.first.take() {
            Some(first) => Some(first),
            None => match ready!(self.input.poll_stdin(task)) {
                Ok(data) => data,
                Err(error) => {
                    self.is_ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            },
        };
        let taken = data.as_ref().map_or(0, |data| data.len() as u64);
        let wrong = match (self.left, &data) {
            (Some(left), Some(_)) if taken > left => Some("the request body is longer than its CONTENT_LENGTH"),
            (Some(1..), None) => Some("the request body is shorter than its CONTENT_LENGTH"),
            _ => None,
        };
        self.left = self.left.map(|left| left.saturating_sub(taken));
        self.is_ended = wrong.is_some() || data.is_none();
        Poll::Ready(match wrong {
            Some(wrong) => Some(Err(wrong.into())),
            None => data.map(|data| Ok(Frame::data(data))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended || self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) => SizeHint::with_exact(left),
            None if self.is_ended => SizeHint::with_exact(0),
            None => SizeHint::new(),
        }
    }
}
