//! Injects one fault. Each is bounded, and undone where it does not end by itself.

use std::process::{Child, Command, Stdio};
use std::thread::Scope;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::fault::{DrillFault, DrillPart, FaultKind, FaultTarget};
use super::generator::SetKind;
use super::nemesis::{Nemesis, send};
use super::random::SplitMix64;
use super::set::DrillSet;
use super::{bad_clients, drain_faults, file_faults, ipc_faults, part_faults};
use crate::cli::patou_run::POLL_INTERVAL;
use crate::procfs::ProcessStat;
use crate::sys;

/// Injects this fault now. What lasts continues in a thread of `scope`.
///
/// # Errors
/// Why the fault cannot be injected.
pub(super) fn inject<'s>(
    nemesis: &'s Nemesis<'_>,
    set: &mut DrillSet,
    fault: &DrillFault,
    scope: &'s Scope<'s, '_>,
) -> Result<(), String> {
    let settle = set.settle_time();
    match (fault.kind, fault.target) {
        (kind, _) if kind.removes_files() => file_faults::remove(nemesis, set, fault, scope),
        (FaultKind::BlockLog, FaultTarget::Part(part)) => file_faults::block_log(nemesis, set, fault, part, scope),
        (kind, FaultTarget::Parts(_)) => part_faults::end_several(nemesis, fault, signal_of(kind)),
        (FaultKind::Debugger | FaultKind::FreezeGroup, FaultTarget::Part(part)) => {
            part_faults::hold(nemesis, set, fault, part, scope)
        }
        (FaultKind::UseUpDescriptors | FaultKind::LimitDescriptors, FaultTarget::Part(part)) => {
            part_faults::limit_descriptors(nemesis, set, fault, part, scope)
        }
        (FaultKind::ChangeSocketFlags, FaultTarget::Listener(listener)) => {
            part_faults::change_socket_flags(nemesis, set, fault, listener, scope)
        }
        (FaultKind::Drain, FaultTarget::Part(DrillPart::Worker(worker))) => {
            drain_faults::drain(nemesis, set, fault, worker, scope);
            Ok(())
        }
        (FaultKind::FreezeDrained, FaultTarget::Part(DrillPart::Worker(worker))) => {
            drain_faults::freeze_drained(nemesis, set, fault, worker, scope)
        }
        (FaultKind::FreezeRemoved, FaultTarget::Part(DrillPart::Worker(worker))) => {
            drain_faults::freeze_removed(nemesis, set, fault, worker)
        }
        (FaultKind::Kill, FaultTarget::Part(DrillPart::Watchdog)) if set.kind == SetKind::Private => {
            nemesis.injected(fault);
            kill_private_watchdog(nemesis, set, fault)
        }
        (FaultKind::Restart, FaultTarget::Part(part)) => {
            let index = nemesis.injected(fault);
            systemctl_restart(&set.unit(part)).inspect_err(|_| nemesis.abandon(index))
        }
        (FaultKind::Pause, FaultTarget::Part(part)) => pause(nemesis, set, fault, part),
        (FaultKind::Reload, FaultTarget::Part(part)) => {
            let process = nemesis.process(part)?;
            let index = nemesis.injected(fault);
            send(&process, Signal::SIGHUP)?;
            nemesis.action_ended(index, settle);
            Ok(())
        }
        (kind, FaultTarget::Part(part)) => {
            let process = nemesis.process(part)?;
            nemesis.injected(fault);
            nemesis.end(process, signal_of(kind))
        }
        (kind, FaultTarget::Slot(worker)) => {
            let index = nemesis.injected(fault);
            let pid = nemesis.traffic.watch.process(DrillPart::Worker(worker)).map(|process| process.pid);
            let damaged = ipc_faults::inject(set, &set.workers[worker], pid, fault);
            damaged.inspect_err(|_| nemesis.abandon(index))?;
            // A worker that loses its answer this way while its control loop runs is killed only after four times the
            // timeout.
            let extra = if kind == FaultKind::CorruptSlot { 3 } else { 0 };
            nemesis.action_ended(index, settle + set.config.watchdog.worker_timeout * extra);
            Ok(())
        }
        (_, FaultTarget::Listener(listener)) => {
            let (fault, index) = (fault.clone(), nemesis.injected(fault));
            scope.spawn(move || {
                bad_clients::run(nemesis.traffic, &fault, listener);
                nemesis.action_ended(index, Duration::ZERO);
            });
            Ok(())
        }
        (_, FaultTarget::Machine | FaultTarget::Set) => {
            let (fault, index) = (fault.clone(), nemesis.injected(fault));
            scope.spawn(move || {
                starve(nemesis, &fault);
                // A starved process needs time to catch up.
                nemesis.action_ended(index, settle);
            });
            Ok(())
        }
    }
}

fn pause(nemesis: &Nemesis<'_>, set: &DrillSet, fault: &DrillFault, part: DrillPart) -> Result<(), String> {
    let index = nemesis.injected(fault);
    let process = nemesis.process(part).inspect_err(|_| nemesis.abandon(index))?;
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
        nemesis.traffic.watch.tracker().exclude(index, "the drill itself was late with SIGCONT");
    }
    nemesis.action_ended(index, set.settle_time());
    Ok(())
}

/// Keeps more processes busy than there are cores.
fn starve(nemesis: &Nemesis<'_>, fault: &DrillFault) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let count = cores * (1 + SplitMix64::new(fault.seed).below(4) as usize);
    let children: Vec<_> = (0..count).filter_map(|_| spin(fault.duration).ok()).collect();
    nemesis.sleep(fault.duration);
    for mut child in children {
        let _ = child.kill().and_then(|()| child.wait()); // it may have ended by itself
    }
}

/// Kills the watchdog of a private set and restarts `patou run`, at once or when all parts have exited.
fn kill_private_watchdog(nemesis: &Nemesis<'_>, set: &mut DrillSet, fault: &DrillFault) -> Result<(), String> {
    let watch = nemesis.traffic.watch;
    let frozen: Vec<u32> = set.processes().into_iter().filter(|pid| is_stopped(*pid)).collect();
    set.kill_watchdog().map_err(|_| "the watchdog cannot be killed")?;
    watch.tracker().watchdog_killed(crate::clock::now());
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
            nemesis.report_violation("P6", what);
        }
    }
    set.restart_watchdog().map_err(|_| "patou run cannot be restarted")?;
    if !set.wait_until_up(set.bounds().watchdog) {
        return Err(format!("patou run does not start again: {}", set.log_tail()));
    }
    Ok(())
}

fn signal_of(kind: FaultKind) -> Signal {
    match kind {
        FaultKind::Freeze | FaultKind::FreezeSeveral => Signal::SIGSTOP,
        FaultKind::Abort => Signal::SIGABRT,
        FaultKind::Crash => Signal::SIGILL,
        FaultKind::Terminate => Signal::SIGTERM,
        _ => Signal::SIGKILL,
    }
}

/// Whether a signal, a debugger or the freezer holds the process.
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
