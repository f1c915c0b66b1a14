//! Which warm processes a handler has, and which of them is the current one.

use std::sync::Weak;

use nix::unistd::Pid;
use tokio::time::Instant;

use super::super::output_log::{LeaseLabel, LogPipe};
use super::backoff::RestartBackoff;
use super::process::WarmProcess;
use super::stage::{HandlerReadiness, Stage};

#[derive(Debug)]
pub(in super::super) struct WarmState<P: WarmProcess> {
    pub(in super::super) process: CurrentProcess<P>,
    /// A successor that is ready, until the old process is idle.
    pub(super) successor: Option<Running<P>>,
    /// Replaced processes, which have to end.
    pub(super) retired: Vec<Running<P>>,
    /// The current process, also while a request owns it.
    pub(in super::super) pid: Option<Pid>,
    /// All processes that live, with their generations.
    pub(super) living: Vec<(Pid, u64)>,
    pub(super) replacement_wanted: bool,
    /// A successor has become the current process.
    pub(super) is_replaced: bool,
    pub(super) generation: u64,
    pub(super) backoff: RestartBackoff,
    /// Since when no process has been ready.
    pub(super) not_ready_since: Instant,
    /// The end of the last request or ping.
    pub(super) last_sign: Instant,
    /// Why the process never became ready.
    pub(super) not_ready: Option<String>,
    /// The lease of the current request.
    pub(super) lease: LeaseLabel,
    /// The standard output and error of the processes.
    pub(super) log_pipes: Vec<Weak<LogPipe>>,
}

/// A process and its origin.
#[derive(Debug)]
pub(in super::super) struct Running<P> {
    pub(in super::super) process: P,
    pub(in super::super) pid: Pid,
    pub(super) generation: u64,
    pub(super) started: Instant,
    /// It has been ready at least once.
    pub(super) was_ready: bool,
}

/// The process between requests.
#[derive(Debug)]
pub(in super::super) enum CurrentProcess<P> {
    /// See [`Stage::Absent`].
    Absent,
    /// See [`Stage::Lost`].
    Lost,
    /// See [`Stage::Starting`].
    Starting(Running<P>),
    /// See [`Stage::Idle`].
    Idle(Running<P>),
    /// A request has been dropped before its end.
    Unfinished(Running<P>),
    /// A request owns it, or the end of one.
    InUse,
    /// The task that keeps it pings it.
    Pinged,
    /// The task that keeps it starts or replaces it.
    InCheck,
}

impl<P> CurrentProcess<P> {
    pub(super) fn stage(&self) -> Stage {
        match self {
            CurrentProcess::Absent => Stage::Absent,
            CurrentProcess::Lost => Stage::Lost,
            CurrentProcess::Starting(_) => Stage::Starting,
            CurrentProcess::Idle(_) => Stage::Idle,
            CurrentProcess::Unfinished(_) | CurrentProcess::InUse => Stage::InUse,
            CurrentProcess::Pinged => Stage::Pinged,
            CurrentProcess::InCheck => Stage::InCheck,
        }
    }
}

impl<P> WarmState<P>
where
    P: WarmProcess,
{
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            process: CurrentProcess::Absent,
            successor: None,
            retired: Vec::new(),
            pid: None,
            living: Vec::new(),
            replacement_wanted: false,
            is_replaced: false,
            generation: 0,
            backoff: RestartBackoff::default(),
            not_ready_since: now,
            last_sign: now,
            not_ready: None,
            lease: None,
            log_pipes: Vec::new(),
        }
    }

    /// Sets the state of the process. A successor that is ready takes the place of one that waits for a request.
    pub(super) fn set(&mut self, process: CurrentProcess<P>) {
        let was_starting = self.process.stage().readiness() == HandlerReadiness::Starting;
        self.process = process;
        if let CurrentProcess::Idle(_) = self.process
            && let Some(successor) = self.take_successor()
            && let CurrentProcess::Idle(old) = std::mem::replace(&mut self.process, CurrentProcess::Idle(successor))
        {
            self.retired.push(old);
        }
        if let CurrentProcess::Idle(running) = &mut self.process {
            running.was_ready = true;
        }
        let now = Instant::now();
        match self.process.stage().readiness() {
            HandlerReadiness::Starting if !was_starting => self.not_ready_since = now,
            HandlerReadiness::Ready => self.last_sign = now,
            HandlerReadiness::Starting | HandlerReadiness::Pinged => {}
        }
    }

    /// The successor that is ready, which becomes the current process.
    pub(super) fn take_successor(&mut self) -> Option<Running<P>> {
        let successor = self.successor.take()?;
        self.pid = Some(successor.pid);
        (self.replacement_wanted, self.is_replaced) = (false, true);
        Some(successor)
    }
}
