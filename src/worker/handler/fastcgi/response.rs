//! The body of a response.
//!
//! The last piece of a response of known length is withheld until the application has ended the request, so that a client
//! never takes the response of a killed application for complete. As for CGI programs, an application that ends the request
//! with an exit status other than 0 has not completed a response that does not delimit itself.

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_TYPE;

use super::super::body::{self, Body};
use super::super::cgi::{self, CgiResponseHead};
use super::super::failure::RequestFailure;
use super::super::head;
use super::super::response_reader::split_excess;
use super::super::warm::{Borrowed, WarmProcess};
use super::application::{ApplicationEvent, FastcgiApplication};
use super::give_back::{failure, give_back};
use crate::config::ExitStatusMode;

/// A response whose body is incomplete.
pub(super) struct ApplicationResponse {
    application: Borrowed<FastcgiApplication>,
    /// Bytes missing of the announced Content-Length.
    remaining: Option<u64>,
    is_delimited: bool,
    /// Whether nothing of the body is for the client.
    is_discarded: bool,
    withheld: Option<Bytes>,
    has_excess: bool,
}

/// A piece of the body, and what follows.
type Piece = (Bytes, Option<ApplicationResponse>);

impl ApplicationResponse {
    /// Makes the response. One without a body is read to its end here: no body is polled later.
    pub(super) async fn respond(
        application: Borrowed<FastcgiApplication>,
        head: CgiResponseHead,
        is_head: bool,
    ) -> Result<Response<Body>, RequestFailure> {
        let CgiResponseHead { status, headers, length, must_be_empty } = head;
        let is_discarded = is_head || head::status_forbids_body(status);
        // Without a Content-Type it has no body (RFC 3875 section 6.3.1).
        let is_delimited = length.is_some() || is_discarded || !headers.contains_key(CONTENT_TYPE);
        let remaining = length.filter(|_| !is_discarded);
        let response = Self { remaining, is_delimited, is_discarded, ..Self::new(application) };
        let first = response.next_piece().await?;
        if must_be_empty && first.is_some() {
            return Err(failed(cgi::NO_CONTENT_TYPE));
        }
        let body = match first {
            Some(first) => body::unfold((Some(first), None::<Self>), |(first, response)| async move {
                let next = match (first, response) {
                    (Some(first), _) => Some(first),
                    (None, Some(response)) => response.next_piece().await?,
                    (None, None) => None,
                };
                Ok(next.map(|(bytes, response)| (bytes, (None, response))))
            }),
            None => body::empty(),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    fn new(application: Borrowed<FastcgiApplication>) -> Self {
        Self { application, remaining: None, is_delimited: true, is_discarded: true, withheld: None, has_excess: false }
    }

    /// Waits for the end of a response that is not for the client.
    pub(super) async fn skip(application: Borrowed<FastcgiApplication>) -> Result<(), RequestFailure> {
        Self::new(application).next_piece().await.map(drop)
    }

    async fn next_piece(mut self) -> Result<Option<Piece>, RequestFailure> {
        loop {
            match self.application.next_event().await {
                Ok(ApplicationEvent::Output(_)) if self.is_discarded => {}
                Ok(ApplicationEvent::Output(mut data)) => {
                    if let Some(remaining) = &mut self.remaining {
                        self.has_excess |= !split_excess(&mut data, remaining).is_empty();
                    }
                    if self.remaining == Some(0) {
                        self.withheld = self.withheld.take().or(Some(data).filter(|data| !data.is_empty()));
                    } else {
                        return Ok(Some((data, Some(self))));
                    }
                }
                Ok(ApplicationEvent::Ended { exit_status }) => return self.end(exit_status),
                Err(fault) => return Err(failure(self.application, fault)),
            }
        }
    }

    /// Returns the process, and decides whether the response is complete.
    fn end(self, exit_status: u32) -> Result<Option<Piece>, RequestFailure> {
        let handler = self.application.handler.clone();
        give_back(self.application);
        if let Some(missing @ 1..) = self.remaining {
            return Err(failed(&format!("it ended the request {missing} bytes short of its Content-Length")));
        }
        if exit_status != 0 && !self.is_delimited && handler.settings().exit_status == ExitStatusMode::Strict {
            return Err(failed(&format!(
                "it ended the request with status {exit_status}, and its response has no Content-Length, so it may be \
                 incomplete"
            )));
        }
        if self.has_excess {
            handler.log_note("wrote more than its Content-Length: the excess was discarded");
        }
        Ok(self.withheld.map(|last| (last, None)))
    }
}

fn failed(reason: &str) -> RequestFailure {
    RequestFailure::bad_gateway(format!("the {} failed: {reason}", FastcgiApplication::KIND))
}
