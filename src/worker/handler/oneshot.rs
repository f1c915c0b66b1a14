//! A program that gets a new process for each request or connection: what the handlers `exec` and `inetd` share.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use http::StatusCode;
use tokio::net::unix::pipe::Sender;
use tokio::task::JoinHandle;

use super::child::{HandlerProgram, log_killed};
use super::failure::RequestFailure;
use super::output_log::{LeaseLabel, LogPipe, OutputLog, OutputStream};
use crate::bounds::TERMINATE_GRACE_MAX;
use crate::config::BackgroundMode;
use crate::ids::{ProcessId, WorkerId};
use crate::log::Event;
use crate::procfs::{self, ProcessStat};
use crate::{process_tree, sync};

/// The program, and its last run.
#[derive(Debug)]
pub(super) struct OneShotProgram {
    program: HandlerProgram,
    run: Arc<OneShotRun>,
    background: BackgroundMode,
    /// From SIGTERM to SIGKILL.
    grace: Duration,
    /// What earlier requests have left running.
    kept: Mutex<HashSet<ProcessId>>,
}

/// One run of the program, as the request and the clean-up after it share it.
#[derive(Debug)]
pub(super) struct OneShotRun {
    log: Arc<OutputLog>,
    log_pipes: Mutex<Vec<(Weak<LogPipe>, JoinHandle<()>)>>,
    /// Whether a process has been started that has not exited by itself.
    is_interrupted: AtomicBool,
    lease: Mutex<LeaseLabel>,
    /// Our end of the standard input of a program whose request was cut: open until the program is dead.
    cut_stdin: Mutex<Option<Sender>>,
}

impl OneShotRun {
    /// The worker of the program.
    pub(super) fn worker(&self) -> &WorkerId {
        self.log.worker()
    }

    /// The lease of the request.
    pub(super) fn lease(&self) -> LeaseLabel {
        sync::lock(&self.lease).clone()
    }

    /// The process has exited by itself: what it has left is a background job.
    pub(super) fn exited(&self) {
        self.is_interrupted.store(false, Ordering::Relaxed); // read by the same task
    }

    /// The last line that the program has written to standard error, after everything written so far was logged.
    pub(super) fn last_line(&self) -> Option<String> {
        for pipe in sync::lock(&self.log_pipes).iter().filter_map(|(pipe, _)| pipe.upgrade()) {
            pipe.close();
        }
        self.log.last_lines().into_iter().rev().map(|line| line.trim().to_owned()).find(|line| !line.is_empty())
    }

    /// Keeps the standard input of the program open until it is dead: an end of file would say that the body is complete.
    pub(super) fn hold_stdin(&self, stdin: Sender) {
        *sync::lock(&self.cut_stdin) = Some(stdin);
    }
}

impl OneShotProgram {
    pub(super) fn new(program: HandlerProgram, worker: WorkerId, background: BackgroundMode, grace: Duration) -> Self {
        let run = OneShotRun {
            log: OutputLog::new(worker),
            log_pipes: Mutex::default(),
            is_interrupted: AtomicBool::new(false),
            lease: Mutex::default(),
            cut_stdin: Mutex::default(),
        };
        let grace = grace.min(TERMINATE_GRACE_MAX);
        Self { program, run: Arc::new(run), background, grace, kept: Mutex::default() }
    }

    pub(super) fn program(&self) -> &HandlerProgram {
        &self.program
    }

    /// The failure of a request for which no process of the program `name` could be started.
    pub(super) fn start_failure(name: &str, error: &io::Error) -> RequestFailure {
        RequestFailure::cannot_start(format!("cannot start `{name}`: {error}"), Some(error))
    }

    /// The failure of a request whose process was started but cannot be used. It may have done something.
    pub(super) fn failure_after_start(name: &str, error: &io::Error) -> RequestFailure {
        let reason = format!("cannot use `{name}` after its start: {error}");
        RequestFailure::new(StatusCode::INTERNAL_SERVER_ERROR, reason)
    }

    /// A process has been started for this lease: writes its standard error to the log.
    pub(super) fn started(&self, stderr: Option<OwnedFd>, lease: LeaseLabel) -> io::Result<Arc<OneShotRun>> {
        let run = &self.run;
        run.is_interrupted.store(true, Ordering::Relaxed);
        run.log.forget_lines();
        if let Some(stderr) = stderr {
            let pipe = LogPipe::start(stderr, run.log.clone(), OutputStream::Stderr, lease.clone())?;
            sync::lock(&run.log_pipes).push(pipe);
        }
        *sync::lock(&run.lease) = lease;
        Ok(run.clone())
    }

    /// Ends everything that the request has left, with SIGTERM first if its process has not exited by itself, and reaps
    /// it. Writes its remaining output to the log. Background jobs may be kept.
    pub(super) async fn end_run(&self) {
        let is_interrupted = self.run.is_interrupted.swap(false, Ordering::Relaxed);
        if process_tree::has_children() {
            if self.background == BackgroundMode::Keep && !is_interrupted {
                return self.keep_jobs();
            }
            let lease = self.run.lease();
            let (kept, grace) = (std::mem::take(&mut *sync::lock(&self.kept)), self.grace);
            let chosen = |process: &ProcessStat| !kept.contains(&process.id()) && is_of(process, &lease);
            if is_interrupted {
                process_tree::terminate(chosen, grace).await;
            }
            self.kill(chosen, is_interrupted).await;
            *sync::lock(&self.kept) = kept;
        }
        self.close_pipes();
    }

    /// Background jobs that write to standard error are still logged.
    fn keep_jobs(&self) {
        process_tree::reap_orphans(|_| false);
        let jobs = process_tree::descendants(nix::unistd::getpid());
        *sync::lock(&self.kept) = jobs.iter().map(ProcessStat::id).collect();
        sync::lock(&self.run.log_pipes).retain(|(pipe, _)| pipe.strong_count() > 0);
        *sync::lock(&self.run.cut_stdin) = None;
    }

    async fn kill(&self, chosen: impl Fn(&ProcessStat) -> bool, is_interrupted: bool) {
        let (name, lease) = (self.program.name(), self.run.lease());
        let log_job = |process: &ProcessStat, job: &str| {
            tracing::info!(worker = %self.run.worker(), lease = lease.as_deref(), pid = process.pid.as_raw(),
                "`{name}` has left process {} ({job}) running after its request: killing it", process.pid);
        };
        let killed = if is_interrupted {
            process_tree::kill(chosen, log_killed).await
        } else {
            process_tree::kill(chosen, log_job).await
        };
        if let Err(survivors) = killed {
            tracing::error!(worker = %self.run.worker(), event = %Event::ProcessSurvived, "{survivors}");
        }
    }

    fn close_pipes(&self) {
        *sync::lock(&self.run.cut_stdin) = None;
        let log_pipes = std::mem::take(&mut *sync::lock(&self.run.log_pipes));
        for (pipe, task) in log_pipes {
            if let Some(pipe) = pipe.upgrade() {
                pipe.close();
            }
            task.abort();
        }
    }

    /// Ends the last run, and the jobs of all earlier ones.
    pub(super) async fn stop(&self) {
        self.end_run().await;
        if process_tree::has_children() {
            process_tree::terminate(|_| true, self.grace).await;
            self.kill(|_| true, true).await;
        }
        self.close_pipes();
        self.run.log.report_suppressed();
    }
}

/// Whether a process does not belong to another lease, by its environment. One that has cleared it may be of any.
fn is_of(process: &ProcessStat, lease: &LeaseLabel) -> bool {
    let dir = procfs::process_dir(process.id().pid);
    let named = procfs::environment_variable(&dir, super::cgi::LEASE);
    named.is_none_or(|named| lease.as_ref().is_none_or(|lease| named == lease.as_bytes()))
}
