//! Responds with the method, the path and the worker that serves the request.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use http::{Request, Response};
use patou::worker::{Body, RequestContext, ServeError};
use tower_service::Service;

struct ShowRequest;

impl Service<Request<Body>> for ShowRequest {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let worker = request.extensions().get::<RequestContext>().map(|context| context.worker.to_string());
        let text = format!("{} {} on {}", request.method(), request.uri().path(), worker.unwrap_or_default());
        ready(Ok(Response::new(text)))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ServeError> {
    patou::worker::serve(ShowRequest).await
}
