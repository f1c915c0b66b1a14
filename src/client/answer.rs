//! The answer to a call, and its body as it comes in.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};

use super::error::{CallError, Cause};
use super::lease::Lease;
use super::step::{Step, Watch};
use super::wire::Live;
use crate::ids::WorkerId;

/// What a call brought back.
#[derive(Debug)]
pub struct Answer {
    /// The answer, its body still coming in.
    pub response: Response<AnswerBody>,
    /// The lease it was served under; `None` if the dispatcher itself answered, because there was no worker.
    pub lease: Option<Lease>,
    /// How many times the client began, this one included.
    pub attempts: u32,
}

/// The body of an answer, a stream of frames ([`http_body::Body`]).
///
/// Reading it drives the connection; dropping it closes it. A body that ends early is an error
/// ([`CallError::StartedUnknown`]), never a regular end.
#[derive(Debug)]
pub struct AnswerBody {
    content: Content,
    bytes: u64,
    watch: Watch,
}

enum Content {
    Live(Box<Live>, WorkerId),
    Whole(Bytes),
    Ended,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Content::Live(..) => "Live",
            Content::Whole(_) => "Whole",
            Content::Ended => "Ended",
        })
    }
}

impl AnswerBody {
    pub(super) fn live(live: Live, worker: WorkerId, watch: Watch) -> Self {
        Self { content: Content::Live(Box::new(live), worker), bytes: 0, watch }
    }

    pub(super) fn whole(bytes: Bytes, watch: Watch) -> Self {
        Self { content: Content::Whole(bytes), bytes: 0, watch }
    }

    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        let (live, worker) = match &mut self.content {
            Content::Live(live, worker) => (live, worker),
            Content::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Content::Whole(bytes) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Content::Ended => return Poll::Ready(None),
        };
        let frame = ready!(Pin::new(&mut **live).poll_frame(cx));
        let cut = |error| CallError::StartedUnknown { worker: worker.clone(), cause: Cause::Worker { error } };
        Poll::Ready(frame.map(|frame| frame.map_err(cut)))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = CallError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        let frame = ready!(self.poll_content(cx));
        match &frame {
            Some(Ok(frame)) => self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            end => {
                if end.is_none() && !matches!(self.content, Content::Ended) {
                    self.watch.tell(|| Step::Finished { bytes: self.bytes });
                }
                // The connection has done its one request.
                self.content = Content::Ended;
            }
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Live(live, _) => live.size_hint(),
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Ended => SizeHint::with_exact(0),
        }
    }
}
