//! One request to the server and its response.

use std::sync::Arc;

use http::header::EXPECT;
use http::{Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;

use super::super::body::{self, Body};
use super::super::context::{RequestContext, RequestStart};
use super::super::failure::RequestFailure;
use super::super::session::Session;
use super::super::spool::LengthNeed;
use super::super::warm::{Borrowed, WarmHandler};
use super::delivery::{AfterFailure, after_failure};
use super::give_back::{broken, failure, give_back};
use super::headers;
use super::relay;
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
        // The worker adds the session to a request that may have one.
        let session = parts.extensions.remove::<Arc<Session>>().zip(parts.extensions.remove::<OnUpgrade>());
        let body = self.spool().receive(body, &context, &start, LengthNeed::NotNeeded).await?;
        if body.is_stored() {
            parts.headers.remove(EXPECT); // the client has got its 100 Continue
        }
        let mut head = headers::forwarded_request(&parts, &context);
        if session.is_some() {
            relay::set_upgrade(head.headers_mut());
        }
        let body = SharedBody::new(body, headers::expects_continue(head.headers()));
        self.set_lease(Some(context.lease.as_str().into()));
        let mut attempts = 0;
        loop {
            let mut server = start.precede(self.take_for_request()).await?;
            attempts += 1;
            let fault = match server.send(&head, &body).await {
                Ok(()) => match server.response_head().await {
                    Ok(response) => return respond(server, response, session),
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

fn respond(
    mut server: Borrowed<HttpServer>,
    response: Response<()>,
    session: Option<(Arc<Session>, OnUpgrade)>,
) -> Result<Response<Body>, RequestFailure> {
    let (mut head, ()) = response.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let switched = head.extensions.remove::<OnUpgrade>();
        let (Some((session, client)), Some(switched)) = (session, switched) else {
            server.close();
            server.put_starting();
            // The worker knows why, and responds with 502.
            return Ok(Response::from_parts(head, body::empty()));
        };
        headers::remove_connection_fields(&mut head.headers);
        relay::set_upgrade(&mut head.headers);
        relay::start(server, session, client, switched);
        return Ok(Response::from_parts(head, body::empty()));
    }
    if let Err(reason) = headers::make_response(&mut head) {
        return Err(broken(server, &ServerFault::Broken(reason)));
    }
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
