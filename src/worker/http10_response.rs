//! The end of a response to an HTTP/1.0 client, which knows no chunks: nginx is one unless `proxy_http_version` says
//! otherwise. Such a response needs a length, or ends with its connection.

use std::pin::{Pin, pin};
use std::task::{Context as Task, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Full};
use tokio::time::sleep;

use super::handler::{Body, BoxError, RequestFailure};

/// The longest response of unknown length that is buffered.
const BUFFERED_MAX: usize = 1 << 20;

/// How long a response that may be streamed is buffered: one that is produced over time arrives over time.
const BUFFERED_FOR: Duration = Duration::from_millis(200);

/// How the client learns where the response ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// HTTP/1.1: by its length or by its chunks; HEAD: with its head.
    SelfDelimiting,
    /// HTTP/1.0 on TCP: by its length, or by the end of the connection, which a cut would reset.
    LengthOrEnd,
    /// HTTP/1.0 on a Unix socket: by its length only, because such a socket has no reset.
    Length,
}

impl Framing {
    pub(super) fn of<B>(request: &Request<B>, is_tcp: bool) -> Self {
        if request.version() >= Version::HTTP_11 || request.method() == Method::HEAD {
            Self::SelfDelimiting
        } else if is_tcp {
            Self::LengthOrEnd
        } else {
            Self::Length
        }
    }

    /// Gives the response a length, if it needs one. The error of a response that cannot have one ends its handler.
    pub(super) async fn frame(self, response: Response<Body>) -> Result<Response<Body>, RequestFailure> {
        if self == Self::SelfDelimiting || has_end(&response) {
            return Ok(response);
        }
        let (head, mut body) = response.into_parts();
        let failure = |reason| RequestFailure::new(StatusCode::BAD_GATEWAY, reason);
        let (mut start, mut time_is_up) = (Vec::new(), pin!(sleep(BUFFERED_FOR)));
        loop {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = &mut time_is_up, if self == Self::LengthOrEnd => break,
            };
            let Some(frame) = frame else {
                let whole = Full::from(start).map_err(|never| match never {});
                return Ok(Response::from_parts(head, Body::new(whole)));
            };
            let frame = frame.map_err(|error| failure(error.to_string()))?;
            start.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            if start.len() <= BUFFERED_MAX {
                continue;
            }
            if self == Self::Length {
                let reason = "the response has no length and is longer than 1 MiB: on a Unix socket an HTTP/1.0 client \
                              cannot tell where it ends. Use HTTP/1.1, which is `proxy_http_version 1.1` in nginx";
                return Err(failure(reason.to_owned()));
            }
            break;
        }
        Ok(Response::from_parts(head, Body::new(Continued { start: Some(start.into()), rest: body })))
    }
}

/// Whether an HTTP/1.0 client sees the end of the response without the end of the connection.
pub(super) fn has_end(response: &Response<Body>) -> bool {
    matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || response.headers().contains_key(CONTENT_LENGTH)
        || response.body().size_hint().exact().is_some()
}

/// A body of which the start has been read.
struct Continued {
    start: Option<Bytes>,
    rest: Body,
}

impl http_body::Body for Continued {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.start.take().filter(|start| !start.is_empty()) {
            Some(start) => Poll::Ready(Some(Ok(Frame::data(start)))),
            None => Pin::new(&mut self.rest).poll_frame(task),
        }
    }
}
