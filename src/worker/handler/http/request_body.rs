//! The body of a request on its way to the server.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::super::body::BoxError;
use super::super::failure::RequestFailure;
use super::super::limited_body::LimitedBody;
use super::headers::{remove_claims, remove_connection_fields};
use crate::sync;

/// How long a server may take to say whether it wants the body (RFC 9110, section 10.1.1: a client does not wait
/// indefinitely).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// The body of a request, which outlives the attempts to send it. What has been read from it is kept until a byte of the
/// request was written.
#[derive(Clone)]
pub(in super::super) struct SharedBody(Arc<Mutex<BodyState>>);

struct BodyState {
    body: LimitedBody,
    /// What was read before the first byte of the request was written.
    unsent: VecDeque<Unsent>,
    is_written: bool,
    /// While the client waits for `100 Continue`, and the server has not decided.
    gate: Option<Gate>,
    /// Why the client's body has failed.
    failure: Option<RequestFailure>,
    is_awaited: bool,
    is_complete: bool,
}

/// A frame that is sent again.
#[derive(Clone)]
enum Unsent {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Unsent {
    fn of(frame: &Frame<Bytes>) -> Option<Self> {
        let data = frame.data_ref().cloned().map(Self::Data);
        data.or_else(|| frame.trailers_ref().cloned().map(Self::Trailers))
    }

    fn frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }

    fn length(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }
}

struct Gate {
    opens: Pin<Box<Sleep>>,
    waker: Option<Waker>,
}

impl SharedBody {
    /// A body. With `expects_continue` nothing of it is read until the server wants it.
    pub(in super::super) fn new(body: LimitedBody, expects_continue: bool) -> Self {
        let is_complete = body.is_end_stream();
        let gate =
            (expects_continue && !is_complete).then(|| Gate { opens: Box::pin(sleep(CONTINUE_TIMEOUT)), waker: None });
        let (unsent, is_written, failure, is_awaited) = (VecDeque::new(), false, None, false);
        Self(Arc::new(Mutex::new(BodyState { body, unsent, is_written, gate, failure, is_awaited, is_complete })))
    }

    /// The body for one attempt.
    pub(in super::super) fn attempt(&self) -> AttemptBody {
        AttemptBody { shared: self.clone(), resent: 0 }
    }

    /// The server wants the body.
    pub(super) fn open_gate(&self) {
        let gate = sync::lock(&self.0).gate.take();
        gate.and_then(|gate| gate.waker).into_iter().for_each(Waker::wake);
    }

    /// A byte of the request was written: it is not sent again.
    pub(in super::super) fn set_written(&self) {
        let mut state = sync::lock(&self.0);
        if !std::mem::replace(&mut state.is_written, true) {
            state.unsent = VecDeque::new();
        }
    }

    pub(in super::super) fn is_written(&self) -> bool {
        sync::lock(&self.0).is_written
    }

    /// Whether the whole body was read.
    pub(in super::super) fn is_complete(&self) -> bool {
        sync::lock(&self.0).is_complete
    }

    /// Whether the server waits for the client.
    pub(super) fn is_awaited(&self) -> bool {
        sync::lock(&self.0).is_awaited
    }

    /// Why the client's body has failed.
    pub(in super::super) fn failure(&self) -> Option<RequestFailure> {
        sync::lock(&self.0).failure.clone()
    }
}

impl std::fmt::Debug for SharedBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedBody")
    }
}

/// The body as hyper sends it.
pub(in super::super) struct AttemptBody {
    shared: SharedBody,
    /// How many of the unsent pieces this attempt has got.
    resent: usize,
}

impl http_body::Body for AttemptBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let shared = self.shared.clone();
        let state = &mut *sync::lock(&shared.0);
        if let Some(gate) = &mut state.gate {
            gate.waker = Some(task.waker().clone());
            ready!(gate.opens.as_mut().poll(task));
            state.gate = None;
        }
        if let Some(unsent) = state.unsent.get(self.resent) {
            self.resent += 1;
            return Poll::Ready(Some(Ok(unsent.clone().frame())));
        }
        let polled = Pin::new(&mut state.body).poll_frame(task);
        state.is_awaited = polled.is_pending();
        match ready!(polled) {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    remove_connection_fields(trailers);
                    remove_claims(trailers);
                }
                if let (Some(unsent), false) = (Unsent::of(&frame), state.is_written) {
                    state.unsent.push_back(unsent);
                    self.resent += 1;
                }
                state.is_complete = frame.is_trailers() || state.body.is_end_stream();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let failure = RequestFailure::from(error);
                state.failure = Some(failure.clone());
                Poll::Ready(Some(Err(failure.into())))
            }
            None => {
                state.is_complete = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = sync::lock(&self.shared.0);
        state.is_complete && self.resent >= state.unsent.len()
    }

    fn size_hint(&self) -> SizeHint {
        let state = sync::lock(&self.shared.0);
        let unsent: u64 = state.unsent.iter().skip(self.resent).map(Unsent::length).sum();
        let rest = state.body.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + unsent);
        }
        hint.set_lower(rest.lower() + unsent);
        hint
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_body_util::{BodyExt, Full};

    use super::*;

    #[tokio::test]
    async fn request_of_which_nothing_was_written_is_sent_again_with_its_trailers() {
        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("4"))]);
        let sent = trailers.clone();
        let body = Full::new(Bytes::from_static(b"data")).map_err(BoxError::from);
        let body = body.with_trailers(async move { Some(Ok(sent)) }).boxed_unsync();
        let shared = SharedBody::new(LimitedBody::stored(body), false);
        for _ in 0..3 {
            let collected = shared.attempt().collect().await.unwrap();
            assert_eq!(collected.trailers(), Some(&trailers));
            assert_eq!(collected.to_bytes(), "data");
        }
    }
}
