//! A program that gets a new process for each request or connection: what the handlers `exec` and `inetd` share.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use http::StatusCode;
use tokio::task::JoinHandle;

use super::child::{HandlerProgram, log_killed};
use super::failure::RequestFailure;
use super::output_log::{LeaseLabel, LogPipe, OutputLog, OutputStream};
use crate::ids::WorkerId;
use crate::log::Event;
use crate::process_tree;
use crate::sync;

/// The program, and the standard error pipes of its last run.
#[derive(Debug)]
pub(super) struct OneShotProgram {
    program: HandlerProgram,
    log: Arc<OutputLog>,
    log_pipes: Mutex<Vec<(Weak<LogPipe>, JoinHandle<()>)>>,
}

impl OneShotProgram {
    pub(super) fn new(program: HandlerProgram, worker: WorkerId) -> Self {
        Self { program, log: OutputLog::new(worker), log_pipes: Mutex::default() }
    }

    pub(super) fn program(&self) -> &HandlerProgram {
        &self.program
    }

    /// The failure of a request for which no process could be started.
    pub(super) fn start_failure(&self, error: &io::Error) -> RequestFailure {
        RequestFailure::cannot_start(format!("cannot start `{}`: {error}", self.program.name()), Some(error))
    }

    /// The failure of a request whose process was started but cannot be used. It may have done something.
    pub(super) fn failure_after_start(&self, error: &io::Error) -> RequestFailure {
        let reason = format!("cannot use `{}` after its start: {error}", self.program.name());
        RequestFailure::new(StatusCode::INTERNAL_SERVER_ERROR, reason)
    }

    /// Writes the standard error of a process to the log.
    pub(super) fn log_stderr(&self, stderr: Option<OwnedFd>, lease: LeaseLabel) -> io::Result<()> {
        if let Some(stderr) = stderr {
            let pipe = LogPipe::start(stderr, self.log.clone(), OutputStream::Stderr, lease)?;
            sync::lock(&self.log_pipes).push(pipe);
        }
        Ok(())
    }

    /// Kills and reaps everything that the request has left, and writes its remaining output to the log.
    pub(super) async fn end_run(&self) {
        if process_tree::has_children()
            && let Err(survivors) = process_tree::kill(|_| true, log_killed).await
        {
            tracing::error!(worker = %self.log.worker(), event = %Event::ProcessSurvived, "{survivors}");
        }
        let log_pipes = std::mem::take(&mut *sync::lock(&self.log_pipes));
        for (pipe, task) in log_pipes {
            if let Some(pipe) = pipe.upgrade() {
                pipe.close();
            }
            task.abort();
        }
    }

    /// Ends the last run.
    pub(super) async fn stop(&self) {
        self.end_run().await;
        self.log.report_suppressed();
    }
}
