//! The request body as a handler takes it in: not more than `max_body`, never silent longer than `body_timeout`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Task, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::{Body, BoxError, Context, Failure};

/// Why a request body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum LimitedBodyError {
    /// It has more bytes than `max_body` allows: 413.
    #[error("the request body is larger than max_body, {0} bytes")]
    TooLarge(u64),
    /// Nothing came for `body_timeout`: 408.
    #[error("nothing of the request body came for {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// The client broke off: 400, which it will hardly read.
    #[error("the request body broke off: {0}")]
    Broken(BoxError),
}

impl From<LimitedBodyError> for Failure {
    fn from(error: LimitedBodyError) -> Self {
        let status = match error {
            LimitedBodyError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            LimitedBodyError::Silent(_) => StatusCode::REQUEST_TIMEOUT,
            LimitedBodyError::Broken(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

/// A request body under the limits of its [`Context`]. After an error it has ended.
pub struct LimitedBody {
    body: Body,
    /// Bytes that may still come, and how many that were; `None` without a limit.
    left: Option<(u64, u64)>,
    timeout: Duration,
    /// A frame that was read ahead.
    ahead: Option<Frame<Bytes>>,
    /// Runs only while a reader waits: a reader that is busy elsewhere is not the client's silence.
    silence: Option<Pin<Box<Sleep>>>,
    failed: bool,
}

impl LimitedBody {
    /// Puts `body` under the limits.
    ///
    /// # Errors
    /// 413, not started, when its announced size is too large already.
    pub fn new(body: Body, context: &Context) -> Result<Self, Failure> {
        let limit = context.max_body;
        if limit > 0 && body.size_hint().lower() > limit {
            return Err(Failure::from(LimitedBodyError::TooLarge(limit)).not_started());
        }
        let left = (limit > 0).then_some((limit, limit));
        Ok(Self { body, left, timeout: context.body_timeout, ahead: None, silence: None, failed: false })
    }

    /// Waits until the body has begun to come, or is over.
    ///
    /// # Errors
    /// When it breaks off or breaks a limit right at its beginning.
    pub fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), LimitedBodyError>> {
        if self.ahead.is_none() {
            self.ahead = ready!(Pin::new(&mut *self).poll_frame(task)).transpose()?;
        }
        Poll::Ready(Ok(()))
    }

    fn count(&mut self, frame: &Frame<Bytes>) -> Result<(), LimitedBodyError> {
        if let (Some((left, limit)), Some(data)) = (&mut self.left, frame.data_ref()) {
            *left = left.checked_sub(data.len() as u64).ok_or(LimitedBodyError::TooLarge(*limit))?;
        }
        Ok(())
    }
}

impl http_body::Body for LimitedBody {
    type Data = Bytes;
    type Error = LimitedBodyError;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, LimitedBodyError>>> {
        let this = self.get_mut();
        if let Some(frame) = this.ahead.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if this.failed {
            return Poll::Ready(None);
        }
        let result = match Pin::new(&mut this.body).poll_frame(task) {
            Poll::Pending => {
                let silence = this.silence.get_or_insert_with(|| Box::pin(sleep(this.timeout)));
                ready!(silence.as_mut().poll(task));
                Err(LimitedBodyError::Silent(this.timeout))
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => Err(LimitedBodyError::Broken(error)),
            Poll::Ready(Some(Ok(frame))) => this.count(&frame).map(|()| frame),
        };
        this.silence = None;
        this.failed = result.is_err();
        Poll::Ready(Some(result))
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_none() && (self.failed || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = self.ahead.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        let rest = self.body.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + ahead);
        }
        hint.set_lower(rest.lower() + ahead);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream;
    use super::super::tests::context;
    use super::*;
    use http_body_util::BodyExt;

    /// Chunks of four bytes, then silence.
    fn chunks(count: usize) -> Body {
        stream::unfold(count, |left| async move {
            match left {
                0 => std::future::pending().await,
                left => Ok(Some((Bytes::from_static(b"four"), left - 1))),
            }
        })
    }

    #[tokio::test]
    async fn a_reader_that_is_late_is_not_silence_of_the_client() {
        let context = Context { body_timeout: Duration::from_millis(20), ..context() };
        let mut body = LimitedBody::new(chunks(2), &context).unwrap();
        for _ in 0..2 {
            assert!(body.frame().await.unwrap().is_ok());
            sleep(context.body_timeout * 2).await;
        }
        assert!(matches!(body.frame().await, Some(Err(LimitedBodyError::Silent(_)))));
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_unannounced_size_is_counted() {
        let mut body = LimitedBody::new(chunks(9), &Context { max_body: 8, ..context() }).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.unwrap().is_ok());
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(Failure::from(error).status, 413);
    }
}
