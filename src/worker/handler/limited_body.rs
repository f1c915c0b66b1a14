//! The request body as a handler reads it: limited by `max_body` and `body_timeout`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::body::{Body, BoxError};
use super::context::RequestContext;
use super::failure::RequestFailure;

/// Why a request body is incomplete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LimitedBodyError {
    /// It has more bytes than `max_body` allows: 413.
    #[error("the request body is larger than max_body, {0} bytes")]
    TooLarge(u64),
    /// No byte arrived for `body_timeout`: 408.
    #[error("no byte of the request body arrived for {} (body_timeout)", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// The client closed the connection early or broke the protocol: 400, which the client will hardly read.
    #[error("the request body ended early: {0}")]
    Interrupted(BoxError),
}

impl From<LimitedBodyError> for RequestFailure {
    fn from(error: LimitedBodyError) -> Self {
        let status = match error {
            // A stored body cannot be read.
            LimitedBodyError::Interrupted(error) if error.is::<Self>() => {
                return *error.downcast().expect("the type was just checked");
            }
            LimitedBodyError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            LimitedBodyError::TimedOut(_) => StatusCode::REQUEST_TIMEOUT,
            LimitedBodyError::Interrupted(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

/// In this time the runtime sees what arrived while this process did not run: see [`crate::net::until`].
const LAST_LOOK: Duration = Duration::from_millis(1);

/// A request body under the limits of its [`RequestContext`]. It ends after an error.
pub(crate) struct LimitedBody {
    body: Body,
    quota: Option<ByteQuota>,
    /// `None` for a stored body: the client has sent all of it.
    timeout: Option<Duration>,
    /// A frame that [`poll_ready`](LimitedBody::poll_ready) has read.
    peeked: Option<Frame<Bytes>>,
    /// Runs only while a reader waits: the client is not blamed for a slow reader.
    /// After `timeout` it runs once more for [`LAST_LOOK`], and is marked so.
    silence: Option<(Pin<Box<Sleep>>, bool)>,
    failed: bool,
}

struct ByteQuota {
    max: u64,
    remaining: u64,
}

impl LimitedBody {
    /// Applies the limits of `context` to `body`.
    ///
    /// # Errors
    /// 413, not started, when the announced size is too large.
    pub(crate) fn new(body: Body, context: &RequestContext) -> Result<Self, RequestFailure> {
        let max = context.max_body;
        if max > 0 && body.size_hint().lower() > max {
            return Err(RequestFailure::from(LimitedBodyError::TooLarge(max)).not_started());
        }
        let quota = (max > 0).then_some(ByteQuota { max, remaining: max });
        Ok(Self { body, quota, timeout: Some(context.body_timeout), peeked: None, silence: None, failed: false })
    }

    /// A body that has been received within its limits.
    pub(super) fn stored(body: Body) -> Self {
        Self { body, quota: None, timeout: None, peeked: None, silence: None, failed: false }
    }

    /// Whether the client has sent all of it.
    pub(super) fn is_stored(&self) -> bool {
        self.timeout.is_none()
    }

    /// Waits until the first bytes have arrived or the body has ended.
    ///
    /// # Errors
    /// When the body fails before its first byte.
    pub(crate) fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), LimitedBodyError>> {
        if self.peeked.is_none() {
            self.peeked = ready!(Pin::new(&mut *self).poll_frame(task)).transpose()?;
        }
        Poll::Ready(Ok(()))
    }

    fn count(&mut self, frame: &Frame<Bytes>) -> Result<(), LimitedBodyError> {
        if let (Some(quota), Some(data)) = (&mut self.quota, frame.data_ref()) {
            let remaining = quota.remaining.checked_sub(data.len() as u64);
            quota.remaining = remaining.ok_or(LimitedBodyError::TooLarge(quota.max))?;
        }
        Ok(())
    }
}

impl http_body::Body for LimitedBody {
    type Data = Bytes;
    type Error = LimitedBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LimitedBodyError>>> {
        let this = self.get_mut();
        if let Some(frame) = this.peeked.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if this.failed {
            return Poll::Ready(None);
        }
        let result = match Pin::new(&mut this.body).poll_frame(task) {
            Poll::Pending => {
                let Some(timeout) = this.timeout else { return Poll::Pending };
                let (silence, is_last_look) = this.silence.get_or_insert_with(|| (Box::pin(sleep(timeout)), false));
                ready!(silence.as_mut().poll(task));
                if !std::mem::replace(is_last_look, true) {
                    silence.as_mut().reset(Instant::now() + LAST_LOOK);
                    ready!(silence.as_mut().poll(task));
                }
                Err(LimitedBodyError::TimedOut(timeout))
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => Err(LimitedBodyError::Interrupted(error)),
            Poll::Ready(Some(Ok(frame))) => this.count(&frame).map(|()| frame),
        };
        this.silence = None;
        this.failed = result.is_err();
        Poll::Ready(Some(result))
    }

    fn is_end_stream(&self) -> bool {
        self.peeked.is_none() && (self.failed || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let peeked = self.peeked.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        let rest = self.body.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + peeked);
        }
        hint.set_lower(rest.lower() + peeked);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::super::body::unfold;
    use super::super::test_request::request_context;
    use super::*;
    use http_body_util::BodyExt;

    /// Chunks of four bytes, then silence.
    fn chunks(count: usize) -> Body {
        unfold(count, |remaining| async move {
            match remaining {
                0 => std::future::pending().await,
                remaining => Ok(Some((Bytes::from_static(b"four"), remaining - 1))),
            }
        })
    }

    #[tokio::test]
    async fn slow_reader_does_not_time_out_the_client() {
        let context = RequestContext { body_timeout: Duration::from_millis(20), ..request_context() };
        let mut body = LimitedBody::new(chunks(2), &context).unwrap();
        for _ in 0..2 {
            assert!(body.frame().await.unwrap().is_ok());
            sleep(context.body_timeout * 2).await;
        }
        assert!(matches!(body.frame().await, Some(Err(LimitedBodyError::TimedOut(_)))));
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn body_of_unannounced_size_is_counted() {
        let context = RequestContext { max_body: 8, ..request_context() };
        let mut body = LimitedBody::new(chunks(9), &context).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.unwrap().is_ok());
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(RequestFailure::from(error).status, 413);
    }
}
