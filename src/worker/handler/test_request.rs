//! Requests for the tests of the handlers.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tower_service::Service;

use super::body::{Body, BoxError};
use super::builtin::BuiltinHandler;
use super::context::RequestContext;
use super::failure::RequestFailure;

/// A body of known size.
pub(crate) fn full_body(data: impl Into<Bytes>) -> Body {
    Full::new(data.into()).map_err(|never| match never {}).boxed_unsync()
}

/// `body` with an announced length.
pub(crate) fn sized(body: Body, length: u64) -> Body {
    struct Sized(Body, u64);
    impl http_body::Body for Sized {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            task: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            let frame = ready!(Pin::new(&mut self.0).poll_frame(task));
            self.1 -= frame.iter().flatten().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum::<u64>();
            Poll::Ready(frame)
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.1)
        }
    }
    Sized(body, length).boxed_unsync()
}

/// The context of a request to `default/1`, with limits that no test reaches by accident.
pub(crate) fn request_context() -> RequestContext {
    RequestContext {
        peer: Some("192.0.2.7:4711".parse().unwrap()),
        server: Some("127.0.0.1:7300".parse().unwrap()),
        is_https: false,
        port: None,
        user: None,
        worker: "default-1".parse().unwrap(),
        lease: "3.1042".to_owned(),
        body_timeout: Duration::from_secs(20),
        max_body: 0,
    }
}

/// Sends a request with `context`.
pub(crate) async fn send(
    handler: &BuiltinHandler,
    context: RequestContext,
    request: http::request::Builder,
    body: Body,
) -> Result<Response<Body>, RequestFailure> {
    let request: Request<Body> = request.extension(context).body(body).unwrap();
    handler.clone().call(request).await
}

/// The whole body as text, or the error that ends it.
pub(crate) async fn body_text(response: Response<Body>) -> Result<String, BoxError> {
    Ok(String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned())
}
