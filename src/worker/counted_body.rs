//! Counts the bytes of request and response bodies, and reports their end and their errors to the transaction. Trailers
//! lose the headers that patou alone sets.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::handler::{BoxError, RequestFailure};
use super::served_connection::SharedTransaction;
use super::state::WorkerState;
use super::transaction::{Transaction, TransactionEvent};
use crate::exchange::Counter;
use crate::log::Event;
use crate::net::remove_patou_headers;

/// Counts one body: of a request with [`Counter::BytesIn`], of a response with [`Counter::BytesOut`].
pub(super) struct BodyCounter {
    state: Arc<WorkerState>,
    counter: Counter,
    transaction: Arc<SharedTransaction>,
    /// The number of the request in its transaction.
    request: u32,
    bytes: u64,
    /// The reader waits for more of it.
    is_awaited: bool,
}

impl BodyCounter {
    /// Counts the body of the current request of `transaction`, or of its response.
    pub(super) fn new(state: Arc<WorkerState>, counter: Counter, transaction: Arc<SharedTransaction>) -> Self {
        let request = transaction.get(Transaction::number);
        Self { state, counter, transaction, request, bytes: 0, is_awaited: false }
    }

    pub(super) fn count<B>(self, body: B) -> CountedBody<B> {
        CountedBody { body, counter: self }
    }

    fn on(&self, event: TransactionEvent) {
        self.transaction.step(|transaction| transaction.on_body(self.request, event));
    }

    fn ended(&self) {
        if self.counter == Counter::BytesIn {
            self.on(TransactionEvent::BodyEnded);
        }
    }

    fn failed(&self, error: &BoxError) {
        if self.counter == Counter::BytesOut {
            let lease = self.transaction.get(|transaction| transaction.lease().map(|lease| lease.id));
            let (worker, lease) = (&self.state.id, lease.map(tracing::field::display));
            let reason = error.downcast_ref().map_or_else(|| error.to_string(), RequestFailure::for_log);
            tracing::warn!(%worker, lease, event = %Event::ResponseCut, "response cut: {reason}");
            self.on(TransactionEvent::ResponseFailed);
        }
        self.on(TransactionEvent::RequestFailed);
    }

    /// The body was polled. Only a change takes the lock.
    fn awaited(&mut self, is_awaited: bool) {
        if self.counter == Counter::BytesIn && std::mem::replace(&mut self.is_awaited, is_awaited) != is_awaited {
            self.on(if is_awaited { TransactionEvent::BodyAwaited } else { TransactionEvent::BodyArrived });
        }
    }
}

impl Drop for BodyCounter {
    fn drop(&mut self) {
        self.on(match self.counter {
            Counter::BytesOut => TransactionEvent::ResponseEnded, // hyper drops a body after its last byte
            _ => TransactionEvent::BodyDropped,
        });
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
        self.counter.awaited(polled.is_pending());
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
