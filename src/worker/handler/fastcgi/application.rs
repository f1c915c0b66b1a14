//! One process of a `fastcgi` handler, and the exchange with it.

use std::io;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::super::body_feed::BodyFeed;
use super::super::child::HandlerProcess;
use super::super::failure::RequestFailure;
use super::super::http::{SharedBody, may_reuse};
use super::super::output_log::{LeaseLabel, LogLines, LogPipe};
use super::super::warm::{Launch, NotFinished, WarmProcess, WarmSettings, await_exit};
use super::connection::{ApplicationConnection, Arrival};
use super::feed::{self, REQUEST_ID};
use super::listener::ApplicationListener;
use super::probe::probe;
use super::request_limit::{CHILDREN, MAX_REQUESTS, RequestLimit};
use crate::net::fastcgi::{FastcgiRecord, FastcgiStream, ProtocolStatus, RecordContent};
use crate::sys;

/// How long an application whose connection has ended may take to die before it counts as one that only closed it.
const DEATH_AFTER_CLOSE: Duration = Duration::from_millis(100);
/// How long the rest of a response may take after its client has left.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// A running application.
#[derive(Debug)]
pub(crate) struct FastcgiApplication {
    child: HandlerProcess,
    listener: ApplicationListener,
    /// That of the exchange, or one that is kept.
    connection: Option<ApplicationConnection>,
    exchange: Option<ApplicationExchange>,
    limit: RequestLimit,
    /// How many requests it has got, and how many of them are complete.
    received: u64,
    completed: u64,
    /// Whether it has not accepted the connection of the last probe.
    is_unreached: bool,
    messages: LogLines,
}

/// A request and its response.
#[derive(Debug)]
struct ApplicationExchange {
    body: SharedBody,
    has_body: bool,
    /// The request that is being written.
    feed: Option<BodyFeed<()>>,
    keeps_connection: bool,
    /// What was received of the body of the response together with its head.
    unread: Bytes,
    lease: LeaseLabel,
}

/// What an application has sent.
#[derive(Debug)]
pub(super) enum ApplicationEvent {
    /// At least one byte of the response.
    Output(Bytes),
    /// The response is complete.
    Ended { exit_status: u32 },
}

/// Why there is no more of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ApplicationFault {
    /// Not a byte of the request was read: another connection, or another process, can get it.
    NotStarted(String),
    /// It has rejected the request.
    Refused(ProtocolStatus),
    /// The connection cannot be used any more.
    Closed(String),
    /// The process cannot serve another request.
    Broken(String),
    /// The body from the client failed, and the process waits for the rest.
    Client(RequestFailure),
}

/// What follows after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterExchange {
    /// It serves another request.
    Idle,
    /// It ends after this one.
    Ends,
}

impl FastcgiApplication {
    /// Starts to send a request with these variables, encoded, on the connection of the last one if that is usable.
    pub(super) fn send(&mut self, variables: &[u8], body: &SharedBody, lease: LeaseLabel) -> io::Result<()> {
        self.exchange = None;
        let is_kept = |kept: &ApplicationConnection| {
            may_reuse(kept.idle_since.into_std(), Instant::now().into_std(), kept.is_readable())
        };
        let (connection, is_new) = match self.connection.take().filter(is_kept) {
            Some(kept) => (kept, false),
            None => (ApplicationConnection::open(&self.listener)?, true),
        };
        let keeps_connection = self.limit.allows_another(self.received + 1);
        let has_body = !body.is_complete();
        let start = feed::encode_start(variables, keeps_connection, has_body);
        // The buffer of the socket is empty: nearly every request without a body is written at once.
        let written = connection.write_now(&start)?;
        let stream = connection.stream.clone();
        self.connection = Some(connection);
        self.received += 1;
        if !is_new {
            body.set_written(); // a kept connection is accepted
        }
        let is_whole = written == start.len() && !has_body;
        let feed = (!is_whole).then(|| feed::spawn(stream, start.slice(written..), body.clone()));
        let body = body.clone();
        self.exchange =
            Some(ApplicationExchange { body, has_body, feed, keeps_connection, unread: Bytes::new(), lease });
        Ok(())
    }

    /// Returns what was received after the head of the response; it is the next part of it.
    pub(super) fn unread(&mut self, rest: Bytes) {
        self.exchange.iter_mut().for_each(|exchange| exchange.unread = rest.clone());
    }

    /// The next part of the response.
    pub(super) async fn next_event(&mut self) -> Result<ApplicationEvent, ApplicationFault> {
        let unread = self.exchange.as_mut().map(|exchange| std::mem::take(&mut exchange.unread));
        if let Some(unread) = unread.filter(|unread| !unread.is_empty()) {
            return Ok(ApplicationEvent::Output(unread));
        }
        loop {
            let Some(connection) = &mut self.connection else {
                return Err(ApplicationFault::Closed("there is no request".to_owned()));
            };
            match connection.next_record() {
                Ok(Some(record)) => {
                    if let Some(event) = self.take(record)? {
                        return Ok(event);
                    }
                    continue;
                }
                Ok(None) => {}
                Err(malformed) => return Err(ApplicationFault::Broken(malformed.to_string())),
            }
            let arrival = tokio::select! {
                biased;
                failure = body_failure(&mut self.exchange) => return Err(ApplicationFault::Client(failure)),
                arrival = connection.receive(&self.child) => arrival,
            };
            match arrival {
                Arrival::Data => self.accepted(),
                Arrival::Closed => return Err(self.fault_after_close().await),
                Arrival::Ended => {
                    let exit = self.child.wait().await;
                    return Err(self.fault_without_response(format!("it {exit}")));
                }
            }
        }
    }

    /// The application has accepted the connection, so the request is not sent again.
    fn accepted(&mut self) {
        self.exchange.iter().for_each(|exchange| exchange.body.set_written());
    }

    fn take(&mut self, record: FastcgiRecord) -> Result<Option<ApplicationEvent>, ApplicationFault> {
        if record.request_id != REQUEST_ID {
            return Ok(None); // of no request that is open (section 3.3), or not asked for
        }
        Ok(match record.content {
            RecordContent::Stream(FastcgiStream::Stdout, data) if !data.is_empty() => {
                Some(ApplicationEvent::Output(data))
            }
            RecordContent::Stream(FastcgiStream::Stderr, data) => {
                if let Some(exchange) = &self.exchange {
                    self.messages.push(&data, &exchange.lease);
                }
                None
            }
            RecordContent::EndRequest { exit_status, status: ProtocolStatus::RequestComplete } => {
                self.messages.end_line();
                Some(ApplicationEvent::Ended { exit_status })
            }
            RecordContent::EndRequest { status, .. } => return Err(ApplicationFault::Refused(status)),
            _ => None,
        })
    }

    /// What happened when the connection was closed: a dying process closes it before it is dead.
    async fn fault_after_close(&mut self) -> ApplicationFault {
        match timeout(DEATH_AFTER_CLOSE, self.child.wait()).await {
            Ok(exit) => self.fault_without_response(format!("it {exit}")),
            Err(_) => {
                self.close();
                ApplicationFault::Closed("it closed the connection before the end of its response".to_owned())
            }
        }
    }

    /// The process has ended.
    fn fault_without_response(&mut self, reason: String) -> ApplicationFault {
        let is_pending = |exchange: &ApplicationExchange| !exchange.body.is_written() && self.listener.take_back();
        if self.exchange.as_ref().is_some_and(is_pending) {
            self.close();
            return ApplicationFault::NotStarted(reason);
        }
        ApplicationFault::Broken(format!("{reason} before the end of its response"))
    }

    /// After [`ApplicationEvent::Ended`]. The connection is kept if nothing of the request is left in it.
    pub(super) fn end_exchange(&mut self) -> AfterExchange {
        if let Some(exchange) = self.exchange.take() {
            self.completed += 1;
            let is_read = |connection: &ApplicationConnection| {
                !exchange.has_body || sys::unreceived(connection.stream.as_fd()).is_ok_and(|bytes| bytes == 0)
            };
            let is_written = exchange.body.is_complete() && exchange.feed.is_none_or(|feed| feed.is_finished());
            let is_kept = |connection: &ApplicationConnection| {
                exchange.keeps_connection && is_written && connection.is_between_records() && is_read(connection)
            };
            self.connection = self.connection.take().filter(is_kept);
            self.connection.iter_mut().for_each(|connection| connection.idle_since = Instant::now());
        }
        if self.limit.is_reached(self.received) { AfterExchange::Ends } else { AfterExchange::Idle }
    }

    /// Ends the exchange together with its connection.
    pub(super) fn close(&mut self) {
        (self.exchange, self.connection) = (None, None);
    }

    /// Asks whether it accepts connections, and waits until it does.
    async fn ask(&mut self) -> Result<(), String> {
        self.close(); // an application with one process accepts one connection after the other
        probe(&self.listener, &mut self.child, &mut self.is_unreached).await
    }
}

/// Completes only if the request body fails.
async fn body_failure(exchange: &mut Option<ApplicationExchange>) -> RequestFailure {
    if let Some(exchange) = exchange
        && let Some(feed) = &mut exchange.feed
    {
        let _ = feed.join().await; // a task that panics leaves a request without an end
        exchange.feed = None;
        if let Some(failure) = exchange.body.failure() {
            return failure;
        }
    }
    std::future::pending().await
}

impl WarmProcess for FastcgiApplication {
    const KIND: &'static str = "FastCGI application";

    fn start(launch: &Launch<'_>) -> io::Result<(Self, Vec<Weak<LogPipe>>)> {
        let listener = ApplicationListener::new(&launch.settings.socket, launch.generation)?;
        let command = launch.program.command(Vec::new(), &[])?;
        let (child, log_pipes) = launch.spawn(command, Stdio::from(listener.for_application()?))?;
        let variable = |name| launch.program.variable(name);
        let limit = RequestLimit::of(launch.program.name(), variable(MAX_REQUESTS), variable(CHILDREN));
        let application = Self {
            child,
            listener,
            connection: None,
            exchange: None,
            limit,
            received: 0,
            completed: 0,
            is_unreached: false,
            messages: LogLines::new(launch.log.clone()),
        };
        Ok((application, log_pipes))
    }

    fn child(&mut self) -> &mut HandlerProcess {
        &mut self.child
    }

    fn must_load(_: &WarmSettings) -> bool {
        true
    }

    async fn ready(&mut self, _: &WarmSettings) -> Result<(), String> {
        match self.child.try_wait() {
            Some(exit) => Err(format!("it {exit}")),
            None => self.ask().await,
        }
    }

    fn why_not_ready(&self) -> Option<&str> {
        self.is_unreached.then_some("it does not accept a connection on descriptor 0")
    }

    async fn ping(&mut self, _: &WarmSettings) -> Result<(), String> {
        self.ask().await
    }

    fn check_idle(&mut self) -> Result<(), String> {
        self.child.try_wait().map_or(Ok(()), |exit| Err(format!("it {exit}")))
    }

    /// It exited after a request, and not within one.
    fn has_ended_as_planned(&mut self) -> bool {
        self.exchange.is_none() && self.completed > 0 && self.child.try_wait().is_some_and(|exit| exit.succeeded())
    }

    async fn finish(&mut self) -> Result<bool, NotFinished> {
        let Some(exchange) = &self.exchange else { return Ok(false) };
        // It would take the part of a body for the whole.
        if !exchange.body.is_complete() {
            return Err(NotFinished::ByClient);
        }
        let discarded = timeout(DISCARD_TIMEOUT, async {
            loop {
                if let ApplicationEvent::Ended { .. } = self.next_event().await? {
                    return Ok(());
                }
            }
        });
        match discarded.await {
            Ok(Ok(())) => Ok(self.end_exchange() == AfterExchange::Idle),
            Ok(Err(ApplicationFault::Broken(reason))) => Err(NotFinished::Fault(reason)),
            Ok(Err(ApplicationFault::Client(_))) => Err(NotFinished::ByClient),
            Ok(Err(_)) => {
                self.close();
                Ok(false)
            }
            Err(_) => {
                let limit = humantime::format_duration(DISCARD_TIMEOUT);
                Err(NotFinished::Fault(format!("its response continues {limit} after its client has left")))
            }
        }
    }

    fn abandon(&mut self) -> bool {
        false
    }

    /// Sends SIGTERM.
    async fn exit(mut self) {
        self.close();
        self.child.terminate();
        await_exit(self.child.wait()).await;
    }
}
