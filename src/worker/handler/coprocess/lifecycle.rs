//! The process of a co-process handler between requests: start, restart, recycling, stop.

use std::fmt::Display;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use nix::unistd::Pid;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::child::{HandlerProgram, HandlerStartError, log_killed};
use super::super::failure::RequestFailure;
use super::super::output_log::{LeaseLabel, LogPipe, OutputLog};
use super::backoff::RestartBackoff;
use super::request_feed::{FeedError, RequestFeed};
use super::warm_process::{REQUESTS_CLOSED, WarmProcess, belongs_to_generation};
use crate::ids::WorkerId;
use crate::log::Event;
use crate::process_tree;
use crate::procfs::ProcessStat;
use crate::signals::Signal;
use crate::sync;

/// The handler: a program and its single process.
#[derive(Debug)]
pub(crate) struct Coprocess {
    program: HandlerProgram,
    log: Arc<OutputLog>,
    state: Mutex<CoprocessState>,
    /// Readable when a child has ended: the process, or an orphan of it.
    child_ended: UnixStream,
}

#[derive(Debug)]
pub(super) struct CoprocessState {
    pub process: CurrentProcess,
    /// The process id of the last process, also while a request owns it.
    pub pid: Option<Pid>,
    generation: u64,
    backoff: RestartBackoff,
    /// The lease of the current request.
    lease: LeaseLabel,
    /// The standard output and error of the process.
    log_pipes: Vec<Weak<LogPipe>>,
}

/// The process between requests.
#[derive(Debug)]
pub(super) enum CurrentProcess {
    /// It waits for a request.
    Idle(WarmProcess),
    /// It has responded before the whole request was written: the rest must be written within `timeout`.
    WritingRequest { process: WarmProcess, feed: RequestFeed, timeout: Duration },
    /// A request owns it, or it is lost.
    Absent,
}

impl Coprocess {
    /// Starts the process.
    pub(in super::super) fn start(program: HandlerProgram, worker: WorkerId) -> Result<Arc<Self>, HandlerStartError> {
        let state = CoprocessState {
            process: CurrentProcess::Absent,
            pid: None,
            generation: 0,
            backoff: RestartBackoff::default(),
            lease: None,
            log_pipes: Vec::new(),
        };
        let child_ended = Signal::child().and_then(Signal::into_async);
        let child_ended = child_ended.map_err(|error| HandlerStartError::Spawn(program.name().to_owned(), error))?;
        let coprocess = Self { program, log: OutputLog::new(worker), state: Mutex::new(state), child_ended };
        let process = coprocess.spawn()?;
        coprocess.put(CurrentProcess::Idle(process));
        Ok(Arc::new(coprocess))
    }

    /// After a request: writes the rest of a request that the co-process did not wait for, or replaces the process.
    pub(in super::super) async fn end_request(&self) {
        self.restore_process().await;
        self.set_lease(None);
    }

    /// Attributes what the process prints from now on to `lease`. What it has printed so far belongs to the previous
    /// one.
    pub(super) fn set_lease(&self, lease: LeaseLabel) {
        let log_pipes = {
            let mut state = self.lock();
            state.lease.clone_from(&lease);
            state.log_pipes.retain(|pipe| pipe.strong_count() > 0);
            state.log_pipes.clone()
        };
        log_pipes.iter().filter_map(Weak::upgrade).for_each(|pipe| pipe.set_lease(lease.clone()));
    }

    async fn restore_process(&self) {
        let process = match self.take() {
            CurrentProcess::Idle(process) => Some(process),
            CurrentProcess::WritingRequest { mut process, mut feed, timeout: limit } => {
                match timeout(limit, feed.outcome()).await {
                    Ok(Ok(requests)) => {
                        process.requests = Some(requests);
                        Some(process)
                    }
                    Ok(Err(FeedError::PipeClosed)) => {
                        self.record_failure(&process, &REQUESTS_CLOSED);
                        None
                    }
                    // The client does not send the rest of its request: the process is not to blame.
                    Ok(Err(FeedError::Client(_))) | Err(_) => None,
                }
            }
            CurrentProcess::Absent => None,
        };
        if let Some(process) = process.and_then(|process| self.keep_if_idle(process)) {
            let pid = process.pid();
            self.put(CurrentProcess::Idle(process));
            return process_tree::reap_orphans(|orphan| orphan == pid);
        }
        match self.restart().await {
            Ok(process) => self.put(CurrentProcess::Idle(process)),
            Err(error) => {
                tracing::error!(worker = %self.log.worker(), event = %Event::HandlerUnavailable,
                    "the co-process is not running ({error}): retrying");
            }
        }
    }

    /// Kills what a failed request has left, and leaves the restart to [`Self::end_request`].
    pub(in super::super) async fn kill_request_processes(&self) {
        if matches!(self.lock().process, CurrentProcess::Absent) {
            self.kill(|_| true).await;
        }
    }

    /// Replaces a process that dies between requests, and reaps the orphans that it leaves. Never returns.
    pub(in super::super) async fn watch(&self) {
        loop {
            let ended = match &self.lock().process {
                CurrentProcess::Idle(process) => Some(process.reader.child.ended()),
                CurrentProcess::WritingRequest { .. } | CurrentProcess::Absent => None,
            };
            if let Some(ended) = ended {
                let mut ended = pin!(ended);
                while tokio::select! { () = &mut ended => false, _ = self.child_ended.readable() => true } {
                    while self.child_ended.try_read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0) {}
                    let pid = self.lock().pid;
                    process_tree::reap_orphans(|child| Some(child) == pid);
                }
            }
            self.end_request().await;
        }
    }

    /// Starts the successor, then lets the old process exit.
    pub(in super::super) async fn recycle(&self) -> Result<(), HandlerStartError> {
        // Completes the last request first, so that the old process is idle or already replaced.
        self.end_request().await;
        let successor = self.spawn()?;
        let new = successor.pid();
        if let CurrentProcess::Idle(old) = self.replace(CurrentProcess::Idle(successor)) {
            let (pid, generation) = (old.pid(), old.generation);
            old.close_and_wait().await;
            let belongs_to_old = move |p: &ProcessStat| {
                p.pid == pid || p.pid != new && (p.is_zombie() || belongs_to_generation(p.pid, generation))
            };
            self.kill(belongs_to_old).await;
        }
        Ok(())
    }

    /// Lets the process exit, then kills everything that remains.
    pub(in super::super) async fn stop(&self) {
        if let CurrentProcess::Idle(process) = self.take() {
            process.close_and_wait().await;
        }
        self.kill(|_| true).await;
        self.lock().pid = None;
        self.set_lease(None);
        self.log.report_suppressed();
    }

    /// The process for a request: the current one, or a new one if that is lost.
    pub(super) async fn take_for_request(&self) -> Result<WarmProcess, RequestFailure> {
        if let CurrentProcess::Idle(process) = self.take()
            && let Some(process) = self.keep_if_idle(process)
        {
            return Ok(process);
        }
        self.restart().await.map_err(|error| {
            let cause = if let HandlerStartError::Spawn(_, cause) = &error { Some(cause) } else { None };
            RequestFailure::cannot_start(error.to_string(), cause)
        })
    }

    /// Returns the process if it is alive and at the start of a frame; otherwise records why not.
    fn keep_if_idle(&self, mut process: WarmProcess) -> Option<WarmProcess> {
        match process.check_idle() {
            Ok(()) => Some(process),
            Err(reason) => {
                self.record_failure(&process, &reason);
                None
            }
        }
    }

    /// Logs that the process died or broke the framing, and delays the restart if it keeps failing.
    pub(super) fn record_failure(&self, process: &WarmProcess, reason: &dyn Display) {
        let (worker, pid) = (self.log.worker(), process.pid().as_raw());
        let lease = self.lock().lease.clone();
        tracing::warn!(%worker, lease = lease.as_deref(), pid, event = %Event::HandlerFault,
            "the co-process `{}` failed ({reason}): replacing it", self.program.name());
        self.lock().backoff.record_failure(Instant::now().into_std(), process.started.into_std());
    }

    /// Logs that the process has closed descriptor 3 during a request.
    pub(super) fn log_requests_closed(&self) {
        let (worker, lease, event) = (self.log.worker(), self.lock().lease.clone(), Event::HandlerFault);
        tracing::warn!(%worker, lease = lease.as_deref(), %event,
            "the co-process `{}` failed ({REQUESTS_CLOSED} during a request): killing it", self.program.name());
    }

    /// Kills what remains of the last process and starts another after the delay.
    async fn restart(&self) -> Result<WarmProcess, HandlerStartError> {
        self.kill(|_| true).await;
        let not_before = self.lock().backoff.not_before();
        if let Some(not_before) = not_before {
            sleep_until(not_before.into()).await;
        }
        self.spawn().inspect_err(|_| {
            let now = Instant::now();
            self.lock().backoff.record_failure(now.into_std(), now.into_std());
        })
    }

    fn spawn(&self) -> Result<WarmProcess, HandlerStartError> {
        let (generation, lease) = {
            let mut state = self.lock();
            state.generation += 1;
            (state.generation, state.lease.clone())
        };
        let (process, log_pipes) = WarmProcess::spawn(&self.program, generation, &self.log, &lease)
            .map_err(|error| HandlerStartError::Spawn(self.program.name().to_owned(), error))?;
        let mut state = self.lock();
        state.log_pipes.extend(log_pipes);
        state.pid = Some(process.pid());
        drop(state);
        Ok(process)
    }

    async fn kill(&self, is_chosen: impl Fn(&ProcessStat) -> bool) {
        if let Err(survivors) = process_tree::kill(is_chosen, log_killed).await {
            tracing::error!(worker = %self.log.worker(), event = %Event::ProcessSurvived, "{survivors}");
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, CoprocessState> {
        sync::lock(&self.state)
    }

    fn replace(&self, process: CurrentProcess) -> CurrentProcess {
        std::mem::replace(&mut self.lock().process, process)
    }

    fn take(&self) -> CurrentProcess {
        self.replace(CurrentProcess::Absent)
    }

    pub(super) fn put(&self, process: CurrentProcess) {
        drop(self.replace(process));
    }
}
