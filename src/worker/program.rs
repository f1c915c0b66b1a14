//! A worker that is somebody's own program.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower_service::Service;

use super::handler::{Body, BoxError, LimitedBody, RequestContext, RequestFailure};
use super::redirect::Answering;
use super::{ServeError, WorkerSetup};
use crate::config::Config;
use crate::ids::WorkerId;

/// Serves `service` as the worker that this program was started as, until it is told to stop.
///
/// One request at a time reaches the service, each under its own lease, with the original path, and with a
/// [`RequestContext`] among its extensions. The request's body ends with an error where `front.max_body` or
/// `front.body_timeout` is broken. What the service has not answered after `request_timeout` is dropped and
/// answered with 504; a service that blocks its thread past that ends the whole worker.
///
/// Takes over SIGTERM, SIGINT and SIGHUP, becomes a child subreaper, and logs through `tracing` unless the
/// program has set a subscriber. To be recycled, the process executes its program anew.
///
/// # Errors
/// When the program was not started by a `program` pool, or its part of the set cannot be used.
pub async fn serve<S, B>(service: S) -> Result<(), ServeError>
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let name = std::env::var("PATOU_WORKER").map_err(|_| ServeError::NotAWorker("PATOU_WORKER"))?;
    let id: WorkerId = name.parse()?;
    let config = Config::load(None)?.config;
    WorkerSetup::take(&config, &id)?.serve(UserService(service), None).await
}

/// Somebody's service under the limits of the configuration, with its errors as failures of ours.
struct UserService<S>(S);

impl<S, B> Service<Request<Body>> for UserService<S>
where
    S: Service<Request<Body>, Response = Response<B>> + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = RequestFailure;
    type Future = Answering;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), RequestFailure>> {
        self.0.poll_ready(task).map_err(|error| failure(error.into()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let limited = match parts.extensions.get::<RequestContext>() {
            Some(context) => LimitedBody::new(body, context).map(|body| Body::new(body.map_err(BoxError::from))),
            None => Ok(body),
        };
        match limited {
            Err(failure) => Box::pin(std::future::ready(Err(failure))),
            Ok(body) => {
                // Boxed by its own type: the compiler cannot see that the bare future is Send in here.
                let answer: Boxed<Result<Response<B>, S::Error>> =
                    Box::pin(self.0.call(Request::from_parts(parts, body)));
                Box::pin(async move {
                    match answer.await {
                        Ok(response) => Ok(response.map(|body| Body::new(body.map_err(|error| error.into())))),
                        Err(error) => Err(failure(error.into())),
                    }
                })
            }
        }
    }
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

fn failure(error: BoxError) -> RequestFailure {
    let reason = format!("the handler failed: {error}");
    RequestFailure { status: StatusCode::INTERNAL_SERVER_ERROR, reason, started: true }
}
