//! What one warm process is for its handler.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::timeout;

use super::super::child::{HandlerProcess, HandlerProgram};
use super::super::fastcgi::ScriptRoot;
use super::super::output_log::{LeaseLabel, LogPipe, OutputLog, OutputStream};
use super::super::spool::Spool;
use crate::config::{ExitStatusMode, Replacing};

/// How long a warm process may take to exit after its last request.
pub(in super::super) const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// The variable that distinguishes a warm process and its descendants from those of its successor.
pub(super) const GENERATION_VARIABLE: &str = "PATOU_GENERATION";

/// What a pool configures for its warm processes.
#[derive(Clone, Debug)]
pub(crate) struct WarmSettings {
    /// How long a process may take to become ready.
    pub start_timeout: Duration,
    /// How often an idle process is pinged, and how long it may take to respond; `None`: never.
    pub ping: Option<Duration>,
    pub replace: Replacing,
    /// The target of a request to which a ready `http` program responds with 2xx; `None`: it is ready when it accepts.
    pub ready_path: Option<String>,
    /// Whether a co-process says when it is ready.
    pub ready_frame: bool,
    /// Where the sockets of `http` and `fastcgi` programs are, without the number at their end.
    pub socket: PathBuf,
    /// Where request bodies are stored.
    pub spool: Spool,
    /// The scripts of a `fastcgi` application that has some.
    pub scripts: Option<ScriptRoot>,
    /// Whether a `fastcgi` application that ends a request with a failure has completed its response.
    pub exit_status: ExitStatusMode,
}

/// What a process is started with.
pub(crate) struct Launch<'l> {
    pub program: &'l HandlerProgram,
    pub settings: &'l WarmSettings,
    /// The number of the process, from 1.
    pub generation: u64,
    pub log: &'l Arc<OutputLog>,
    pub lease: &'l LeaseLabel,
}

impl Launch<'_> {
    /// Starts the process with this standard input. Its output goes into the log.
    pub(in super::super) fn spawn(
        &self,
        mut command: Command,
        stdin: Stdio,
    ) -> io::Result<(HandlerProcess, Vec<Weak<LogPipe>>)> {
        command.env("PATOU_WORKER", self.log.worker().to_string());
        command.env(GENERATION_VARIABLE, self.generation.to_string());
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = HandlerProcess::spawn(&mut command)?;
        let [_, stdout, stderr] = child.pipes();
        let mut log_pipes = Vec::new();
        for (pipe, stream) in [(stdout, OutputStream::Stdout), (stderr, OutputStream::Stderr)] {
            if let Some(pipe) = pipe {
                // The task ends when the last process closes the pipe.
                let (log_pipe, _) = LogPipe::start(pipe, self.log.clone(), stream, self.lease.clone())?;
                log_pipes.push(log_pipe);
            }
        }
        Ok((child, log_pipes))
    }
}

/// Why an interrupted request has not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotFinished {
    /// The process has failed, with the reason.
    Fault(String),
    /// The client has not sent the whole request, and the process cannot do without.
    ByClient,
}

/// One process of a [`WarmHandler`](super::WarmHandler), with the connection to it. All its futures may be dropped and
/// called again.
pub(crate) trait WarmProcess: Debug + Send + Sized + 'static {
    /// What it is, for messages.
    const KIND: &'static str;

    /// Starts a process.
    fn start(launch: &Launch<'_>) -> io::Result<(Self, Vec<Weak<LogPipe>>)>;

    /// The process itself.
    fn child(&mut self) -> &mut HandlerProcess;

    /// Whether it has to load before it can serve a request.
    fn must_load(settings: &WarmSettings) -> bool;

    /// Waits until it is ready; the reason if it never is.
    fn ready(&mut self, settings: &WarmSettings) -> impl Future<Output = Result<(), String>> + Send;

    /// Whether it will never be ready because a file was removed, which is not its fault: another one may be.
    fn is_lost(&self) -> bool {
        false
    }

    /// What it lacks, while it is not ready.
    fn why_not_ready(&self) -> Option<&str> {
        None
    }

    /// Waits for its response to a ping; the reason if there is none.
    fn ping(&mut self, settings: &WarmSettings) -> impl Future<Output = Result<(), String>> + Send;

    /// Checks that it can take a request; the reason if not.
    fn check_idle(&mut self) -> Result<(), String>;

    /// Whether it has ended by itself after its last request, which is no failure.
    fn has_ended_as_planned(&mut self) -> bool {
        false
    }

    /// Finishes an interrupted request, and discards the response. `Ok` says whether it is idle again; otherwise it has
    /// to become ready again.
    fn finish(&mut self) -> impl Future<Output = Result<bool, NotFinished>> + Send;

    /// Gives up a request whose deadline has passed. Returns whether the process is not to blame, and stays.
    fn abandon(&mut self) -> bool;

    /// Tells it that there are no more requests, and waits for its exit.
    fn exit(self) -> impl Future<Output = ()> + Send;
}

/// Waits for the exit of a process that was told to, for [`EXIT_TIMEOUT`].
pub(in super::super) async fn await_exit(exit: impl Future) {
    let _ = timeout(EXIT_TIMEOUT, exit).await;
}
