//! One process of the handler `exec`, from its start to its response.
//!
//! The response is complete when the *process* ends: not at end of file, which a descendant can delay for ever, nor
//! when the announced length is reached. The last piece of a response of known length is withheld until then, so that
//! a client never takes the response of a killed program for complete.
//!
//! RFC 3875 gives the exit status no meaning; here it has one, unless the pool ignores it. A program that exits with a
//! failure has not completed its response, unless the response delimits itself (Content-Length, or no body): the client
//! gets 502 if nothing has been sent, else a response that is visibly cut. So nothing is sent before the first byte of
//! the body or the exit status is known.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};

use super::super::body::{self, Body};
use super::super::body_feed::BodyFeed;
use super::super::cgi::{self, CgiResponse, CgiResponseHead};
use super::super::child::ProcessExit;
use super::super::failure::RequestFailure;
use super::super::head;
use super::super::oneshot::OneShotRun;
use super::super::response_reader::{HeadError, ReaderEvent, ResponseReader, split_excess};
use crate::config::ExitStatusMode;
use crate::log::Event;

/// A running process.
pub(super) struct CgiRun {
    reader: ResponseReader,
    feed: Option<BodyFeed<Result<(), RequestFailure>>>,
    /// Bytes missing of the announced Content-Length.
    remaining: Option<u64>,
    /// Whether the response delimits itself.
    is_delimited: bool,
    /// The last piece of a response of known length.
    withheld: Option<Bytes>,
    /// Whether the program wrote more than the announced length.
    has_excess: bool,
    /// Whether [`check_exit`](CgiRun::check_exit) has been called.
    is_checked: bool,
    exit_status: ExitStatusMode,
    name: String,
    run: Arc<OneShotRun>,
}

impl CgiRun {
    pub(super) fn new(
        reader: ResponseReader,
        feed: Option<BodyFeed<Result<(), RequestFailure>>>,
        exit_status: ExitStatusMode,
        name: &str,
        run: Arc<OneShotRun>,
    ) -> Self {
        Self {
            reader,
            feed,
            remaining: None,
            is_delimited: false,
            withheld: None,
            has_excess: false,
            is_checked: false,
            exit_status,
            name: name.to_owned(),
            run,
        }
    }

    /// Reads the response head.
    pub(super) async fn response(&mut self) -> Result<CgiResponse, RequestFailure> {
        let head = tokio::select! {
            biased;
            failure = feed_failure(&mut self.feed) => return Err(failure),
            head = self.reader.head() => head,
        };
        let exit = match head {
            Ok(head) => return cgi::parse_response(&head).map_err(|error| self.failure(&error)),
            Err(HeadError::Malformed(error)) => return Err(self.failure(&error)),
            Err(HeadError::Exited(exit)) => {
                self.note_exit(exit);
                exit
            }
            // There will be no response, but the program may complete its work.
            Err(HeadError::PipeClosed) => self.skip_to_exit().await?,
        };
        Err(self.failure(&format!("it {exit} before the end of its response head")))
    }

    /// Makes the response. One without a body waits here for the end of the process: no body is polled later.
    pub(super) async fn respond(
        mut self,
        head: CgiResponseHead,
        is_head: bool,
    ) -> Result<Response<Body>, RequestFailure> {
        let CgiResponseHead { status, headers, length, must_be_empty } = head;
        self.remaining = length.filter(|_| !is_head);
        // Without a Content-Type it has no body (RFC 3875 section 6.3.1).
        let has_type = headers.contains_key(CONTENT_TYPE);
        self.is_delimited = length.is_some() || head::status_forbids_body(status) || !has_type;
        let first = if is_head || length == Some(0) || head::status_forbids_body(status) {
            let exit = self.skip_to_exit().await?;
            self.check_exit(exit)?;
            None
        } else {
            self.next_piece().await?
        };
        if let Some((_, run)) = first.as_ref().filter(|_| must_be_empty) {
            return Err(run.failure(&cgi::NO_CONTENT_TYPE));
        }
        let body = match first {
            Some((first, run)) => body::unfold((Some(first), run), |(first, run)| async move {
                let next = if first.is_some() { first.map(|first| (first, run)) } else { run.next_piece().await? };
                Ok(next.map(|(bytes, run)| (bytes, (None, run))))
            }),
            None => body::empty(),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// Waits for the end of the process after a local redirect.
    pub(super) async fn wait_for_exit(&mut self) -> Result<(), RequestFailure> {
        let exit = self.skip_to_exit().await?;
        self.is_delimited = true;
        self.check_exit(exit)
    }

    async fn next_piece(mut self) -> Result<Option<(Bytes, Self)>, RequestFailure> {
        loop {
            match self.next_event().await? {
                ReaderEvent::Data(mut data) => {
                    if let Some(remaining) = &mut self.remaining {
                        self.has_excess |= !split_excess(&mut data, remaining).is_empty();
                    }
                    if self.remaining == Some(0) {
                        self.withheld = self.withheld.take().or(Some(data));
                    } else {
                        return Ok(Some((data, self)));
                    }
                }
                ReaderEvent::PipeClosed => {}
                ReaderEvent::Exited(exit) => {
                    self.check_exit(exit)?;
                    return Ok(self.withheld.take().map(|last| (last, self)));
                }
            }
        }
    }

    /// Reads and discards until the process has ended.
    async fn skip_to_exit(&mut self) -> Result<ProcessExit, RequestFailure> {
        loop {
            match self.next_event().await? {
                ReaderEvent::Data(_) if self.remaining == Some(0) => self.has_excess = true,
                ReaderEvent::Data(_) | ReaderEvent::PipeClosed => {}
                ReaderEvent::Exited(exit) => {
                    self.remaining = None;
                    return Ok(exit);
                }
            }
        }
    }

    /// The next event; a failure of the request body is one of the request.
    async fn next_event(&mut self) -> Result<ReaderEvent, RequestFailure> {
        tokio::select! {
            biased;
            failure = feed_failure(&mut self.feed) => Err(failure),
            event = self.reader.next() => {
                if let ReaderEvent::Exited(exit) = &event {
                    self.note_exit(*exit);
                }
                Ok(event)
            }
        }
    }

    /// Decides from the end of the process whether the response is complete.
    fn check_exit(&mut self, exit: ProcessExit) -> Result<(), RequestFailure> {
        if std::mem::replace(&mut self.is_checked, true) {
            return Ok(());
        }
        // The rest of the request body has no reader any more.
        self.feed = None;
        if !exit.exited() {
            return Err(self.failure(&format!("it {exit} before its response was complete")));
        }
        if let Some(missing @ 1..) = self.remaining {
            return Err(self.failure(&format!("it {exit}, {missing} bytes short of its Content-Length")));
        }
        let (name, worker, lease, event) = (&self.name, self.run.worker(), self.run.lease(), Event::HandlerFault);
        let lease = lease.as_deref();
        if self.has_excess {
            tracing::warn!(%worker, lease, %event,
                "`{name}` wrote more than its Content-Length: the excess was discarded");
        }
        let is_ignored = self.exit_status == ExitStatusMode::Ignore;
        if !exit.succeeded() && !self.is_delimited && !is_ignored {
            return Err(
                self.failure(&format!("it {exit}, and its response has no Content-Length, so it may be incomplete"))
            );
        }
        if !exit.succeeded() && !is_ignored {
            tracing::warn!(%worker, lease, %event, "`{name}` {exit} after a complete response");
        }
        Ok(())
    }

    /// A program that was killed may have left anything.
    fn note_exit(&self, exit: ProcessExit) {
        if exit.exited() {
            self.run.exited();
        }
    }

    fn failure(&self, reason: &dyn Display) -> RequestFailure {
        let failure = RequestFailure::bad_gateway(format!("`{}` failed: {reason}", self.name));
        RequestFailure { last_line: self.run.last_line(), ..failure }
    }
}

/// Completes only if the request body fails.
async fn feed_failure(feed: &mut Option<BodyFeed<Result<(), RequestFailure>>>) -> RequestFailure {
    if let Some(task) = feed {
        match task.join().await {
            Ok(Ok(())) => *feed = None,
            Ok(Err(failure)) => return failure,
            Err(panic) => {
                return RequestFailure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("internal error: {panic}"));
            }
        }
    }
    std::future::pending().await
}
