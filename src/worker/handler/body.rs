//! The body type of requests and responses, and a body that is produced by an asynchronous function.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};

/// Any error that can be sent to another thread.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request or a response.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The next bytes and the state after them; `None` at the end of the body.
pub(super) type BodyStep<S> = Result<Option<(Bytes, S)>, BoxError>;

/// A body without a byte.
pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that consists of the results of `step`, until it returns `None` or an error. Dropping the body drops the
/// state, or the future that owns the state.
pub(super) fn unfold<S, F, Fut>(state: S, step: F) -> Body
where
    S: Send + 'static,
    F: Fn(S) -> Fut + Send + Unpin + 'static,
    Fut: Future<Output = BodyStep<S>> + Send + 'static,
{
    let running = Some(Box::pin(step(state)));
    UnfoldBody { running, step }.boxed_unsync()
}

struct UnfoldBody<F, Fut> {
    running: Option<Pin<Box<Fut>>>,
    step: F,
}

impl<S, F, Fut> http_body::Body for UnfoldBody<F, Fut>
where
    F: Fn(S) -> Fut + Unpin,
    Fut: Future<Output = BodyStep<S>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let Some(running) = &mut this.running else { return Poll::Ready(None) };
        let step = ready!(running.as_mut().poll(task));
        this.running = None;
        Poll::Ready(step.transpose().map(|step| {
            let (bytes, state) = step?;
            this.running = Some(Box::pin((this.step)(state)));
            Ok(Frame::data(bytes))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.running.is_none()
    }
}
