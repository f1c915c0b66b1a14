//! The warm process of a handler between requests: start, end, and what a request leaves of it.

use std::fmt::Display;
use std::fs;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use nix::unistd::Pid;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::super::child::{HandlerProgram, HandlerStartError, log_killed};
use super::super::failure::RequestFailure;
use super::super::output_log::{LeaseLabel, OutputLog};
use super::borrowed::Borrowed;
use super::handler::WarmHandler;
use super::process::{GENERATION_VARIABLE, NotFinished, WarmProcess, WarmSettings};
use super::stage::{HandlerReadiness, Situation, Stage};
use super::state::{CurrentProcess, Running, WarmState};
use crate::ids::WorkerId;
use crate::log::Event;
use crate::process_tree;
use crate::procfs::ProcessStat;
use crate::signals::Signal;

impl<P: WarmProcess> WarmHandler<P> {
    /// Starts the process.
    pub(in super::super) fn start(
        program: HandlerProgram,
        worker: WorkerId,
        settings: WarmSettings,
    ) -> Result<Arc<Self>, HandlerStartError> {
        let child_ended = Signal::child().and_then(Signal::into_async);
        let child_ended = child_ended.map_err(|error| HandlerStartError::Spawn(program.name().to_owned(), error))?;
        let handler = Arc::new(Self {
            program,
            settings,
            log: OutputLog::new(worker),
            state: Mutex::new(WarmState::new()),
            child_ended,
            changed: Notify::new(),
            cleaning: tokio::sync::Mutex::default(),
            bringing_up: tokio::sync::Mutex::default(),
        });
        handler.start_absent()?;
        Ok(handler)
    }

    pub(in super::super) fn readiness(&self) -> HandlerReadiness {
        self.lock().process.stage().readiness()
    }

    /// What the next step of the task that keeps the process depends on.
    pub(super) fn situation(&self) -> Situation {
        let state = self.lock();
        Situation {
            stage: state.process.stage(),
            has_retired: !state.retired.is_empty(),
            // A successor that is ready only waits for the end of a request.
            replacement: (state.replacement_wanted && state.successor.is_none()).then_some(self.settings.replace),
            ping: self.settings.ping,
            last_sign: state.last_sign.into_std(),
        }
    }

    /// Attributes what the process prints from now on to `lease`. What it has printed so far belongs to the previous
    /// one.
    pub(in super::super) fn set_lease(&self, lease: LeaseLabel) {
        let log_pipes = {
            let mut state = self.lock();
            state.lease.clone_from(&lease);
            state.log_pipes.retain(|pipe| pipe.strong_count() > 0);
            state.log_pipes.clone()
        };
        log_pipes.iter().filter_map(Weak::upgrade).for_each(|pipe| pipe.set_lease(lease.clone()));
    }

    /// The process for a request. Waits for one that starts.
    pub(in super::super) async fn take_for_request(self: &Arc<Self>) -> Result<Borrowed<P>, RequestFailure> {
        loop {
            let changed = self.changed.notified();
            if let Some(mut taken) = self.take_idle(CurrentProcess::InUse, CurrentProcess::Unfinished) {
                match taken.check_idle() {
                    Ok(()) => return Ok(taken),
                    Err(reason) => self.fail(taken, &reason),
                }
            }
            if !matches!(self.lock().process.stage(), Stage::Pinged | Stage::InCheck | Stage::InUse) {
                self.bring_up().await.map_err(|error| {
                    let cause = if let HandlerStartError::Spawn(_, cause) = &error { Some(cause) } else { None };
                    RequestFailure::cannot_start(error.to_string(), cause)
                })?;
            } else {
                changed.await;
            }
        }
    }

    pub(super) fn take_idle(
        self: &Arc<Self>,
        meanwhile: CurrentProcess<P>,
        dropped_as: fn(Running<P>) -> CurrentProcess<P>,
    ) -> Option<Borrowed<P>> {
        let mut state = self.lock();
        match std::mem::replace(&mut state.process, meanwhile) {
            CurrentProcess::Idle(running) => Some(Borrowed::new(self, running, dropped_as)),
            other => {
                state.process = other;
                None
            }
        }
    }

    /// After a request: lets the process finish what was interrupted, for at most `limit`. A process that is lost is
    /// killed, and the next one is started unless that is delayed. Does not wait until it is ready.
    pub(in super::super) async fn end_request(self: &Arc<Self>, limit: Duration) {
        if let Some(mut unfinished) = self.take_unfinished() {
            match timeout(limit, unfinished.finish()).await {
                Ok(Ok(true)) => unfinished.put_idle(),
                Ok(Ok(false)) => unfinished.put_starting(),
                Ok(Err(NotFinished::Fault(reason))) => self.fail(unfinished, &reason),
                Ok(Err(NotFinished::ByClient)) => unfinished.lose(),
                Err(_) => self.end_overdue(unfinished),
            }
        }
        if let Some(mut idle) = self.take_idle(CurrentProcess::InUse, CurrentProcess::Idle) {
            match idle.check_idle() {
                Ok(()) => idle.put_idle(),
                Err(reason) => self.fail(idle, &reason),
            }
        }
        self.clean().await;
        let not_before = self.lock().backoff.not_before();
        if not_before.is_none_or(|at| at <= Instant::now().into_std())
            && let Err(error) = self.start_absent()
        {
            self.log_unavailable(&error);
        }
        self.reap_orphans();
        self.set_lease(None);
    }

    /// Kills what a failed request has left, and leaves the restart to [`Self::end_request`].
    pub(in super::super) async fn kill_request_processes(self: &Arc<Self>) {
        if let Some(unfinished) = self.take_unfinished() {
            self.end_overdue(unfinished);
        }
        self.clean().await;
    }

    fn take_unfinished(self: &Arc<Self>) -> Option<Borrowed<P>> {
        let mut state = self.lock();
        match std::mem::replace(&mut state.process, CurrentProcess::InUse) {
            CurrentProcess::Unfinished(running) => Some(Borrowed::new(self, running, CurrentProcess::Unfinished)),
            other => {
                state.process = other;
                None
            }
        }
    }

    fn end_overdue(&self, mut unfinished: Borrowed<P>) {
        if unfinished.abandon() { unfinished.put_starting() } else { unfinished.lose() }
    }

    /// Lets the process exit, then kills everything that remains.
    pub(in super::super) async fn stop(&self) {
        let ending: Vec<_> = {
            let mut state = self.lock();
            let (successor, mut ending) = (state.successor.take(), std::mem::take(&mut state.retired));
            ending.extend(successor);
            match std::mem::replace(&mut state.process, CurrentProcess::Absent) {
                CurrentProcess::Idle(running) | CurrentProcess::Starting(running) => ending.push(running),
                _ => {}
            }
            ending
        };
        for running in ending {
            running.process.exit().await;
        }
        {
            let mut state = self.lock();
            state.pid = None;
            state.living.clear();
        }
        self.kill(|_| true).await;
        self.set_lease(None);
        self.log.report_suppressed();
    }

    /// Logs that the process has failed, delays the restart if it keeps failing, and gives it up. One that has ended as
    /// planned has not failed.
    pub(in super::super) fn fail(&self, mut taken: Borrowed<P>, reason: &dyn Display) {
        if taken.has_ended_as_planned() {
            tracing::debug!(worker = %self.log.worker(), pid = taken.running().pid.as_raw(),
                "the {} `{}` has ended after its last request: replacing it", P::KIND, self.program.name());
            return taken.lose();
        }
        let (worker, pid) = (self.log.worker(), taken.running().pid.as_raw());
        let lease = self.lock().lease.clone();
        tracing::warn!(%worker, lease = lease.as_deref(), pid, event = %Event::HandlerFault,
            "the {} `{}` failed ({reason}): replacing it", P::KIND, self.program.name());
        self.lock().backoff.record_failure(Instant::now().into_std(), taken.running().started.into_std());
        taken.lose();
    }

    /// Logs a fault of the process during a request, for which it is killed.
    pub(in super::super) fn log_fault(&self, fault: &str) {
        let (worker, lease, event) = (self.log.worker(), self.lock().lease.clone(), Event::HandlerFault);
        tracing::warn!(%worker, lease = lease.as_deref(), %event,
            "the {} `{}` failed ({fault} during a request): killing it", P::KIND, self.program.name());
    }

    /// Logs what is wrong with a response that the client gets.
    pub(in super::super) fn log_note(&self, note: &str) {
        let (worker, lease, event) = (self.log.worker(), self.lock().lease.clone(), Event::HandlerFault);
        tracing::warn!(%worker, lease = lease.as_deref(), %event, "the {} `{}` {note}", P::KIND, self.program.name());
    }

    pub(super) fn log_unavailable(&self, error: &HandlerStartError) {
        tracing::error!(worker = %self.log.worker(), event = %Event::HandlerUnavailable,
            "the {} is not running ({error}): retrying", P::KIND);
    }

    /// Kills what is left of a lost process.
    pub(super) async fn clean(&self) {
        let _guard = self.cleaning.lock().await;
        let spared = {
            let mut state = self.lock();
            if state.process.stage() != Stage::Lost {
                return;
            }
            let lost = state.pid.take();
            state.living.retain(|(pid, _)| Some(*pid) != lost);
            state.living.clone()
        };
        let belongs_to = |p: &ProcessStat, (pid, generation): (Pid, u64)| {
            p.pid == pid || !p.is_zombie() && belongs_to_generation(p.pid, generation)
        };
        self.kill(|p| !spared.iter().any(|other| belongs_to(p, *other))).await;
        self.put(CurrentProcess::Absent);
    }

    /// Kills what a process and its descendants have left, and nothing of the others.
    pub(super) async fn kill_generation(&self, pid: Pid, generation: u64) {
        let spared = {
            let mut state = self.lock();
            state.living.retain(|(living, _)| *living != pid);
            state.living.clone()
        };
        let is_spared = |p: &ProcessStat| spared.iter().any(|(living, _)| *living == p.pid);
        self.kill(|p| p.pid == pid || !is_spared(p) && (p.is_zombie() || belongs_to_generation(p.pid, generation)))
            .await;
    }

    /// Reaps what has ended, except the processes themselves.
    pub(super) fn reap_orphans(&self) {
        let living = self.lock().living.clone();
        process_tree::reap_orphans(|child| living.iter().any(|(pid, _)| *pid == child));
    }

    async fn kill(&self, is_chosen: impl Fn(&ProcessStat) -> bool) {
        if let Err(survivors) = process_tree::kill(is_chosen, log_killed).await {
            tracing::error!(worker = %self.log.worker(), event = %Event::ProcessSurvived, "{survivors}");
        }
    }
}

/// Whether a process of this generation has started the process, according to its environment. A process that has cleared
/// its environment is not recognised; the next kill of all processes ends it.
fn belongs_to_generation(pid: Pid, generation: u64) -> bool {
    let variable = format!("{GENERATION_VARIABLE}={generation}");
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| all.split(|&b| b == 0).any(|v| v == variable.as_bytes()))
}
