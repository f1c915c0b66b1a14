//! The body of a response on its way to the client.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::super::body::BoxError;
use super::super::warm::Borrowed;
use super::give_back::{broken, give_back};
use super::headers::remove_connection_fields;
use super::server::{HttpServer, ServerFault};

type FaultFuture = Pin<Box<dyn Future<Output = (Borrowed<HttpServer>, ServerFault)> + Send>>;

/// The body. The process is returned together with the last piece: a reader that knows the length polls no further.
pub(super) struct ServerResponseBody {
    /// `None` once it is returned.
    server: Option<Borrowed<HttpServer>>,
    /// The connection has failed: was it the process?
    failing: Option<FaultFuture>,
}

impl ServerResponseBody {
    pub(super) fn new(server: Borrowed<HttpServer>) -> Self {
        Self { server: Some(server), failing: None }
    }
}

impl http_body::Body for ServerResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(server) = &mut self.server {
            let polled = ready!(server.poll_frame(task));
            let Some(mut server) = self.server.take() else { return Poll::Ready(None) };
            match polled {
                Some(Ok(mut frame)) => {
                    frame.trailers_mut().into_iter().for_each(remove_connection_fields);
                    if server.incoming().is_none_or(|incoming| incoming.is_end_stream()) {
                        give_back(server)?;
                    } else {
                        self.server = Some(server);
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                None => {
                    give_back(server)?;
                    return Poll::Ready(None);
                }
                Some(Err(error)) => {
                    server.close();
                    self.failing = Some(Box::pin(async move {
                        let fault = server.fault(&error, "within a response").await;
                        (server, fault)
                    }));
                }
            }
        }
        let Some(failing) = &mut self.failing else { return Poll::Ready(None) };
        let (server, fault) = ready!(failing.as_mut().poll(task));
        self.failing = None;
        Poll::Ready(Some(Err(broken(server, &fault).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.server.is_none() && self.failing.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let incoming = self.server.as_ref().and_then(|server| server.incoming());
        incoming.map(|body| body.size_hint()).unwrap_or_default()
    }
}
