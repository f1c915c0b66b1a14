//! The nemesis: injects the faults. Each is bounded, and undone where it does not end by itself.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread::Scope;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::fault::{DrillFault, DrillPart, FaultKind, FaultTarget};
use super::generator::SetKind;
use super::history::PromiseViolation;
use super::random::SplitMix64;
use super::set::DrillSet;
use super::traffic::Traffic;
use super::{bad_clients, ipc_faults};
use crate::cli::patou_run::POLL_INTERVAL;
use crate::clock;
use crate::ids::WorkerId;
use crate::probe::{self, ProbeCommand};
use crate::procfs::ProcessStat;
use crate::sync::lock;
use crate::{signals, sys};

/// How long the dispatcher may take to execute a command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

/// How long `resume` is repeated: a drained worker must not stay out of service.
const RESUME_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct Nemesis<'a> {
    pub traffic: &'a Traffic<'a>,
    /// Processes that were stopped: continued at the end if they still exist.
    stopped: Mutex<Vec<OwnedFd>>,
    /// SIGINT or SIGTERM was received.
    pub interrupted: signals::SignalFlag,
    /// What was found to be wrong during the drill.
    violations: Mutex<Vec<PromiseViolation>>,
}

impl<'a> Nemesis<'a> {
    pub(super) fn new(traffic: &'a Traffic<'a>, interrupted: signals::SignalFlag) -> Self {
        Self { traffic, stopped: Mutex::default(), interrupted, violations: Mutex::default() }
    }

    pub(super) fn report_violation(&self, promise: &'static str, what: String) {
        lock(&self.violations).push(PromiseViolation::new(promise, what));
    }

    pub(super) fn take_violations(&self) -> Vec<PromiseViolation> {
        std::mem::take(&mut *lock(&self.violations))
    }

    /// Sleeps until `time` has passed or the drill is interrupted.
    pub(super) fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.interrupted.is_set() {
            std::thread::sleep(end.saturating_duration_since(Instant::now()).min(Duration::from_millis(20)));
        }
    }

    /// Injects one fault now. What lasts continues in a thread of `scope`.
    ///
    /// # Errors
    /// Why the fault cannot be injected.
    pub(super) fn inject<'s>(
        &'s self,
        set: &mut DrillSet,
        fault: &DrillFault,
        scope: &'s Scope<'s, '_>,
    ) -> Result<(), String> {
        let (watch, settle) = (self.traffic.watch, set.settle_time());
        let injected = || watch.tracker().fault_injected(clock::now(), fault);
        let action_ended = move |index, settle| watch.tracker().action_ended(clock::now(), index, settle);
        match (fault.kind, fault.target) {
            (FaultKind::Kill, FaultTarget::Part(DrillPart::Watchdog)) if set.kind == SetKind::Private => {
                injected();
                return self.kill_private_watchdog(set, fault);
            }
            (FaultKind::Restart, FaultTarget::Part(part)) => {
                let unit = set.unit(part);
                injected();
                systemctl_restart(&unit)?;
            }
            (FaultKind::Pause, FaultTarget::Part(part)) => self.pause(set, fault, part, injected())?,
            (FaultKind::Reload, FaultTarget::Part(part)) => {
                let process = self.process(part)?;
                let index = injected();
                send(&process, Signal::SIGHUP)?;
                action_ended(index, settle);
            }
            (FaultKind::Drain, FaultTarget::Part(DrillPart::Worker(worker))) => {
                let (worker, socket) = (set.workers[worker].clone(), set.dir().join("probe.sock"));
                let (index, time) = (injected(), fault.duration);
                scope.spawn(move || {
                    if !self.drain_and_resume(&socket, &worker, time) {
                        watch.tracker().exclude(index, "the dispatcher did not execute the drain command");
                    }
                    action_ended(index, settle);
                });
            }
            (kind, FaultTarget::Part(part)) => {
                let process = self.process(part)?;
                injected();
                send(&process, signal_of(kind))?;
                if kind == FaultKind::Freeze {
                    let mut stopped = lock(&self.stopped);
                    stopped.retain(|process| !has_ended(process));
                    stopped.push(process);
                }
            }
            (kind, FaultTarget::Slot(worker)) => {
                let index = injected();
                ipc_faults::inject(set, &set.workers[worker], fault)?;
                // A worker that loses its answer this way while its control loop runs is killed only after four times
                // the timeout.
                let extra = if kind == FaultKind::CorruptSlot { 3 } else { 0 };
                action_ended(index, settle + set.config.watchdog.worker_timeout * extra);
            }
            (_, FaultTarget::Listener(listener)) => {
                let (fault, index) = (fault.clone(), injected());
                scope.spawn(move || {
                    bad_clients::run(self.traffic, &fault, listener);
                    action_ended(index, Duration::ZERO);
                });
            }
            (_, FaultTarget::Machine) => {
                let (fault, index) = (fault.clone(), injected());
                scope.spawn(move || {
                    self.starve(&fault);
                    // A starved process needs time to catch up.
                    action_ended(index, settle);
                });
            }
        }
        Ok(())
    }

    /// The process of a part. The descriptor cannot refer to another process that got the same pid.
    fn process(&self, part: DrillPart) -> Result<OwnedFd, String> {
        let id = self.traffic.watch.process(part).ok_or("it has no process")?;
        // The start time is compared only after the descriptor was opened.
        let process =
            sys::pidfd_open(Pid::from_raw(id.pid as i32)).map_err(|error| format!("pid {}: {error}", id.pid))?;
        let found = ProcessStat::of_id(id).filter(|found| !found.is_zombie());
        found.is_some().then_some(process).ok_or_else(|| "its process has just ended".into())
    }

    fn pause(&self, set: &DrillSet, fault: &DrillFault, part: DrillPart, index: usize) -> Result<(), String> {
        let watch = self.traffic.watch;
        let process = self.process(part).inspect_err(|_| watch.tracker().exclude(index, "it had no process"))?;
        let timeout = match part {
            DrillPart::Worker(_) => set.config.watchdog.worker_timeout,
            DrillPart::Dispatcher => set.config.watchdog.dispatcher_timeout,
            DrillPart::Watchdog => Duration::MAX,
        };
        let before = Instant::now();
        send(&process, Signal::SIGSTOP)?;
        std::thread::sleep(fault.duration);
        let _ = send(&process, Signal::SIGCONT); // if it was killed, the watchdog's state file shows it
        // The part may have been silent before the pause, and needs time to respond after it.
        if before.elapsed() > timeout.mul_f64(0.75) {
            watch.tracker().exclude(index, "the drill itself was late with SIGCONT");
        }
        watch.tracker().action_ended(clock::now(), index, set.settle_time());
        Ok(())
    }

    /// Drains a worker, and resumes it after `time`. Returns whether the dispatcher executed the drain command.
    fn drain_and_resume(&self, socket: &std::path::Path, worker: &WorkerId, time: Duration) -> bool {
        let drain = Some(ProbeCommand::Drain(worker.clone()));
        let drained = probe::query(socket, drain, COMMAND_TIMEOUT).is_ok();
        self.sleep(time);
        let deadline = Instant::now() + RESUME_TIMEOUT;
        // The dispatcher may be down now.
        let resume = || probe::query(socket, Some(ProbeCommand::Resume(worker.clone())), COMMAND_TIMEOUT);
        while resume().is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        drained
    }

    /// Keeps more processes busy than there are cores.
    fn starve(&self, fault: &DrillFault) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = cores * (1 + SplitMix64::new(fault.seed).below(4) as usize);
        let children: Vec<_> = (0..count).filter_map(|_| spin(fault.duration).ok()).collect();
        self.sleep(fault.duration);
        for mut child in children {
            let _ = child.kill().and_then(|()| child.wait()); // it may have ended by itself
        }
    }

    /// Kills the watchdog of a private set and restarts `patou run`, at once or when all parts have exited.
    fn kill_private_watchdog(&self, set: &mut DrillSet, fault: &DrillFault) -> Result<(), String> {
        let watch = self.traffic.watch;
        let frozen: Vec<u32> = set.processes().into_iter().filter(|pid| is_stopped(*pid)).collect();
        set.kill_watchdog().map_err(|_| "the watchdog cannot be killed")?;
        watch.tracker().watchdog_killed(clock::now());
        if fault.seed & 1 == 0 {
            let deadline = Instant::now() + set.bounds().drain;
            let left = || set.processes().into_iter().filter(|pid| !frozen.contains(pid)).collect::<Vec<_>>();
            while !left().is_empty() && Instant::now() < deadline {
                std::thread::sleep(POLL_INTERVAL * 5);
            }
            let left = left();
            if !left.is_empty() {
                let number = fault.number;
                let what = format!("fault {number}: processes {left:?} did not exit after their watchdog was killed");
                self.report_violation("P6", what);
            }
        }
        set.restart_watchdog().map_err(|_| "patou run cannot be restarted")?;
        if !set.wait_until_up(set.bounds().watchdog) {
            return Err(format!("patou run does not start again: {}", set.log_tail()));
        }
        Ok(())
    }
}

impl Drop for Nemesis<'_> {
    fn drop(&mut self) {
        for process in lock(&self.stopped).drain(..) {
            let _ = send(&process, Signal::SIGCONT); // most have been replaced long ago
        }
    }
}

fn signal_of(kind: FaultKind) -> Signal {
    match kind {
        FaultKind::Freeze => Signal::SIGSTOP,
        FaultKind::Abort => Signal::SIGABRT,
        FaultKind::Crash => Signal::SIGILL,
        FaultKind::Terminate => Signal::SIGTERM,
        _ => Signal::SIGKILL,
    }
}

fn send(process: &OwnedFd, signal: Signal) -> Result<(), String> {
    sys::pidfd_send_signal(process.as_fd(), signal).map_err(|error| format!("{signal}: {error}"))
}

/// A pidfd is readable once its process has ended (pidfd_open(2)).
fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn is_stopped(pid: u32) -> bool {
    ProcessStat::of(pid).is_some_and(|process| process.is_stopped())
}

fn systemctl_restart(unit: &str) -> Result<(), String> {
    let output = Command::new("systemctl").args(["restart", "--no-block", unit]).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("systemctl: {error}"))?;
    output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// A child that keeps a core busy. It ends by itself, and with the thread that started it.
fn spin(time: Duration) -> std::io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["record", "--spin", &format!("{}ms", time.as_millis())]).stdin(Stdio::null());
    sys::die_with_parent(&mut command);
    command.spawn()
}
