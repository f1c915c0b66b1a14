//! The response to a call, and its body as a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};

use super::connection::IncomingBody;
use super::error::{CallError, FailureCause};
use super::lease::Lease;
use super::step::{Step, StepReporter};
use crate::ids::WorkerId;

/// The response to a call, and how it was obtained.
#[derive(Debug)]
pub struct ClientResponse {
    /// The HTTP response; its body is still to be read.
    pub response: Response<ResponseBody>,
    /// The lease under which a worker responded; `None` if the dispatcher responded because it granted no lease.
    pub lease: Option<Lease>,
    /// The number of attempts, including this one.
    pub attempts: u32,
}

/// A response body, a stream of frames ([`http_body::Body`]).
///
/// Reading it drives the connection; dropping it closes the connection. A truncated body is an error
/// ([`CallError::StartedUnknown`]).
#[derive(Debug)]
pub struct ResponseBody {
    source: BodySource,
    bytes: u64,
    reporter: StepReporter,
}

enum BodySource {
    Incoming(Box<IncomingBody>, WorkerId),
    Buffered(Bytes),
    Ended,
}

impl std::fmt::Debug for BodySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BodySource::Incoming(..) => "Incoming",
            BodySource::Buffered(_) => "Buffered",
            BodySource::Ended => "Ended",
        })
    }
}

impl ResponseBody {
    /// The body of a worker's response, which is still being received.
    pub(super) fn incoming(body: IncomingBody, worker: WorkerId, reporter: StepReporter) -> Self {
        Self { source: BodySource::Incoming(Box::new(body), worker), bytes: 0, reporter }
    }

    /// The body of a dispatcher's response, which has been received.
    pub(super) fn buffered(bytes: Bytes, reporter: StepReporter) -> Self {
        Self { source: BodySource::Buffered(bytes), bytes: 0, reporter }
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        let (body, worker) = match &mut self.source {
            BodySource::Incoming(body, worker) => (body, worker),
            BodySource::Buffered(bytes) if bytes.is_empty() => return Poll::Ready(None),
            BodySource::Buffered(bytes) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            BodySource::Ended => return Poll::Ready(None),
        };
        let frame = ready!(Pin::new(&mut **body).poll_frame(cx));
        let truncated =
            |error| CallError::StartedUnknown { worker: worker.clone(), cause: FailureCause::Worker { error } };
        Poll::Ready(frame.map(|frame| frame.map_err(truncated)))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = CallError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        let frame = ready!(self.poll_source(cx));
        match &frame {
            Some(Ok(frame)) => self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            end => {
                if end.is_none() && !matches!(self.source, BodySource::Ended) {
                    self.reporter.report(|| Step::Finished { bytes: self.bytes });
                }
                // Closes the connection, which serves one request.
                self.source = BodySource::Ended;
            }
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            BodySource::Incoming(body, _) => body.size_hint(),
            BodySource::Buffered(bytes) => SizeHint::with_exact(bytes.len() as u64),
            BodySource::Ended => SizeHint::with_exact(0),
        }
    }
}
