//! The handler `exec`: one process per request, CGI/1.1 (RFC 3875).
//!
//! The request body is streamed to standard input; a body of unknown size (chunked) comes without
//! `CONTENT_LENGTH`, to be read until end of file. A program that does not read it is no error. The response
//! is finished when the *process* ends: not at end of file, which a grandchild can put off for ever, nor
//! when its announced length is reached. The last piece of a response of known length is kept back until
//! then, so that no client takes a response for complete whose program was killed.
//!
//! RFC 3875 gives the exit status no meaning; here it has one. A program that fails has not finished its
//! response, unless that says itself where it ends (Content-Length, or a status without a body): the client
//! gets 502 while nothing has been sent, else a response that is visibly cut. So nothing is sent before the
//! first byte of a body is there, or the exit status.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode, request};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;
use tokio::task::JoinHandle;

use super::cgi::{self, Answer, Document};
use super::cgi_response::{Event, NoHead, Output, cut};
use super::child::{Child, Ended, Program};
use super::head;
use super::output_log::{Lease, OutputLog, Relay, Stream};
use super::stream::{First, race, unfold};
use super::{Body, Context, Failure, LimitedBody};
use crate::ids::WorkerId;
use crate::log::Event as Mark;
use crate::process_tree;
use crate::sync;

/// How many local redirects one request may take.
const REDIRECTS: usize = 10;

/// The handler: a program, and what still reads the standard error of its last run.
#[derive(Debug)]
pub struct Exec {
    program: Program,
    voice: Arc<OutputLog>,
    relays: Mutex<Vec<(Weak<Relay>, JoinHandle<()>)>>,
}

impl Exec {
    pub(super) fn new(program: Program, worker: WorkerId) -> Self {
        Self { program, voice: OutputLog::new(worker), relays: Mutex::default() }
    }

    /// Runs the program for one request, again for each local redirect.
    pub(super) async fn call(&self, request: Request<Body>) -> Result<Response<Body>, Failure> {
        let context = Context::of(request.extensions())?;
        let (mut parts, body) = request.into_parts();
        let bodiless = parts.method == Method::HEAD;
        let mut body = Some(LimitedBody::new(body, &context)?).filter(|body| !body.is_end_stream());
        for _ in 0..=REDIRECTS {
            let mut run = self.launch(&parts, body.take(), &context)?;
            match run.head().await? {
                Answer::Client(document) => return run.respond(document, bodiless).await,
                Answer::Again(path) => {
                    let ended = run.rest().await?;
                    run.whole = true;
                    run.finish(ended)?;
                    cgi::redirected(&mut parts, path);
                }
            }
        }
        Err(Failure::broken(format!("`{}` redirects more than {REDIRECTS} times", self.program.name())))
    }

    /// Starts one process. There is no await between its start and its place in a [`Run`].
    fn launch(&self, parts: &request::Parts, body: Option<LimitedBody>, context: &Context) -> Result<Run, Failure> {
        let length = body.as_ref().and_then(|body| body.size_hint().exact());
        let variables = cgi::variables(parts, context, length)
            .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, error.to_string()).not_started())?;
        let name = self.program.name();
        let failed = |error: io::Error| {
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot start `{name}`: {error}"))
        };
        let mut command = self.program.command(Vec::new()).map_err(|error| failed(error).not_started())?;
        command.envs(variables).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if body.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = Child::spawn(&mut command).map_err(|error| failed(error).not_started())?;
        drop(command);
        let [stdin, stdout, stderr] = child.pipes();
        let lease = Lease::Some(context.lease.as_str().into());
        if let Some(stderr) = stderr {
            let relay = Relay::start(stderr, self.voice.clone(), Stream::Errors, lease.clone()).map_err(failed)?;
            sync::lock(&self.relays).push(relay);
        }
        let stdin = stdin.map(Sender::from_owned_fd).transpose().map_err(failed)?;
        let feed = stdin.zip(body).map(|(stdin, body)| Feed(tokio::spawn(feed(body, stdin))));
        let stdout = stdout.ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        let output = Output::new(child, stdout).map_err(failed)?;
        let (name, worker) = (name.to_owned(), context.worker.clone());
        Ok(Run { output, feed, left: None, whole: false, last: None, cut: false, judged: false, name, worker, lease })
    }

    /// Runs the program with `connection` as its standard input and output, blocking as it expects, until it ends.
    /// `addresses` are those of the client and of this end, where there are some.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) async fn converse(
        &self,
        connection: OwnedFd,
        addresses: Option<(SocketAddr, SocketAddr)>,
        lease: String,
    ) -> Result<Ended, Failure> {
        let name = self.program.name();
        let failed = |error: io::Error| {
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot start `{name}`: {error}"))
        };
        let mut command = self.program.command(Vec::new()).map_err(failed)?;
        command.env("PROTO", if addresses.is_some() { "TCP" } else { "UNIX" });
        if let Some((client, here)) = addresses {
            // As ucspi-tcp (tcp-environ(5)) and as systemd.socket(5) with Accept=yes name them.
            let words = [
                ("TCPREMOTEIP", client.ip().to_string()),
                ("TCPREMOTEPORT", client.port().to_string()),
                ("TCPLOCALIP", here.ip().to_string()),
                ("TCPLOCALPORT", here.port().to_string()),
                ("REMOTE_ADDR", client.ip().to_string()),
                ("REMOTE_PORT", client.port().to_string()),
            ];
            command.envs(words);
        }
        command.stdin(connection.try_clone().map_err(failed)?).stdout(connection).stderr(Stdio::piped());
        let mut child = Child::spawn(&mut command).map_err(failed)?;
        drop(command);
        let [_, _, stderr] = child.pipes();
        if let Some(stderr) = stderr {
            let lease = Lease::Some(lease.into());
            let relay = Relay::start(stderr, self.voice.clone(), Stream::Errors, lease).map_err(failed)?;
            sync::lock(&self.relays).push(relay);
        }
        Ok(child.wait().await)
    }

    /// Kills and reaps everything that the request left behind, and brings its last words into the log.
    pub(super) async fn end(&self) {
        if process_tree::has_children()
            && let Err(survivors) = process_tree::kill(|_| true).await
        {
            tracing::error!(worker = %self.voice.worker(), event = %Mark::ProcessSurvived, "{survivors}");
        }
        let relays = std::mem::take(&mut *sync::lock(&self.relays));
        for (relay, task) in relays {
            relay.upgrade().iter().for_each(|relay| relay.close());
            task.abort();
        }
    }

    /// The last end.
    pub(super) async fn stop(&self) {
        self.end().await;
        self.voice.confess();
    }
}

/// The task that writes the request body to standard input; dropping it ends it.
#[derive(Debug)]
struct Feed(JoinHandle<Result<(), Failure>>);

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A task of its own, since a response body is polled only while its client reads.
async fn feed(mut body: LimitedBody, mut stdin: Sender) -> Result<(), Failure> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data()
            && stdin.write_all(&data).await.is_err()
        {
            // The program does not read on (EPIPE), as it may.
            break;
        }
    }
    Ok(())
}

/// One process at work.
struct Run {
    output: Output,
    feed: Option<Feed>,
    /// Bytes missing of the program's own Content-Length.
    left: Option<u64>,
    /// Whether the response says itself where it ends.
    whole: bool,
    /// The last piece of a response of known length.
    last: Option<Bytes>,
    /// Whether more came than announced.
    cut: bool,
    /// Whether its end has been judged.
    judged: bool,
    name: String,
    worker: WorkerId,
    lease: Lease,
}

impl Run {
    /// Reads the response head.
    async fn head(&mut self) -> Result<Answer, Failure> {
        let head = match race(unfed(&mut self.feed), self.output.head()).await {
            First::Left(failure) => return Err(self.kill(failure)),
            First::Right(head) => head,
        };
        let ended = match head {
            Ok(head) => return cgi::answer(&head).map_err(|wrong| self.broken(&wrong)),
            Err(NoHead::Malformed(wrong)) => return Err(self.broken(&wrong)),
            Err(NoHead::Ended(ended)) => ended,
            // There will be no response, but the program's work is its own: let it come to its end.
            Err(NoHead::Closed) => self.rest().await?,
        };
        Err(self.broken(&format!("it {ended} before the end of its response head")))
    }

    /// Makes the response. One that has no body waits for the end of the process here: nobody would read it.
    async fn respond(mut self, document: Document, bodiless: bool) -> Result<Response<Body>, Failure> {
        let Document { status, headers, length } = document;
        self.left = length.filter(|_| !bodiless);
        // Without a Content-Type it is a redirect, and that has no body (RFC 3875 section 6.2.3).
        let redirect = !headers.contains_key(CONTENT_TYPE);
        self.whole = length.is_some() || head::bodiless(status) || redirect;
        let first = if bodiless || length == Some(0) || head::bodiless(status) {
            let ended = self.rest().await?;
            self.finish(ended)?;
            None
        } else {
            self.step().await?
        };
        let body = match first {
            Some((first, run)) => unfold((Some(first), run), |(first, run)| async move {
                let next = if first.is_some() { first.map(|first| (first, run)) } else { run.step().await? };
                Ok(next.map(|(bytes, run)| (bytes, (None, run))))
            }),
            None => Empty::new().map_err(|never| match never {}).boxed_unsync(),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// The next piece of the response body.
    async fn step(mut self) -> Result<Option<(Bytes, Self)>, Failure> {
        loop {
            match self.next().await? {
                Event::Data(mut data) => {
                    if let Some(left) = &mut self.left {
                        self.cut |= !cut(&mut data, left).is_empty();
                    }
                    if self.left == Some(0) {
                        self.last = self.last.take().or(Some(data));
                    } else {
                        return Ok(Some((data, self)));
                    }
                }
                Event::Closed => {}
                Event::Ended(ended) => {
                    self.finish(ended)?;
                    return Ok(self.last.take().map(|last| (last, self)));
                }
            }
        }
    }

    /// Reads and forgets until the process has ended.
    async fn rest(&mut self) -> Result<Ended, Failure> {
        loop {
            match self.next().await? {
                Event::Data(_) if self.left == Some(0) => self.cut = true,
                Event::Data(_) | Event::Closed => {}
                Event::Ended(ended) => {
                    self.left = None;
                    return Ok(ended);
                }
            }
        }
    }

    /// The next event; a failed request body kills the program.
    async fn next(&mut self) -> Result<Event, Failure> {
        match race(unfed(&mut self.feed), self.output.next()).await {
            First::Left(failure) => Err(self.kill(failure)),
            First::Right(event) => Ok(event),
        }
    }

    /// Judges the end of the process: was the response complete?
    fn finish(&mut self, ended: Ended) -> Result<(), Failure> {
        if std::mem::replace(&mut self.judged, true) {
            return Ok(());
        }
        // What it did not read of the body, nobody will.
        self.feed = None;
        if !ended.by_itself() {
            return Err(self.broken(&format!("it {ended} before its response was complete")));
        }
        if let Some(missing @ 1..) = self.left {
            return Err(self.broken(&format!("it {ended}, {missing} bytes short of its Content-Length")));
        }
        let (worker, lease, event) = (&self.worker, self.lease.as_deref(), Mark::HandlerFault);
        if self.cut {
            tracing::warn!(%worker, lease, %event,
                "`{}` wrote more than its Content-Length: the rest was cut", self.name);
        }
        if !ended.well() && !self.whole {
            let wrong = format!("it {ended}, and without a Content-Length its response may not be complete");
            return Err(self.broken(&wrong));
        }
        if !ended.well() {
            tracing::warn!(%worker, lease, %event, "`{}` {ended} after a complete response", self.name);
        }
        Ok(())
    }

    fn broken(&self, wrong: &dyn std::fmt::Display) -> Failure {
        Failure::broken(format!("`{}` is broken: {wrong}", self.name))
    }

    fn kill(&mut self, failure: Failure) -> Failure {
        self.output.child.kill_group();
        failure
    }
}

/// Done only when the request body has failed.
async fn unfed(feed: &mut Option<Feed>) -> Failure {
    if let Some(Feed(task)) = feed {
        match task.await {
            Ok(Ok(())) => *feed = None,
            Ok(Err(failure)) => return failure,
            Err(panicked) => return Failure::new(StatusCode::INTERNAL_SERVER_ERROR, panicked.to_string()),
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests;
