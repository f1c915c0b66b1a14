//! One request to the server and its response.

use std::sync::Arc;

use http::header::EXPECT;
use http::{Request, Response, StatusCode};

use super::super::body::{self, Body};
use super::super::context::{RequestContext, RequestStart};
use super::super::failure::RequestFailure;
use super::super::spool::LengthNeed;
use super::super::warm::{Borrowed, WarmHandler};
use super::delivery::{AfterFailure, after_failure};
use super::give_back::{failure, give_back};
use super::headers;
use super::request_body::SharedBody;
use super::response_body::ServerResponseBody;
use super::server::{HttpServer, ServerFault};

impl WarmHandler<HttpServer> {
    /// Serves one request.
    pub(in super::super) async fn call(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Body>, RequestFailure> {
        let context = RequestContext::from_extensions(request.extensions())?;
        let start = RequestStart::from_extensions(request.extensions());
        let (mut parts, body) = request.into_parts();
        let body = self.spool().receive(body, &context, &start, LengthNeed::NotNeeded).await?;
        if body.is_stored() {
            parts.headers.remove(EXPECT); // the client has got its 100 Continue
        }
        let body = SharedBody::new(body, headers::expects_continue(&parts.headers));
        let head = headers::forwarded_request(&parts, &context);
        self.set_lease(Some(context.lease.as_str().into()));
        let mut attempts = 0;
        loop {
            let mut server = start.precede(self.take_for_request()).await?;
            attempts += 1;
            let fault = match server.send(&head, &body).await {
                Ok(()) => match server.response_head().await {
                    Ok(response) => return respond(server, response),
                    Err(fault) => fault,
                },
                Err(error) => {
                    server.close();
                    ServerFault::Closed(format!("it does not accept connections ({error})"))
                }
            };
            let failure = failure(server, &fault, &body);
            match after_failure(body.is_written(), attempts) {
                AfterFailure::StartedUnknown => return Err(failure),
                AfterFailure::NotStarted => return Err(failure.not_started()),
                AfterFailure::Resend => {}
            }
        }
    }
}

fn respond(mut server: Borrowed<HttpServer>, response: Response<()>) -> Result<Response<Body>, RequestFailure> {
    let (mut head, ()) = response.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        server.close();
        server.put_starting();
        let reason = "the HTTP server switched to another protocol (101), which this pool does not allow";
        return Err(RequestFailure::bad_gateway(reason));
    }
    headers::remove_connection_fields(&mut head.headers);
    // A body that has ended is not polled.
    let has_ended = server.incoming().is_none_or(http_body::Body::is_end_stream);
    let body = if has_ended {
        give_back(server)?;
        body::empty()
    } else {
        Body::new(ServerResponseBody::new(server))
    };
    Ok(Response::from_parts(head, body))
}
