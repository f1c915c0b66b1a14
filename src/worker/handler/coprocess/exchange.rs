//! One request to the co-process and its response, both streamed at the same time.

use std::sync::Arc;

use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::Body as _;

use super::super::body::{self, Body, BodyStep};
use super::super::context::{RequestContext, RequestStart};
use super::super::failure::RequestFailure;
use super::super::framing::{self, CoprocessResponseHead};
use super::super::head;
use super::super::spool::LengthNeed;
use super::super::warm::{Borrowed, WarmHandler, WarmProcess};
use super::process::{Coprocess, ExchangeError};
use super::request_feed::RequestFeed;

impl WarmHandler<Coprocess> {
    /// Serves one request.
    pub(in super::super) async fn call(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Body>, RequestFailure> {
        let context = RequestContext::from_extensions(request.extensions())?;
        let start = RequestStart::from_extensions(request.extensions());
        let (parts, body) = request.into_parts();
        let body = self.spool().receive(body, &context, &start, LengthNeed::Needed).await?;
        let length = body.size_hint().lower();
        self.set_lease(Some(context.lease.as_str().into()));
        let head = framing::encode_request_head(&parts, &context, length);
        let mut process = start.precede(self.take_for_request()).await?;
        process.begin(|requests| RequestFeed::spawn(requests, head, body, length), context.body_timeout);
        let received = process.head(|fault| self.log_fault(fault)).await;
        match received {
            Ok(head) => respond(process, head, parts.method == Method::HEAD).await,
            Err(error) => Err(failure(process, error)),
        }
    }
}

/// Makes the response. One without a body is read to its end here: no body is polled later.
async fn respond(
    mut process: Borrowed<Coprocess>,
    head: CoprocessResponseHead,
    is_head_request: bool,
) -> Result<Response<Body>, RequestFailure> {
    let body = if is_head_request || head.length == 0 || head::status_forbids_body(head.status) {
        while !process.is_done().0 {
            process = next_piece(process).await?.1;
        }
        give_back(process);
        body::empty()
    } else {
        body::unfold(Some(process), step)
    };
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    if is_head_request && head.length == 0 && !head::status_forbids_body(head.status) {
        // Not the length that a response to GET has, unless the process names it.
        response.headers_mut().remove(CONTENT_LENGTH);
        response.headers_mut().extend(head.head_length.map(|length| (CONTENT_LENGTH, length)));
    }
    Ok(response)
}

/// The next piece of the body. The process is returned together with the last piece: a reader that knows the length polls
/// no further.
async fn step(process: Option<Borrowed<Coprocess>>) -> BodyStep<Option<Borrowed<Coprocess>>> {
    let Some(process) = process else { return Ok(None) };
    let (data, process) = next_piece(process).await?;
    if !process.is_done().0 {
        return Ok(Some((data, Some(process))));
    }
    give_back(process);
    Ok(Some((data, None)))
}

async fn next_piece(mut process: Borrowed<Coprocess>) -> Result<(bytes::Bytes, Borrowed<Coprocess>), RequestFailure> {
    let handler = process.handler.clone();
    match process.next_piece(|fault| handler.log_fault(fault)).await {
        Ok(data) => Ok((data, process)),
        Err(error) => Err(failure(process, error)),
    }
}

/// Returns the process after a response. A request that is not written completely is left to the end of the request.
fn give_back(process: Borrowed<Coprocess>) {
    if process.is_done().1 {
        process.put_idle();
    }
}

fn failure(process: Borrowed<Coprocess>, error: ExchangeError) -> RequestFailure {
    match error {
        // It waits for the rest of the request.
        ExchangeError::Client(failure) => {
            process.lose();
            failure
        }
        ExchangeError::Fault(reason) => {
            let handler = process.handler.clone();
            handler.fail(process, &reason);
            RequestFailure::bad_gateway(format!("the {} failed: {reason}", Coprocess::KIND))
        }
    }
}
