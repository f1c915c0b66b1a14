//! The handlers `exec` and `scripts`: one process per request, CGI/1.1 (RFC 3875).
//!
//! The request body is streamed to standard input; one of unknown size (chunked) is stored first, so that there is always a
//! `CONTENT_LENGTH`. A program need not read its body.

mod run;
mod script_path;
mod scripts;

use std::ffi::OsString;
use std::io;
use std::process::{Command, Stdio};
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
use super::cgi::{self, BadPath, CgiResponse};
use super::child::{HandlerProcess, HandlerProgram, SpawnError};
use super::context::{RequestContext, RequestStart};
use super::failure::RequestFailure;
use super::limited_body::LimitedBody;
use super::oneshot::{OneShotProgram, OneShotRun};
use super::response_reader::ResponseReader;
use super::spool::{LengthNeed, Spool};
use crate::config::{ExitStatusMode, PoolConfig, ScriptsConfig};
use crate::ids::WorkerId;
use run::CgiRun;
use scripts::{Script, ScriptError};

/// How many local redirects a request may cause.
const MAX_LOCAL_REDIRECTS: usize = 10;

/// Why a request has no program.
const NO_PROGRAM: &str = "no program has this path";

/// The handler.
#[derive(Debug)]
pub(crate) struct Exec {
    runner: OneShotProgram,
    spool: Spool,
    exit_status: ExitStatusMode,
    /// `None` if all requests are for one program.
    scripts: Option<ScriptsConfig>,
}

impl Exec {
    /// `grace` is the time from SIGTERM to SIGKILL for a program that is interrupted.
    pub(super) fn new(program: HandlerProgram, worker: WorkerId, pool: &PoolConfig, grace: Duration) -> Self {
        let runner = OneShotProgram::new(program, worker, pool.background, grace);
        Self { runner, spool: Spool::new(pool), exit_status: pool.exit_status, scripts: None }
    }

    /// The same for the directory of programs that is the name of its program, with this path of its URL.
    pub(super) fn with_scripts(self, prefix: &str) -> Self {
        let scripts = ScriptsConfig { dir: self.runner.program().name().to_owned(), prefix: prefix.to_owned() };
        Self { scripts: Some(scripts), ..self }
    }

    /// Runs the program for a request, and again for each local redirect.
    pub(super) async fn call(&self, request: Request<Body>) -> Result<Response<Body>, RequestFailure> {
        let context = RequestContext::from_extensions(request.extensions())?;
        let start = RequestStart::from_extensions(request.extensions());
        let (mut parts, body) = request.into_parts();
        let is_head = parts.method == Method::HEAD;
        // Before its body is stored.
        if let Some(scripts) = &self.scripts
            && find_script(scripts, &parts)?.is_none()
        {
            return Err(RequestFailure::not_found(NO_PROGRAM));
        }
        let body = self.spool.receive(body, &context, &start, LengthNeed::Needed).await?;
        let mut body = Some(body).filter(|body| !body.is_end_stream());
        let mut cookies = Vec::new();
        for redirects in 0..=MAX_LOCAL_REDIRECTS {
            let run = self.start(&parts, body.take(), &context);
            let run = run.and_then(|run| run.ok_or_else(|| RequestFailure::not_found(NO_PROGRAM)));
            // The program that redirects has started.
            let mut run =
                run.map_err(|failure| RequestFailure { started: failure.started || redirects > 0, ..failure })?;
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

    /// Starts one process; `None` if there is no program for the path. There is no await between the start and the
    /// [`CgiRun`] that owns the process.
    fn start(
        &self,
        parts: &request::Parts,
        body: Option<LimitedBody>,
        context: &RequestContext,
    ) -> Result<Option<CgiRun>, RequestFailure> {
        // A body without a byte is one if the request says so.
        let has_body = [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| parts.headers.contains_key(name));
        let length = body.as_ref().map_or(has_body.then_some(0), |body| body.size_hint().exact());
        let variables = cgi::meta_variables(parts, context, length).map_err(bad_path)?;
        let program = self.runner.program();
        let script = match &self.scripts {
            None => None,
            Some(scripts) => match find_script(scripts, parts)? {
                None => return Ok(None),
                found => found,
            },
        };
        let name = script.as_ref().map_or(program.name().into(), |script| script.name.to_string_lossy());
        let not_started = |error| OneShotProgram::start_failure(&name, &error);
        let started = |error| OneShotProgram::failure_after_start(&name, &error);
        let command = match &script {
            None => program.command(Vec::new(), &[]),
            Some(script) => program.command_of(&script.executable(), &script.path),
        };
        let mut command = command.map_err(not_started)?;
        command.envs(variables).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(script) = &script {
            self.set_script_variables(&mut command, script);
        }
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
        let stdout = stdout.ok_or_else(|| started(io::ErrorKind::BrokenPipe.into()))?;
        let reader = ResponseReader::new(child, stdout).map_err(started)?;
        Ok(Some(CgiRun::new(reader, feed, self.exit_status, &name, run)))
    }

    /// What only a program of a directory has (RFC 3875 sections 4.1.5, 4.1.6 and 4.1.13, and in common use). The
    /// environment of the pool may name another DOCUMENT_ROOT than the directory.
    fn set_script_variables(&self, command: &mut Command, script: &Script) {
        let program = self.runner.program();
        let root = program.variable("DOCUMENT_ROOT").unwrap_or(program.name());
        command.env("SCRIPT_NAME", &script.name).env("SCRIPT_FILENAME", &script.path);
        command.env("PATH_INFO", &script.info).env("DOCUMENT_ROOT", root);
        if !script.info.is_empty() {
            let mut translated = OsString::from(root);
            translated.push(&script.info);
            command.env("PATH_TRANSLATED", translated);
        }
    }

    /// Ends what the request has left, see [`OneShotProgram::end_run`].
    pub(super) async fn end_request(&self) {
        self.runner.end_run().await;
    }

    pub(super) async fn stop(&self) {
        self.runner.stop().await;
    }
}

fn bad_path(error: BadPath) -> RequestFailure {
    RequestFailure::new(StatusCode::BAD_REQUEST, error.to_string()).not_started()
}

fn find_script(scripts: &ScriptsConfig, parts: &request::Parts) -> Result<Option<Script>, RequestFailure> {
    scripts::find(scripts, parts.uri.path()).map_err(|error| match error {
        ScriptError::BadPath(error) => bad_path(error),
        ScriptError::System(error) => {
            RequestFailure::cannot_start(format!("cannot search the directory of programs: {error}"), Some(&error))
        }
    })
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
