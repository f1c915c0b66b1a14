//! One request to the co-process and its response, both streamed at the same time.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use tokio::net::unix::pipe::Sender;
use tokio::time::timeout;

use super::super::body::{self, Body, BodyStep};
use super::super::context::RequestContext;
use super::super::failure::RequestFailure;
use super::super::framing::{self, CoprocessResponseHead};
use super::super::head;
use super::super::limited_body::LimitedBody;
use super::super::response_reader::{HeadError, ReaderEvent, split_excess};
use super::lifecycle::{Coprocess, CurrentProcess};
use super::request_feed::{FeedError, RequestFeed};
use super::warm_process::{RESPONSES_CLOSED, WarmProcess};

/// How long a process that has closed descriptor 4 may take to die before it counts as one that only closed it.
const DEATH_AFTER_CLOSE: Duration = Duration::from_millis(100);

/// A process during a request. If this is dropped before the end, the process does not return to its [`Coprocess`].
struct CoprocessExchange {
    coprocess: Arc<Coprocess>,
    process: WarmProcess,
    feed: Option<RequestFeed>,
    /// Bytes of the response body still to come.
    remaining: u64,
    body_timeout: Duration,
}

impl Coprocess {
    /// Serves one request.
    pub(in super::super) async fn call(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Body>, RequestFailure> {
        let context = RequestContext::from_extensions(request.extensions())?;
        let (parts, body) = request.into_parts();
        let body = LimitedBody::new(body, &context)?;
        let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| head::parse_length(length).ok());
        let length = body.size_hint().exact().or(announced).ok_or_else(|| {
            let reason = "a co-process takes no request body of unknown length: send a Content-Length";
            RequestFailure::new(StatusCode::LENGTH_REQUIRED, reason).not_started()
        })?;
        self.set_lease(Some(context.lease.as_str().into()));
        let head = framing::encode_request_head(&parts.method, &parts.uri, &parts.headers, &context.lease, length);
        let mut process = self.take_for_request().await?;
        let feed = process.requests.take().map(|requests| RequestFeed::spawn(requests, head, body, length));
        let mut exchange =
            CoprocessExchange { coprocess: self, process, feed, remaining: 0, body_timeout: context.body_timeout };
        let head = exchange.head().await?;
        exchange.remaining = head.length;
        exchange.respond(head, parts.method == Method::HEAD).await
    }
}

impl CoprocessExchange {
    async fn head(&mut self) -> Result<CoprocessResponseHead, RequestFailure> {
        let head = tokio::select! {
            biased;
            error = feed_error(&mut self.feed, &mut self.process.requests) => {
                self.kill_unless_client(error)?;
                self.process.reader.head().await
            }
            head = self.process.reader.head() => head,
        };
        match head {
            Ok(head) => framing::parse_response_head(&head).map_err(|error| self.failure(&error)),
            Err(HeadError::Malformed(error)) => Err(self.failure(&error)),
            Err(HeadError::PipeClosed) => {
                let fault = self.fault_after_close().await;
                Err(self.failure(&format!("{fault} before the end of a response head")))
            }
            Err(HeadError::Exited(exit)) => Err(self.failure(&format!("it {exit} before the end of a response head"))),
        }
    }

    /// Makes the response. One without a body is read to its end here: no body is polled later.
    async fn respond(
        mut self,
        head: CoprocessResponseHead,
        is_head_request: bool,
    ) -> Result<Response<Body>, RequestFailure> {
        let body = if is_head_request || head.length == 0 || head::status_forbids_body(head.status) {
            while self.remaining > 0 {
                self.next_piece().await?;
            }
            self.return_process();
            body::empty()
        } else {
            body::unfold(Some(self), Self::step)
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        Ok(response)
    }

    /// The next piece of the body. The process is returned together with the last piece: a reader that knows the
    /// length polls no further.
    async fn step(this: Option<Self>) -> BodyStep<Option<Self>> {
        let Some(mut this) = this else { return Ok(None) };
        let data = this.next_piece().await?;
        if this.remaining > 0 {
            return Ok(Some((data, Some(this))));
        }
        this.return_process();
        Ok(Some((data, None)))
    }

    async fn next_piece(&mut self) -> Result<Bytes, RequestFailure> {
        let event = tokio::select! {
            biased;
            error = feed_error(&mut self.feed, &mut self.process.requests) => {
                self.kill_unless_client(error)?;
                self.process.reader.next().await
            }
            event = self.process.reader.next() => event,
        };
        match event {
            ReaderEvent::Data(mut data) => {
                let excess = split_excess(&mut data, &mut self.remaining);
                self.process.reader.unread(excess);
                Ok(data)
            }
            ReaderEvent::PipeClosed => {
                let fault = self.fault_after_close().await;
                Err(self.short_response(&fault))
            }
            ReaderEvent::Exited(exit) => Err(self.short_response(&format!("it {exit}"))),
        }
    }

    /// What happened when descriptor 4 was closed: a dying process closes it before it is dead.
    async fn fault_after_close(&mut self) -> String {
        match timeout(DEATH_AFTER_CLOSE, self.process.reader.child.wait()).await {
            Ok(exit) => format!("it {exit}"),
            Err(_) => RESPONSES_CLOSED.to_owned(),
        }
    }

    fn short_response(&self, fault: &str) -> RequestFailure {
        self.failure(&format!("{fault}, {} bytes short of its Content-Length", self.remaining))
    }

    /// Returns the process. The end of the request checks whether it is usable.
    fn return_process(self) {
        let Self { coprocess, process, feed, body_timeout, .. } = self;
        coprocess.put(match feed {
            None => CurrentProcess::Idle(process),
            Some(feed) => CurrentProcess::WritingRequest { process, feed, timeout: body_timeout },
        });
    }

    /// Returns an error that the client caused. Otherwise the process has closed descriptor 3 and can serve no further
    /// request, but it may have responded before: it is killed, and its output is read until it ends.
    fn kill_unless_client(&mut self, error: FeedError) -> Result<(), RequestFailure> {
        match error {
            FeedError::Client(failure) => return Err(failure),
            FeedError::PipeClosed => self.coprocess.log_requests_closed(),
        }
        self.process.reader.child.kill_group();
        Ok(())
    }

    fn failure(&self, reason: &dyn Display) -> RequestFailure {
        self.coprocess.record_failure(&self.process, reason);
        RequestFailure::bad_gateway(format!("the co-process failed: {reason}"))
    }
}

/// Completes only if the request cannot be written; puts our end of descriptor 3 back when it is written.
async fn feed_error(feed: &mut Option<RequestFeed>, requests: &mut Option<Sender>) -> FeedError {
    if let Some(running) = feed {
        let outcome = running.outcome().await;
        *feed = None;
        match outcome {
            Ok(written) => *requests = Some(written),
            Err(error) => return error,
        }
    }
    std::future::pending().await
}
