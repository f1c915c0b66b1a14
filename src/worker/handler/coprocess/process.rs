//! One process of a co-process handler.

use std::fmt::Display;
use std::io;
use std::process::Stdio;
use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;
use tokio::time::timeout;

use super::super::child::HandlerProcess;
use super::super::failure::RequestFailure;
use super::super::framing::{self, CoprocessResponseHead};
use super::super::output_log::LogPipe;
use super::super::response_reader::{HeadError, NotIdle, ReaderEvent, ResponseReader, split_excess};
use super::super::warm::{Launch, NotFinished, WarmProcess, WarmSettings, await_exit};
use super::request_feed::{FeedError, RequestFeed};

/// The descriptor from which a co-process reads requests.
const REQUESTS_FD: i32 = 3;
/// The descriptor to which it writes responses.
const RESPONSES_FD: i32 = 4;
/// How long a process that has closed descriptor 4 may take to die before it counts as one that only closed it.
const DEATH_AFTER_CLOSE: Duration = Duration::from_millis(100);
/// Faults of a co-process, for the log and the client.
pub(super) const REQUESTS_CLOSED: &str = "it closed descriptor 3 (requests)";
pub(super) const RESPONSES_CLOSED: &str = "it closed descriptor 4 (responses)";

/// A running co-process.
#[derive(Debug)]
pub(crate) struct Coprocess {
    /// The process and our end of its descriptor 4.
    pub reader: ResponseReader,
    /// Our end of its descriptor 3; `None` while a request is being written.
    pub requests: Option<Sender>,
    /// The request that is being written.
    feed: Option<RequestFeed>,
    /// How long the rest of a request may take, of which the response is complete.
    body_timeout: Duration,
    expected: Expected,
}

/// What the process has to write next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Nothing.
    Nothing,
    /// The head of a response.
    Head,
    /// So many bytes of a response.
    Body(u64),
}

/// Why there is no more of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExchangeError {
    /// The body from the client failed. The process is not to blame, but waits for the rest.
    Client(RequestFailure),
    /// The process has failed.
    Fault(String),
}

impl Coprocess {
    /// Starts to write a request.
    pub(super) fn begin(&mut self, write: impl FnOnce(Sender) -> RequestFeed, body_timeout: Duration) {
        self.feed = self.requests.take().map(write);
        (self.expected, self.body_timeout) = (Expected::Head, body_timeout);
    }

    /// Whether the response is complete, and the request.
    pub(super) fn is_done(&self) -> (bool, bool) {
        (self.expected == Expected::Nothing, self.feed.is_none())
    }

    /// The head of the response. `log_fault` learns that the process has closed descriptor 3.
    pub(super) async fn head(&mut self, log_fault: impl Fn(&str)) -> Result<CoprocessResponseHead, ExchangeError> {
        let head = tokio::select! {
            biased;
            error = feed_error(&mut self.feed, &mut self.requests) => {
                self.kill_unless_client(error, log_fault)?;
                self.reader.head().await
            }
            head = self.reader.head() => head,
        };
        let head = match head {
            Ok(head) => framing::parse_response_head(&head).map_err(|error| fault(&error))?,
            Err(HeadError::Malformed(error)) => return Err(fault(&error)),
            Err(HeadError::PipeClosed) => {
                let reason = self.fault_after_close().await;
                return Err(fault(&format!("{reason} before the end of a response head")));
            }
            Err(HeadError::Exited(exit)) => return Err(fault(&format!("it {exit} before the end of a response head"))),
        };
        self.expected = if head.length == 0 { Expected::Nothing } else { Expected::Body(head.length) };
        Ok(head)
    }

    /// The next piece of the response body.
    pub(super) async fn next_piece(&mut self, log_fault: impl Fn(&str)) -> Result<Bytes, ExchangeError> {
        let event = tokio::select! {
            biased;
            error = feed_error(&mut self.feed, &mut self.requests) => {
                self.kill_unless_client(error, log_fault)?;
                self.reader.next().await
            }
            event = self.reader.next() => event,
        };
        let Expected::Body(mut remaining) = self.expected else { return Ok(Bytes::new()) };
        let short = |reason: &str| fault(&format!("{reason}, {remaining} bytes short of its Content-Length"));
        match event {
            ReaderEvent::Data(mut data) => {
                let excess = split_excess(&mut data, &mut remaining);
                self.reader.unread(excess);
                self.expected = if remaining == 0 { Expected::Nothing } else { Expected::Body(remaining) };
                Ok(data)
            }
            ReaderEvent::PipeClosed => {
                let reason = self.fault_after_close().await;
                Err(short(&reason))
            }
            ReaderEvent::Exited(exit) => Err(short(&format!("it {exit}"))),
        }
    }

    /// What happened when descriptor 4 was closed: a dying process closes it before it is dead.
    async fn fault_after_close(&mut self) -> String {
        match timeout(DEATH_AFTER_CLOSE, self.reader.child.wait()).await {
            Ok(exit) => format!("it {exit}"),
            Err(_) => RESPONSES_CLOSED.to_owned(),
        }
    }

    /// Returns an error that the client caused. Otherwise the process has closed descriptor 3 and can serve no further
    /// request, but it may have responded before: it is killed, and its output is read until it ends.
    fn kill_unless_client(&mut self, error: FeedError, log_fault: impl Fn(&str)) -> Result<(), ExchangeError> {
        match error {
            FeedError::Client(failure) => return Err(ExchangeError::Client(failure)),
            FeedError::PipeClosed => log_fault(REQUESTS_CLOSED),
        }
        self.reader.child.kill_group();
        Ok(())
    }

    /// A frame without a body that the process writes by itself, or in response to a ping. It has this field.
    async fn note(&mut self, field: &str) -> Result<(), String> {
        let head = match self.reader.head().await {
            Ok(head) => framing::parse_note(&head).map_err(|error| error.to_string())?,
            Err(HeadError::Malformed(error)) => return Err(error.to_string()),
            Err(HeadError::PipeClosed) => return Err(self.fault_after_close().await),
            Err(HeadError::Exited(exit)) => return Err(format!("it {exit}")),
        };
        if head == field { Ok(()) } else { Err(format!("it wrote a frame `{head}: 1` instead of `{field}: 1`")) }
    }
}

impl WarmProcess for Coprocess {
    const KIND: &'static str = "co-process";

    fn start(launch: &Launch<'_>) -> io::Result<(Self, Vec<Weak<LogPipe>>)> {
        let (requests, our_requests) = pipe2(OFlag::O_CLOEXEC)?;
        let (our_responses, responses) = pipe2(OFlag::O_CLOEXEC)?;
        let command = launch.program.command(vec![(requests, REQUESTS_FD), (responses, RESPONSES_FD)], &[])?;
        let requests = Some(Sender::from_owned_fd(our_requests)?);
        let (child, log_pipes) = launch.spawn(command, Stdio::null())?;
        let reader = ResponseReader::new(child, our_responses)?;
        let (feed, expected) = (None, Expected::Nothing);
        Ok((Self { reader, requests, feed, body_timeout: Duration::ZERO, expected }, log_pipes))
    }

    fn child(&mut self) -> &mut HandlerProcess {
        &mut self.reader.child
    }

    fn must_load(settings: &WarmSettings) -> bool {
        settings.ready_frame || settings.ping.is_some()
    }

    async fn ready(&mut self, settings: &WarmSettings) -> Result<(), String> {
        match settings {
            WarmSettings { ready_frame: true, .. } => self.note("Ready").await,
            WarmSettings { ping: Some(_), .. } => self.ping(settings).await,
            _ => Ok(()),
        }
    }

    async fn ping(&mut self, _: &WarmSettings) -> Result<(), String> {
        // Fits into the empty pipe as a whole.
        if std::mem::replace(&mut self.expected, Expected::Head) == Expected::Nothing {
            let Some(requests) = &mut self.requests else { return Err(REQUESTS_CLOSED.to_owned()) };
            requests.write_all(framing::PING).await.map_err(|_| REQUESTS_CLOSED.to_owned())?;
        }
        self.note("Ping").await?;
        self.expected = Expected::Nothing;
        Ok(())
    }

    fn check_idle(&mut self) -> Result<(), String> {
        if self.requests.is_none() {
            return Err(REQUESTS_CLOSED.to_owned());
        }
        self.reader.check_idle().map_err(|fault| match fault {
            NotIdle::Exited(exit) => format!("it {exit}"),
            NotIdle::PipeClosed => RESPONSES_CLOSED.to_owned(),
            NotIdle::UnexpectedData => "it wrote more than its Content-Length, or without a request".to_owned(),
        })
    }

    async fn finish(&mut self) -> Result<bool, NotFinished> {
        let not_finished = |error| match error {
            ExchangeError::Client(_) => NotFinished::ByClient,
            ExchangeError::Fault(reason) => NotFinished::Fault(reason),
        };
        let log_nothing = |_: &str| {}; // the fault that follows is logged
        if self.expected == Expected::Head {
            self.head(log_nothing).await.map_err(not_finished)?;
        }
        while self.expected != Expected::Nothing {
            self.next_piece(log_nothing).await.map_err(not_finished)?;
        }
        if let Some(feed) = &mut self.feed {
            match timeout(self.body_timeout, feed.outcome()).await {
                Ok(Ok(requests)) => (self.requests, self.feed) = (Some(requests), None),
                Ok(Err(FeedError::PipeClosed)) => return Err(NotFinished::Fault(REQUESTS_CLOSED.to_owned())),
                // The client does not send the rest of its request: the process is not to blame.
                Ok(Err(FeedError::Client(_))) | Err(_) => return Err(NotFinished::ByClient),
            }
        }
        Ok(true)
    }

    fn abandon(&mut self) -> bool {
        false
    }

    /// Closes descriptor 3, which means that there are no more requests.
    async fn exit(self) {
        let Self { mut reader, requests, feed, .. } = self;
        drop((requests, feed));
        // Reads on, so that the process cannot block on a full pipe.
        await_exit(async { while !matches!(reader.next().await, ReaderEvent::Exited(_)) {} }).await;
    }
}

fn fault(reason: &dyn Display) -> ExchangeError {
    ExchangeError::Fault(reason.to_string())
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
