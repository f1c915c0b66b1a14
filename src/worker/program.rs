//! A worker that is a program of its own, built on this library.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower_service::Service;

use super::error::ServeError;
use super::handler::{Body, BoxError, LimitedBody, RequestContext, RequestFailure};
use super::service::HandlerFuture;
use super::setup::WorkerSetup;
use crate::config::Config;
use crate::ids::WorkerId;
use crate::log;

/// Serves `service` as the worker that this program was started as, until it is stopped.
///
/// The service gets one request at a time, each under its own lease, with the original path, and with a [`RequestContext`]
/// among its extensions. The request body ends with an error when it exceeds `front.max_body` or `front.body_timeout`.
/// If the service has not responded after `request_timeout`, its future is dropped and the client gets a 504; a service
/// that blocks its thread for longer ends the whole worker.
///
/// Takes over SIGTERM, SIGINT and SIGHUP, ignores SIGTTOU, becomes a child subreaper, and logs through `tracing` unless the program has
/// set a subscriber. To recycle, the process executes its program again.
///
/// # Errors
/// When the program was not started by a `program` pool, or cannot use its listening socket or its slot.
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
    let served = WorkerSetup::new(&config, &id)?.serve(UserService(service), None).await;
    log::flush(); // the program may end now
    served
}

/// The program's service under the limits of the configuration, with its errors as [`RequestFailure`]s.
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
    type Future = HandlerFuture;

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
                // Boxed as its own type: the compiler cannot prove that the bare future is Send here.
                let response: Boxed<Result<Response<B>, S::Error>> =
                    Box::pin(self.0.call(Request::from_parts(parts, body)));
                Box::pin(async move {
                    match response.await {
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
    RequestFailure::new(StatusCode::INTERNAL_SERVER_ERROR, reason)
}
