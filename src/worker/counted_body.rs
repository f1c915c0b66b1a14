//! Counts the bytes of request and response bodies, and reports their end and their errors to the transaction. Trailers
//! lose the headers that patou alone sets.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::handler::BoxError;
use super::state::WorkerState;
use super::turn::Transaction;
use crate::exchange::Counter;
use crate::log::Event;
use crate::net::remove_patou_headers;

/// Counts one body: of a request with [`Counter::BytesIn`], of a response with [`Counter::BytesOut`].
pub(super) struct BodyCounter {
    state: Arc<WorkerState>,
    counter: Counter,
    transaction: Arc<Transaction>,
    bytes: u64,
    /// The body has ended with an error.
    failed: bool,
}

impl BodyCounter {
    pub(super) fn new(state: Arc<WorkerState>, counter: Counter, transaction: Arc<Transaction>) -> Self {
        Self { state, counter, transaction, bytes: 0, failed: false }
    }

    pub(super) fn count<B>(self, body: B) -> CountedBody<B> {
        CountedBody { body, counter: self }
    }

    fn ended(&self) {
        if self.counter == Counter::BytesIn {
            self.transaction.complete_request();
        }
    }

    fn failed(&mut self, error: &BoxError) {
        if self.counter == Counter::BytesOut {
            let (worker, lease) = (&self.state.id, self.transaction.lease().map(tracing::field::display));
            tracing::warn!(%worker, lease, event = %Event::ResponseCut, "response cut: {error}");
        }
        self.transaction.fail();
        self.failed = true;
    }
}

impl Drop for BodyCounter {
    fn drop(&mut self) {
        match self.counter {
            Counter::BytesOut if self.failed => {}
            Counter::BytesOut => self.transaction.complete_response(), // hyper drops a body after its last byte
            _ => self.transaction.drop_body(),
        }
        self.state.slot.count(self.counter, self.bytes);
    }
}

pub(super) struct CountedBody<B> {
    body: B,
    counter: BodyCounter,
}

impl<B> http_body::Body for CountedBody<B>
where
    B: http_body::Body<Data = Bytes, Error = BoxError> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = AssertUnwindSafe(|| Pin::new(&mut self.body).poll_frame(task));
        // A panic of the handler's body must not end the connection without the release of its lease.
        let mut polled = std::panic::catch_unwind(body)
            .unwrap_or_else(|_| Poll::Ready(Some(Err("the handler panicked during its response".into()))));
        match &mut polled {
            Poll::Ready(Some(Ok(frame))) => {
                frame.trailers_mut().into_iter().for_each(remove_patou_headers);
                self.counter.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Poll::Ready(Some(Err(error))) => self.counter.failed(error),
            Poll::Ready(None) => self.counter.ended(),
            Poll::Pending => {}
        }
        if self.body.is_end_stream() {
            self.counter.ended();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
