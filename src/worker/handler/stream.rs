//! A response body made of a state and an asynchronous step, and two futures of which the first wins.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;

use super::{Body, BoxError};

/// What a step yields: the next bytes and the state after them, or the end.
pub type Step<S> = Result<Option<(Bytes, S)>, BoxError>;

/// A body whose frames come from `step`, until it yields the end or an error. Dropping the body drops the
/// state, or the step that has it.
pub fn unfold<S, F, Fut>(state: S, step: F) -> Body
where
    S: Send + 'static,
    F: Fn(S) -> Fut + Send + Unpin + 'static,
    Fut: Future<Output = Step<S>> + Send + 'static,
{
    let running = Some(Box::pin(step(state)));
    Unfold { running, step }.boxed_unsync()
}

struct Unfold<F, Fut> {
    running: Option<Pin<Box<Fut>>>,
    step: F,
}

impl<S, F, Fut> http_body::Body for Unfold<F, Fut>
where
    F: Fn(S) -> Fut + Unpin,
    Fut: Future<Output = Step<S>>,
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

/// Which of two futures was first.
pub enum First<A, B> {
    /// The left one.
    Left(A),
    /// The right one.
    Right(B),
}

/// The first of two futures to be done, the left one if both are. The other is dropped, so both must bear that.
pub async fn race<A: Future, B: Future>(left: A, right: B) -> First<A::Output, B::Output> {
    let (mut left, mut right) = (pin!(left), pin!(right));
    poll_fn(|task| {
        if let Poll::Ready(done) = left.as_mut().poll(task) {
            return Poll::Ready(First::Left(done));
        }
        right.as_mut().poll(task).map(First::Right)
    })
    .await
}
