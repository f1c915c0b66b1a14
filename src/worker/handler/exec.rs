//! The handler `exec`: one process per request, CGI/1.1 (RFC 3875).
//!
//! The request body is streamed to standard input; one of unknown size (chunked) is stored first, so that there is always a
//! `CONTENT_LENGTH`. A program need not read its body.

mod run;

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, SET_COOKIE, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, request};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;

use super::body::Body;
use super::body_feed::BodyFeed;
use super::cgi::{self, CgiResponse};
use super::child::{HandlerProcess, HandlerProgram, SpawnError};
use super::context::{RequestContext, RequestStart};
use super::failure::RequestFailure;
use super::limited_body::LimitedBody;
use super::oneshot::{OneShotProgram, OneShotRun};
use super::response_reader::ResponseReader;
use super::spool::{LengthNeed, Spool};
use crate::config::{ExitStatusMode, PoolConfig};
use crate::ids::WorkerId;
use run::CgiRun;

/// How many local redirects a request may cause.
const MAX_LOCAL_REDIRECTS: usize = 10;

/// The handler.
#[derive(Debug)]
pub(crate) struct Exec {
    runner: OneShotProgram,
    spool: Spool,
    exit_status: ExitStatusMode,
}

impl Exec {
    /// `grace` is the time from SIGTERM to SIGKILL for a program that is interrupted.
    pub(super) fn new(program: HandlerProgram, worker: WorkerId, pool: &PoolConfig, grace: Duration) -> Self {
        let runner = OneShotProgram::new(program, worker, pool.background, grace);
        Self { runner, spool: Spool::new(pool), exit_status: pool.exit_status }
    }

    /// Runs the program for a request, and again for each local redirect.
    pub(super) async fn call(&self, request: Request<Body>) -> Result<Response<Body>, RequestFailure> {
        let context = RequestContext::from_extensions(request.extensions())?;
        let start = RequestStart::from_extensions(request.extensions());
        let (mut parts, body) = request.into_parts();
        let is_head = parts.method == Method::HEAD;
        let body = self.spool.receive(body, &context, &start, LengthNeed::Needed).await?;
        let mut body = Some(body).filter(|body| !body.is_end_stream());
        let mut cookies = Vec::new();
        for _ in 0..=MAX_LOCAL_REDIRECTS {
            let mut run = self.start(&parts, body.take(), &context)?;
            match run.response().await? {
                CgiResponse::Client(mut head) => {
                    head.headers.extend(cookies.into_iter().map(|cookie| (SET_COOKIE, cookie)));
                    return run.respond(head, is_head).await;
                }
                CgiResponse::LocalRedirect(redirect) => {
                    run.wait_for_exit().await?;
                    cookies.extend(redirect.cookies);
                    cgi::apply_local_redirect(&mut parts, redirect.target);
                }
            }
        }
        let name = self.runner.program().name();
        Err(RequestFailure::bad_gateway(format!(
            "`{name}` failed: it responded with more than {MAX_LOCAL_REDIRECTS} local redirects in a row"
        )))
    }

    /// Starts one process. There is no await between its start and the [`CgiRun`] that owns it.
    fn start(
        &self,
        parts: &request::Parts,
        body: Option<LimitedBody>,
        context: &RequestContext,
    ) -> Result<CgiRun, RequestFailure> {
        // A body without a byte is one if the request says so.
        let has_body = [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| parts.headers.contains_key(name));
        let length = body.as_ref().map_or(has_body.then_some(0), |body| body.size_hint().exact());
        let variables = cgi::meta_variables(parts, context, length)
            .map_err(|error| RequestFailure::new(StatusCode::BAD_REQUEST, error.to_string()).not_started())?;
        let not_started = |error| self.runner.start_failure(&error);
        let started = |error| self.runner.failure_after_start(&error);
        let mut command = self.runner.program().command(Vec::new(), &[]).map_err(not_started)?;
        command.envs(variables).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if body.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = HandlerProcess::spawn(&mut command).map_err(|error| match error {
            SpawnError::NotStarted(error) => not_started(error),
            SpawnError::Killed(error) => started(error),
        })?;
        drop(command);
        let [stdin, stdout, stderr] = child.pipes();
        let run = self.runner.started(stderr, Some(context.lease.as_str().into())).map_err(started)?;
        let stdin = stdin.map(Sender::from_owned_fd).transpose().map_err(started)?;
        let stdin = stdin.map(|stdin| Stdin { stdin: Some(stdin), run: run.clone() });
        let feed = stdin.zip(body).map(|(stdin, body)| BodyFeed::spawn(stdin.write(body)));
        let stdout = stdout.ok_or_else(|| started(std::io::ErrorKind::BrokenPipe.into()))?;
        let reader = ResponseReader::new(child, stdout).map_err(started)?;
        Ok(CgiRun::new(reader, feed, self.exit_status, self.runner.program().name(), run))
    }

    /// Ends what the request has left, see [`OneShotProgram::end_run`].
    pub(super) async fn end_request(&self) {
        self.runner.end_run().await;
    }

    pub(super) async fn stop(&self) {
        self.runner.stop().await;
    }
}

/// The standard input of a program. Dropped before the end of the body it stays open until the program is dead, which
/// would otherwise take what it has for the whole.
struct Stdin {
    stdin: Option<Sender>,
    run: Arc<OneShotRun>,
}

impl Stdin {
    async fn write(mut self, mut body: LimitedBody) -> Result<(), RequestFailure> {
        while let Some(frame) = body.frame().await {
            if let (Ok(data), Some(stdin)) = (frame?.into_data(), &mut self.stdin)
                && stdin.write_all(&data).await.is_err()
            {
                // EPIPE: the program reads no further, which is allowed.
                break;
            }
        }
        self.stdin = None;
        Ok(())
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        if let Some(stdin) = self.stdin.take() {
            self.run.hold_stdin(stdin);
        }
    }
}

#[cfg(test)]
mod tests;
