//! One request to the application and its response.

use std::sync::Arc;

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, LOCATION, SET_COOKIE, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Request, Response, StatusCode, request};
use http_body::Body as _;

use super::super::body::{self, Body};
use super::super::cgi::{self, CgiResponse};
use super::super::context::{RequestContext, RequestStart};
use super::super::failure::RequestFailure;
use super::super::head;
use super::super::http::{AfterFailure, SharedBody, after_failure};
use super::super::limited_body::LimitedBody;
use super::super::spool::LengthNeed;
use super::super::warm::{Borrowed, WarmHandler, WarmProcess};
use super::application::{ApplicationEvent, ApplicationFault, FastcgiApplication};
use super::give_back::failure;
use super::response::ApplicationResponse;
use super::script::Located;
use super::variables;

/// How many local redirects a request may cause.
const MAX_LOCAL_REDIRECTS: usize = 10;

impl WarmHandler<FastcgiApplication> {
    /// Serves one request, and again for each local redirect (RFC 3875 section 6.2.2).
    pub(in super::super) async fn call(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Body>, RequestFailure> {
        let context = RequestContext::from_extensions(request.extensions())?;
        let mut start = RequestStart::from_extensions(request.extensions());
        let (mut parts, body) = request.into_parts();
        let is_head = parts.method == Method::HEAD;
        let has_body = [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| parts.headers.contains_key(name));
        let mut located = self.locate(&parts)?;
        if let Some(Located::Directory(location)) = located {
            return Ok(directory_redirect(location));
        }
        let body = self.spool().receive(body, &context, &start, LengthNeed::Needed).await?;
        let mut length = if body.is_end_stream() { has_body.then_some(0) } else { body.size_hint().exact() };
        let mut body = SharedBody::new(body, false);
        self.set_lease(Some(context.lease.as_str().into()));
        let mut cookies = Vec::new();
        for redirects in 0..=MAX_LOCAL_REDIRECTS {
            // The application that redirects has started.
            let after =
                |failure: RequestFailure| RequestFailure { started: failure.started || redirects > 0, ..failure };
            let variables = variables::encode(&parts, &context, length, located.as_ref()).map_err(after)?;
            let exchanged = self.exchange(&variables, &body, &start, &context).await;
            let (application, response) = exchanged.map_err(after)?;
            match response {
                CgiResponse::Client(mut head) => {
                    head.headers.extend(cookies.into_iter().map(|cookie| (SET_COOKIE, cookie)));
                    return ApplicationResponse::respond(application, head, is_head).await;
                }
                CgiResponse::LocalRedirect(redirect) => {
                    ApplicationResponse::skip(application).await?;
                    cookies.extend(redirect.cookies);
                    cgi::apply_local_redirect(&mut parts, redirect.target);
                    (length, body) = (None, SharedBody::new(LimitedBody::stored(body::empty()), false));
                    start = RequestStart::default(); // a step before this run is none before the start of the request
                    located = self.locate(&parts).map_err(|failure| RequestFailure { started: true, ..failure })?;
                    if let Some(Located::Directory(location)) = located {
                        let mut response = directory_redirect(location);
                        response.headers_mut().extend(cookies.into_iter().map(|cookie| (SET_COOKIE, cookie)));
                        return Ok(response);
                    }
                }
            }
        }
        Err(RequestFailure::bad_gateway(format!(
            "the {} failed: it responded with more than {MAX_LOCAL_REDIRECTS} local redirects in a row",
            FastcgiApplication::KIND
        )))
    }

    /// The script of a request; `None` for an application without scripts.
    fn locate(&self, parts: &request::Parts) -> Result<Option<Located>, RequestFailure> {
        let located = self.settings().scripts.as_ref().map(|scripts| scripts.locate(&parts.uri)).transpose();
        located.map_err(|error| RequestFailure::not_found(error.to_string()))
    }

    /// Sends the request to the process, or to its successor if it has not got a byte of it, and receives the head of the
    /// response.
    async fn exchange(
        self: &Arc<Self>,
        variables: &[u8],
        body: &SharedBody,
        start: &RequestStart,
        context: &RequestContext,
    ) -> Result<(Borrowed<FastcgiApplication>, CgiResponse), RequestFailure> {
        let mut attempts = 0;
        loop {
            let mut application = start.precede(self.take_for_request()).await?;
            attempts += 1;
            let fault = match application.send(variables, body, Some(context.lease.as_str().into())) {
                Ok(()) => match response_head(&mut application).await {
                    Ok(response) => return Ok((application, response)),
                    Err(fault) => fault,
                },
                Err(error) => ApplicationFault::NotStarted(format!("it cannot be connected to: {error}")),
            };
            let is_resent = matches!(fault, ApplicationFault::NotStarted(_));
            let failure = failure(application, fault);
            if !is_resent || after_failure(false, attempts) != AfterFailure::Resend {
                return Err(failure);
            }
        }
    }
}

/// Reads the head of the response. The first bytes of the body, if there are any, are read next.
async fn response_head(application: &mut FastcgiApplication) -> Result<CgiResponse, ApplicationFault> {
    let (mut received, mut searched) = (BytesMut::new(), 0);
    loop {
        match application.next_event().await? {
            ApplicationEvent::Output(data) => received.extend_from_slice(&data),
            ApplicationEvent::Ended { .. } => {
                application.end_exchange();
                let reason = "it ended the request before the end of its response head";
                return Err(ApplicationFault::Closed(reason.to_owned()));
            }
        }
        let malformed = |error: head::MalformedHead| ApplicationFault::Broken(error.to_string());
        if let Some(end) = head::find_end(&received, &mut searched).map_err(malformed)? {
            let head = received.split_to(end);
            application.unread(received.freeze());
            return cgi::parse_response(&head).map_err(malformed);
        }
    }
}

fn directory_redirect(location: HeaderValue) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, location);
    response
}
